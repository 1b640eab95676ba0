"""What graphs cost on the wire: time and bytes per task, and against a native `Client`.

*Encode* is from a plan to the bytes of a message, *decode* from these to a graph that
passed the checks of an endpoint.  A native Client and scheduler get the same graph with
tasks that do next to nothing, so that what is measured is the graph, not the work.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

from benchmarks.planner_time import Stored
from benchmarks.result import Result
from benchmarks.simulated import chosen, laid, quiet
from federated_dask.client.collector import without_collection
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
    chunks = tasks // 2
    array = da.from_array(Stored("north", chunks), chunks=(1, 8, 8), meta=np.empty((0, 0, 0)))
    expression = _layers(array)
    facts = {"north": SiteFacts("north", frozenset(TABLE.names))}
    graph, keys = expression.dask, expression.__dask_keys__()
    planning, plan = timed(lambda: make_plan(graph, keys, facts, TABLE), repeats=1)
    [[job]] = [jobs for jobs in plan.jobs if jobs]
    count = len(job.tasks)
    encoding, sent = timed(lambda: message(plan, job), repeats=1)
    decoding, _ = timed(lambda: accept(sent), repeats=1)
    native = _native(tasks)
    ours = planning + encoding + decoding
    title = f"{count:,} tasks"
    return [
        Result(f"{title}: encode per task", encoding / count * 1e6, " µs", ENCODE),
        Result(f"{title}: decode and check per task", decoding / count * 1e6, " µs", DECODE),
        Result(f"{title}: bytes per task", len(sent) / count, " B", BYTES),
        Result(f"{title}: plan", planning, " s"),
        Result(f"{title}: plan + encode + decode", ours, " s"),
        Result(f"{title}: native Client and scheduler", native, " s"),
        Result(f"{title}: ours ÷ native", 100 * ours / native, " %", NATIVE),
    ]


def _layers(array: da.Array) -> da.Array:
    """Two tasks per chunk that are not one: a slice of each chunk, reduced."""
    return array.sum(axis=(1, 2), split_every=4)


def _native(tasks: int) -> float:
    """Seconds for a native Client, its scheduler and a worker to run as many trivial tasks."""
    graph: dict[Any, Any] = {("x", i): (int, i) for i in range(tasks // 2)}
    graph.update({("y", i): (int, ("x", i)) for i in range(tasks // 2)})
    graph["all"] = (len, [("y", i) for i in range(tasks // 2)])
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.submit(int).result()
        started = time.perf_counter()
        client.get(graph, "all")
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
