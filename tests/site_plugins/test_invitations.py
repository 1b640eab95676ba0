"""Sites become peers by a one-time code, and nobody else does."""

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from federated_dask import FederatedClient
from federated_dask.errors import (
    ConfigurationError,
    NotAuthenticated,
    NotFound,
    Reason,
    RequestRefused,
    SiteUnavailable,
)
from federated_dask.protocol.identity_messages import JoinRequest, SiteIntroduction
from site_plugins import LocalFederation
from site_plugins.audit import AUDIT_LOG, entries, verify
from site_plugins.certificates import write_certificates
from site_plugins.cli import site as site_command
from site_plugins.invitations import InvitationCode, join_request
from site_plugins.joining import join
from site_plugins.keys import new_issuer_key
from site_plugins.registry import Registry
from tests.site_plugins.helpers import Caller
from tests.site_plugins.lone_sites import SiteAlone


@pytest.fixture
def north(tmp_path: Path) -> SiteAlone:
    return SiteAlone(tmp_path / "north", "north")


@pytest.fixture
def south(tmp_path: Path) -> SiteAlone:
    return SiteAlone(tmp_path / "south", "south")


def refused(north: SiteAlone, asked: JoinRequest) -> NotAuthenticated:
    with pytest.raises(NotAuthenticated) as caught:
        north.invitations.accept(asked)
    assert caught.value.reason == Reason.TOKEN_INVALID
    assert not north.peers.current()
    return caught.value


def test_a_site_that_was_invited_becomes_a_peer(north: SiteAlone, south: SiteAlone) -> None:
    code = north.invitations.create("south")
    told = north.invitations.accept(join_request(south.config, code))
    assert (told.name, told.address) == ("north", "https://north.example:8786")
    assert "BEGIN PUBLIC KEY" in told.public_key
    assert "PRIVATE" not in told.public_key + str(told.ca)
    peer = north.peers.exchanging()["south"]
    assert peer.learnt
    assert peer.address == "https://south.example:8786"
    statement = south.signer.sign("peer+jwt", {"iss": "south"}, 60.0)
    assert peer.verifier is not None
    assert peer.verifier.verify("peer+jwt", statement, 60.0)


def test_a_code_is_not_kept(north: SiteAlone) -> None:
    code = north.invitations.create("south")
    kept = repr(north.registry.rows("SELECT * FROM invitations"))
    assert code.secret not in kept
    assert code.secret in str(code)


def test_a_code_is_for_one_site(north: SiteAlone, south: SiteAlone, tmp_path: Path) -> None:
    code = north.invitations.create("south")
    north.invitations.accept(join_request(south.config, code))
    impostor = SiteAlone(tmp_path / "impostor", "south")
    with pytest.raises(NotAuthenticated, match="does not hold"):
        north.invitations.accept(join_request(impostor.config, code))
    # The same site may ask again: its answer may have got lost.
    assert north.invitations.accept(join_request(south.config, code)).name == "north"
    assert len(north.peers.current()) == 1


def test_a_site_that_was_forgotten_cannot_use_its_code_again(
    north: SiteAlone, south: SiteAlone
) -> None:
    code = north.invitations.create("south")
    north.invitations.accept(join_request(south.config, code))
    north.peers.forget("south")
    refused(north, join_request(south.config, code))
    with pytest.raises(NotFound):
        north.peers.forget("south")


def test_a_code_is_for_one_name(north: SiteAlone, tmp_path: Path) -> None:
    west = SiteAlone(tmp_path / "west", "west")
    refused(north, join_request(west.config, north.invitations.create("south")))


def test_a_code_ends(north: SiteAlone, south: SiteAlone) -> None:
    refused(north, join_request(south.config, north.invitations.create("south", 1e-6)))


def test_an_unknown_code_makes_the_site_write_nothing(
    north: SiteAlone, south: SiteAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    north.invitations.create("south")
    unknown = InvitationCode(secret="A" * 24, fingerprint=bytes(32))

    def fail(self: Registry) -> None:
        raise AssertionError("a transaction was begun")

    monkeypatch.setattr(Registry, "transaction", fail)
    refused(north, join_request(south.config, unknown))


def resigned(south: SiteAlone, asked: JoinRequest, **claims: Any) -> JoinRequest:
    """The request with a statement that says something else."""
    import hashlib

    from site_plugins.invitations import _claims

    right = _claims(asked, bytes.fromhex(claims.pop("fingerprint")))
    assert right["for"] == hashlib.sha256(asked.secret.encode()).hexdigest()
    kind = claims.pop("kind", "join+jwt")
    lifetime = claims.pop("lifetime", 60.0)
    statement = south.signer.sign(kind, {**right, **claims}, lifetime)
    return msgspec.structs.replace(asked, statement=statement)


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "west"},
        {"aud": "00" * 32},
        {"for": "00" * 32},
        {"address": "https://evil.example"},
        {"ca": "00" * 32},
        {"kind": "peer+jwt"},
        {"kind": "at+jwt"},
        {"lifetime": 3600.0},
    ],
)
def test_the_statement_is_about_all_that_is_sent(
    north: SiteAlone, south: SiteAlone, claims: dict[str, Any]
) -> None:
    code = north.invitations.create("south")
    asked = join_request(south.config, code)
    refused(north, resigned(south, asked, fingerprint=code.fingerprint.hex(), **claims))
    # The invitation is not used up by what did not hold.
    assert north.invitations.accept(asked).name == "north"


