"""Real sites over real and made-up data, and ways to look inside of them and at what crosses."""

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dask.array as da
import iris_sample_data
import numpy as np
import pandas as pd
import xarray as xr

from federated_dask import FederatedClient
from site_plugins import LocalFederation
from tests.waiting import until

SAMPLES = Path(iris_sample_data.path)
SITES = ["north", "ocean", "south"]
DEADLINE = 120.0

PARTS = {"time": 5}
"""Chunks that the sites store `made_up` in."""


def made_up(seed: int) -> xr.Dataset:
    """Floats with gaps, integers, booleans, dates and texts on one small grid."""
    random = np.random.default_rng(seed)
    shape = (20, 6, 8)
    wind = random.normal(10, 3, shape)
    wind[random.random(shape) < 0.1] = np.nan
    wind[3, 2] = np.nan
    dims = ("time", "lat", "lon")
    made = xr.Dataset(
        {
            "wind": (dims, wind, {"units": "m s-1"}),
            "height": (dims, random.normal(0, 1, shape).astype("float32")),
            "count": (dims, random.integers(0, 50, shape, dtype="int32")),
            "wet": (dims, random.random(shape) < 0.5),
            "seen": (
                ("time", "lat"),
                pd.date_range("2001-01-01", periods=120, freq="h", unit="ns").values.reshape(20, 6),
            ),
            "station": (
                "lat",
                np.array([f"station {i}, ångström" for i in range(6)], dtype=object),
            ),
            "constant": ((), np.float64(seed)),
        },
        coords={
            "time": pd.date_range(f"{2000 + seed}-01-30", periods=20, freq="36h", unit="ns"),
            "lat": np.linspace(-50, 50, 6),
            "lon": np.arange(8.0) + 100 * seed,
        },
        attrs={"title": f"made up {seed}"},
    ).chunk(PARTS)
    names = [f"station {number}, ångström" for number in range(6)]
    return made.assign(station=("lat", np.array(names, dtype=object)))


def wide(seed: int) -> xr.Dataset:
    """8 MB, to tell partials from chunks by their bytes."""
    values = np.random.default_rng(seed).normal(size=(64, 125, 125))
    return xr.Dataset({"x": (("time", "y", "z"), values)}).chunk(time=8)


def matrix() -> xr.Dataset:
    """Something to spend time on; see `slow`."""
    return xr.Dataset({"m": (("a", "b"), np.random.default_rng(7).normal(size=(300, 300)))})


def slow(opened: xr.Dataset, count: int = 300) -> da.Array:
    """Make an expression of many tasks of some 10 ms each at the site."""
    m = opened.m.data
    parts = [da.map_blocks(np.linalg.inv, m * (i + 1), dtype=float) for i in range(count)]
    return da.stack(parts).sum()


def start_federation(**sites: Mapping[str, Any]) -> LocalFederation:
    """The three sites that most tests use, or others."""
    undecoded = {"open_options": {"decode_timedelta": False}}
    return LocalFederation(
        sites
        or {
            "north": {
                "title": "Institute of the North <&>",
                "datasets": {
                    "a1b": {
                        "path": SAMPLES / "A1B_north_america.nc",
                        "title": "A1B scenario <b>",
                        "keywords": ["climate", "scenario"],
                        **undecoded,
                    },
                    "made": made_up(1),
                    "wide": wide(1),
                    "secret": {"path": wide(3), "egress": "derived", "share": 0.02},
                    "matrix": matrix(),
                },
            },
            "south": {
                "datasets": {
                    "e1": {
                        "path": SAMPLES / "E1_north_america.nc",
                        "title": "E1 scenario",
                        "description": "The same grid",
                        **undecoded,
                    },
                    "made": made_up(2),
                    "wide": wide(2),
                },
            },
            "ocean": {
                "datasets": {
                    "sst": {"path": SAMPLES / "ostia_monthly.nc", "title": "Sea", **undecoded},
                    "broken": "/canary-folder/missing.zarr",
                }
            },
        }
    )


