"""A site with data and functions, for programs that are not Python."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from site_plugins import LocalFederation

TIMES = 48


def example() -> xr.Dataset:
    """Monthly temperatures over Europe that look like some."""
    latitude = np.arange(35.0, 71.0, 1.5)
    longitude = np.arange(-12.0, 33.0, 1.5)
    month = np.arange(TIMES)
    north = latitude[:, None]
    warmth = 30 - 0.55 * north + 3 * np.sin(longitude / 9) * np.cos(north / 7)
    season = -9 * np.cos(2 * np.pi * month / 12)
    warming = 0.01 * month[:, None, None] * (north / 40) ** 2
    air = (season[:, None, None] + warming + warmth).astype("f4")
    return xr.Dataset(
        {
            "air": (
                ("time", "lat", "lon"),
                da.from_array(air, chunks=(12, -1, -1)),
                {"long_name": "Air temperature", "units": "degC"},
            ),
            "station": ("lat", np.array([f"row {n}" for n in range(latitude.size)], dtype=object)),
        },
        coords={
            "time": np.datetime64("2070-01", "ns") + np.arange(TIMES) * np.timedelta64(30, "D"),
            "lat": ("lat", latitude, {"units": "degrees_north", "long_name": "Latitude"}),
            "lon": ("lon", longitude, {"units": "degrees_east", "long_name": "Longitude"}),
        },
        attrs={"title": "Scenario A1B", "institution": "The north"},
    )


@pytest.fixture(scope="session")
def federation() -> Iterator[LocalFederation]:
    a1b = {
        "path": example(),
        "title": "Scenario A1B over Europe",
        "description": "Monthly mean temperature of the air near the ground.",
        "keywords": ["temperature", "monthly"],
        "license": "CC-BY-4.0",
    }
    soil = {
        "path": example(),
        "license": "Of the north",
        "accept_license": True,
        "egress": "derived",
        "share": 0.5,
    }
    sites: dict[str, Any] = {
        "north": {
            "title": "The north",
            "datasets": {"a1b": a1b, "soil": soil},
            "functions": {"modules": ["tests.js.published"]},
        },
        "south": {"title": "The south", "endpoint": {"origins": ["https://portal.example"]}},
    }
    with LocalFederation(sites) as running:
        yield running


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("Chromium is not installed: ci/system-packages installs it")
    return found


@pytest.fixture(scope="session")
def node() -> str:
    """The path of Node.js."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("Node.js is not installed: ci/system-packages installs it")
    return found
