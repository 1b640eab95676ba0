"""What goes wrong: one specific error each, saying where, what and what to do next; no hanging."""

import gc
import operator
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import trustme
import xarray as xr

from federated_dask import FederatedClient
from federated_dask.client import execution, loop
from federated_dask.demo.data import DemoDataset
from federated_dask.demo.sites import running_sites
from federated_dask.errors import (
    ConfigurationError,
    DatasetUnreadable,
    FederatedError,
    NotAuthenticated,
    NotFound,
    Reason,
    RequestRefused,
    SiteUnavailable,
    TaskFailed,
    VersionChanged,
)
from site_plugins import LocalFederation
from tests.client.sites import CountingProxy, Inside, matrix, slow
from tests.waiting import until


def read_aloud(error: BaseException, federation: LocalFederation, site: str = "north") -> str:
    """Check that a message says all that it has to, and nothing that is nobody's business."""
    assert isinstance(error, FederatedError)
    text = "\n".join([str(error), *getattr(error, "__notes__", ())])
    assert error.site == site
    assert text.startswith(f"[{site}] ")
    assert error.hint
    assert f"({error.reason})" in text
    for secret in (
        *federation.token.values(),
        *(token.rpartition(".")[2] for token in federation.token.values()),
        str(Path(federation.verify).parent),
        "/tmp/",
        "canary-folder",
        str(Path.home()),
        "Traceback",
    ):
        assert secret not in text
    return text


def connect(federation: LocalFederation, site: str = "north", **options: Any) -> FederatedClient:
    given = {"token": federation.token[site], "verify": federation.verify, **options}
    return FederatedClient({site: federation.addresses[site]}, timeout=60, **given)


class TestConnecting:
    @pytest.mark.parametrize(
        "address",
        [
            {},
            [],
            "",
            None,
            5,
            [None],
            {"north": None},
            {5: "https://x"},
            "localhost:8786",
            "ftp://x",
        ],
        ids=repr,
    )
    def test_no_address(self, address: Any) -> None:
        with pytest.raises(ConfigurationError) as error:
            FederatedClient(address, token="x")
        assert error.value.hint

    def test_plain_http(self) -> None:
        with pytest.raises(ConfigurationError, match="not encrypted"):
            FederatedClient("http://north.example:8786", token="x")

    @pytest.mark.parametrize("token", [5, b"abc", ["abc"], {"north": 5}], ids=repr)
    def test_token_of_another_type(self, federation: LocalFederation, token: Any) -> None:
        with pytest.raises(ConfigurationError, match="no text") as error:
            connect(federation, token=token)
        assert "abc" not in str(error.value)

    def test_missing_token(self, federation: LocalFederation) -> None:
        for token in (None, {}, {"south": federation.token["south"]}):
            with pytest.raises(NotAuthenticated) as error:
                connect(federation, token=token)
            assert error.value.reason is Reason.TOKEN_MISSING
            assert "token=" in read_aloud(error.value, federation)

    @pytest.mark.parametrize("kind", ["nonsense", "of another site", "forged", "unsigned"])
    def test_wrong_token(self, federation: LocalFederation, kind: str) -> None:
        head, body, signature = federation.token["north"].split(".")
        token = {
            "nonsense": "nonsense",
            "of another site": federation.token["south"],
            "forged": f"{head}.{body}.{signature[::-1]}",
            "unsigned": f"eyJhbGciOiJub25lIn0.{body}.",
        }[kind]
        with pytest.raises(NotAuthenticated) as error:
            connect(federation, token=token)
        assert error.value.reason is Reason.TOKEN_INVALID
        assert token not in read_aloud(error.value, federation)

    def test_name_of_another_site(self, federation: LocalFederation) -> None:
        for token in (federation.token["north"], federation.token):
            with pytest.raises(ConfigurationError, match="is the site 'north', not 'norht'"):
                FederatedClient(
                    {"norht": federation.addresses["north"]}, token=token, verify=federation.verify
                )

    def test_wrong_authority(self, federation: LocalFederation, tmp_path: Path) -> None:
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(other))
        for verify in (True, other):
            with pytest.raises(SiteUnavailable, match="not trusted") as error:
                connect(federation, verify=verify)
            assert error.value.reason is Reason.CERTIFICATE_NOT_TRUSTED
            assert "verify=" in read_aloud(error.value, federation)

    def test_no_authority(self, federation: LocalFederation) -> None:
        for verify in (False, "/nowhere/ca.pem", "pyproject.toml"):
            with pytest.raises(ConfigurationError):
                connect(federation, verify=verify)

    def test_site_down(self, federation: LocalFederation) -> None:
        addresses = {**federation.addresses, "north": "https://127.0.0.1:1"}
        with pytest.raises(SiteUnavailable, match="cannot be reached") as error:
            FederatedClient(addresses, token=federation.token, verify=federation.verify)
        assert error.value.reason is Reason.UNREACHABLE
        assert "site is up" in read_aloud(error.value, federation)

    def test_name_that_is_almost_one(self, fed: FederatedClient) -> None:
        for wrong in ("north/mdae", "nort/made"):
            with pytest.raises(NotFound, match="Did you mean 'north/made'"):
                fed.open_dataset(wrong)

    def test_without_tls(self, federation: LocalFederation) -> None:
        address = federation.addresses["north"].replace("https://", "http://")
        with pytest.raises(SiteUnavailable, match="starts with https://"):
            FederatedClient(address, token="x")

    def test_no_such_host(self, federation: LocalFederation) -> None:
        with pytest.raises(SiteUnavailable) as error:
            FederatedClient({"north": "https://north.invalid"}, token="x", timeout=5)
        assert error.value.reason is Reason.UNREACHABLE


