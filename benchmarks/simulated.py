"""Sites without sockets: the battery's arrays laid over any number of them, and what tasks make.

`Simulation` computes every task of a plan's graph once, here, with the interpreter of
the wire format that the planner's tests use: so the true size of every value is known,
wherever the planner would have it made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.local import get_sync

from federated_dask.planner.graph import PlanGraph, home_graph
from federated_dask.planner.sources import SiteFacts, SourceReference
from tests.battery.expressions import BATTERY, Expression
from tests.planner.federation import TABLE, Federation, bytes_of, evaluate

MONTHS, LAT, LON = 24, 4, 96
CHUNKS = (6, 2, LON)


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
            if kind == "floats":
                values = random.random((months, LAT, LON))
                values[values < 0.1] = np.nan
            else:
                values = random.integers(0, 4, (months, LAT, LON))
            variable = federation.variable(f"s{number}", values, f"{kind}{number}")
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
            pieces.append(xr.DataArray(array, dims=("time", "lat", "lon"), coords=coords, name="x"))
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


def true_values(graph: PlanGraph, federation: Federation) -> list[Any]:
    """Compute every task of a graph, once."""
    values: list[Any] = []
    leaves = [
        federation.stored[leaf] if isinstance(leaf, SourceReference) else leaf
        for leaf in graph.leaves
    ]
    for position, task in enumerate(graph.tasks):
        program = task.program
        if program is None:
            below = {d: values[d] for d in task.dependencies}
            [value] = get_sync(home_graph(graph, [position], below), [task.key])
        else:
            operands = [values[r] if r >= 0 else leaves[-1 - r] for r in program.references]
            value = evaluate(program.template, operands, program.integers)
        values.append(value)
    return values


def wire_bytes(value: Any) -> int | None:
    """Bytes of a value on a link; None where it has no wire form."""
    try:
        return len(bytes_of(0, value))
    except TypeError:
        return None
