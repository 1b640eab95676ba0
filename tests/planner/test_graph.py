from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask._task_spec import Task, TaskRef
from dask.highlevelgraph import HighLevelGraph
from xarray.core import indexing

from federated_dask.planner.graph import PlanGraph, has_site_data, home_graph, lower
from federated_dask.planner.origins import derivations
from federated_dask.planner.sources import HeldReference
from tests.planner.conftest import LAYOUTS
from tests.planner.federation import TABLE, Federation


def lowered(array: da.Array) -> PlanGraph:
    return lower(array.dask, array.__dask_keys__(), TABLE)


def stored(federation: Federation, site: str = "north", **options: Any) -> da.Array:
    values = np.arange(24.0).reshape(4, 6)
    return da.from_array(federation.variable(site, values, **options), chunks=(2, 3))


def check_order(graph: PlanGraph) -> None:
    for position, task in enumerate(graph.tasks):
        assert all(below < position for below in task.dependencies)
        if task.program is not None:
            of_tasks = {r for r in task.program.references if r >= 0}
            assert of_tasks == set(task.dependencies)
            assert all(-1 - r < len(graph.leaves) for r in task.program.references if r < 0)


def test_tasks_are_in_order_and_only_what_is_needed(federation: Federation) -> None:
    x = stored(federation)
    graph = lowered((x + 1).sum(axis=0)[:3])
    check_order(graph)
    reads = [task for task in graph.tasks if task.sources]
    assert len(reads) == 2
    assert len(graph.outputs) == 1


def test_hints_are_the_chunks_of_the_collection(federation: Federation) -> None:
    graph = lowered(stored(federation).astype("f4"))
    assert {(task.shape, task.dtype) for task in graph.tasks} == {((2, 3), np.dtype("f4"))}


def test_what_is_read_is_known(federation: Federation) -> None:
    graph = lowered(stored(federation, egress_limit=7))
    [facts] = graph.stored.values()
    assert (facts.shape, facts.dtype, facts.egress_limit) == ((4, 6), np.dtype("f8"), 7)


def test_layers_of_one_site_are_fused(federation: Federation) -> None:
    graph = lowered(((stored(federation) + 1) * 2).sum())
    assert len([task for task in graph.tasks if task.sources]) == 4
    assert len(graph.tasks) == 4 + 1


def test_no_task_reads_at_two_sites(federation: Federation) -> None:
    north, south = stored(federation), stored(federation, "south")
    graph = lowered((north - south) ** 2 + 1)
    check_order(graph)
    assert all(len({source.site for source in task.sources}) <= 1 for task in graph.tasks)
    assert [task for task in graph.tasks if not task.sources and len(task.dependencies) == 2]


def own(x: np.ndarray) -> np.ndarray:
    return x * 2


def test_foreign_functions_are_not_fused_with_reads(federation: Federation) -> None:
    graph = lowered((stored(federation) + 1).map_blocks(own, dtype="f8"))
    foreign = [task for task in graph.tasks if task.blocker]
    assert len(foreign) == 4
    said = f"{__name__}.own is not in the operation table"
    assert all((task.blocker or "").startswith(said) for task in foreign)
    assert not any(task.sources for task in foreign)


def test_finalise_is_kept_apart(federation: Federation) -> None:
    plan = federation.plan(stored(federation))
    [final] = [task for task in plan.graph.tasks if task.finalise]
    assert final.program is None
    assert plan.tasks_at("home") == 0


@pytest.mark.parametrize("as_low_level", [False, True])
def test_low_level_graphs_too(federation: Federation, as_low_level: bool) -> None:
    x = stored(federation) + 1
    expression = dict(x.dask) if as_low_level else x.dask
    assert has_site_data(expression)
    graph = lower(expression, x.__dask_keys__(), TABLE)
    assert len([task for task in graph.tasks if task.sources]) == 4


def test_graphs_without_sites() -> None:
    assert not has_site_data(da.ones(3).dask)
    assert not has_site_data({"a": 1})
    assert not has_site_data(HighLevelGraph({}, {}))


def test_a_missing_key_is_named() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        lower({"a": 1}, ["nonsense"], TABLE)


