"""Calls that outlive the request by which they began, for callers that ask again.

::

    POST ──► CallBook.start ──► WebCall ◄── status, events, result, Zarr, DELETE
                 │                 ▲
                 └─ a task that reads the events of the call

The book is in the endpoint's memory; what is large of a result stays on the cluster,
under its lease.  How many calls one principal has in it, how many bytes, and for how
long is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import msgspec
import numpy as np

from federated_dask.errors import FederatedError, NotFound, NotPermitted, Reason, RequestRefused
from federated_dask.protocol.call_messages import (
    CallProgress,
    CallStatus,
    ResultSummary,
    Returned,
)
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.messages import Failure
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.structures import (
    ArrayObject,
    DataArrayObject,
    DatasetObject,
    Object,
    Parts,
    TableObject,
    parts_of,
    put_together,
)
from federated_dask.protocol.trees import ArrayValue
from site_plugins.endpoint.authentication import owner_of
from site_plugins.endpoint.byte_budgets import Room
from site_plugins.endpoint.call_admission import Call
from site_plugins.endpoint.calls import CallRunner
from site_plugins.endpoint.failures import JobFailed, internal_failure
from site_plugins.endpoint.replies import value_in
from site_plugins.endpoint.zarr_stores import ZarrStore
from site_plugins.tokens import Principal

__all__ = ["CallBook", "WebCall"]

logger = logging.getLogger(__name__)

MOST_RUNNING = 8
"""Calls of one principal at once."""
MOST_KEPT = 100
"""Calls of one principal."""
BYTES_KEPT = 64 * 2**20
"""Of results that stand in the endpoint's memory, for one principal."""
LARGEST_RESULT = 512 * 2**20
"""Bytes of a result that is put together at the endpoint."""
FETCHED_AT_ONCE = 8


class WebCall:
    """One call in the book."""

    def __init__(self, call: Call) -> None:
        self.id = secrets.token_hex(16)
        self.owner = call.owner
        self.function = call.function.name
        self.began = time.monotonic()
        self.seconds = 0.0
        self.fraction = 0.0
        self.message = ""
        self.returned: Returned | None = None
        self.buffers: list[bytearray] = []
        self.content_bytes = 0
        """Of what `returned` is as msgpack: plain data is all of it."""
        self.failure: Failure | None = None
        self.task: asyncio.Task[None] | None = None
        self.store: ZarrStore | None = None
        self.ending: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.returned is None and self.failure is None

    @property
    def nbytes(self) -> int:
        """Bytes of the values that stand in the result."""
        return sum(map(len, self.buffers))

    @property
    def status(self) -> CallStatus:
        """How it goes."""
        status: Literal["running", "finished", "failed"] = "running"
        if not self.is_running:
            status = "failed" if self.failure is not None else "finished"
        return CallStatus(
            call=self.id,
            function=self.function,
            status=status,
            fraction=1.0 if status == "finished" else self.fraction,
            message=self.message,
            seconds=round(self.seconds or time.monotonic() - self.began, 3),
            result=None if self.returned is None else _summary(self.returned, self.nbytes),
            failure=self.failure,
        )

    def change(self) -> None:
        """Wake those who wait for news."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def news(self, seconds: float) -> bool:
        """Wait for something to change; False where nothing did in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def ended(self) -> None:
        """Wait for its end."""
        while self.is_running:
            await self._changed.wait()


