import dask.array as da
import numpy as np
import pytest

from federated_dask.planner.learning import MOST_LEARNT, LearntSizes, lineages
from federated_dask.planner.plan import Plan
from federated_dask.planner.sources import HOME
from tests.planner.federation import Federation


def stored(federation: Federation, site: str, name: str) -> da.Array:
    values = np.random.default_rng(0).random((40, 50))
    return da.from_array(federation.variable(site, values, name), chunks=(10, 50))


def took(plan: Plan, share: float) -> dict[int, int]:
    """What every result that was released took, had it shrunk to a share."""
    released = [p for stage in plan.jobs for job in stage for p in job.released]
    return {p: int(plan.estimates[p] * share) for p in released}


def test_the_next_plan_counts_with_what_results_took(federation: Federation) -> None:
    learnt = LearntSizes()
    expression = stored(federation, "north", "a") + 1
    before = federation.plan(expression, learnt=learnt)
    learnt.learn(before.graph, before.estimates, took(before, 0.25))
    after = federation.plan(expression, learnt=learnt)
    down = before.predicted_links()["north", HOME], after.predicted_links()["north", HOME]
    assert 0.25 * down[0] < down[1] < 0.4 * down[0]
    assert after.estimates == before.estimates


def test_what_was_learnt_of_one_variable_says_nothing_of_another(federation: Federation) -> None:
    learnt = LearntSizes()
    plan = federation.plan(stored(federation, "north", "a") + 1, learnt=learnt)
    learnt.learn(plan.graph, plan.estimates, took(plan, 0.25))
    other = federation.plan(stored(federation, "north", "b") + 1, learnt=learnt)
    assert other.sizes == other.estimates


def sums_at(plan: Plan) -> set[str | None]:
    pairs = zip(plan.placement.places, plan.graph.tasks, strict=True)
    return {place for place, task in pairs if task.label == "sum" and len(task.dependencies) == 2}


def test_what_was_learnt_moves_tasks(federation: Federation) -> None:
    x = stored(federation, "north", "x")
    y = stored(federation, "south", "y").astype("f4")
    learnt = LearntSizes()
    expression = (x + y).sum(axis=0)
    before = federation.plan(expression, learnt=learnt)
    assert sums_at(before) == {"north"}
    south = [p for p, place in enumerate(before.placement.places) if place == "south"]
    heavy = {position: 3 * before.estimates[position] for position in south}
    learnt.learn(before.graph, before.estimates, heavy)
    assert sums_at(federation.plan(expression, learnt=learnt)) == {"south"}


def test_what_was_as_estimated_is_forgotten(federation: Federation) -> None:
    learnt = LearntSizes()
    plan = federation.plan(stored(federation, "north", "a") + 1, learnt=learnt)
    learnt.learn(plan.graph, plan.estimates, took(plan, 0.25))
    assert len(learnt) == 1
    learnt.learn(plan.graph, plan.estimates, took(plan, 1.0))
    assert len(learnt) == 0


def test_memory_is_bounded(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_LEARNT >= 1000
    monkeypatch.setattr("federated_dask.planner.learning.MOST_LEARNT", 3)
    learnt = LearntSizes()
    for number in range(5):
        plan = federation.plan(stored(federation, "north", f"v{number}") + 1, learnt=learnt)
        learnt.learn(plan.graph, plan.estimates, took(plan, 0.5))
    assert len(learnt) == 3


def test_lineages_are_the_stored_variables(federation: Federation) -> None:
    x, y = stored(federation, "north", "x"), stored(federation, "south", "y")
    plan = federation.plan((x + y).sum() + da.ones(1, chunks=1))
    found = lineages(plan.graph)
    (output,) = plan.graph.outputs.values()
    assert found[output] == {("north", "data", "x"), ("south", "data", "y")}


def test_a_limit_counts_what_a_site_counts(federation: Federation) -> None:
    values = np.random.default_rng(0).random((40, 50))
    x = da.from_array(federation.variable("north", values, "v", 20_000), chunks=(10, 50))
    plan = federation.plan(x + 1)
    learnt = LearntSizes()
    learnt.learn(plan.graph, plan.estimates, took(plan, 0.01))
    again = federation.plan(x + 1, learnt=learnt)
    assert plan.leaving == again.leaving
