import functools
import subprocess
import sys
import textwrap
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federated_dask.errors import FederatedError, NotPermitted, Reason, RequestRefused
from federated_dask.protocol.frames import Buffer, Frame, decode_message
from federated_dask.protocol.graph import (
    Block,
    Call,
    Compose,
    DataType,
    Dictionary,
    EllipsisNode,
    Float,
    Graph,
    Integer,
    List,
    Local,
    Node,
    Number,
    Operation,
    Packed,
    Partial,
    Reference,
    Same,
    Scalar,
    Slice,
    Source,
    Steps,
    Template,
    Tuple,
    check_graph,
    children,
    decode_column,
    encode_column,
    walk,
)
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import JobSubmission, Output
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.trees import (
    DictValue,
    InstanceValue,
    ListValue,
    OperationValue,
    PartialValue,
    TupleValue,
)
from federated_dask.protocol.values import encode_value

TABLE = operation_table()
INT64 = st.integers(-(2**63), 2**63 - 1)
REF, INT = Reference(), Integer()


def op(name: str) -> Operation:
    return Operation(name)


def call(name: str | Node, *arguments: Node, **keywords: Node) -> Call:
    function = Operation(name) if isinstance(name, str) else name
    return Call(function, arguments, tuple(keywords.items()))


def bind(name: str | Node, *arguments: Node, **keywords: Node) -> Partial:
    function = Operation(name) if isinstance(name, str) else name
    return Partial(function, arguments, tuple(keywords.items()))


def holes(node: Node, kind: type) -> int:
    return sum(isinstance(part, kind) for part in walk(node))


def graph_of(*steps: Node, sources: int = 0, values: Any = (1,), references: Any = None) -> Graph:
    """One task of one template; its references are the first value unless given."""
    needed = sum(holes(step, Reference) for step in steps)
    numbers = [sources] * needed if references is None else references
    columns = [Same(number) for number in numbers]
    columns += [Same(0)] * sum(holes(step, Integer) for step in steps)
    return Graph(
        sources=(Source("d", "v", "x"),) * sources,
        values=tuple(values),
        templates=(Template(steps),),
        blocks=(Block(0, 1, tuple(columns)),),
    )


def check(graph: Graph, limits: Limits | None = None) -> Any:
    return check_graph(graph, TABLE, limits or Limits())


def refused(graph: Graph, words: str = "", kind: type = FederatedError) -> None:
    with pytest.raises(kind, match=words or None):
        check(graph)


# Columns


@given(st.lists(INT64, min_size=1, max_size=50))
def test_columns_of_any_numbers(numbers: list[int]) -> None:
    array = np.array(numbers, dtype=np.int64)
    assert decode_column(encode_column(array), len(array)).tolist() == numbers


@given(start=INT64, step=INT64, count=st.integers(1, 40))
def test_columns_of_progressions(start: int, step: int, count: int) -> None:
    numbers = [start + step * i for i in range(count)]
    if -(2**63) <= numbers[-1] < 2**63:
        column = encode_column(np.array(numbers, dtype=np.int64))
        # What wraps around on the way is packed.
        assert not isinstance(column, Packed) or abs(step) > 2**62
        assert decode_column(column, count).tolist() == numbers


@given(st.lists(st.integers(-100, 100), min_size=3, max_size=50))
def test_small_differences_are_stored_in_few_bytes(numbers: list[int]) -> None:
    column = encode_column(np.array(numbers, dtype=np.int64))
    assert not isinstance(column, Packed) or len(column.data) <= 2 * len(numbers)


@given(
    column=st.builds(Same, st.integers())
    | st.builds(Steps, st.integers(), st.integers())
    | st.builds(Packed, st.integers(1, 8), st.binary(max_size=40)),
    count=st.integers(1, 10),
)
def test_any_column_decodes_or_is_refused(column: Any, count: int) -> None:
    try:
        numbers = decode_column(column, count)
    except RequestRefused:
        return
    assert numbers.dtype == np.int64
    assert numbers.shape == (count,)


# Templates and blocks

