from typing import Any

import dask.array as da
import numpy as np
import pytest
from dask.local import get_sync

from federated_dask.planner.graph import PlanGraph, PlanTask, home_graph, lower
from federated_dask.planner.nodes import tree_node
from federated_dask.planner.origins import origins
from federated_dask.planner.reductions import FAN_IN, split_reductions
from tests.battery.expressions import BATTERY
from tests.planner.conftest import LAYOUTS
from tests.planner.federation import TABLE, Federation, bytes_of, true_values


def interleaved(federation: Federation, chunks: int = 8, sites: int = 2) -> da.Array:
    names = ["north", "south", "ocean"]
    values = np.random.default_rng(0).random((chunks, 3, 4))
    return da.concatenate(
        [
            da.from_array(federation.variable(names[i % sites], values[i], f"v{i}"), chunks=-1)
            for i in range(chunks)
        ]
    )


def split(federation: Federation, array: da.Array) -> tuple[PlanGraph, PlanGraph]:
    graph = lower(array.dask, array.__dask_keys__(), TABLE)
    before = PlanGraph(list(graph.tasks), graph.leaves, graph.outputs, graph.data, graph.stored)
    return before, split_reductions(graph, federation.facts, TABLE)


def meeting(graph: PlanGraph, federation: Federation) -> list[int]:
    """Tasks made at one site that are needed where sites meet."""
    places = origins(graph, federation.facts)
    needed = {
        below
        for position, task in enumerate(graph.tasks)
        if len(places[position]) > 1
        for below in task.dependencies
    }
    return [position for position in needed if len(places[position]) == 1]


@pytest.mark.parametrize("sites", [2, 3])
@pytest.mark.parametrize("split_every", [2, 4, 100])
@pytest.mark.parametrize(
    "reduce",
    [
        lambda x, **k: x.sum(axis=0, **k),
        lambda x, **k: x.mean(**k),
        lambda x, **k: x.min(axis=(0, 1), **k),
        lambda x, **k: x.max(axis=0, keepdims=True, **k),
        lambda x, **k: x.std(axis=0, ddof=1, **k),
        lambda x, **k: da.nanvar(x, axis=0, **k),
        lambda x, **k: da.nanmin(x, axis=0, **k),
        lambda x, **k: (x > 0.5).any(axis=0, **k),
        lambda x, **k: da.moment(x, 4, axis=0, **k),
    ],
)
def test_partials_are_sites_times_output(reduce: Any, split_every: int, sites: int) -> None:
    federation = Federation()
    x = reduce(interleaved(federation, 12, sites), split_every=split_every)
    _, after = split(federation, x)
    assert len(meeting(after, federation)) == sites
    (computed,) = federation.compute(x)
    plain = da.from_array(np.concatenate(list(federation.stored.values())), chunks=(3, 4))
    np.testing.assert_allclose(computed, reduce(plain).compute(scheduler="sync"))


def test_nothing_is_changed_at_one_site() -> None:
    federation = Federation()
    x = interleaved(federation, 8, sites=1).mean()
    before, after = split(federation, x)
    assert [task.key for task in after.tasks] == [task.key for task in before.tasks]


def is_combine(task: PlanTask) -> bool:
    return isinstance(task.key, tuple) and task.key[0] == "federated-combine"


@pytest.mark.parametrize(
    "name", ["mean-time", "std-all", "argmax-time", "any-time", "month-mean", "season-map-reduce"]
)
def test_partials_can_be_made_at_home(name: str) -> None:
    laid = LAYOUTS["three"]()
    graph = laid.federation.plan(BATTERY[name](laid.floats, laid.integers)).graph
    values = true_values(graph, laid.federation)
    combines = [position for position, task in enumerate(graph.tasks) if is_combine(task)]
    assert combines
    for position in combines:
        task = graph.tasks[position]
        below = {d: values[d] for d in task.dependencies}
        [at_home] = get_sync(home_graph(graph, [position], below), [task.key])
        assert bytes_of(0, at_home) == bytes_of(0, values[position])