class TestOpening:
    @pytest.mark.parametrize("name", ["a1b", "north/a1b/air_temperature", "", "north/", None, 5])
    def test_no_name(self, fed: FederatedClient, name: Any) -> None:
        with pytest.raises(ConfigurationError, match="'north/a1b'"):
            fed.open_dataset(name)

    def test_unknown(self, fed: FederatedClient, federation: LocalFederation) -> None:
        with pytest.raises(NotFound, match="Known sites: north, ocean, south") as error:
            fed.open_dataset("west/a1b")
        assert error.value.reason is Reason.UNKNOWN_SITE
        with pytest.raises(NotFound, match="'a1c'") as error:
            fed.open_dataset("north/a1c")
        assert error.value.reason is Reason.UNKNOWN_DATASET
        assert "fed.datasets" in read_aloud(error.value, federation)
        with pytest.raises(NotFound):
            fed.open_dataset("north/../../etc".replace("/..", "%2F.."))

    def test_unknown_variable(self, fed: FederatedClient, federation: LocalFederation) -> None:
        x = fed.open_dataset("north/made", chunks={})
        with pytest.raises(KeyError):
            x["windd"]
        remote = fed.connection_of("north")
        description, _ = loop.sync(remote.describe_dataset("made"))
        with pytest.raises(NotFound) as error:
            loop.sync(remote.read("made", "windd", description.version, (0,)))
        assert error.value.reason is Reason.UNKNOWN_VARIABLE
        read_aloud(error.value, federation)

    def test_path_that_does_not_open(
        self, fed: FederatedClient, federation: LocalFederation
    ) -> None:
        with pytest.raises(DatasetUnreadable) as error:
            fed.open_dataset("ocean/broken")
        assert error.value.reason is Reason.DATASET_UNREADABLE
        read_aloud(error.value, federation, "ocean")


@pytest.fixture
def small() -> xr.Dataset:
    return xr.Dataset({"x": ("time", np.arange(40.0))}).chunk(time=2)


