"""Bodies made of frames: sent in small pieces, received within a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from federated_dask.errors import NotPermitted, Reason, RequestRefused
from federated_dask.protocol.frames import Buffer, Frame, FrameDecoder, StoredFrame
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import FRAMES_MEDIA_TYPE
from site_plugins.endpoint.authentication import owner_of

__all__ = [
    "ByteBudget",
    "FrameResponse",
    "FrameStream",
    "Outgoing",
    "most_taken",
    "receive_frame",
    "receive_small",
]

SMALL_BODY = 64 * 1024
LARGE_HEADER = 256 * 1024
EXPANSION = 32
"""Bytes that a byte of a header may become, more or less: texts of one letter are the worst."""
SEND_SECONDS = 60.0
"""How long a reader may take none of what is sent, until it is cut off."""
PIECE = 256 * 1024
"""Measured: with larger pieces, other requests wait a hundred times as long meanwhile."""


def _cut(pieces: list[Buffer]) -> Iterator[Buffer]:
    for piece in pieces:
        if len(piece) <= PIECE:
            if len(piece):
                yield piece
            continue
        view = memoryview(piece)
        for start in range(0, len(view), PIECE):
            yield view[start : start + PIECE]


class _Stalled(Exception):
    """Nobody reads what is sent."""


async def _send_pieces(send: Send, pieces: list[Buffer]) -> None:
    for piece in _cut(pieces):
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except TimeoutError:
            raise _Stalled from None
        await asyncio.sleep(0)


class FrameResponse(Response):
    """One frame as a response.

    Parameters
    ----------
    pieces : list of bytes-like
        From `encode_frame`; nothing is copied.
    """

    media_type = FRAMES_MEDIA_TYPE

    def __init__(self, pieces: list[Buffer]) -> None:
        super().__init__()
        self.pieces = pieces
        self.size = sum(memoryview(piece).nbytes for piece in pieces)
        self.headers["content-length"] = str(self.size)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; called by the server."""
        async with contextlib.AsyncExitStack() as stack:
            if self.size > SMALL_BODY:
                principal = scope.get("state", {}).get("principal")
                owner = "" if principal is None else owner_of(principal)
                await stack.enter_async_context(scope["app"].state.outgoing.taken(owner, self.size))
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            # Left unfinished, the server closes the connection.
            with contextlib.suppress(_Stalled):
                await _send_pieces(send, self.pieces)
                await send({"type": "http.response.body", "body": b"", "more_body": False})


class FrameStream(Response):
    """Frames as they come, until there are no more or the client goes away.

    Parameters
    ----------
    frames : async generator
        Gives frames as pieces; closed as soon as the client has gone.
    """

    media_type = FRAMES_MEDIA_TYPE

    def __init__(self, frames: AsyncGenerator[list[Buffer], None]) -> None:
        super().__init__()
        self.frames = frames
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; called by the server."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not sending.done():
                sending.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self.frames.aclose()
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with contextlib.suppress(_Stalled):
            async for pieces in self.frames:
                await _send_pieces(send, pieces)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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


class ByteBudget:
    """Memory that all requests together may take at once.

    Parameters
    ----------
    total : int
        Bytes.

    Examples
    --------
    >>> budget = ByteBudget(10)
    >>> budget.free
    10
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Take `size` bytes for a while; waits for its turn until there are as many."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._hand_out()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self.free += size
            else:
                turn.cancel()
            self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.cancelled():
                if size > self.free:
                    # First come, first served: else small ones would starve a large one.
                    return
                self.free -= size
                turn.set_result(None)
            self._waiting.popleft()


class Outgoing:
    """Memory that responses which are being sent may take, for each who asks.

    Parameters
    ----------
    total : int
        Bytes of one principal's responses: who reads slowly delays nobody else.
    seconds : float, optional
        How long a response waits for others of its principal.
    """

    def __init__(self, total: int, seconds: float = SEND_SECONDS) -> None:
        self._total = total
        self._seconds = seconds
        self._budgets: dict[str, ByteBudget] = {}

    @contextlib.asynccontextmanager
    async def taken(self, owner: str, size: int) -> AsyncIterator[None]:
        """Take bytes of a principal's share while a response is sent.

        Raises
        ------
        NotPermitted
            ``quota_exceeded``, if it did not read what was sent before.
        """
        budget = self._budgets.setdefault(owner, ByteBudget(self._total))
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._forget, owner, budget)
            try:
                async with asyncio.timeout(self._seconds):
                    # One that is larger than all that there is has it for itself.
                    await stack.enter_async_context(budget.taken(min(size, self._total)))
            except TimeoutError:
                raise NotPermitted(
                    "Too much is on its way to you that you have not read yet.",
                    reason=Reason.QUOTA_EXCEEDED,
                    hint="Read the results before you ask for more, or ask for smaller ones.",
                ) from None
            yield

    def _forget(self, owner: str, budget: ByteBudget) -> None:
        if budget.free == self._total and self._budgets.get(owner) is budget:
            del self._budgets[owner]


def most_taken(limits: Limits) -> int:
    """Bytes that the largest frame takes of a budget."""
    return limits.header_bytes + limits.buffer_bytes + _expanded(limits.header_bytes, limits)


def _expanded(header_bytes: int, limits: Limits) -> int:
    return EXPANSION * min(header_bytes, limits.parts)


@contextlib.asynccontextmanager
async def receive_frame(
    request: Request, limits: Limits, seconds: float, budget: ByteBudget
) -> AsyncIterator[Frame]:
    """Receive a body of exactly one frame, to be used inside of the block.

    Parameters
    ----------
    request : Request
        Its body has not been read.
    limits : Limits
        Caps on the frame; what is over them is refused from its first bytes.
    seconds : float
        Deadline for the whole body.
    budget : ByteBudget
        What all frames that are in use at once may take; the header of a frame is
        decompressed when it is whole and there is room for it, its buffers when they are
        looked at.

    Raises
    ------
    RequestRefused
        ``malformed`` or ``limit_exceeded``.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    stored = await _receive_stored(request, FrameDecoder(limits), seconds)
    size = stored.nbytes + _expanded(stored.header_size, limits)
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout_at(deadline):
                await stack.enter_async_context(budget.taken(size))
        except TimeoutError:
            raise RequestRefused(
                f"The site was too busy to take in {size} bytes.",
                reason=Reason.LIMIT_EXCEEDED,
                hint="Try again later, or send less at once.",
            ) from None
        if size <= SMALL_BODY:
            yield stored.opened()
        else:
            yield await asyncio.to_thread(stored.opened)


async def _receive_stored(request: Request, decoder: FrameDecoder, seconds: float) -> StoredFrame:
    found: list[StoredFrame] = []
    try:
        async with asyncio.timeout(seconds):
            async for data in request.stream():
                if found and data:
                    raise RequestRefused(
                        "The body goes on behind its frame.", reason=Reason.MALFORMED
                    )
                if decoder.pending > LARGE_HEADER:
                    # Its parts are counted as soon as it is whole, which takes a while.
                    found += await asyncio.to_thread(decoder.feed_stored, data)
                else:
                    found += decoder.feed_stored(data)
    except TimeoutError:
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