def test_the_key_has_to_be_held(north: SiteAlone, south: SiteAlone, tmp_path: Path) -> None:
    """Somebody who saw the code shows another site's key."""
    code = north.invitations.create("south")
    asked = join_request(south.config, code)
    other = SiteAlone(tmp_path / "other", "south")
    public_key = join_request(other.config, code).public_key
    refused(north, msgspec.structs.replace(asked, public_key=public_key))


@pytest.mark.parametrize(
    "change",
    [
        {"address": "http://south.example"},
        {"address": "https://"},
        {"address": "file:///etc/passwd"},
        {"public_key": "nothing"},
        {"public_key": ""},
        {"ca": "nothing"},
    ],
)
def test_what_cannot_be_used_is_refused(
    north: SiteAlone, south: SiteAlone, change: dict[str, str]
) -> None:
    asked = join_request(south.config, north.invitations.create("south"))
    with pytest.raises(RequestRefused) as caught:
        north.invitations.accept(msgspec.structs.replace(asked, **change))
    assert caught.value.reason == Reason.INVALID_ARGUMENT
    assert not north.peers.current()


def test_names_that_are_taken(tmp_path: Path, south: SiteAlone) -> None:
    listed = [{"name": "west", "address": "https://west.example"}]
    north = SiteAlone(tmp_path / "north", "north", peers=listed)
    for name in ("north", "west"):
        with pytest.raises(ConfigurationError):
            north.invitations.create(name)
    with pytest.raises(ConfigurationError, match="cannot be the name"):
        north.invitations.create("a/b")
    north.invitations.accept(join_request(south.config, north.invitations.create("south")))
    with pytest.raises(ConfigurationError, match="There is a peer 'south' already"):
        north.invitations.create("south")
    with pytest.raises(ConfigurationError, match=r"is listed in site\.toml"):
        north.peers.forget("west")


def test_a_name_that_was_taken_since_the_invitation(north: SiteAlone, south: SiteAlone) -> None:
    first, second = (north.invitations.create("south") for _ in range(2))
    north.invitations.accept(join_request(south.config, first))
    known = north.peers.current()["south"]
    south.config.tokens.private_key.write_bytes(new_issuer_key())
    with pytest.raises(RequestRefused, match="There is a peer 'south' already"):
        north.invitations.accept(join_request(south.config, second))
    assert north.peers.current()["south"] is known


def test_one_key_is_one_peer(north: SiteAlone, south: SiteAlone, tmp_path: Path) -> None:
    north.invitations.accept(join_request(south.config, north.invitations.create("south")))
    twin = SiteAlone(tmp_path / "twin", "twin")
    twin.config.tokens.private_key.write_bytes(south.config.tokens.private_key.read_bytes())
    with pytest.raises(RequestRefused, match="or one with its key is known"):
        north.invitations.accept(join_request(twin.config, north.invitations.create("twin")))


@pytest.mark.parametrize(
    "text", ["", "fd1_", "fd1_x", "x" * 71, "fd1_" + "é" * 67, "fd1_" + "." * 67]
)
def test_no_code(text: str) -> None:
    with pytest.raises(ConfigurationError, match="no invitation code"):
        InvitationCode.parse(text)


# The joining side.


