"""Jobs: one site's share of a plan, from its submission to the last event.

::

    submission ─► admit ─► Job ─► events ──► Accepted, Progress …, Result …, Finished
                    │               │  ▲                                 └─ or Failure
            errors of ours       futures │ gathered a few at a time
                                    ▼  │
                              distributed.Client

What a job computes lives as long as somebody reads its events; only outputs
that are to be held outlive it, under a lease.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import pickle
import secrets
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import dask.base
import dask.config
import msgspec
from dask._expr import LLGExpr
from distributed.client import Client, Future, as_completed

from federated_dask.errors import (
    FederatedError,
    NotPermitted,
    Reason,
    RequestRefused,
    SiteUnavailable,
    TaskFailed,
)
from federated_dask.protocol.frames import Buffer, encode_frame
from federated_dask.protocol.graph import CheckedGraph, check_graph
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import (
    Accepted,
    Egress,
    Failure,
    Finished,
    Heartbeat,
    JobEvent,
    JobSubmission,
    Output,
    Progress,
    Result,
)
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.values import encode_value
from site_plugins.datasets import StoredVariable
from site_plugins.endpoint.authentication import owner_of
from site_plugins.endpoint.failures import failure_of_task
from site_plugins.endpoint.gateway import Gateway
from site_plugins.endpoint.tasks import BuiltGraph, build_graph, read_task
from site_plugins.scheduler_plugin import JOB_ANNOTATION, LeasedOutput
from site_plugins.tokens import Principal

if TYPE_CHECKING:
    from dask._task_spec import GraphNode
    from dask.typing import Key

__all__ = ["Job", "JobFailed", "JobRunner", "JobSettings", "internal_failure"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

Pieces: TypeAlias = list[Buffer]
"""A frame, as pieces to write one after the other."""

SMALL_GRAPH = 500
"""Tasks up to which a graph is built in the event loop: handing it to a thread takes longer."""
SMALL_RESULT = 2**18
"""Bytes up to which a result is encoded in the event loop."""
GATHERED_BYTES = 32 * 2**20
"""Bytes of results that are fetched from the workers at once, if there is more than one."""
GATHERED_RESULTS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSettings:
    """Caps and intervals of the jobs of a site."""

    limits: Limits = dataclasses.field(default_factory=Limits)
    heartbeat_seconds: float = 5.0
    """Longest silence while a job goes on."""
    progress_seconds: float = 0.5
    """Shortest time between two reports of progress."""


@dataclasses.dataclass(kw_only=True)
class Job:
    """A job that passed admission."""

    name: str
    owner: str
    label: str
    built: BuiltGraph
    outputs: tuple[Output, ...]
    egress: Mapping[str, Egress]
    """Of every dataset that the job's outputs derive from."""
    released: dict[str, int] = dataclasses.field(default_factory=dict)
    """Bytes released so far, by dataset whose egress has a limit."""


