"""What crosses a client's connections, and what it says of that."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import xarray as xr

from federated_dask import FederatedClient
from site_plugins import LocalFederation
from tests.client.sites import SITES, CountingProxy


@pytest.fixture
def proxied(federation: LocalFederation) -> Iterator[dict[str, CountingProxy]]:
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(CountingProxy(federation.addresses[name])) for name in SITES
        }


class TestWire:
    def client(
        self, federation: LocalFederation, proxied: dict[str, CountingProxy]
    ) -> FederatedClient:
        return FederatedClient(
            SimpleNamespace(
                addresses={name: proxy.address for name, proxy in proxied.items()},
                token=federation.token,
                verify=federation.verify,
            ),
            timeout=10,
        )

    @pytest.mark.parametrize("what", ["raw", "reduced", "two stages"])
    def test_last_run_counts_what_crossed(
        self, federation: LocalFederation, proxied: dict[str, CountingProxy], what: str
    ) -> None:
        with self.client(federation, proxied) as fed:
            x, y = (fed.open_dataset(f"{s}/wide", chunks={}).x for s in ("north", "south"))
            lazy = {
                "raw": x,
                "reduced": xr.concat([x, y], "model").std(("model", "time")),
                "two stages": ((x - (x.mean("time") + y.mean("time"))) ** 2).mean("time"),
            }[what]
            before = {name: (proxy.sent, proxy.received) for name, proxy in proxied.items()}
            lazy.compute()
            assert fed.last_run is not None
            counted = {(link.start, link.end): link.actual_bytes for link in fed.last_run.links}
        for name, proxy in proxied.items():
            sent, received = proxy.sent - before[name][0], proxy.received - before[name][1]
            for seen, own in (
                (sent, counted.get(("home", name), 0)),
                (received, counted.get((name, "home"), 0)),
            ):
                # Above what is counted: TLS records and handshake, HTTP headers and chunks.
                assert own <= seen <= own * 1.02 + 8_000
        assert counted["north", "home"] > 100_000

    def test_opening_is_one_round_trip(
        self, federation: LocalFederation, proxied: dict[str, CountingProxy]
    ) -> None:
        with self.client(federation, proxied) as fed:
            connection = fed.connection_of("north")
            sent = connection.counter.sent
            before = proxied["north"].sent
            fed.open_dataset("north/wide")
            # One GET: no body, one set of headers (and a new TLS handshake at most).
            assert connection.counter.sent == sent
            assert proxied["north"].sent - before < 3_000

    def test_no_token_goes_to_a_peer_by_name(self, federation: LocalFederation) -> None:
        with CountingProxy(federation.addresses["north"]) as proxy:
            fed = FederatedClient(
                {"north": proxy.address}, token=federation.token, verify=federation.verify
            )
            assert fed.sites["south"].status == "token_missing"
            fed.close()
