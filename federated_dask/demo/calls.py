"""Calls of the demo: functions that its sites publish, held against plain local xarray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from federated_dask.client.federated_client import FederatedClient
from federated_dask.client.future import FederatedFuture
from federated_dask.demo.queries import Inputs, last_years

__all__ = ["CALLS", "Call"]

FIRST_YEAR = 2070
CELLS = 4


@dataclass(frozen=True)
class Call:
    """One call of a published function."""

    name: str
    title: str
    begin: Callable[[FederatedClient, Inputs], FederatedFuture[Any]]
    expected: Callable[[Inputs], xr.DataArray]
    taken: Callable[[Any], xr.DataArray]
    tolerance: float


def begin_trend(fed: FederatedClient, inputs: Inputs) -> FederatedFuture[Any]:
    """Call a function of the north on a dataset of the north, which it opens itself."""
    return fed.submit("north/linear_trend", "north/a1b/air_temperature", start=FIRST_YEAR)


def expected_trend(inputs: Inputs) -> xr.DataArray:
    """Fit the same line with numpy."""
    data = inputs.a1b.isel(time=np.flatnonzero(inputs.a1b.time.dt.year >= FIRST_YEAR)).compute()
    years = data.time.dt.decimal_year.values
    values = data.transpose("time", ...).values.reshape(len(years), -1).astype(float)
    slope = np.polyfit(years - years.mean(), values, 1)[0]
    return data.isel(time=0, drop=True).astype(float).copy(data=slope.reshape(data.shape[1:]))


def begin_coarser(fed: FederatedClient, inputs: Inputs) -> FederatedFuture[Any]:
    """Call a function of the south on an expression over both sites."""
    difference = last_years(inputs.a1b) - last_years(inputs.e1)
    return fed.submit("south/coarser_grid", difference, lat_cells=CELLS, lon_cells=CELLS)


def expected_coarser(inputs: Inputs) -> xr.DataArray:
    """Average the same cells."""
    difference = (last_years(inputs.a1b) - last_years(inputs.e1)).compute().astype(float)
    area = np.cos(np.deg2rad(difference.latitude)) * xr.ones_like(difference)
    windows = {"latitude": CELLS, "longitude": CELLS}
    total = (difference * area).coarsen(windows, boundary="trim").sum()
    found: xr.DataArray = total / area.coarsen(windows, boundary="trim").sum()
    return found


CALLS = (
    Call(
        "linear_trend",
        f"north/linear_trend: K per year and grid cell since {FIRST_YEAR}, of north/a1b",
        begin_trend,
        expected_trend,
        lambda result: result["slope"],
        1e-4,
    ),
    Call(
        "coarser_grid",
        "south/coarser_grid: the map A1B − E1, an expression over both sites, on a coarser grid",
        begin_coarser,
        expected_coarser,
        lambda result: result,
        1e-3,
    ),
)
