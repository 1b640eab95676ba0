"""A running job: its futures, and its results as they become ready.

Results are gathered a few at a time, straight from the workers, so that memory
stays bounded however many there are; each becomes one frame.  What may leave of
a dataset is counted before its bytes go out.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import pickle
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import dask.base
import dask.config
import msgspec
import numpy as np
from dask._expr import LLGExpr
from distributed.client import Client, Future, as_completed

from federated_dask.collector import without_collection
from federated_dask.errors import Reason, RequestRefused, TaskFailed
from federated_dask.protocol.frames import Buffer, encode_frame
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import Failure, Output, Result
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.values import encode_value
from site_plugins.endpoint.byte_budgets import Room
from site_plugins.endpoint.failures import JobFailed, failure_of_task
from site_plugins.endpoint.gateway import Gateway
from site_plugins.endpoint.peering import Peering
from site_plugins.endpoint.release import Release
from site_plugins.endpoint.tasks import BuiltGraph
from site_plugins.fair_share import OWNER_ANNOTATION
from site_plugins.scheduler_plugin import JOB_ANNOTATION

if TYPE_CHECKING:
    from dask._task_spec import GraphNode
    from dask.typing import Key

__all__ = [
    "SMALL_GRAPH",
    "Job",
    "JobSettings",
    "Pieces",
    "Pull",
    "Run",
]

logger = logging.getLogger(__name__)

Pieces: TypeAlias = list[Buffer]
"""A frame, as pieces to write one after the other."""

SMALL_GRAPH = 500
"""Tasks up to which a graph is built in the event loop: handing it to a thread takes longer."""
SMALL_RESULT = 2**18
"""Bytes up to which a result is encoded in the event loop."""
GATHERED_BYTES = 32 * 2**20
"""Bytes of results that are fetched from the workers at once, if there is more than one."""
GATHERED_RESULTS = 256
PULLS_AT_ONCE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSettings:
    """Caps and intervals of the jobs of a site."""

    limits: Limits = dataclasses.field(default_factory=Limits)
    heartbeat_seconds: float = 5.0
    """Longest silence while a job goes on."""
    keeps_results: bool = False
    """Whether the scheduler keeps results of finished jobs for a while."""
    progress_seconds: float = 0.5
    """Shortest time between two reports of progress."""
    task_bytes: int | None = None
    """Bytes that the result of one operation may take; by default half of a worker's memory."""
    read_seconds: float = 600.0
    """Longest time that a single read or held result may take."""


@dataclasses.dataclass(frozen=True)
class Pull:
    """A value to be fetched from a peer, and the key under which tasks expect it."""

    key: Key
    peer: str
    lease: str
    output: int
    delegation: str


