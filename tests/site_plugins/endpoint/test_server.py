import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from federated_dask.errors import ConfigurationError
from site_plugins.certificates import CertificateFiles, write_certificates
from site_plugins.endpoint.server import EndpointServer

PIECES = (b"small", b"L" * 100_000, b"small again", memoryview(bytearray(20_000)), b"end")


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/pieces":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in PIECES:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"o", "more_body": True})
    if scope["path"] == "/slow":
        await asyncio.sleep(60)
    await send({"type": "http.response.body", "body": b"k"})


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return write_certificates(tmp_path)


def make(files: CertificateFiles, **options: Any) -> EndpointServer:
    return EndpointServer(
        app,
        "127.0.0.1",
        0,
        certificate=files.certificate,
        private_key=files.private_key,
        **{"header_seconds": 2.0, "stop_seconds": 0.5, **options},
    )


@pytest.fixture
async def server(files: CertificateFiles) -> AsyncIterator[EndpointServer]:
    server = make(files)
    await server.start()
    yield server
    await server.stop()


async def connect(
    server: EndpointServer, files: CertificateFiles
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context(cafile=files.ca)
    return await asyncio.open_connection("127.0.0.1", server.port, ssl=context)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_the_port_is_the_real_one(server: EndpointServer, files: CertificateFiles) -> None:
    assert server.port
    reader, writer = await connect(server, files)
    writer.write(GET)
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    await close(writer)


async def test_what_is_small_and_ready_together_is_one_record(
    server: EndpointServer, files: CertificateFiles
) -> None:
    context = ssl.create_default_context(cafile=files.ca)

    def first() -> bytes:
        with (
            socket.create_connection(("127.0.0.1", server.port)) as connection,
            context.wrap_socket(connection, server_hostname="127.0.0.1") as stream,
        ):
            stream.sendall(GET)
            # Gives one record, however many have arrived.
            return stream.recv(2**16)

    assert (await asyncio.to_thread(first)).endswith(b"\r\n\r\nok")


async def test_pieces_of_all_sizes_arrive_in_order(
    server: EndpointServer, files: CertificateFiles
) -> None:
    reader, writer = await connect(server, files)
    writer.write(b"GET /pieces HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    received = await reader.read()
    chunks = [b"%x\r\n%b\r\n" % (len(piece), bytes(piece)) for piece in PIECES]
    assert received.partition(b"\r\n\r\n")[2] == b"".join([*chunks, b"0\r\n\r\n"])
    await close(writer)


@pytest.mark.parametrize("beginning", [b"", b"GET / HT", GET[:-2], GET + GET[:-2]])
async def test_headers_have_a_deadline(
    server: EndpointServer, files: CertificateFiles, beginning: bytes
) -> None:
    reader, writer = await connect(server, files)
    if beginning.startswith(GET):
        writer.write(GET)
        await reader.readuntil(b"ok")
        beginning = beginning.removeprefix(GET)
        # The connection may stay open longer than the deadline between requests.
        await asyncio.sleep(2.5)
    for byte in beginning:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.001)
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    await close(writer)


async def test_a_request_may_take_longer_than_its_headers(
    files: CertificateFiles,
) -> None:
    server = make(files, header_seconds=1.0)
    await server.start()
    try:
        reader, writer = await connect(server, files)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await reader.read()
        await close(writer)
    finally:
        await server.stop()


async def test_stopping_is_bounded(files: CertificateFiles) -> None:
    server = make(files)
    await server.start()
    reader, writer = await connect(server, files)
    writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\no")
    start = time.monotonic()
    await server.stop()
    assert time.monotonic() - start < 60
    await close(writer)


async def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    ours, others = write_certificates(tmp_path / "a"), write_certificates(tmp_path / "b")
    server = EndpointServer(
        app, "127.0.0.1", 0, certificate=ours.certificate, private_key=others.private_key
    )
    with pytest.raises(ConfigurationError, match="cannot be used"):
        await server.start()
