"""What graphs cost on the wire: time and bytes per task, and against a native `Client`.

*Encode* is from a plan to the bytes of a message, *decode* from these to a graph that
passed the checks of an endpoint.  A native Client gets the same graph, task by task and
dependency by dependency, with tasks that do nothing: so what is measured is the graph,
not the work.  It takes minutes for the whole graph, so it is timed with shares of it; that
it takes as long per task with each of them says that it would with the whole.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import dask.array as da
import numpy as np
from dask._task_spec import Task, TaskRef
from distributed import Client, LocalCluster, wait

from benchmarks.planner_time import Stored
from benchmarks.result import Result
from benchmarks.simulated import chosen, laid, quiet
from federated_dask.collector import without_collection
from federated_dask.planner.graph import PlanGraph
from federated_dask.planner.plan import Job, Plan, make_plan
from federated_dask.planner.sources import SiteFacts
from federated_dask.protocol.frames import FrameDecoder, decode_message, encode_frame
from federated_dask.protocol.graph import check_graph
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import JobSubmission
from federated_dask.protocol.operations import operation_table

T = TypeVar("T")

TABLE = operation_table()
LARGE = 100_000
ENCODE, DECODE, BYTES, NATIVE = 10.0, 15.0, 20.0, 25.0
NATIVE_SHARES = (10, 4)
"""Of the large graph, one part in so many is run by a native Client."""
SMALLEST_JOB = 50
"""Tasks from which a job of the battery counts: a message of one task is all header."""


def run(every: int = 1) -> list[Result]:
    return [*_battery(every), *_large(LARGE // every)]


def _battery(every: int) -> list[Result]:
    # As many chunks as a small study has, so that there is something to encode.
    simulation = laid(2, months=600)
    encode, decode, sizes, tasks = [], [], [], 0
    for _, expression in chosen(every).items():
        with quiet():
            plan = simulation.federation.plan(simulation.evaluate(expression))
        for job in (job for stage in plan.jobs for job in stage):
            if len(job.tasks) < SMALLEST_JOB or job.values or job.earlier or job.pulled:
                continue
            encoding, sent = timed(lambda plan=plan, job=job: message(plan, job))
            decoding, _ = timed(lambda sent=sent: accept(sent))
            encode.append(encoding / len(job.tasks) * 1e6)
            decode.append(decoding / len(job.tasks) * 1e6)
            sizes.append(len(sent) / len(job.tasks))
            tasks += len(job.tasks)
    return [
        Result("battery, 2 sites × 600 months: jobs", len(sizes)),
        Result("battery: tasks", tasks),
        Result("battery: encode per task, median", statistics.median(encode), " µs", ENCODE),
        Result(
            "battery: decode and check per task, median", statistics.median(decode), " µs", DECODE
        ),
        Result("battery: bytes per task, median", statistics.median(sizes), " B", BYTES),
    ]


def _large(tasks: int) -> list[Result]:
    planning, plan = timed(lambda: _plan(tasks), repeats=1)
    [[job]] = [jobs for jobs in plan.jobs if jobs]
    count = len(job.tasks)
    encoding, sent = timed(lambda: message(plan, job), repeats=1)
    decoding, _ = timed(lambda: accept(sent), repeats=1)
    ours = (planning + encoding + decoding) / count * 1e6
    title = f"{count:,} tasks"
    results = [
        Result(f"{title}: encode per task", encoding / count * 1e6, " µs", ENCODE),
        Result(f"{title}: decode and check per task", decoding / count * 1e6, " µs", DECODE),
        Result(f"{title}: bytes per task", len(sent) / count, " B", BYTES),
        Result(f"{title}: plan per task", planning / count * 1e6, " µs"),
        Result(f"{title}: plan + encode + decode per task", ours, " µs"),
    ]
    for share in NATIVE_SHARES:
        graph = _plan(tasks // share).graph
        native = _native(graph) / len(graph.tasks) * 1e6
        title = f"native Client, scheduler and 2 workers, {len(graph.tasks):,} tasks"
        results.append(Result(f"{title}: per task", native, " µs"))
    return [*results, Result("per task: ours ÷ native", 100 * ours / native, " %", NATIVE)]


def _plan(tasks: int) -> Plan:
    """Plan two tasks per chunk that are not one: a slice of each chunk, reduced."""
    chunks = max(1, tasks // 2)
    array = da.from_array(Stored("north", chunks), chunks=(1, 8, 8), meta=np.empty((0, 0, 0)))
    expression = array.sum(axis=(1, 2), split_every=4)
    facts = {"north": SiteFacts("north", frozenset(TABLE.names))}
    return make_plan(expression.dask, expression.__dask_keys__(), facts, TABLE)


def nothing(*_: object) -> None:
    """Do what the tasks of the native graph do."""


def _native(graph: PlanGraph) -> float:
    """Seconds that a native Client, its scheduler and workers take for the tasks of a plan."""
    names = [f"task-{position}" for position in range(len(graph.tasks))]
    nodes = {
        name: Task(name, nothing, *(TaskRef(names[below]) for below in task.dependencies))
        for name, task in zip(names, graph.tasks, strict=True)
    }
    wanted = [names[position] for position in graph.outputs.values()]
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        wait(client.map(nothing, range(4)))
        started = time.perf_counter()
        # Results are waited for, not fetched: there is one for each chunk.
        wait(client.get(nodes, wanted, sync=False))
        return time.perf_counter() - started


def message(plan: Plan, job: Job) -> bytes:
    submission, buffers = plan.submission(job, {}, {})
    return b"".join(bytes(piece) for piece in encode_frame(submission, buffers))


def accept(sent: bytes) -> Any:
    limits = Limits()
    [frame] = FrameDecoder(limits).feed(sent)
    return check_graph(decode_message(frame, JobSubmission).graph, TABLE, limits)


def timed(function: Callable[[], T], repeats: int = 3) -> tuple[float, T]:
    """Seconds of the fastest of some calls, and what it gave back."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        result = without_collection(function)
        best = min(best, time.perf_counter() - started)
    return best, result
