from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from federated_dask.planner.graph import home_graph, lower
from federated_dask.planner.nodes import uses
from federated_dask.planner.sizes import DICT_BYTES, FLOX_CHUNK, estimate_sizes, is_stated_exactly
from federated_dask.planner.stored_reads import brought_bytes, read_bytes
from federated_dask.protocol.messages import Content
from tests.planner.federation import TABLE, Federation


def stored(federation: Federation, dtype: str = "f4") -> da.Array:
    values = np.zeros((40, 6, 50), dtype)
    return da.from_array(federation.variable("north", values), chunks=(10, 6, 50))


def of(array: Any) -> dict[str, int]:
    """Largest estimate of every layer."""
    graph = lower(array.dask, array.__dask_keys__(), TABLE)
    sizes = estimate_sizes(graph).plain
    found: dict[str, int] = {}
    for task, size in zip(graph.tasks, sizes, strict=True):
        found[task.label] = max(found.get(task.label, 0), size)
    return found


@pytest.mark.parametrize(
    ("reduce", "partial"),
    [
        (lambda x: x.sum(axis=0), 6 * 50 * 4),
        (lambda x: x.sum(axis=0, dtype="f8"), 6 * 50 * 8),
        (lambda x: x.mean(axis=0), 6 * 50 * 4),
        (lambda x: x.max(axis=(0, 2)), 6 * 4),
        (lambda x: x.var(axis=0), 2 * 6 * 50 * 4),
        (lambda x: (x > 0).all(axis=0), 6 * 50),
    ],
)
def test_partials_are_as_large_as_the_result_not_as_the_chunk(reduce: Any, partial: int) -> None:
    x = stored(Federation())
    graph = lower(reduce(x).dask, reduce(x).__dask_keys__(), TABLE)
    sizes = estimate_sizes(graph).plain
    inputs = graph.tasks[-1].dependencies
    assert inputs
    for position in inputs:
        # Names of the arrays of a partial take some bytes as well.
        assert partial / 2 <= sizes[position] <= 2 * partial + DICT_BYTES


def test_chunks_are_what_the_collection_states() -> None:
    assert of(stored(Federation()) + 1)["add"] == 10 * 6 * 50 * 4


def test_groups_times_kept_axes() -> None:
    federation = Federation()
    time = pd.date_range("2000", periods=40, freq="MS")
    array = xr.DataArray(stored(federation), dims=("time", "y", "x"), coords={"time": time})
    grouped = array.groupby("time.season").mean(method="map-reduce")
    graph = lower(grouped.data.dask, grouped.data.__dask_keys__(), TABLE)
    sizes = estimate_sizes(graph).plain
    one = 4 * 6 * 50 * 4
    chunks = [
        size
        for task, size in zip(graph.tasks, sizes, strict=True)
        if task.program is not None and FLOX_CHUNK in uses(task.program.template.steps[-1])
    ]
    assert chunks
    assert all(one <= size <= 4 * one for size in chunks)


@pytest.mark.parametrize(
    ("index", "elements"),
    [
        (np.s_[:], 40 * 300),
        (np.s_[:10], 10 * 300),
        (np.s_[0:10], 10 * 300),
        (np.s_[15], 10 * 300),
    ],
)
def test_reads(index: Any, elements: int) -> None:
    x = stored(Federation())[index]
    graph = lower(x.dask, x.__dask_keys__(), TABLE)
    assert sum(read_bytes(task, graph) for task in graph.tasks) == elements * 4


def test_what_reads_nothing() -> None:
    x = da.ones(3).sum()
    graph = lower(x.dask, x.__dask_keys__(), TABLE)
    assert [read_bytes(task, graph) for task in graph.tasks] == [0] * len(graph.tasks)
    assert all(size >= 0 for size in estimate_sizes(graph).plain)


def test_objects_and_unknown_shapes_have_some_size() -> None:
    federation = Federation()
    texts = np.array(["a", "b"] * 10, dtype=object)
    x = da.from_array(federation.variable("north", texts), chunks=5)
    assert set(of(x).values()) == {5 * 8}
    y = stored(federation)
    masked = y[y > 0]
    assert all(size >= 0 for size in of(masked).values())


