"""Plans whose results end at a given site, for functions there to take them as arguments."""

import warnings
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask.base import collections_to_expr
from dask.core import flatten

from federated_dask.errors import NotPermitted, RequestRefused
from federated_dask.planner.plan import Plan, make_plan
from federated_dask.planner.sources import HOME
from tests.battery.expressions import BATTERY
from tests.planner.conftest import LAYOUTS
from tests.planner.federation import TABLE, Federation


def plan_at(federation: Federation, at: str, *arrays: da.Array) -> Plan:
    expression = collections_to_expr(arrays)
    keys = flatten([array.__dask_keys__() for array in arrays])
    return make_plan(expression, keys, federation.facts, TABLE, hold=True, at=at)


def check_ends_at(plan: Plan, at: str) -> None:
    """All requested results are held at the site, and none is sent home for itself."""
    held = {p for jobs in plan.jobs for job in jobs if job.site == at for p in job.held}
    assert set(plan.graph.outputs.values()) <= held


def result_of(federation: Federation, plan: Plan, array: da.Array) -> np.ndarray:
    made = federation.run(plan)

    def shaped(keys: Any) -> Any:
        return [shaped(key) for key in keys] if isinstance(keys, list) else made[keys]

    return np.block(shaped(array.__dask_keys__()))


@pytest.mark.parametrize("exchanging", [False, True])
@pytest.mark.parametrize("at", ["north", "south"])
@pytest.mark.parametrize(
    "name", ["mean-time", "std-time", "np-sqrt", "mean-all", "dot", "histogram"]
)
def test_results_are_held_there(name: str, at: str, exchanging: bool) -> None:
    laid = LAYOUTS["time"]()
    laid.federation.exchanging = exchanging
    expression = BATTERY[name](laid.floats, laid.integers)
    plain = BATTERY[name](laid.plain_floats, laid.plain_integers)
    array = getattr(expression, "data", expression)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = plan_at(laid.federation, at, array)
        check_ends_at(plan, at)
        found = result_of(laid.federation, plan, array)
        (expected,) = dask.compute(plain, scheduler="sync")
    np.testing.assert_allclose(found, np.asarray(expected))
    assert laid.federation.read_from_home == 0
    if exchanging:
        assert laid.federation.crossed["north", HOME] == 0
        assert laid.federation.crossed["south", HOME] == 0


@pytest.mark.parametrize("at", ["north", "south"])
def test_what_is_made_there_does_not_move(federation: Federation, at: str) -> None:
    x = da.from_array(federation.variable("north", np.arange(40.0)), chunks=10)
    federation.variable("south", np.arange(2.0))
    plan = plan_at(federation, at, x + 1)
    result = result_of(federation, plan, x + 1)
    np.testing.assert_array_equal(result, np.arange(1, 41))
    assert (federation.crossed["north", HOME] == 0) is (at == "north")
    # What lies elsewhere is computed there, and moved as it is.
    assert sum(len(job.tasks) for jobs in plan.jobs for job in jobs if job.site == "north") >= 4


def test_data_meets_where_it_has_to_end(federation: Federation) -> None:
    north = da.from_array(federation.variable("north", np.ones((50, 4))), chunks=(10, 4))
    south = da.from_array(federation.variable("south", np.ones((50, 4))), chunks=(10, 4))
    federation.exchanging = True
    for at, other in (("north", "south"), ("south", "north")):
        plan = plan_at(federation, at, north + south)
        moved = {(s, job.site) for jobs in plan.jobs for job in jobs for s in job.pulled.values()}
        assert moved == {(other, at)}
        assert len([p for jobs in plan.jobs for job in jobs for p in job.pulled]) == 5
        np.testing.assert_array_equal(result_of(federation, plan, north + south), 2)


@pytest.mark.parametrize(
    "own",
    [
        lambda: da.from_array(np.arange(20_000.0), chunks=5_000),
        lambda: da.ones(10, chunks=5) * 2,
        lambda: da.ones(10, chunks=5).map_blocks(lambda x: x * 3, dtype="f8"),
    ],
    ids=["data", "made-anywhere", "function"],
)
def test_what_the_researcher_has_is_sent_there(
    federation: Federation, own: Callable[[], da.Array]
) -> None:
    x = da.from_array(federation.variable("north", np.arange(4.0)), chunks=2)
    array = own()
    plan = plan_at(federation, "north", x, array)
    check_ends_at(plan, "north")
    np.testing.assert_array_equal(result_of(federation, plan, array), array.compute())
    assert federation.crossed["north", HOME] == 0


def test_a_site_without_the_operation_gets_the_result_from_home() -> None:
    federation = Federation(operations={"north": frozenset(TABLE.names) - {"numpy.cbrt"}})
    x = da.from_array(federation.variable("north", np.arange(4.0)), chunks=2)
    free = np.cbrt(da.ones(4, chunks=2))
    plan = plan_at(federation, "north", x, free, np.cbrt(x))
    check_ends_at(plan, "north")
    np.testing.assert_array_equal(result_of(federation, plan, free), 1)
    np.testing.assert_allclose(result_of(federation, plan, np.cbrt(x)), np.cbrt(np.arange(4.0)))


def test_what_may_not_leave_is_not_brought_elsewhere(federation: Federation) -> None:
    federation.exchanging = True
    federation.variable("south", np.ones(2))
    x = da.from_array(federation.variable("north", np.ones((40, 50)), egress_limit=1000), chunks=10)
    assert plan_at(federation, "north", x + 1)
    assert plan_at(federation, "south", x.mean(axis=0)[:10])
    with pytest.raises(NotPermitted, match="north/data"):
        plan_at(federation, "south", x + 1)


def test_what_has_no_wire_form_is_refused_at_once(federation: Federation) -> None:
    x = da.from_array(federation.variable("north", np.arange(4.0)), chunks=2)
    objects = da.from_array(np.array([object(), object()], dtype=object), chunks=2)
    with pytest.raises(RequestRefused, match="cannot be brought to north"):
        plan_at(federation, "north", x, objects)
