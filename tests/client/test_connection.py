"""A connection to one site: its requests, and its parameters."""

import asyncio
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from federated_dask.client import loop
from federated_dask.client.connection import SiteConnection
from federated_dask.client.indexes import encode_index
from federated_dask.errors import (
    ConfigurationError,
    NotAuthenticated,
    NotFound,
    Reason,
    RequestRefused,
    VersionChanged,
)
from federated_dask.protocol.values import decode_value
from tests.client.wire import events_of


class TestRequests:
    async def test_health_needs_no_token(self, address: str, ca: str) -> None:
        connection = SiteConnection("north", address, None, ca)
        assert await connection.health() == {"status": "ok", "site": "north"}
        with pytest.raises(NotAuthenticated):
            await connection.catalogue()
        await connection.close()

    async def test_description_and_catalogue(self, connection: SiteConnection) -> None:
        assert (await connection.describe_site()).name == "north"
        assert [d.name for d in (await connection.catalogue()).datasets] == ["a1b", "sst"]

    async def test_describing_a_dataset_is_one_round_trip(self, connection, stub) -> None:
        description, buffers = await connection.describe_dataset("a1b")
        assert stub.requests == ["GET /datasets/a1b"]
        time_ = decode_value(description.variables["time"].value, buffers)
        assert time_.shape == (240,)
        assert time_[0].calendar == "360_day"

    async def test_refusals_carry_the_sites_name(self, connection: SiteConnection) -> None:
        with pytest.raises(NotFound) as caught:
            await connection.describe_dataset("a1c")
        assert (caught.value.reason, caught.value.site) == (Reason.UNKNOWN_DATASET, "north")
        with pytest.raises(VersionChanged):
            await connection.read("sst", "time", "old", (slice(None),))

    async def test_names_are_quoted(self, connection, stub) -> None:
        with pytest.raises(NotFound):
            await connection.describe_dataset("a/../b?c#d")
        assert stub.requests == ["GET /datasets/a/../b?c#d"]

    async def test_leases(self, connection, stub) -> None:
        held, buffers = await connection.fetch_held("lease-1", 3)
        assert held.output == 3
        assert decode_value(held.value, buffers).tolist() == [0, 1, 2, 3]
        await connection.release("lease-1")
        assert stub.requests[-1] == "DELETE /leases/lease-1"
        with pytest.raises(NotFound):
            await connection.fetch_held("other", 0)

    async def test_sockets_are_used_again(self, connection, stub, monkeypatch) -> None:
        opened = []
        connect = asyncio.BaseEventLoop.create_connection

        async def counted(self, *args, **kwargs):
            opened.append(1)
            return await connect(self, *args, **kwargs)

        monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", counted)
        for _ in range(3):
            await connection.health()
            await events_of(connection)
        assert len(opened) <= 1


class TestReading:
    @pytest.mark.parametrize(
        "index",
        [
            (slice(None), slice(None), slice(None)),
            (3, slice(2, 10, 3), np.array([5, 1, 5])),
            (slice(0, 0), 0, slice(None)),
            (np.arange(54) % 2 == 0, np.array([17]), slice(None, None, -1)),
            (0, 0, 0),
        ],
    )
    async def test_orthogonal(self, connection, stub, index) -> None:
        dataset = stub.datasets["sst"]
        read = await connection.read("sst", "surface_temperature", dataset.fingerprint(), index)
        with dataset.open() as opened:
            expected = opened.variables["surface_temperature"][index].values
        np.testing.assert_array_equal(read, expected)
        assert (read.shape, read.dtype) == (expected.shape, expected.dtype)

    async def test_one_cftime_date(self, connection, stub) -> None:
        version = stub.datasets["a1b"].fingerprint()
        read = await connection.read("a1b", "time_bnds", version, (0, 1))
        assert (read.shape, read.dtype) == ((), np.dtype(object))
        assert read.item().calendar == "360_day"

    async def test_many_positions_make_several_requests(self, connection, stub) -> None:
        positions = np.random.default_rng(1).integers(0, 432, 3000)
        rows = np.random.default_rng(2).integers(0, 54, 2500)
        dataset = stub.datasets["sst"]
        read = await connection.read(
            "sst", "surface_temperature", dataset.fingerprint(), (rows, 4, positions)
        )
        with dataset.open() as opened:
            expected = opened.variables["surface_temperature"][rows, 4, positions].values
        np.testing.assert_array_equal(read, expected)
        assert len(stub.requests) > 4

    async def test_the_first_error_of_several_requests(self, connection, stub) -> None:
        positions = np.random.default_rng(1).integers(0, 432, 9000)
        with pytest.raises(VersionChanged):
            await connection.read("sst", "surface_temperature", "old", (0, 4, positions))

    async def test_evenly_spaced_positions_are_one_slice(self, connection, stub) -> None:
        version = stub.datasets["sst"].fingerprint()
        await connection.read("sst", "longitude", version, (np.arange(1, 430, 2),))
        assert len(stub.requests) == 1
        assert encode_index((np.arange(1, 430, 2),)) == "[[1,430,2]]"

    async def test_more_than_asked_for_is_refused(self, connection, stub) -> None:
        version = stub.datasets["sst"].fingerprint()
        with pytest.raises(RequestRefused) as caught:
            await connection.read("sst", "longitude", version, (slice(None),), largest=100)
        assert caught.value.reason == Reason.LIMIT_EXCEEDED
        assert caught.value.site == "north"


