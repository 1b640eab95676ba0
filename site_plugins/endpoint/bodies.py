"""Bodies of requests, received within a deadline and within the endpoint's memory.

::

    Content-Length ─► more than any message? refused
    first 12 bytes ─► size of the header  ─► room in `Intake.headers` ─► read on
    header         ─► sizes of buffers    ─► room in `Intake.buffers` ─► read on
    whole          ─► a frame, and the room that it takes

What is announced decides, so that nothing is read for which there is no room: meanwhile the
sender's socket waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol.frames import PREFIX_BYTES, Frame, FrameDecoder, StoredFrame
from federated_dask.protocol.limits import Limits
from site_plugins.endpoint.byte_budgets import Intake, Room, Shares, expanded
from site_plugins.endpoint.streams import SMALL_BODY

__all__ = ["Entry", "Received", "pieces_of", "receive_frame", "receive_small", "require_length"]

LARGE_HEADER = 256 * 1024
SILENCE_SECONDS = 30.0
"""How long who has room may send nothing."""


class Entry:
    """Takes room for one message.

    Parameters
    ----------
    intake : Intake
        Of which it is taken.
    owner : str
        Of whose share.
    seconds : float
        How long to wait for it in all.
    """

    def __init__(self, intake: Intake, owner: str, seconds: float) -> None:
        self.room = Room()
        self._intake = intake
        self._owner = owner
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._wanted = 0

    async def for_header(self, size: int) -> None:
        """Take room for a header, and what it is decoded to; before the one for buffers."""
        await self._take(self.room.header, self._intake.headers, size)

    async def for_buffers(self, size: int) -> None:
        """Take room for buffers."""
        await self._take(self.room.buffers, self._intake.buffers, size)

    async def _take(self, stack: contextlib.AsyncExitStack, shares: Shares, size: int) -> None:
        self._wanted = size
        try:
            async with asyncio.timeout_at(self._deadline):
                await stack.enter_async_context(shares.taken(self._owner, size))
        except TimeoutError:
            self.require()
        self._wanted = 0

    def require(self) -> None:
        """Raise `RequestRefused` where the time is up and it was room that was waited for."""
        if self._wanted:
            raise RequestRefused(
                f"The site was too busy to take in {self._wanted} bytes.",
                reason=Reason.LIMIT_EXCEEDED,
                hint="Try again later, or send less at once.",
            ) from None


@dataclass(frozen=True)
class Received:
    """A frame, and the memory that it takes."""

    frame: Frame
    room: Room
    """Given back when the block ends; who goes on with the frame takes it over by `pop_all`."""


@contextlib.asynccontextmanager
async def receive_frame(
    request: Request, limits: Limits, seconds: float, intake: Intake, owner: str
) -> AsyncIterator[Received]:
    """Receive a body of exactly one frame, to be used inside of the block.

    Parameters
    ----------
    request : Request
        Its body has not been read.
    limits : Limits
        Caps on the frame; what is over them is refused from its first bytes.
    seconds : float
        Deadline for the whole body.
    intake : Intake
        What all messages that are in use at once may take. The header is decompressed when
        it is whole, buffers when they are looked at.
    owner : str
        Who sends it.

    Raises
    ------
    RequestRefused
        ``malformed`` or ``limit_exceeded``.
    """
    require_length(request, limits.header_bytes + limits.buffer_bytes + PREFIX_BYTES)
    entry = Entry(intake, owner, seconds)
    async with contextlib.aclosing(entry.room) as room:
        stored = await _receive_stored(request, FrameDecoder(limits), seconds, entry, limits)
        if stored.nbytes <= SMALL_BODY:
            yield Received(stored.opened(), room)
        else:
            yield Received(await asyncio.to_thread(stored.opened), room)


def require_length(request: Request, most: int) -> int | None:
    """Tell how long a body says that it is; None where it does not.

    Raises
    ------
    RequestRefused
        ``limit_exceeded``, where it is longer than `most`.
    """
    told = request.headers.get("content-length", "")
    if not told.isdecimal():
        return None
    if len(told) > 18 or int(told) > most:
        raise RequestRefused(
            f"The body is longer than {most} bytes.",
            reason=Reason.LIMIT_EXCEEDED,
            hint="Send less at once, or by reference: what a site holds need not be sent.",
        )
    return int(told)


async def _receive_stored(
    request: Request, decoder: FrameDecoder, seconds: float, entry: Entry, limits: Limits
) -> StoredFrame:
    found: list[StoredFrame] = []
    try:
        async with asyncio.timeout(seconds):
            async for data in pieces_of(request):
                await _feed(decoder, memoryview(data), found, entry, limits)
    except TimeoutError:
        entry.require()
        raise RequestRefused(
            f"The body did not arrive within {seconds:g} seconds.",
            reason=Reason.MALFORMED,
            hint="Send less at once, or use a faster connection.",
        ) from None
    except ClientDisconnect:
        raise RequestRefused("The body ended early.", reason=Reason.MALFORMED) from None
    decoder.close()
    if len(found) != 1:
        raise RequestRefused(
            f"The body holds {len(found)} frames instead of one.", reason=Reason.MALFORMED
        )
    return found[0]


async def pieces_of(request: Request) -> AsyncIterator[bytes]:
    """Give a body as it arrives, until nothing does for too long.

    Raises
    ------
    TimeoutError
        If nothing arrives.
    """
    stream = request.stream()
    while True:
        async with asyncio.timeout(SILENCE_SECONDS):
            data = await anext(stream, None)
        if data is None:
            return
        yield data


async def _feed(
    decoder: FrameDecoder, data: memoryview, found: list[StoredFrame], entry: Entry, limits: Limits
) -> None:
    """Feed what arrived, up to where more is known of what follows; take room for it; go on."""
    while data:
        if found:
            raise RequestRefused("The body goes on behind its frame.", reason=Reason.MALFORMED)
        step = decoder.until_known
        piece = data if step is None else data[:step]
        data = data[len(piece) :]
        had_header_size = decoder.header_size
        if decoder.pending > LARGE_HEADER:
            # Its parts are counted as soon as it is whole, which takes a while.
            found += await asyncio.to_thread(decoder.feed_stored, piece)
        else:
            found += decoder.feed_stored(piece)
        if step is None:
            continue
        if not had_header_size and (size := decoder.header_size) > SMALL_BODY:
            await entry.for_header(size + expanded(size, limits))
        elif len(piece) == step and (size := decoder.buffer_bytes) > SMALL_BODY:
            await entry.for_buffers(size)


async def receive_small(request: Request, seconds: float) -> bytes:
    """Receive a small body.

    Raises
    ------
    RequestRefused
        If it is longer than 64 KiB or does not arrive in time.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for data in request.stream():
                body += data
                if len(body) > SMALL_BODY:
                    raise RequestRefused(
                        f"The body is longer than {SMALL_BODY} bytes.",
                        reason=Reason.LIMIT_EXCEEDED,
                    )
    except (TimeoutError, ClientDisconnect):
        raise RequestRefused("The body did not arrive.", reason=Reason.MALFORMED) from None
    return bytes(body)