NODES: list[Node] = [
    *(None, True, "text", REF, INT, Number(-3), Float((0.1).hex()), Float("nan"), EllipsisNode()),
    *(Scalar("<f4", b"1234"), DataType("<M8[ns]"), Slice(None, INT, Number(2)), List(())),
    Tuple((REF,)),
    Dictionary((("a", REF), (Number(1), INT), (Tuple(("x", Number(2))), None))),
    call("numpy.add", REF, call("numpy.multiply", REF, INT)),
    call(bind("numpy.sum", axis=Tuple((Number(0),)), dtype=op("builtins.float")), REF),
    call(
        Compose(
            (bind("numpy.sum", keepdims=True), bind("dask.array.core._concatenate2", axes=INT))
        ),
        List((REF, REF)),
    ),
    call(
        "dask.array.core._enforce_dtype",
        REF,
        enforce_dtype=DataType("<f8"),
        enforce_dtype_function=op("numpy.cbrt"),
    ),
    call(
        "dask.array.reductions.mean_chunk",
        REF,
        sum=op("numpy.nansum"),
        numel=op("dask.array.reductions.nannumel"),
    ),
    call(
        bind(
            "flox.core.chunk_reduce",
            func=Tuple(("sum", "nanlen")),
            expected_groups=REF,
            engine="numpy",
        ),
        REF,
        REF,
    ),
]


@pytest.mark.parametrize("node", NODES, ids=repr)
def test_what_crosses_comes_back_and_passes(node: Node) -> None:
    graph = graph_of(node)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(graph), type=Graph)
    assert again == graph
    assert hash(again.templates) == hash(graph.templates)
    checked = check(again)
    [block] = checked.blocks
    assert block.references.shape == (1, holes(node, Reference))
    assert block.integers.shape == (1, holes(node, Integer))


@given(data=st.data())
def test_blocks_come_back(data: st.DataObject) -> None:
    template = Template((call("numpy.add", REF, call("numpy.multiply", REF, INT)),))
    numbers = 3
    blocks, expected = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        count = data.draw(st.integers(1, 5))
        column = st.lists(st.integers(0, numbers - 1), min_size=count, max_size=count)
        references = [data.draw(column), data.draw(column)]
        integers = data.draw(st.lists(INT64, min_size=count, max_size=count))
        expected.append((references, integers))
        columns = [encode_column(np.array(each)) for each in (*references, integers)]
        blocks.append(Block(0, count, tuple(columns)))
        numbers += count
    graph = Graph(values=(1, 2.0, "x"), templates=(template,), blocks=tuple(blocks))
    checked = check(msgspec.msgpack.decode(msgspec.msgpack.encode(graph), type=Graph))
    assert checked.operations == {"numpy.add", "numpy.multiply"}
    for block, (references, integers) in zip(checked.blocks, expected, strict=True):
        assert block.references.T.tolist() == references
        assert block.integers.ravel().tolist() == integers


def test_operands_are_numbered_sources_values_held_tasks() -> None:
    graph = graph_of(call("operator.getitem", REF, INT), sources=2, references=[1])
    assert graph.first_task == 3
    assert graph.tasks == 1


def test_a_walk_visits_holes_in_the_order_of_children() -> None:
    node = call(bind("numpy.sum", REF), INT, a=REF)
    visited = [type(part).__name__ for part in walk(node)]
    assert visited == ["Call", "Partial", "Operation", "Reference", "Integer", "Reference"]
    assert list(children(node)) == [node.function, INT, REF]


# What is refused: structure


@pytest.mark.parametrize("number", [-1, 1, 2, 5, 2**62])
def test_references_forward_to_oneself_and_negative_are_refused(number: int) -> None:
    refused(graph_of(call("numpy.sqrt", REF), references=[number]), "come before")


def test_references_within_a_block_are_refused() -> None:
    # Else one block would be a chain as long as it has tasks.
    template = Template((call("numpy.sqrt", REF),))
    graph = Graph(values=(1,), templates=(template,), blocks=(Block(0, 5, (Steps(0, 1),)),))
    refused(graph, "come before")


@pytest.mark.parametrize("columns", [(), (Same(0),), (Same(0),) * 3])
def test_a_column_for_every_hole(columns: Any) -> None:
    template = Template((call("operator.getitem", REF, INT),))
    refused(Graph(values=(1,), templates=(template,), blocks=(Block(0, 1, columns),)), "one column")


@pytest.mark.parametrize(
    "column",
    [
        Same(2**63),
        Steps(2**62, 2**62),
        Steps(0, 2**70),
        Packed(1, b"12"),
        Packed(3, b"123"),
        Packed(8, b"1"),
    ],
)
def test_columns_that_do_not_fit(column: Any) -> None:
    template = Template((INT,))
    refused(Graph(templates=(template,), blocks=(Block(0, 3, (column,)),)), "column")


