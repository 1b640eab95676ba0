"""Task graphs as they cross: columns, templates, blocks, and how much they may hold."""

import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol.graph import (
    Block,
    Call,
    Compose,
    DataType,
    Dictionary,
    Float,
    Graph,
    Integer,
    List,
    Local,
    Node,
    Packed,
    Partial,
    Reference,
    Same,
    Scalar,
    Steps,
    Template,
    Tuple,
    children,
    decode_column,
    encode_column,
    walk,
)
from federated_dask.protocol.limits import Limits
from tests.protocol.graphs import (
    INT,
    NODES,
    REF,
    bind,
    call,
    check,
    graph_of,
    holes,
    nested,
    op,
    refused,
)

INT64 = st.integers(-(2**63), 2**63 - 1)


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


def test_many_tasks_of_one_large_template_are_too_much() -> None:
    template = Template((call("builtins.bool", List((None,) * 10_000)),))
    blocks = tuple(Block(0, 10, ()) for _ in range(100))
    graph = Graph(templates=(template,), blocks=blocks)
    assert check(graph).nodes > 10_000_000
    with pytest.raises(RequestRefused, match="all of its tasks"):
        check(graph, Limits(tasks=1000))
