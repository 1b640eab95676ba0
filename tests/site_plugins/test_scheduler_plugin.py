import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from federated_dask.protocol.messages import Peer
from site_plugins.config import parse_config
from site_plugins.datasets import StoredDataset
from site_plugins.scheduler_plugin import JobAccount, LeasedOutput, SitePlugin, unwrapped

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


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def tasks(client: Client) -> dict[Any, Any]:
    return dict(client.cluster.scheduler.tasks)


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
    # Without the lease it would be forgotten by now.
    await asyncio.sleep(0.1)
    assert tasks(client)["five"].state == "memory"
    assert await ask(client, "federated_release", lease="l", owner="ada")
    await until(lambda: not tasks(client))
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
    await ask(client, "federated_hold", lease="l", owner="ada", outputs=held, seconds=0.2)
    future.release()
    await until(lambda: not tasks(client))
    assert await ask(client, "federated_held", lease="l", owner="ada") is None


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
            "limits": {"lease_seconds": "1h"},
        },
        tmp_path,
    )
    plugin = SitePlugin.from_config(config)
    assert plugin.datasets["a1b"].path == str(tmp_path / "a1b.zarr")
    assert plugin.peers == (Peer(name="south", address="https://south:1"),)
    assert plugin.lease_seconds == 3600
