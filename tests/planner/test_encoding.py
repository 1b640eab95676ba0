import dask.array as da
import numpy as np
import pytest

from federated_dask.planner.encoding import EncodedGraph, encode_graph
from federated_dask.planner.graph import PlanGraph, lower
from federated_dask.protocol import graph as wire
from federated_dask.protocol.graph import check_graph
from federated_dask.protocol.limits import Limits
from tests.planner.federation import TABLE, Federation


def stored(federation: Federation, length: int = 1000, name: str = "v") -> da.Array:
    return da.from_array(federation.variable("north", np.zeros((length, 4)), name), chunks=(1, 4))


def encoded(array: da.Array) -> tuple[PlanGraph, EncodedGraph]:
    graph = lower(array.dask, array.__dask_keys__(), TABLE)
    return graph, encode_graph(graph, range(len(graph.tasks)), {}, {}, TABLE)


def test_a_layer_is_one_template_and_one_block(federation: Federation) -> None:
    graph, message = encoded(stored(federation) + 1)
    assert len(message.graph.templates) == 1
    [block] = message.graph.blocks
    assert block.count == 1000 == message.graph.tasks
    assert all(isinstance(column, wire.Same | wire.Steps) for column in block.columns)
    assert sorted(message.numbers.values()) == list(range(1000))
    assert len(graph.tasks) == 1000


@pytest.mark.parametrize("seed", range(3))
def test_blocks_refer_to_earlier_blocks(federation: Federation, seed: int) -> None:
    x = stored(federation, 50)
    order = np.random.default_rng(seed).permutation(50)
    _, message = encoded((x[order] + x.cumsum(axis=0)).std(axis=0, split_every=3))
    check_graph(message.graph, TABLE, Limits())


def test_operands_are_sources_constants_values_held(federation: Federation) -> None:
    x = stored(federation, 3) * da.from_array(np.arange(4.0))
    graph = lower(x.dask, x.__dask_keys__(), TABLE)
    tasks = range(2, len(graph.tasks))
    needed = sorted({d for p in tasks for d in graph.tasks[p].dependencies} - set(tasks))
    held = {position: wire.Held("lease", position) for position in needed}
    message = encode_graph(graph, tasks, {}, held, TABLE)
    assert [each.output for each in message.graph.held] == needed
    check_graph(message.graph, TABLE, Limits())


def test_a_constant_crosses_once(federation: Federation) -> None:
    weights = np.linspace(0, 1, 4)
    x = (stored(federation, 200) * weights).sum()
    _, message = encoded(x)
    assert sum(memoryview(buffer).nbytes for buffer in message.buffers) <= 2 * weights.nbytes


def test_only_what_the_share_uses_is_sent(federation: Federation) -> None:
    x = stored(federation, 4, "a") + stored(federation, 4, "b")
    graph = lower(x.dask, x.__dask_keys__(), TABLE)
    message = encode_graph(graph, range(len(graph.tasks)), {}, {}, TABLE)
    assert {source.variable for source in message.graph.sources} == {"a", "b"}
    y = stored(federation, 4, "a") + 1
    assert [source.variable for source in encoded(y)[1].graph.sources] == ["a"]


def test_values_are_encoded_in_their_order(federation: Federation) -> None:
    x = stored(federation, 4).sum(axis=0)
    graph = lower(x.dask, x.__dask_keys__(), TABLE)
    last = len(graph.tasks) - 1
    below = graph.tasks[last].dependencies
    values = {position: np.full((1, 4), position) for position in below}
    message = encode_graph(graph, [last], values, {}, TABLE)
    assert len(message.graph.values) == len(below)
    [block] = check_graph(message.graph, TABLE, Limits()).blocks
    assert sorted(block.references[0].tolist()) == list(range(len(below)))
