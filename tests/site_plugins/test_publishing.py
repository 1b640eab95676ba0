"""Publishing at run time, and what is left of it after a restart."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

from federated_dask.errors import ConfigurationError
from site_plugins import LocalFederation, SitePlugin, publish, publish_dataset, unpublish
from site_plugins.functions import ModuleOrigin, published_function
from site_plugins.offers import unwrapped
from site_plugins.scheduler_plugin import SiteState
from tests.site_plugins import published
from tests.site_plugins.calls import call, refused, result
from tests.site_plugins.helpers import AIR, Caller, dataset
from tests.waiting import async_until


@asynccontextmanager
async def site(state: Path | None) -> AsyncIterator[Client]:
    """A scheduler that is a site's, and a Dask client of it."""
    function = published_function(
        published.add, ModuleOrigin("tests.site_plugins.published", "add")
    )
    plugin = SitePlugin("north", functions=[function], state=state)
    async with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            protocol="inproc://",
            dashboard_address=None,
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
    ):
        await client.register_plugin(plugin, name=plugin.name)
        yield client


async def state_of(client: Client) -> SiteState:
    state: SiteState = unwrapped(await client.scheduler.federated_site())
    return state


def halve(a: float) -> float:
    """Halve a number."""
    return a / 2


async def test_publications_outlive_the_scheduler(tmp_path: Path) -> None:
    async with site(tmp_path) as client:
        assert await publish(client, halve, title="Half", seconds=5) == "halve"
        await publish_dataset(client, "stored", "s3://bucket/x.zarr", egress="derived", share=0.1)
        await publish_dataset(client, "written", dataset(), title="Written")
        await publish(client, halve, name="gone")
        await unpublish(client, "gone")
        before = await state_of(client)
    assert set(before.functions) == {"add", "halve"}
    async with site(tmp_path) as client:
        after = await state_of(client)
    assert after.functions == before.functions
    assert after.datasets == before.datasets
    description = after.functions["halve"].description
    assert (description.title, description.limits.seconds) == ("Half", 5)
    assert after.datasets["stored"].share == 0.1
    written = xr.open_zarr(after.datasets["written"].path, chunks=None)
    np.testing.assert_array_equal(written.air, AIR)


async def test_the_scheduler_does_not_load_what_it_keeps(tmp_path: Path) -> None:
    class Canary:
        def __call__(self, a: float) -> float:
            return a

        def __reduce__(self) -> Any:
            return _alarm, (str(tmp_path / "alarm"),)

    alive = published_function(halve, ModuleOrigin("tests.site_plugins.test_publishing", "halve"))
    import cloudpickle

    from site_plugins.functions import PickledOrigin
    from site_plugins.publications import Publications

    kept = published_function(halve, PickledOrigin(cloudpickle.dumps(Canary())))
    Publications(tmp_path).keep_function(kept)
    async with site(tmp_path) as client:
        assert (await state_of(client)).functions["halve"].description == alive.description
    assert not (tmp_path / "alarm").exists()


def exists(path: str) -> bool:
    return Path(path).exists()


def _alarm(path: str) -> Any:
    Path(path).touch()


async def test_another_one_takes_the_place(tmp_path: Path) -> None:
    async with site(tmp_path) as client:
        await publish_dataset(client, "a1b", dataset())
        first = (await state_of(client)).datasets["a1b"].path
        await publish_dataset(client, "a1b", dataset() * 2)
        second = (await state_of(client)).datasets["a1b"].path
        assert not exists(first)
        assert exists(second)
        await unpublish(client, "a1b")
        assert not exists(second)
        assert "a1b" not in (await state_of(client)).datasets


async def test_what_cannot_be_published(tmp_path: Path) -> None:
    async with site(None) as client:
        with pytest.raises(ConfigurationError, match=r"a module of site\.toml"):
            await publish(client, halve, name="add")
        with pytest.raises(ConfigurationError, match="cannot be published"):
            await publish(client, halve, name="no name")
        with pytest.raises(ConfigurationError, match="has no annotation"):
            await publish(client, lambda a: a, name="unknown")
        with pytest.raises(ConfigurationError, match="egress"):
            await publish_dataset(client, "a1b", "x.zarr", egress="closed")
        with pytest.raises(ConfigurationError, match="no state folder"):
            await publish_dataset(client, "a1b", dataset())
        with pytest.raises(ConfigurationError, match="Nothing is published"):
            await unpublish(client, "nothing")
    blocked = tmp_path / "blocked"
    blocked.write_text("no folder")
    async with site(blocked) as client:
        with pytest.raises(ConfigurationError, match="state folder cannot be written"):
            await publish(client, halve)


async def test_a_function_published_at_run_time_is_called() -> None:
    with LocalFederation({"north": {}}) as federation:
        north = Caller(federation, "north", federation.token["north"])
        assert (await refused(north, call("halve", 3)))[1].reason == "unknown_function"
        federation.run(publish, federation.sites["north"].client, halve)

        async def offered() -> bool:
            listed = await north.json("/functions")
            return [each["name"] for each in listed["functions"]] == ["halve"]

        await async_until(offered, "the function is offered")
        assert await result(north, call("halve", 3)) == 1.5
        north.wait_until_idle()