class Inside:
    """What a site's scheduler knows."""

    def __init__(self, federation: LocalFederation, site: str) -> None:
        self.federation = federation
        self.client = federation.sites[site].client

    def ask(self, function: Callable[..., Any]) -> Any:
        return self.federation.run(self.client.run_on_scheduler, function)

    def tasks(self) -> list[str]:
        return self.ask(lambda dask_scheduler: sorted(map(str, dask_scheduler.tasks)))

    def leases(self) -> list[str]:
        return self.ask(
            lambda dask_scheduler: list(dask_scheduler.plugins["federated-site"]._leases)
        )

    def transitions(self) -> int:
        return self.ask(lambda dask_scheduler: dask_scheduler.transition_counter)

    def until(self, condition: Callable[[], bool], what: str = "it is so") -> None:
        until(
            condition,
            lambda: f"{what}; tasks {self.tasks()}, leases {self.leases()}",
            DEADLINE,
        )

    def until_idle(self) -> None:
        """Wait until the scheduler knows no task and no lease any more."""
        self.until(lambda: not self.tasks() and not self.leases(), "nothing is left")


class CountingProxy:
    """Passes bytes between clients and one site on, and counts them; can cut all connections."""

    def __init__(self, address: str) -> None:
        target = urlsplit(address)
        self.target = (target.hostname, target.port)
        self.sent = 0
        self.received = 0
        self.connections = 0
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"https://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                site = socket.create_connection(self.target)
                self.connections += 1
                self._open += [client, site]
                threading.Thread(target=self._pass_on, args=(client, site), daemon=True).start()

    def _pass_on(self, client: socket.socket, site: socket.socket) -> None:
        with client, site, contextlib.suppress(OSError, ValueError):
            while True:
                for ready in select.select([client, site], [], [])[0]:
                    data = ready.recv(2**16)
                    if not data:
                        return
                    if ready is client:
                        self.sent += len(data)
                        site.sendall(data)
                    else:
                        self.received += len(data)
                        client.sendall(data)

    def cut(self) -> None:
        """Break all connections, and take no more."""
        with contextlib.suppress(OSError):
            # Closing alone would not wake the thread that waits for the next one.
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "CountingProxy":
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()


def local(name: str, chunks: Any = None) -> xr.Dataset:
    """What plain xarray opens of a dataset of the sites."""
    files = {
        "north/a1b": "A1B_north_america.nc",
        "south/e1": "E1_north_america.nc",
        "ocean/sst": "ostia_monthly.nc",
    }
    made = {
        "north/made": lambda: made_up(1),
        "south/made": lambda: made_up(2),
        "north/wide": lambda: wide(1),
        "south/wide": lambda: wide(2),
        "north/secret": lambda: wide(3),
    }
    if name in files:
        with xr.open_dataset(SAMPLES / files[name], decode_timedelta=False) as opened:
            dataset = opened.load()
    else:
        dataset = made[name]().compute()
    return dataset if chunks is None else dataset.chunk(chunks)


def assert_same(found: Any, expected: Any, rtol: float = 1e-6, atol: float = 0.0) -> None:
    """Equal in values, dtypes, coordinates and attributes."""
    assert type(found) is type(expected)
    if isinstance(expected, xr.Dataset | xr.DataArray):
        xr.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)
        assert found.attrs == expected.attrs
        as_dataset = [
            each if isinstance(each, xr.Dataset) else each._to_temp_dataset()
            for each in (found, expected)
        ]
        for name, variable in as_dataset[1].variables.items():
            other = as_dataset[0].variables[name]
            assert other.dtype == variable.dtype, name
            assert other.attrs == variable.attrs, name
            if variable.dtype == object:
                assert [type(x) for x in other.values.flat] == [
                    type(x) for x in variable.values.flat
                ]
    else:
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)
        assert np.asarray(found).dtype == np.asarray(expected).dtype


@contextlib.contextmanager
def client(federation: LocalFederation, **options: Any) -> Iterator[FederatedClient]:
    with FederatedClient(federation, **options) as fed:
        yield fed
