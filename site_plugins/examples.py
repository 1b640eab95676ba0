"""Functions that many climate institutes would publish, and how they are written.

To publish them all, name this module in `site.toml`::

    [functions]
    modules = ["site_plugins.examples"]

They take whatever a site stores or a caller sends, find latitude, longitude and time by
their CF attributes or usual names, and work lazily: what they return is computed by the
site's cluster and stays there until it is fetched.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import xarray as xr
from pydantic import BaseModel, Field

from site_plugins.calling import report_progress
from site_plugins.functions import publish

__all__ = ["Point", "anomaly", "climatology", "coarser_grid", "eof", "linear_trend", "series_at"]

UNITS = {"latitude": "degrees_north", "longitude": "degrees_east"}
USUAL = {"latitude": ("lat", "latitude", "y"), "longitude": ("lon", "longitude", "x")}

Year = Annotated[int, Field(ge=1, le=9999)]


class Point(BaseModel):
    """A place."""

    lat: Annotated[float, Field(ge=-90, le=90, description="Degrees north.")]
    lon: Annotated[float, Field(ge=-360, le=360, description="Degrees east.")]


@publish(title="Linear trend per grid cell", tags=["statistics", "time"], idempotent=True)
def linear_trend(
    data: xr.DataArray, start: Year | None = None, end: Year | None = None
) -> xr.Dataset:
    """Fit a straight line to the time series of each grid cell.

    Missing values are left out; cells with fewer than three values have no trend.

    Parameters
    ----------
    data : DataArray
        With a dimension ``time``.
    start, end : int, optional
        First and last year; all years by default.

    Returns
    -------
    Dataset
        ``slope`` (per year) and ``intercept`` (at the mean time), without ``time``.
    """
    data = _years(data, start, end)
    years = data["time"].dt.decimal_year
    # Centred, so that the sums do not cancel.
    years = years - years.mean()
    there = data.notnull()
    count = there.sum("time")
    mean_year = years.where(there).mean("time")
    mean = data.mean("time")
    spread = ((years - mean_year) ** 2).where(there).sum("time")
    product = ((years - mean_year) * (data - mean)).sum("time")
    is_fit = (count >= 3) & (spread > 0)
    slope = (product / spread.where(is_fit)).where(is_fit)
    intercept = (mean - slope * mean_year).where(is_fit)
    units = data.attrs.get("units", "")
    slope.attrs = {"long_name": "linear trend", "units": f"{units} year-1".strip()}
    intercept.attrs = {"long_name": "value at the mean time", "units": units}
    return xr.Dataset({"slope": slope, "intercept": intercept})


@publish(title="Monthly climatology", tags=["statistics", "time"], idempotent=True)
def climatology(
    data: xr.DataArray, start: Year | None = None, end: Year | None = None
) -> xr.DataArray:
    """Average each month of the year over many years.

    Parameters
    ----------
    data : DataArray
        With a dimension ``time``.
    start, end : int, optional
        First and last year; all years by default.

    Returns
    -------
    DataArray
        With a dimension ``month``.
    """
    found = _years(data, start, end).groupby("time.month").mean("time", keep_attrs=True)
    return found.rename(data.name)


@publish(title="Anomaly from the monthly climatology", tags=["statistics", "time"], idempotent=True)
def anomaly(data: xr.DataArray, start: Year | None = None, end: Year | None = None) -> xr.DataArray:
    """Subtract from each value the mean of its month of the year.

    Parameters
    ----------
    data : DataArray
        With a dimension ``time``.
    start, end : int, optional
        First and last year of the reference period; all years by default.

    Returns
    -------
    DataArray
        Of the same shape.
    """
    reference = climatology(data, start, end)
    with xr.set_options(keep_attrs=True):
        found = data.groupby("time.month") - reference
    return found.drop_vars("month").rename(data.name)


@publish(title="Empirical orthogonal functions", tags=["statistics", "space"], seconds=1800)
def eof(data: xr.DataArray, modes: Annotated[int, Field(ge=1, le=20)] = 3) -> xr.Dataset:
    """Find the patterns that explain most of the variance in time.

    Cells are weighted by their area; cells with missing values are left out.

    Parameters
    ----------
    data : DataArray
        With ``time``, latitude and longitude.
    modes : int, optional
        How many patterns.

    Returns
    -------
    Dataset
        ``pattern`` (mode, latitude, longitude; in the units of the data),
        ``series`` (mode, time; of variance one) and ``explained`` (mode; the part
        of the variance).
    """
    lat, lon = _axis(data, "latitude"), _axis(data, "longitude")
    if modes > data.sizes["time"]:
        raise ValueError(f"{modes} modes of {data.sizes['time']} times: there are not so many")
    report_progress(0.0, "subtracting the mean")
    centred = (data - data.mean("time")).transpose("time", lat, lon)
    weight = _area(data[lat]) ** 0.5
    weighted = (centred * weight).fillna(0.0)
    matrix = weighted.data.reshape(data.sizes["time"], -1)
    report_progress(0.2, "covariance of the times")
    # Between times, not cells: that matrix is small and is all that has to be computed here.
    covariance = np.asarray(matrix @ matrix.T)
    values, vectors = np.linalg.eigh(covariance)
    order = np.argsort(values)[::-1][:modes]
    report_progress(0.9, "patterns")
    series = vectors[:, order].T * np.sqrt(data.sizes["time"])
    # The sign is free: that of the largest value in time is positive.
    largest = np.take_along_axis(series, np.abs(series).argmax(axis=1)[:, None], axis=1)
    series = series * np.sign(largest)
    scores = xr.DataArray(
        series, dims=("mode", "time"), coords={"time": data["time"], "mode": np.arange(modes) + 1}
    )
    pattern = xr.dot(scores, centred.fillna(0.0), dim="time") / data.sizes["time"]
    pattern = pattern.where(data.notnull().all("time"))
    pattern.attrs = {"units": data.attrs.get("units", "")}
    total = values.clip(0).sum() or 1.0
    explained = xr.DataArray(values[order] / total, dims="mode")
    return xr.Dataset({"pattern": pattern, "series": scores, "explained": explained})


@publish(title="Time series at points", tags=["extraction"], idempotent=True)
def series_at(
    data: xr.DataArray, points: Annotated[list[Point], Field(min_length=1, max_length=1000)]
) -> xr.DataArray:
    """Take the time series of the grid cells nearest to points.

    Parameters
    ----------
    data : DataArray
        With latitude and longitude.
    points : list of Point
        The places; longitudes count in either way, from 0 to 360 or from -180 to 180.

    Returns
    -------
    DataArray
        With a dimension ``point`` in place of latitude and longitude.
    """
    lat, lon = _axis(data, "latitude"), _axis(data, "longitude")
    wanted = np.array([point.lon for point in points])
    around = (wanted[:, None] - data[lon].values[None, :] + 180) % 360 - 180
    columns = xr.DataArray(np.abs(around).argmin(axis=1), dims="point")
    distances = np.abs(np.array([p.lat for p in points])[:, None] - data[lat].values[None, :])
    rows = xr.DataArray(distances.argmin(axis=1), dims="point")
    return data.isel({lat: rows, lon: columns})


@publish(title="Coarser grid", tags=["regridding"], idempotent=True)
def coarser_grid(
    data: xr.DataArray,
    lat_cells: Annotated[int, Field(ge=1, le=1000)] = 2,
    lon_cells: Annotated[int, Field(ge=1, le=1000)] = 2,
) -> xr.DataArray:
    """Average neighbouring grid cells, weighted by their area.

    Missing values are left out; where all are missing, so is the result.  Rows and
    columns that are left over at the end are dropped.

    Parameters
    ----------
    data : DataArray
        With latitude and longitude, on a regular grid.
    lat_cells, lon_cells : int, optional
        How many cells become one.

    Returns
    -------
    DataArray
        On the coarser grid.
    """
    lat, lon = _axis(data, "latitude"), _axis(data, "longitude")
    weight = xr.where(data.notnull(), _area(data[lat]), np.nan)
    windows = {lat: lat_cells, lon: lon_cells}
    if any(data.sizes[name] < cells for name, cells in windows.items()):
        raise ValueError("the grid has fewer cells than are to become one")
    total = (data * weight).coarsen(windows, boundary="trim").sum()
    found: xr.DataArray = total / weight.coarsen(windows, boundary="trim").sum()
    found.attrs = dict(data.attrs)
    return found.rename(data.name)


def _years(data: xr.DataArray, start: int | None, end: int | None) -> xr.DataArray:
    if "time" not in data.dims:
        raise ValueError("the data has no dimension 'time'")
    year = data["time"].dt.year
    chosen = (year >= (start or 0)) & (year <= (end or 9999))
    if not bool(chosen.any()):
        raise ValueError(f"the data has no times between {start} and {end}")
    return data if bool(chosen.all()) else data.isel(time=np.flatnonzero(chosen.values))


def _area(latitude: xr.DataArray) -> xr.DataArray:
    """Give the area of cells, up to a factor; never less than 0, as it rounds at the poles."""
    area = np.maximum(np.cos(np.deg2rad(latitude.values)), 0.0)
    return latitude.copy(data=area)


def _axis(data: xr.DataArray, kind: str) -> Any:
    """Find the dimension of latitude or longitude."""
    for name in data.dims:
        attributes = data[name].attrs if name in data.coords else {}
        if attributes.get("standard_name") == kind or attributes.get("units") == UNITS[kind]:
            return name
    for usual in USUAL[kind]:
        if usual in data.dims and usual in data.coords:
            return usual
    raise ValueError(f"the data has no {kind}: a coordinate with that standard_name")
