"""Functions that the sites of these tests publish."""

import time
from typing import Annotated

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from site_plugins import publish, report_progress


@publish(title="Anomaly from the mean over a dimension", tags=["climate"])
def anomaly(
    data: xr.DataArray, dim: str = "time", scale: Annotated[float, Field(gt=0)] = 1.0
) -> xr.DataArray:
    """Give what is left when the mean is taken away.

    Parameters
    ----------
    data : xr.DataArray
        Any field.
    dim : str
        Over which the mean is taken.
    scale : float
        Factor.

    Returns
    -------
    xr.DataArray
        The anomaly, lazily.
    """
    return (data - data.mean(dim)) * scale


@publish
def statistics(data: xr.Dataset) -> dict[str, float]:
    """Give the mean of every variable of numbers."""
    return {
        str(name): float(variable.mean())
        for name, variable in data.data_vars.items()
        if variable.dtype.kind == "f"
    }


@publish
def both(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """Add two fields."""
    return first + second


@publish
def mean_of(values: np.ndarray) -> float:
    """Average numbers."""
    return float(values.mean())


@publish
def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Double a table."""
    return rows * 2


@publish
def slowly(seconds: float) -> str:
    """Take time, and tell so."""
    started = time.monotonic()
    while (gone := time.monotonic() - started) < seconds:
        report_progress(gone / seconds, "still busy")
        time.sleep(0.02)
    return "done"


@publish
def echo(values: np.ndarray) -> np.ndarray:
    """Give back what came."""
    return values


@publish
def fail(message: str) -> None:
    """Raise."""
    raise ValueError(message)