def test_a_block_without_template() -> None:
    refused(Graph(templates=(), blocks=(Block(0, 1, ()),)), "no template")


def nested(depth: int) -> Node:
    node: Node = None
    for _ in range(depth):
        node = List((node,))
    return node


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((), "no steps"),
        ((None,) * 10_001, "too many"),
        ((Local(0),), "later one"),
        ((None, Local(1)), "later one"),
        ((None, call("numpy.sqrt", Local(2))), "later one"),
        ((call(REF, REF),), "not an operation"),
        ((call(Tuple((op("numpy.sqrt"),)), REF),), "not an operation"),
        ((Call("numpy.sqrt", (REF,)),), "not an operation"),
        ((call(call("numpy.sqrt", REF)),), "not an operation"),
        ((call(Partial(REF)),), "not an operation"),
        ((call(Partial("numpy.sqrt")),), "not an operation"),
        ((call(Compose(())),), "not an operation"),
        ((call(Compose((op("numpy.sqrt"), REF))),), "not an operation"),
        ((Scalar("<f4", b"123"),), "size of its dtype"),
        ((Scalar("|O", bytes(8)),), "size of its dtype"),
        ((Scalar("<U0", b""),), "size of its dtype"),
        ((Scalar("float", bytes(8)),), "dtype"),
        ((DataType("f8,f8"),), "dtype"),
        ((Float("xyz"),), "float"),
        ((Float("0x1p99999"),), "float"),
        (("x" * 70_000,), "characters"),
        ((Dictionary(((List(()), None),)),), "key"),
        ((Dictionary(((REF, None),)),), "key"),
        ((Dictionary(((op("numpy.float64"), None),)),), "key"),
        ((nested(100),), "nested deeper"),
        ((Call(op("numpy.sqrt"), (REF,), (("a", None), ("a", None))),), "twice"),
        ((call(Partial(op("numpy.sqrt"), (), (("a", None), ("a", None))), REF),), "twice"),
    ],
)
def test_malformed_templates(steps: Any, words: str) -> None:
    refused(graph_of(*steps), words, RequestRefused)


# What is refused: limits


def bomb(count: int = 10**12, columns: int = 1) -> Graph:
    template = Template((Tuple((INT,) * columns),))
    return Graph(templates=(template,), blocks=(Block(0, count, (Same(0),) * columns),))


@pytest.mark.parametrize(
    "graph",
    [
        bomb(),
        bomb(2**63 - 1),
        bomb(1_000_001),
        bomb(1_000_000, columns=100),
        Graph(templates=(Template((None,)),), blocks=(Block(0, 1, ()),) * 10_001),
        Graph(templates=(Template((None,)),), blocks=(Block(0, 600_000, ()),) * 2),
        Graph(templates=(Template((Tuple((None,) * 20_000),)),), blocks=()),
        Graph(templates=(Template((Tuple((None,) * 1000),)),) * 20, blocks=()),
    ],
)
def test_bombs_are_refused_before_anything_is_built(graph: Graph) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RequestRefused) as caught:
            check(graph, Limits(nodes=20_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.reason is Reason.LIMIT_EXCEEDED
    assert peak < 30_000_000


def test_limits_count() -> None:
    assert check(bomb(100), Limits(tasks=100))
    for limits in (Limits(tasks=99), Limits(nodes=1), Limits(depth=0)):
        with pytest.raises(RequestRefused):
            check(bomb(100), limits)


def test_rules_take_time_in_proportion_to_the_nodes() -> None:
    """Many operations with a rule, nested in one another."""
    node: Node = REF
    for _ in range(30):
        node = call("flox.core.chunk_reduce", List((node,) + (None,) * 3000), REF, func="sum")
    check(graph_of(node))
    compose = Compose((op("flox.core.chunk_reduce"),) * 20_000)
    check(graph_of(call(compose, List((None,) * 100_000))), Limits(nodes=200_000))


# What is refused: operations


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "", "numpy.sum.__call__", "dask.utils.apply"]
)
@pytest.mark.parametrize(
    "place",
    [
        lambda x: call(x, REF),
        lambda x: call(bind(x), REF),
        lambda x: call(bind(bind(x)), REF),
        lambda x: call(Compose((op("numpy.sqrt"), x)), REF),
        lambda x: call(Compose((x, op("numpy.sqrt"))), REF),
        lambda x: call("numpy.sqrt", call(x, REF)),
        lambda x: call("numpy.sqrt", List((Tuple((call(x, REF),)),))),
        lambda x: call("numpy.sqrt", REF, dtype=x),
        lambda x: Dictionary((("a", call(x)),)),
        lambda x: Slice(None, call(x), None),
        lambda x: x,
        lambda x: call("dask.array.reductions.mean_chunk", REF, sum=x),
        lambda x: call("dask.array.core._enforce_dtype", REF, enforce_dtype_function=bind(x)),
    ],
)
def test_operations_outside_of_the_table(name: str, place: Any) -> None:
    refused(graph_of(place(op(name))), kind=NotPermitted)


