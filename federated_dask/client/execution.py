"""Running a plan: stage by stage, the jobs of a stage at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import dask.threaded
import msgspec
from dask.callbacks import Callback
from dask.system import CPU_COUNT

from federated_dask.client.connection import SiteConnection
from federated_dask.client.delegations import delegate
from federated_dask.client.first_error import first_error
from federated_dask.client.held import HeldValue, Lease
from federated_dask.client.kept_results import KeptResults
from federated_dask.client.link_counter import LinkCounter, count_links
from federated_dask.client.remote_errors import task_error
from federated_dask.client.results import announced_limit, check_result, decode_result, misbehaved
from federated_dask.client.run_record import Link, RunRecord, SiteRun
from federated_dask.errors import Reason, SiteUnavailable
from federated_dask.planner.graph import Key, home_graph
from federated_dask.planner.learning import LearntSizes
from federated_dask.planner.links import LinkCosts
from federated_dask.planner.origins import derivations
from federated_dask.planner.plan import Job, Plan
from federated_dask.planner.sizes import FRAME_BYTES, framed, is_stated_exactly, wire_size
from federated_dask.planner.sources import HOME, HeldReference
from federated_dask.protocol import graph as wire
from federated_dask.protocol.messages import (
    Accepted,
    Failure,
    Finished,
    Progress,
    Result,
)

__all__ = ["HomeCluster", "ProgressReport", "execute"]


class ProgressReport(Protocol):
    """Told how far a run is."""

    def update(self, place: str, done: int, total: int) -> None:
        """Take note that `done` of `total` tasks of the current job at a place are done."""


class HomeCluster(Protocol):
    """The researcher's own cluster: what is used of a `distributed.Client`."""

    def get(self, dsk: Any, keys: Any) -> Any:
        """Compute keys of a graph and wait for them."""


class _NoReport:
    def update(self, place: str, done: int, total: int) -> None:
        pass


async def execute(
    plan: Plan,
    connections: Mapping[str, SiteConnection],
    *,
    home: HomeCluster | None = None,
    report: ProgressReport | None = None,
    timeout: float | None = None,
    learnt: LearntSizes | None = None,
    links: LinkCosts | None = None,
    kept: KeptResults | None = None,
) -> tuple[dict[Key, Any], RunRecord]:
    """Run a plan.

    Parameters
    ----------
    plan : Plan
        From `make_plan`.
    connections : mapping of str to SiteConnection
        Site name to connection.
    home : distributed.Client, optional
        Runs what must run at home; by default threads of this process do.
    report : ProgressReport, optional
        Told how far the run is.
    timeout : float, optional
        Seconds for the whole run.
    learnt : LearntSizes, optional
        Takes note of what results took on links.
    links : LinkCosts, optional
        Takes note of how fast links are.
    kept : KeptResults, optional
        Keeps what comes home, for later plans.

    Returns
    -------
    results : dict
        Requested key to result; to `HeldValue` where the plan leaves the result
        at its site.
    record : RunRecord
        What really happened.

    Raises
    ------
    FederatedError
        If a site refuses, fails or does not answer.
    Exception
        What a task raised, where its type is known here.
    """
    run = _Run(plan, connections, home, report or _NoReport(), kept)
    started = time.perf_counter()
    # Jobs of a stage fail together once one of them does.  Outside of the limit of time: a
    # task at home may raise a TimeoutError of its own.
    with first_error():
        try:
            async with asyncio.timeout(timeout):
                with count_links() as counters:
                    await run.all_stages()
        except TimeoutError as error:
            raise SiteUnavailable(
                f"The compute did not end within {timeout:g} seconds.",
                reason=Reason.TIMED_OUT,
                hint="Allow more time with timeout=, or reduce the work; the sites were told to "
                "stop.",
            ) from error
        finally:
            run.let_go()
    seconds = time.perf_counter() - started
    if links is not None:
        for site, counter in counters.items():
            links.measure(site, HOME, counter.flowed, counter.flow_seconds)
    if learnt is not None:
        learnt.learn(plan.graph, plan.estimates, run.took)
    return run.results(), _record(run, counters, seconds)


