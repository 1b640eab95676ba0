"""Responses made of frames, sent in small pieces."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.messages import FRAMES_MEDIA_TYPE
from site_plugins.endpoint.authentication import owner_of
from site_plugins.endpoint.byte_budgets import Room

__all__ = ["SMALL_BODY", "FrameResponse", "FrameStream"]

SMALL_BODY = 64 * 1024
"""Bytes of a body that are not counted: they bound themselves."""
SMALL_FRAME = 4 * 1024
"""Bytes up to which a frame is sent as one: frames that are ready together share a TLS record."""
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
    if sum(map(len, pieces)) <= SMALL_FRAME:
        await _send_piece(send, b"".join(pieces))
        return
    for piece in _cut(pieces):
        await _send_piece(send, piece)
        await asyncio.sleep(0)


async def _send_piece(send: Send, piece: Buffer) -> None:
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except TimeoutError:
        raise _Stalled from None


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
    room : Room, optional
        Memory that is taken for what was asked; given back at the latest with the last frame.
    """

    media_type = FRAMES_MEDIA_TYPE

    def __init__(
        self,
        frames: AsyncGenerator[list[Buffer], None],
        room: Room | None = None,
    ) -> None:
        super().__init__()
        self.frames = frames
        self.room = room
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
            if self.room is not None:
                # Frames that were never begun gave nothing back.
                await self.room.aclose()
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