@pytest.mark.parametrize(
    "node",
    [
        op("numpy.sum"),
        bind("numpy.sum"),
        Compose((op("numpy.sum"),)),
        List((op("numpy.sum"),)),
        call("operator.getitem", List((op("numpy.add"), op("numpy.sum"))), INT),
        call("numpy.array", List((op("numpy.sum"),))),
        call("numpy.sum", op("numpy.sum")),
        Dictionary((("f", op("numpy.sum")),)),
        call("dask.array.core._pass_extra_kwargs", REF, Tuple(()), REF),
        call(
            "dask.array.core._pass_extra_kwargs", call("operator.getitem", REF, INT), Tuple(()), REF
        ),
        call("dask.array.core._enforce_dtype", REF, enforce_dtype_function=REF),
        call("dask.array.core._enforce_dtype", REF, enforce_dtype_function="numpy.sum"),
        call("dask.array.chunk.coarsen", REF, REF, REF),
        call("dask.array.chunk.coarsen", "sum", REF, REF),
        call("dask.array.chunk.coarsen", x=REF, axes=REF, reduction=REF),
        call("dask.array.reductions.mean_chunk", REF, REF),
        call("dask.array.reductions.mean_chunk", REF, sum=REF),
        call(bind("dask.array.reductions.arg_chunk", REF), op("numpy.argmax"), REF),
        call(
            bind("dask.array.reductions.arg_chunk", op("numpy.max")), REF, REF, Tuple((INT,)), INT
        ),
        call("dask.array.reductions.moment_agg", REF, Number(2), Number(0), None, REF),
        call("flox.dask._aggregate", REF, combine=REF),
        call("flox.dask._aggregate", REF, combine=op("numpy.sum"), agg=call("numpy.sqrt", REF)),
    ],
)
def test_callables_are_structure(node: Node) -> None:
    refused(graph_of(node), kind=NotPermitted)


@pytest.mark.parametrize(
    "node",
    [
        # Other rules may not be left behind by being called through another operation.
        call(
            "dask.array.core._pass_extra_kwargs",
            op("flox.core.chunk_reduce"),
            Tuple(("func",)),
            REF,
            REF,
        ),
        call("dask.array.core._pass_extra_kwargs", op("numpy.sum"), Tuple(("out",)), REF, REF),
        call("dask.array.core._pass_extra_kwargs", op("numpy.sum"), REF, REF, REF),
        call("dask.array.core._pass_extra_kwargs", op("numpy.sum"), List((REF,)), REF, REF),
        call(
            "dask.array.core._pass_extra_kwargs",
            op("numpy.add"),
            Tuple(()),
            REF,
            REF,
            REF,
            REF,
            REF,
        ),
        call(
            "dask.array.core._enforce_dtype",
            REF,
            REF,
            enforce_dtype_function=op("flox.core.chunk_reduce"),
        ),
        call(
            "dask.array.core._enforce_dtype",
            REF,
            enforce_dtype_function=op("dask.array.core._enforce_dtype"),
        ),
        call(
            "dask.array.core._enforce_dtype", REF, REF, REF, enforce_dtype_function=op("numpy.add")
        ),
        call(
            "dask.array.core._enforce_dtype",
            REF,
            enforce_dtype_function=bind("numpy.add", REF, REF),
        ),
        call("dask.array.reductions.mean_chunk", REF, sum=bind("numpy.clip", REF, REF, REF)),
        call("dask.array.reductions.mean_chunk", REF, sum=bind("numpy.add", REF)),
        call("dask.array.reductions.mean_chunk", REF, sum=bind("numpy.sum", out=REF)),
        call("dask.array.reductions.mean_chunk", REF, sum=op("flox.core.chunk_reduce")),
        call("flox.dask._aggregate", REF, combine=op("flox.core.chunk_reduce")),
        call("flox.dask._aggregate", REF, combine=bind("flox.dask._simple_combine", REF)),
    ],
)
def test_rules_hold_for_what_is_called_by_an_operation(node: Node) -> None:
    refused(graph_of(node), kind=NotPermitted)


