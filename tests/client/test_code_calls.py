"""Callables of one's own at a site, for who may run code there."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from federated_dask.errors import (
    ConfigurationError,
    NotFound,
    NotPermitted,
    Reason,
    RequestRefused,
    TaskFailed,
)
from site_plugins import LocalFederation
from tests.client.sites import made_up

PATIENCE = 60.0
GRANTS = [
    {"to": "anyone", "may": ["describe", "compute", "export", "call"], "on": ["*"]},
    {"to": "user:ada", "may": ["code"], "on": ["site:*"]},
]


@pytest.fixture(scope="module")
def federation() -> Iterator[LocalFederation]:
    described = {"datasets": {"made": made_up(1)}, "grants": GRANTS}
    with LocalFederation({"north": described, "south": described}, subject="ada") as running:
        yield running


@pytest.fixture
def fed(federation: LocalFederation) -> Iterator[FederatedClient]:
    with FederatedClient(federation, timeout=PATIENCE, progress=False) as client:
        yield client


@pytest.fixture
def wind() -> xr.DataArray:
    return made_up(1).wind.compute()


def mean_of(data: Any, factor: float = 1.0) -> float:
    return float(data.mean()) * factor


def test_a_callable_runs_at_a_site(fed: FederatedClient, wind: xr.DataArray) -> None:
    before = fed.connection_of("north").counter.received
    expected = float(wind.mean())
    future = fed.submit(mean_of, "north/made/wind", factor=2.0, site="north")
    assert future.result(PATIENCE) == pytest.approx(2 * expected)
    assert repr(future) == "<FederatedFuture: mean_of, finished>"
    assert fed.connection_of("north").counter.received - before < wind.nbytes / 2
    opened = fed.open_dataset("north/made", chunks={}).wind
    assert fed.submit(mean_of, opened, site="north").result(PATIENCE) == pytest.approx(expected)
    whole = fed.submit(lambda data: sorted(map(str, data.data_vars)), "north/made", site="north")
    assert whole.result(PATIENCE) == sorted(made_up(1).data_vars)


def test_what_is_elsewhere_is_brought(fed: FederatedClient, wind: xr.DataArray) -> None:
    expected = float(wind.mean())
    future = fed.submit(mean_of, "south/made/wind", site="north")
    assert future.result(PATIENCE) == pytest.approx(expected)
    lazy = fed.open_dataset("south/made", chunks={}).wind
    anomaly = fed.submit(lambda data: data - data.mean("time"), lazy, site="south")
    again = fed.submit(mean_of, abs(anomaly.to_dataarray()), site="north")
    known = float(abs(wind - wind.mean("time")).mean())
    assert again.result(PATIENCE) == pytest.approx(known)
    assert fed.submit(mean_of, anomaly, site="south").result(PATIENCE) == pytest.approx(0, abs=1e-9)


def test_data_futures_and_plain_arguments(fed: FederatedClient) -> None:
    numbers = fed.map(lambda x, y: x + y, [1, 2], [10, 20], site="north")
    assert fed.gather(numbers) == [11, 22]
    total = fed.submit(lambda parts, text: (sum(parts), text), numbers, "a/b", site="north")
    assert total.result(PATIENCE) == (33, "a/b")
    doubled = fed.submit(lambda array: array * 2, np.arange(3.0), site="north").result(PATIENCE)
    np.testing.assert_array_equal(doubled, [0.0, 2.0, 4.0])


def test_what_it_raises_comes_back(fed: FederatedClient) -> None:
    def divide(number: int) -> float:
        return 1 / number

    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        fed.submit(divide, 0, site="north").result(PATIENCE)
    told = caught.value.__cause__
    assert isinstance(told, TaskFailed)
    assert (told.reason, told.site) == (Reason.FUNCTION_FAILED, "north")


def test_without_the_grant_the_ways_out_are_said(federation: LocalFederation) -> None:
    token = {name: federation.new_token(name, "eve") for name in federation.addresses}
    ran: list[object] = []
    with FederatedClient(
        federation.addresses, token=token, verify=federation.verify, timeout=PATIENCE
    ) as fed:
        for argument in (1, np.zeros(400_000)):
            with pytest.raises(NotPermitted, match=r"ask the institute to publish") as caught:
                fed.submit(ran.append, argument, site="north").result(PATIENCE)
            assert caught.value.reason is Reason.NOT_PERMITTED
            assert "grant you `code`" in str(caught.value.hint)
            assert caught.value.site == "north"
    assert ran == []


def test_what_cannot_be_sent(fed: FederatedClient) -> None:
    large, lock = bytes(2**21), threading.Lock()
    with pytest.raises(RequestRefused, match="closes over") as caught:
        fed.submit(lambda: large, site="north")
    assert caught.value.reason is Reason.LIMIT_EXCEEDED
    with pytest.raises(ConfigurationError, match="cannot be sent"):
        fed.submit(lambda: lock, site="north")
    with pytest.raises(NotFound):
        fed.submit(len, [], site="west")
    with pytest.raises(RequestRefused, match="plain data"):
        fed.submit(len, object(), site="north").result(PATIENCE)
