import operator
from typing import Any

import dask.array.core as core
import dask.array.creation as creation
import numpy as np
import pytest
from scipy import sparse

from federated_dask.errors import NotPermitted, RequestRefused
from federated_dask.protocol import operation_names as names
from federated_dask.protocol import wrappers
from federated_dask.protocol.nodes import Call, Number, Operation, Partial, Reference, Template
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.rules import check_template
from federated_dask.protocol.values import decode_value, encode_value

TABLE = operation_table()


def call(name: str, *arguments: object, **keywords: object) -> Call:
    return Call(Operation(name), tuple(arguments), tuple(keywords.items()))


def check(step: object) -> None:
    check_template(Template((step,)), TABLE, set(), 100)


@pytest.mark.parametrize("generator", [*wrappers.BIT_GENERATORS, wrappers.SEEDED])
def test_random_values_are_those_of_numpy(generator):
    seed = np.random.SeedSequence(3) if generator != wrappers.SEEDED else np.array([3, 4], "u4")
    ours = wrappers.random_values(generator, "normal", seed, (4,), 1.0, scale=2.0)
    if generator == wrappers.SEEDED:
        theirs = np.random.RandomState(seed).normal(1.0, 2.0, 4)
    else:
        theirs = np.random.Generator(getattr(np.random, generator)(seed)).normal(1.0, 2.0, 4)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("generator", "distribution", "seed"),
    [
        ("PCG64", "bytes", 1),
        ("PCG64", "shuffle", 1),
        ("PCG64", "__class__", 1),
        ("PCG64", "bit_generator", 1),
        ("RandomState", "set_state", 1),
        ("RandomState", "__reduce__", 1),
        ("Generator", "normal", 1),
        ("os.system", "normal", 1),
        ("PCG64", "normal", np.random.PCG64(1)),
        ("PCG64", "normal", None),
        ("PCG64", "normal", object()),
    ],
)
def test_random_values_come_from_closed_sets(generator, distribution, seed):
    with pytest.raises(ValueError, match=r"random|seed"):
        wrappers.random_values(generator, distribution, seed, (1,))


def test_random_values_are_not_written_into_an_argument():
    with pytest.raises(ValueError, match="not written"):
        wrappers.random_values("PCG64", "random", 1, (2,), out=np.zeros(2))
    with pytest.raises(NotPermitted):
        check(call("federated_dask.protocol.wrappers.random_values", "PCG64", out=Reference()))


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_what_a_condition_leaves_out_is_zero(shape):
    where = np.zeros(shape, bool)
    found = wrappers.elementwise_where(np.add, where, None, np.ones(3), 1.0)
    np.testing.assert_array_equal(found, np.zeros(shape))


def test_nothing_is_written_into_what_is_given():
    into, values = np.zeros(3), np.arange(3.0)
    wrappers.elementwise_where(np.add, True, into, values, 1.0)
    wrappers.with_items(values, np.array(7.0), [slice(None)])
    indices = [np.array([0, 5])]
    wrappers.with_items(values, np.array(7.0), indices)
    np.testing.assert_array_equal(into, np.zeros(3))
    np.testing.assert_array_equal(values, np.arange(3.0))
    np.testing.assert_array_equal(indices[0], [0, 5])
    with pytest.raises(TypeError):
        wrappers.elementwise_where(np.add, True, (into,), values, 1.0)
    with pytest.raises(TypeError):
        wrappers.with_items({"a": 1}, np.array(1), ["a"])


def test_a_masked_array_shares_no_mask():
    data = np.ma.MaskedArray([(1, 2)], mask=[(False, True)], dtype="i4,i4")
    made = wrappers.masked_array(data, mask=[(True, False)])
    made.mask = True
    assert data.mask.tolist() == [(False, True)]
    with pytest.raises(TypeError):
        wrappers.masked_array([1], copy=False)


