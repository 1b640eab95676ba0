"""What must run at home runs on the researcher's own cluster, where there is one."""

from __future__ import annotations

import os

import dask
import numpy as np
import xarray as xr
from distributed import Client, LocalCluster

from federated_dask import FederatedClient
from site_plugins import LocalFederation


def test_own_functions_run_on_the_own_cluster() -> None:
    data = xr.Dataset({"x": ("t", np.arange(12.0))}).chunk(t=4)
    with (
        LocalFederation({"north": {"datasets": {"d": data}}}) as federation,
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster, set_as_default=False) as home,
        FederatedClient(federation, home=home) as fed,
    ):
        x = fed.open_dataset("north/d", chunks={"t": 4}).x
        where = x.data.map_blocks(lambda block: np.full(1, os.getpid()), dtype=int, chunks=(1,))
        pids = set(where.compute().tolist())
        assert pids == set(home.run(os.getpid).values())
        assert os.getpid() not in pids
        doubled = x.data.map_blocks(lambda block: 2 * block).sum()
        assert doubled.compute() == 2 * np.arange(12.0).sum()


def test_what_has_no_data_of_a_site_runs_there_too() -> None:
    data = xr.Dataset({"x": ("t", np.arange(12.0))}).chunk(t=4)
    with (
        LocalFederation({"north": {"datasets": {"d": data}}}) as federation,
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster, set_as_default=False) as home,
        FederatedClient(federation, home=home),
    ):
        pid = dask.delayed(os.getpid)().compute()
        assert [pid] == list(home.run(os.getpid).values())
