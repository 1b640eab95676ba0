"""Whenever a client leaves: its place, and what was set aside of a budget, are given back."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from federated_dask.protocol.messages import Accepted, Output, Result
from site_plugins import LocalFederation
from site_plugins.endpoint.finishing import finished
from site_plugins.endpoint.gateway import Gateway
from site_plugins.ledger import Ledger
from tests.site_plugins import graphs
from tests.site_plugins.helpers import DEADLINE, Caller, dataset, submission

_numbers = itertools.count()
SLOW = 0.5


@pytest.fixture(scope="module")
def federation() -> Iterator[LocalFederation]:
    derived = {"path": dataset(), "egress": "derived", "share": 0.5}
    with LocalFederation(
        {"north": {"datasets": {"all": derived}}}, threads_per_worker=2
    ) as running:
        yield running


@pytest.fixture
def north(federation: LocalFederation) -> Iterator[Caller]:
    token = federation.new_token("north", f"user-{next(_numbers)}")
    caller = Caller(federation, "north", token)
    yield caller
    caller.wait_until_idle()


async def used(north: Caller) -> int:
    return int((await north.json("/datasets/all/budget"))["used"])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def has_no_jobs(north: Caller) -> bool:
    return not await north.running_jobs()


async def test_as_its_job_ends(north: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint asks the scheduler what the job took, as from another machine."""
    real = Gateway.account

    async def slow(self: Gateway, job: str, *, close: bool = False) -> Any:
        if close:
            await asyncio.sleep(SLOW)
        return await real(self, job, close=close)

    graph = graphs.chunk_sums(await north.version("all"), "all")
    await north.run(graph, graph.tasks - 1)
    once = await used(north)
    monkeypatch.setattr(Gateway, "account", slow)
    async for event, _ in north.events(submission(graph, graph.tasks - 1)):
        if isinstance(event, Result):
            break
    await until(lambda: has_no_jobs(north))
    assert await used(north) == 2 * once > 0


async def test_while_its_budget_is_written(north: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Ledger.take
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(self: Ledger, *arguments: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        time.sleep(SLOW)
        real(self, *arguments)

    graph = graphs.chunk_sums(await north.version("all"), "all")
    monkeypatch.setattr(Ledger, "take", slow)
    body = submission(graph, Output(task=graph.tasks - 1), reserve={"all": 5000})
    leaving = asyncio.create_task(_read_all(north, body))
    await begun.wait()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await asyncio.sleep(2 * SLOW)
    await until(lambda: has_no_jobs(north))
    assert await used(north) == 0


async def _read_all(north: Caller, body: bytes) -> None:
    async for event, _ in north.events(body):
        assert isinstance(event, Accepted)


async def test_an_ending_is_whole_however_often_it_is_cancelled() -> None:
    ended = []

    async def end() -> int:
        await asyncio.sleep(0.05)
        ended.append(True)
        return 5

    assert await finished(end()) == 5
    waiting = asyncio.create_task(finished(end()))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(ended) == 2

    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await finished(fail())