async def test_nothing_is_sent_to_another_site(
    north: SiteAlone, south: SiteAlone, tmp_path: Path
) -> None:
    other = write_certificates(tmp_path / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(other.certificate, other.private_key)
    received: list[bytes] = []
    ended = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            received.append(await reader.read())
        writer.close()
        ended.set()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    code = north.invitations.create("south")
    with pytest.raises(NotAuthenticated, match="another site than the one that made the code"):
        await join(south.config, south.peers, address, str(code))
    async with asyncio.timeout(60):
        await ended.wait()
    assert b"".join(received) == b""
    assert not south.peers.current()
    server.close()
    await server.wait_closed()


async def test_an_address_where_nobody_is(north: SiteAlone, south: SiteAlone) -> None:
    code = str(north.invitations.create("south"))
    with pytest.raises(ConfigurationError, match="no address of a site"):
        await join(south.config, south.peers, "http://127.0.0.1:1", code)
    with pytest.raises(SiteUnavailable, match="does not answer"):
        await join(south.config, south.peers, "https://127.0.0.1:1", code)


# Two running sites with authorities of their own.


@pytest.fixture(scope="module")
def strangers() -> Iterator[dict[str, LocalFederation]]:
    """Two sites that do not know each other."""
    values = np.random.default_rng(0).normal(size=(64, 64, 61))
    data = {"a1b": xr.Dataset({"air": (("time", "y", "z"), values)}).chunk(time=8)}
    with (
        LocalFederation({"north": {"datasets": data}}, n_workers=1) as north,
        LocalFederation({"south": {"datasets": data}}, n_workers=1) as south,
    ):
        yield {"north": north, "south": south}


def site_toml(federation: LocalFederation, name: str, folder: Path) -> Path:
    """A site.toml for the commands, of a site that runs."""
    config = federation._configs[name]
    endpoint = config.endpoint
    path = folder / f"{name}.toml"
    path.write_text(
        f'[site]\nname = "{name}"\nstate = "{config.site.state}"\n'
        f'[tokens]\nprivate_key = "{config.tokens.private_key}"\n'
        f'[endpoint]\nport = {endpoint.port}\ncertificate = "{endpoint.certificate}"\n'
        f'private_key = "{endpoint.private_key}"\nca = "{endpoint.ca}"\n'
    )
    return path


def state_of(strangers: dict[str, LocalFederation], name: str) -> Path:
    return strangers[name]._configs[name].site.state


def run(*arguments: object) -> str:
    result = CliRunner().invoke(site_command, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


def peers_of(federation: LocalFederation, name: str) -> dict[str, Any]:
    caller = Caller(federation, name, federation.token[name])
    described = asyncio.run(caller.json("/site"))
    return {peer["name"]: peer for peer in described["peers"]}


def test_two_running_sites_become_peers_and_exchange_values(
    strangers: dict[str, LocalFederation], tmp_path: Path
) -> None:
    paths = {name: site_toml(strangers[name], name, tmp_path) for name in strangers}
    assert peers_of(strangers["north"], "north") == {}
    *_, address, code = run("invite", paths["north"], "--name", "south").split()
    assert address == strangers["north"].addresses["north"]
    assert "are peers" in run("join", paths["south"], address, code)
    for here, there in (("north", "south"), ("south", "north")):
        peer = peers_of(strangers[here], here)[there]
        assert (peer["address"], peer["exchanges"]) == (
            strangers[there].addresses[there],
            True,
        )
        assert there in run("peers", paths[here])
    authorities = "".join(Path(each.verify).read_text() for each in strangers.values())
    (tmp_path / "ca.pem").write_text(authorities)
    addresses = {name: each.addresses[name] for name, each in strangers.items()}
    tokens = {name: each.token[name] for name, each in strangers.items()}
    with FederatedClient(addresses, token=tokens, verify=tmp_path / "ca.pem") as fed:
        a, b = (fed.open_dataset(f"{name}/a1b", chunks={}).air for name in addresses)
        assert np.all((a - b).max("time").compute() == 0)
        assert fed.last_run is not None
        links = {(link.start, link.end): link.actual_bytes for link in fed.last_run.links}
        assert links.get(("north", "south"), 0) + links.get(("south", "north"), 0) > 1e6
    # North vouches for south's certificate, to whom it tells of south.
    own = {"verify": strangers["north"].verify, "progress": False}
    address, token = strangers["north"].addresses["north"], strangers["north"].token["north"]
    with FederatedClient({"north": address}, token=token, **own) as fed:
        assert isinstance(fed.sites["south"].error, NotAuthenticated)
    # Whom the user has a token for is recognised as the user says.
    by_address = {each.addresses[name]: each.token[name] for name, each in strangers.items()}
    with FederatedClient({"north": address}, token=by_address, **own) as fed:
        assert isinstance(fed.sites["south"].error, SiteUnavailable)
    # Known and joined already: nothing happens.
    with pytest.raises(AssertionError, match="There is a peer 'south' already"):
        run("invite", paths["north"], "--name", "south")
    run("forget", paths["north"], "south")
    written = [entry["event"] for entry in entries(state_of(strangers, "north") / AUDIT_LOG)]
    assert [event for event in written if event.startswith("peer")] == [
        "peer_invited",
        "peer_joined",
        "peer_forgotten",
    ]
    assert list(verify(state_of(strangers, "north") / AUDIT_LOG)) == []
    assert code not in (state_of(strangers, "north") / AUDIT_LOG).read_text()
    assert peers_of(strangers["north"], "north") == {}


async def test_the_route_of_a_running_site(strangers: dict[str, LocalFederation]) -> None:
    nobody = Caller(strangers["north"], "north", None)
    status, failure = await nobody.refused("POST", "/peers", data=b"{}")
    assert (status, failure.reason) == (400, "malformed")
    introduction = SiteIntroduction(name="west", address="https://w", public_key="x")
    asked = {**msgspec.structs.asdict(introduction), "secret": "s" * 24, "statement": "a.b.c"}
    status, failure = await nobody.refused("POST", "/peers", data=msgspec.json.encode(asked))
    assert (status, failure.reason) == (401, "token_invalid")
    status, failure = await nobody.refused("POST", "/peers", data=b"x" * 100_000)
    assert (status, failure.reason) == (413, "limit_exceeded")
