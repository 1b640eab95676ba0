"""What a site would refuse for what it makes is known to the planner, and runs at home."""

import dask.array as da
import numpy as np
import pytest

from federated_dask.errors import NotPermitted, Reason
from federated_dask.planner.plan import Plan
from tests.planner.federation import TABLE, Federation

LIMIT = 1_000_000
ROW = np.arange(4_000.0)


@pytest.fixture
def federation() -> Federation:
    return Federation(task_bytes={"north": LIMIT})


def row(federation: Federation, egress_limit: int | None = None, chunks: int = 500) -> da.Array:
    variable = federation.variable("north", ROW, egress_limit=egress_limit)
    return da.from_array(variable, chunks=chunks)


def at_home(plan: Plan) -> set[str]:
    tasks = [plan.graph.tasks[position] for stage in plan.home for position in stage]
    return {task.label for task in tasks if not task.finalise}


def names(expression: da.Array, federation: Federation) -> set[str]:
    """Operations that would make too much."""
    reasons = [reason for _, reason, _ in federation.plan(expression).reasons()]
    return {reason.partition(" ")[0] for reason in reasons if "would make more" in reason}


def test_broadcasting_to_more_than_a_task_may_make_runs_at_home(federation: Federation) -> None:
    large = row(federation, chunks=4_000)
    small = large[:250]
    assert not names((small[:, None] * small[None, :])[:250, :10], federation)
    expression = (large[:, None] * large[None, :])[:, :10]
    assert (
        "mul",
        "operator.mul would make more than the 0.95 MiB that a task may at north",
        1,
    ) in federation.plan(expression).reasons()
    (computed,) = federation.compute(expression)
    np.testing.assert_array_equal(computed, np.outer(ROW, ROW)[:, :10])


@pytest.mark.parametrize(("repeats", "too_large"), [(100, False), (LIMIT + 1, True)])
def test_sizes_that_are_written_in_tasks_are_known(
    federation: Federation, repeats: int, too_large: bool
) -> None:
    x = row(federation, chunks=4_000)
    repeated = x.map_blocks(np.repeat, repeats, dtype="f8", chunks=(4_000 * repeats,))
    assert ("numpy.repeat" in names(da.topk(repeated, 3), federation)) is too_large


def test_what_has_no_data_of_a_site_is_not_made_there_either(federation: Federation) -> None:
    x = row(federation, chunks=4_000)
    large = da.from_array(np.ones((50, 1)), chunks=-1) * da.from_array(ROW, chunks=-1)
    plan = federation.plan(large[0] + x)
    assert {"mul"} <= at_home(plan)
    assert "operator.mul" in names(large[0] + x, federation)
    (computed,) = federation.compute(large[0] + x)
    np.testing.assert_array_equal(computed, 2 * ROW)


def test_what_has_no_data_goes_to_no_site_that_lacks_an_operation() -> None:
    names = frozenset(TABLE.names)
    federation = Federation(operations={"north": names - {"numpy.cbrt"}})
    x = row(federation)
    expression = x + np.cbrt(da.ones(4_000, chunks=500))
    assert all("numpy.cbrt" in reason for _, reason, _ in federation.plan(expression).reasons())
    (computed,) = federation.compute(expression)
    np.testing.assert_array_equal(computed, ROW + 1)


def test_data_that_may_not_leave_is_not_brought_home_for_it(federation: Federation) -> None:
    x = row(federation, egress_limit=1_000, chunks=4_000)
    with pytest.raises(NotPermitted, match=r"operator\.mul would make more than") as caught:
        federation.plan((x[:, None] * x[None, :])[:, :2])
    assert caught.value.reason is Reason.EXPORT_NOT_ALLOWED


TEXTS = np.array(["a", "bb", "ccc", "dd"], dtype=object)


def test_texts_are_put_together_at_home(federation: Federation) -> None:
    federation.variable("north", ROW)
    federation.prefer = "north"
    texts = da.from_array(TEXTS, chunks=2)
    expression = (texts[::-1] + texts)[1:]
    plan = federation.plan(expression)
    assert "add" in at_home(plan)
    [blocker] = {task.blocker for task in plan.graph.tasks if task.label == "add"}
    assert blocker == "Objects of Python are not made or computed with at a site."
    (computed,) = federation.compute(expression)
    np.testing.assert_array_equal(computed, (TEXTS[::-1] + TEXTS)[1:])


def test_dates_of_other_calendars_are_computed_with_at_sites(federation: Federation) -> None:
    import cftime

    dates = np.array([cftime.DatetimeNoLeap(2000, 1, day) for day in range(1, 5)], dtype=object)
    federation.variable("north", ROW)
    federation.prefer = "north"
    x = da.from_array(dates, chunks=2)
    expression = x - x[0]
    assert federation.plan(expression).tasks_at("north") > 1
    assert not at_home(federation.plan(expression))


def test_what_only_compares_texts_runs_at_the_data(federation: Federation) -> None:
    x = da.from_array(federation.variable("north", ROW[:4]), chunks=2)
    chosen = (x * (da.from_array(TEXTS, chunks=2) == "bb")).sum()
    assert not federation.plan(chosen).reasons()
    (computed,) = federation.compute(chosen)
    assert computed == ROW[1]
    assert not federation.read_from_home