def test_combining_takes_few_inputs_at_a_time() -> None:
    federation = Federation()
    _, after = split(federation, interleaved(federation, 100).sum(axis=0, split_every=1000))
    combines = [task for task in after.tasks if is_combine(task)]
    assert combines
    assert all(len(task.dependencies) <= FAN_IN for task in combines)


def test_a_site_that_cannot_combine_gives_its_chunks() -> None:
    federation = Federation(operations={"south": frozenset(TABLE.names) - {"numpy.sum"}})
    x = interleaved(federation, 8)
    _, after = split(federation, x.map_blocks(np.sqrt, dtype="f8").sum(axis=0))
    combined = [task for task in after.tasks if task.node is None]
    places = origins(after, federation.facts)
    assert {
        place for p, task in enumerate(after.tasks) if task in combined for place in places[p]
    } <= {"north"}


def test_lists_that_are_no_axis_of_chunks_are_left_alone() -> None:
    """`blockwise` without concatenation hands over a list of chunks, as a reduction does."""
    federation = Federation()
    values = np.arange(24.0).reshape(8, 3)
    pieces = [
        da.from_array(federation.variable(site, part, site + str(i)), chunks=(2, 3))
        for i, (site, part) in enumerate(
            zip(["north", "south"], [values[:4], values[4:]], strict=True)
        )
    ]
    x = da.concatenate(pieces)
    added = da.blockwise(np.sum, "j", x, "ij", axis=0, dtype="f8", concatenate=False)
    (computed,) = federation.compute(added)
    expected = values.reshape(4, 2, 3).sum(axis=0)
    np.testing.assert_array_equal(
        np.asarray(computed).reshape(-1)[: expected.size], expected.ravel()
    )
    _, after = split(federation, added)
    assert not [task for task in after.tasks if task.node is None]


def test_reductions_of_the_user_that_combine_otherwise() -> None:
    federation = Federation()
    x = interleaved(federation, 8)
    halves = da.reduction(
        x,
        chunk=lambda x, axis, keepdims: np.sum(x, axis=axis, keepdims=True) / 2,
        combine=np.max,
        aggregate=np.sum,
        axis=0,
        dtype="f8",
        split_every=100,
    )
    (computed,) = federation.compute(halves)
    plain = np.concatenate(list(federation.stored.values()))
    np.testing.assert_allclose(computed, plain.sum(axis=0) / 2)


def test_first_and_last_keep_the_order_of_interleaved_sites() -> None:
    laid = LAYOUTS["three"]()
    for name in ("first", "last"):
        grouped = getattr(laid.floats.groupby("time.month"), name)()
        expected = getattr(laid.plain_floats.groupby("time.month"), name)().compute(
            scheduler="sync"
        )
        (computed,) = laid.federation.compute(grouped)
        np.testing.assert_array_equal(computed, expected)


def test_a_shared_tree_is_right_for_all_that_use_it() -> None:
    federation = Federation()
    x = interleaved(federation, 8)
    total, mean = x.sum(axis=0, split_every=2), x.mean(axis=0, split_every=2)
    computed = federation.compute(total, mean, total + mean)
    plain = np.concatenate(list(federation.stored.values()))
    for ours, theirs in zip(
        computed,
        (plain.sum(axis=0), plain.mean(axis=0), plain.sum(axis=0) + plain.mean(axis=0)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs)


def test_tree_nodes_are_recognised_by_their_nesting() -> None:
    federation = Federation()
    x = interleaved(federation, 4)
    graph = lower(*_lowerable(x.mean()), TABLE)
    depths = [node.depth for task in graph.tasks if (node := tree_node(task.program))]
    assert depths
    assert set(depths) == {2}


def _lowerable(array: da.Array) -> tuple[Any, Any]:
    return array.dask, array.__dask_keys__()
