"""Responses as they are sent: to those who read them."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from federated_dask.errors import NotPermitted
from site_plugins.endpoint import streams
from site_plugins.endpoint.byte_budgets import Outgoing
from site_plugins.endpoint.streams import FrameResponse, FrameStream
from site_plugins.tokens import Principal


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
    assert state.outgoing.shares._budgets == {}


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
    assert outgoing.shares._budgets == {}
