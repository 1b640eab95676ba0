"""Bodies as they are received: bounded in time, and in memory over all of them."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import Request

from federated_dask.errors import RequestRefused
from federated_dask.protocol.frames import encode_frame
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import Progress
from site_plugins.endpoint import bodies
from site_plugins.endpoint.bodies import receive_frame
from site_plugins.endpoint.byte_budgets import PRINCIPALS, ByteBudget, Intake, Shares
from site_plugins.endpoint.web_bodies import receive_arguments

MEBI = 2**20
LIMITS = Limits(header_bytes=MEBI, buffer_bytes=MEBI, parts=1000)
BODY = b"".join(bytes(p) for p in encode_frame(Progress(done=1, total=2), [bytes(MEBI)]))
HEAD = len(BODY) - len(encode_frame(Progress(done=1, total=2), [bytes(MEBI)])[1])


class Sending:
    """A request whose body comes in pieces, the last of which may be long in coming."""

    def __init__(self, pieces: Sequence[bytes], length: str | None = None) -> None:
        self.left = list(pieces)
        self.go_on = asyncio.Event()
        self.stops = asyncio.Event()
        """Whether it was asked for what is not there yet."""
        headers = [] if length is None else [(b"content-length", length.encode())]
        scope = {"type": "http", "method": "POST", "headers": headers}
        self.request = Request(scope, self.receive)

    async def receive(self) -> Any:
        body = self.left.pop(0)
        if not body:
            self.stops.set()
            await self.go_on.wait()
            body = self.left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(self.left)}


def free(shares: Shares) -> int:
    assert shares.all is not None
    return shares.all.free


def receiving(sending: Sending, intake: Intake, owner: str = "ada", seconds: float = 60.0) -> Any:
    return receive_frame(sending.request, LIMITS, seconds, intake, owner)


async def test_a_frame_takes_room_from_its_first_bytes_on() -> None:
    intake = Intake(LIMITS)
    sending = Sending([BODY[:5], BODY[5:HEAD], b"", BODY[HEAD:]])

    async def use() -> None:
        async with receiving(sending, intake) as received:
            assert len(received.frame.buffers[0]) == MEBI
            assert free(intake.buffers) == (PRINCIPALS - 1) * MEBI

    using = asyncio.create_task(use())
    await sending.stops.wait()
    # None of the buffer has come.
    assert free(intake.buffers) == (PRINCIPALS - 1) * MEBI
    sending.go_on.set()
    await using
    assert free(intake.buffers) == PRINCIPALS * MEBI
    assert free(intake.headers) == intake.headers.share * PRINCIPALS


async def test_who_sends_on_is_not_read_until_there_is_room() -> None:
    intake = Intake(LIMITS)
    async with receiving(Sending([BODY]), intake):
        waiting = Sending([BODY[:HEAD], BODY[HEAD:]])
        with pytest.raises(RequestRefused, match="too busy") as refusal:
            async with receiving(waiting, intake, seconds=0.01):
                pass
        assert refusal.value.reason == "limit_exceeded"
        assert waiting.left == [BODY[HEAD:]]
        # It is one's own share that is used up.
        async with receiving(Sending([BODY]), intake, owner="bo"):
            pass
    async with receiving(Sending([BODY]), intake):
        pass
    assert free(intake.buffers) == PRINCIPALS * MEBI


async def test_room_that_is_taken_over_outlives_the_request() -> None:
    intake = Intake(LIMITS)
    async with receiving(Sending([BODY]), intake) as received:
        room = received.room.pop_all()
    assert free(intake.buffers) == (PRINCIPALS - 1) * MEBI
    await room.aclose()
    assert free(intake.buffers) == PRINCIPALS * MEBI


async def test_a_damaged_frame_gives_back_what_it_took() -> None:
    intake = Intake(LIMITS)
    with pytest.raises(RequestRefused):
        async with receiving(Sending([BODY[:-3] + b"abc"]), intake) as received:
            list(received.frame.buffers)
    assert free(intake.buffers) == PRINCIPALS * MEBI


async def test_who_falls_silent_gives_back_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SILENCE_SECONDS", 0.01)
    intake = Intake(LIMITS)
    async with asyncio.timeout(60):
        with pytest.raises(RequestRefused, match="did not arrive"):
            async with receiving(Sending([BODY[:HEAD], b"", b""]), intake, seconds=3600.0):
                pass
    assert free(intake.buffers) == PRINCIPALS * MEBI


@pytest.mark.parametrize("kind", ["frames", "application/json", "multipart/form-data; boundary=b"])
async def test_a_body_that_says_to_be_too_long_is_not_read(kind: str) -> None:
    intake = Intake(LIMITS)
    sending = Sending([], length=str(3 * MEBI))
    sending.request.scope["headers"].append((b"content-type", kind.encode()))
    asking = receiving(sending, intake)
    if kind != "frames":
        asking = receive_arguments(sending.request, LIMITS, 60.0, intake, "ada")
    with pytest.raises(RequestRefused) as refusal:
        await asking.__aenter__()
    assert refusal.value.reason == "limit_exceeded"


async def test_json_takes_room_before_it_is_read() -> None:
    intake = Intake(LIMITS)
    sending = Sending([b"", b'{"x": 1}'])
    sending.request.scope["headers"].append((b"content-type", b"application/json"))

    async def use() -> None:
        async with receive_arguments(sending.request, LIMITS, 60.0, intake, "ada") as (found, _, _):
            assert found == {"x": 1}

    using = asyncio.create_task(use())
    await sending.stops.wait()
    # It does not say how much it is.
    assert free(intake.headers) == (PRINCIPALS - 1) * intake.headers.share
    sending.go_on.set()
    await using
    assert free(intake.headers) == PRINCIPALS * intake.headers.share


async def test_the_budget_is_handed_out_in_turn() -> None:
    budget = ByteBudget(10)
    got: list[str] = []
    leave = {name: asyncio.Event() for name in "abcd"}

    async def take(name: str, size: int) -> None:
        async with budget.taken(size):
            got.append(name)
            await leave[name].wait()

    tasks = {
        name: asyncio.create_task(take(name, size))
        for name, size in (("a", 6), ("b", 9), ("c", 3), ("d", 3))
    }
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # The small ones would fit, but it is not their turn.
    assert got == ["a"]
    tasks["b"].cancel()
    await asyncio.gather(tasks["b"], return_exceptions=True)
    await asyncio.sleep(0)
    assert got == ["a", "c"]
    for event in leave.values():
        event.set()
    await asyncio.gather(tasks["a"], tasks["c"], tasks["d"])
    assert got == ["a", "c", "d"]
    assert budget.free == 10
