"""Sites without sockets: the battery's arrays laid over any number of them, and what tasks make.

The planner's tests have the sites, and the interpreter that computes every task of a
plan's graph here: so the true size of every value is known, wherever it would be made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import dask.array as da
import msgspec
import numpy as np
import pandas as pd
import xarray as xr

from federated_dask.planner.sources import SiteFacts
from federated_dask.protocol.values import encode_value
from site_plugins.contents import content_of
from tests.battery.expressions import BATTERY, Expression
from tests.planner.federation import TABLE, Federation, bytes_of

DIMENSIONS = ("time", "lat", "lon")
MONTHS, LAT, LON = 24, 4, 96
CHUNKS = (6, 2, LON)
LAND = 0.1
"""Share of places that have no values, but for one time."""


class Peers(Federation):
    """Sites that all exchange values with one another."""

    @property
    def facts(self) -> dict[str, SiteFacts]:
        names = sorted({source.site for source in self.stored})
        everything = frozenset(TABLE.names)
        return {name: SiteFacts(name, everything, frozenset(names) - {name}) for name in names}


@dataclasses.dataclass
class Simulation:
    """The battery's two arrays over some sites."""

    federation: Peers
    floats: xr.DataArray
    integers: xr.DataArray

    def evaluate(self, expression: Expression) -> Any:
        return expression(self.floats, self.integers)


def laid(sites: int, dimension: str = "time", months: int = MONTHS) -> Simulation:
    """Lay out the battery's arrays, one piece at every site."""
    federation = Peers()
    joined = []
    for kind in ("floats", "integers"):
        pieces = []
        for number in range(sites):
            random = np.random.default_rng(number)
            land = np.random.default_rng(0).random((LAT, LON)) < LAND
            if kind == "floats":
                values = random.random((months, LAT, LON))
                # Not at the first time: some reductions refuse what has no value at all.
                values[1:, land] = np.nan
            else:
                values = random.integers(0, 4, (months, LAT, LON))
            # As a site tells it that opens the same.
            content = content_of(xr.Variable(DIMENSIONS, values), CHUNKS)
            variable = federation.variable(f"s{number}", values, f"{kind}{number}", content=content)
            array = da.from_array(variable, chunks=CHUNKS, meta=np.empty((0, 0, 0), values.dtype))
            start = pd.Timestamp("2000-01-01")
            east = 0
            if dimension == "time":
                start += pd.DateOffset(months=months * number)
            else:
                east = LON * number
            coords = {
                "time": pd.date_range(start, periods=months, freq="MS"),
                "lat": np.arange(float(LAT)),
                "lon": east + np.arange(float(LON)),
            }
            pieces.append(xr.DataArray(array, dims=DIMENSIONS, coords=coords, name="x"))
        joined.append(xr.concat(pieces, dimension))
    return Simulation(federation, *joined)


def chosen(every: int) -> dict[str, Expression]:
    """Every so-manieth expression of the battery."""
    return dict(list(BATTERY.items())[::every])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def encoded_bytes(value: Any) -> int:
    """Bytes of a value in wire form, before compression; 0 where it has none."""
    buffers: list[Any] = []
    try:
        tree = encode_value(value, buffers, TABLE)
    except TypeError:
        return 0
    return len(msgspec.msgpack.encode(tree)) + sum(memoryview(each).nbytes for each in buffers)


def wire_bytes(value: Any) -> int:
    """Bytes of a value on a link; 0 where it has no wire form."""
    try:
        return len(bytes_of(0, value))
    except TypeError:
        return 0