def reshaped(x: da.Array) -> da.Array:
    return x.reshape(40, 300).rechunk((7, 100))


@pytest.mark.parametrize(
    ("make", "is_known"),
    [
        (lambda x: x + 1, True),
        (lambda x: x.sum(axis=0), True),
        (lambda x: x.mean(), True),
        (lambda x: x.mean(axis=(0, 2)), True),
        (lambda x: x.std(axis=1), None),
        (lambda x: x[:10].mean(axis=0), True),
        (lambda x: x.argmax(axis=0), True),
        (lambda x: da.nanmax(x, axis=2), True),
        (lambda x: x.sum(axis=0, keepdims=True), False),
        (lambda x: x.cumsum(axis=0), None),
        (lambda x: da.topk(x, 3, axis=0), False),
        (lambda x: da.linalg.svd(reshaped(x).rechunk((7, 300)))[1], None),
        (lambda x: reshaped(x).T @ reshaped(x), None),
        (lambda x: da.percentile(x.reshape(-1), [5, 50]), None),
        (lambda x: da.histogram(x, bins=5, range=(0, 1))[0], None),
        (lambda x: x[x > 0.5], False),
        (lambda x: x[::3, [0, 4, 2]], None),
        (lambda x: x[5:15, 2], True),
        (lambda x: np.sqrt(x) > 0.5, True),
        (lambda x: da.where(x > 0.5, x, np.float32(2)).astype("i4"), None),
        (lambda x: da.unique(da.round(x)), None),
    ],
)
def test_what_is_stated_exactly_is_so(make: Any, is_known: bool | None) -> None:
    values = np.random.default_rng(0).random((40, 6, 50))
    array = make(da.from_array(values, chunks=(10, 6, 25)))
    graph = lower(array.dask, array.__dask_keys__(), TABLE)
    nodes = home_graph(graph, range(len(graph.tasks)), {})
    tasks = [task for task in graph.tasks if is_stated_exactly(task, graph)]
    made = dask.get(nodes, [task.key for task in tasks])
    for task, value in zip(tasks, made, strict=True):
        assert np.shape(value) == task.shape, task.label
    if is_known is not None:
        known = {task.key for task in tasks}
        wanted = {graph.tasks[position].key for position in graph.outputs.values()}
        assert (wanted <= known) is is_known


@pytest.mark.parametrize(
    ("make", "elements"),
    [
        (lambda x: da.topk(x, 3, axis=0), 3 * 6 * 50),
        (lambda x: x[x > 0].sum(), 1),
        (lambda x: da.moment(x, 4, axis=0), 4 * 6 * 50),
        (lambda x: da.bincount(x.ravel().astype("i8"), minlength=9), 9),
        (lambda x: da.take(x, [1, 2, 11], axis=0) + 0, 3 * 6 * 50),
    ],
)
def test_partials_of_which_the_collection_states_another_shape(make: Any, elements: int) -> None:
    x = make(stored(Federation(), "f8"))
    graph = lower(x.dask, x.__dask_keys__(), TABLE)
    sizes = estimate_sizes(graph).plain
    last = graph.tasks[next(iter(graph.outputs.values()))]
    assert last.program is not None
    for below in last.dependencies:
        assert abs(sizes[below] - 8 * elements) <= DICT_BYTES


def test_reading_from_home_shrinks_as_the_site_told_unless_there_is_a_budget() -> None:
    federation = Federation()
    content = Content(left=0.25)
    brought = []
    for limit in (None, 10**9):
        variable = federation.variable(
            "north", np.zeros((40, 50)), f"v{limit}", egress_limit=limit, content=content
        )
        x = da.from_array(variable, chunks=(10, 50))
        graph = lower(x.dask, x.__dask_keys__(), TABLE)
        brought.append([brought_bytes(task, graph) for task in graph.tasks])
    assert brought == [[10 * 50 * 2] * 4, [10 * 50 * 8] * 4]
