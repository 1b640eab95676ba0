"""What a call gives is never more than was said before it was made."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from federated_dask.errors import NotPermitted, RequestRefused
from federated_dask.protocol.bound_rules import ELEMENTWISE, RULES, VIEWS
from federated_dask.protocol.bounded import (
    SIZES,
    check_written_sizes,
    most_bytes,
)
from federated_dask.protocol.call_arguments import dtype_place
from federated_dask.protocol.graph import (
    Block,
    Call,
    DataType,
    Graph,
    Integer,
    List,
    Node,
    Number,
    Operation,
    Partial,
    Reference,
    Template,
    Tuple,
    check_graph,
    encode_column,
)
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.operations import operation_table
from site_plugins.endpoint.guards import Guard

TABLE = operation_table()
WIDE = np.broadcast_to(np.float64(1), (10**6, 10**6))
SEED = np.random.SeedSequence(1)
ROW, COLUMN = np.ones((1, 10**6)), np.ones((10**6, 1))
LIMIT = 2**30
WRAPPERS = "federated_dask.protocol.wrappers"


def bound(name: str, *args: Any, **kwargs: Any) -> int:
    return most_bytes(name, args, kwargs, dtype_place(TABLE.lookup(name)))


def nested(levels: int) -> Any:
    part: Any = np.ones(2)
    for _ in range(levels):
        part = [part, part]
    return part


BOMBS: dict[str, Callable[[], int]] = {
    "ones": lambda: bound("numpy.ones", (10**6, 10**6)),
    "ones by keyword": lambda: bound("numpy.ones", shape=[2**20] * 3),
    "ones of long texts": lambda: bound("numpy.ones", 10, "U99999999"),
    "zeros of an array": lambda: bound("numpy.zeros", 10, "100000000f8"),
    "zeros of a structure": lambda: bound("numpy.zeros", 10, ("f8", (10**9,))),
    "zeros of fields": lambda: bound("numpy.zeros", 10, dtype=[("a", "f8", (10**9,))]),
    "full of a text": lambda: bound("numpy.full", 10**5, "x" * 10**5),
    "full like": lambda: bound("numpy.full_like", np.ones(1), 1, shape=(10**6, 10**6)),
    "like a view": lambda: bound("numpy.zeros_like", WIDE),
    "eye": lambda: bound("numpy.eye", 10**6),
    "arange": lambda: bound("numpy.arange", 10**12),
    "arange of small steps": lambda: bound("numpy.arange", 0.0, 1.0, 1e-12),
    "arange of dates": lambda: bound(
        "numpy.arange",
        np.datetime64("2000-01-01", "ns"),
        np.datetime64("2001-01-01", "ns"),
        np.timedelta64(1, "ns"),
    ),
    "chunk of a range": lambda: bound("dask.array.chunk.arange", 0, 10**12, 1, 5, "i8"),
    "linspace": lambda: bound("numpy.linspace", 0, 1, 10**12),
    "chunk of a linspace": lambda: bound("dask.array.chunk.linspace", 0, 1, num=10**12),
    "linspace of bins": lambda: bound("dask.array.routines._linspace", (10**12, (0, 1))),
    "ramp": lambda: bound("dask.array.creation.linear_ramp_chunk", ROW, 1, 10**6, 0, 1),
    "repeat": lambda: bound("numpy.repeat", np.ones(10), 10**12),
    "repeat unevenly": lambda: bound("numpy.repeat", np.ones(2), [1, 10**12]),
    "tile": lambda: bound("numpy.tile", np.ones(10), (10**6, 10**6)),
    "diag": lambda: bound("numpy.diag", np.ones(10**6)),
    "diag far off": lambda: bound("numpy.diag", np.ones(1), 10**6),
    "outer": lambda: bound("numpy.outer", np.ones(10**6), np.ones(10**6)),
    "outer of a ufunc": lambda: bound("numpy.add.outer", np.ones(10**6), np.ones(10**6)),
    "row and column": lambda: bound("numpy.add", ROW, COLUMN),
    "row and column of Python": lambda: bound("operator.sub", ROW, COLUMN),
    "row and column where": lambda: bound("numpy.where", ROW, COLUMN, 1),
    "row and column of an operation": lambda: bound(
        f"{WRAPPERS}.elementwise_where", np.add, True, None, ROW, COLUMN
    ),
    "select": lambda: bound("dask.array.routines._select", ROW, COLUMN),
    "choose": lambda: bound("dask.array.routines.variadic_choose", ROW, COLUMN),
    "copy of a view": lambda: bound("numpy.ascontiguousarray", WIDE),
    "sum of a view": lambda: bound("numpy.sum", WIDE),
    "sort of a view": lambda: bound("numpy.sort", WIDE),
    "reshape of a view": lambda: bound("array.reshape", WIDE, (-1,)),
    "one operand again and again": lambda: bound("numpy.concatenate", [np.ones(10**6)] * 1000),
    "one view again and again": lambda: bound("numpy.stack", [WIDE] * 2),
    "blocks of one another": lambda: bound("dask.array.core.concatenate3", nested(40)),
    "blocks of rows and columns": lambda: bound(
        "dask.array.core.concatenate3",
        [
            [np.ones((1, 1)), *[np.ones((1, 10**5))] * 9],
            *[[np.ones((10**5, 1)), *[np.ones((1, 1))] * 9]] * 9,
        ],
    ),
    "sum of lists of one another": lambda: bound("builtins.sum", nested(40)),
    "list of a range": lambda: bound("builtins.list", pd.RangeIndex(10**12)),
    "range": lambda: bound("numpy.asarray", pd.RangeIndex(10**12)),
    "sum of a range": lambda: bound("builtins.sum", pd.RangeIndex(10**12)),
    "matrix product": lambda: bound("operator.matmul", COLUMN, ROW),
    "dot": lambda: bound("numpy.dot", COLUMN, ROW),
    "many dots": lambda: bound("dask.array.core.dotmany", [COLUMN], [ROW]),
    "tensordot": lambda: bound("numpy.tensordot", ROW[0], ROW[0], axes=0),
    "tensordot of axes": lambda: bound(
        "dask.array.routines._tensordot", COLUMN, ROW, axes=((1,), (0,)), is_sparse=False
    ),
    "einsum": lambda: bound(
        "dask.array.einsumfuncs.chunk_einsum", ROW[0], ROW[0], subscripts="i,j->ij"
    ),
    "einsum without an arrow": lambda: bound(
        "dask.array.einsumfuncs.chunk_einsum", ROW[0], ROW[0], subscripts="i,j"
    ),
    "bincount": lambda: bound("numpy.bincount", np.array([10**12])),
    "bincount of a length": lambda: bound("numpy.bincount", np.array([1]), minlength=10**12),
    "histogram": lambda: bound("dask.array.routines._block_hist", np.ones(2), (10**12, (0, 1))),
    "histogram of a rule": lambda: bound("dask.array.routines._block_hist", np.ones(2), ("fd", 0)),
    "histogram of many dimensions": lambda: bound(
        "dask.array.routines._block_histogramdd_rect", np.ones((2, 4)), 10**4, None, None
    ),
    "quantiles": lambda: bound("numpy.quantile", ROW, np.ones(10**6) / 2, axis=0),
    "fft": lambda: bound("numpy.fft.fft", np.ones(2), 10**12),
    "fft of many": lambda: bound("scipy.fft.fftn", np.ones((2, 2)), s=(10**6, 10**6)),
    "qr": lambda: bound("numpy.linalg.qr", COLUMN, "complete"),
    "svd": lambda: bound("numpy.linalg.svd", COLUMN),
    "lu": lambda: bound("scipy.linalg.lu", COLUMN),
    "random": lambda: bound(f"{WRAPPERS}.random_values", "PCG64", "normal", SEED, (10**6, 10**6)),
    "random of parameters": lambda: bound(
        f"{WRAPPERS}.random_values", "PCG64", "normal", SEED, None, ROW, COLUMN
    ),
    "random of many outcomes": lambda: bound(
        f"{WRAPPERS}.random_values", "PCG64", "multinomial", SEED, 10**6, 1, ROW[0]
    ),
    "random of a population": lambda: bound(
        f"{WRAPPERS}.random_values", "RandomState", "choice", SEED, 1, 10**12
    ),
    "take": lambda: bound("numpy.take", ROW, np.zeros(10**6, int), axis=0),
    "index": lambda: bound("operator.getitem", ROW, np.zeros(10**6, int)),
    "index in a getter": lambda: bound("dask.array.core.getter", ROW, (np.zeros(10**6, int),)),
    "outer index": lambda: bound(
        "dask.array.slicing.getitem_variadic", ROW, np.zeros((10**6, 1), int), np.zeros(10**6, int)
    ),
    "mask of a view": lambda: bound(
        "operator.getitem", WIDE, np.broadcast_to(np.True_, WIDE.shape)
    ),
    "vectorised index": lambda: bound(
        "dask.array.core._numpy_vindex", (np.zeros(10**6, int), slice(None)), ROW
    ),
    "integers of a chunk": lambda: bound(
        "dask.array.chunk.slice_with_int_dask_array", ROW, np.zeros(10**6, int), 0, 1, 0
    ),
    "windows": lambda: bound(
        "numpy.lib.stride_tricks.sliding_window_view", np.ones(10**6), 5 * 10**5
    ),
    "groups": lambda: bound(
        "flox.core.chunk_reduce",
        np.ones((1000, 10)),
        np.zeros(10, int),
        func=("sum",),
        expected_groups=pd.RangeIndex(10**9),
        axis=(-1,),
    ),
    "groups found later": lambda: bound(
        "flox.dask.reindex_intermediates", {}, unique_groups=pd.RangeIndex(10**12)
    ),
    "function along an axis": lambda: bound(
        f"{WRAPPERS}.along_axis",
        functools.partial(np.bincount, minlength=10**4),
        0,
        np.zeros((1, 10**5), int),
    ),
    "astype": lambda: bound("numpy.astype", np.ones(10**6), "U9999"),
    "astype of a chunk": lambda: bound(
        "dask.array.chunk.astype", np.ones(10**6), astype_dtype=np.dtype("U9999")
    ),
    "forwarded dtype": lambda: bound(
        "dask.array.core._enforce_dtype",
        np.ones(10**6),
        enforce_dtype=np.dtype("U9999"),
        enforce_dtype_function=np.sqrt,
    ),
    "texts of different lengths": lambda: bound("numpy.array", ["x" * 60_000, *[""] * 10_000]),
    "long and short texts": lambda: bound(
        "numpy.concatenate", [np.zeros(1, "U60000"), np.zeros(10_000, "U1")]
    ),
    "one text for many": lambda: bound("numpy.where", np.ones(10**5, bool), "x" * 10**5, ""),
    "sparse": lambda: bound("numpy.sum", sparse.csr_array((1, 10**12)), axis=0),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_take_too_much_is_told_before(name: str) -> None:
    assert BOMBS[name]() > LIMIT


def texts(length: int) -> np.ndarray:
    return np.array(["x" * length], dtype=object)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("numpy.multiply", (texts(10), 10**12)),
        ("operator.mul", (texts(10), 10**12)),
        ("operator.mod", (np.array(["%1000000000d"], dtype=object), 1)),
        ("numpy.remainder", (np.array(["%1000000000d"], dtype=object), 1)),
        ("numpy.power", (np.array([10], dtype=object), 10**9)),
        ("numpy.power", (2**70, 10**9)),
        ("numpy.multiply", (2**4000, 2**4000)),
        ("numpy.add", (texts(2**16), texts(2**16))),
        ("numpy.prod", ([2**70] * 1000,)),
        ("numpy.dot", (texts(3), np.array([10**9], dtype=object))),
        ("operator.add", (pd.Index(["a" * 1000]), pd.Index(["a" * 1000]))),
        ("numpy.left_shift", (np.array([1], dtype=object), 10**9)),
    ],
    ids=str,
)
def test_objects_do_not_grow(name: str, args: Any) -> None:
    with pytest.raises(NotPermitted):
        bound(name, *args)


@pytest.mark.parametrize("dtype", [object, "O", np.dtype("O"), "object", "T", ">O"])
@pytest.mark.parametrize("name", ["numpy.zeros", "numpy.asarray", "numpy.astype", "numpy.array"])
def test_no_objects_are_made(name: str, dtype: object) -> None:
    with pytest.raises(NotPermitted):
        bound(name, 3, dtype)
    with pytest.raises(NotPermitted):
        bound(name, 3, dtype=dtype)


def test_dates_of_other_calendars_are_computed_with() -> None:
    import cftime

    dates = np.array([cftime.DatetimeNoLeap(2000, 1, 1)], dtype=object)
    assert bound("operator.sub", dates, dates) < 100
    assert bound("numpy.add", dates, np.array([pd.Timedelta(1).to_pytimedelta()], object)) < 100


@pytest.mark.parametrize(
    ("bins", "cells"),
    [
        ((np.linspace(0, 1, 5), np.linspace(0, 1, 9)), 7 * 11),
        ([[0, 1, 2], 4], 5 * 6),
        ((3, 4), 5 * 6),
        (3, 5 * 5),
    ],
)
def test_bins_of_each_dimension_count(bins: Any, cells: int) -> None:
    columns = np.ones((10, 2))
    routines = "dask.array.routines._block_histogramdd"
    most = bound(f"{routines}_rect", columns, bins, ((0, 1), (0, 1)), None)
    assert 8 * cells <= most <= 8 * cells + 1_000
    most = bound(f"{routines}_multiarg", *columns.T, bins, ((0, 1), (0, 1)), None)
    assert 8 * cells <= most <= 8 * cells + 1_000


def test_views_take_nothing() -> None:
    for name in ("broadcast_to", "transpose", "expand_dims", "asarray", "flip"):
        assert bound(f"numpy.{name}", WIDE) == 0
    assert bound("numpy.asarray", WIDE, "f4") > LIMIT
    assert bound("operator.getitem", WIDE, (slice(0, 10), 3)) == 0
    assert bound("dask.array.core.getter", WIDE, (slice(0, 10), None)) == 0


# What is told holds


def measured(result: Any) -> int:
    if isinstance(result, tuple | list):
        return sum(map(measured, result))
    if isinstance(result, dict):
        return sum(map(measured, result.values()))
    array = result if isinstance(result, np.ndarray | np.generic) else np.asarray(result)
    return int(array.nbytes)


ARRAYS = hnp.arrays(
    st.sampled_from(["f8", "f4", "i8", "u1", "?", "U3"]),
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
    elements={"allow_nan": False},
)
NUMBERS = hnp.arrays(
    st.sampled_from(["f8", "f4", "i4", "u1"]),
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
    elements={"min_value": 0, "max_value": 50},
)
SMALL = st.integers(1, 7)
EXACT: dict[str, st.SearchStrategy[tuple[Any, ...]]] = {
    "numpy.add": st.tuples(NUMBERS, NUMBERS),
    "numpy.add.outer": st.tuples(NUMBERS, NUMBERS),
    "numpy.arange": st.tuples(SMALL, st.integers(0, 50), SMALL),
    "numpy.bincount": st.tuples(hnp.arrays("i8", 5, elements=st.integers(0, 30))),
    "numpy.concatenate": st.builds(lambda a, n: ([a] * n,), ARRAYS, SMALL),
    "numpy.diag": st.tuples(hnp.arrays("f8", SMALL), st.integers(-4, 4)),
    "numpy.dot": st.builds(lambda n, m, k: (np.ones((n, m)), np.ones((m, k))), SMALL, SMALL, SMALL),
    "numpy.eye": st.tuples(SMALL, SMALL),
    "numpy.fft.fft": st.tuples(NUMBERS, SMALL),
    "numpy.fft.irfft": st.tuples(NUMBERS),
    "numpy.full": st.tuples(st.lists(SMALL, max_size=3), st.sampled_from([1, 1.0, "text", 1j])),
    "numpy.linalg.svd": st.builds(lambda n, m: (np.ones((n, m)),), SMALL, SMALL),
    "numpy.linspace": st.tuples(SMALL, SMALL, SMALL),
    "numpy.multiply": st.tuples(NUMBERS, NUMBERS),
    "numpy.outer": st.tuples(NUMBERS, NUMBERS),
    "numpy.quantile": st.tuples(NUMBERS, hnp.arrays("f8", SMALL, elements=st.floats(0, 1))),
    "numpy.repeat": st.tuples(ARRAYS, SMALL),
    "numpy.stack": st.builds(lambda a, n: ([a] * n,), ARRAYS, SMALL),
    "numpy.take": st.builds(lambda a, i: (a, i, 0), ARRAYS, st.just([0] * 9)),
    "numpy.tensordot": st.tuples(NUMBERS, NUMBERS, st.just(0)),
    "numpy.tile": st.tuples(ARRAYS, st.lists(SMALL, min_size=1, max_size=3)),
    "operator.getitem": st.tuples(ARRAYS, st.lists(st.just(0), max_size=9)),
    "operator.sub": st.tuples(NUMBERS, NUMBERS),
    "dask.array.core.concatenate3": st.builds(lambda a, n: ([a] * n,), ARRAYS, SMALL),
    f"{WRAPPERS}.random_values": st.tuples(
        st.just("PCG64"), st.just("normal"), st.just(1), st.lists(SMALL, max_size=3).map(tuple)
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_result_is_never_larger_than_was_told(name: str) -> None:
    @settings(max_examples=40)
    @given(EXACT[name])
    def check(args: tuple[Any, ...]) -> None:
        told = bound(name, *args)
        try:
            with np.errstate(all="ignore"):
                result = TABLE.lookup(name)(*args)
        except (ValueError, TypeError, np.linalg.LinAlgError):
            return
        assert measured(result) <= told + 64
        # Nor is anything refused that is nowhere near the limit.
        assert told <= 64 * (measured(result) + sum(map(measured, args))) + 4096

    check()


@given(
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=5).flatmap(
        lambda shape: st.tuples(
            st.just(shape),
            hnp.basic_indices(shape, allow_newaxis=True) | hnp.integer_array_indices(shape),
        )
    )
)
def test_indices_select_what_was_told(drawn: Any) -> None:
    shape, index = drawn
    array = np.zeros(shape)
    result = array[index]
    told = bound("operator.getitem", array, index)
    if isinstance(result, np.ndarray) and not np.shares_memory(result, array):
        assert result.nbytes <= told


def test_every_rule_is_about_an_operation() -> None:
    ufuncs = {name for name in RULES if name.endswith(".outer")}
    optional = {"sparse.COO"}
    assert {*RULES, *VIEWS, *ELEMENTWISE, *SIZES} - ufuncs - optional <= set(TABLE.names)


def test_a_guard_is_what_it_guards_but_for_the_limit() -> None:
    import pickle

    guard = pickle.loads(pickle.dumps(Guard("numpy.ones", np.ones, 100)))
    assert guard((2, 2)).shape == (2, 2)
    with pytest.raises(RequestRefused, match="more memory"):
        guard((4, 4))
    with pytest.raises(ValueError, match="broadcast"):
        Guard("operator.add", operator.add, 10**6)(np.ones(3), np.ones(2))


def test_a_refusal_tells_nothing_of_the_data() -> None:
    guard = Guard("numpy.bincount", np.bincount, 100)
    with pytest.raises(RequestRefused) as caught:
        guard(np.array([123_456_789]))
    assert "123456" not in str(caught.value)


# In a message


def graph_of(node: Node, *integers: list[int]) -> Graph:
    columns = tuple(encode_column(np.array(column)) for column in integers)
    count = len(integers[0]) if integers else 1
    return Graph(values=(1,), templates=(Template((node,)),), blocks=(Block(0, count, columns),))


def call(name: str, *args: Node, **kwargs: Node) -> Call:
    return Call(Operation(name), args, tuple(kwargs.items()))


@pytest.mark.parametrize(
    "graph",
    [
        graph_of(call("numpy.ones", Tuple((Number(10**6), Number(10**6))))),
        graph_of(call("numpy.sum", call("numpy.zeros", Number(10**12)))),
        graph_of(call("numpy.zeros", shape=List((Integer(), Integer()))), [1, 10**6], [1, 10**6]),
        graph_of(
            call(
                "numpy.add", Integer(), call("numpy.full", Tuple((Integer(), Integer())), Integer())
            ),
            [1],
            [10**6],
            [10**6],
            [3],
        ),
        graph_of(call("numpy.tile", call("numpy.arange", Integer()), Integer()), [3], [10**12]),
        graph_of(call("numpy.repeat", call("numpy.arange", Number(3)), Number(10**12))),
        graph_of(call("numpy.eye", Number(10**12))),
        graph_of(call("numpy.linspace", Number(0), Number(1), Integer()), [10**12]),
        graph_of(call("numpy.fft.fft", call("numpy.arange", Number(2)), n=Integer()), [10**12]),
    ],
)
def test_sizes_in_messages_are_refused_before_anything_is_built(graph: Graph) -> None:
    checked = check_graph(graph, TABLE, Limits())
    with pytest.raises(RequestRefused, match="memory"):
        check_written_sizes(checked, LIMIT)


def test_sizes_of_many_tasks_are_looked_at_one_by_one() -> None:
    starts = list(range(0, 10**9, 10**5))
    graph = graph_of(
        call("numpy.full", Tuple((Integer(), Number(10))), Integer()), [7] * 10_000, starts
    )
    check_written_sizes(check_graph(graph, TABLE, Limits()), LIMIT)


def test_sizes_that_are_not_in_a_message_wait_for_the_call() -> None:
    graph = Graph(
        values=(1,),
        templates=(Template((call("numpy.ones", Reference()),)),),
        blocks=(Block(0, 1, (encode_column(np.array([0])),)),),
    )
    check_written_sizes(check_graph(graph, TABLE, Limits()), 1)


OBJECTS: list[Node] = [DataType("|O"), Operation("builtins.object"), "O", "object"]


@pytest.mark.parametrize("dtype", OBJECTS, ids=str)
@pytest.mark.parametrize(
    "node",
    [
        lambda dtype: call("numpy.ones", Number(3), dtype),
        lambda dtype: call("numpy.ones", Number(3), dtype=dtype),
        lambda dtype: call("dask.array.chunk.astype", Number(3), astype_dtype=dtype),
        lambda dtype: call("numpy.sum", call("numpy.array", Number(3), dtype=dtype)),
        lambda dtype: Call(Partial(Operation("numpy.full"), (Number(3), Number(4))), (dtype,), ()),
        lambda dtype: Call(Partial(Operation("numpy.full"), (), (("dtype", dtype),)), (Number(3),)),
    ],
)
def test_objects_in_messages_are_refused(node: Callable[[Node], Node], dtype: Node) -> None:
    with pytest.raises(NotPermitted, match="Objects of Python"):
        check_graph(graph_of(node(dtype)), TABLE, Limits())


def test_what_calls_another_operation_may_expect_objects() -> None:
    function = Operation("numpy.sqrt")
    node = call(
        "dask.array.core._enforce_dtype",
        Number(3),
        enforce_dtype=DataType("|O"),
        enforce_dtype_function=function,
    )
    check_graph(graph_of(node), TABLE, Limits())
