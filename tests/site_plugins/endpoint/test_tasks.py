import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import cloudpickle
import dask
import numpy as np
import pytest
from dask._task_spec import DataNode, GraphNode

from federated_dask.errors import RequestRefused
from federated_dask.protocol import graph as wire
from federated_dask.protocol.graph import (
    Bytes,
    Compose,
    DataType,
    Dictionary,
    EllipsisNode,
    Float,
    Graph,
    Integer,
    List,
    Local,
    Number,
    Operation,
    Partial,
    Reference,
    Scalar,
    Slice,
    Source,
    Tuple,
    check_graph,
)
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.values import encode_value
from site_plugins.datasets import StoredDataset, StoredVariable
from site_plugins.endpoint import operands, programs
from site_plugins.endpoint.operands import read_task
from site_plugins.endpoint.tasks import BuiltGraph, build_graph
from site_plugins.scheduler_plugin import LeasedOutput
from tests.site_plugins import graphs
from tests.site_plugins.graphs import block, call, template

STORED = np.arange(400.0).reshape(40, 10)


@dataclass(frozen=True)
class Recorded:
    """Stands for a stored variable and writes down what is read of it."""

    variable: StoredVariable
    limit: int | None = None
    reads: ClassVar[list[Any]] = []

    def __getitem__(self, index: Any) -> np.ndarray:
        self.reads.append(index)
        return STORED[index]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(operands, "MeteredVariable", Recorded)
    monkeypatch.setattr(Recorded, "reads", [])
    return Recorded.reads


def variable(name: str = "air", version: str = "v1", dataset: str = "a1b") -> StoredVariable:
    return StoredVariable(StoredDataset(name=dataset, path=f"/{dataset}"), version, name)


def build(
    graph: Graph,
    *outputs: int,
    buffers: Iterable[Any] = (),
    sources: Iterable[StoredVariable] | None = None,
    held: Iterable[LeasedOutput] = (),
) -> BuiltGraph:
    table = operation_table()
    if sources is None:
        sources = [variable(item.variable, item.version, item.dataset) for item in graph.sources]
    return build_graph(
        check_graph(graph, table, Limits()),
        outputs,
        sources=list(sources),
        buffers=[bytearray(buffer) for buffer in buffers],
        held=list(held),
        table=table,
    )


def compute(built: BuiltGraph, **known: Any) -> list[Any]:
    # Through pickle, as they travel.
    travelled = cloudpickle.loads(cloudpickle.dumps(built.tasks))
    travelled.update({key: DataNode(key, value) for key, value in known.items()})
    return list(dask.get(travelled, built.keys))


def one(*steps: wire.Node, integers: Iterable[int] = ()) -> Any:
    """Result of one task without operands."""
    [result] = compute(
        build(Graph(templates=(template(*steps),), blocks=(block(0, *integers),)), 0)
    )
    return result


def slice_of(start: wire.Node = None, stop: wire.Node = None, step: wire.Node = None) -> Slice:
    return Slice(start, stop, step)


# Nodes


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (None, None),
        (True, True),
        ("text", "text"),
        (Bytes(b"\0"), b"\0"),
        (Number(-3), -3),
        (Float((0.1).hex()), 0.1),
        (Scalar("<i2", b"\1\0"), np.int16(1)),
        (DataType("<f4"), np.dtype("float32")),
        (EllipsisNode(), Ellipsis),
        (slice_of(Number(1), None, Number(2)), slice(1, None, 2)),
        (List((Number(1), Tuple((Number(2),)))), [1, (2,)]),
        (Tuple((Tuple((Number(1), Number(2))),)), ((1, 2),)),
        (Dictionary((("a", Number(1)), (Number(2), List(())))), {"a": 1, 2: []}),
        (Operation("numpy.float32"), np.float32),
        (call("operator.add", Number(1), Number(2)), 3),
        (call("operator.add", call("operator.add", Number(1), Number(2)), Number(3)), 6),
        (List((call("operator.add", Number(1), Number(2)),)), [3]),
        (Tuple((call("operator.add", Number(1), Number(2)),)), (3,)),
        (Dictionary((("a", call("operator.neg", Number(1))),)), {"a": -1}),
        (slice_of(call("operator.neg", Number(1))), slice(-1, None)),
        (call("numpy.sum", List((Number(1), Number(2))), keepdims=True), np.array([3])),
        (wire.Call(Partial(Operation("operator.sub"), (Number(5),)), (Number(3),)), 2),
        (
            wire.Call(Partial(Operation("numpy.sum"), (), (("keepdims", True),)), (Number(4),)),
            np.int64(4),
        ),
        (
            wire.Call(
                Compose((Operation("operator.neg"), Operation("operator.abs"))), (Number(-2),)
            ),
            -2,
        ),
        (
            wire.Call(
                Partial(Operation("operator.sub"), (call("operator.neg", Number(5)),)), (Number(3),)
            ),
            -8,
        ),
    ],
)
def test_nodes(node: wire.Node, expected: object) -> None:
    result = one(node)
    assert type(result) is type(expected)
    np.testing.assert_equal(result, expected)