@pytest.mark.parametrize(
    "node",
    [
        call("numpy.add", REF, REF, out=REF),
        call("numpy.add", REF, REF, REF),
        call(bind("numpy.add", REF), REF, REF),
        call(bind(bind("numpy.add", REF), REF), REF),
        call(bind("numpy.add", out=REF), REF, REF),
        call(bind("numpy.add", out=Tuple((REF,))), REF, REF),
        call(Compose((op("numpy.sqrt"), bind("numpy.add", out=REF))), REF, REF),
        call(Compose((bind("numpy.sqrt", REF), op("numpy.add"))), REF, REF),
        call("numpy.sum", REF, INT, None, REF),
        call("numpy.clip", REF, None, None, REF),
        call("numpy.concatenate", List((REF,)), INT, REF),
        call("numpy.take", REF, REF, INT, REF),
        call("numpy.median", REF, overwrite_input=True),
        call("numpy.median", REF, None, None, True),
        call("numpy.percentile", REF, REF, INT, REF),
        call("numpy.percentile", REF, REF, overwrite_input=REF),
        call("numpy.nan_to_num", REF, False),
        call("numpy.nan_to_num", REF, copy=False),
        call("numpy.nan_to_num", REF, copy=INT),
        call("numpy.fft.fft", REF, INT, INT, None, REF),
        call("numpy.modf", REF, REF),
        call("flox.dask._expand_dims", REF),
        call(Compose((op("flox.dask._expand_dims"), op("builtins.list"))), REF),
        call(Compose((op("flox.core.chunk_reduce"), op("flox.dask._expand_dims"))), REF),
    ],
)
def test_nothing_writes_into_its_arguments(node: Node) -> None:
    refused(graph_of(node), kind=NotPermitted)


def test_copies_may_be_asked_for() -> None:
    check(graph_of(call("numpy.nan_to_num", REF, copy=True)))
    check(graph_of(call("numpy.sum", REF, out=None)))
    check(
        graph_of(
            call(Compose((op("flox.dask._expand_dims"), bind("flox.core.chunk_reduce"))), REF, REF)
        )
    )


READ = "dask.array.core.getter"


@pytest.mark.parametrize(
    "node",
    [
        REF,
        List((REF,)),
        call("numpy.sum", REF),
        call(bind(READ), REF, INT),
        call(bind(READ, REF), INT),
        call(Compose((op(READ),)), REF, INT),
        call(READ, List((REF,)), INT),
        call(READ, call("numpy.array", REF), INT),
        call("dask.array.core._enforce_dtype", REF, INT, enforce_dtype_function=op(READ)),
        call(READ, a=REF, b=INT),
        call("numpy.sum", List((Tuple((REF,)),)), axis=None),
        call("numpy.sum", Number(1), axis=REF),
        call(bind("numpy.sum", initial=REF), Number(1)),
        call("builtins.list", REF),
    ],
)
def test_a_stored_variable_is_only_read(node: Node) -> None:
    refused(graph_of(node, sources=1, references=[0] * holes(node, Reference)), kind=NotPermitted)


def test_a_stored_variable_stands_only_at_the_first_place_of_a_read() -> None:
    node = call("numpy.add", call(READ, REF, Tuple((INT, REF))), REF)
    assert check(graph_of(node, sources=1, references=[0, 1, 1]))
    for references in ([0, 0, 1], [0, 1, 0], [1, 0, 1]):
        refused(graph_of(node, sources=1, references=references), "stored variable", NotPermitted)


def test_a_local_result_hides_no_source() -> None:
    graph = graph_of(REF, call(READ, Local(0), INT), sources=1, references=[0])
    refused(graph, "stored variable", NotPermitted)


FLOX = "flox.core.chunk_reduce"


