import dask.array as da
import numpy as np

from federated_dask.planner.links import LinkCosts
from federated_dask.planner.plan import Plan
from federated_dask.planner.sources import HOME
from tests.planner.conftest import LAYOUTS
from tests.planner.federation import TABLE, Federation


def stored(federation: Federation, site: str, shape: tuple[int, ...] = (40, 50)) -> da.Array:
    values = np.random.default_rng(0).random(shape)
    return da.from_array(federation.variable(site, values, f"v{len(federation.stored)}"), chunks=10)


def places(plan: Plan) -> dict[str, set[str | None]]:
    found: dict[str, set[str | None]] = {}
    for task, place in zip(plan.graph.tasks, plan.placement.places, strict=True):
        found.setdefault(task.label, set()).add(place)
    return found


def test_one_site_does_all_of_its_own(federation: Federation) -> None:
    plan = federation.plan((stored(federation, "north") + 1).mean(axis=0))
    final = {p for p, task in enumerate(plan.graph.tasks) if task.finalise}
    assert {place for p, place in enumerate(plan.placement.places) if p not in final} == {"north"}
    assert plan.reasons() == []


def test_every_task_reads_where_its_data_is() -> None:
    laid = LAYOUTS["three"]()
    plan = laid.federation.plan(laid.floats.mean("time"))
    for task, place in zip(plan.graph.tasks, plan.placement.places, strict=True):
        assert {source.site for source in task.sources} <= {place}


def test_small_goes_to_large(federation: Federation) -> None:
    large, small = stored(federation, "north"), stored(federation, "south", (1, 50))
    expression = (large * small).sum()
    federation.compute(expression)
    raw = large.nbytes
    assert federation.crossed["north", HOME] < raw / 4
    assert federation.crossed["south", HOME] < 2 * small.nbytes + 5_000


def test_what_derives_from_no_site_runs_where_it_is_needed(federation: Federation) -> None:
    x = stored(federation, "north")
    plan = federation.plan((x * da.linspace(0, 1, 50, chunks=10)).sum())
    # Nothing but the job's message crosses to the site.
    assert all(not job.values for stage in plan.jobs for job in stage)


def test_foreign_functions_run_at_home_and_say_why(federation: Federation) -> None:
    x = stored(federation, "north")
    plan = federation.plan(x.mean(axis=0).map_blocks(_own, dtype="f8"))
    reasons = [reason for _, reason, _ in plan.reasons()]
    assert all("_own is not in the operation table" in reason for reason in reasons)
    assert (
        sum(plan.sizes[p] for stage in plan.jobs for job in stage for p in job.released) == 50 * 8
    )


def _own(x: np.ndarray) -> np.ndarray:
    return x


def test_a_stage_ends_where_a_value_changes_place() -> None:
    laid = LAYOUTS["time"]()
    x = laid.floats
    plan = laid.federation.plan(((x - x.mean("time")) ** 2).mean("time"))
    where, stages = plan.placement.places, plan.placement.stages
    for position, task in enumerate(plan.graph.tasks):
        for below in task.dependencies:
            if where[below] is None or where[position] is None:
                continue
            assert stages[below] + (where[below] != where[position]) <= stages[position]


def test_sites_run_only_what_they_have() -> None:
    laid = LAYOUTS["time"]()
    without = frozenset(TABLE.names) - {"dask.array.reductions.mean_agg"}
    laid.federation.operations = {"north": without, "south": without}
    plan = laid.federation.plan(laid.floats.mean("time"))
    for task, place in zip(plan.graph.tasks, plan.placement.places, strict=True):
        if "mean_agg" in task.label:
            assert place in (HOME, None)
    (computed,) = laid.federation.compute(laid.floats.mean("time"))
    np.testing.assert_allclose(computed, laid.plain_floats.mean("time"))


def test_what_makes_more_of_its_data_runs_where_the_result_is_wanted(
    federation: Federation,
) -> None:
    x = stored(federation, "north")
    wide = x.astype("c16") + 1
    (computed,) = federation.compute(wide)
    np.testing.assert_array_equal(computed, wide.compute(scheduler="sync"))
    received = federation.crossed["north", HOME] + x.nbytes
    assert received < wide.nbytes
    assert any("moves fewer bytes" in reason for _, reason, _ in federation.plans[0].reasons())


def test_a_wide_result_that_is_reduced_again_is_made_at_the_site(federation: Federation) -> None:
    x = stored(federation, "north")
    plan = federation.plan((x.astype("c16") + 1).sum(axis=0))
    assert plan.reasons() == []
    assert plan.read_from_home() == {}


def test_what_may_leave_only_in_part_is_not_read_from_home(federation: Federation) -> None:
    values = np.ones((40, 50))
    x = da.from_array(federation.variable("north", values, "v", 10**9), chunks=10)
    plan = federation.plan(x.astype("c16") + 1)
    assert plan.read_from_home() == {}


def test_a_gain_of_little_is_not_worth_leaving_the_data(federation: Federation) -> None:
    values = np.random.default_rng(0).random((300, 200))
    x = da.from_array(federation.variable("north", values), chunks=(100, 200))
    y = da.from_array(federation.variable("south", values, "w"), chunks=(100, 200))
    joined = da.concatenate([x, y])
    smooth = da.overlap.overlap(joined, {0: 1}, "none")
    plan = federation.plan(da.overlap.trim_internal(smooth * 2, {0: 1}, "none"))
    at_home = {plan.graph.tasks[p].label for stage in plan.home for p in stage}
    assert "mul" not in at_home


def test_slices_that_no_collection_states_have_a_size() -> None:
    federation = Federation()
    x = stored(federation, "north")
    plan = federation.plan(da.overlap.overlap(x, {0: 1, 1: 2}, "none").sum())
    for task, size in zip(plan.graph.tasks, plan.sizes, strict=True):
        if task.label == "getitem":
            assert size <= 10 * 2 * 8


def test_bytes_on_a_dear_link_are_avoided(federation: Federation) -> None:
    x, y = stored(federation, "north"), stored(federation, "south").astype("f4")
    expression = (x + y).sum(axis=0)

    def sums_at(links: LinkCosts | None) -> set[str | None]:
        plan = federation.plan(expression, links=links)
        pairs = zip(plan.placement.places, plan.graph.tasks, strict=True)
        return {place for place, task in pairs if task.label == "sum" and task.dependencies}

    assert "south" not in sums_at(None)
    assert "north" not in sums_at(LinkCosts({("south", "home"): 10.0, ("home", "south"): 1.0}))


def test_what_follows_a_meeting_at_a_site_says_why_it_is_at_home() -> None:
    """At which site they meet is known only after the first placement."""
    federation = Federation(exchanging=True)
    both = da.stack([stored(federation, site) for site in ("north", "south")])
    plan = federation.plan(both.mean(axis=(0, 1)).map_blocks(_own, dtype="f8"))
    assert places(plan)["mean_agg-aggregate"] & {"north", "south"}
    reasons = [(label, "_own is not in the operation table" in r) for label, r, _ in plan.reasons()]
    assert reasons == [("own", True)]
