"""Finding the sites of a federation."""

from typing import Any

import pytest

from federated_dask.client.finding import SiteFinder
from federated_dask.errors import ConfigurationError
from federated_dask.protocol.call_messages import Functions
from federated_dask.protocol.messages import Catalogue, Peer, SiteDescription

GIVEN = {"https://a": "a", "https://b": "b"}
SECRET = "secret"
TRUE, FALSE = "https://ocean.example", "https://collector.example"


class Connection:
    """A site that answers; what the finder uses of it."""

    def __init__(self, finder: "Finder", name: str, address: str, token: str | None) -> None:
        self.finder, self.name, self.address = finder, name, address
        finder.sent.append((address, token))

    async def describe_site(self) -> SiteDescription:
        peers = tuple(
            Peer(name=name, address=address, ca=self.finder.vouched.get((self.name, name)))
            for name, address in self.finder.peers.get(self.name, {}).items()
        )
        return SiteDescription(name=self.name, peers=peers)

    async def catalogue(self) -> Catalogue:
        return Catalogue(site=self.name, datasets=())

    async def functions(self) -> Functions:
        return Functions(site=self.name, functions=())

    async def close(self) -> None:
        self.finder.closed.append(self.address)


class Finder(SiteFinder):
    """Reaches two given sites, which state these peers."""

    def __init__(self, peers: dict[str, dict[str, str]], token: Any = SECRET) -> None:
        super().__init__([(name, address) for address, name in GIVEN.items()], token, True, 1.0)
        self.peers = peers
        self.sent: list[tuple[str, str | None]] = []
        self.closed: list[str] = []
        self.vouched: dict[tuple[str, str], str] = {}
        self.trusted: dict[str, str | None] = {}

    async def _make_connection(
        self, name: str, address: str, token: str | None, ca: str | None = None
    ) -> Any:
        self.trusted[address] = ca
        return Connection(self, name, address, token)


async def found(finder: Finder) -> dict[str, Any]:
    _, peers = await finder.reach_all()
    return {site.name: site for site, _ in peers}


@pytest.mark.parametrize(
    "token",
    [
        "secret",
        {"a": "1", "b": "2", TRUE: "secret", FALSE: "secret"},
    ],
)
@pytest.mark.parametrize("stated", [(TRUE, FALSE), (FALSE, TRUE)])
async def test_a_peer_that_has_two_addresses_is_not_connected_to(
    token: Any, stated: tuple[str, str]
) -> None:
    peers = {"a": {"ocean": stated[0]}, "b": {"ocean": stated[1], "lake": "https://lake"}}
    finder = Finder(peers, token)
    sites = await found(finder)
    error = sites["ocean"].error
    assert isinstance(error, ConfigurationError)
    assert sites["ocean"].status == "configuration_invalid"
    assert f"a: {stated[0]}; b: {stated[1]}" in error.message
    assert "FederatedClient({'ocean':" in str(error.hint)
    assert sites["lake"].status == "ok"
    assert "ocean" not in finder.connections
    assert not {TRUE, FALSE} & {address for address, _ in finder.sent}


async def test_a_peer_on_which_all_agree() -> None:
    finder = Finder({"a": {"ocean": TRUE}, "b": {"ocean": f"{TRUE}/"}})
    assert (await found(finder))["ocean"].status == "ok"
    assert finder.sent.count((TRUE, "secret")) == 1


async def test_addresses_of_given_sites_are_those_given() -> None:
    finder = Finder({"a": {"b": FALSE}})
    assert await found(finder) == {}
    assert FALSE not in dict(finder.sent)


async def test_a_peer_that_gets_another_address_is_let_go_of() -> None:
    finder = Finder({"a": {"ocean": TRUE}})
    assert (await found(finder))["ocean"].status == "ok"
    finder.peers["b"] = {"ocean": FALSE}
    assert (await found(finder))["ocean"].status == "configuration_invalid"
    assert "ocean" not in finder.connections
    assert finder.closed == [TRUE]
    assert FALSE not in dict(finder.sent)


@pytest.mark.parametrize(
    ("vouched", "token", "trusted"),
    [
        ({("a", "ocean"): "CA", ("b", "ocean"): "CA"}, SECRET, "CA"),
        # Given sites contradict one another.
        ({("a", "ocean"): "CA", ("b", "ocean"): "other"}, SECRET, None),
        ({("a", "ocean"): "CA"}, SECRET, None),
        # It was the user who said where this token goes.
        ({("a", "ocean"): "CA", ("b", "ocean"): "CA"}, {TRUE: SECRET}, None),
    ],
)
async def test_sites_vouch_for_certificates_of_their_peers(
    vouched: dict[tuple[str, str], str], token: Any, trusted: str | None
) -> None:
    finder = Finder({"a": {"ocean": TRUE}, "b": {"ocean": TRUE, "a": FALSE}}, token)
    # Not for those that are given.
    finder.vouched = {**vouched, ("b", "a"): "CA"}
    assert (await found(finder))["ocean"].status == "ok"
    assert finder.trusted == {"https://a": None, "https://b": None, TRUE: trusted}
