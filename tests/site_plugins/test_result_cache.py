"""Results of finished jobs are kept: an equal or overlapping query reads nothing twice."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from site_plugins import LocalFederation, result_cache
from tests.client.sites import Inside

SEED = np.random.default_rng(0)


def data() -> xr.Dataset:
    return xr.Dataset({"x": (("time", "y"), SEED.random((40, 50)))}).chunk(time=10)


@pytest.fixture(scope="module")
def federation() -> Iterator[LocalFederation]:
    sites: dict[str, Any] = {
        "keeps": {
            "datasets": {"d": data()},
            "limits": {"cache_seconds": 600, "cache_bytes": 10_000},
        },
        "none": {"datasets": {"f": data()}},
    }
    with LocalFederation(sites) as made:
        yield made


@pytest.fixture
def fed(federation: LocalFederation) -> Iterator[FederatedClient]:
    # What is kept here is not what is kept at home.
    with FederatedClient(federation, cache_bytes=0) as client:
        yield client


def read(fed: FederatedClient, site: str) -> int:
    assert fed.last_run is not None
    return fed.last_run.sites[site].read_bytes


def test_an_equal_query_computes_nothing(fed: FederatedClient) -> None:
    x = fed.open_dataset("keeps/d", chunks={}).x
    first = x.mean("time").compute()
    assert read(fed, "keeps") == x.nbytes
    again = x.mean("time").compute()
    xr.testing.assert_identical(first, again)
    assert read(fed, "keeps") == 0
    assert fed.last_run is not None
    assert fed.last_run.sites["keeps"].compute_seconds == 0


def test_an_overlapping_query_computes_what_is_new(fed: FederatedClient) -> None:
    x = fed.open_dataset("keeps/d", chunks={}).x
    x.isel(time=slice(0, 10)).sum("time").compute()
    both = xr.Dataset({"a": x.isel(time=slice(0, 10)).sum("time"), "b": x.isel(time=15)})
    both.compute()
    assert 0 < read(fed, "keeps") < x.nbytes / 2


def test_what_is_too_large_is_not_kept(fed: FederatedClient) -> None:
    whole = fed.open_dataset("keeps/d", chunks={"time": -1}).x
    for _ in range(2):
        (whole + 1).compute()
        assert read(fed, "keeps") == whole.nbytes


def test_results_go_after_their_time(
    fed: FederatedClient, federation: LocalFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = fed.open_dataset("keeps/d", chunks={}).x.std("time")
    query.compute()
    query.compute()
    assert read(fed, "keeps") == 0
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 601)
    monkeypatch.setattr(result_cache, "time", later)
    # Nobody holds anything but the cache.
    Inside(federation, "keeps").until_idle()
    monkeypatch.undo()
    query.compute()
    assert read(fed, "keeps") > 0


def test_the_oldest_goes_first(fed: FederatedClient) -> None:
    x = fed.open_dataset("keeps/d", chunks={}).x
    queries = [x.isel(time=slice(start, start + 10)) + start for start in (0, 10, 20)]
    for query in queries:
        query.compute()
    # Two results of 4,000 bytes fit, the first of three was let go.
    queries[2].compute()
    assert read(fed, "keeps") == 0
    queries[0].compute()
    assert read(fed, "keeps") > 0


def test_a_site_that_keeps_nothing_computes_again(fed: FederatedClient) -> None:
    x = fed.open_dataset("none/f", chunks={}).x
    for _ in range(2):
        x.mean("time").compute()
        assert read(fed, "none") == x.nbytes
