"""Values that go from site to site, and those that cannot."""

import gc
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from federated_dask.errors import FederatedError, Reason, SiteUnavailable
from site_plugins import LocalFederation
from site_plugins.endpoint.peering import Peering
from site_plugins.endpoint.server import EndpointServer
from tests.client.sites import Inside, assert_same, start_federation, wide

SITES = ("north", "south", "ocean")
LINKS = {(a, b) for a in SITES for b in SITES if a != b}


def field(seed: int, chunks: int = 8) -> xr.Dataset:
    """2 MB, of which the mean over time is 31 KB."""
    values = np.random.default_rng(seed).normal(size=(64, 64, 61))
    return xr.Dataset({"x": (("time", "y", "z"), values)}).chunk(time=64 // chunks)


def sites(**options: Any) -> dict[str, dict[str, Any]]:
    return {
        name: {"datasets": {"field": field(number), "many": many(number)}, **options.get(name, {})}
        for number, name in enumerate(SITES)
    }


def many(seed: int) -> xr.Dataset:
    """More chunks than one delegation may be for."""
    return xr.Dataset({"x": ("time", np.arange(1200.0) * (seed + 1))}).chunk(time=1)


@pytest.fixture(scope="module")
def trio() -> Iterator[LocalFederation]:
    """Three sites that exchange values."""
    with start_federation(**sites()) as running:
        yield running


@pytest.fixture(scope="module")
def strangers() -> Iterator[LocalFederation]:
    """North and south do not exchange values: south does not list north's key."""
    with start_federation(**sites(south={"exchanges": ["ocean"]})) as running:
        yield running


@pytest.fixture
def fed(trio: LocalFederation) -> Iterator[FederatedClient]:
    with FederatedClient(trio, timeout=30, progress=False) as client:
        yield client
    nothing_left(trio)


def nothing_left(federation: LocalFederation) -> None:
    gc.collect()
    for site in federation.sites:
        Inside(federation, site).until_idle()


def x(fed: FederatedClient, site: str, name: str = "field") -> xr.DataArray:
    return fed.open_dataset(f"{site}/{name}", chunks={}).x


def own(site: str) -> xr.DataArray:
    return field(SITES.index(site)).x.compute()


def crossed(fed: FederatedClient) -> dict[tuple[str, str], int]:
    assert fed.last_run is not None
    return {(link.start, link.end): link.actual_bytes for link in fed.last_run.links}


def exchanged(fed: FederatedClient) -> dict[tuple[str, str], int]:
    return {link: size for link, size in crossed(fed).items() if link in LINKS and size}


def homewards(fed: FederatedClient) -> int:
    return sum(size for (_, end), size in crossed(fed).items() if end == "home")


def test_a_difference(fed: FederatedClient) -> None:
    lazy = (x(fed, "north") - x(fed, "south")).mean("time")
    found = lazy.compute()
    expected = (own("north") - own("south")).mean("time")
    assert_same(found, expected, rtol=1e-9, atol=1e-12)
    # One of the two fields crosses between the sites, and the result comes home.
    [(link, size)] = exchanged(fed).items()
    assert link in {("north", "south"), ("south", "north")}
    assert own("north").nbytes * 0.9 < size < own("north").nbytes * 1.05
    assert homewards(fed) < expected.nbytes + 8_000
    predicted = {(link.start, link.end): link.predicted_bytes for link in fed.last_run.links}
    assert predicted[link] == pytest.approx(own("north").nbytes, rel=0.01)


def test_the_smaller_one_travels(fed: FederatedClient) -> None:
    lazy = (x(fed, "north") * x(fed, "south").isel(time=0)).std("time")
    found = lazy.compute()
    expected = (own("north") * own("south").isel(time=0)).std("time")
    assert_same(found, expected, rtol=1e-9, atol=1e-12)
    assert set(exchanged(fed)) == {("south", "north")}
    assert exchanged(fed)["south", "north"] < expected.nbytes * 1.1


def test_three_sites(fed: FederatedClient) -> None:
    a, b, c = (x(fed, site) for site in SITES)
    found = ((a - b) * c).sum("time").compute()
    expected = ((own("north") - own("south")) * own("ocean")).sum("time")
    assert_same(found, expected, rtol=1e-9, atol=1e-9)
    assert len(exchanged(fed)) == 2
    assert homewards(fed) < expected.nbytes + 16_000


def test_several_stages(fed: FederatedClient) -> None:
    def computed(a: xr.DataArray, b: xr.DataArray) -> xr.DataArray:
        anomaly = a - b
        return ((anomaly - anomaly.mean("time")) ** 2 * b.mean("time")).mean("time")

    found = computed(x(fed, "north"), x(fed, "south")).compute()
    expected = computed(own("north"), own("south"))
    assert_same(found, expected, rtol=1e-9, atol=1e-9)
    assert exchanged(fed)
    assert homewards(fed) < expected.nbytes * 3 + 16_000


def test_more_chunks_than_one_delegation_is_for(fed: FederatedClient) -> None:
    found = (x(fed, "north", "many") - x(fed, "south", "many")).std("time").compute()
    expected = (many(0).x - many(1).x).std("time").compute()
    assert_same(found, expected, rtol=1e-9)
    assert exchanged(fed)


def test_at_the_same_time(fed: FederatedClient) -> None:
    lazy = [(x(fed, a) - x(fed, b)).mean("time") for a, b in LINKS]
    found = [future.result() for future in fed.compute(lazy)]
    for (a, b), each in zip(LINKS, found, strict=True):
        assert_same(each.compute(), (own(a) - own(b)).mean("time"), rtol=1e-9, atol=1e-12)


def test_persisted_values_are_fetched(fed: FederatedClient) -> None:
    """What stays at a site under the user's own lease is delegated too."""
    kept = (x(fed, "south") * 2).persist()
    found = (x(fed, "north") - kept).mean("time").compute()
    assert_same(found, (own("north") - own("south") * 2).mean("time"), rtol=1e-9, atol=1e-12)


# Without an exchange


def test_home_relays_between_strangers(strangers: LocalFederation) -> None:
    # What came home for the first would be used for the second.
    with FederatedClient(strangers, timeout=30, progress=False, cache_bytes=0) as fed:
        found = (x(fed, "north") - x(fed, "south")).mean("time").compute()
        assert_same(found, (own("north") - own("south")).mean("time"), rtol=1e-9, atol=1e-12)
        assert exchanged(fed) == {}
        assert homewards(fed) > own("north").nbytes
        # Each of them knows the ocean.
        (x(fed, "ocean") - x(fed, "south")).mean("time").compute()
        assert exchanged(fed)
    nothing_left(strangers)


# Failures


def test_the_source_stops_before_the_pull(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = {}

    class Recorded(EndpointServer):
        async def start(self) -> None:
            await super().start()
            servers[self.port] = self

    monkeypatch.setattr("site_plugins.serve.EndpointServer", Recorded)
    with start_federation(**sites()) as federation:
        real = Peering.pull
        stopped = []

        async def pull(self: Peering, peer: str, *arguments: Any, **keywords: Any) -> Any:
            if not stopped:
                stopped.append(peer)
                await servers[urlsplit(federation.addresses[peer]).port].stop()
            return await real(self, peer, *arguments, **keywords)

        monkeypatch.setattr(Peering, "pull", pull)
        with FederatedClient(federation, timeout=20, progress=False) as fed:
            lazy = (x(fed, "north") - x(fed, "south")).mean("time")
            started = time.monotonic()
            with pytest.raises(SiteUnavailable) as error:
                lazy.compute()
            assert time.monotonic() - started < 20
            del lazy
        [source] = stopped
        receiver = {"north": "south", "south": "north"}[source]
        assert error.value.reason is Reason.UNREACHABLE
        assert error.value.site == receiver
        assert f"'{source}'" in error.value.message
        del error
        gc.collect()
        Inside(federation, receiver).until_idle()


@pytest.mark.parametrize("method", ["check", "delegate", "pull"])
def test_nothing_is_left_after_a_failure(
    trio: LocalFederation, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    calls = []
    real = getattr(Peering, method)

    def failing(self: Peering, *arguments: Any, **keywords: Any) -> Any:
        calls.append(method)
        # Some values are there already then, and some on their way.
        if len(calls) == (1 if method == "delegate" else 4):
            raise SiteUnavailable("Broken.", reason=Reason.CONNECTION_LOST, site="here")
        return real(self, *arguments, **keywords)

    with FederatedClient(trio, timeout=20, progress=False) as fed:
        lazy = (x(fed, "north") - x(fed, "south")).mean("time")
        with monkeypatch.context() as patch:
            patch.setattr(Peering, method, failing)
            with pytest.raises(FederatedError, match="Broken"):
                lazy.compute()
        gc.collect()
        nothing_left(trio)
        # The sites are none the worse for it.
        found = lazy.compute()
        assert_same(found, (own("north") - own("south")).mean("time"), rtol=1e-9, atol=1e-12)
    del lazy, found
    nothing_left(trio)


def test_a_lease_that_ended_before_the_pull(
    trio: LocalFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Peering.pull

    async def pull(self: Peering, peer: str, lease: str, *arguments: Any, **keywords: Any) -> Any:
        await trio.sites[peer].client.run_on_scheduler(
            lambda dask_scheduler: dask_scheduler.plugins["federated-site"].federated_release_all()
        )
        return await real(self, peer, lease, *arguments, **keywords)

    monkeypatch.setattr(Peering, "pull", pull)
    with FederatedClient(trio, timeout=20, progress=False) as fed:
        lazy = (x(fed, "north") - x(fed, "south")).mean("time")
        with pytest.raises(FederatedError) as error:
            lazy.compute()
    assert error.value.reason is Reason.UNKNOWN_RESULT
    assert "refused" in error.value.message
    del error
    nothing_left(trio)


def test_derived_data_goes_to_no_peer() -> None:
    secret = {"path": wide(3), "egress": "derived", "share": 0.02}
    federation = start_federation(
        north={"datasets": {"secret": secret}}, south={"datasets": {"wide": wide(2)}}
    )
    with federation, FederatedClient(federation, timeout=20, progress=False) as fed:
        secret_x = fed.open_dataset("north/secret", chunks={}).x
        other = fed.open_dataset("south/wide", chunks={}).x
        # The open one travels to the other, and what the two make may leave.
        found = (secret_x - other).mean().compute()
        expected = (wide(3).x - wide(2).x).mean().compute()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
        assert set(exchanged(fed)) == {("south", "north")}
        with pytest.raises(FederatedError) as error:
            (secret_x - other).compute()
        assert error.value.reason is Reason.EXPORT_NOT_ALLOWED