@pytest.mark.parametrize(
    "node",
    [
        call(FLOX, REF, REF, func="__import__"),
        call(FLOX, REF, REF, "__import__"),
        call(FLOX, REF, REF, func=Tuple(("sum", "np"))),
        call(FLOX, REF, REF, func=Tuple((List(("np",)),))),
        call(bind(FLOX, func="np"), REF, REF),
        call(bind(bind(FLOX, engine="os")), REF, REF),
        call(Compose((op("flox.dask._expand_dims"), bind(FLOX, func="np"))), REF, REF),
        call(FLOX, REF, REF, func=call("numpy.array", "np")),
        call(FLOX, REF, REF, func=call("operator.getitem", REF, INT)),
        call(FLOX, REF, REF, kwargs=Tuple((Dictionary((("out", REF),)),))),
        call("flox.dask._aggregate", REF, combine=bind("flox.dask._grouped_combine", engine="os")),
    ],
)
def test_functions_reached_by_name_are_listed(node: Node) -> None:
    refused(graph_of(node), kind=NotPermitted)


def test_what_steers_by_name_is_a_constant_that_can_be_read() -> None:
    node = call(bind(FLOX, func=REF), REF, REF)
    assert check(graph_of(node, values=("sum",)))
    assert check(graph_of(node, values=(TupleValue(("sum", "nanlen")),)))
    texts = ("np", "sum ", "__import__")
    for value in (
        *texts,
        TupleValue(("np",)),
        ListValue((TupleValue(("np",)),)),
        DictValue((("np", 1),)),
    ):
        refused(graph_of(node, values=(value,)), "text", NotPermitted)
    refused(graph_of(call("numpy.sqrt", REF), node, values=(1,), references=[0, 0, 0, -1]))
    template = Template((node,))
    graph = Graph(
        values=("np",),
        templates=(Template((REF,)), template),
        blocks=(Block(0, 1, (Same(0),)), Block(1, 1, (Same(1), Same(0), Same(0)))),
    )
    refused(graph, "constants", NotPermitted)


def test_a_local_result_steers_nothing() -> None:
    refused(graph_of("np", call(FLOX, REF, REF, func=Local(0))), kind=NotPermitted)


def test_labels_of_groups_are_data() -> None:
    buffers: list[Buffer] = []
    for labels in (pd.Index(["DJF", "np"]), np.array(["np"]), np.array(["np"], dtype=object)):
        value = encode_value(labels, buffers, TABLE)
        node = call(bind(FLOX, func="sum", expected_groups=REF), REF, REF)
        check(graph_of(node, values=(value, 1), references=[0, 1, 1]))


@pytest.mark.parametrize(
    "value",
    [
        OperationValue("numpy.sum"),
        OperationValue("os.system"),
        ListValue((OperationValue("numpy.sum"),)),
        PartialValue(OperationValue("numpy.sum"), (), {}),
        DictValue((("f", PartialValue(OperationValue("numpy.sum"), (), {"axis": 0})),)),
        InstanceValue("flox.Aggregation", {"finalize": OperationValue("os.system")}),
        InstanceValue("flox.Aggregation", {"finalize": OperationValue(FLOX)}),
        InstanceValue(
            "flox.Aggregation", {"finalize": OperationValue("dask.array.core._enforce_dtype")}
        ),
        InstanceValue(
            "flox.Aggregation", {"chunk": TupleValue((PartialValue(OperationValue(FLOX), (), {}),))}
        ),
        InstanceValue(
            "flox.Aggregation", {"chunk": PartialValue(OperationValue("numpy.add"), (1,), {})}
        ),
        InstanceValue(
            "flox.Aggregation", {"chunk": PartialValue(OperationValue("numpy.add"), (), {"out": 1})}
        ),
    ],
    ids=repr,
)
def test_callables_in_values(value: Any) -> None:
    refused(graph_of(REF, values=(value,)), kind=NotPermitted)


def test_types_are_data() -> None:
    check(
        graph_of(
            call("numpy.sum", REF, dtype=op("builtins.float")),
            values=(OperationValue("numpy.float64"),),
        )
    )


# Damage


def submission() -> tuple[JobSubmission, list[Buffer]]:
    buffers: list[Buffer] = []
    values = (
        encode_value(pd.Index([1, 2]), buffers, TABLE),
        encode_value(functools.partial(np.sum, axis=0).keywords, buffers, TABLE),
    )
    read = Template((call(READ, REF, Tuple((Slice(INT, INT, None), Slice(None, None, None)))),))
    reduce_ = Template(
        (
            call(bind("numpy.sum", axis=Number(0), dtype=DataType("<f8")), REF),
            call(bind(FLOX, func=Tuple(("sum", "nanlen")), expected_groups=REF), Local(0), REF),
        )
    )
    column = encode_column(np.array([0, 5, 7, 20]))
    graph = Graph(
        sources=(Source("a", "1", "t"),),
        values=values,
        templates=(read, reduce_),
        blocks=(
            Block(0, 4, (Same(0), column, Steps(5, 5))),
            Block(1, 4, (Steps(3, 1), Same(1), Steps(3, 1))),
        ),
    )
    return JobSubmission(graph=graph, outputs=(Output(task=7),), label="é"), buffers


