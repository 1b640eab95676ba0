import asyncio
import contextlib
import pickle
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import trustme

from federated_dask.client import loop
from federated_dask.client.connection import SiteConnection, count_links
from federated_dask.client.indexes import encode_index, expand, split_index
from federated_dask.errors import (
    ConfigurationError,
    FederatedError,
    NotAuthenticated,
    NotFound,
    Reason,
    RequestRefused,
    SiteUnavailable,
    VersionChanged,
    from_reason,
)
from federated_dask.protocol import frames
from federated_dask.protocol.frames import PREFIX, encode_frame
from federated_dask.protocol.graph import Graph
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import (
    FRAMES_MEDIA_TYPE,
    Accepted,
    Failure,
    Finished,
    Heartbeat,
    JobSubmission,
    Output,
    Result,
)
from federated_dask.protocol.values import decode_value, encode_value

Serve = Callable[..., str]
SUBMISSION = JobSubmission(graph=Graph(templates=(), blocks=()), outputs=(Output(task=0),))
MIB = 2**20


def result(array: np.ndarray, output: int = 0) -> list[Any]:
    buffers: list[Any] = []
    return encode_frame(Result(output=output, value=encode_value(array, buffers)), buffers)


async def events_of(connection: SiteConnection, *args: Any) -> list[Any]:
    async with contextlib.aclosing(connection.submit(SUBMISSION, *args)) as events:
        return [event async for event in events]


class TestRequests:
    async def test_health_needs_no_token(self, address: str, ca: str) -> None:
        connection = SiteConnection("north", address, None, ca)
        assert await connection.health() == {"status": "ok", "site": "north"}
        with pytest.raises(NotAuthenticated):
            await connection.catalogue()
        await connection.close()

    async def test_description_and_catalogue(self, connection: SiteConnection) -> None:
        assert (await connection.describe_site()).name == "north"
        assert [d.name for d in (await connection.catalogue()).datasets] == ["a1b", "sst"]

    async def test_describing_a_dataset_is_one_round_trip(self, connection, stub) -> None:
        description, buffers = await connection.describe_dataset("a1b")
        assert stub.requests == ["GET /datasets/a1b"]
        time_ = decode_value(description.variables["time"].value, buffers)
        assert time_.shape == (240,)
        assert time_[0].calendar == "360_day"

    async def test_refusals_carry_the_sites_name(self, connection: SiteConnection) -> None:
        with pytest.raises(NotFound) as caught:
            await connection.describe_dataset("a1c")
        assert (caught.value.reason, caught.value.site) == (Reason.UNKNOWN_DATASET, "north")
        with pytest.raises(VersionChanged):
            await connection.read("sst", "time", "old", (slice(None),))

    async def test_names_are_quoted(self, connection, stub) -> None:
        with pytest.raises(NotFound):
            await connection.describe_dataset("a/../b?c#d")
        assert stub.requests == ["GET /datasets/a/../b?c#d"]

    async def test_leases(self, connection, stub) -> None:
        held, buffers = await connection.fetch_held("lease-1", 3)
        assert held.output == 3
        assert decode_value(held.value, buffers).tolist() == [0, 1, 2, 3]
        await connection.release("lease-1")
        assert stub.requests[-1] == "DELETE /leases/lease-1"
        with pytest.raises(NotFound):
            await connection.fetch_held("other", 0)

    async def test_sockets_are_used_again(self, connection, stub, monkeypatch) -> None:
        opened = []
        connect = asyncio.BaseEventLoop.create_connection

        async def counted(self, *args, **kwargs):
            opened.append(1)
            return await connect(self, *args, **kwargs)

        monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", counted)
        for _ in range(3):
            await connection.health()
            await events_of(connection)
        assert len(opened) <= 1


