"""Leases are renewed as long as something refers to them."""

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from federated_dask.client import held, loop
from federated_dask.client.held import Lease
from federated_dask.errors import NotFound, Reason, RequestRefused, SiteUnavailable
from site_plugins import LocalFederation
from tests.client.sites import Inside
from tests.waiting import until


class Connection:
    """What a lease uses of a connection."""

    name = "north"

    def __init__(self, *answers: float | Exception) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []
        self.ended = threading.Event()

    async def renew(self, lease: str) -> float:
        assert asyncio.get_running_loop() is loop.background_loop()
        self.calls.append(f"renew {lease}")
        answer = self.answers.pop(0)
        if not self.answers:
            self.ended.set()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def release(self, lease: str) -> None:
        self.calls.append(f"release {lease}")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that leases ask for; none is waited for."""
    asked: list[float] = []
    background = loop.background_loop()
    call_later = background.call_later

    def at_once(pause: float, callback: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if callback is not held._start_renewal:
            return call_later(pause, callback, *arguments, **options)
        asked.append(pause)
        return call_later(0, callback, *arguments, **options)

    monkeypatch.setattr(background, "call_later", at_once)
    return asked


ENDED = NotFound("No such lease.", reason=Reason.UNKNOWN_RESULT)
DOWN = SiteUnavailable("Down.", reason=Reason.UNREACHABLE)


def test_it_is_renewed_well_before_its_end_until_it_has_ended(pauses: list[float]) -> None:
    connection = Connection(3600, 600, DOWN, TimeoutError(), ENDED)
    lease = Lease(connection, "l", 3600)
    assert connection.ended.wait(30)
    # What failed is tried again, in time.
    assert pauses == [1200, 1200, 200, 200, 200]
    assert connection.calls == ["renew l"] * 5
    del lease
    until(lambda: connection.calls[-1] == "release l", "it is released")


@pytest.mark.parametrize(
    ("seconds", "pause"),
    [
        (0.0, held.SHORTEST_PAUSE),
        (float("nan"), held.SHORTEST_PAUSE),
        (float("inf"), held.LONGEST_PAUSE),
        (1e300, held.LONGEST_PAUSE),
    ],
)
def test_whatever_a_site_says(pauses: list[float], seconds: float, pause: float) -> None:
    connection = Connection(ENDED)
    lease = Lease(connection, "l", seconds)
    assert connection.ended.wait(30)
    assert pauses == [pause]
    del lease


def test_what_nothing_refers_to_is_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[Any] = []
    background = loop.background_loop()
    added = threading.Event()

    def keep(pause: float, callback: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        timers.append((callback, arguments))
        added.set()

    monkeypatch.setattr(background, "call_later", keep)
    connection = Connection(ENDED)
    lease = Lease(connection, "l", 1)
    assert added.wait(30)
    monkeypatch.undo()
    del lease
    gc.collect()
    [(callback, arguments)] = timers
    callback(*arguments)
    until(lambda: connection.calls == ["release l"], "it is released only")


def test_a_site_that_does_not_say_how_long(pauses: list[float]) -> None:
    connection = Connection()
    lease = Lease(connection, "l")
    loop.sync(asyncio.sleep(0))
    assert pauses == []
    del lease


def test_persisted_collections_outlive_their_first_lease() -> None:
    data = xr.Dataset({"v": ("x", np.arange(10.0))}).chunk(x=5)
    sites = {"north": {"datasets": {"a": data}, "limits": {"lease_seconds": 3}}}
    with LocalFederation(sites) as federation, FederatedClient(federation, progress=False) as fed:
        north = Inside(federation, "north")
        persisted = (fed.open_dataset("north/a", chunks={}).v * 2).persist()
        [name] = north.leases()

        def end() -> float:
            return north.ask(
                lambda dask_scheduler: dask_scheduler.plugins["federated-site"]._leases[name].end
            )

        first = end()
        # Nothing uses it meanwhile.
        until(lambda: end() > first + 0.5, "it was renewed")
        assert persisted.sum().compute() == 90
        del persisted
        gc.collect()
        north.until_idle()


def test_more_than_one_may_hold() -> None:
    data = xr.Dataset({"v": ("x", np.arange(10.0))}).chunk(x=5)
    sites = {"north": {"datasets": {"a": data}, "limits": {"leases_per_owner": 1}}}
    with LocalFederation(sites) as federation, FederatedClient(federation, progress=False) as fed:
        lazy = fed.open_dataset("north/a", chunks={}).v
        first = (lazy * 2).persist()
        with pytest.raises(RequestRefused, match="Let go of persisted collections") as error:
            (lazy * 3).persist()
        assert (error.value.reason, error.value.site) == (Reason.LIMIT_EXCEEDED, "north")
        del first
        gc.collect()
        Inside(federation, "north").until(
            lambda: not Inside(federation, "north").leases(), "the first is released"
        )
        assert (lazy * 3).persist().sum().compute() == 135
