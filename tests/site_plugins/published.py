"""Functions that the tests' sites publish."""

import asyncio
import contextlib
import datetime
import enum
import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from pydantic import BaseModel, Field

from site_plugins import publish, report_progress


class Season(enum.Enum):
    WINTER = "DJF"
    SUMMER = "JJA"


class Box(BaseModel):
    south: Annotated[float, Field(ge=-90, le=90)]
    north: Annotated[float, Field(ge=-90, le=90)]


@publish(title="Sum of two numbers", tags=["arithmetic"])
def add(a: float, b: float = 0.5) -> float:
    """Add.

    Parameters
    ----------
    a, b : float
        Numbers.

    Returns
    -------
    float
        Their sum.
    """
    return a + b


@publish
def describe(
    start: Annotated[int, Field(ge=1850, le=2100)],
    season: Season = Season.WINTER,
    day: datetime.date | None = None,
    boxes: list[Box] | None = None,
    method: Literal["fast", "exact"] = "fast",
    *,
    names: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Say what arrived."""
    assert isinstance(season, Season)
    assert all(isinstance(box, Box) for box in boxes or ())
    return {
        "start": start,
        "season": season,
        "day": day,
        "north": [box.north for box in boxes or ()],
        "method": method,
        "names": list(names),
    }


@publish
def mean(data: xr.DataArray, dim: str = "time") -> xr.DataArray:
    """Average lazily."""
    return data.mean(dim)


@publish
def chunks(data: xr.Dataset) -> dict[str, list[list[int]]]:
    """Tell how the variables of a dataset are cut."""
    return {
        str(name): [list(lengths) for lengths in variable.chunks or ()]
        for name, variable in data.variables.items()
    }


@publish
def total(data: xr.DataArray) -> float:
    """Compute inside."""
    return float(data.sum().compute())


@publish
def double(data: np.ndarray) -> np.ndarray:
    """Double in place."""
    data *= 2
    return data


@publish
def lazy_double(data: da.Array) -> da.Array:
    """Double lazily."""
    return data * 2


@publish
def columns(table: pd.DataFrame) -> pd.DataFrame:
    """Give the sums of a table's columns."""
    return table.sum().to_frame("sum")


@publish
def optional(data: xr.DataArray | None = None) -> str:
    """Say whether there is something."""
    return "nothing" if data is None else "something"


@publish
def steps(count: int) -> int:
    """Report progress."""
    for step in range(count):
        report_progress(step / count, f"step {step} in /secret/canary-folder/x.nc")
        time.sleep(0.11)
    report_progress(1.0, "done")
    return count


class OwnError(Exception):
    pass


@publish
def fail(path: str) -> None:
    """Raise."""
    with open(path, "a") as log:
        log.write("ran\n")
    raise OwnError(f"could not read {path}")


class NoException(BaseException):
    pass


@publish
def leave_abruptly(how: str) -> None:
    """Raise what is no `Exception`."""
    kinds = {
        "cancelled": asyncio.CancelledError,
        "exit": SystemExit,
        "interrupt": KeyboardInterrupt,
        "own": NoException,
    }
    raise kinds[how]("left")


@publish
def fail_inside(data: xr.DataArray) -> xr.DataArray:
    """Raise in a task of a lazy result."""
    return data.copy(data=da.map_blocks(_raise, data.data, dtype=float))


def _raise(block: np.ndarray) -> np.ndarray:
    if block.size:
        raise OwnError("this block is bad")
    return block


@publish(concurrent_calls=1)
def watch(data: xr.DataArray, path: str) -> float:
    """Tell of the data, and wait until there is a file."""
    report_progress(0.5, f"canary {data.name}")
    deadline = time.monotonic() + 60
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return 0.0


@publish(result_bytes=1000)
def zeros(count: int, lazily: bool = False) -> np.ndarray | da.Array:
    """Return so many zeros."""
    return da.zeros(count) if lazily else np.zeros(count)


@publish(seconds=3)
def spin(path: str) -> None:
    """Never end by itself; swallow what can be swallowed."""
    _spin(path)


@publish
def spin_long(path: str) -> None:
    """Never end by itself."""
    _spin(path)


def _spin(path: str) -> None:
    Path(path).write_text("started")
    try:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(0.01)
    finally:
        Path(path).write_text("ended")


@publish(concurrent_calls=1)
def alone(path: str) -> bool:
    """Tell whether no other call of it ran meanwhile."""
    mark = Path(path)
    if mark.exists():
        return False
    mark.write_text("here")
    time.sleep(0.2)
    mark.unlink()
    return True


@publish
def process() -> int:
    """Tell which process runs it."""
    return os.getpid()


@publish
def die(path: str) -> None:
    """Count the runs in a file and kill the worker."""
    with open(path, "a") as log:
        log.write("ran\n")
    os._exit(1)


@publish(idempotent=True)
def die_once(path: str) -> int:
    """Kill the worker the first time."""
    with open(path, "a") as log:
        log.write("ran\n")
    runs = Path(path).read_text().count("ran")
    if runs == 1:
        os._exit(1)
    return runs


@publish
def hoard(path: str) -> int:
    """Take more memory than there is."""
    with open(path, "a") as log:
        log.write("ran\n")
    kept = []
    while True:
        kept.append(np.ones(4_000_000))
        time.sleep(0.02)
