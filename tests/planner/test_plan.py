"""Plans as a whole: what they compute is what Dask computes without them."""

import warnings
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from federated_dask.errors import NotPermitted, Reason
from federated_dask.planner.plan import Plan, make_plan
from federated_dask.planner.stored_reads import brought_bytes
from tests.battery.expressions import BATTERY, SPLITTABLE, battery_cases
from tests.planner.conftest import LAYOUTS, Laid
from tests.planner.federation import TABLE, Federation


def as_arrays(result: Any) -> list[np.ndarray]:
    if isinstance(result, xr.Dataset):
        return [variable.to_numpy() for variable in result.values()]
    return [np.asarray(result)]


@pytest.mark.parametrize(("name", "layout"), battery_cases(LAYOUTS))
def test_the_result_is_that_of_plain_dask(name: str, layout: str) -> None:
    laid = LAYOUTS[layout]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expression = BATTERY[name](laid.floats, laid.integers)
        plain = BATTERY[name](laid.plain_floats, laid.plain_integers)
        (expected,) = dask.compute(plain, scheduler="sync")
    (computed,) = laid.federation.compute(expression)
    for plan in laid.federation.plans:
        check_crossings(plan)
    for ours, theirs in zip(as_arrays(computed), as_arrays(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        if ours.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)
        else:
            np.testing.assert_array_equal(ours, theirs)


# What crosses


def released(plan: Plan) -> list[int]:
    return [position for stage in plan.jobs for job in stage for position in job.released]


def sites_of(laid: Laid) -> int:
    return len({source.site for source in laid.federation.stored})


SPECIAL = {"ptp", "weighted-mean", "weighted-all", "weighted-std"}
ORDERED = {name for name in SPLITTABLE if "arg" in name}


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (layout, name)
        for layout in ("time", "three")
        for name in SPLITTABLE
        if name not in SPECIAL and (layout == "time" or name not in ORDERED)
    ],
)
def test_released_are_sites_times_output(layout: str, name: str) -> None:
    laid = LAYOUTS[layout]()
    expression = BATTERY[name](laid.floats, laid.integers)
    plan = laid.federation.plan(expression)
    data = getattr(expression, "data", expression)
    assert len(released(plan)) == sites_of(laid) * data.npartitions
    laid.federation.run(plan)
    assert laid.federation.read_from_home == 0


@pytest.mark.parametrize("name", ["argmin-ties", "argmax-time", "nanargmin"])
def test_reductions_over_positions_combine_neighbours(name: str) -> None:
    laid = LAYOUTS["three"]()
    expression = BATTERY[name](laid.floats, laid.integers)
    # Four runs of neighbours: north, south, north, ocean.
    assert len(released(laid.federation.plan(expression))) == 4 * 2


def test_ties_between_sites_are_won_by_the_first() -> None:
    laid = LAYOUTS["three"]()
    zeros = laid.integers * 0
    for find in (zeros.argmin, zeros.argmax):
        (computed,) = laid.federation.compute(find("time"))
        assert not computed.to_numpy().any()
    late = zeros.where(zeros.time != zeros.time[-1], 1)
    (computed,) = laid.federation.compute(late.argmax("time"))
    assert (computed == late.sizes["time"] - 1).all()


@pytest.mark.parametrize("layout", ["time", "scenario"])
@pytest.mark.parametrize(
    "name", [*sorted(SPECIAL), "mean-all", "month-mean", "season-map-reduce", "histogram", "dot"]
)
def test_no_chunk_leaves_before_a_reduction(name: str, layout: str) -> None:
    laid = LAYOUTS[layout]()
    plan = laid.federation.plan(BATTERY[name](laid.floats, laid.integers))
    leaving = {*released(plan), *(position for stage in plan.home for position in stage)}
    for position in leaving:
        task = plan.graph.tasks[position]
        if task.sources:
            # Only where a partial has as many months as its chunk: then nothing is reduced.
            above = [p for p, each in enumerate(plan.graph.tasks) if position in each.dependencies]
            made = min(plan.sizes[other] for other in (above or [position]))
            assert brought_bytes(task, plan.graph) <= made, task.label


def check_crossings(plan: Plan) -> None:
    """Every value crosses at most once per destination; shares are whole and in order."""
    assert len(released(plan)) == len(set(released(plan)))
    brought = [(p, job.site) for stage in plan.jobs for job in stage for p in job.values]
    assert len(brought) == len(set(brought))
    held: set[tuple[int, str]] = set()
    for stage, jobs in enumerate(plan.jobs):
        assert len({job.site for job in jobs}) == len(jobs)
        for job in jobs:
            assert job.stage == stage
            assert job.tasks == sorted(set(job.tasks))
            assert set(job.outputs) <= set(job.tasks)
            assert not set(job.values) & set(job.tasks)
            # What a later stage needs stayed at the site.
            assert {(p, job.site) for p in job.earlier} <= held
        held |= {(p, job.site) for job in jobs for p in job.held}


def test_what_a_later_stage_needs_is_held_where_it_is() -> None:
    laid = LAYOUTS["time"]()
    x = laid.floats
    plan = laid.federation.plan(((x - x.mean()) ** 2).mean())
    check_crossings(plan)
    raw = [p for p in released(plan) if plan.graph.tasks[p].sources]
    assert raw == []
    assert any(job.earlier for stage in plan.jobs for job in stage)


def test_predictions_are_near_what_crosses(laid: Laid) -> None:
    for name in ("mean-time", "std-time", "max-time", "season-map-reduce", "np-sqrt"):
        federation = laid.federation
        federation.crossed.clear()
        expression = BATTERY[name](laid.floats, laid.integers)
        predicted = federation.plan(expression).predicted_links()
        federation.compute(expression)
        for link, size in predicted.items():
            frames = 200 * max(1, len(released(federation.plan(expression))))
            assert abs(federation.crossed[link] - size) <= 0.3 * size + frames, (name, link)


