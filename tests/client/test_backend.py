import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from dask.array.core import getter
from xarray.core import indexing

from federated_dask.client import backend, current
from federated_dask.client.connection import SiteConnection
from federated_dask.client.remote_variable import FederatedBackendArray
from federated_dask.errors import ConfigurationError, NotFound, Reason
from federated_dask.planner.sources import SourceReference
from site_plugins.datasets import StoredDataset

FILES = {"a1b": "A1B_north_america.nc", "sst": "ostia_monthly.nc"}


class Client:
    def __init__(self, connection: SiteConnection) -> None:
        self.connection = connection

    def connection_of(self, site_name: str) -> SiteConnection:
        if site_name != self.connection.name:
            raise NotFound(f"No site {site_name!r}.", reason=Reason.UNKNOWN_SITE)
        return self.connection

    def __dask_tokenize__(self) -> str:
        return self.connection.address


@pytest.fixture
def client(address: str, ca: str) -> Iterator[Client]:
    """The current client, which knows the stub as north."""
    made = Client(SiteConnection("north", address, "good-token", ca, timeout=30))
    before = current.get_current()
    current.set_current(made)
    yield made
    current.set_current(before)


@pytest.fixture(params=["a1b", "sst"])
def name(request) -> str:
    return request.param


@pytest.fixture
def local(name: str, sample_data: Path) -> Iterator[xr.Dataset]:
    options: dict[str, Any] = {"decode_timedelta": False} if name == "a1b" else {}
    with xr.open_dataset(sample_data / FILES[name], **options) as opened:
        yield opened


def open_remote(name: str, **options: Any) -> xr.Dataset:
    return xr.open_dataset(f"fed://north/{name}", engine="federated", **options)


class TestOpening:
    @pytest.mark.parametrize(
        "chunks", ["auto", {}, {"time": 60}, {"time": 7}, {"time": "auto"}, -1, 13]
    )
    def test_any_chunks(self, client, name, local, chunks) -> None:
        with warnings.catch_warnings():
            # Cutting stored chunks apart is worth a warning, here as for local files.
            warnings.filterwarnings("ignore", message="The specified chunks separate")
            opened = open_remote(name, chunks=chunks)
        variable = next(v for v in opened.data_vars.values() if v.ndim == 3)
        assert variable.chunks is not None
        with dask.config.set(scheduler="threads"):
            xr.testing.assert_identical(opened.compute(), local.load())

    def test_no_chunks(self, client, name, local) -> None:
        opened = open_remote(name, chunks=None)
        assert not opened.chunks
        xr.testing.assert_identical(opened.load(), local.load())

    def test_chunks_of_the_storage(self, client, local, name) -> None:
        opened = open_remote(name, chunks={})
        for key, variable in opened.variables.items():
            preferred = local.variables[key].encoding.get("preferred_chunks")
            if variable.chunks is not None and preferred:
                assert {d: c[0] for d, c in variable.chunksizes.items()} == preferred

    def test_opening_costs_what_the_description_costs(self, client, stub) -> None:
        open_remote("sst", chunks="auto")
        assert stub.requests == ["GET /datasets/sst"]

    def test_texts_with_automatic_chunks(self, client, stub, tmp_path) -> None:
        texts = np.array([["ä", "bc", ""], ["d", "e", "f"]], dtype=object)
        made = xr.Dataset({"v": (("y", "x"), np.ones((2, 3))), "names": (("y", "x"), texts)})
        made.to_netcdf(tmp_path / "made.nc")
        stub.datasets["made"] = StoredDataset(name="made", path=str(tmp_path / "made.nc"))
        opened = open_remote("made", chunks="auto")
        assert opened.v.chunks is not None
        xr.testing.assert_identical(opened.compute(scheduler="threads"), made)

    def test_dropped_variables(self, client) -> None:
        assert "time_bnds" not in open_remote("sst", drop_variables="time_bnds")
        dropped = ["time_bnds", "latitude"]
        assert not set(dropped) & set(open_remote("sst", drop_variables=dropped).variables)

    def test_without_indexes(self, client) -> None:
        opened = open_remote("sst", create_default_indexes=False)
        assert not opened.xindexes
        assert "time" in opened.coords

    def test_a_named_client(self, client) -> None:
        current.set_current(None)
        assert "surface_temperature" in open_remote("sst", client=client)

    def test_the_engine_is_registered(self) -> None:
        assert xr.backends.list_engines()["federated"].description

    def test_several_datasets_at_once(self, client) -> None:
        opened = xr.open_mfdataset(
            ["fed://north/sst", "fed://north/sst"],
            engine="federated",
            combine="nested",
            concat_dim="copy",
            chunks={},
            coords="minimal",
            compat="override",
            data_vars="all",
        )
        assert opened.sizes["copy"] == 2


