"""What results take on a link, as estimated from what sites tell, against what they really take."""

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from federated_dask.planner.expected import CONSTANT, NAN, Expected, expected_of_value
from federated_dask.planner.graph import lower
from federated_dask.planner.plan import make_plan
from federated_dask.planner.sizes import FRAME_BYTES, estimate_sizes
from site_plugins.contents import content_of
from tests.planner.federation import TABLE, Federation, bytes_of, true_values

SHAPE = (48, 8, 64)
CHUNKS = (12, 8, 64)
MONTHS = np.arange(SHAPE[0]) % 12


def land() -> np.ndarray:
    """Half of a map, in patches."""
    mask = np.zeros(SHAPE[1:], bool)
    mask[2:6, 8:40] = mask[:, 56:] = True
    return mask


def floats() -> np.ndarray:
    values = np.random.default_rng(0).random(SHAPE)
    values[:, land()] = np.nan
    return values


def integers() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 4, SHAPE)


class Stored:
    """Two variables at a site that tells of them."""

    def __init__(self, egress_limit: int | None = None) -> None:
        self.federation = Federation()
        self.floats, self.integers = (
            da.from_array(
                self.federation.variable(
                    "north",
                    values,
                    name,
                    egress_limit,
                    content_of(xr.Variable(("t", "x", "y"), values), CHUNKS),
                ),
                chunks=CHUNKS,
            )
            for name, values in (("x", floats()), ("i", integers()))
        )


Make = Callable[[da.Array, da.Array], Any]


def told(make: Make) -> tuple[float, float]:
    """Bytes of the last tasks at the site: estimated, and real."""
    stored = Stored()
    array = make(stored.floats, stored.integers)
    graph = lower(array.dask, array.__dask_keys__(), TABLE)
    estimated = estimate_sizes(graph).wire
    values = true_values(graph, stored.federation)
    wanted = list(graph.outputs.values())
    return (
        sum(estimated[position] for position in wanted),
        sum(len(bytes_of(0, values[position])) - FRAME_BYTES for position in wanted),
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda x, i: x,
        lambda x, i: i,
        lambda x, i: x[::2].rechunk((7, 8, 64)).transpose(2, 1, 0),
        lambda x, i: np.sqrt(x) * 2 + 1,
        lambda x, i: x - i,
        lambda x, i: x.astype("f4"),
        lambda x, i: i.astype("i2") + 1,
        lambda x, i: da.where(da.isnan(x), 0.0, x),
        lambda x, i: da.nan_to_num(x),
        lambda x, i: x.max(axis=0),
        lambda x, i: da.nansum(x, axis=0),
        lambda x, i: (
            xr.DataArray(x, dims=("t", "x", "y"), coords={"t": MONTHS}).groupby("t").mean().data
        ),
        lambda x, i: i.sum(axis=(0, 1)),
        lambda x, i: x * np.nan,
        lambda x, i: da.zeros_like(x),
        lambda x, i: x[:, 1:3].ravel(),
        lambda x, i: da.concatenate([x, i.astype(float)]),
    ],
)
def test_within_a_fifth(make: Make) -> None:
    estimated, real = told(make)
    assert abs(estimated - real) <= max(200, 0.2 * real)


@pytest.mark.parametrize(
    ("make", "factor"),
    [
        (lambda x, i: x > 0.5, 1.6),
        # Patches that are the same at all times shrink to nearly nothing.
        (lambda x, i: da.isnan(x), 5),
        (lambda x, i: (i > 1) & (x > 0.2), 1.6),
        (lambda x, i: np.floor(x), 2),
        (lambda x, i: da.round(x, 2), 2),
        (lambda x, i: x.argmax(axis=0), 2),
        (lambda x, i: i.mean(axis=0), 2),
        (lambda x, i: np.sqrt(i.var(axis=0)), 1.5),
        (lambda x, i: da.digitize(da.nan_to_num(x), np.array([0.2, 0.5])), 2),
        (lambda x, i: da.isnan(x).sum(axis=0), 4),
    ],
)
def test_of_few_values_the_order_of_magnitude_is_right(make: Make, factor: float) -> None:
    estimated, real = told(make)
    assert real / factor <= estimated <= factor * real + 150


