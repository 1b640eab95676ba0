"""Calling functions over plain HTTP, and reading what comes back."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np

from federated_dask.protocol.call_messages import (
    AnyCallEvent,
    Argument,
    CallSubmission,
    DatasetArgument,
    HeldArgument,
    PlainArgument,
    Returned,
    SentArgument,
)
from federated_dask.protocol.frames import Frame, FrameDecoder, encode_frame
from federated_dask.protocol.messages import Failure, Result
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.structures import Parts, put_together, take_apart
from tests.site_plugins.helpers import Caller, as_message, value_of


def dataset(name: str, variable: str | None = None) -> DatasetArgument:
    return DatasetArgument(name=name, variable=variable)


def says(path: Path, text: str) -> Callable[[], bool]:
    """Make a condition: that a function wrote a text."""
    return lambda: path.exists() and path.read_text() == text


def call(function: str, *arguments: Any, version: str | None = None, **keywords: Any) -> bytes:
    """Encode a call; what is no message is plain data, or sent along where it is an object."""
    buffers: list[Any] = []

    def argument(value: Any) -> Argument:
        if isinstance(value, DatasetArgument | HeldArgument | PlainArgument | SentArgument):
            return value
        if type(value).__module__.split(".")[0] in ("numpy", "xarray", "pandas"):
            content, _ = take_apart(value, buffers, operation_table(), is_part=lambda array: False)
            return SentArgument(content=content)
        return PlainArgument(value=value)

    message = CallSubmission(
        function=function,
        version=version,
        arguments=tuple(map(argument, arguments)),
        keywords={name: argument(value) for name, value in keywords.items()},
    )
    return b"".join(bytes(piece) for piece in encode_frame(message, buffers))


async def events(site: Caller, body: bytes) -> AsyncIterator[tuple[Any, Frame]]:
    """Events of a call."""
    async with site.request("POST", "/calls", data=body) as response:
        assert response.status == 200, await response.read()
        decoder = FrameDecoder()
        async for data in response.content.iter_any():
            for frame in decoder.feed(data):
                yield as_message(frame, AnyCallEvent), frame
        decoder.close()


async def returned(site: Caller, body: bytes) -> tuple[Returned, Frame]:
    """Last event of a call that succeeds."""
    async for event, frame in events(site, body):
        last = event, frame
    assert isinstance(last[0], Returned), last[0]
    return last


async def failed(site: Caller, body: bytes) -> Failure:
    """Failure of a call that was admitted."""
    async for event, _ in events(site, body):
        last = event
    assert isinstance(last, Failure), last
    return last


async def refused(site: Caller, body: bytes) -> tuple[int, Failure]:
    """Status and failure of a call that is not admitted."""
    return await site.refused("POST", "/calls", data=body)


async def result(site: Caller, body: bytes) -> Any:
    """Result of a call; its parts are fetched, and its lease released."""
    event, frame = await returned(site, body)
    return await assembled(site, event, frame)


async def assembled(site: Caller, event: Returned, frame: Frame, release: bool = True) -> Any:
    parts: list[Any] = []
    for output in range(event.outputs):
        status, reply = await site.read("GET", f"/leases/{event.lease}/{output}")
        assert status == 200, reply
        [part] = FrameDecoder().feed(reply)
        message = as_message(part, Result)
        parts.append(value_of(message.value, part))
    if event.lease is not None and release:
        status, _ = await site.read("DELETE", f"/leases/{event.lease}")
        assert status == 204

    def make(described: Parts) -> np.ndarray:
        found = np.empty(described.shape, described.dtype)
        for number in range(described.count):
            index = described.index_of(number)
            starts = [sum(axis[:i]) for axis, i in zip(described.chunks, index, strict=True)]
            shape = described.shape_of(number)
            where = tuple(slice(a, a + n) for a, n in zip(starts, shape, strict=True))
            found[where] = parts[described.first + number]
        return found

    return put_together(event.content, frame.buffers, make, operation_table())
