"""`FederatedClient` over real sites: connecting, looking around, in coroutines."""

import asyncio
import dataclasses
from typing import Any

import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from federated_dask.client import current
from federated_dask.errors import (
    ConfigurationError,
    NotAuthenticated,
    NotFound,
    Reason,
)
from site_plugins import LocalFederation
from tests.client.sites import SITES, Inside, assert_same, local
from tests.waiting import until


class TestConnecting:
    def test_to_a_federation(self, federation: LocalFederation) -> None:
        with FederatedClient(federation) as fed:
            assert list(fed.sites) == SITES
            assert {site.status for site in fed.sites.values()} == {"ok"}

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_to_several_addresses(self, federation: LocalFederation, kind: type) -> None:
        addresses = kind(f"{each}/" for each in federation.addresses.values())
        with FederatedClient(addresses, token=federation.token, verify=federation.verify) as fed:
            assert list(fed.sites) == SITES

    def test_to_names_and_addresses(self, federation: LocalFederation) -> None:
        chosen = {name: federation.addresses[name] for name in ("north", "south")}
        with FederatedClient(chosen, token=federation.token, verify=federation.verify) as fed:
            # The ocean is a peer, for which tokens by name are not used.
            assert fed.sites["ocean"].status == "token_missing"
            assert "ocean/sst" not in fed.datasets
            assert "south/e1" in fed.datasets

    def test_peers_of_one_address(self, federation: LocalFederation) -> None:
        tokens = {f"{federation.addresses[name]}/": federation.token[name] for name in SITES}
        address = federation.addresses["north"]
        with FederatedClient(address, token=tokens, verify=federation.verify) as fed:
            assert list(fed.sites) == SITES
            assert {site.status for site in fed.sites.values()} == {"ok"}
            assert float(fed.open_dataset("south/made").wind.max()) > 10

    def test_one_token_for_all(self, federation: LocalFederation) -> None:
        address, token = federation.addresses["north"], federation.token["north"]
        with FederatedClient(address, token=token, verify=federation.verify) as fed:
            assert fed.sites["north"].status == "ok"
            # These sites have issuers of their own.
            assert fed.sites["south"].status == "token_invalid"
            with pytest.raises(NotAuthenticated) as error:
                fed.open_dataset("south/made")
            assert error.value.site == "south"

    def test_tokens_by_name_go_to_no_peer(self, federation: LocalFederation) -> None:
        address = federation.addresses["north"]
        with FederatedClient(address, token=federation.token, verify=federation.verify) as fed:
            assert fed.sites["north"].status == "ok"
            assert fed.sites["south"].status == fed.sites["ocean"].status == "token_missing"

    def test_refresh_sees_what_is_new_and_what_is_gone(self) -> None:
        small = xr.Dataset({"x": ("time", np.arange(4.0))})
        with LocalFederation({"north": {"datasets": {"a": small}}}) as federation:
            scheduler = Inside(federation, "north")

            def rename(dask_scheduler: Any) -> None:
                datasets = dask_scheduler.plugins["federated-site"].offers.datasets
                datasets["b"] = dataclasses.replace(datasets.pop("a"), name="b")

            with FederatedClient(federation, timeout=20) as fed:
                assert list(fed.datasets) == ["north/a"]
                scheduler.ask(rename)
                assert fed.refresh() is fed
                until(lambda: list(fed.refresh().datasets) == ["north/b"], lambda: repr(fed))