def test_a_long_chain_needs_no_recursion() -> None:
    graph: dict[Any, Any] = {"k0": 1}
    graph.update({f"k{i}": Task(f"k{i}", abs, TaskRef(f"k{i - 1}")) for i in range(1, 20_000)})
    lowered_ = lower(graph, ["k19999"], TABLE)
    check_order(lowered_)
    check_order(lowered_.reordered())
    assert len(lowered_.tasks) == 19_999


def test_aliases_and_requested_leaves(federation: Federation) -> None:
    graph = lower({"a": "b", "b": "c", "c": (np.sum, "d"), "d": 5}, ["a", "c", "d"], TABLE)
    assert graph.outputs["a"] == graph.outputs["c"] != graph.outputs["d"]
    positions = sorted(graph.outputs.values())
    made = dask.get(home_graph(graph, positions, {}), [graph.tasks[p].key for p in positions])
    assert set(made) == {5}


def test_what_stands_in_the_graph_is_known_without_dask(federation: Federation) -> None:
    graph = lower({"c": (np.sum, "d"), "d": 5}, ["c", "d"], TABLE)
    assert graph.tasks[graph.outputs["d"]].constant == 5
    assert graph.tasks[graph.outputs["c"]].constant is None


def test_equal_leaves_are_one(federation: Federation) -> None:
    x = stored(federation)
    graph = lowered((x[:2] + x[2:]).sum())
    assert len([leaf for leaf in graph.leaves if leaf == x_source(graph)]) == 1


def x_source(graph: PlanGraph) -> Any:
    return next(iter(graph.stored))


INDEXES = [
    {"x": slice(1, 20, 2)},
    {"x": slice(None, None, -1)},
    {"x": 3},
    {"x": np.array([5, 3, 3])},
    {"y": slice(2, None), "x": slice(4, 15)},
]


@pytest.mark.parametrize("index", INDEXES, ids=str)
def test_an_index_from_before_chunking_is_folded_into_the_reads(
    federation: Federation, index: dict[str, Any]
) -> None:
    values = np.arange(120.0).reshape(20, 6)
    variable = federation.variable("north", values)
    lazy = indexing.LazilyIndexedArray(Adapter(variable))
    array = xr.DataArray(xr.Variable(("x", "y"), lazy)).isel(index).chunk(3)
    expected = xr.DataArray(values, dims=("x", "y")).isel(index)
    (computed,) = federation.compute(array * 2)
    np.testing.assert_array_equal(computed, expected * 2)
    assert federation.read_from_home == 0


class Adapter(xr.backends.BackendArray):
    """What the client's backend gives to xarray."""

    def __init__(self, variable: Any) -> None:
        self.array = variable
        self.source = variable.source
        self.shape, self.dtype = variable.shape, variable.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self.array.__getitem__
        )


def test_held_results_are_used_where_they_are(federation: Federation) -> None:
    class HeldValue:
        source = HeldReference("north", "lease", 3, (("data", 10),))

    federation.variable("north", np.ones(1))
    held = Task(("h", 0), own, HeldValue())
    x = da.Array({("h", 0): held}, "h", chunks=((4,),), dtype="f8")
    plan = federation.plan(x.sum())
    [job] = plan.jobs[0]
    submission, _ = plan.submission(job, {}, {})
    assert [(held.lease, held.output) for held in submission.graph.held] == [("lease", 3)]
    [position] = job.released
    assert {dataset.name for dataset in derivations(plan.graph)[position]} == {"data"}


def test_home_graph_closes_over_leaves(federation: Federation) -> None:
    x = stored(federation)
    graph = lowered((x + 1).sum())
    nodes = home_graph(graph, range(len(graph.tasks)), {})
    [position] = graph.outputs.values()
    assert dask.get(nodes, graph.tasks[position].key) == np.arange(24.0).sum() + 24


def test_dependents_are_the_inverse_of_dependencies() -> None:
    laid = LAYOUTS["time"]()
    graph = lowered(laid.floats.mean("time").data)
    above = graph.dependents()
    pairs = {(p, d) for p, task in enumerate(graph.tasks) for d in task.dependencies}
    assert pairs == {(p, d) for d, found in enumerate(above) for p in found}
