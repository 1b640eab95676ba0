"""Sparse arrays of the package `sparse` are made, computed with and sent by sites that have it."""

from collections.abc import Callable, Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from site_plugins import LocalFederation

sparse = pytest.importorskip("sparse")


def data(seed: int) -> xr.Dataset:
    values = np.random.default_rng(seed).random((40, 500))
    return xr.Dataset({"x": (("time", "y"), np.where(values < 0.95, 0, values))}).chunk(time=10)


@pytest.fixture(scope="module")
def fed() -> Iterator[FederatedClient]:
    sites = {"north": {"datasets": {"a": data(0)}}, "south": {"datasets": {"b": data(1)}}}
    with LocalFederation(sites) as federation, FederatedClient(federation) as client:
        yield client


def coo(array: da.Array) -> da.Array:
    return array.map_blocks(sparse.COO)


@pytest.mark.parametrize(
    "query",
    [
        lambda a, b: coo(a),
        lambda a, b: coo(a) * 2,
        lambda a, b: coo(a).std(axis=0),
        lambda a, b: coo(a).max(axis=1),
        lambda a, b: coo(a)[3:17, 5],
        lambda a, b: coo(a) + coo(b),
        lambda a, b: da.concatenate([coo(a), coo(b)]).sum(axis=0),
        lambda a, b: coo(a).map_blocks(sparse.COO.todense).sum(),
    ],
    ids="made doubled std max slice two concatenated dense".split(),
)
def test_computed_at_the_sites(
    query: Callable[[da.Array, da.Array], da.Array], fed: FederatedClient
) -> None:
    a, b = (fed.open_dataset(name, chunks={}).x.data for name in ("north/a", "south/b"))
    computed: Any = query(a, b).compute()
    expected: Any = query(data(0).x.data, data(1).x.data).compute(scheduler="sync")
    assert type(computed) is type(expected)
    if isinstance(expected, sparse.COO):
        computed, expected = computed.todense(), expected.todense()
    np.testing.assert_allclose(computed, expected)
    assert fed.last_run is not None
    # What is not stored does not cross.
    assert fed.last_run.crossed_bytes < data(0).x.nbytes / 3