class CallBook:
    """The calls that principals may ask about.

    Parameters
    ----------
    runner : CallRunner
        Runs them.
    seconds : float, optional
        How long a call that has ended stays in the book after it was last asked about.
    """

    def __init__(self, runner: CallRunner, seconds: float = 3600.0) -> None:
        self.runner = runner
        self.gateway = runner.gateway
        self.seconds = seconds
        self._calls: dict[str, WebCall] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    def of(self, principal: Principal) -> list[WebCall]:
        """Give the calls of a principal, the newest first."""
        owner = owner_of(principal)
        return [call for call in reversed(self._calls.values()) if call.owner == owner]

    def require_room(self, principal: Principal) -> None:
        """Raise `NotPermitted` where a principal has too many calls going on."""
        if sum(call.is_running for call in self.of(principal)) >= MOST_RUNNING:
            raise NotPermitted(
                f"You have {MOST_RUNNING} calls going on at this site.",
                reason=Reason.QUOTA_EXCEEDED,
                site=self.gateway.site,
                hint="Wait until one has ended, or cancel one by DELETE /calls/{call}.",
            )

    def start(self, call: Call, principal: Principal, room: Room) -> WebCall:
        """Begin a call that passed admission; it takes over the memory of what was sent."""
        self.require_room(principal)
        call.room = room.pop_all()
        begun = WebCall(call)
        self._calls[begun.id] = begun
        begun.task = asyncio.create_task(self._follow(begun, call, principal))
        return begun

    def get(self, call: str, principal: Principal) -> WebCall:
        """Look up a call.

        Raises
        ------
        NotFound
            If the principal has no such call.
        """
        found = self._find(call, principal)
        if not found.is_running:
            self._expire_later(found)
        return found

    def _find(self, call: str, principal: Principal) -> WebCall:
        found = self._calls.get(call)
        if found is None or found.owner != owner_of(principal):
            raise NotFound(
                f"No call {call[:64]!r}.",
                reason=Reason.UNKNOWN_CALL,
                site=self.gateway.site,
                hint="Calls are forgotten some time after their end; call the function again.",
            )
        return found

    def returned(self, call: str, principal: Principal) -> tuple[Returned, list[bytearray]]:
        """Give what a call returned; from any thread.

        Raises
        ------
        NotFound
            If the principal has no such call, or it has not returned.
        """
        found = self._find(call, principal)
        if found.returned is None:
            raise NotFound(
                "The call has not returned anything.",
                reason=Reason.UNKNOWN_RESULT,
                site=self.gateway.site,
                hint="GET /calls/{call} tells how it goes.",
            )
        return found.returned, found.buffers

    async def result(self, call: WebCall, principal: Principal) -> Any:
        """Wait for the end of a call, and put together what it returned.

        Raises
        ------
        FederatedError
            Why the call failed, or why its result cannot be had in one piece.
        """
        await call.ended()
        if call.failure is not None:
            raise JobFailed(call.failure)
        returned, buffers = self.returned(call.id, principal)
        size = sum(_nbytes(parts) for parts in parts_of(returned.content))
        if size > LARGEST_RESULT:
            raise RequestRefused(
                f"The result has {size} bytes; this site sends {LARGEST_RESULT} in one piece.",
                reason=Reason.LIMIT_EXCEEDED,
                hint="Read it as Zarr: GET /calls/{call}/zarr/zarr.json.",
            )
        blocks = await self._parts(call, returned.outputs, principal)
        make: Callable[[Parts], Any] = lambda parts: _array(parts, blocks)  # noqa: E731
        return await asyncio.to_thread(
            put_together, returned.content, buffers, make, operation_table()
        )

    async def zarr(self, call: WebCall, principal: Principal) -> ZarrStore:
        """Give a result as a Zarr store, made when it is first asked for."""
        returned, buffers = self.returned(call.id, principal)
        if call.store is None:

            async def fetch(number: int) -> np.ndarray:
                return await self._part(call, number, principal)

            call.store = await asyncio.to_thread(ZarrStore.of, returned.content, buffers, fetch)
        return call.store

    async def _parts(self, call: WebCall, count: int, principal: Principal) -> list[np.ndarray]:
        gate = asyncio.Semaphore(FETCHED_AT_ONCE)

        async def one(number: int) -> np.ndarray:
            async with gate:
                return await self._part(call, number, principal)

        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(one(number)) for number in range(count)]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [each.result() for each in asked]

    async def _part(self, call: WebCall, number: int, principal: Principal) -> np.ndarray:
        lease = None if call.returned is None else call.returned.lease
        if lease is None:
            raise self.gateway.lost()
        value = await value_in(await self.runner.jobs.fetch(lease, number, principal))
        return np.asarray(value)

    async def remove(self, call: WebCall) -> None:
        """Stop a call where it goes on, and let go of its result."""
        self._calls.pop(call.id, None)
        if call.ending is not None:
            call.ending.cancel()
        if call.task is not None and not call.task.done():
            call.task.cancel()
            await asyncio.gather(call.task, return_exceptions=True)
        if call.is_running:
            call.failure = _cancelled(self.gateway.site)
            call.change()
        if call.returned is not None and call.returned.lease is not None:
            with contextlib.suppress(NotFound):
                # It may have ended by itself.
                await self.gateway.release(call.returned.lease, call.owner)

    async def close(self) -> None:
        """Stop all calls."""
        for call in list(self._calls.values()):
            try:
                await self.remove(call)
            except FederatedError as error:
                logger.info("The lease of call %s is left to end: %s", call.id, error.reason)
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _follow(self, begun: WebCall, call: Call, principal: Principal) -> None:
        failure, returned = internal_failure(self.gateway.site), None
        try:
            async with contextlib.aclosing(self.runner.events(call)) as events:
                async for event, buffers in events:
                    match event:
                        case CallProgress():
                            begun.fraction, begun.message = event.fraction, event.message
                            begun.change()
                        case Returned():
                            returned = event
                            begun.content_bytes = await asyncio.to_thread(_content_bytes, event)
                            begun.buffers = [bytearray(buffer) for buffer in buffers]
                            if event.lease is not None:
                                # Nobody else is told of it.
                                await self.gateway.renew(event.lease, begun.owner)
                        case Failure():
                            failure = event
        except Exception:
            # The boundary to the client: it is told that something went wrong, no more.
            logger.exception("Call %s failed", begun.id)
        finally:
            await call.room.aclose()
        begun.seconds = time.monotonic() - begun.began
        if returned is not None:
            begun.returned = returned
        else:
            begun.failure = failure
        begun.change()
        self._expire_later(begun)
        self._make_room(principal)

    def _expire_later(self, call: WebCall) -> None:
        if call.ending is not None:
            call.ending.cancel()
        call.ending = asyncio.get_running_loop().call_later(self.seconds, self._drop, call)

    def _make_room(self, principal: Principal) -> None:
        """Forget the oldest calls of a principal that has too many, or too large ones."""
        size = 0
        for position, call in enumerate(self.of(principal)):
            size += call.nbytes + call.content_bytes
            # The newest stays, however large.
            if position and (position >= MOST_KEPT or size > BYTES_KEPT) and not call.is_running:
                self._drop(call)

    def _drop(self, call: WebCall) -> None:
        self._calls.pop(call.id, None)
        leaving = asyncio.create_task(self._leave(call))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _leave(self, call: WebCall) -> None:
        try:
            await self.remove(call)
        except FederatedError as error:
            logger.info("The lease of call %s is left to end: %s", call.id, error.reason)

    async def events(self, call: WebCall, beat: float) -> AsyncIterator[tuple[str, CallStatus]]:
        """Tell how a call goes: ``progress``, or ``heartbeat`` after `beat` seconds; ``end``."""
        kind = "progress"
        while call.is_running:
            yield kind, call.status
            kind = "progress" if await call.news(beat) else "heartbeat"
        yield "end", call.status