class TestReading:
    @pytest.mark.parametrize(
        "index",
        [
            (slice(None), slice(None), slice(None)),
            (3, slice(2, 10, 3), np.array([5, 1, 5])),
            (slice(0, 0), 0, slice(None)),
            (np.arange(54) % 2 == 0, np.array([17]), slice(None, None, -1)),
            (0, 0, 0),
        ],
    )
    async def test_orthogonal(self, connection, stub, index) -> None:
        dataset = stub.datasets["sst"]
        read = await connection.read("sst", "surface_temperature", dataset.fingerprint(), index)
        with dataset.open() as opened:
            expected = opened.variables["surface_temperature"][index].values
        np.testing.assert_array_equal(read, expected)
        assert (read.shape, read.dtype) == (expected.shape, expected.dtype)

    async def test_one_cftime_date(self, connection, stub) -> None:
        version = stub.datasets["a1b"].fingerprint()
        read = await connection.read("a1b", "time_bnds", version, (0, 1))
        assert (read.shape, read.dtype) == ((), np.dtype(object))
        assert read.item().calendar == "360_day"

    async def test_many_positions_make_several_requests(self, connection, stub) -> None:
        positions = np.random.default_rng(1).integers(0, 432, 3000)
        rows = np.random.default_rng(2).integers(0, 54, 2500)
        dataset = stub.datasets["sst"]
        read = await connection.read(
            "sst", "surface_temperature", dataset.fingerprint(), (rows, 4, positions)
        )
        with dataset.open() as opened:
            expected = opened.variables["surface_temperature"][rows, 4, positions].values
        np.testing.assert_array_equal(read, expected)
        assert len(stub.requests) > 4

    async def test_the_first_error_of_several_requests(self, connection, stub) -> None:
        positions = np.random.default_rng(1).integers(0, 432, 9000)
        with pytest.raises(VersionChanged):
            await connection.read("sst", "surface_temperature", "old", (0, 4, positions))

    async def test_evenly_spaced_positions_are_one_slice(self, connection, stub) -> None:
        version = stub.datasets["sst"].fingerprint()
        await connection.read("sst", "longitude", version, (np.arange(1, 430, 2),))
        assert len(stub.requests) == 1
        assert encode_index((np.arange(1, 430, 2),)) == "[[1,430,2]]"

    async def test_more_than_asked_for_is_refused(self, connection, stub) -> None:
        version = stub.datasets["sst"].fingerprint()
        with pytest.raises(RequestRefused) as caught:
            await connection.read("sst", "longitude", version, (slice(None),), largest=100)
        assert caught.value.reason == Reason.LIMIT_EXCEEDED
        assert caught.value.site == "north"


class TestIndexes:
    @pytest.mark.parametrize(
        ("key", "shape"),
        [
            (..., (3, 4, 2)),
            (-1, (4, 2)),
            ((slice(None, None, -1), ..., 0), (3, 4)),
            (([0, -1], slice(1, 3)), (2, 2, 2)),
            ((np.array([True, False, True]),), (2, 4, 2)),
            ((slice(2, 0), []), (0, 0, 2)),
            ((np.uint8(2), np.int16(3), 1), ()),
        ],
    )
    def test_expand_selects_what_numpy_does(self, key, shape) -> None:
        array = np.arange(24).reshape(3, 4, 2)
        index, found = expand(key, array.shape)
        assert found == shape
        expected = array
        entries = key if isinstance(key, tuple) else (key,)
        if sum(isinstance(entry, list | np.ndarray) for entry in entries) < 2:
            expected = array[key if not isinstance(key, list) else (key,)] if shape else array[key]
            np.testing.assert_array_equal(array[index], expected)

    @pytest.mark.parametrize(
        "key", [3, -4, (0, 0, 0, 0), (..., ...), None, True, 1.5, "a", ([0.5],), ([3],), ([[0]],)]
    )
    def test_expand_refuses(self, key) -> None:
        with pytest.raises(IndexError):
            expand(key, (3, 4, 2))

    def test_nothing_to_split(self) -> None:
        assert split_index((slice(None), 0, np.arange(10))) is None


