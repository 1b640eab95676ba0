"""Predicted against actual bytes per link, over the battery, through real sites.

Every expression runs three times, by one client: what a first run moved is known when
the second is planned, and so on.  A link counts as predicted if the bytes that crossed it
are within a tenth of the prediction, or within what a few frames take; an expression, if
all of its links do.
"""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import pandas as pd
import xarray as xr

from benchmarks.result import Result
from benchmarks.simulated import CHUNKS, LAND, LAT, LON, MONTHS, chosen, quiet
from federated_dask import FederatedClient
from federated_dask.client.run_record import Link
from site_plugins import LocalFederation

SITES = ("north", "south", "ocean")
RUNS = 3
TOLERANCE = 0.1
FRAMES = 256
"""Bytes by which a link may be off however little crosses."""
SHARE = 90.0


def run(every: int = 1) -> list[Result]:
    names = chosen(every)
    sites = {site: {"datasets": {"data": dataset(number)}} for number, site in enumerate(SITES)}
    results = []
    with (
        quiet(),
        LocalFederation(sites) as federation,
        FederatedClient(federation, cache_bytes=0) as fed,
    ):
        pieces = [fed.open_dataset(f"{site}/data", chunks={}) for site in SITES]
        joined = xr.concat(pieces, "time")
        for number in range(RUNS):
            runs = {}
            for name, expression in names.items():
                dask.compute(expression(joined.x, joined.i))
                assert fed.last_run is not None
                runs[name] = [link for link in fed.last_run.links if not is_empty(link)]
            results += _results(f"run {number + 1}", runs, has_target=number == RUNS - 1)
    return results


def is_empty(link: Link) -> bool:
    return not link.predicted_bytes and not link.actual_bytes


def is_near(link: Link) -> bool:
    off = abs(link.predicted_bytes - link.actual_bytes)
    return off <= max(FRAMES, TOLERANCE * link.actual_bytes)


def _results(title: str, runs: dict[str, list[Link]], *, has_target: bool) -> list[Result]:
    links = [link for found in runs.values() for link in found]
    off = [name for name, found in runs.items() if not all(map(is_near, found))]
    near = 100 * sum(map(is_near, links)) / len(links)
    good = 100 * (1 - len(off) / len(runs))
    target = SHARE if has_target else None
    return [
        Result(f"{title}: links", len(links)),
        Result(f"{title}: links predicted", near, " %"),
        Result(f"{title}: expressions predicted", good, " %", target, at_least=True),
        Result(f"{title}: not so: {', '.join(off) or '–'}", len(off)),
    ]


def dataset(number: int) -> xr.Dataset:
    random = np.random.default_rng(number)
    floats = random.random((MONTHS, LAT, LON))
    floats[1:, np.random.default_rng(0).random((LAT, LON)) < LAND] = np.nan
    start = pd.Timestamp("2000-01-01") + pd.DateOffset(months=MONTHS * number)
    coords: dict[str, Any] = {
        "time": pd.date_range(start, periods=MONTHS, freq="MS", unit="ns"),
        "lat": np.arange(float(LAT)),
        "lon": np.arange(float(LON)),
    }
    dims = ("time", "lat", "lon")
    integers = random.integers(0, 4, floats.shape)
    made = xr.Dataset({"x": (dims, floats), "i": (dims, integers)}, coords)
    return made.chunk(dict(zip(dims, CHUNKS, strict=True)))