class TestGraphs:
    def test_what_the_planner_unwraps(self, client, stub) -> None:
        opened = open_remote("a1b", chunks={"time": 40})
        array = opened.air_temperature
        graph = dict(array.data.__dask_graph__())
        [stored] = [node for key, node in graph.items() if str(key).startswith("original-")]
        stored = getattr(stored, "value", stored)
        assert type(stored) is indexing.ImplicitToExplicitIndexingAdapter
        assert type(stored.array) is indexing.CopyOnWriteArray
        assert type(stored.array.array) is indexing.LazilyIndexedArray
        backend_array = stored.array.array.array
        assert type(backend_array) is FederatedBackendArray
        assert backend_array.source == SourceReference(
            "north", "a1b", stub.datasets["a1b"].fingerprint(), "air_temperature"
        )
        tasks = [node for key, node in graph.items() if isinstance(key, tuple)]
        assert len(tasks) == 6
        assert all(task.func is getter for task in tasks)

    def test_names_follow_the_version(self, client, stub) -> None:
        first = open_remote("a1b", chunks={})
        same = open_remote("a1b", chunks={})
        stub.versions["a1b"] = "another"
        changed = open_remote("a1b", chunks={})
        for key, variable in first.variables.items():
            if variable.chunks is not None:
                assert same[key].data.name == variable.data.name
                assert changed[key].data.name != variable.data.name

    def test_names_follow_the_chunks(self, client) -> None:
        first, second = (open_remote("a1b", chunks={"time": n}) for n in (40, 60))
        assert first.air_temperature.data.name != second.air_temperature.data.name

    def test_chunked_later_names_follow_the_version_too(self, client, stub) -> None:
        first = open_remote("a1b").chunk(time=40)
        same = open_remote("a1b").chunk(time=40)
        part = open_remote("a1b").isel(latitude=slice(0, 5)).chunk(time=40)
        stub.versions["a1b"] = "another"
        changed = open_remote("a1b").chunk(time=40)
        names = [each.air_temperature.data.name for each in (first, same, part, changed)]
        assert names[0] == names[1]
        assert len(set(names)) == 3

    def test_only_the_chunks_needed_are_pulled(self, client, stub) -> None:
        opened = open_remote("a1b", chunks={"time": 40})
        stub.requests.clear()
        with dask.config.set(scheduler="threads"):
            opened.air_temperature[20, 3, 4].compute()
        assert len(stub.requests) == 1


class TestBadInput:
    def test_no_client(self) -> None:
        current.set_current(None)
        with pytest.raises(ConfigurationError, match="as_current"):
            open_remote("sst")

    def test_unknown_site(self, client) -> None:
        with pytest.raises(NotFound, match="west"):
            xr.open_dataset("fed://west/sst", engine="federated")

    @pytest.mark.parametrize(
        "address", ["fed://north", "fed:///sst", "fed://north/a/b", "north/sst", "fed://", 3, None]
    )
    def test_addresses(self, address: Any) -> None:
        with pytest.raises(ConfigurationError, match="fed://north/a1b"):
            backend.parse_address(address)

    @pytest.mark.parametrize(
        "option", [{"decode_times": False}, {"mask_and_scale": False}, {"group": "/a"}]
    )
    def test_options_that_mean_nothing_here(self, client, option) -> None:
        with pytest.raises(ConfigurationError, match=next(iter(option))):
            open_remote("sst", **option)

    @pytest.mark.parametrize(
        ("address", "can"),
        [("fed://north/a1b", True), ("data.nc", False), (Path("fed://a/b"), False), (b"", False)],
    )
    def test_guessing(self, address: Any, can: bool) -> None:
        assert backend.FederatedBackend().guess_can_open(address) is can


class TestRealSites:
    """The same over real sites, pulled by ordinary Dask schedulers."""

    @pytest.fixture(params=[("north", "a1b"), ("ocean", "sst")], ids="/".join)
    def pulled(self, request, federation, sample_data) -> Iterator[tuple[Any, xr.Dataset]]:
        site, name = request.param
        connection = SiteConnection(
            site, federation.addresses[site], federation.token[site], federation.verify
        )
        options = {"decode_timedelta": False}
        with xr.open_dataset(sample_data / FILES[name], **options) as opened:
            yield (Client(connection), f"fed://{site}/{name}"), opened.load()

    def open(self, where: tuple[Client, str], **options: Any) -> xr.Dataset:
        client, address = where
        return xr.open_dataset(address, engine="federated", client=client, **options)

    @pytest.mark.parametrize("chunks", ["auto", {}, {"time": 60}, -1])
    def test_threads(self, pulled, chunks) -> None:
        where, local = pulled
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The specified chunks separate")
            opened = self.open(where, chunks=chunks)
        xr.testing.assert_identical(opened.compute(scheduler="threads"), local)

    def test_no_chunks(self, pulled) -> None:
        where, local = pulled
        opened = self.open(where, chunks=None)
        xr.testing.assert_identical(opened, local)
        xr.testing.assert_identical(opened.load(), local)

    def test_vectorized_and_orthogonal_indexes(self, pulled) -> None:
        where, local = pulled
        opened = self.open(where, chunks=None)
        name = next(key for key, variable in local.data_vars.items() if variable.ndim == 3)
        points = {
            "latitude": xr.DataArray([3, 1, 4], dims="p"),
            "longitude": xr.DataArray([5, 9, 2], dims="p"),
        }
        for index in (points, {"time": [5, 3], "latitude": slice(None, None, -2)}):
            xr.testing.assert_identical(opened[name].isel(index), local[name].isel(index))

    def test_a_cluster_of_processes(self, pulled) -> None:
        from distributed import Client as DaskClient
        from distributed import LocalCluster

        where, local = pulled
        opened = self.open(where, chunks={"time": 60})
        name = next(key for key, variable in local.data_vars.items() if variable.ndim == 3)
        with (
            LocalCluster(
                n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None
            ) as cluster,
            DaskClient(cluster),
        ):
            xr.testing.assert_identical(opened.compute(), local)
            found = opened[name].mean("time").compute()
        xr.testing.assert_allclose(found, local[name].mean("time"))
