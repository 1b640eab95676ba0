"""What came home stays there for a while: an equal or overlapping query moves nothing twice."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from federated_dask.client.kept_results import KeptResults
from federated_dask.client.run_record import RunRecord
from federated_dask.errors import VersionChanged
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.values import encode_value
from site_plugins import LocalFederation

QUESTION = 300
"""Bytes that asking a site whether a result still holds takes at most, in one direction."""


def data(seed: int) -> xr.Dataset:
    values = np.random.default_rng(seed).random((40, 500))
    return xr.Dataset({"x": (("time", "y"), values)}).chunk(time=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("stored")
    data(2).to_zarr(made / "changing.zarr", zarr_format=2, consolidated=True)
    data(3).to_zarr(made / "secret.zarr", zarr_format=2, consolidated=True)
    return made


@pytest.fixture(scope="module")
def federation(folder: Path) -> Iterator[LocalFederation]:
    sites = {
        "north": {
            "datasets": {
                "a": data(0),
                "changing": folder / "changing.zarr",
                "secret": {"path": folder / "secret.zarr", "egress": "derived", "share": 0.1},
            },
            "limits": {"version_check_seconds": 0.001},
        },
        "south": {"datasets": {"b": data(1)}},
    }
    with LocalFederation(sites) as made:
        yield made


@pytest.fixture
def fed(federation: LocalFederation) -> Iterator[FederatedClient]:
    with FederatedClient(federation) as client:
        yield client


def last_run(fed: FederatedClient) -> RunRecord:
    assert fed.last_run is not None
    return fed.last_run


def assert_nothing_moved(run: RunRecord) -> None:
    assert all(link.actual_bytes < QUESTION for link in run.links)
    assert all(site.tasks == site.read_bytes == 0 for site in run.sites.values())


def test_an_equal_query_moves_no_result(fed: FederatedClient) -> None:
    a, b = (fed.open_dataset(name, chunks={}).x for name in ("north/a", "south/b"))
    first = (a.mean("time") - b.mean("time")).compute()
    assert last_run(fed).crossed_bytes > 2 * first.nbytes
    expected = first.copy(deep=True)
    # What the user does to a result is not done to what is kept.
    first[:] = 0
    predicted = fed.explain(a.mean("time") - b.mean("time"))
    assert "2 results are at home" in repr(predicted)
    again = (a.mean("time") - b.mean("time")).compute()
    xr.testing.assert_identical(again, expected)
    run = last_run(fed)
    assert_nothing_moved(run)
    assert {link.start for link in run.links} == {"home", "north", "south"}
    assert sum(predicted.links.values()) < 4 * QUESTION
    assert run.kept_results == 2
    assert run.download_bytes == a.nbytes + b.nbytes


def test_an_overlapping_query_moves_what_is_new(fed: FederatedClient) -> None:
    a, b = (fed.open_dataset(name, chunks={}).x for name in ("north/a", "south/b"))
    (a.mean("time") - b.mean("time")).compute()
    both = (a.mean("time") + b.max("time")).compute()
    xr.testing.assert_allclose(both, data(0).x.mean("time") + data(1).x.max("time"))
    run = last_run(fed)
    assert run.sites["north"].read_bytes == 0
    assert run.sites["south"].read_bytes == b.nbytes
    by_link = {(link.start, link.end): link.actual_bytes for link in run.links}
    assert by_link["north", "home"] < QUESTION < by_link["south", "home"]


def test_a_kept_result_is_sent_where_it_is_needed(fed: FederatedClient) -> None:
    a, b = (fed.open_dataset(name, chunks={}).x for name in ("north/a", "south/b"))
    b.mean("time").compute()
    anomaly = (a - b.mean("time")).std("time").compute()
    xr.testing.assert_allclose(anomaly, (data(0).x - data(1).x.mean("time")).std("time").load())


def test_of_a_changed_dataset_nothing_is_served(fed: FederatedClient, folder: Path) -> None:
    x = fed.open_dataset("north/changing", chunks={}).x
    before = x.mean("time").compute()
    x.mean("time").compute()
    assert_nothing_moved(last_run(fed))
    changed = data(2) + 1
    changed.to_zarr(folder / "changing.zarr", zarr_format=2, consolidated=True, mode="w")
    with pytest.raises(VersionChanged):
        x.mean("time").compute()
    opened = fed.open_dataset("north/changing", chunks={}).x
    xr.testing.assert_allclose(opened.mean("time").compute(), before + 1)
    assert last_run(fed).kept_results == 0


def test_what_does_not_cross_is_not_charged(fed: FederatedClient) -> None:
    x = fed.open_dataset("north/secret", chunks={}).x
    x.mean("time").compute()
    used = fed.budget("north/secret").used
    assert used > 0
    for _ in range(3):
        x.mean("time").compute()
    assert fed.budget("north/secret").used == used


def test_nothing_is_kept_where_nothing_may_be(federation: LocalFederation) -> None:
    with FederatedClient(federation, cache_bytes=0) as fed:
        x = fed.open_dataset("north/a", chunks={}).x
        for _ in range(2):
            result = x.max("time").compute()
            assert last_run(fed).crossed_bytes > result.nbytes
            assert last_run(fed).sites["north"].read_bytes == x.nbytes


def test_what_was_not_used_for_longest_goes_first() -> None:
    kept = KeptResults(2500)
    arrays = [np.full(100, float(number)) for number in range(4)]

    def keep(number: int) -> None:
        buffers: list = []
        tree = encode_value(arrays[number], buffers)
        kept.keep(bytes([number]), tree, buffers)

    for number in (0, 1):
        keep(number)
    assert kept.get(b"\x00") is not None
    for number in (2, 3):
        keep(number)
    # Three of them fit.
    found = [kept.get(bytes([number])) is not None for number in range(4)]
    assert found == [True, False, True, True]
    last = kept.get(b"\x03")
    assert last is not None
    for _ in range(2):
        value = last.value(operation_table())
        np.testing.assert_array_equal(value, arrays[3])
        value[:] = 7
    buffers: list = []
    kept.keep(b"large", encode_value(np.zeros(1000), buffers), buffers)
    assert kept.get(b"large") is None
    assert len(kept) == 3
