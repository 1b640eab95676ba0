"""Functions that the site of these tests publishes."""

import datetime
import time
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from site_plugins import publish, report_progress


@publish(title="Linear trend of each grid cell", tags=["statistics", "map"])
def trend(
    data: xr.DataArray,
    start: Annotated[int, Field(ge=1850, le=2100)] = 2070,
    until: datetime.date | None = None,
    method: Literal["least squares", "endpoints"] = "least squares",
    per_decade: bool = True,
) -> xr.DataArray:
    """Fit a straight line to the values of each grid cell.

    The slope is what is returned, in units per decade or per year.

    Parameters
    ----------
    data
        Values along time.
    start
        First year.
    until
        Last day; the last one that there is by default.
    method
        How the line is found.
    per_decade
        Whether the slope is per decade.

    Returns
    -------
    xr.DataArray
        The slope of each cell.
    """
    chosen = data.sel(time=slice(str(start), None if until is None else str(until)))
    years = (chosen.time - chosen.time[0]) / np.timedelta64(365, "D")
    if method == "endpoints":
        slope = (chosen[-1] - chosen[0]) / float(years[-1])
    else:
        deviation = years - years.mean()
        slope = (deviation * chosen).sum("time") / (deviation**2).sum()
    slope = slope.drop_vars("time", errors="ignore") * (10 if per_decade else 1)
    slope.attrs = {"long_name": "Trend", "units": f"{data.attrs.get('units', '1')} per decade"}
    return slope.rename("trend")


@publish(title="Many steps")
def steps(count: Annotated[int, Field(gt=0)]) -> int:
    """Take so many steps, and tell of each."""
    for step in range(count):
        report_progress(min(1.0, (step + 1) / 100), f"step {step + 1}")
        time.sleep(0.1)
    return count


@publish
def scale(values: np.ndarray, factor: float = 2.0) -> np.ndarray:
    """Multiply."""
    return values * factor


@publish
def both(data: xr.DataArray) -> xr.Dataset:
    """Give mean and largest value along time."""
    return xr.Dataset({"mean": data.mean("time"), "largest": data.max("time")})


@publish
def summary(data: xr.DataArray) -> pd.DataFrame:
    """Give a table of means by month."""
    means = data.mean(("lat", "lon")).groupby("time.month").mean()
    return pd.DataFrame({"month": means.month.to_numpy(), "mean": means.to_numpy()})


@publish
def told(values: dict[str, Any]) -> dict[str, Any]:
    """Give back what was given."""
    return values
