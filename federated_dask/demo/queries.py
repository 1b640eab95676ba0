"""What the demo computes: each query once for lazy federated objects and for local ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

__all__ = ["QUERIES", "Inputs", "Query"]

LAST_YEARS = 30


@dataclass(frozen=True)
class Inputs:
    """The three variables that the queries are about."""

    a1b: xr.DataArray
    e1: xr.DataArray
    sst: xr.DataArray

    @classmethod
    def of(cls, a1b: xr.Dataset, e1: xr.Dataset, sst: xr.Dataset) -> Inputs:
        """Take the variables out of the datasets."""
        return cls(a1b.air_temperature, e1.air_temperature, sst.surface_temperature)


@dataclass(frozen=True)
class Query:
    """One query."""

    name: str
    title: str
    expression: Callable[[Inputs], xr.Dataset]


def last_years(temperature: xr.DataArray) -> xr.DataArray:
    """Mean over the last 30 years."""
    return temperature.isel(time=slice(-LAST_YEARS, None)).mean("time", keep_attrs=True)


def yearly_mean(temperature: xr.DataArray) -> xr.DataArray:
    """Area-weighted mean of every year."""
    area = np.cos(np.deg2rad(temperature.latitude))
    return temperature.weighted(area).mean(("latitude", "longitude")).groupby("time.year").mean()


def difference_map(inputs: Inputs) -> xr.Dataset:
    """Map of A1B − E1 over the last 30 years."""
    return (last_years(inputs.a1b) - last_years(inputs.e1)).to_dataset(name="difference")


def yearly_series(inputs: Inputs) -> xr.Dataset:
    """Two series and their difference."""
    a1b, e1 = yearly_mean(inputs.a1b), yearly_mean(inputs.e1)
    return xr.Dataset({"a1b": a1b, "e1": e1, "difference": a1b - e1})


def climatology(inputs: Inputs) -> xr.Dataset:
    """Mean sea surface temperature of every month of the year."""
    return inputs.sst.groupby("time.month").mean().to_dataset(name="climatology")


def mixed_mean(inputs: Inputs) -> xr.Dataset:
    """Mean over scenarios and time: a reduction whose tree mixes sites."""
    both = xr.concat([inputs.a1b, inputs.e1], "scenario")
    return both.mean(("scenario", "time")).to_dataset(name="mean")


QUERIES = (
    Query("difference_map", "A1B − E1, mean of the last 30 years (a map)", difference_map),
    Query("yearly_series", "Area-weighted yearly means and their difference", yearly_series),
    Query("climatology", "Monthly climatology of sea surface temperature", climatology),
    Query("mixed_mean", "Mean over both scenarios and all years", mixed_mean),
)
