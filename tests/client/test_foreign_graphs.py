"""Graphs that are no plain array expressions over site data: computed all the same, or refused."""

import pickle
from collections.abc import Iterator

import dask
import dask.array as da
import dask.bag
import numpy as np
import pytest
import xarray as xr
from dask.delayed import delayed
from distributed import Client, LocalCluster

from federated_dask import FederatedClient
from federated_dask.errors import ConfigurationError
from site_plugins import LocalFederation

VALUES = np.random.default_rng(0).random((40, 30))


@pytest.fixture(scope="module")
def fed() -> Iterator[FederatedClient]:
    data = xr.Dataset({"x": (("time", "y"), VALUES)}).chunk(time=10)
    sites = {"north": {"datasets": {"d": data}}}
    with LocalFederation(sites) as federation, FederatedClient(federation) as client:
        yield client


@pytest.fixture
def x(fed: FederatedClient) -> da.Array:
    opened: da.Array = fed.open_dataset("north/d", chunks={}).x.data
    return opened


def test_a_collection_inside_of_a_delayed_call(x: da.Array) -> None:
    total = delayed(lambda array: float(array.sum()))(x.mean(axis=0))
    assert total.compute() == pytest.approx(VALUES.mean(axis=0).sum())


def test_arrays_in_lists_of_delayed_calls(x: da.Array) -> None:
    pieces = [delayed(np.max)(x[start : start + 10]) for start in range(0, 40, 10)]
    assert delayed(max)(pieces).compute() == VALUES.max()


def test_what_has_no_site_data_runs_here_untouched(fed: FederatedClient) -> None:
    before = fed.last_run
    assert delayed(sum)([1, 2, 3]).compute() == 6
    assert (
        dask.bag.from_sequence(range(10), npartitions=2).map(lambda i: i * 2).sum().compute() == 90
    )
    assert da.ones(10, chunks=5).sum().compute() == 10
    assert fed.last_run is before


def test_a_dataframe_without_and_with_site_data(fed: FederatedClient, x: da.Array) -> None:
    dataframe = pytest.importorskip("dask.dataframe")
    pandas = pytest.importorskip("pandas")
    own = dataframe.from_pandas(pandas.DataFrame({"a": range(10)}), npartitions=2)
    assert own.a.sum().compute() == 45
    frame = dataframe.from_dask_array(x, columns=[f"c{i}" for i in range(30)])
    np.testing.assert_allclose(frame.sum().compute(), VALUES.sum(axis=0))


def test_pieces_persisted_by_this_client(fed: FederatedClient, x: da.Array) -> None:
    kept = (x + 1).persist()
    np.testing.assert_allclose((kept * 2).sum(axis=0).compute(), ((VALUES + 1) * 2).sum(axis=0))
    assert fed.last_run is not None
    assert fed.last_run.sites["north"].read_bytes == 0


def test_rechunking_while_another_client_is_active(fed: FederatedClient, x: da.Array) -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster),
    ):
        fed.as_current()
        # With a Client at hand Dask would make P2P layers, which are bound to its scheduler.
        rechunked = x.rechunk({0: -1, 1: 5})
        np.testing.assert_allclose(rechunked.sum(axis=0).compute(), VALUES.sum(axis=0))


def test_pieces_persisted_on_another_client(fed: FederatedClient, x: da.Array) -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster, set_as_default=False) as other,
    ):
        mine = other.persist(da.ones((40, 30), chunks=(10, 30)))
        with pytest.raises(ConfigurationError, match="persisted on another Dask Client") as error:
            (x + mine).sum().compute()
        assert "client.compute(part).result()" in str(error.value)


def test_the_scheduler_stays_out_of_other_processes(fed: FederatedClient) -> None:
    fed.as_current()
    # Dask hands its configuration to the processes of a cluster that is started meanwhile.
    assert pickle.loads(pickle.dumps(dask.config.get("scheduler"))) is None


def test_a_client_that_was_closed_computes_no_more(x: da.Array) -> None:
    with LocalFederation({"north": {}}) as federation:
        other = FederatedClient(federation)
        other.as_current()
        scheduler = dask.config.get("scheduler")
        other.close()
    assert dask.config.get("scheduler") is not scheduler
    with dask.config.set(scheduler=scheduler):
        assert delayed(sum)([1, 2]).compute() == 3