def _content_bytes(returned: Returned) -> int:
    return len(msgspec.msgpack.encode(returned.content))


def _cancelled(site: str) -> Failure:
    return Failure(
        reason=Reason.CANCELLED,
        message="The call was cancelled.",
        site=site,
        hint="Call the function again.",
    )


def _array(parts: Parts, blocks: list[np.ndarray]) -> np.ndarray:
    array = np.empty(parts.shape, decode_dtype(parts.dtype))
    starts = [np.cumsum([0, *lengths]) for lengths in parts.chunks]
    for number in range(parts.count):
        index = parts.index_of(number)
        place = tuple(
            slice(int(start[i]), int(start[i + 1])) for start, i in zip(starts, index, strict=True)
        )
        array[place] = blocks[parts.first + number]
    return array


def _nbytes(parts: Parts) -> int:
    return math.prod(parts.shape) * decode_dtype(parts.dtype).itemsize


def _summary(returned: Returned, nbytes: int) -> ResultSummary:
    content = returned.content
    size = nbytes + sum(_nbytes(parts) for parts in parts_of(content))
    return ResultSummary(kind=_kind(content), size=size, parts=returned.outputs)


def _kind(content: Object) -> str:
    match content:
        case ArrayObject():
            return "ndarray"
        case DataArrayObject():
            return "dataarray"
        case DatasetObject():
            return "dataset"
        case TableObject():
            return "dataframe"
    return "ndarray" if isinstance(content.value, ArrayValue) else "value"