def test_more_than_nothing_is_saved_where_the_site_does_not_tell() -> None:
    variable = Federation().variable("north", np.zeros((40, 50)))
    x = da.from_array(variable, chunks=(10, 50))
    graph = lower(x.dask, x.__dask_keys__(), TABLE)
    assert estimate_sizes(graph).wire == estimate_sizes(graph).plain == [10 * 50 * 8] * 4


def test_distinct_values_and_selections_are_few() -> None:
    stored = Stored()
    unique = da.unique(stored.integers)
    graph = lower(unique.dask, unique.__dask_keys__(), TABLE)
    sizes = estimate_sizes(graph).wire
    for position in graph.outputs.values():
        assert sizes[position] < 1000
    selected = stored.floats[stored.floats > 0.5]
    graph = lower(selected.dask, selected.__dask_keys__(), TABLE)
    sizes = estimate_sizes(graph).wire
    whole = np.prod(CHUNKS) * 8
    for position in graph.outputs.values():
        assert 0.2 * whole < sizes[position] < 0.8 * whole


def test_distinct_values_of_many_chunks_are_no_more_than_of_one() -> None:
    unique = da.unique(Stored().integers.rechunk((1, 8, 64)))
    graph = lower(unique.dask, unique.__dask_keys__(), TABLE)
    sizes = estimate_sizes(graph).wire
    assert all(sizes[position] < 300 for position in graph.outputs.values())


def test_extremes_of_windows_repeat() -> None:
    estimated, real = told(lambda x, i: da.overlap.sliding_window_view(x[:, 1, :8], 3, 0).max(-1))
    assert real / 1.5 <= estimated <= 1.5 * real + 150


def test_percentiles_of_a_chunk_are_few() -> None:
    stored = Stored()
    array = da.percentile(stored.integers.ravel(), [10, 50], internal_method="dask")
    graph = lower(array.dask, array.__dask_keys__(), TABLE)
    sizes = estimate_sizes(graph).wire
    chunks = [p for p, task in enumerate(graph.tasks) if task.label == "percentile_chunk"]
    assert len(chunks) == 4
    assert all(sizes[position] < 100 for position in chunks)


def test_positions_travel_rather_than_masks() -> None:
    """Where something is true takes less than what is true, as positions are runs."""
    stored = Stored()
    (found, *_) = da.nonzero(stored.integers > 2)
    plan = make_plan(found.dask, found.__dask_keys__(), stored.federation.facts, TABLE)
    (job,) = [job for stage in plan.jobs for job in stage]
    labels = {plan.graph.tasks[position].label for position in job.outputs}
    assert labels == {"getitem_variadic"}


def test_what_counts_against_a_budget_is_not_compressed() -> None:
    stored = Stored(egress_limit=10**9)
    array = stored.integers + 1
    plan = make_plan(array.dask, array.__dask_keys__(), stored.federation.facts, TABLE)
    assert sum(plan.leaving.values()) == array.nbytes
    assert sum(plan.sizes[p] for p in plan.graph.outputs.values()) == array.nbytes
    (job,) = [job for stage in plan.jobs for job in stage]
    assert sum(plan._reserve(job).values()) == array.nbytes
    openly = Stored()
    free = openly.integers + 1
    plan = make_plan(free.dask, free.__dask_keys__(), openly.federation.facts, TABLE)
    assert sum(plan.sizes[p] for p in plan.graph.outputs.values()) < array.nbytes / 10
    assert sum(plan.plain_sizes[p] for p in plan.graph.outputs.values()) == array.nbytes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(np.nan), NAN),
        (np.int64(3), CONSTANT),
        (np.array(2.5), CONSTANT),
        ("text", None),
        ([1, 2], None),
        (np.array([], "f8"), Expected(0.0, 8.0, 8.0)),
    ],
)
def test_values_of_the_researcher(value: object, expected: Expected | None) -> None:
    assert expected_of_value(value) == expected


def test_masks_of_the_researcher_are_known_exactly() -> None:
    found = expected_of_value(np.arange(1000) % 4 == 0)
    assert found is not None
    assert found.true == 0.25