def test_integers_fill_holes_in_order() -> None:
    node = Tuple((Integer(), slice_of(Integer(), Integer()), List((Integer(),))))
    graph = Graph(
        templates=(template(node),), blocks=(block(0, [1, 10], [2, 20], [3, 30], [4, 40]),)
    )
    assert compute(build(graph, 0, 1)) == [(1, slice(2, 3), [4]), (10, slice(20, 30), [40])]


def test_steps_use_earlier_steps() -> None:
    node = (
        call("numpy.arange", Integer()),
        call("numpy.sum", Local(0)),  # nobody uses it
        call("operator.mul", Local(0), Integer()),
        call("operator.add", Local(0), List((Local(2), Local(2)))),
    )
    result = one(*node, integers=[3, 10])
    np.testing.assert_array_equal(result, np.arange(3) + [np.arange(3) * 10] * 2)


@pytest.mark.parametrize("last", [Local(0), List((Local(0),)), Tuple((Reference(), Local(0)))])
def test_a_last_step_that_is_no_call(last: wire.Node) -> None:
    first = template(call("operator.add", Integer(), Integer()))
    has_reference = isinstance(last, Tuple)
    columns = [[0], [5]] if has_reference else [[5]]
    graph = Graph(
        templates=(first, template(call("operator.neg", Integer()), last)),
        blocks=(block(0, 1, 2), block(1, *columns)),
    )
    expected = {Local: -5, List: [-5], Tuple: (3, -5)}[type(last)]
    assert compute(build(graph, 1)) == [expected]


def test_an_alias() -> None:
    graph = Graph(
        templates=(template(Integer()), template(Reference())), blocks=(block(0, 7), block(1, 0))
    )
    built = build(graph, 0, 1)
    assert compute(built) == [7, 7]
    assert len(set(built.keys)) == 2


def test_keywords_that_do_not_fit_are_refused() -> None:
    twice = wire.Call(Operation("numpy.ones"), (), (("shape", Number(1)), ("shape", Number(2))))
    for node in (twice, call("numpy.ones", Number(1), _data_producer=True)):
        with pytest.raises(RequestRefused):
            one(node)


# Operands


def test_small_values_are_inlined_and_large_ones_are_not() -> None:
    small, large, unused = np.arange(3), np.arange(1000), np.arange(2000)
    buffers: list[Any] = []
    values = tuple(encode_value(value, buffers) for value in (small, large, unused))
    graph = Graph(
        values=values,
        templates=(template(call("numpy.sum", Reference())),),
        blocks=(block(0, [0, 1]),),
    )
    built = build(graph, 0, 1, buffers=buffers)
    assert compute(built) == [3, 499500]
    assert sorted(type(task).__name__ for task in built.tasks.values()) == [
        "DataNode",
        "Task",
        "Task",
    ]


@pytest.mark.parametrize("value", [(), (1, 2), [3], {"a": (1,)}, "text", None])
def test_containers_as_values_stay_what_they_are(value: object) -> None:
    buffers: list[Any] = []
    graph = Graph(
        values=(encode_value(value, buffers),),
        templates=(template(Tuple((Reference(),))), template(List((Reference(),)))),
        blocks=(block(0, 0), block(1, 0)),
    )
    assert compute(build(graph, 0, 1, buffers=buffers)) == [(value,), [value]]


def test_a_value_whose_buffer_is_missing() -> None:
    buffers: list[Any] = []
    values = (encode_value(np.arange(3), buffers),)
    graph = Graph(values=values, templates=(template(Reference()),), blocks=(block(0, 0),))
    with pytest.raises(RequestRefused):
        build(graph, 0)


def test_held_results_are_keys_of_others() -> None:
    held = LeasedOutput(key="elsewhere", label=frozenset({"a1b"}))
    graph = Graph(
        held=(wire.Held("l", 0),),
        templates=(template(call("operator.neg", Reference())),),
        blocks=(block(0, 0),),
    )
    built = build(graph, 0, held=[held])
    assert compute(built, elsewhere=4) == [-4]
    assert built.labels == [{"a1b"}]


# Fusion


def test_chains_become_one_task(reads: list[Any]) -> None:
    graph = graphs.chunk_sums("v1")
    built = build(graph, graph.tasks - 1)
    assert len(built.tasks) == 7
    np.testing.assert_array_equal(compute(built)[0], STORED.sum(axis=0))
    assert sorted(index[0].start for index in reads) == [0, 10, 20, 30]


