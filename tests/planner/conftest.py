"""Layouts of the same kind of data over sites."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from tests.planner.federation import Federation

LAT, LON = 4, 6
CHUNKS = (6, 2, 6)


@dataclass
class Laid:
    """Arrays over sites, and the same arrays over plain numpy, chunked alike."""

    federation: Federation
    floats: xr.DataArray
    integers: xr.DataArray
    plain_floats: xr.DataArray
    plain_integers: xr.DataArray


def _floats(seed: int, length: int) -> np.ndarray:
    values = np.random.default_rng(seed).random((length, LAT, LON))
    values[values < 0.1] = np.nan
    return values


def _integers(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, (length, LAT, LON))


def _wrapped(values: object, start: str, length: int) -> xr.DataArray:
    array = da.from_array(values, chunks=CHUNKS, meta=np.empty((0, 0, 0), values.dtype))
    coords = {
        "time": pd.date_range(start, periods=length, freq="MS"),
        "lat": np.arange(float(LAT)),
        "lon": np.arange(float(LON)),
    }
    return xr.DataArray(array, dims=("time", "lat", "lon"), coords=coords, name="x")


def _lay(pieces: list[tuple[str, str, int]], join: Callable[..., xr.DataArray]) -> Laid:
    federation = Federation()
    laid = []
    for make in (_floats, _integers):
        remote, plain = [], []
        for seed, (site, start, length) in enumerate(pieces):
            values = make(seed, length)
            variable = federation.variable(site, values, f"{make.__name__}{seed}")
            remote.append(_wrapped(variable, start, length))
            plain.append(_wrapped(values, start, length))
        laid += [join(remote), join(plain)]
    return Laid(federation, laid[0], laid[2], laid[1], laid[3])


def one() -> Laid:
    return _lay([("north", "2000-01-01", 24)], lambda arrays: arrays[0])


def time() -> Laid:
    pieces = [("north", "2000-01-01", 18), ("south", "2001-07-01", 12)]
    return _lay(pieces, lambda arrays: xr.concat(arrays, "time"))


def scenario() -> Laid:
    pieces = [("north", "2000-01-01", 24), ("south", "2000-01-01", 24)]
    return _lay(pieces, lambda arrays: xr.concat(arrays, "scenario"))


def three() -> Laid:
    # Pieces of one site on both sides of another's: the tree interleaves sites.
    pieces = [
        ("north", "2000-01-01", 12),
        ("south", "2001-01-01", 6),
        ("north", "2001-07-01", 6),
        ("ocean", "2002-01-01", 12),
    ]
    return _lay(pieces, lambda arrays: xr.concat(arrays, "time"))


def _once(layout: Callable[[], Laid]) -> Callable[[], Laid]:
    """Lay the arrays out once: that takes longer than most tests. What happened is forgotten."""
    cached = functools.cache(layout)

    def lay() -> Laid:
        laid = cached()
        laid.federation.forget()
        return laid

    return lay


LAYOUTS = {layout.__name__: _once(layout) for layout in (one, time, scenario, three)}


@pytest.fixture
def federation() -> Federation:
    return Federation()


@pytest.fixture(params=LAYOUTS)
def laid(request: pytest.FixtureRequest) -> Laid:
    return LAYOUTS[request.param]()
