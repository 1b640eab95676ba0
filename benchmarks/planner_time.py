"""Time to plan, against the number of tasks and of sites.

The expression is an anomaly of a mean and its variance over everything: elementwise
layers, reductions that are split by site, and tasks in which sites meet.  Time per task
is to stay what it is for small graphs.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import dask.array as da
import numpy as np

from benchmarks.result import Result
from federated_dask.collector import without_collection
from federated_dask.planner.plan import make_plan
from federated_dask.planner.sources import SiteFacts, SourceReference
from federated_dask.protocol.operations import operation_table

TASKS = (1_000, 10_000, 100_000, 1_000_000)
SITES = (2, 10, 100, 1_000)
TASKS_WITH_SITES = 20_000
TASKS_PER_CHUNK = 5
GROWTH = 2.0
"""Times as long per task as for the smallest graph, at most."""


class Stored:
    """What the planner sees of a stored variable."""

    egress_limit = None

    def __init__(self, site: str, length: int) -> None:
        self.source = SourceReference(site, "data", "1", "x")
        self.shape, self.dtype, self.ndim = (length, 8, 8), np.dtype("f8"), 3

    def __getitem__(self, index: Any) -> np.ndarray:
        raise AssertionError("nothing is read here")


def run(every: int = 1) -> list[Result]:
    make_plan_of(100, 2)
    results = []
    first = None
    for wanted in TASKS:
        if wanted // every < TASKS[0]:
            continue
        tasks, seconds = make_plan_of(wanted // every, 2)
        micros = seconds / tasks * 1e6
        target = None if first is None else GROWTH * first
        first = micros if first is None else first
        results.append(Result(f"{tasks:,} tasks, 2 sites: per task", micros, " µs", target))
    first = None
    for sites in SITES:
        tasks, seconds = make_plan_of(TASKS_WITH_SITES // every, sites)
        micros = seconds / tasks * 1e6
        results.append(Result(f"{tasks:,} tasks, {sites:,} sites: per task", micros, " µs"))
    return results


def make_plan_of(tasks: int, sites: int) -> tuple[int, float]:
    """Plan once; give the tasks of the graph and the seconds."""
    names = [f"s{number}" for number in range(sites)]
    everything = frozenset(operation_table().names)
    peers = frozenset(names)
    facts = {name: SiteFacts(name, everything, peers - {name}) for name in names}
    chunks = max(1, tasks // TASKS_PER_CHUNK // sites)
    pieces = [
        da.from_array(
            Stored(name, chunks), chunks=(1, 8, 8), meta=np.empty((0, 0, 0)), name=f"stored-{name}"
        )
        for name in names
    ]
    joined = da.concatenate(pieces)
    expression = ((joined - joined.mean(axis=0)) ** 2).mean()
    graph, keys = expression.dask, expression.__dask_keys__()
    gc.collect()
    started = time.perf_counter()
    plan = without_collection(lambda: make_plan(graph, keys, facts, operation_table()))
    return len(plan.graph.tasks), time.perf_counter() - started