class _Run:
    def __init__(
        self,
        plan: Plan,
        connections: Mapping[str, SiteConnection],
        home: HomeCluster | None,
        report: ProgressReport,
        kept: KeptResults | None,
    ) -> None:
        self.kept = kept
        self.plan = plan
        self.connections = connections
        self.home = home
        self.report = report
        self.values: dict[int, Any] = {
            position: found.value(plan.table) for position, found in plan.kept.items()
        }
        """Results that are at home, by position."""
        self.held: dict[int, tuple[wire.Held, Lease]] = {}
        """Results that a site holds, by position."""
        self.sites: dict[str, SiteRun] = {site: SiteRun() for site in plan.sites}
        self.exchanged: Counter[tuple[str, str]] = Counter()
        """Bytes that went from site to site, by (from, to)."""
        self.took: dict[int, int] = {}
        """Bytes that results took on a link, without their frames, by position."""
        self.last_use = _last_uses(plan)

    async def all_stages(self) -> None:
        for stage, (jobs, home) in enumerate(zip(self.plan.jobs, self.plan.home, strict=True)):
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(self.run_job(job))
                if home:
                    group.create_task(self.run_home(stage, home))
            for position in [p for p in self.values if self.last_use.get(p, stage) <= stage]:
                del self.values[position]

    async def run_job(self, job: Job) -> None:
        held = {position: self.held[position][0] for position in job.earlier}
        values = {position: self.values[position] for position in job.values}
        held.update({p: self.pulled(p, site) for p, site in job.pulled.items()})
        self.took.update(
            (p, wire_size(value, self.plan.table))
            for p, value in values.items()
            if p not in self.took
        )
        submission, buffers = self.plan.submission(job, values, held)
        delegations = await self.delegations(job)
        if delegations:
            submission = msgspec.structs.replace(submission, delegations=delegations)
        connection = self.connections[job.site]
        released = set(job.released)
        expected = {number: p for number, p in enumerate(job.outputs) if p in released}
        site = self.sites[job.site]
        async with contextlib.aclosing(connection.submit(submission, buffers)) as events:
            async for event, frame in events:
                match event:
                    case Accepted():
                        site.tasks += event.tasks
                        self.report.update(job.site, 0, event.tasks)
                    case Progress():
                        self.report.update(job.site, event.done, event.total)
                    case Result():
                        if event.output not in expected:
                            raise misbehaved(
                                job.site,
                                f"The site sent a result {event.output}, which it was "
                                "not asked for, or twice.",
                            )
                        position = expected.pop(event.output)
                        self.values[position] = self.checked(
                            job.site, position, event, list(frame.buffers)
                        )
                        self.took[position] = frame.stored_bytes - FRAME_BYTES
                    case Failure():
                        raise task_error(event)
                    case Finished():
                        site.compute_seconds += event.compute_seconds
                        site.read_bytes += event.read_bytes
                        for peer, size in event.pulled_bytes.items():
                            self.exchanged[peer, job.site] += size
                            self.take_note_of_pulls(job, peer, size)
                        self.take_lease(job, connection, event)
        if expected:
            raise misbehaved(
                job.site,
                f"The site finished without {len(expected)} of {len(job.released)} results.",
            )

    def checked(self, site: str, position: int, event: Result, received: list[bytearray]) -> Any:
        """Decode a result; refuse what the plan knows to be wrong."""
        task = self.plan.graph.tasks[position]
        # What it took before may have been compressed.
        limit = announced_limit(max(self.plan.sizes[position], self.plan.plain_sizes[position]))
        value = decode_result(event.value, received, self.plan.table, site, limit)
        if is_stated_exactly(task, self.plan.graph):
            check_result(value, task, site)
        digest = self.plan.digests[position] if position < len(self.plan.digests) else None
        if self.kept is not None and digest is not None:
            self.kept.keep(digest, event.value, received)
        return value

    def pulled(self, position: int, site: str) -> wire.Held:
        """Name a result that a peer of the receiving site holds."""
        return msgspec.structs.replace(self.held[position][0], peer=site)

    async def delegations(self, job: Job) -> dict[str, str]:
        """Have the sites that hold what a job needs let its site fetch it."""
        results = [
            (site, self.held[position][0].lease, self.held[position][0].output)
            for position, site in job.pulled.items()
        ]
        return await delegate(self.connections, job.site, results)

    def take_lease(self, job: Job, connection: SiteConnection, finished: Finished) -> None:
        name = finished.lease
        if name is None:
            return
        lease = Lease(connection, name, finished.lease_seconds)
        number = {position: output for output, position in enumerate(job.outputs)}
        for position in job.held:
            self.held[position] = wire.Held(name, number[position]), lease

    def take_note_of_pulls(self, job: Job, peer: str, size: int) -> None:
        """Share out what was fetched from a peer among the results that were fetched."""
        pulled = [position for position, site in job.pulled.items() if site == peer]
        predicted = sum(framed(self.plan.sizes[position]) for position in pulled)
        for position in pulled:
            share = framed(self.plan.sizes[position]) / predicted
            self.took[position] = int(size * share) - FRAME_BYTES

    async def run_home(self, stage: int, tasks: list[int]) -> None:
        own = set(tasks)
        graph = self.plan.graph
        needed = {below for position in tasks for below in graph.tasks[position].dependencies}
        values = {position: self.values[position] for position in needed - own}
        wanted = [p for p in tasks if self.last_use.get(p, -1) > stage]
        nodes = home_graph(graph, tasks, values)
        keys: list[Any] = [graph.tasks[position].key for position in wanted]
        if self.home is not None:
            results = await asyncio.to_thread(self.home.get, nodes, keys)
            self.values.update(zip(wanted, results, strict=True))
            return
        stop = threading.Event()
        try:
            results = await asyncio.to_thread(_run_threads, nodes, keys, self.report, stop)
        finally:
            # A thread cannot be cancelled; this one begins no further task then.
            stop.set()
        self.values.update(zip(wanted, results, strict=True))

    def results(self) -> dict[Key, Any]:
        made: dict[Key, Any] = {}
        datasets = derivations(self.plan.graph) if self.held else []
        for key, position in self.plan.graph.outputs.items():
            if position in self.values:
                made[key] = self.values[position]
                continue
            held, lease = self.held[position]
            site = lease.connection.name
            derived = tuple((each.name, each.egress_limit) for each in datasets[position])
            made[key] = HeldValue(HeldReference(site, held.lease, held.output, derived), lease)
        return made

    def let_go(self) -> None:
        """Forget leases that no result refers to, so that the sites can let go."""
        wanted = set(self.plan.graph.outputs.values())
        self.held = {p: held for p, held in self.held.items() if p in wanted and self.plan.hold}