class JobRunner:
    """Admits and runs jobs.

    Parameters
    ----------
    gateway : Gateway
        The way to the site's cluster.
    table : OperationTable
        The operations that the site has.
    settings : JobSettings, optional
        Caps and intervals.
    """

    def __init__(
        self, gateway: Gateway, table: OperationTable, settings: JobSettings | None = None
    ) -> None:
        self.gateway = gateway
        self.table = table
        self.settings = settings or JobSettings()

    async def admit(
        self, submission: JobSubmission, buffers: list[bytearray], principal: Principal
    ) -> Job:
        """Check a submission and build its tasks.

        Raises
        ------
        RequestRefused, NotPermitted, NotFound, VersionChanged, DatasetUnreadable
            Whatever is wrong with it.
        """
        limits = self.settings.limits
        graph = submission.graph
        if len(submission.outputs) > limits.outputs:
            raise RequestRefused(
                f"The job has {len(submission.outputs)} outputs; this site accepts "
                f"{limits.outputs}.",
                reason=Reason.LIMIT_EXCEEDED,
                hint="Use larger chunks, or compute the expression in parts.",
            )
        is_small = graph.tasks <= SMALL_GRAPH
        arguments = (graph, self.table, limits)
        checked: CheckedGraph = (
            check_graph(*arguments)
            if is_small
            else await asyncio.to_thread(check_graph, *arguments)
        )
        sources = [
            await self._source(source.dataset, source.version, source.variable)
            for source in graph.sources
        ]
        owner = owner_of(principal)
        held = await self._held([(item.lease, item.output) for item in graph.held], owner)

        def build() -> BuiltGraph:
            return build_graph(
                checked,
                [output.task for output in submission.outputs],
                sources=sources,
                buffers=buffers,
                held=held,
                table=self.table,
            )

        built = build() if is_small else await asyncio.to_thread(_without_collection, build)
        return await self._job(built, submission.outputs, owner, submission.label)

    async def _job(
        self, built: BuiltGraph, outputs: tuple[Output, ...], owner: str, label: str
    ) -> Job:
        names = frozenset().union(*built.labels)
        return Job(
            name=f"job-{secrets.token_hex(8)}",
            owner=owner,
            label=label,
            built=built,
            outputs=outputs,
            egress={name: await self._egress(name) for name in sorted(names)},
        )

    async def _source(self, name: str, version: str, variable: str) -> StoredVariable:
        dataset = await self.gateway.dataset(name)
        await self.gateway.require_version(dataset, version)
        return StoredVariable(dataset, version, variable)

    async def _egress(self, name: str) -> Egress:
        # A held result may derive from a dataset that was withdrawn since: unknown means refuse.
        dataset = await self.gateway.dataset(name)
        if dataset.egress == "open":
            return Egress()
        description, _ = await self.gateway.description(dataset)
        return description.egress

    async def _held(self, asked: Sequence[tuple[str, int]], owner: str) -> list[LeasedOutput]:
        leases = {lease: await self.gateway.held(lease, owner) for lease, _ in dict(asked).items()}
        try:
            return [leases[lease][output] for lease, output in asked]
        except KeyError:
            raise self.gateway.lost() from None

    async def read(
        self, variable: StoredVariable, index: tuple[Any, ...], principal: Principal
    ) -> Pieces:
        """Read a part of a stored variable: one frame with the result."""
        key, task = read_task(variable, index)
        label = frozenset({variable.dataset.name})
        built = BuiltGraph(tasks={key: task}, keys=[key], labels=[label])
        what = f"{variable.dataset.name}/{variable.variable}"
        return await self._single(
            await self._job(built, (Output(task=0),), owner_of(principal), what)
        )

    async def fetch(self, lease: str, output: int, principal: Principal) -> Pieces:
        """Give one held output: one frame with the result."""
        owner = owner_of(principal)
        [held] = await self._held([(lease, output)], owner)
        built = BuiltGraph(tasks={}, keys=[held.key], labels=[held.label])
        return await self._single(
            await self._job(built, (Output(task=0),), owner, "held result"), output
        )

    async def _single(self, job: Job, position: int = 0) -> Pieces:
        run = _Run(self, job)
        try:
            async for _, pieces in run.results(position):
                return pieces
            raise self.gateway.lost()
        except _TaskError as error:
            raise JobFailed(error.failure) from None
        finally:
            run.release()
            await self._closed(job)

    async def events(self, job: Job) -> AsyncGenerator[Pieces, None]:
        """Run a job; give its events as frames.

        The job is cancelled when the generator is closed before its end.
        """
        events: asyncio.Queue[Pieces | None] = asyncio.Queue(maxsize=2)
        running = asyncio.create_task(self._run_to_end(job, events))
        last_beat = last_look = time.monotonic()
        step = min(self.settings.heartbeat_seconds, self.settings.progress_seconds)
        seen = 0
        try:
            while True:
                try:
                    pieces = await asyncio.wait_for(events.get(), step)
                except TimeoutError:
                    pieces = []
                if pieces is None:
                    return
                now = time.monotonic()
                if not pieces and now - last_look >= self.settings.progress_seconds:
                    last_look = now
                    progress = await self._progress(job)
                    if progress is not None and progress.done != seen:
                        seen, pieces = progress.done, encode_frame(progress)
                if not pieces and now - last_beat >= self.settings.heartbeat_seconds:
                    pieces = encode_frame(Heartbeat())
                if pieces:
                    last_beat = now
                    yield pieces
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _progress(self, job: Job) -> Progress | None:
        try:
            account = await self.gateway.account(job.name)
        except FederatedError:
            # The job itself will tell, if the scheduler is gone.
            return None
        total = max(len(job.built.tasks), account.done)
        return Progress(done=account.done, total=total)

    async def _run_to_end(self, job: Job, events: asyncio.Queue[Pieces | None]) -> None:
        run = _Run(self, job)
        try:
            last = await self._run(job, run, events)
        except _TaskError as error:
            last = error.failure
        except FederatedError as error:
            error.site = error.site or self.gateway.site
            last = Failure.from_error(error)
        except Exception:
            # The boundary to the client: it is told no more than that something went wrong.
            logger.exception("Job %s of %s failed", job.name, job.owner.partition("\n")[2])
            last = internal_failure(self.gateway.site)
        finally:
            run.release()
            account = await self._closed(job)
        if isinstance(last, Finished):
            last = msgspec.structs.replace(last, compute_seconds=account[0], read_bytes=account[1])
        await events.put(encode_frame(last))
        await events.put(None)

    async def _closed(self, job: Job) -> tuple[float, int]:
        if not job.built.tasks:
            return 0.0, 0
        try:
            account = await self.gateway.account(job.name, close=True)
        except FederatedError:
            return 0.0, 0
        return account.compute_seconds, account.read_bytes

    async def _run(self, job: Job, run: _Run, events: asyncio.Queue[Pieces | None]) -> JobEvent:
        await run.submit()
        await events.put(encode_frame(Accepted(job=job.name, tasks=len(job.built.tasks))))
        async for _, pieces in run.results():
            await events.put(pieces)
        outputs = {
            position: LeasedOutput(key=job.built.keys[position], label=job.built.labels[position])
            for position, output in enumerate(job.outputs)
            if output.hold
        }
        lease = None
        if outputs:
            lease = secrets.token_hex(16)
            await self.gateway.hold(lease, job.owner, outputs)
        return Finished(lease=lease)