class TestJobs:
    async def test_events_in_order_with_their_buffers(self, connection, stub) -> None:
        array = np.random.default_rng(0).random(1000)

        async def events() -> AsyncIterator[list[Any]]:
            yield encode_frame(Accepted(job="j", tasks=1))
            yield encode_frame(Heartbeat())
            yield result(array)
            yield encode_frame(Finished(lease="lease-1"))

        stub.events = events
        found = await events_of(connection, [b"x" * MIB])
        assert [type(event).__name__ for event, _ in found] == [
            "Accepted",
            "Heartbeat",
            "Result",
            "Finished",
        ]
        np.testing.assert_array_equal(decode_value(found[2][0].value, found[2][1].buffers), array)
        assert found[2][1].stored_bytes == sum(len(piece) for piece in result(array))
        assert stub.submissions == [SUBMISSION]

    async def test_a_failure_is_the_last_event_and_names_the_site(self, connection, stub) -> None:
        async def events() -> AsyncIterator[list[Any]]:
            yield encode_frame(Accepted(job="j", tasks=1))
            yield encode_frame(Failure(reason="task_failed", message="a\x1b[2Jb", site="other"))

        stub.events = events
        (_, _), (failure, _) = await events_of(connection)
        assert (failure.site, failure.message) == ("north", "a�[2Jb")

    async def test_a_slow_consumer_slows_the_site(self, connection, stub) -> None:
        array = np.random.default_rng(0).random(MIB // 8)

        async def events() -> AsyncIterator[list[Any]]:
            for _ in range(64):
                yield result(array)
            yield encode_frame(Finished())

        stub.events = events
        async with contextlib.aclosing(connection.submit(SUBMISSION)) as received:
            await anext(received)
            await asyncio.sleep(0.5)
            # What is under way fits into the buffers of two sockets.
            assert stub.sent_events < 40
            rest = [event async for event, _ in received]
        assert len(rest) == 64

    async def test_leaving_early_closes_the_request(self, connection, stub) -> None:
        async def events() -> AsyncIterator[list[Any]]:
            while True:
                yield encode_frame(Heartbeat())
                await asyncio.sleep(0.01)

        stub.events = events
        async with contextlib.aclosing(connection.submit(SUBMISSION)) as received:
            await anext(received)
        assert await asyncio.to_thread(stub.disconnected.wait, 5)

    def test_interrupting_a_blocked_caller_closes_the_request(self, address, ca, stub) -> None:
        async def events() -> AsyncIterator[list[Any]]:
            while True:
                yield encode_frame(Heartbeat())
                await asyncio.sleep(0.01)

        stub.events = events
        connection = SiteConnection("north", address, "good-token", ca)
        with pytest.raises(TimeoutError):
            loop.sync(events_of(connection), timeout=0.3)
        assert stub.disconnected.wait(5)

    async def test_heartbeats_keep_a_long_job_alive(self, address, ca, stub) -> None:
        async def events() -> AsyncIterator[list[Any]]:
            for _ in range(30):
                await asyncio.sleep(0.1)
                yield encode_frame(Heartbeat())
            yield encode_frame(Finished())

        stub.events = events
        connection = SiteConnection("north", address, "good-token", ca, timeout=2)
        assert len(await events_of(connection)) == 31
        await connection.close()

    async def test_silence_in_the_middle(self, address, ca, stub) -> None:
        async def events() -> AsyncIterator[list[Any]]:
            yield encode_frame(Accepted(job="j", tasks=1))
            await asyncio.sleep(1000)

        stub.events = events
        connection = SiteConnection("north", address, "good-token", ca, timeout=0.3)
        with pytest.raises(SiteUnavailable) as caught:
            await events_of(connection)
        assert caught.value.reason == Reason.TIMED_OUT
        assert "0.3 s" in str(caught.value)
        await connection.close()

    @pytest.mark.parametrize("cut", ["between frames", "inside a header", "inside a buffer"])
    async def test_a_truncated_stream(self, connection, stub, cut) -> None:
        array = np.random.default_rng(0).random(100_000)

        async def events() -> AsyncIterator[list[Any]]:
            yield encode_frame(Accepted(job="j", tasks=1))
            if cut == "inside a header":
                yield [b"FDF1\x10"]
            if cut == "inside a buffer":
                yield [b"".join(result(array))[:5000]]

        stub.events = events
        with pytest.raises(SiteUnavailable) as caught:
            await events_of(connection)
        assert (caught.value.reason, caught.value.site) == (Reason.CONNECTION_LOST, "north")

    async def test_a_bomb_is_refused_from_its_first_bytes(self, address, ca, stub) -> None:
        async def events() -> AsyncIterator[list[Any]]:
            raw = msgspec.msgpack.encode((Heartbeat(), [(10, 2**60)]))
            yield [PREFIX.pack(b"FDF1", len(raw), len(raw)) + raw]

        stub.events = events
        connection = SiteConnection("north", address, "good-token", ca)
        with pytest.raises(RequestRefused) as caught:
            await events_of(connection)
        assert caught.value.reason == Reason.LIMIT_EXCEEDED
        await connection.close()

    async def test_a_buffer_that_expands_beyond_what_it_announced(self, connection, stub) -> None:
        async def events() -> AsyncIterator[list[Any]]:
            squeezed = frames.compress(bytes(64 * MIB), 1)
            raw = msgspec.msgpack.encode((Heartbeat(), [(len(squeezed), len(squeezed) + 10)]))
            yield [PREFIX.pack(b"FDF1", len(raw), len(raw)) + raw, squeezed]

        stub.events = events
        with pytest.raises(RequestRefused) as caught:
            await events_of(connection)
        assert caught.value.reason == Reason.MALFORMED

    async def test_limits_are_the_users(self, address, ca, stub) -> None:
        async def events() -> AsyncIterator[list[Any]]:
            yield result(np.zeros(10_000))

        stub.events = events
        connection = SiteConnection(
            "north", address, "good-token", ca, limits=Limits(buffer_bytes=1000)
        )
        with pytest.raises(RequestRefused):
            await events_of(connection)
        await connection.close()

    @pytest.mark.parametrize("garbage", [b"<html></html>", b"FDF1" + bytes(100), b"\x00" * 1000])
    async def test_garbage(self, connection, stub, garbage) -> None:
        async def events() -> AsyncIterator[list[Any]]:
            yield [garbage]

        stub.events = events
        with pytest.raises(RequestRefused) as caught:
            await events_of(connection)
        assert (caught.value.reason, caught.value.site) == (Reason.MALFORMED, "north")


class TestCounting:
    async def test_bodies_as_they_pass(self, connection, stub) -> None:
        array = np.random.default_rng(0).random(100_000)
        pieces = [result(array), encode_frame(Finished())]

        async def events() -> AsyncIterator[list[Any]]:
            for frame in pieces:
                yield frame

        stub.events = events
        await connection.health()
        before = connection.counter.received
        with count_links() as links:
            await events_of(connection, [b"\x00" * MIB])
        received = sum(len(piece) for frame in pieces for piece in frame)
        assert links["north"].received == received == connection.counter.received - before
        # The buffer of zeros went compressed, and that is what counts.
        assert links["north"].sent == stub.uploaded < 10_000

    async def test_other_runs_are_not_counted(self, connection) -> None:
        async def run() -> int:
            with count_links() as links:
                await connection.health()
                await asyncio.sleep(0.05)
            return links["north"].received

        first, second = await asyncio.gather(run(), run())
        assert first == second > 0
        assert connection.counter.received == first + second

    def test_blocking_calls_are_counted(self, address, ca) -> None:
        connection = SiteConnection("north", address, "good-token", ca)
        with count_links() as links:
            loop.sync(connection.health())
        assert links["north"].received > 0


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


class TestTransportErrors:
    async def test_refused_port(self, ca: str) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            error = await refused(f"https://localhost:{port}", ca)
        assert error.reason == Reason.UNREACHABLE

    async def test_unknown_host(self, ca: str) -> None:
        error = await refused("https://no-such-host.invalid:1", ca)
        assert error.reason in (Reason.UNREACHABLE, Reason.TIMED_OUT)

    async def test_wrong_authority(self, address: str) -> None:
        other = trustme.CA().cert_pem.bytes().decode()
        error = await refused(address, other)
        assert error.reason == Reason.CERTIFICATE_NOT_TRUSTED
        assert "verify='ca.pem'" in str(error)

    async def test_the_systems_authorities_do_not_know_the_site(self, address: str) -> None:
        assert (await refused(address, True)).reason == Reason.CERTIFICATE_NOT_TRUSTED

    async def test_a_given_authority_is_the_only_one(self, ca: str) -> None:
        from federated_dask.client.sessions import tls_context

        context = tls_context(ca)
        assert len(context.get_ca_certs()) == 1
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.check_hostname
        assert context.verify_mode == ssl.CERT_REQUIRED

    async def test_host_name_mismatch(self, address: str, ca: str) -> None:
        error = await refused(address.replace("localhost", "127.0.0.1"), ca)
        assert error.reason == Reason.CERTIFICATE_NOT_TRUSTED
        assert "host name" in str(error)

    async def test_old_tls(self, misbehaving: Serve, authority, ca: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")

        async def handle(reader, writer) -> None:
            await reader.read(1)

        error = await refused(misbehaving(handle, tls=context), ca)
        assert error.reason == Reason.UNREACHABLE

    async def test_no_tls_at_all(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await writer.drain()

        error = await refused(misbehaving(handle, tls=None), ca)
        assert error.reason in (Reason.UNREACHABLE, Reason.CONNECTION_LOST)

    async def test_hanging_handshake(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            await asyncio.sleep(1000)

        error = await refused(misbehaving(handle, tls=None), ca, timeout=0.3)
        assert error.reason == Reason.TIMED_OUT

    async def test_hanging_before_the_headers(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            await asyncio.sleep(1000)

        error = await refused(misbehaving(handle), ca, timeout=0.3)
        assert error.reason == Reason.TIMED_OUT

    async def test_trickled_headers(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)

        began = time.monotonic()
        error = await refused(misbehaving(handle), ca, timeout=0.5)
        assert error.reason == Reason.TIMED_OUT
        assert time.monotonic() - began < 20

    async def test_a_site_that_takes_no_bytes(self, misbehaving: Serve, ca: str) -> None:
        reset = asyncio.Event()

        async def handle(reader, writer) -> None:
            await asyncio.sleep(1)
            writer.transport.abort()
            here.call_soon_threadsafe(reset.set)

        here = asyncio.get_running_loop()

        connection = SiteConnection("north", misbehaving(handle), "t", ca, timeout=0.5)
        noise = np.random.default_rng(0).bytes(64 * MIB)
        with pytest.raises(SiteUnavailable) as caught:
            await events_of(connection, [noise])
        assert caught.value.reason == Reason.TIMED_OUT
        await connection.close()
        # asyncio keeps a socket with unsent bytes for up to 30 s.
        await reset.wait()
        await asyncio.sleep(0.05)

    async def test_hanging_in_the_body(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            writer.write(head(FRAMES_MEDIA_TYPE, 1000) + b"FDF1")
            await writer.drain()
            await asyncio.sleep(1000)

        error = await refused(misbehaving(handle), ca, timeout=0.3)
        assert error.reason == Reason.TIMED_OUT

    @pytest.mark.parametrize("length", [1000, None])
    async def test_a_truncated_body(self, misbehaving: Serve, ca: str, length) -> None:
        await_end = send(head(FRAMES_MEDIA_TYPE, length) + b"".join(result(np.arange(9)))[:40])
        error = await refused(misbehaving(await_end), ca)
        assert error.reason == Reason.CONNECTION_LOST

    async def test_closing_at_once(self, misbehaving: Serve, ca: str) -> None:
        error = await refused(misbehaving(send(b"")), ca)
        assert error.reason == Reason.CONNECTION_LOST

    async def test_resetting_at_once(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            await reader.read(10)
            writer.transport.abort()

        error = await refused(misbehaving(handle), ca)
        assert error.reason == Reason.CONNECTION_LOST


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


class TestMaliciousReplies:
    @pytest.mark.parametrize(
        "reply",
        [
            b"\x00\x01\x02 garbage\r\n\r\n",
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Type: \xff\xfe\r\nContent-Length: 1\r\n\r\nx",
            b"HTTP/1.1 200 OK\r\nContent-Type: ;;;=\r\nContent-Length: 1\r\n\r\nx",
            head("text/html", 5) + b"hello",
            head("application/json", 2) + b"{}",
            head(FRAMES_MEDIA_TYPE, 5) + b"hello",
            head(FRAMES_MEDIA_TYPE, 5, more="Content-Encoding: gzip\r\n") + b"hello",
            head(FRAMES_MEDIA_TYPE, more="Transfer-Encoding: chunked\r\n") + b"zz\r\nhello\r\n",
            head(FRAMES_MEDIA_TYPE, more="Set-Cookie: \x01=;;;\r\n") + b"\x00",
            head("application/json", 9, "404 Not Found") + b"not json!",
            head("application/json", 2, "403 Forbidden") + b"{}",
            head("application/json; charset=none", 2, "403 Forbidden") + b"\xff\xff",
            head("application/json", 200_000, "400 Bad") + b"[" * 200_000,
            b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"y" * 200_000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200_000)),
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx",
            b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
            b"HTTP/1.1 204 No Content\r\n\r\n",
        ],
    )
    async def test_nonsense(self, misbehaving: Serve, ca: str, reply: bytes) -> None:
        error = await refused(misbehaving(send(reply)), ca, alike=False)
        assert isinstance(error, RequestRefused | SiteUnavailable)

    @pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
    async def test_redirects_are_not_followed(
        self, misbehaving: Serve, ca: str, address: str, stub, status: str
    ) -> None:
        reply = head("text/html", 0, status, f"Location: {address}/datasets/a1b\r\n")
        error = await refused(misbehaving(send(reply)), ca)
        assert (type(error), error.reason) == (SiteUnavailable, Reason.UNREACHABLE)
        assert stub.requests == []

    async def test_a_page_with_status_500(self, misbehaving: Serve, ca: str) -> None:
        page = head("text/html", 5, "500 Internal") + b"oops!"
        error = await refused(misbehaving(send(page)), ca)
        assert (type(error), error.reason) == (SiteUnavailable, Reason.INTERNAL)

    async def test_a_gateway_without_a_site_behind_it(self, misbehaving: Serve, ca: str) -> None:
        page = head("text/html", 5, "502 Bad Gateway") + b"oops!"
        error = await refused(misbehaving(send(page)), ca)
        assert error.reason == Reason.UNREACHABLE

    async def test_endless_json(self, misbehaving: Serve, ca: str) -> None:
        async def handle(reader, writer) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head("application/json"))
            while not writer.is_closing():
                writer.write(b" " * MIB)
                await writer.drain()
                await asyncio.sleep(0)

        connection = SiteConnection("north", misbehaving(handle), "t", ca, timeout=10)
        with pytest.raises(RequestRefused) as caught:
            await connection.catalogue()
        assert caught.value.reason == Reason.LIMIT_EXCEEDED
        await connection.close()

    async def test_deep_json(self, misbehaving: Serve, ca: str) -> None:
        body = b'{"site": "a", "datasets": ' + b"[" * 100_000
        reply = head("application/json", len(body)) + body
        connection = SiteConnection("north", misbehaving(send(reply)), "t", ca, timeout=5)
        with pytest.raises(RequestRefused):
            await connection.catalogue()
        await connection.close()

    @pytest.mark.parametrize("reason", list(Reason))
    async def test_every_reason(self, misbehaving: Serve, ca: str, reason: Reason) -> None:
        expected = from_reason(reason, "It is so.", site="north", hint="Do this.")
        failure = Failure.from_error(expected)
        body = msgspec.json.encode(msgspec.structs.replace(failure, site="somebody else"))
        status = f"{expected.http_status} Whatever"
        reply = head("application/json", len(body), status) + body
        error = await refused(misbehaving(send(reply)), ca)
        assert type(error) is type(expected)
        assert str(error) == str(expected)

    async def test_a_reason_of_a_newer_site(self, misbehaving: Serve, ca: str) -> None:
        body = b'{"reason": "moon_phase", "message": "\\u001b[31mFull\\u0007"}'
        reply = head("application/json", len(body), "418 Teapot") + body
        error = await refused(misbehaving(send(reply)), ca)
        assert error.reason == Reason.INTERNAL
        assert "\x1b" not in str(error)

    async def test_another_version_of_the_protocol(self, misbehaving: Serve, ca: str) -> None:
        body = b'{"name": "north", "protocol_version": 99}'
        reply = head("application/json", len(body)) + body
        connection = SiteConnection("north", misbehaving(send(reply)), "t", ca, timeout=5)
        with pytest.raises(RequestRefused, match="Upgrade federated-dask"):
            await connection.describe_site()
        await connection.close()


class TestParameters:
    @pytest.mark.parametrize(
        "address",
        [
            "http://north.example:8443",
            "http://10.0.0.1:8443",
            "ftp://north.example",
            "north.example:8443",
            "https://",
            "https://user:secret@north.example",
            "https://north.example/?x=1",
            "https://north.example:99999",
            "https://[::1",
            "https://north.example/\n",
        ],
    )
    def test_addresses_that_are_refused(self, address: str) -> None:
        with pytest.raises(ConfigurationError):
            SiteConnection("north", address)

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
    def test_plain_http_on_this_machine(self, host: str) -> None:
        assert SiteConnection("north", f"http://{host}:1/").address == f"http://{host}:1"

    @pytest.mark.parametrize("verify", [False, "/no/such/file", "-----BEGIN nonsense"])
    def test_trust_that_is_refused(self, verify: Any) -> None:
        with pytest.raises(ConfigurationError):
            SiteConnection("north", "https://localhost", verify=verify)

    @pytest.mark.parametrize("token", ["", "a\r\nX-Other: b", "ü"])
    def test_tokens_that_are_refused(self, token: str) -> None:
        with pytest.raises(ConfigurationError):
            SiteConnection("north", "https://localhost", token)

    @pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
    def test_timeouts_that_are_refused(self, timeout: float) -> None:
        with pytest.raises(ConfigurationError):
            SiteConnection("north", "https://localhost", timeout=timeout)

    def test_the_token_does_not_show(self) -> None:
        connection = SiteConnection("north", "https://localhost", "very-secret\n")
        assert "secret" not in f"{connection!r} {connection.parameters!r}"

    async def test_pickled_it_works_elsewhere(self, address, ca, tmp_path) -> None:
        path = tmp_path / "ca.pem"
        path.write_text(ca)
        original = SiteConnection("north", address, "good-token", path, timeout=7)
        path.unlink()
        program = (
            "import sys, pickle\n"
            "from federated_dask.client import loop\n"
            "connection = pickle.load(sys.stdin.buffer)\n"
            "print(loop.sync(connection.catalogue()).site, connection.timeout)\n"
        )
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-X", "dev", "-W", "error", "-c", program],
            input=pickle.dumps(original),
            capture_output=True,
            timeout=60,
        )
        # Nobody closed anything, and nothing complains at the end.
        assert (done.stdout.decode().split(), done.stderr.decode()) == (["north", "7.0"], "")

    async def test_equal_connections_share_and_close_the_last(self, address, ca) -> None:
        from federated_dask.client import sessions

        first = SiteConnection("north", address, "good-token", ca)
        second = pickle.loads(pickle.dumps(first))
        await first.health()
        await second.health()
        [entry] = sessions._entries.values()
        await first.close()
        assert not entry.session.closed
        await second.health()
        await second.close()
        assert entry.session.closed
        await first.health()
        await first.close()
        assert not sessions._entries

    async def test_close_reaches_the_background_loop(self, address, ca) -> None:
        from federated_dask.client import sessions

        connection = SiteConnection("north", address, "good-token", ca)
        await asyncio.to_thread(lambda: loop.sync(connection.health()))
        await connection.health()
        assert len(sessions._entries) == 2
        await connection.close()
        assert not sessions._entries


def test_distributed_is_not_imported() -> None:
    program = (
        "import sys, federated_dask.client.connection, federated_dask.client.backend\n"
        "sys.exit(any(name.split('.')[0] == 'distributed' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
