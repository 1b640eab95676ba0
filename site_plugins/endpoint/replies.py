"""Replies for callers that speak no frames, and what their bodies are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from starlette.responses import Response

from federated_dask.protocol.frames import Buffer, FrameDecoder, decode_message
from federated_dask.protocol.messages import Result
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.values import decode_value
from site_plugins.endpoint.renderings import Rendered, render
from site_plugins.endpoint.running import Pieces
from site_plugins.endpoint.streams import FrameResponse

__all__ = ["BytesResponse", "rendered", "value_in"]

SMALL_FRAME = 256 * 1024
_renderers = ThreadPoolExecutor(2, thread_name_prefix="federated-render")
"""Of their own: pictures wait for one another, and must not keep all other threads waiting."""
SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-store"}


class BytesResponse(FrameResponse):
    """A body sent in small pieces, so that other requests are answered meanwhile."""

    def __init__(
        self, body: Buffer, media_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__([body])
        self.headers["content-type"] = media_type
        self.headers.update({**SAFE, **(headers or {})})


async def rendered(
    obj: Any, media_type: str, headers: Mapping[str, str], **options: Any
) -> Response:
    """Render an object in a thread; the options are those of `render`."""
    loop = asyncio.get_running_loop()
    made: Rendered = await loop.run_in_executor(
        _renderers, partial(render, obj, media_type, **options)
    )
    return BytesResponse(made.body, made.media_type, {**made.headers, **headers})


async def value_in(pieces: Pieces) -> Any:
    """Give the value of a frame that was made for a client: what left the site, no more."""

    def decoded() -> Any:
        decoder = FrameDecoder()
        # From this site itself, whatever its size.
        [frame] = [frame for piece in pieces for frame in decoder.feed(piece)]
        result = decode_message(frame, Result)
        return decode_value(result.value, frame.buffers, operation_table())

    if sum(memoryview(piece).nbytes for piece in pieces) <= SMALL_FRAME:
        return decoded()
    return await asyncio.to_thread(decoded)
