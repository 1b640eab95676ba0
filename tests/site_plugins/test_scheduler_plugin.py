import pickle
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol.messages import Peer
from site_plugins.config import parse_config
from site_plugins.datasets import StoredDataset
from site_plugins.scheduler_plugin import JobAccount, LeasedOutput, SitePlugin, unwrapped
from tests.waiting import async_until

A1B = StoredDataset(name="a1b", path="/data/a1b.zarr")
E1 = StoredDataset(name="e1", path="/data/e1.zarr", egress="derived")


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            asynchronous=True,
            dashboard_address=None,
        ) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
    ):
        plugin = SitePlugin(
            "north",
            title="The north",
            datasets=[A1B],
            peers=[Peer(name="south", address="https://south")],
            lease_seconds=100.0,
        )
        await client.register_plugin(pickle.loads(pickle.dumps(plugin)))
        yield client


async def ask(client: Client, operation: str, **arguments: Any) -> Any:
    return unwrapped(await getattr(client.scheduler, operation)(**arguments))


def tasks(client: Client) -> dict[Any, Any]:
    return dict(client.cluster.scheduler.tasks)


def plugin_of(client: Client) -> SitePlugin:
    return client.cluster.scheduler.plugins["federated-site"]


def output(key: str) -> LeasedOutput:
    return LeasedOutput(key=key, label=frozenset({"a1b"}))


async def test_it_tells_what_the_site_is(client: Client) -> None:
    state = await ask(client, "federated_site")
    assert (state.name, state.title) == ("north", "The north")
    assert state.datasets == {"a1b": A1B}
    assert state.peers == (Peer(name="south", address="https://south"),)
    assert (state.workers, state.threads) == (1, 1)
    assert state.versions["distributed"]


async def test_datasets_are_published_at_run_time(client: Client) -> None:
    await ask(client, "federated_publish", dataset=E1)
    assert set((await ask(client, "federated_site")).datasets) == {"a1b", "e1"}
    assert await ask(client, "federated_unpublish", name="a1b")
    assert not await ask(client, "federated_unpublish", name="a1b")
    assert set((await ask(client, "federated_site")).datasets) == {"e1"}


async def test_a_second_plugin_changes_nothing(client: Client) -> None:
    await client.register_plugin(SitePlugin("south"))
    assert (await ask(client, "federated_site")).name == "north"


async def test_a_lease_holds_results(client: Client) -> None:
    future = client.submit(int, "5", key="five")
    await future
    assert await ask(client, "federated_hold", lease="l", owner="ada", outputs={3: output("five")})
    future.release()
    assert await ask(client, "federated_held", lease="l", owner="ada") == {3: output("five")}
    other = client.submit(int, "6", key="six")
    await other
    other.release()
    # What was let go of later is forgotten: without the lease, this would be as well.
    await async_until(lambda: "six" not in tasks(client), "the task is let go")
    assert tasks(client)["five"].state == "memory"
    assert await ask(client, "federated_release", lease="l", owner="ada")
    await async_until(lambda: not tasks(client), "all tasks are let go")
    assert not await ask(client, "federated_release", lease="l", owner="ada")
    assert await ask(client, "federated_held", lease="l", owner="ada") is None
    assert "federated-lease-l" not in client.cluster.scheduler.clients


async def test_a_lease_is_its_owners_alone(client: Client) -> None:
    future = client.submit(int, "5", key="five")
    await future
    await ask(client, "federated_hold", lease="l", owner="ada", outputs={0: output("five")})
    assert await ask(client, "federated_held", lease="l", owner="bob") is None
    assert not await ask(client, "federated_release", lease="l", owner="bob")
    # Nor can a name be taken twice.
    again = {"lease": "l", "owner": "bob", "outputs": {0: output("five")}}
    assert not await ask(client, "federated_hold", **again)
    assert await ask(client, "federated_held", lease="l", owner="ada")


async def test_what_the_scheduler_does_not_know_cannot_be_held(client: Client) -> None:
    outputs = {0: output("nothing")}
    assert not await ask(client, "federated_hold", lease="l", owner="ada", outputs=outputs)
    assert await ask(client, "federated_held", lease="l", owner="ada") is None


async def test_a_lease_that_is_not_used_ends(client: Client) -> None:
    future = client.submit(int, "5", key="five")
    await future
    held = {0: output("five")}
    plugin_of(client).lease_seconds = 0.2
    hold = {"lease": "l", "owner": "ada", "outputs": held}
    assert await ask(client, "federated_hold", **hold) == pytest.approx(0.2)
    future.release()
    await async_until(lambda: not tasks(client), "all tasks are let go")
    assert await ask(client, "federated_held", lease="l", owner="ada") is None


async def test_a_lease_that_is_used_lasts(client: Client) -> None:
    held = {0: output("five")}
    future = client.submit(int, "5", key="five")
    await future
    hold = {"lease": "l", "owner": "ada", "outputs": held}
    await ask(client, "federated_hold", **hold)
    lease = plugin_of(client)._leases["l"]
    # A client that never hears of a lease cannot let go of it.
    assert lease.end < time.monotonic() + 70
    await ask(client, "federated_held", lease="l", owner="ada")
    assert lease.end > time.monotonic() + 80