class TestShowing:
    def test_client(self, fed: FederatedClient) -> None:
        assert repr(fed) == "<FederatedClient: 3 sites, 10 datasets>"
        html = fed._repr_html_()
        assert "Institute of the North &lt;&amp;&gt;" in html
        assert "A1B scenario &lt;b&gt;" in html
        assert "<b>Sites</b>" in html

    def test_sites(self, fed: FederatedClient) -> None:
        lines = repr(fed.sites).splitlines()
        assert lines[1].split() == ["site", "title", "workers", "threads", "memory", "status"]
        assert [line.split()[0] for line in lines[2:]] == SITES
        assert repr(fed.sites["north"]).endswith(": ok>")
        with pytest.raises(NotFound, match="Known sites: north, ocean, south") as error:
            fed.sites["west"]
        assert error.value.reason is Reason.UNKNOWN_SITE

    def test_datasets(self, fed: FederatedClient) -> None:
        assert "north/a1b" in repr(fed.datasets)
        assert list(fed.datasets.search("SCENARIO climate")) == ["north/a1b"]
        assert list(fed.datasets.search("same grid")) == ["south/e1"]
        assert list(fed.datasets.search("made")) == ["north/made", "south/made"]
        assert list(fed.datasets.search("nothing like it")) == []
        assert fed.datasets["north/secret"].egress.tier == "derived"
        with pytest.raises(NotFound):
            fed.datasets["a1b"]

    def test_explanation(self, fed: FederatedClient) -> None:
        x, y = (fed.open_dataset(f"{site}/made", chunks={}).wind for site in ("north", "south"))
        explanation = fed.explain([x.std(), x.mean() + y.mean()])
        text, html = repr(explanation), explanation._repr_html_()
        for part in ("north", "south", "home", "downloading the inputs instead", "Not at its data"):
            assert part in text
            assert part in html
        assert "1 × add: it needs data of north and south together" in text
        assert "&" not in text

    def test_run(self, fed: FederatedClient) -> None:
        assert fed.last_run is None
        fed.open_dataset("north/made", chunks={}).wind.mean().compute()
        run = fed.last_run
        assert run is not None
        assert [(link.start, link.end) for link in run.links] == [
            ("home", "north"),
            ("north", "home"),
        ]
        assert "crossed in" in repr(run)
        assert "<td>north</td>" in run._repr_html_()
        assert run.sites["north"].tasks > 0
        assert run.sites["north"].read_bytes == run.download_bytes == 20 * 6 * 8 * 8
        assert run.seconds > 0

    def test_future(self, fed: FederatedClient) -> None:
        future = fed.compute(fed.open_dataset("north/made").wind.mean())
        future.result()
        assert repr(future) == "<FederatedFuture: finished>"


class TestAsynchronous:
    async def test_everything_is_awaited(self, federation: LocalFederation) -> None:
        plain = local("north/made")
        async with FederatedClient(federation, asynchronous=True) as fed:
            assert list(fed.sites) == SITES
            lazy = await fed.open_dataset("north/made", chunks={})
            assert_same(await fed.compute(lazy), plain)
            one, two = await asyncio.gather(*fed.compute([lazy.wind.max(), lazy.wind.min()]))
            assert (one, two) == (plain.wind.max(), plain.wind.min())
            assert await fed.compute([lazy.wind.max().data, 1], sync=True) == [plain.wind.max(), 1]
            persisted = await fed.persist(lazy.wind)
            assert_same(await fed.compute(persisted.sum(), sync=True), plain.wind.sum(), 1e-12)
            assert fed.explain(lazy.wind.std()).tasks["north"] > 0
            assert (await fed.refresh()) is fed
            # What Dask itself calls waits, as ever.
            assert_same(lazy.wind.mean().compute(), plain.wind.mean(), 1e-12)
            assert isinstance(lazy.wind.persist(), xr.DataArray)
        assert current.get_current() is None

    async def test_await_the_client(self, federation: LocalFederation) -> None:
        fed = await FederatedClient(federation, asynchronous=True)
        assert list(fed.sites) == SITES
        assert current.get_current() is fed
        await fed.close()
        assert current.get_current() is None

    async def test_other_tasks_go_on_meanwhile(self, federation: LocalFederation) -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        async with FederatedClient(federation, asynchronous=True) as fed:
            lazy = await fed.open_dataset("north/wide", chunks={})
            ticking = asyncio.create_task(tick())
            await fed.compute(lazy.x.std())
            ticking.cancel()
        assert ticks > 5

    async def test_cancelled_while_it_waits(self, federation: LocalFederation) -> None:
        async with FederatedClient(federation, asynchronous=True) as fed:
            lazy = await fed.open_dataset("north/wide", chunks={})
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.005):
                    await fed.compute((lazy.x * 3).std(), sync=True)
        await asyncio.to_thread(Inside(federation, "north").until_idle)

    async def test_errors(self, federation: LocalFederation) -> None:
        with pytest.raises(NotAuthenticated):
            async with FederatedClient(
                federation.addresses, token="x", verify=federation.verify, asynchronous=True
            ):
                pass
        fed = FederatedClient(federation, asynchronous=True)
        with pytest.raises(ConfigurationError, match="async with"), fed:
            pass

    async def test_synchronous_client_in_async_with(self, federation: LocalFederation) -> None:
        async with FederatedClient(federation) as fed:
            assert float(fed.open_dataset("north/made").wind.max().compute()) > 10
        assert current.get_current() is None