def test_the_example_passes() -> None:
    check(submission()[0].graph)


def taken(message: bytes) -> None:
    """Take a message as an endpoint does; a `FederatedError` is a fine answer."""
    try:
        decoded = decode_message(Frame(msgspec.Raw(message), []), JobSubmission)
        check_graph(decoded.graph, TABLE, Limits(tasks=1000, nodes=1000))
    except FederatedError:
        pass


@settings(max_examples=500)
@given(data=st.data())
def test_damaged_submissions_are_taken_or_refused(data: st.DataObject) -> None:
    message = bytearray(msgspec.msgpack.encode(submission()[0]))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    taken(bytes(message))


WORDS = ["ref", "int", "call", "op", "partial", "os.system", "numpy.sum", "list", "same", "steps"]
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=9)
    | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=400)
@given(data=st.data())
def test_submissions_with_other_parts_are_taken_or_refused(data: st.DataObject) -> None:
    message = msgspec.msgpack.decode(msgspec.msgpack.encode(submission()[0]))
    parent, key = None, None
    node = message
    while (
        isinstance(node, dict | list) and node and (parent is None or data.draw(st.integers(0, 5)))
    ):
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        parent, key = node, data.draw(st.sampled_from(keys))
        node = node[key]
    parent[key] = data.draw(JUNK)
    taken(msgspec.msgpack.encode(message))


AUDIT = """
    import sys
    from tests.protocol import test_graph, test_values
    from federated_dask.protocol.values import decode_value
    from federated_dask.errors import FederatedError
    import msgspec, warnings, random
    warnings.simplefilter("ignore")

    message, buffers = test_graph.submission()
    honest = msgspec.msgpack.encode(message)
    copies = [bytearray(buffer) for buffer in buffers]
    # Once before the watch begins: libraries load parts of themselves on first use.
    def run(message):
        test_graph.taken(message)
        for value in test_graph.submission()[0].graph.values:
            decode_value(value, copies, test_graph.TABLE)
        for tree in test_values.HOSTILE.values():
            try:
                decode_value(tree, test_values.BUFFERS, test_graph.TABLE)
            except FederatedError:
                pass
    run(honest)
    seen = []
    FORBIDDEN = "import exec compile open os. subprocess pickle ctypes socket shutil".split(" ")
    FORBIDDEN = tuple(FORBIDDEN)
    watching = False
    def hook(event, arguments):
        if watching and event.startswith(FORBIDDEN):
            seen.append((event, str(arguments)[:200]))
    sys.addaudithook(hook)
    watching = True
    randomness = random.Random(0)
    run(honest)
    for _ in range(3000):
        damaged = bytearray(honest)
        for _ in range(randomness.randint(1, 4)):
            damaged[randomness.randrange(len(damaged))] = randomness.randrange(256)
        test_graph.taken(bytes(damaged))
    watching = False
    print(len(seen), seen[:5])
"""


def test_decoding_and_checking_imports_opens_and_runs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AUDIT)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("0 "), done.stdout + done.stderr


@pytest.mark.parametrize(
    "keys",
    [
        (Number(2**61 - 1),),
        (Tuple((Number(-(2**62)),)),),
        tuple(Tuple((Number(number),)) for number in range(300)),
    ],
)
def test_keys_of_a_dict_cannot_be_made_to_collide(keys: Any) -> None:
    node = Dictionary(tuple((key, None) for key in keys))
    refused(graph_of(call("builtins.bool", node)), "key", RequestRefused)


def test_many_tasks_of_one_large_template_are_too_much() -> None:
    template = Template((call("builtins.bool", List((None,) * 10_000)),))
    blocks = tuple(Block(0, 10, ()) for _ in range(100))
    graph = Graph(templates=(template,), blocks=blocks)
    assert check(graph).nodes > 10_000_000
    with pytest.raises(RequestRefused, match="all of its tasks"):
        check(graph, Limits(tasks=1000))
