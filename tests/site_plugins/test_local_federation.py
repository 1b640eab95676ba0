import logging
import socket
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray as xr

from federated_dask.errors import ConfigurationError
from site_plugins import LocalFederation
from site_plugins.local_federation import _QuietDask
from tests.site_plugins import graphs
from tests.site_plugins.helpers import AIR, Caller, dataset


async def test_three_sites_know_one_another() -> None:
    sites = {"north": {"datasets": {"a1b": dataset()}}, "south": {}, "ocean": {}}
    with LocalFederation(sites) as federation:
        assert sorted(federation.addresses) == ["north", "ocean", "south"]
        assert sorted(federation.token) == ["north", "ocean", "south"]
        assert federation.verify.endswith("ca.pem")
        for name in sites:
            caller = Caller(federation, name, federation.token[name])
            described = await caller.json("/site")
            assert described["name"] == name
            peers = {peer["name"]: peer["address"] for peer in described["peers"]}
            assert {name: federation.addresses[name], **peers} == federation.addresses
        assert "running" in repr(federation)
        assert federation.addresses["ocean"] in repr(federation)
        assert federation.sites["ocean"].name == "ocean"


async def test_workers_may_be_processes() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    sites = {"north": {"datasets": {"a1b": dataset()}}}
    with LocalFederation(sites, n_workers=2, threads_per_worker=1, processes=True) as federation:
        caller = Caller(federation, "north", federation.token["north"])
        described = await caller.json("/site")
        assert (described["workers"], described["threads"]) == (2, 2)
        graph = graphs.chunk_sums(await caller.version())
        results, last = await caller.run(graph, graph.tasks - 1)
        np.testing.assert_allclose(results[0], AIR.sum(axis=0))
        assert last.read_bytes == AIR.nbytes
        assert len(psutil.Process().children(recursive=True)) > len(before)
        ports = {
            connection.laddr
            for child in psutil.Process().children(recursive=True)
            if child.pid not in before
            for connection in child.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert {address.ip for address in ports} <= {"127.0.0.1", "::1"}
    # The resource tracker of multiprocessing lives as long as the process that uses it.
    left = [
        child
        for child in psutil.Process().children(recursive=True)
        if child.pid not in before and "resource_tracker" not in " ".join(child.cmdline())
    ]
    assert left == []


def test_nothing_listens_but_on_loopback() -> None:
    with LocalFederation({"north": {}}, dashboard=True) as federation:
        listening = [
            connection.laddr.ip
            for connection in psutil.Process().net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert set(listening) <= {"127.0.0.1", "::1"}
        [link] = federation.dashboard_links.values()
        assert link is not None


def test_everything_is_gone_after_closing() -> None:
    with LocalFederation({"warm": {}}):
        pass
    threads = {thread.name for thread in threading.enumerate()}
    federation = LocalFederation({"north": {"datasets": {"a1b": dataset()}}, "south": {}})
    folder = Path(federation.verify).parent
    port = int(federation.addresses["north"].rpartition(":")[2])
    assert folder.is_dir()
    federation.close()
    federation.close()
    assert "closed" in repr(federation)
    assert not folder.exists()
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))
    deadline = time.monotonic() + 10
    while (
        left := {
            thread.name
            for thread in threading.enumerate()
            if not thread.name.startswith("asyncio_")
        }
        - threads
        - {"zarr_io"}
    ):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


async def test_a_dataset_may_be_a_netcdf_file(tmp_path: Path) -> None:
    path = tmp_path / "a1b.nc"
    dataset().to_netcdf(path)
    with LocalFederation(
        {"north": {"datasets": {"a1b": {"path": path, "title": "A"}}}}
    ) as federation:
        caller = Caller(federation, "north", federation.token["north"])
        graph = graphs.chunk_sums(await caller.version())
        results, _ = await caller.run(graph, graph.tasks - 1)
    np.testing.assert_allclose(results[0], AIR.sum(axis=0))


async def test_a_dataset_keeps_what_it_has_read_from_elsewhere(tmp_path: Path) -> None:
    # Encodings of the file that it came from must not decide on how it is written here.
    path = tmp_path / "packed.nc"
    packed = {"air": {"dtype": "i2", "scale_factor": 0.1, "_FillValue": -32768, "zlib": True}}
    dataset().to_netcdf(path, encoding=packed, engine="h5netcdf")
    with (
        xr.open_dataset(path) as opened,
        LocalFederation({"n": {"datasets": {"a": opened}}}) as fed,
    ):
        caller = Caller(fed, "n", fed.token["n"])
        graph = graphs.chunk_sums(await caller.version("a"), "a")
        results, _ = await caller.run(graph, graph.tasks - 1)
        np.testing.assert_allclose(results[0], opened.air.sum("time"), atol=1e-12)


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ({}, "at least one site"),
        ({"no/name": {}}, "site.name: is no name"),
        ({"north": {"dataset": {}}}, "known are cluster, datasets"),
        ({"north": {"datasets": {"a1b": 5}}}, "Dataset north/a1b is a int"),
        ({"north": {"datasets": {"a1b": {"path": "x", "egres": "open"}}}}, "did you mean 'egress'"),
    ],
)
def test_mistakes_are_explained(sites: dict[str, dict[str, object]], words: str) -> None:
    before = threading.active_count()
    with pytest.raises(ConfigurationError, match=words):
        LocalFederation(sites)
    assert threading.active_count() <= before


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        sites = {"north": {}, "south": {"endpoint": {"port": taken.getsockname()[1]}}}
        with pytest.raises(ConfigurationError, match=r"cannot listen at 127\.0\.0\.1"):
            LocalFederation(sites)


def test_dask_stays_quiet_until_the_last_federation_ends() -> None:
    logger = logging.getLogger("distributed")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    quiet = _QuietDask()
    try:
        quiet.enter()
        quiet.enter()
        assert handler.level == logging.WARNING
        quiet.leave()
        assert handler.level == logging.WARNING
        quiet.leave()
        assert handler.level == logging.NOTSET
    finally:
        logger.removeHandler(handler)