def _last_uses(plan: Plan) -> dict[int, int]:
    """Last stage that needs a result at home or sends it from there; past the end for outputs."""
    last: dict[int, int] = {}
    for stage, (jobs, home) in enumerate(zip(plan.jobs, plan.home, strict=True)):
        for position in home:
            last.update(dict.fromkeys(plan.graph.tasks[position].dependencies, stage))
        for job in jobs:
            last.update(dict.fromkeys(job.values, stage))
    last.update(dict.fromkeys(plan.graph.outputs.values(), len(plan.jobs)))
    return last


class _ContextPool(ThreadPoolExecutor):
    """Threads that see the context variables of the submitter, so that reads are counted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(contextvars.copy_context().run, fn, *args, **kwargs)


class _Stopped(Exception):
    """Nobody waits for the tasks at home any more."""


def _run_threads(
    nodes: Mapping[Key, Any], keys: list[Any], report: ProgressReport, stop: threading.Event
) -> list[Any]:
    done = 0
    total = len(nodes)

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        report.update(HOME, done, total)

    def look(*_: object) -> None:
        if stop.is_set():
            raise _Stopped

    with _ContextPool(CPU_COUNT) as pool, Callback(pretask=look, posttask=count):
        return list(dask.threaded.get(nodes, keys, pool=pool))


def _record(run: _Run, counters: Mapping[str, LinkCounter], seconds: float) -> RunRecord:
    plan = run.plan
    predicted = plan.predicted_links()
    links = []
    for site in sorted({*plan.sites, *counters}):
        counter = counters.get(site, LinkCounter())
        for start, end, actual in (
            (HOME, site, counter.sent),
            (site, HOME, counter.received),
        ):
            links.append(Link(start, end, predicted.get((start, end), 0), actual))
    for start, end in sorted({*run.exchanged, *(link for link in predicted if HOME not in link)}):
        exchanged = run.exchanged[start, end]
        links.append(Link(start, end, predicted.get((start, end), 0), exchanged))
    return RunRecord(links, run.sites, plan.download_bytes(), seconds, len(plan.kept))