@pytest.mark.parametrize("name", ["__class__", "base", "ctypes", "data", "tofile", "__reduce__"])
def test_other_attributes_are_refused(name):
    with pytest.raises(ValueError, match="property"):
        wrappers.attribute(np.zeros(1), name)
    with pytest.raises(TypeError):
        wrappers.attribute({}, "shape")


def test_sparse_arrays_are_made_of_arrays_only():
    parts = (np.ones(1), np.array([10**6]), np.array([0, 1]))
    with pytest.raises(TypeError):
        wrappers.sparse_array("csr_array", parts)
    with pytest.raises(ValueError, match="sparse"):
        wrappers.sparse_array("load_npz", np.eye(2))


@pytest.mark.parametrize("kind", sorted(wrappers.SPARSE))
def test_sparse_arrays_cross_and_are_checked(kind):
    array = vars(sparse)[kind](np.eye(3))
    buffers: list = []
    value = encode_value(array, buffers, TABLE)
    received = [bytearray(memoryview(buffer)) for buffer in buffers]
    back = decode_value(value, received, TABLE)
    assert type(back) is type(array)
    np.testing.assert_array_equal(back.toarray(), np.eye(3))
    indices = np.frombuffer(received[1], array.indices.dtype)
    indices[-1] = 10**6
    with pytest.raises(RequestRefused):
        decode_value(value, received, TABLE)


FORWARDING = [
    call(names.ALONG_AXIS, Operation("numpy.nan_to_num"), False, Reference(), copy=False),
    call(names.ALONG_AXIS, Operation("numpy.add"), False, Reference(), where=Reference()),
    call(names.ALONG_AXIS, Operation("numpy.add"), False, Reference(), out=Reference()),
    call(names.WHERE, Operation("numpy.add"), True, Reference(), Reference(), out=Reference()),
    call(names.WHERE, Operation("numpy.add"), True, None, *[Reference()] * 3),
    call(names.WHERE, Operation("flox.core.chunk_reduce"), True, None, Reference()),
    call(names.WHERE, Reference(), True, None, Reference()),
    call(
        names.ENFORCE, Reference(), enforce_dtype_function=Operation("numpy.nan_to_num"), copy=False
    ),
    call("numpy.add", Reference(), Reference(), where=Reference()),
    call("numpy.add.outer", Reference(), Reference(), where=Reference()),
    call("numpy.add.accumulate", Reference(), Reference(), Reference(), Reference()),
    call("numpy.ma.masked_where", Reference(), Reference(), copy=False),
    call("numpy.ma.masked_where", Reference(), Reference(), False),
    call("scipy.fft.fft", Reference(), overwrite_x=True),
    call("scipy.linalg.lu", Reference(), False, True),
    Call(Partial(Operation("numpy.add"), (), (("where", False),)), (Reference(), Reference())),
]


@pytest.mark.parametrize("step", FORWARDING, ids=repr)
def test_nothing_is_made_to_write_or_to_leave_memory_unwritten(step):
    with pytest.raises(NotPermitted):
        check(step)


@pytest.mark.parametrize(
    "step",
    [
        call(names.ALONG_AXIS, Operation("numpy.sum"), False, Reference()),
        call(names.WHERE, Operation("numpy.add"), Reference(), None, Reference(), Reference()),
        call("numpy.sum", Reference(), where=Reference()),
        call("numpy.nan_to_num", Reference(), copy=True),
    ],
    ids=repr,
)
def test_plain_uses_are_accepted(step):
    check(step)


# What stands in for operations of libraries


def stale(function: Any, *arguments: Any) -> Any:
    """Call a function while fresh memory of numpy's holds what somebody else wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "np", NUMPY)
        patch.setattr(wrappers, "np", NUMPY)
        return function(*arguments)


class _Stale:
    """numpy, but what nobody wrote is 777."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any = float, **keywords: Any) -> Any:
        return np.full(shape, 777, dtype, **keywords)

    def empty_like(self, like: Any, **keywords: Any) -> Any:
        return np.full_like(like, 777, **keywords)


