"""What the tests of connections send and receive."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from federated_dask.client.connection import SiteConnection
from federated_dask.errors import (
    FederatedError,
)
from federated_dask.protocol.frames import encode_frame
from federated_dask.protocol.graph import Graph
from federated_dask.protocol.messages import (
    JobSubmission,
    Output,
    Result,
)
from federated_dask.protocol.values import encode_value

Serve = Callable[..., str]
SUBMISSION = JobSubmission(graph=Graph(templates=(), blocks=()), outputs=(Output(task=0),))
MIB = 2**20


def result(array: np.ndarray, output: int = 0) -> list[Any]:
    buffers: list[Any] = []
    return encode_frame(Result(output=output, value=encode_value(array, buffers)), buffers)


async def events_of(connection: SiteConnection, *args: Any) -> list[Any]:
    async with contextlib.aclosing(connection.submit(SUBMISSION, *args)) as events:
        return [event async for event in events]


async def refused(
    address: str, ca: str | bool, *, alike: bool = True, **kwargs: Any
) -> FederatedError:
    kwargs.setdefault("timeout", 2)
    connection = SiteConnection("north", address, "good-token", ca, **kwargs)
    try:
        with pytest.raises(FederatedError) as caught:
            await connection.describe_dataset("a1b")
        with pytest.raises(FederatedError) as posted:
            await events_of(connection)
    finally:
        await connection.close()
    if alike:
        assert caught.value.reason == posted.value.reason, repr(posted.value.__cause__)
    assert caught.value.site == posted.value.site == "north"
    assert caught.value.hint
    return caught.value


def head(
    media_type: str, length: int | None = None, status: str = "200 OK", more: str = ""
) -> bytes:
    lengths = "" if length is None else f"Content-Length: {length}\r\n"
    return f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\n{lengths}{more}\r\n".encode()


def send(data: bytes) -> Callable[..., Any]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        if b"POST" in asked:
            # Closing a socket with unread bytes resets it, and the reply is lost on the way.
            await reader.read(100_000)
        writer.write(data)
        await writer.drain()

    return handle