def test_what_is_asked_for_is_not_fused_away(reads: list[Any]) -> None:
    graph = graphs.chunk_sums("v1")
    built = build(graph, 0, graph.tasks - 1)
    assert len(built.tasks) == 8
    np.testing.assert_array_equal(compute(built)[0], STORED[:10])
    assert len(reads) == 4


def test_what_is_not_needed_is_left_out(reads: list[Any]) -> None:
    graph = graphs.chunk_sums("v1")
    built = build(graph, 4)
    assert len(built.tasks) == 1
    compute(built)
    assert reads == [(slice(0, 10), slice(None))]


GETITEM = template(
    call(
        "dask.array.chunk.getitem", Reference(), Tuple((slice_of(Integer(), Integer()), Integer()))
    )
)


def test_slices_are_fused_into_the_read(reads: list[Any]) -> None:
    graph = Graph(
        sources=(Source("a1b", "v1", "air"),),
        templates=(graphs.READ, GETITEM, template(call("operator.neg", Reference()))),
        blocks=(block(0, 0, 10, 30), block(1, 1, 5, 7, 3), block(2, 2)),
    )
    built = build(graph, 2)
    assert len(built.tasks) == 1
    np.testing.assert_array_equal(compute(built)[0], -STORED[15:17, 3])
    assert reads == [(slice(15, 17), 3)]


def test_slices_within_a_template_are_fused_too(reads: list[Any]) -> None:
    steps = (
        call("dask.array.core.getter", Reference(), Tuple((slice_of(Integer(), Integer()),))),
        call("dask.array.chunk.getitem", Local(0), Tuple((slice_of(Integer(), Integer()),))),
        call("dask.array.chunk.getitem", Local(1), Tuple((slice_of(Integer(), Integer()),))),
    )
    graph = Graph(
        sources=(Source("a1b", "v1", "air"),),
        templates=(template(*steps),),
        blocks=(block(0, 0, 10, 30, 2, 12, 1, 4),),
    )
    [result] = compute(build(graph, 0))
    np.testing.assert_array_equal(result, STORED[10:30][2:12][1:4])
    assert reads == [(slice(13, 16),)]


def test_a_read_that_is_used_twice_is_not_narrowed(reads: list[Any]) -> None:
    steps = (
        call("dask.array.core.getter", Reference(), Tuple((slice_of(Integer(), Integer()),))),
        call("dask.array.chunk.getitem", Local(0), Tuple((slice_of(Integer(), Integer()),))),
        call("numpy.sum", Local(0)),
        call("operator.add", Local(1), Local(2)),
    )
    graph = Graph(
        sources=(Source("a1b", "v1", "air"),),
        templates=(template(*steps),),
        blocks=(block(0, 0, 0, 30, 2, 4),),
    )
    [result] = compute(build(graph, 0))
    np.testing.assert_array_equal(result, STORED[:30][2:4] + STORED[:30].sum())
    assert reads == [(slice(0, 30),)]


@pytest.mark.parametrize(
    "index",
    [
        Tuple((List((Number(1), Number(0))), slice_of())),
        Tuple((slice_of(None, None, Number(-1)), slice_of())),
        Tuple((Number(-1),)),
        Tuple((None, slice_of(), slice_of())),
        Tuple((EllipsisNode(), Number(0))),
        Number(3),
        slice_of(Number(1), Number(3)),
    ],
)
def test_indices_of_all_kinds_give_what_numpy_gives(reads: list[Any], index: wire.Node) -> None:
    graph = Graph(
        sources=(Source("a1b", "v1", "air"),),
        templates=(graphs.READ, template(call("dask.array.chunk.getitem", Reference(), index))),
        blocks=(block(0, 0, 10, 30), block(1, 1)),
    )
    [result] = compute(build(graph, 1))
    np.testing.assert_array_equal(result, STORED[10:30][one(index)])


# Keys


def keys_of(graph: Graph, *outputs: int, **options: Any) -> list[Any]:
    return build(graph, *outputs, **options).keys


def test_equal_work_has_equal_keys() -> None:
    graph = graphs.chunk_sums("v1")
    everything = range(graph.tasks)
    assert keys_of(graph, *everything) == keys_of(graph, *everything)
    keys = keys_of(graph, *everything)
    assert len(set(keys)) == graph.tasks
    [[group, digest], *_] = keys
    assert group.startswith("getter-")
    assert len(digest) == 32


@pytest.mark.parametrize(
    "other",
    [
        graphs.chunk_sums("v2"),
        graphs.chunk_sums("v1", "e1"),
        graphs.chunk_sums("v1", chunks=8),
    ],
)
def test_other_work_has_other_keys(other: Graph) -> None:
    graph = graphs.chunk_sums("v1")
    assert keys_of(graph, graph.tasks - 1) != keys_of(other, other.tasks - 1)


