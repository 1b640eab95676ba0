"""Events of jobs as they arrive, and the bytes that are counted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest

from federated_dask.client import loop
from federated_dask.client.connection import SiteConnection, count_links
from federated_dask.errors import (
    Reason,
    RequestRefused,
    SiteUnavailable,
)
from federated_dask.protocol._zstd import compress
from federated_dask.protocol.frames import PREFIX, encode_frame
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import (
    Accepted,
    Failure,
    Finished,
    Heartbeat,
)
from federated_dask.protocol.values import decode_value
from tests.client.wire import MIB, SUBMISSION, events_of, result


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
            raw = msgspec.msgpack.encode((Heartbeat(), [(10, 2**60, 1)]))
            yield [PREFIX.pack(b"FDF1", len(raw), len(raw)) + raw]

        stub.events = events
        connection = SiteConnection("north", address, "good-token", ca)
        with pytest.raises(RequestRefused) as caught:
            await events_of(connection)
        assert caught.value.reason == Reason.LIMIT_EXCEEDED
        await connection.close()

    async def test_a_buffer_that_expands_beyond_what_it_announced(self, connection, stub) -> None:
        async def events() -> AsyncIterator[list[Any]]:
            squeezed = compress(bytes(64 * MIB), 1)
            raw = msgspec.msgpack.encode((Heartbeat(), [(len(squeezed), len(squeezed) + 10, 1)]))
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