class _TaskError(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class JobFailed(TaskFailed):
    """A task's failure on its way to a reply that is no stream of events."""

    def __init__(self, failure: Failure) -> None:
        error = failure.to_error()
        self.reasons = type(error).reasons  # type: ignore[misc]
        super().__init__(error.message, reason=error.reason, site=error.site, hint=error.hint)
        self.failure = failure


def internal_failure(site: str) -> Failure:
    """Say that something went wrong at the site which is not the client's to know."""
    return Failure.from_error(
        SiteUnavailable(
            "Something went wrong inside of the site.",
            reason=Reason.INTERNAL,
            site=site,
            hint="Tell the site's operator when it happened, who finds it in the site's log.",
        )
    )


class _Run:
    """The futures of a running job."""

    def __init__(self, runner: JobRunner, job: Job) -> None:
        self.gateway = runner.gateway
        self.table = runner.table
        self.limits = runner.settings.limits
        self.job = job
        self.futures: dict[Key, Future[Any]] = {}
        self.submitted = False

    async def submit(self) -> None:
        """Hand the tasks to the scheduler; outputs that it has already are wanted as they are."""
        self.submitted = True
        built = self.job.built
        wanted = list(dict.fromkeys(built.keys))
        tasks = built.tasks
        if not tasks:
            self.futures = {key: self.gateway.claim(key) for key in wanted}
            return
        is_small = len(tasks) <= SMALL_GRAPH
        if is_small:
            pickled = _pickled(tasks)
        else:
            pickled = await asyncio.to_thread(_without_collection, lambda: _pickled(tasks))
        client: Client = self.gateway.client
        # The size was checked by admission; the warning is for people at a prompt.
        settings = {"distributed.admin.large-graph-warning-threshold": "1 PiB"}
        with dask.config.set(settings), dask.base.annotate(**{JOB_ANNOTATION: self.job.name}):
            futures = client.get(_Pickled(pickled), wanted, sync=False)
        self.futures = dict(zip(wanted, futures, strict=True))

    async def results(self, first: int = 0) -> AsyncIterator[tuple[int, Pieces]]:
        """Give released outputs as they are ready, each as a frame; end when all are done."""
        if not self.submitted:
            await self.submit()
        job = self.job
        positions: dict[Key, list[int]] = {}
        for position, key in enumerate(job.built.keys):
            if job.outputs[position].release:
                positions.setdefault(key, []).append(position)
        done = as_completed(list(self.futures.values()), loop=self.gateway.client.loop)
        async for future in done:
            ready = [future, *done.next_batch(block=False)]
            for one in ready:
                if one.status != "finished":
                    raise _TaskError(await self._failure(one))
            keys = [one.key for one in ready if one.key in positions]
            async for key, value in self._gathered(keys):
                for position in positions[key]:
                    yield position, await self._released(position, first + position, value)

    async def _gathered(self, keys: list[Key]) -> AsyncIterator[tuple[Key, Any]]:
        sizes = await self.gateway.sizes(keys) if keys else {}
        batch: list[Key] = []
        total = 0
        for key in keys:
            size = sizes[key]
            if size > self.limits.buffer_bytes:
                raise RequestRefused(
                    f"A result has {size} bytes; this site releases {self.limits.buffer_bytes} "
                    "in one piece.",
                    reason=Reason.LIMIT_EXCEEDED,
                    site=self.gateway.site,
                    hint="Use smaller chunks, or reduce more before the data travels.",
                )
            if batch and (total + size > GATHERED_BYTES or len(batch) == GATHERED_RESULTS):
                async for item in self._fetched(batch):
                    yield item
                batch, total = [], 0
            batch.append(key)
            total += size
        if batch:
            async for item in self._fetched(batch):
                yield item

    async def _fetched(self, keys: list[Key]) -> AsyncIterator[tuple[Key, Any]]:
        futures = [self.futures[key] for key in keys]
        try:
            values = await self.gateway.client.gather(futures, direct=True, asynchronous=True)
        except Exception as error:
            # Whatever a result's own class raises while it is unpacked, or a worker that is lost.
            failed = [future for future in futures if future.status != "finished"]
            if failed:
                raise _TaskError(await self._failure(failed[0])) from None
            raise _TaskError(self._described(error, self.job.built.keys.index(keys[0]))) from None
        values.reverse()
        for key in keys:
            yield key, values.pop()

    async def _released(self, position: int, name: int, value: object) -> Pieces:
        buffers: list[Buffer] = []
        try:
            encoded = encode_value(value, buffers, resolver=self.table)
        except TypeError as error:
            raise TaskFailed(
                f"A result cannot be sent: {error}.",
                site=self.gateway.site,
                hint="Convert it to a plain type in the expression, for example by `astype`.",
            ) from None
        message = Result(output=name, value=encoded)
        size = sum(memoryview(buffer).nbytes for buffer in buffers)
        limited = [
            dataset
            for dataset in sorted(self.job.built.labels[position])
            if self.job.egress[dataset].tier != "open"
        ]
        if limited:
            # Shapes and what stands in the tree itself tell of the data too.
            self._charge(limited, size + len(msgspec.msgpack.encode(encoded)))
        if size <= SMALL_RESULT:
            return encode_frame(message, buffers)
        return await asyncio.to_thread(encode_frame, message, buffers)

    def _charge(self, datasets: Iterable[str], size: int) -> None:
        for dataset in datasets:
            released = self.job.released.get(dataset, 0) + size
            limit = self.job.egress[dataset].limit
            if limit is None or released > limit:
                raise NotPermitted(
                    f"The job would release {released} bytes derived from {dataset!r}; "
                    f"{limit or 0} may leave the site.",
                    reason=Reason.EXPORT_NOT_ALLOWED,
                    site=self.gateway.site,
                    hint="Reduce more before the data leaves: average over more of it.",
                )
            self.job.released[dataset] = released

    async def _failure(self, future: Future[Any]) -> Failure:
        error = await future.exception()
        trace = await future.traceback()
        if error is None:
            error = asyncio.CancelledError()
        return self._described(error, self.job.built.keys.index(future.key), trace)

    def _described(self, error: BaseException, position: int, trace: Any = None) -> Failure:
        job = self.job
        datasets = self.gateway.known_datasets()
        failure = failure_of_task(
            error,
            trace,
            site=self.gateway.site,
            datasets=datasets,
            withheld=[
                name for name in job.built.labels[position] if job.egress[name].tier != "open"
            ],
        )
        logger.info(
            "A task of job %s (%s) failed: %s", job.name, job.label, type(error).__qualname__
        )
        return failure

    def release(self) -> None:
        """Let go of everything; what nobody else wants is cancelled."""
        for future in self.futures.values():
            future.release()
        self.futures = {}


_collection = threading.Lock()


def _without_collection(function: Callable[[], T]) -> T:
    """Call a function that makes many objects and no garbage.

    Python's collector would look at all of them again and again: measured, 30 µs
    for each task of a large graph instead of 7.
    """
    # One at a time, so that none turns it on again while another runs.
    with _collection:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return function()
        finally:
            if was_enabled:
                gc.enable()


class _Pickled:
    """A graph that was pickled already, maybe in a thread; the scheduler finds an expression."""

    def __init__(self, tasks: bytes) -> None:
        self.tasks = tasks

    def __reduce__(self) -> tuple[Any, ...]:
        return (_expression, (self.tasks,))


def _expression(tasks: bytes) -> LLGExpr:
    # Without a token of ours, Dask would make one from all tasks, which takes longer than all else.
    return LLGExpr(pickle.loads(tasks), _determ_token=secrets.token_hex(16))  # noqa: S301


def _pickled(tasks: Mapping[Key, GraphNode]) -> bytes:
    from distributed.protocol.pickle import dumps

    pickled: bytes = dumps(dict(tasks))
    return pickled