class TestMeanwhile:
    """What worked a moment ago, and does no longer."""

    def test_token_expires(self, federation: LocalFederation) -> None:
        with connect(federation, token=federation.new_token("north", "me", 1)) as fed:
            x = fed.open_dataset("north/made", chunks={}).wind.mean()
            x.compute()

            def refused() -> bool:
                return isinstance(fed.compute(x).exception(120), NotAuthenticated)

            until(refused, "the token is no longer accepted")
            for scheduler in (None, "sync"):
                with pytest.raises(NotAuthenticated) as error:
                    x.compute(scheduler=scheduler)
                assert error.value.reason is Reason.TOKEN_EXPIRED
                assert "new token" in read_aloud(error.value, federation)

    def test_version_changes(self, small: xr.Dataset, tmp_path: Path) -> None:
        path = tmp_path / "canary-folder" / "x.zarr"
        small.to_zarr(path, zarr_format=2, consolidated=True)
        sites = {"north": {"datasets": {"a": path}, "limits": {"version_check_seconds": 0.01}}}
        with LocalFederation(sites) as federation, FederatedClient(federation, timeout=60) as fed:
            opened = fed.open_dataset("north/a", chunks={})
            x, version = opened.x, opened.encoding["version"]
            assert x.sum().compute() == 780
            (small + 1).to_zarr(path, zarr_format=2, consolidated=True, mode="w")
            until(
                lambda: fed.open_dataset("north/a").encoding["version"] != version,
                "the site sees the change",
            )
            for scheduler in (None, "sync"):
                with pytest.raises(VersionChanged, match="Open it again") as error:
                    x.sum().compute(scheduler=scheduler)
                assert error.value.reason is Reason.VERSION_CHANGED
                read_aloud(error.value, federation)
            again = fed.open_dataset("north/a", chunks={}).x
            assert again.sum().compute() == 820

    def test_dataset_is_withdrawn(self, small: xr.Dataset) -> None:
        sites = {"north": {"datasets": {"a": small}, "limits": {"version_check_seconds": 0.01}}}
        with LocalFederation(sites) as federation, FederatedClient(federation, timeout=60) as fed:
            x = fed.open_dataset("north/a", chunks={}).x.sum()
            Inside(federation, "north").ask(
                lambda dask_scheduler: dask_scheduler.plugins[
                    "federated-site"
                ].offers.datasets.clear()
            )
            until(lambda: "north/a" not in fed.refresh().datasets, "the site has let it go")
            with pytest.raises(NotFound) as error:
                x.compute()
            read_aloud(error.value, federation)

    def test_site_dies_during_a_compute(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun = threading.Event()
        monkeypatch.setattr(execution._NoReport, "update", lambda *_: begun.set())
        path = tmp_path / "matrix.zarr"
        matrix().to_zarr(path, zarr_format=2, consolidated=True)
        served = DemoDataset("north", "matrix", "matrix.zarr", "A matrix", zarr=True)
        with (
            running_sites(tmp_path, [(served, path)], lambda _: None) as sites,
            FederatedClient(sites) as fed,
        ):
            future = fed.compute(slow(fed.open_dataset("north/matrix", chunks={}), count=1500))
            assert begun.wait(120)
            [server] = sites.servers
            os.kill(server.process_id, signal.SIGKILL)
            with pytest.raises(SiteUnavailable) as error:
                future.result(120)
            assert error.value.reason in (Reason.CONNECTION_LOST, Reason.UNREACHABLE)
            assert error.value.site == "north"
            assert str(tmp_path) not in str(error.value)
            with pytest.raises(SiteUnavailable) as error:
                fed.open_dataset("north/matrix")
            assert error.value.reason is Reason.UNREACHABLE

    def test_connection_is_cut(self, federation: LocalFederation) -> None:
        with CountingProxy(federation.addresses["north"]) as proxy:
            reach = SimpleNamespace(
                addresses={"north": proxy.address},
                token={"north": federation.token["north"]},
                verify=federation.verify,
            )
            with FederatedClient(reach) as fed:
                future = fed.compute(slow(fed.open_dataset("north/matrix", chunks={})))
                north = Inside(federation, "north")
                north.until(lambda: len(north.tasks()) > 100, "the job runs")
                proxy.cut()
                with pytest.raises(SiteUnavailable) as error:
                    future.result(120)
                assert error.value.reason in (Reason.CONNECTION_LOST, Reason.UNREACHABLE)
                read_aloud(error.value, federation)
                # The request was the job's life line.
                north.until_idle()


def test_limits(small: xr.Dataset) -> None:
    sites = {"north": {"datasets": {"a": small}, "limits": {"tasks": 10, "buffer_bytes": "1MiB"}}}
    with LocalFederation(sites) as federation, FederatedClient(federation, timeout=60) as fed:
        x = fed.open_dataset("north/a", chunks={}).x
        with pytest.raises(RequestRefused, match="10") as error:
            x.sum().compute()
        assert error.value.reason is Reason.LIMIT_EXCEEDED
        read_aloud(error.value, federation)
        large = da.map_blocks(np.tile, x[:2].data, 2**17, dtype=float, chunks=((2**18,),))
        held = large.persist()
        with pytest.raises(RequestRefused) as error:
            held.compute()
        assert error.value.reason is Reason.LIMIT_EXCEEDED
        read_aloud(error.value, federation)


def blocks(function: Callable[..., Any], x: da.Array, *arguments: Any, **options: Any) -> da.Array:
    return da.map_blocks(function, x, *arguments, dtype=float, meta=np.empty((0, 0, 0)), **options)


FAILING: dict[str, tuple[Callable[[da.Array], da.Array], type[Exception], str]] = {
    "ValueError": (lambda x: blocks(np.dot, x, np.ones((5, 5))), ValueError, "not aligned"),
    "TypeError": (lambda x: blocks(np.sum, x, axis="time"), TypeError, "str"),
    "IndexError": (lambda x: blocks(np.take, x, 99, axis=0), IndexError, "out of bounds"),
    "AxisError": (lambda x: blocks(np.sum, x, axis=9), np.exceptions.AxisError, "9"),
    "LinAlgError": (lambda x: blocks(np.linalg.inv, x), np.linalg.LinAlgError, "square"),
}


def len_over_nothing(x: np.ndarray) -> float:
    return len(x) / 0


def lines_of(error: BaseException) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()


def test_what_is_refused_is_no_wall_of_frames(
    fed: FederatedClient, federation: LocalFederation
) -> None:
    def failing(block: Any) -> Any:
        raise ValueError("of my own")

    made = fed.open_dataset("north/made", chunks={}).wind.data
    for attempt in (
        lambda: connect(federation, token="nonsense"),
        lambda: connect(federation, verify=True),
        lambda: FederatedClient("https://127.0.0.1:1", token="x"),
        lambda: fed.open_dataset("north/nothing"),
        lambda: fed.compute(FAILING["ValueError"][0](made)).result(120),
    ):
        with pytest.raises(Exception) as error:  # noqa: PT011
            attempt()
        told = lines_of(error.value)
        assert not [line for line in told if "aiohttp" in line or "requests.py" in line], told
        assert len(told) < 50
    own = made.map_blocks(failing, dtype=float, meta=np.array(()))
    with pytest.raises(ValueError, match="of my own") as error:
        own.compute()
    assert any("in failing" in line for line in lines_of(error.value)), "where it was raised"


@pytest.mark.parametrize("name", FAILING)
def test_a_task_raises(fed: FederatedClient, federation: LocalFederation, name: str) -> None:
    make, kind, text = FAILING[name]
    x = fed.open_dataset("north/made", chunks={}).wind.data
    for attempt in (
        lambda: make(x).compute(),
        lambda: fed.compute(make(x)).result(120),
        lambda: fed.compute(make(x), sync=True),
        lambda: fed.persist(make(x)),
    ):
        with pytest.raises(kind) as error:
            attempt()
        assert type(error.value) is kind
        assert text in str(error.value)
        assert "Raised by a task at site north." in error.value.__notes__
        cause = error.value.__cause__
        assert isinstance(cause, TaskFailed)
        assert cause.site == "north"
        assert cause.reason is Reason.TASK_FAILED
        [trace] = cause.__notes__
        assert trace.startswith("Traceback at site north:")
        assert "line " in trace
        for secret in ('File "/', str(Path(federation.verify).parent), str(Path.home())):
            assert secret not in trace
    Inside(federation, "north").until_idle()


def test_division_by_zero(fed: FederatedClient) -> None:
    x = fed.open_dataset("north/made", chunks={})["count"]
    lazy = da.map_blocks(operator.floordiv, x.sum().data.map_blocks(int, dtype=int), 0, dtype=int)
    with pytest.raises(ZeroDivisionError) as error:
        lazy.compute()
    assert isinstance(error.value.__cause__, TaskFailed)


def test_a_task_at_home_raises(fed: FederatedClient) -> None:
    x = fed.open_dataset("north/made", chunks={}).wind.data
    with pytest.raises(ZeroDivisionError):
        x.map_blocks(len_over_nothing, dtype=float).compute()


class AtHome:
    """Work that runs at home: who began it, each time."""

    def __init__(self) -> None:
        self.begun: list[threading.Thread] = []

    def slowly(self, block: np.ndarray) -> np.ndarray:
        # Dask tries it on an empty block, in the thread that asks.
        if block.size:
            self.begun.append(threading.current_thread())
            time.sleep(0.02)
        return block

    def until_ended(self) -> None:
        """Wait until none of the threads is there any more that could begin another task."""
        until(
            lambda: not any(thread.is_alive() for thread in set(self.begun)),
            "the threads have ended",
        )


class TestInterrupting:
    @pytest.fixture
    def interrupt(self) -> Iterator[Callable[[Callable[[], bool]], None]]:
        threads: list[threading.Thread] = []
        main = threading.main_thread().ident
        assert main is not None

        def when(condition: Callable[[], bool]) -> None:
            def wait() -> None:
                until(condition, "there is something to interrupt")
                signal.pthread_kill(main, signal.SIGINT)

            threads.append(threading.Thread(target=wait))
            threads[-1].start()

        yield when
        for thread in threads:
            thread.join()

    @pytest.mark.parametrize("how", ["compute", "fed.compute", "persist"])
    def test_at_the_sites(
        self, fed: FederatedClient, federation: LocalFederation, interrupt: Any, how: str
    ) -> None:
        north = Inside(federation, "north")
        lazy = slow(fed.open_dataset("north/matrix", chunks={}))
        interrupt(lambda: len(north.tasks()) > 100)
        started = time.monotonic()
        compute: dict[str, Callable[[], Any]] = {
            "compute": lazy.compute,
            "persist": lazy.persist,
            "fed.compute": lambda: fed.compute(lazy, sync=True),
        }
        with pytest.raises(KeyboardInterrupt):
            compute[how]()
        north.until_idle()
        assert time.monotonic() - started < 60
        # And on it goes.
        assert float(fed.open_dataset("north/made").wind.max().compute()) > 10

    def test_at_home(self, fed: FederatedClient, interrupt: Any) -> None:
        work = AtHome()
        x = fed.open_dataset("north/wide", chunks={}).x.mean("y").data.rechunk((1, 5))
        interrupt(lambda: len(work.begun) > 5)
        with pytest.raises(KeyboardInterrupt):
            x.map_blocks(work.slowly, dtype=float).compute()
        work.until_ended()
        assert len(work.begun) < 500

    def test_timeout_at_home(self, fed: FederatedClient) -> None:
        work = AtHome()
        x = fed.open_dataset("north/wide", chunks={}).x.mean("y").data.rechunk((1, 5))
        with pytest.raises(SiteUnavailable) as error:
            x.map_blocks(work.slowly, dtype=float).compute(timeout=0.5)
        assert error.value.reason is Reason.TIMED_OUT
        work.until_ended()
        assert len(work.begun) < 1000

    def test_timeout_at_the_sites(self, fed: FederatedClient, federation: LocalFederation) -> None:
        started = time.monotonic()
        with pytest.raises(SiteUnavailable, match=r"did not end within 0\.5 seconds") as error:
            slow(fed.open_dataset("north/matrix", chunks={})).compute(timeout=0.5)
        assert error.value.reason is Reason.TIMED_OUT
        assert time.monotonic() - started < 60
        Inside(federation, "north").until_idle()


def test_nothing_is_left_behind(federation: LocalFederation) -> None:
    gc.collect()
    for site in federation.sites:
        Inside(federation, site).until_idle()