NUMPY = _Stale()


@pytest.mark.parametrize(
    ("locations", "values"),
    [
        ([[0] * 5], [np.ones(5)]),
        ([[0, 0, 1]], [np.ones((3, 2))]),
        ([[True, False]], [np.ones(1)]),
        ([[-1, -1]], [np.ones(2)]),
        ([[0], [0]], [np.ones(1), np.ones(1)]),
    ],
)
def test_merged_points_hold_nothing_that_nobody_wrote(locations: Any, values: Any) -> None:
    assert 777 in stale(core._vindex_merge, locations, values)
    merged = stale(TABLE.lookup("dask.array.core._vindex_merge"), locations, values)
    assert set(np.unique(merged)) <= {0, 1}


def test_merged_points_are_those_of_dask() -> None:
    locations, values = ([0], [2, 1]), [np.array([[1, 2]]), np.array([[10, 20], [40, 50]])]
    ours = TABLE.lookup("dask.array.core._vindex_merge")(locations, values)
    np.testing.assert_array_equal(ours, core._vindex_merge(locations, values))
    with pytest.raises(ValueError, match="zip"):
        TABLE.lookup("dask.array.core._vindex_merge")([[0], [1]], values[:1])


ONE = np.ones((2, 2))
GAPS: Any = [[[ONE, ONE], [ONE]], [[ONE], [ONE], []], [[ONE, ONE], ()], [[]]]


@pytest.mark.parametrize("blocks", GAPS)
def test_blocks_that_leave_gaps_are_refused(blocks: Any) -> None:
    for name in ("concatenate3", "finalize"):
        with pytest.raises(ValueError, match="make up"):
            TABLE.lookup(f"dask.array.core.{name}")(blocks)


def test_gaps_would_show_what_others_wrote() -> None:
    for name in ("concatenate3", "finalize"):
        assert 777 in stale(vars(core)[name], GAPS[0])
    for name, *arguments in (("concatenate_axes", [0, 1]), ("concatenate_shaped", (2, 2))):
        blocks = GAPS[0] if name == "concatenate_axes" else [ONE] * 3
        try:
            found = stale(TABLE.lookup(f"dask.array.core.{name}"), blocks, *arguments)
        except ValueError:
            continue
        assert 777 not in found


@pytest.mark.parametrize(
    "blocks",
    [[], [ONE[0]], [ONE[0], ONE[0]], [[ONE, ONE], [ONE, ONE]], ([ONE], [ONE]), [[[ONE[None]]]]],
)
def test_blocks_are_put_together_as_dask_does(blocks: Any) -> None:
    for name in ("concatenate3", "finalize"):
        ours = TABLE.lookup(f"dask.array.core.{name}")(blocks)
        np.testing.assert_array_equal(ours, vars(core)[name](blocks))


def test_blocks_are_put_together_in_any_order_as_dask_does() -> None:
    blocks = [[ONE, 2 * ONE], [3 * ONE, 4 * ONE]]
    for axes in ([0, 1], [1, 0]):
        ours = TABLE.lookup("dask.array.core.concatenate_axes")(blocks, axes)
        np.testing.assert_array_equal(ours, core.concatenate_axes(blocks, axes))
    ours = TABLE.lookup("dask.array.core.concatenate_shaped")([ONE] * 4, (2, 2))
    np.testing.assert_array_equal(ours, core.concatenate_shaped([ONE] * 4, (2, 2)))
    with pytest.raises(ValueError, match="Length of axes"):
        TABLE.lookup("dask.array.core.concatenate_axes")(blocks, [0])


