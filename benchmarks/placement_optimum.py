"""Bytes over links of our placement against the optimum of an integer program, on one graph.

Every value is brought at most once to each place that needs it, from wherever it was
made; a task that reads a stored variable elsewhere has what it reads brought.  The
optimum is HiGHS's, or its bound where the time for one expression is over.  With *true*
sizes, what our plan (made with estimates) really moves is held against the optimum of
somebody who knows in advance what every value will take on the wire.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from benchmarks.result import Result
from benchmarks.simulated import (
    Simulation,
    chosen,
    encoded_bytes,
    laid,
    quiet,
    wire_bytes,
)
from federated_dask.planner.origins import origins
from federated_dask.planner.plan import Plan
from federated_dask.planner.sources import HOME
from federated_dask.planner.stored_reads import all_brought_bytes, read_bytes
from tests.battery.expressions import Expression
from tests.planner.federation import true_values

LAYOUTS = ((2, "time"), (2, "lon"), (3, "time"), (5, "time"))
SECONDS = 60.0
SMALLEST = 200
"""Bytes below which a difference is not told apart from what frames a value."""
MEDIAN, MAXIMUM = 1.05, 1.25


@dataclasses.dataclass(frozen=True)
class Ratio:
    name: str
    ours: float
    optimum: float

    @property
    def value(self) -> float:
        return (self.ours + SMALLEST) / (self.optimum + SMALLEST)


def run(every: int = 1) -> list[Result]:
    results = []
    for sites, dimension in LAYOUTS:
        simulation = laid(sites, dimension)
        ratios: dict[str, list[Ratio]] = {}
        for name, expression in chosen(every).items():
            for kind, ratio in compared(name, expression, simulation).items():
                ratios.setdefault(kind, []).append(ratio)
        for kind, found in ratios.items():
            results += _results(f"{sites} sites in {dimension}, {kind} sizes", found)
    return results


def _results(title: str, ratios: Sequence[Ratio]) -> list[Result]:
    solved = [ratio for ratio in ratios if not math.isnan(ratio.optimum)]
    values = [ratio.value for ratio in solved]
    worst = sorted(solved, key=lambda ratio: -ratio.value)[:3]
    names = ", ".join(f"{ratio.name} {ratio.value:.2f}" for ratio in worst if ratio.value > 1.01)
    return [
        Result(f"{title}: expressions ({len(ratios) - len(solved)} not solved)", len(values)),
        Result(f"{title}: median ratio", statistics.median(values), "", MEDIAN),
        Result(f"{title}: largest ratio ({names or '–'})", max(values), "", MAXIMUM),
        Result(f"{title}: above 1.25", sum(value > MAXIMUM for value in values)),
    ]


def compared(name: str, expression: Expression, simulation: Simulation) -> dict[str, Ratio]:
    """Hold one plan against the optimum, by kind of sizes."""
    with quiet():
        plan = simulation.federation.plan(simulation.evaluate(expression))
        values = true_values(plan.graph, simulation.federation)
    kinds = {
        "estimated": plan.sizes,
        "true": [wire_bytes(value) for value in values],
    }
    result = {}
    for kind, sizes in kinds.items():
        reads = all_brought_bytes(plan.graph)
        if kind == "true":
            reads = [read_bytes(task, plan.graph) for task in plan.graph.tasks]
            # What is read shrinks as what is made of it does.
            reads = [
                int(read * min(1.0, small / max(1, large)))
                for read, small, large in zip(reads, sizes, map(encoded_bytes, values), strict=True)
            ]
        ours = moved(plan, sizes, reads)
        best = optimum(plan, sizes, reads)
        result[kind] = Ratio(name, ours, best if math.isnan(best) else min(ours, best))
    return result


def moved(plan: Plan, sizes: Sequence[int], reads: Sequence[int]) -> float:
    """Bytes that a plan moves, each value once per place that needs it."""
    places = plan.placement.places
    pairs: set[tuple[int, str]] = set()
    total = 0
    for position, task in enumerate(plan.graph.tasks):
        place = places[position]
        if place is None:
            continue
        pairs.update((d, place) for d in task.dependencies if places[d] not in (None, place))
        if task.sources and task.sources[0].site != place:
            total += reads[position]
    pairs.update((p, HOME) for p in plan.graph.outputs.values() if places[p] not in (None, HOME))
    return total + sum(sizes[position] for position, _ in pairs)


def optimum(
    plan: Plan, sizes: Sequence[int], reads: Sequence[int], seconds: float = SECONDS
) -> float:
    """Fewest bytes that any placement moves, or a bound below it."""
    graph = plan.graph
    where = origins(graph, plan.facts)
    places = [*sorted(plan.facts), HOME]
    home = places.index(HOME)
    # Variables: task at place, then value brought to place.
    at: dict[tuple[int, int], int] = {}
    brought: dict[tuple[int, int], int] = {}
    costs: list[float] = []
    needs = graph.dependents()
    wanted = set(graph.outputs.values())
    fixed = [position for position, found in enumerate(where) if found]
    for position in fixed:
        task = graph.tasks[position]
        allowed = range(len(places)) if task.program is not None else (home,)
        for place in allowed:
            site = task.sources[0].site if task.sources else None
            if site is not None and place != home and places[place] != site:
                continue
            at[position, place] = len(costs)
            costs.append(float(reads[position]) if place == home else 0.0)
    first = len(costs)
    for position in fixed:
        if not needs[position] and position not in wanted:
            continue
        for place in range(len(places)):
            brought[position, place] = len(costs)
            costs.append(float(sizes[position]))
    rows: list[tuple[dict[int, float], float, float]] = []
    for position in fixed:
        one = {at[position, place]: 1.0 for place in range(len(places)) if (position, place) in at}
        rows.append((one, 1.0, 1.0))
        for place in range(len(places)):
            if (position, place) not in brought:
                continue
            there = {brought[position, place]: 1.0}
            if (position, place) in at:
                there[at[position, place]] = 1.0
            for consumer in needs[position]:
                if (consumer, place) in at:
                    rows.append(({**there, at[consumer, place]: -1.0}, 0.0, np.inf))
            if position in wanted and place == home:
                rows.append((there, 1.0, np.inf))
    if not costs or not rows:
        return 0.0
    entries = [(r, column, v) for r, (row, _, _) in enumerate(rows) for column, v in row.items()]
    i, j, v = zip(*entries, strict=True)
    matrix = coo_array((v, (i, j)), shape=(len(rows), len(costs))).tocsr()
    scale = max(max(costs), 1.0)
    limits = LinearConstraint(matrix, [low for _, low, _ in rows], [high for *_, high in rows])
    best = None
    # Without whole numbers it is a bound, too, and soon found.
    for whole in (0, 1):
        answer = milp(
            np.array(costs) / scale,
            constraints=limits,
            integrality=np.array([whole] * first + [0] * (len(costs) - first)),
            bounds=Bounds(0, 1),
            options={"time_limit": seconds, "mip_rel_gap": 0.01},
        )
        bound = answer.fun if not whole else answer.mip_dual_bound
        # Zero says nothing where tasks may be split, or the search was broken off.
        if bound is not None and (bound > 0 or (whole and answer.status == 0)):
            best = max(best or 0.0, bound * scale)
    # Neither an optimum nor a bound in the time there was: nothing to hold a plan against.
    return math.nan if best is None else best