def test_what_goes_to_a_site_is_predicted_exactly_without_values(laid: Laid) -> None:
    expression = BATTERY["mean-time"](laid.floats, laid.integers)
    predicted = laid.federation.plan(expression).predicted_links()
    laid.federation.compute(expression)
    for (start, end), size in predicted.items():
        if start == "home":
            assert laid.federation.crossed[start, end] == size


def test_persist_leaves_results_where_they_are() -> None:
    laid = LAYOUTS["time"]()
    x = (laid.floats * 2).data
    facts = laid.federation.facts
    plan = make_plan(x.dask, x.__dask_keys__(), facts, TABLE, hold=True)
    assert released(plan) == []
    held = [p for stage in plan.jobs for job in stage for p in job.held]
    assert sorted(held) == sorted(plan.graph.outputs.values())
    assert len(laid.federation.run(plan)) == x.npartitions


# Egress


def limited(federation: Federation, limit: int | None) -> da.Array:
    values = np.random.default_rng(0).random((40, 50))
    return da.from_array(federation.variable("north", values, egress_limit=limit), chunks=(10, 50))


def own(x: np.ndarray) -> np.ndarray:
    return x + 1


def test_what_may_not_leave_is_not_planned_to_leave(federation: Federation) -> None:
    x = limited(federation, 1000)
    assert federation.plan(x.mean(axis=0)[:10])
    with pytest.raises(NotPermitted, match="north/data") as caught:
        federation.plan(x + 1)
    assert caught.value.reason is Reason.EXPORT_NOT_ALLOWED
    assert caught.value.site == "north"
    assert "16,000" in str(caught.value)
    assert "1,000" in str(caught.value)


def test_the_refusal_names_the_function_that_the_site_lacks(federation: Federation) -> None:
    x = limited(federation, 1000)
    with pytest.raises(NotPermitted, match=r"test_plan\.own is not in the operation table"):
        federation.plan(x.map_blocks(own, dtype="f8").sum())


def test_the_refusal_names_the_operation_that_only_this_site_lacks() -> None:
    federation = Federation(operations={"north": frozenset(TABLE.names) - {"numpy.cbrt"}})
    with pytest.raises(NotPermitted, match=r"north does not have numpy\.cbrt"):
        federation.plan(np.cbrt(limited(federation, 1000)).sum())


@pytest.mark.parametrize("limit", [None, 10**6])
def test_without_a_limit_the_function_runs_at_home(
    federation: Federation, limit: int | None
) -> None:
    x = limited(federation, limit)
    expression = x.map_blocks(own, dtype="f8").sum()
    plan = federation.plan(expression)
    [(_, reason, count)] = [each for each in plan.reasons() if each[0] == "own"]
    assert reason.startswith("tests.planner.test_plan.own is not in the operation table")
    assert count == 4
    (computed,) = federation.compute(expression)
    np.testing.assert_allclose(computed, x.compute(scheduler="sync").sum() + 2000)


def test_what_tasks_at_home_read_counts_as_leaving() -> None:
    for limit, length in ((None, 40), (1000, 40), (1000, 1)):
        federation = Federation()
        variable = federation.variable("north", np.ones((length, 50)), egress_limit=limit)
        # The function itself takes the stored variable: nothing says how much of it is read.
        graph = {"stored": variable, "mine": (own, "stored")}
        if limit and length == 40:
            with pytest.raises(NotPermitted, match="16,000 bytes"):
                make_plan(graph, ["mine"], federation.facts, TABLE)
        else:
            plan = make_plan(graph, ["mine"], federation.facts, TABLE)
            assert plan.read_from_home() == {"north": length * 400}
            assert plan.predicted_links() == {("north", "home"): length * 400}


# Operations that differ between sites


def test_a_site_that_lacks_an_operation_gives_its_data_to_home() -> None:
    laid = LAYOUTS["time"]()
    laid.federation.operations = {"south": frozenset(TABLE.names) - {"numpy.cbrt"}}
    expression = np.cbrt(laid.floats.data).sum()
    plan = laid.federation.plan(expression)
    assert [
        count for _, reason, count in plan.reasons() if reason == "south does not have numpy.cbrt"
    ] == [4]
    (computed,) = laid.federation.compute(expression)
    np.testing.assert_allclose(computed, np.cbrt(laid.plain_floats.data).sum().compute())


# Data of the researcher


def test_small_data_goes_to_the_site_and_large_results_do_not_come_home(
    federation: Federation,
) -> None:
    values = np.random.default_rng(0).random((400, 500))
    x = da.from_array(federation.variable("north", values), chunks=(100, 500))
    weights = da.from_array(np.linspace(0, 1, 20_000).reshape(400, 50), chunks=(100, 50))
    expression = (x * weights.repeat(10, axis=1)).sum(axis=0)
    federation.compute(expression)
    assert federation.crossed["north", "home"] < values.nbytes / 10
    assert federation.read_from_home == 0


def test_large_data_stays_at_home(federation: Federation) -> None:
    x = da.from_array(federation.variable("north", np.arange(10.0)), chunks=5)
    mine = da.from_array(np.ones((1_000, 10, 10)), chunks=(100, 10, 10))
    (computed,) = federation.compute((mine * x).sum())
    assert computed == 45 * 10_000
    assert federation.crossed["home", "north"] < 5_000


def test_a_plan_without_sites_runs_at_home(federation: Federation) -> None:
    plan = federation.plan(da.ones(10, chunks=5).sum())
    assert plan.sites == []
    assert sum(federation.run(plan).values()) == 10