async def hold(client: Client, lease: str, key: str, owner: str = "ada") -> Any:
    return await ask(client, "federated_hold", lease=lease, owner=owner, outputs={0: output(key)})


async def test_a_lease_is_renewed_by_its_owner(client: Client) -> None:
    future = client.submit(int, "5", key="five")
    await future
    assert await hold(client, "l", "five") == pytest.approx(60, abs=0.1)
    lease = plugin_of(client)._leases["l"]
    assert await ask(client, "federated_renew", lease="l", owner="bob") is None
    assert lease.end <= time.monotonic() + 60
    assert await ask(client, "federated_renew", lease="l", owner="ada") == pytest.approx(100, 0.01)
    assert lease.end > time.monotonic() + 90
    assert await ask(client, "federated_renew", lease="other", owner="ada") is None


@pytest.mark.parametrize("operation", ["federated_renew", "federated_held"])
async def test_no_lease_lasts_for_ever(client: Client, operation: str) -> None:
    plugin_of(client).longest_lease_seconds = 150.0
    future = client.submit(int, "5", key="five")
    await future
    assert await hold(client, "l", "five") == pytest.approx(60, abs=0.1)
    lease = plugin_of(client)._leases["l"]
    # As if a minute had passed, and then three.
    lease.last_end -= 60
    await ask(client, operation, lease="l", owner="ada")
    assert lease.end == pytest.approx(time.monotonic() + 90, abs=1)
    lease.last_end -= 120
    await ask(client, operation, lease="l", owner="ada")
    future.release()
    await async_until(lambda: not tasks(client), "all tasks are let go")
    assert await ask(client, operation, lease="l", owner="ada") is None


async def test_leases_of_one_owner_are_counted(client: Client) -> None:
    plugin_of(client).leases_per_owner = 2
    future = client.submit(int, "5", key="five")
    await future
    assert await hold(client, "a", "five")
    assert await hold(client, "b", "five")
    refusal = await hold(client, "c", "five")
    assert isinstance(refusal, RequestRefused)
    assert refusal.reason is Reason.LIMIT_EXCEEDED
    assert "this site holds 2 for one person" in refusal.message
    assert "persist() less" in str(refusal.hint)
    assert await ask(client, "federated_held", lease="c", owner="ada") is None
    assert "federated-lease-c" not in client.cluster.scheduler.clients
    assert await hold(client, "d", "five", owner="bob")
    await ask(client, "federated_release", lease="a", owner="ada")
    assert await hold(client, "c", "five")


async def test_bytes_of_one_owner_are_counted(client: Client) -> None:
    plugin_of(client).held_bytes_per_owner = 2500
    futures = [client.submit(bytes, 1000, key=key) for key in "xyz"]
    for future in futures:
        await future
    assert await hold(client, "a", "x")
    # The same result twice in one lease is held once.
    both = {0: output("y"), 1: output("y")}
    assert await ask(client, "federated_hold", lease="b", owner="ada", outputs=both)
    refusal = await hold(client, "c", "z")
    assert isinstance(refusal, RequestRefused)
    assert refusal.reason is Reason.LIMIT_EXCEEDED
    assert "2,500 bytes that this site holds for one person" in refusal.message
    # The size of a result may depend on data that may not leave.
    assert not re.search(r"\b[1-9],?0\d\d\b", refusal.message.replace("2,500", ""))
    assert await hold(client, "d", "z", owner="bob")
    await ask(client, "federated_release", lease="a", owner="ada")
    assert await hold(client, "c", "z")


async def test_by_default_one_owner_holds_a_part_of_the_memory(client: Client) -> None:
    [worker] = client.cluster.scheduler.workers.values()
    worker.memory_limit = 3600
    future = client.submit(bytes, 1000, key="x")
    await future
    refusal = await hold(client, "a", "x")
    assert isinstance(refusal, RequestRefused)
    assert "900 bytes that this site holds for one person" in refusal.message
    worker.memory_limit = 0
    assert await hold(client, "a", "x")


async def test_accounts_of_unknown_jobs_are_empty(client: Client) -> None:
    assert await ask(client, "federated_account", job="nothing") == JobAccount()


def test_from_config(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("certificate", "private_key")}
    for path in files.values():
        path.touch()
    config = parse_config(
        {
            "site": {"name": "north", "title": "The north"},
            "endpoint": files,
            "tokens": {"private_key": files["private_key"]},
            "peers": [{"name": "south", "address": "https://south:1"}],
            "datasets": {"a1b": {"path": "a1b.zarr", "keywords": ["air"]}},
            "limits": {
                "lease_seconds": "1h",
                "longest_lease_seconds": "5h",
                "leases_per_owner": 7,
                "held_bytes_per_owner": "1MiB",
            },
        },
        tmp_path,
    )
    plugin = SitePlugin.from_config(config)
    assert plugin.offers.datasets["a1b"].path == str(tmp_path / "a1b.zarr")
    assert plugin.peers == (Peer(name="south", address="https://south:1"),)
    assert (plugin.lease_seconds, plugin.longest_lease_seconds) == (3600, 5 * 3600)
    assert (plugin.leases_per_owner, plugin.held_bytes_per_owner) == (7, 2**20)
