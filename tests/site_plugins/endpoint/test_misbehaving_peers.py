"""Peers that lie, break off or hang."""

import asyncio
import contextlib
import dataclasses
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federated_dask.errors import (
    FederatedError,
    Reason,
)
from federated_dask.protocol.frames import encode_frame
from federated_dask.protocol.graph import Held
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import (
    Failure,
    Progress,
    Result,
)
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.values import encode_value
from site_plugins import LocalFederation
from site_plugins.certificates import new_authority, write_certificates
from site_plugins.endpoint import peering as module
from site_plugins.endpoint.peering import Peering
from tests.site_plugins.helpers import Caller
from tests.site_plugins.peers import (
    LEASE,
    delegated,
    run,
    use,
)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


# Peers that do not behave


@dataclasses.dataclass
class Fake:
    """A server in the place of south's peer north, with a certificate that south trusts."""

    federation: LocalFederation

    @contextlib.asynccontextmanager
    async def serving(
        self, handler: Handler, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[None]:
        endpoint = self.federation._configs["north"].endpoint
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(endpoint.certificate, endpoint.private_key)
        writers = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                await handler(reader, writer)
            writer.transport.abort()

        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
        address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        real = Peering._fetch

        async def fetch(peering: Peering, peer: str, url: str, *arguments: Any) -> Any:
            path = url.partition("/delegated/")[2]
            return await real(peering, peer, f"{address}/delegated/{path}", *arguments)

        monkeypatch.setattr(Peering, "_fetch", fetch)
        try:
            yield
        finally:
            server.close()
            for writer in writers:
                writer.transport.abort()
            async with asyncio.timeout(30):
                for writer in writers:
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()


def ok(*pieces: Any, headers: str = "") -> bytes:
    body = b"".join(map(bytes, pieces))
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def value_frame(value: Any, output: int = 0) -> bytes:
    buffers: list[Any] = []
    encoded = encode_value(value, buffers, resolver=operation_table())
    message = Result(output=output, value=encoded)
    return b"".join(map(bytes, encode_frame(message, buffers)))


def sends(*pieces: bytes, then: float | None = None) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if then is not None:
            await asyncio.sleep(then)

    return handler


async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\nF\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    frame = value_frame(1)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(frame * 1000)
        await writer.drain()


HUGE = b"FDF1" + (2**31).to_bytes(4, "little") * 2
INTERNAL, UNREACHABLE, LIMIT = "internal", "unreachable", "limit_exceeded"


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        pytest.param(sends(ok(b"garbage" * 100)), INTERNAL, id="garbage"),
        pytest.param(sends(ok()), INTERNAL, id="empty"),
        pytest.param(sends(b"\x00\xff" * 1000), UNREACHABLE, id="not HTTP"),
        pytest.param(sends(ok(value_frame(1) * 2)), INTERNAL, id="two values"),
        pytest.param(sends(ok(value_frame(1), b"x")), INTERNAL, id="more behind"),
        pytest.param(sends(ok(value_frame(1)[:-1])), INTERNAL, id="truncated"),
        pytest.param(sends(ok(value_frame(1))[:-1]), UNREACHABLE, id="broken off"),
        pytest.param(sends(ok(value_frame(1, output=1))), INTERNAL, id="another output"),
        pytest.param(
            sends(ok(*encode_frame(Progress(done=1, total=2)))), INTERNAL, id="another message"
        ),
        pytest.param(sends(ok(value_frame(np.ones(9))[:-8], bytes(8)[:-1])), INTERNAL, id="short"),
        pytest.param(sends(ok(value_frame(np.sum))), INTERNAL, id="a callable"),
        pytest.param(sends(ok(HUGE)), LIMIT, id="huge header"),
        pytest.param(sends(ok(value_frame(np.zeros(10**8, "u1")))), LIMIT, id="bomb"),
        pytest.param(floods, INTERNAL, id="flood"),
        pytest.param(drips, INTERNAL, id="drips garbage"),
        pytest.param(
            sends(b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\n\r\n"),
            INTERNAL,
            id="redirect",
        ),
        pytest.param(
            sends(b"HTTP/1.1 500 No\r\n\r\n", *[b"x" * 10**6] * 3, then=30),
            INTERNAL,
            id="long error",
        ),
        pytest.param(
            sends(b'HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n{"a": [1}'), INTERNAL, id="JSON"
        ),
        pytest.param(sends(), UNREACHABLE, id="closes"),
        pytest.param(sends(then=30), UNREACHABLE, id="hangs"),
        pytest.param(sends(ok(value_frame(1))[:-1], then=30), UNREACHABLE, id="hangs in the body"),
        pytest.param(
            sends(ok(b"\x1f\x8b\x08", headers="Content-Encoding: gzip\r\n")), INTERNAL, id="gzip"
        ),
    ],
)
async def test_a_peer_that_does_not_behave(
    federation: LocalFederation,
    south: Caller,
    monkeypatch: pytest.MonkeyPatch,
    handler: Handler,
    reason: str,
) -> None:
    monkeypatch.setattr(module, "PULL_SECONDS", 3.0)
    limits = Limits(header_bytes=2**20, buffer_bytes=2**24)
    real = Peering.pull

    async def pull(self: Peering, *arguments: Any, **keywords: Any) -> Any:
        return await real(self, *arguments, **{**keywords, "limits": limits})

    monkeypatch.setattr(Peering, "pull", pull)
    started = time.monotonic()
    async with Fake(federation).serving(handler, monkeypatch):
        value, failure = await run(south, use(Held(LEASE, 0, "north")), delegated(federation))
    assert value is None
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.site) == (reason, "south")
    assert "'north'" in failure.message
    assert time.monotonic() - started < 60


