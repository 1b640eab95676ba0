"""Bodies as they are received: bounded in time, and in memory over all of them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from federated_dask.errors import NotPermitted, RequestRefused
from federated_dask.protocol.frames import encode_frame
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import Progress
from site_plugins.endpoint import streams
from site_plugins.endpoint.streams import (
    ByteBudget,
    FrameResponse,
    FrameStream,
    Outgoing,
    receive_frame,
)
from site_plugins.tokens import Principal

BODY = b"".join(bytes(p) for p in encode_frame(Progress(done=1, total=2), [bytes(2**20)]))


def request(pieces: Sequence[bytes]) -> Request:
    left = list(pieces)

    async def receive() -> Any:
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def test_a_frame_takes_of_the_budget_while_it_is_used() -> None:
    budget = ByteBudget(2**21)
    async with receive_frame(request([BODY[:100], BODY[100:]]), Limits(), 5, budget) as frame:
        assert len(frame.buffers[0]) == 2**20
        assert 2**20 - 2000 < budget.free < 2**20
    assert budget.free == 2**21


async def test_a_frame_for_which_there_is_no_room_is_refused_at_the_deadline() -> None:
    budget = ByteBudget(2**20 + 2000)
    async with receive_frame(request([BODY]), Limits(), 5, budget):
        with pytest.raises(RequestRefused, match="too busy") as refusal:
            async with receive_frame(request([BODY]), Limits(), 0.01, budget):
                pass
        assert refusal.value.reason == "limit_exceeded"
    assert budget.free == 2**20 + 2000
    async with receive_frame(request([BODY]), Limits(), 5, budget):
        pass


async def test_a_damaged_frame_gives_back_what_it_took() -> None:
    budget = ByteBudget(2**21)
    with pytest.raises(RequestRefused):
        async with receive_frame(request([BODY[:-3] + b"abc"]), Limits(), 5, budget) as frame:
            list(frame.buffers)
    assert budget.free == 2**21


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


async def never() -> Any:
    await asyncio.Event().wait()


async def test_who_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SEND_SECONDS", 0.01)
    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await never()

    async def frames() -> AsyncGenerator[list[Any], None]:
        try:
            while True:
                yield [bytes(10)]
        finally:
            sent.append("closed")

    state = SimpleNamespace(outgoing=Outgoing(2**21))
    scope = {"type": "http", "app": SimpleNamespace(state=state)}
    async with asyncio.timeout(60):
        await FrameResponse([bytes(2**20)])(scope, never, send)
        await FrameStream(frames())(scope, never, send)
    assert sent == ["http.response.start", "http.response.body"] * 2 + ["closed"]
    assert state.outgoing._budgets == {}


async def test_what_is_not_read_delays_what_comes_next_for_the_same() -> None:
    outgoing = Outgoing(2**21, seconds=0.01)
    state = SimpleNamespace(outgoing=outgoing)
    begun = asyncio.Event()

    async def hang(message: Any) -> None:
        if message["type"] == "http.response.body":
            begun.set()
            await never()

    async def take(message: Any) -> None:
        pass

    def scope(subject: str) -> dict[str, Any]:
        principal = Principal(issuer="urn:north", subject=subject, expires=0.0)
        app = SimpleNamespace(state=state)
        return {"type": "http", "app": app, "state": {"principal": principal}}

    sending = asyncio.ensure_future(FrameResponse([bytes(2**21)])(scope("ada"), never, hang))
    await begun.wait()
    with pytest.raises(NotPermitted, match="not read"):
        await FrameResponse([bytes(2**20)])(scope("ada"), never, take)
    await FrameResponse([bytes(2**22)])(scope("bo"), never, take)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await FrameResponse([bytes(2**20)])(scope("ada"), never, take)
    assert outgoing._budgets == {}
