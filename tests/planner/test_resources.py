from collections.abc import Mapping
from typing import Any

import dask
import dask.array as da
import numpy as np

from federated_dask.planner.origins import resources_of
from federated_dask.planner.plan import Plan, make_plan
from federated_dask.planner.sources import HOME, SiteFacts
from tests.planner.federation import TABLE, Federation

GPU: dict[str, dict[str, float]] = {"resources": {"GPU": 1}}


def stored(federation: Federation, site: str) -> da.Array:
    values = np.random.default_rng(0).random((40, 50))
    return da.from_array(federation.variable(site, values, f"v-{site}"), chunks=10)


def plan_of(
    federation: Federation, array: da.Array, resources: Mapping[str, Mapping[str, float]]
) -> Plan:
    facts = {
        name: SiteFacts(name, frozenset(TABLE.names), frozenset(), resources.get(name, {}))
        for name in ("north", "south")
    }
    return make_plan(array.dask, array.__dask_keys__(), facts, TABLE)


def places_that_ask(plan: Plan) -> set[Any]:
    pairs = zip(plan.placement.places, plan.graph.tasks, strict=True)
    return {place for place, task in pairs if resources_of(task)}


def on_gpu(array: da.Array) -> da.Array:
    with dask.annotate(**GPU):
        return array * 2


def test_what_asks_for_resources_runs_where_they_are() -> None:
    federation = Federation()
    expression = on_gpu(stored(federation, "north") + 1).sum()
    at_data = plan_of(federation, expression, {"north": {"GPU": 1}, "south": {"GPU": 1}})
    assert places_that_ask(at_data) == {"north"}
    elsewhere = plan_of(federation, expression, {"south": {"GPU": 2}})
    assert places_that_ask(elsewhere) == {"south"}
    assert any(job.site == "north" for stage in elsewhere.jobs for job in stage)


def test_what_is_made_of_nothing_runs_where_the_resources_are() -> None:
    with dask.annotate(**GPU):
        ones = da.ones(10, chunks=5)
    expression = stored(Federation(), "north").sum() + ones.sum()
    plan = plan_of(Federation(), expression, {"south": {"GPU": 1}})
    assert places_that_ask(plan) == {"south"}


def test_less_than_it_asks_for_is_not_enough() -> None:
    federation = Federation()
    expression = on_gpu(stored(federation, "north"))
    plan = plan_of(federation, expression, {"north": {"GPU": 0.5}, "south": {"memory": 1}})
    assert places_that_ask(plan) == {HOME}
    (reason,) = {reason for _, reason, _ in plan.reasons()}
    assert reason == "no site has as much GPU as it asks for"


def test_a_reduction_that_asks_keeps_asking_after_it_is_split() -> None:
    federation = Federation()
    joined = da.concatenate([stored(federation, "north"), stored(federation, "south")])
    with dask.annotate(**GPU):
        expression = joined.sum(axis=0, split_every=100)
    plan = plan_of(federation, expression, {"south": {"GPU": 1}})
    assert HOME not in places_that_ask(plan)
    (output,) = {plan.graph.outputs[key] for key in list(plan.graph.outputs)[:1]}
    assert dict(resources_of(plan.graph.tasks[output])) == {"GPU": 1}
