"""Calls that are cancelled, take too long, wait for their turn, or lose their worker."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from federated_dask.protocol.call_messages import Returned
from federated_dask.protocol.messages import Accepted
from site_plugins import LocalFederation
from site_plugins.endpoint.calls import CallRunner
from tests.site_plugins.calls import assembled, call, events, failed, result, returned, says
from tests.site_plugins.helpers import DEADLINE, Caller
from tests.waiting import async_until

FUNCTIONS = {"functions": {"modules": ["tests.site_plugins.published"]}}


@pytest.fixture(scope="module")
def federation() -> Iterator[LocalFederation]:
    """A site whose worker is a thread."""
    # The news of a lease may be on the way as its caller leaves; then the lease ends by itself.
    site = {**FUNCTIONS, "limits": {"lease_seconds": "5s"}}
    with LocalFederation({"north": site}, threads_per_worker=2) as running:
        yield running


@pytest.fixture
def north(federation: LocalFederation) -> Iterator[Caller]:
    caller = Caller(federation, "north", federation.token["north"])
    yield caller
    caller.wait_until_idle()


@pytest.fixture(scope="module")
def processes() -> Iterator[LocalFederation]:
    """A site whose one worker is a process of 900 MB, which the nanny starts again."""
    cluster = {"memory_limit": "900MB"}
    with LocalFederation(
        {"north": {**FUNCTIONS, "cluster": cluster}}, threads_per_worker=1, processes=True
    ) as running:
        yield running


@pytest.fixture
def mortal(processes: LocalFederation) -> Caller:
    """The site whose worker may die."""
    return Caller(processes, "north", processes.token["north"])


async def process_of(site: Caller, other_than: int | None = None) -> int:
    """Process of the site's worker, once there is one that lives."""
    deadline = time.monotonic() + DEADLINE
    while True:
        async for event, frame in events(site, call("process")):
            last = event, frame
        if isinstance(last[0], Returned):
            found = int(await assembled(site, *last))
            if found != other_than:
                return found
        assert time.monotonic() < deadline, last[0]
        await asyncio.sleep(0.1)


async def test_a_call_whose_caller_goes_away_is_stopped(north: Caller, tmp_path: Path) -> None:
    path = tmp_path / "state"
    async for event, _ in events(north, call("spin_long", str(path))):
        assert isinstance(event, Accepted)
        await async_until(says(path, "started"), "the function runs")
        break
    await async_until(says(path, "ended"), "the function is stopped")


async def test_a_call_that_takes_too_long_is_stopped(north: Caller, tmp_path: Path) -> None:
    path = tmp_path / "state"
    failure = await failed(north, call("spin", str(path)))
    assert failure.reason == "limit_exceeded"
    assert "stopped after 3 seconds" in failure.message
    await async_until(says(path, "ended"), "the function is stopped")
    # Its thread is free for others.
    assert await result(north, call("add", 1)) == 1.5


async def test_a_result_is_let_go_when_nobody_takes_it(north: Caller) -> None:
    # Who leaves now is never told of the lease that there is, or is about to be.
    async for _ in events(north, call("double", list(range(20_000)))):
        break


async def test_a_place_is_given_back_whenever_the_caller_leaves(
    north: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaves with the last event, while the site still tidies up."""
    real = CallRunner._wait
    lingering = threading.Event()

    async def linger(self: CallRunner, *arguments: Any) -> None:
        try:
            await real(self, *arguments)
            await asyncio.sleep(DEADLINE)
        finally:
            lingering.set()
            await asyncio.sleep(0.5)

    monkeypatch.setattr(CallRunner, "_wait", linger)
    async for event, _ in events(north, call("add", 1)):
        if isinstance(event, Returned):
            break
    assert isinstance(event, Returned)

    async def done() -> bool:
        return not await north.running_jobs()

    await async_until(done, "the endpoint has done with the call")
    assert await asyncio.to_thread(lingering.wait, DEADLINE)


async def test_calls_wait_for_their_turn(north: Caller, tmp_path: Path) -> None:
    bodies = [call("alone", str(tmp_path / "mark")) for _ in range(4)]
    assert await asyncio.gather(*(result(north, body) for body in bodies)) == [True] * 4


async def test_who_waits_for_a_turn_may_leave(north: Caller, tmp_path: Path) -> None:
    first = asyncio.ensure_future(result(north, call("alone", str(tmp_path / "mark"))))
    await async_until(
        lambda: (tmp_path / "mark").exists() or first.done(), "the first call has its turn"
    )
    waiting = asyncio.ensure_future(result(north, call("alone", str(tmp_path / "mark"))))
    await asyncio.sleep(0)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert await first is True
    assert await result(north, call("alone", str(tmp_path / "mark"))) is True


async def test_a_lost_worker_ends_the_call_and_it_is_not_run_again(
    mortal: Caller, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    before = await process_of(mortal)
    failure = await failed(mortal, call("die", str(log)))
    assert failure.reason == "worker_lost"
    assert "not run again" in str(failure.hint)
    await process_of(mortal, other_than=before)
    assert log.read_text() == "ran\n"


async def test_an_idempotent_call_is_run_again(mortal: Caller, tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = await process_of(mortal)
    assert await result(mortal, call("die_once", str(log))) == 2
    await process_of(mortal, other_than=before)


@pytest.mark.slow
async def test_a_function_that_takes_too_much_memory(mortal: Caller, tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = await process_of(mortal)
    failure = await failed(mortal, call("hoard", str(log)))
    assert failure.reason == "out_of_memory"
    await process_of(mortal, other_than=before)
    assert log.read_text() == "ran\n"


async def test_a_finished_call_whose_result_is_lost_is_not_run_again(
    processes: LocalFederation, mortal: Caller, tmp_path: Path
) -> None:
    """The worker dies with the outcome before anybody has fetched it."""
    log = tmp_path / "log"
    client = processes.sites["north"].client
    before = await process_of(mortal)
    key = f"federated-once-count-{'0' * 32}"

    async def lose() -> Any:
        future = client.submit(_count, str(log), key=key)
        await future._state.wait()
        [worker] = (await client.who_has([future]))[key]
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(client.run(_exit, workers=[worker], on_error="ignore"), 5)
        try:
            return await future
        except Exception as error:
            # Whatever Dask makes of it; the test looks at the log.
            return error

    # Dask tries to reach a worker that is gone for as long, twice.
    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        error = await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(lose(), processes._loop._loop)
        )
    await process_of(mortal, other_than=before)
    assert isinstance(error, Exception), error
    assert log.read_text() == "ran\n"


def _count(path: str) -> None:
    with open(path, "a") as log:
        log.write("ran\n")


def _exit() -> None:
    import os

    os._exit(1)


async def test_large_data_there_and_back_through_processes(mortal: Caller) -> None:
    import numpy as np

    await process_of(mortal)
    event, _ = await returned(mortal, call("double", np.ones(500_000)))
    assert event.outputs == 1
    status, _ = await mortal.read("DELETE", f"/leases/{event.lease}")
    assert status == 204