def test_ramps_and_distinct_values_are_written_everywhere() -> None:
    ramp = TABLE.lookup("dask.array.creation.linear_ramp_chunk")
    with pytest.raises(ValueError, match="starts"):
        ramp(np.ones((2, 0)), 0, 100, 1, 1)
    np.testing.assert_array_equal(
        ramp(np.array([4.0]), 0, 4, 0, -1), creation.linear_ramp_chunk(np.array([4.0]), 0, 4, 0, -1)
    )
    unique = TABLE.lookup("dask.array.routines._unique_internal")
    assert unique(np.array([3, 1, 3]), None, np.ones(3, int)).tolist() == [(1, 1), (3, 2)]
    with pytest.raises(TypeError, match="array"):
        unique(np.array([1]), np.ma.MaskedArray([1], mask=[True], hard_mask=True), None)


def test_what_lies_between_long_doubles_is_not_seen() -> None:
    view = TABLE.lookup("dask.array.chunk.view")
    assert view(np.zeros(2, "<f8"), "<i4").size == 4
    for dtype in ("longdouble", "clongdouble", [("a", "g")], np.dtype("i1,f8", align=True)):
        with pytest.raises(TypeError, match="nobody wrote"):
            view(np.zeros(2, dtype), "u1")


def test_masks_that_keep_memory_from_being_written_are_refused() -> None:
    with pytest.raises(TypeError, match="unknown"):
        wrappers.masked_array([1, 2], mask=[True, False], hard_mask=True)


@pytest.mark.parametrize(
    "step",
    [
        call("numpy.clip", Reference(), Number(1), Number(2), where=Reference()),
        call("numpy.clip", Reference(), Number(1), Number(2), where=False),
        call(
            "dask.array.reductions.mean_chunk",
            Reference(),
            sum=Operation("numpy.add"),
            where=Reference(),
        ),
        Call(Partial(Operation("numpy.clip"), (), (("where", Reference()),)), (Reference(),)),
        call("numpy.add.outer", Reference(), Reference(), where=Reference()),
    ],
)
def test_where_is_for_those_that_know_it(step: Any) -> None:
    with pytest.raises(NotPermitted, match="unwritten"):
        check(step)
    check(call("numpy.sum", Reference(), where=Reference()))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pow", (7, 10**9)),
        ("pow", (-7, 10**9)),
        ("pow", (2, 4097)),
        ("lshift", (1, 10**12)),
        ("lshift", (True, 5000)),
        ("mul", (1 << 3000, 1 << 3000)),
        ("mul", ([0], 10**9)),
        ("mul", (10**9, (0,))),
        ("mul", ("a", 10**9)),
        ("mul", (np.str_("a"), np.int64(10**9))),
        ("mul", (np.int64(10**9), [0])),
        ("mul", (b"a", True)),
        ("mod", ("%1000000000d", 1)),
        ("mod", (b"%1000000000d", 1)),
        ("mod", (np.str_("%s"), (1,))),
    ],
)
def test_what_would_hold_up_a_whole_process_is_refused(name: str, arguments: Any) -> None:
    with pytest.raises((OverflowError, TypeError), match=r"bits|repeated|formatted"):
        TABLE.lookup(f"operator.{name}")(*arguments)


@pytest.mark.parametrize("name", ["pow", "lshift", "mul", "mod"])
def test_what_does_not_is_computed(name: str) -> None:
    original = vars(operator)[name]
    pairs: list[Any] = [(3, 5), (np.arange(3), 2), (2, np.arange(3)), (np.int64(3), np.int64(2))]
    pairs += [([1, 2], np.arange(1, 3)), (True, 3), (0, 9), (1, 10)]
    pairs += [(-2, 3), (7, np.ones((), int))]
    pairs += [(2.5, 2), (2, 0.5)] if name != "lshift" else []
    pairs += [(2, -1), (0, 10**9), (-1, 10**9)] if name == "pow" else []
    for pair in pairs:
        if name == "mod" and not np.all(pair[1]):
            continue
        ours, theirs = TABLE.lookup(f"operator.{name}")(*pair), original(*pair)
        assert type(ours) is type(theirs)
        np.testing.assert_array_equal(ours, theirs)