@dataclasses.dataclass(kw_only=True)
class Job:
    """A job that passed admission."""

    name: str
    owner: str
    label: str
    built: BuiltGraph
    outputs: tuple[Output, ...]
    release: Release
    """Lets its results out."""
    reserve: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Dataset to the bytes that its results are expected to have."""
    pulls: Sequence[Pull] = ()
    """Values to be fetched from peers before the tasks are submitted."""
    room: Room = dataclasses.field(default_factory=Room)
    """Memory of the endpoint that its submission takes, until the cluster has the tasks."""


class Run:
    """The futures of a running job."""

    def __init__(
        self, gateway: Gateway, table: OperationTable, settings: JobSettings, job: Job
    ) -> None:
        self.gateway = gateway
        self.table = table
        self.limits = settings.limits
        self.job = job
        self.futures: dict[Key, Future[Any]] = {}
        self.pulled: dict[Key, Future[Any]] = {}
        self.submitted = False
        self.ended = False

    async def pull(self, peering: Peering | None) -> dict[str, int]:
        """Fetch the values that peers hold and put them on the workers.

        Returns
        -------
        dict
            Peer to the bytes that were fetched from it.
        """
        pulled: dict[str, int] = {}
        gate = asyncio.Semaphore(PULLS_AT_ONCE)

        async def one(pull: Pull, peering: Peering) -> None:
            async with gate:
                found = await peering.pull(
                    pull.peer,
                    pull.lease,
                    pull.output,
                    pull.delegation,
                    limits=self.limits,
                    table=self.table,
                )
                # A dict keeps its keys; anything else would be scattered item by item.
                client: Client = self.gateway.client
                scattering = asyncio.ensure_future(
                    client.scatter({pull.key: found.value}, direct=True)
                )
                scattering.add_done_callback(self._take)
                # Given up halfway, it would leave a value that nobody lets go of.
                await asyncio.shield(scattering)
            pulled[pull.peer] = pulled.get(pull.peer, 0) + found.nbytes

        if self.job.pulls and peering is not None:
            try:
                async with asyncio.TaskGroup() as group:
                    for pull in self.job.pulls:
                        group.create_task(one(pull, peering))
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
        return pulled

    def _take(self, scattering: asyncio.Future[dict[Key, Future[Any]]]) -> None:
        if scattering.cancelled() or scattering.exception() is not None:
            return
        self.pulled.update(scattering.result())
        if self.ended:
            self.release()

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
            pickled = _pickled(tasks, built.resources)
        else:
            pickled = await asyncio.to_thread(
                without_collection, lambda: _pickled(tasks, built.resources)
            )
        client: Client = self.gateway.client
        # The size was checked by admission; the warning is for people at a prompt.
        settings = {"distributed.admin.large-graph-warning-threshold": "1 PiB"}
        with (
            dask.config.set(settings),
            dask.base.annotate(**{JOB_ANNOTATION: self.job.name, OWNER_ANNOTATION: self.job.owner}),
        ):
            futures = client.get(_Pickled(pickled), wanted, sync=False)
        self.futures = dict(zip(wanted, futures, strict=True))
        # Only how many there are is asked from now on; values that were sent stand in them.
        gone = cast("dict[Key, GraphNode]", dict.fromkeys(tasks))
        self.job.built = dataclasses.replace(built, tasks=gone)
        await self.job.room.aclose()

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
                    raise JobFailed(await self._failure(one))
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
                # The size of what derives from data with a budget is not told for nothing.
                label = self.job.built.labels[self.job.built.keys.index(key)]
                much = "more" if self.job.release.limited(label) else f"{size} bytes"
                raise RequestRefused(
                    f"A result has {much}; this site releases {self.limits.buffer_bytes} bytes "
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
                raise JobFailed(await self._failure(failed[0])) from None
            raise JobFailed(self._described(error, self.job.built.keys.index(keys[0]))) from None
        values.reverse()
        for key in keys:
            yield key, values.pop()

    async def _released(self, position: int, name: int, value: object) -> Pieces:
        label = self.job.built.labels[position]
        withheld = self.job.release.withheld(label)

        def encode() -> tuple[Result, list[Buffer], int]:
            buffers: list[Buffer] = []
            encoded = encode_value(value, buffers, resolver=self.table)
            size = sum(memoryview(buffer).nbytes for buffer in buffers)
            if withheld:
                # Shapes and what stands in the tree itself tell of the data too.
                size += len(msgspec.msgpack.encode(encoded))
            return Result(output=name, value=encoded), buffers, size

        is_small = _is_small(value)
        try:
            message, buffers, size = encode() if is_small else await asyncio.to_thread(encode)
        except TypeError as error:
            raise TaskFailed(
                f"A result cannot be sent: {error}.",
                site=self.gateway.site,
                hint="Convert it to a plain type in the expression, for example by `astype`.",
            ) from None
        await self.job.release.charge(label, size)
        if is_small:
            return encode_frame(message, buffers)
        return await asyncio.to_thread(encode_frame, message, buffers)

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
            withheld=job.release.withheld(job.built.labels[position]),
        )
        logger.info(
            "A task of job %s (%r) failed: %s", job.name, job.label, type(error).__qualname__
        )
        return failure

    def release(self) -> None:
        """Let go of everything; what nobody else wants is cancelled."""
        self.ended = True
        for future in (*self.futures.values(), *self.pulled.values()):
            future.release()
        self.futures, self.pulled = {}, {}


def _is_small(value: object) -> bool:
    """Whether a value is encoded soon: numbers, few of them."""
    if isinstance(value, np.ndarray | np.generic):
        return not value.dtype.hasobject and value.nbytes <= SMALL_RESULT
    return value is None or isinstance(value, bool | int | float)


class _Pickled:
    """A graph that was pickled already, maybe in a thread; the scheduler finds an expression."""

    def __init__(self, tasks: bytes) -> None:
        self.tasks = tasks

    def __reduce__(self) -> tuple[Any, ...]:
        return (_expression, (self.tasks,))


def _expression(tasks: bytes) -> LLGExpr:
    graph, resources = pickle.loads(tasks)  # noqa: S301
    # Without a token of ours, Dask would make one from all tasks, which takes longer than all else.
    token = secrets.token_hex(16)
    if not resources:
        return LLGExpr(graph, _determ_token=token)
    return _WithResources(graph, resources, _determ_token=token)  # type: ignore[no-untyped-call]


class _WithResources(LLGExpr):
    """A graph of which some tasks ask for resources."""

    _parameters = ["dsk", "resources"]  # noqa: RUF012

    def __dask_annotations__(self) -> dict[str, dict[Key, Any]]:
        resources: dict[Key, Any] = self.operand("resources")  # type: ignore[no-untyped-call]
        return {"resources": resources}


def _pickled(tasks: Mapping[Key, GraphNode], resources: Mapping[Key, Mapping[str, float]]) -> bytes:
    from distributed.protocol.pickle import dumps

    pickled: bytes = dumps((dict(tasks), dict(resources)))
    return pickled
