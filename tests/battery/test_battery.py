"""The battery through real sites: every expression, in four layouts, against plain xarray.

`tests/planner` runs the same expressions through plans and a reference
interpreter; here the graphs cross TLS sockets to Dask clusters that read Zarr.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from federated_dask import FederatedClient
from site_plugins import LocalFederation
from tests.battery.expressions import BATTERY, battery_cases

LAT, LON = 4, 6
CHUNKS = {"time": 6, "lat": 2, "lon": 6}


def piece(seed: int, start: str, length: int, first_longitude: float = 0.0) -> xr.Dataset:
    random = np.random.default_rng(seed)
    floats = random.random((length, LAT, LON))
    floats[floats < 0.1] = np.nan
    coords = {
        "time": pd.date_range(start, periods=length, freq="MS", unit="ns"),
        "lat": np.arange(float(LAT)),
        "lon": first_longitude + np.arange(float(LON)),
    }
    dims = ("time", "lat", "lon")
    return xr.Dataset(
        {"x": (dims, floats, {"units": "1"}), "i": (dims, random.integers(0, 4, floats.shape))},
        coords,
    ).chunk(CHUNKS)


PIECES = {
    "whole": ("north", piece(0, "2000-01-01", 24)),
    "first": ("north", piece(1, "2000-01-01", 18)),
    "second": ("south", piece(2, "2001-07-01", 12)),
    "west": ("north", piece(3, "2000-01-01", 24)),
    "east": ("south", piece(4, "2000-01-01", 24, LON)),
    "a": ("north", piece(5, "2000-01-01", 12)),
    "b": ("south", piece(6, "2001-01-01", 6)),
    "c": ("north", piece(7, "2001-07-01", 6)),
    "d": ("ocean", piece(8, "2002-01-01", 12)),
}

LAYOUTS: dict[str, tuple[tuple[str, ...], str]] = {
    "one": (("whole",), "time"),
    "in time": (("first", "second"), "time"),
    "side by side": (("west", "east"), "lon"),
    "three": (("a", "b", "c", "d"), "time"),
}


@pytest.fixture(scope="module")
def fed() -> Iterator[FederatedClient]:
    sites: dict[str, Any] = {}
    for name, (site, data) in PIECES.items():
        sites.setdefault(site, {"datasets": {}})["datasets"][name] = data
    with LocalFederation(sites) as federation, FederatedClient(federation) as client:
        yield client


def laid(open_: Callable[[str], xr.Dataset], layout: str) -> xr.Dataset:
    names, dimension = LAYOUTS[layout]
    pieces = [open_(name) for name in names]
    return pieces[0] if len(pieces) == 1 else xr.concat(pieces, dimension)


@pytest.fixture(scope="module")
def remote(fed: FederatedClient) -> dict[str, xr.Dataset]:
    def open_(name: str) -> xr.Dataset:
        opened: xr.Dataset = fed.open_dataset(f"{PIECES[name][0]}/{name}", chunks={})
        return opened

    return {layout: laid(open_, layout) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def plain() -> dict[str, xr.Dataset]:
    return {layout: laid(lambda name: PIECES[name][1], layout) for layout in LAYOUTS}


@pytest.mark.parametrize(("name", "layout"), battery_cases(LAYOUTS))
def test_sites_compute_what_xarray_does(
    name: str, layout: str, remote: dict[str, xr.Dataset], plain: dict[str, xr.Dataset]
) -> None:
    with warnings.catch_warnings():
        # What numpy says of means of nothing is not what this is about.
        warnings.simplefilter("ignore")
        (expected,) = dask.compute(
            BATTERY[name](plain[layout].x, plain[layout].i), scheduler="sync"
        )
        (computed,) = dask.compute(BATTERY[name](remote[layout].x, remote[layout].i))
    assert type(computed) is type(expected)
    if isinstance(expected, xr.DataArray | xr.Dataset):
        xr.testing.assert_allclose(computed, expected, rtol=1e-6, atol=1e-12, check_dim_order=True)
        assert computed.attrs == expected.attrs
        ours, theirs = computed, expected
        if isinstance(expected, xr.DataArray):
            ours, theirs = computed._to_temp_dataset(), expected._to_temp_dataset()
        for variable in theirs.variables:
            assert ours[variable].dtype == theirs[variable].dtype
            assert ours[variable].attrs == theirs[variable].attrs
    else:
        assert np.asarray(computed).dtype == np.asarray(expected).dtype
        np.testing.assert_allclose(computed, expected, rtol=1e-6, atol=1e-12)


def test_the_battery_is_large() -> None:
    assert len(BATTERY) >= 150
