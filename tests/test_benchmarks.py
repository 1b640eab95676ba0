"""The benchmarks run and measure something; what they measure is for people to read."""

import numpy as np
import pytest

from benchmarks import calls, placement_optimum, planner_time, predicted_bytes, wire_cost
from benchmarks.__main__ import main
from benchmarks.result import Result
from federated_dask.planner.graph import PlanGraph
from federated_dask.planner.stored_reads import read_bytes

HARDLY = 150
"""Every so-manieth expression of the battery."""


def values(results: list[Result], part: str) -> list[float]:
    found = [result.value for result in results if part in result.what]
    assert found
    return found


def test_placement_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_optimum, "LAYOUTS", placement_optimum.LAYOUTS[:1])
    results = placement_optimum.run(HARDLY)
    assert len(results) == 4 * 2 * len(placement_optimum.LAYOUTS)
    assert all(ratio >= 1 for ratio in values(results, "median ratio"))


def test_the_optimum_is_that_of_an_integer_program() -> None:
    simulation = placement_optimum.laid(2)
    plan = simulation.federation.plan(simulation.floats + simulation.integers.sum("time"))
    sizes, reads = plan.sizes, [read_bytes(task, plan.graph) for task in plan.graph.tasks]
    ours = placement_optimum.moved(plan, sizes, reads)
    best = placement_optimum.optimum(plan, sizes, reads)
    assert 0 < best <= ours
    # Twice the bytes, twice the optimum.
    doubled = [2 * size for size in sizes], [2 * size for size in reads]
    twice = placement_optimum.optimum(plan, *doubled)
    assert twice == pytest.approx(2 * best, rel=0.02)


def test_planner_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_time, "TASKS", (1_000, 2_000))
    monkeypatch.setattr(planner_time, "SITES", (2, 20))
    monkeypatch.setattr(planner_time, "TASKS_WITH_SITES", 1_000)
    results = planner_time.run()
    assert len(results) == 4
    assert all(result.value > 0 for result in results)


def test_predicted_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicted_bytes, "RUNS", 2)
    results = predicted_bytes.run(HARDLY)
    assert all(0 <= share <= 100 for share in values(results, "links predicted"))
    assert values(results, "links")[0] > 0


def test_wire_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_cost, "LARGE", 1_000 * HARDLY)
    sizes: list[int] = []

    def native(graph: PlanGraph) -> float:
        sizes.append(len(graph.tasks))
        return 1.0

    monkeypatch.setattr(wire_cost, "_native", native)
    results = wire_cost.run(HARDLY)
    assert all(np.isfinite(result.value) for result in results)
    assert sizes == [100, 250]
    assert all(0 < size < 200 for size in values(results, "bytes per task"))


def test_names_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 2
    assert "No benchmark nothing" in capsys.readouterr().out


@pytest.mark.slow
def test_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALLS", 3)
    monkeypatch.setattr(calls, "SECONDS", 0.5)
    monkeypatch.setattr(calls, "SIZES", {1_000: 2, 100_000: 2})
    results = calls.run()
    assert all(result.value > 0 for result in results)
    assert len(values(results, "federated")) == 6
