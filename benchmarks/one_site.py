"""One-site expressions: through the federation against a native Client on the same cluster."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import xarray as xr
from distributed import Client

from benchmarks.result import Result
from federated_dask import FederatedClient
from site_plugins import LocalFederation

SHAPE = (2920, 181, 360)
CHUNK = 120
REPEATS = 3
TARGET = 1.3


def climatology(air: xr.DataArray) -> xr.DataArray:
    return air.groupby("time.month").mean()


def spread(air: xr.DataArray) -> xr.DataArray:
    # Several passes over every chunk: work, rather than reading alone.
    scaled = np.sqrt(np.abs(np.sin(air) * np.cos(air) + np.tan(air / 400.0)))
    return np.exp(np.log1p(scaled)).std("time")


def weighted(air: xr.DataArray) -> xr.DataArray:
    return air.weighted(np.cos(np.deg2rad(air.latitude))).mean(("latitude", "longitude"))


EXPRESSIONS: dict[str, Callable[[xr.DataArray], xr.DataArray]] = {
    "monthly climatology": climatology,
    "standard deviation of a long formula": spread,
    "area-weighted mean": weighted,
}


def run() -> list[Result]:
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "air.zarr"
        write(path)
        with (
            LocalFederation(
                {"one": {"datasets": {"air": {"path": path}}}},
                n_workers=2,
                threads_per_worker=1,
                processes=True,
            ) as federation,
            native(federation) as client,
            FederatedClient(federation, cache_bytes=0) as fed,
        ):
            there = fed.open_dataset("one/air", chunks={}).air
            here = xr.open_zarr(path, chunks={}).air
            for name, expression in EXPRESSIONS.items():
                lazy_there, lazy_here = expression(there), expression(here)
                ours, theirs = [], []
                for _ in range(REPEATS):
                    # Alternating, so that the machine's moods hit both.
                    theirs.append(seconds(lambda x=lazy_here: client.compute(x).result()))
                    ours.append(seconds(lambda x=lazy_there: x.compute()))
                ratio = statistics.median(ours) / statistics.median(theirs)
                results.append(Result(f"{name}: native", statistics.median(theirs), " s"))
                results.append(Result(f"{name}: federated", statistics.median(ours), " s"))
                results.append(Result(f"{name}: ratio", ratio, "", TARGET))
    return results


def write(path: Path) -> None:
    time_ = pd.date_range("2000-01-01", periods=SHAPE[0], freq="6h")
    random = np.random.default_rng(0)
    air = xr.DataArray(
        random.normal(280, 10, SHAPE).astype("f4"),
        dims=("time", "latitude", "longitude"),
        coords={
            "time": time_,
            "latitude": np.linspace(-90, 90, SHAPE[1]),
            "longitude": np.arange(float(SHAPE[2])),
        },
        name="air",
    )
    air.to_dataset().to_zarr(path, zarr_format=2, encoding={"air": {"chunks": (CHUNK, *SHAPE[1:])}})


@contextmanager
def native(federation: LocalFederation) -> Iterator[Client]:
    endpoint = federation.sites["one"].client
    with Client(
        endpoint.scheduler_info()["address"], security=endpoint.security, set_as_default=False
    ) as client:
        yield client


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    with dask.config.set({"array.rechunk.method": "tasks"}):
        function()
    return time.perf_counter() - started