class TestParameters:
    @pytest.mark.parametrize(
        "address",
        [
            "http://north.example:8443",
            "http://10.0.0.1:8443",
            "ftp://north.example",
            "north.example:8443",
            "https://",
            "https://user:secret@north.example",
            "https://north.example/?x=1",
            "https://north.example:99999",
            "https://[::1",
            "https://north.example/\n",
        ],
    )
    def test_addresses_that_are_refused(self, address: str) -> None:
        with pytest.raises(ConfigurationError):
            SiteConnection("north", address)

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
    def test_plain_http_on_this_machine(self, host: str) -> None:
        assert SiteConnection("north", f"http://{host}:1/").address == f"http://{host}:1"

    @pytest.mark.parametrize("verify", [False, "/no/such/file", "-----BEGIN nonsense"])
    def test_trust_that_is_refused(self, verify: Any) -> None:
        with pytest.raises(ConfigurationError):
            SiteConnection("north", "https://localhost", verify=verify)

    @pytest.mark.parametrize("token", ["", "a\r\nX-Other: b", "ü"])
    def test_tokens_that_are_refused(self, token: str) -> None:
        with pytest.raises(ConfigurationError):
            SiteConnection("north", "https://localhost", token)

    @pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
    def test_timeouts_that_are_refused(self, timeout: float) -> None:
        with pytest.raises(ConfigurationError):
            SiteConnection("north", "https://localhost", timeout=timeout)

    def test_the_token_does_not_show(self) -> None:
        connection = SiteConnection("north", "https://localhost", "very-secret\n")
        assert "secret" not in f"{connection!r} {connection.parameters!r}"

    async def test_pickled_it_works_elsewhere(self, address, ca, tmp_path) -> None:
        path = tmp_path / "ca.pem"
        path.write_text(ca)
        original = SiteConnection("north", address, "good-token", path, timeout=7)
        path.unlink()
        program = (
            "import sys, pickle\n"
            "from federated_dask.client import loop\n"
            "connection = pickle.load(sys.stdin.buffer)\n"
            "print(loop.sync(connection.catalogue()).site, connection.timeout)\n"
        )
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-X", "dev", "-W", "error", "-c", program],
            input=pickle.dumps(original),
            capture_output=True,
            timeout=60,
        )
        # Nobody closed anything, and nothing complains at the end.
        assert (done.stdout.decode().split(), done.stderr.decode()) == (["north", "7.0"], "")

    async def test_equal_connections_share_and_close_the_last(self, address, ca) -> None:
        from federated_dask.client import sessions

        first = SiteConnection("north", address, "good-token", ca)
        second = pickle.loads(pickle.dumps(first))
        await first.health()
        await second.health()
        [entry] = sessions._entries.values()
        await first.close()
        assert not entry.session.closed
        await second.health()
        await second.close()
        assert entry.session.closed
        await first.health()
        await first.close()
        assert not sessions._entries

    async def test_close_reaches_the_background_loop(self, address, ca) -> None:
        from federated_dask.client import sessions

        connection = SiteConnection("north", address, "good-token", ca)
        await asyncio.to_thread(lambda: loop.sync(connection.health()))
        await connection.health()
        assert len(sessions._entries) == 2
        await connection.close()
        assert not sessions._entries


def test_distributed_is_not_imported() -> None:
    program = (
        "import sys, federated_dask.client.connection, federated_dask.client.backend\n"
        "sys.exit(any(name.split('.')[0] == 'distributed' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
