import numpy as np
import pytest
from scipy import sparse

from federated_dask.errors import NotPermitted, RequestRefused
from federated_dask.protocol import operation_names as names
from federated_dask.protocol import wrappers
from federated_dask.protocol.nodes import Call, Operation, Partial, Reference, Template
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
