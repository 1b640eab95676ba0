"""Calling functions of real sites: data stays where it is, and results go from site to site."""

import threading
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from distributed.client import default_client

from federated_dask import FederatedClient, as_completed, wait
from federated_dask.errors import (
    ConfigurationError,
    NotFound,
    NotPermitted,
    Reason,
    RequestRefused,
)
from site_plugins import LocalFederation
from tests.client.sites import Inside, made_up, wide
from tests.waiting import until

PATIENCE = 60.0
FUNCTIONS = {"modules": ["tests.client.published"]}


@pytest.fixture(scope="module")
def federation() -> Iterator[LocalFederation]:
    secret = {"path": wide(3), "egress": "derived", "share": 0.02}
    sites = {
        "north": {
            "datasets": {"made": made_up(1), "wide": wide(1), "secret": secret},
            "functions": FUNCTIONS,
        },
        "south": {"datasets": {"made": made_up(1)}, "functions": FUNCTIONS},
        # Exchanges nothing: what goes there is relayed by home.
        "ocean": {"datasets": {"made": made_up(1)}, "functions": FUNCTIONS, "exchanges": ()},
    }
    with LocalFederation(sites) as running:
        yield running


@pytest.fixture
def fed(federation: LocalFederation) -> Iterator[FederatedClient]:
    with FederatedClient(federation, timeout=PATIENCE, progress=False) as client:
        yield client


@pytest.fixture
def wind() -> xr.DataArray:
    return made_up(1).wind.compute()


def received(fed: FederatedClient, site: str) -> int:
    """Bytes that came home from a site so far."""
    return fed.connection_of(site).counter.received


def anomaly_of(field: xr.DataArray, scale: float = 1.0) -> xr.DataArray:
    return (field - field.mean("time")) * scale


def test_functions_of_sites(fed: FederatedClient) -> None:
    assert {f"{site}/anomaly" for site in ("north", "ocean", "south")} <= set(fed.functions)
    assert str(fed.functions["north/anomaly"].signature) == (
        "(data: xarray.DataArray, dim: str = 'time', scale: float = 1.0) -> xarray.DataArray"
    )
    assert "Over which the mean is taken." in fed.sites["north"].anomaly.__doc__
    with pytest.raises(RequestRefused, match="'scale' must be more than 0, not -1"):
        fed.submit("north/anomaly", "north/made/wind", scale=-1)


def test_a_dataset_by_name(fed: FederatedClient, wind: xr.DataArray) -> None:
    found = fed.submit("north/anomaly", "north/made/wind", scale=2.0).result()
    xr.testing.assert_allclose(found, anomaly_of(wind, 2.0))
    means = fed.sites["north"].statistics("north/made").result()
    assert means["wind"] == pytest.approx(float(wind.mean()))


def test_a_lazy_expression_is_computed_there(fed: FederatedClient) -> None:
    x = fed.open_dataset("north/wide", chunks={}).x
    before = received(fed, "north")
    future = fed.submit("north/anomaly", np.sqrt(abs(x)).chunk(time=16))
    wait(future, PATIENCE)
    # 8 MB of data, and next to nothing of it came here.
    assert received(fed, "north") - before < 100_000
    lazy = future.to_dataarray()
    expected = anomaly_of(np.sqrt(abs(wide(1).x)))
    assert float(lazy.std().compute()) == pytest.approx(float(expected.std().compute()))
    assert received(fed, "north") - before < 200_000
    xr.testing.assert_allclose(future.result(), expected.compute())


def test_data_meets_at_the_function(fed: FederatedClient, wind: xr.DataArray) -> None:
    for site in ("north", "south", "ocean"):
        there = fed.open_dataset("north/made", chunks={}).wind
        mine = xr.DataArray(da.ones((20, 6, 8), chunks=5), dims=wind.dims, coords=wind.coords)
        found = fed.submit(f"{site}/both", there * 2, mine).result()
        xr.testing.assert_allclose(found, wind * 2 + 1)