async def test_a_peer_that_drips_for_ever(
    federation: LocalFederation, south: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never silent for long, never done."""
    monkeypatch.setattr(module, "PULL_SECONDS", 1.0)

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ok(value_frame(np.ones(1000)))[:-4000])
        for _ in range(4000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    started = time.monotonic()
    async with Fake(federation).serving(slow, monkeypatch):
        _, failure = await run(south, use(Held(LEASE, 0, "north")), delegated(federation))
    assert failure.reason == "unreachable"
    assert time.monotonic() - started < 60


async def test_what_a_peer_says_is_said_to_be_its_words(
    federation: LocalFederation, south: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = json.dumps({"event": "failure", "reason": "made_up", "message": "m" * 9000, "site": "x"})
    reply = f"HTTP/1.1 418 No\r\nContent-Length: {len(said)}\r\n\r\n{said}".encode()
    async with Fake(federation).serving(sends(reply), monkeypatch):
        _, failure = await run(south, use(Held(LEASE, 0, "north")), delegated(federation))
    assert failure.site == "north"
    assert "'north' refused: mmm" in failure.message
    assert len(failure.message) < 2000
    assert failure.reason in [reason.value for reason in Reason]


async def test_a_peer_that_is_not_there(
    federation: LocalFederation, south: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Fake(federation).serving(sends(), monkeypatch):
        pass
    _, failure = await run(south, use(Held(LEASE, 0, "north")), delegated(federation))
    assert (failure.reason, failure.site) == ("unreachable", "south")
    assert "https://" not in failure.message


async def test_a_peer_without_a_certificate_to_trust(tmp_path: Path, configs: Any) -> None:
    (tmp_path / "other").mkdir()
    files = write_certificates(tmp_path / "other", authority=new_authority())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files.certificate, files.private_key)
    heard = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1))
        writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = configs["south"].model_copy(
        update={
            "peers": tuple(
                peer.model_copy(update={"address": address}) for peer in configs["south"].peers
            )
        }
    )
    peering = Peering(config)
    with pytest.raises(FederatedError) as error:
        await peering.pull("north", LEASE, 0, "a.b.c", limits=Limits(), table=operation_table())
    assert error.value.reason is Reason.UNREACHABLE
    assert not any(heard)
    await peering.close()
    server.close()
    await asyncio.sleep(0.05)