def test_dtypes_and_types_make_other_keys() -> None:
    found = set()
    for value in (np.arange(3), np.arange(3.0), np.arange(3).astype("f4"), 1, 1.0, True, "1", b"1"):
        buffers: list[Any] = []
        values = (encode_value(value, buffers),)
        graph = Graph(values=values, templates=(template(Reference()),), blocks=(block(0, 0),))
        found.update(keys_of(graph, 0, buffers=buffers))
    assert len(found) == 8


def test_what_is_fused_is_part_of_the_key() -> None:
    # The scheduler must never see one key with two sets of dependencies.
    graph = graphs.chunk_sums("v1")
    definitions: dict[Any, Any] = {}
    for outputs in [(4,), (0, 4), (8,), (0, 8), (4, 5, 10), (10,), tuple(range(11))]:
        for key, task in build(graph, *outputs).tasks.items():
            assert definitions.setdefault(key, task.dependencies) == task.dependencies


# Labels


def test_labels_follow_the_data() -> None:
    graph = Graph(
        sources=(Source("a1b", "v", "air"), Source("e1", "v", "air")),
        templates=(graphs.READ, graphs.ADD, template(Integer())),
        blocks=(
            block(0, [0, 1], [0, 0], [1, 1]),
            block(1, 2, 3),
            block(2, 5),
            block(1, [2, 5], [2, 5]),
            block(1, 4, 6),
        ),
    )
    built = build(graph, *range(7))
    expected = [{"a1b"}, {"e1"}, {"a1b", "e1"}, set(), {"a1b"}, set(), {"a1b", "e1"}]
    assert built.labels == expected


# Everything together, against a plain interpreter


def interpret(graph: Graph) -> list[Any]:
    """All operands of a graph of additions, computed one after the other."""
    values: list[Any] = [STORED for _ in graph.sources]
    checked = check_graph(graph, operation_table(), Limits())
    for part in checked.blocks:
        for needs, integers in zip(part.references, part.integers, strict=True):
            if part.template == 0:
                values.append(values[needs[0]][integers[0] : integers[1], :])
            elif part.template == 1:
                values.append(values[needs[0]] + 1)
            else:
                values.append(values[needs[0]] + values[needs[1]])
    return values[graph.first_task :]


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(reads: list[Any], seed: int) -> None:
    chance = random.Random(seed)
    plus = template(call("operator.add", Reference(), Number(1)))
    blocks = [block(0, [0, 1, 0], [0, 5, 10], [5, 10, 15])]
    number = 5
    for _ in range(chance.randrange(1, 12)):
        count = chance.randrange(1, 4)
        first = [chance.randrange(2, number) for _ in range(count)]
        second = [chance.randrange(2, number) for _ in range(count)]
        kind = chance.choice([1, 2])
        blocks.append(block(kind, *([first] if kind == 1 else [first, second])))
        number += count
    graph = Graph(
        sources=(Source("a1b", "v", "air"), Source("e1", "v", "air")),
        templates=(graphs.READ, plus, graphs.ADD),
        blocks=tuple(blocks),
    )
    outputs = [chance.randrange(graph.tasks) for _ in range(chance.randrange(1, 5))]
    results = compute(build(graph, *outputs))
    expected = interpret(graph)
    for output, result in zip(outputs, results, strict=True):
        np.testing.assert_array_equal(result, expected[output])


def test_read_tasks_are_minted_from_what_they_read() -> None:
    key, task = read_task(variable(), (slice(0, 3), 4, np.array([1, 2])))
    assert isinstance(task, GraphNode)
    assert key == read_task(variable(), (slice(0, 3), 4, np.array([1, 2])))[0]
    others = [
        read_task(variable(), (slice(0, 4), 4, np.array([1, 2])))[0],
        read_task(variable(), (slice(0, 3), 4, np.array([1, 3])))[0],
        read_task(variable("wind"), (slice(0, 3), 4, np.array([1, 2])))[0],
        read_task(variable(version="v2"), (slice(0, 3), 4, np.array([1, 2])))[0],
    ]
    assert len({key, *others}) == 5


def test_deep_and_wide_templates_are_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    node: wire.Node = List((Number(1),) * 1000)
    for _ in range(60):
        node = List((node,))
    seen: list[wire.Node] = []
    for name in ("children", "walk"):
        below = getattr(wire, name)

        def counted(node: wire.Node, below: Any = below) -> Iterator[wire.Node]:
            for part in below(node):
                seen.append(part)
                yield part

        monkeypatch.setattr(programs.wire, name, counted)
    program = programs.Program(template(call("builtins.bool", node)), operation_table())
    [[task]] = program.tasks(["key"], [], [])
    assert task() is True
    assert len(seen) < 5000