def test_a_dataset_of_another_site_by_name(fed: FederatedClient, wind: xr.DataArray) -> None:
    found = fed.submit("south/anomaly", "north/made/wind").result()
    xr.testing.assert_allclose(found, anomaly_of(wind))
    with pytest.raises(RequestRefused, match="no single array"):
        fed.submit("south/anomaly", "north/made").result()


def test_what_may_not_leave_is_called_where_it_is(fed: FederatedClient) -> None:
    assert fed.submit("north/statistics", "north/secret").result().keys() == {"x"}
    with pytest.raises(NotPermitted) as caught:
        fed.submit("south/statistics", "north/secret").result()
    assert caught.value.reason is Reason.EXPORT_NOT_ALLOWED


@pytest.mark.parametrize("site", ["north", "south", "ocean"])
def test_results_go_from_site_to_site(fed: FederatedClient, wind: xr.DataArray, site: str) -> None:
    first = fed.submit("north/anomaly", "north/wide/x")
    wait(first, PATIENCE)
    before = received(fed, "north")
    second = fed.submit(f"{site}/anomaly", first)
    wait(second, PATIENCE)
    assert second.status == "finished", second.traceback()
    came = received(fed, "north") - before
    # 8 MB: relayed by home only where the sites do not exchange values.
    assert came > 8_000_000 if site == "ocean" else came < 50_000
    expected = anomaly_of(anomaly_of(wide(1).x)).mean("y")
    xr.testing.assert_allclose(second.to_dataarray().mean("y").compute(), expected.compute())


def test_results_inside_expressions(fed: FederatedClient, wind: xr.DataArray) -> None:
    lazy = fed.submit("north/anomaly", "north/made/wind").to_dataarray()
    here = fed.open_dataset("south/made", chunks={}).wind
    found = (lazy.mean("time") + here.mean("time")).compute()
    xr.testing.assert_allclose(found, anomaly_of(wind).mean("time") + wind.mean("time"))
    kept = fed.persist(lazy * 2)
    xr.testing.assert_allclose(fed.submit("north/both", kept, lazy).result(), anomaly_of(wind) * 3)


def test_own_data(fed: FederatedClient) -> None:
    assert fed.submit("north/mean_of", np.arange(5.0)).result() == 2.0
    assert fed.submit("north/mean_of", da.arange(5.0, chunks=2)).result() == 2.0
    large = np.random.default_rng(0).random(1_000_000)
    np.testing.assert_array_equal(fed.submit("north/echo", large).result(), large)
    rows = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})
    pd.testing.assert_frame_equal(fed.submit("north/table", rows).result(), rows * 2)


def test_opened_without_chunks(fed: FederatedClient, wind: xr.DataArray) -> None:
    opened = fed.open_dataset("north/made", chunks=None)
    before = received(fed, "north")
    future = fed.submit("north/statistics", opened)
    assert future.result()["wind"] == pytest.approx(float(wind.mean()))
    assert received(fed, "north") - before < 20_000


def test_many(fed: FederatedClient) -> None:
    futures = fed.map("north/mean_of", [np.full(3, float(number)) for number in range(40)])
    assert fed.gather(futures) == [float(number) for number in range(40)]
    assert len(list(as_completed(futures))) == 40


def test_what_a_function_raises(fed: FederatedClient) -> None:
    future = fed.submit("north/fail", "no such level")
    with pytest.raises(ValueError, match="no such level") as caught:
        future.result()
    assert caught.value.__cause__.reason is Reason.FUNCTION_FAILED
    assert "in fail" in future.traceback()


class TestOwnFunctions:
    def test_run_at_home(self, fed: FederatedClient, wind: xr.DataArray) -> None:
        here = threading.current_thread()

        def describe(field: xr.DataArray, parts: list[float], *, factor: float) -> dict[str, Any]:
            assert threading.current_thread() is not here
            assert type(field.data) is np.ndarray
            return {"mean": float(field.mean()) * factor, "parts": sum(parts)}

        lazy = fed.open_dataset("north/made", chunks={}).wind
        numbers = fed.map("north/mean_of", [np.ones(3), np.full(2, 2.0)])
        future = fed.submit(describe, lazy, numbers, factor=2.0)
        found = future.result(PATIENCE)
        assert found["mean"] == pytest.approx(2 * float(wind.mean()))
        assert found["parts"] == 3
        assert repr(future) == "<FederatedFuture: describe, finished>"
        assert fed.gather(fed.map(lambda number: number + 1, range(3))) == [1, 2, 3]

    def test_what_may_not_come_home_is_refused(self, fed: FederatedClient) -> None:
        secret = fed.open_dataset("north/secret", chunks={}).x
        assert fed.submit(float, secret.mean()).result() == pytest.approx(float(wide(3).x.mean()))
        ran: list[object] = []
        with pytest.raises(NotPermitted, match=r"publishes .*ask the institute") as caught:
            fed.submit(ran.append, secret).result()
        assert caught.value.reason is Reason.EXPORT_NOT_ALLOWED
        assert caught.value.site == "north"
        assert ran == []

    def test_what_cannot_be_called(self, fed: FederatedClient) -> None:
        with pytest.raises(ConfigurationError, match="cannot be called"):
            fed.submit(3)
        with pytest.raises(NotFound):
            fed.submit(len, [], site="west")


def test_calls_leave_the_default_scheduler_alone(federation: LocalFederation) -> None:
    # The workers are threads of this process, and compute inside of functions.
    before = dask.config.get("scheduler", None)
    with FederatedClient(federation, timeout=PATIENCE, progress=False) as fed:
        own = dask.config.get("scheduler")
        lazy = fed.submit("north/anomaly", "north/made/wind").to_dataarray()
        fed.submit("north/mean_of", lazy.mean("time").data).result()
        assert dask.config.get("scheduler") is own
        assert float(lazy.count().compute()) > 0
        assert fed.last_run.sites
    assert dask.config.get("scheduler", None) is before
    # Nor is a worker's client the one that this process would fall back on.
    with pytest.raises(ValueError, match="No clients found"):
        default_client()


def test_progress_and_cancelling(fed: FederatedClient, federation: LocalFederation) -> None:
    future = fed.submit("north/slowly", 300.0)
    until(lambda: future.progress.message == "still busy", "progress is told")
    assert 0 < future.progress.fraction < 1
    scheduler = Inside(federation, "north")

    def tasks(dask_scheduler) -> int:
        return sum("slowly" in str(key) for key in dask_scheduler.tasks)

    assert scheduler.ask(tasks) > 0
    future.cancel()
    until(lambda: scheduler.ask(tasks) == 0, "the call has left the scheduler")
    # The worker is free again.
    assert fed.submit("north/slowly", 0.1).result(PATIENCE) == "done"


def test_cancelling_a_call_leaves_what_it_was_given(
    fed: FederatedClient, federation: LocalFederation
) -> None:
    given = fed.submit("north/slowly", 300.0)
    at_home = fed.submit(lambda text: text, given)
    # Waits for its argument before the site is asked whether it may run there.
    at_a_site = fed.submit(len, given, site="north")
    until(lambda: given.progress.message == "still busy", "progress is told")
    for dependent in (at_home, at_a_site):
        dependent.cancel()
        assert dependent.cancelled()
    # Time enough for a cancellation to get where it must not: the function goes on.
    before = given.progress.fraction
    until(lambda: given.done() or given.progress.fraction > before, "the function goes on")
    assert given.status == "pending"
    given.cancel()


def test_the_first_error_does_not_wait_for_the_rest(fed: FederatedClient) -> None:
    slow = fed.submit("north/slowly", 300.0)
    wrong = fed.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fed.gather([slow, wrong])
    with pytest.raises(ZeroDivisionError):
        fed.gather(wrong, errors="skip")
    assert slow.status == "pending"
    slow.cancel()
