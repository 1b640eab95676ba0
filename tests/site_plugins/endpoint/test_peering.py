"""Values from site to site: who may fetch what, and peers that lie, break off or hang."""

import asyncio
import base64
import contextlib
import dataclasses
import json
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from distributed.client import Client

from federated_dask.errors import (
    ConfigurationError,
    FederatedError,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    Reason,
)
from federated_dask.protocol.frames import FrameDecoder, encode_frame
from federated_dask.protocol.graph import Graph, Held, Reference
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import (
    DELEGATED_OUTPUTS,
    DelegationReply,
    Failure,
    Finished,
    JobSubmission,
    Output,
    Progress,
    Result,
    delegation_key,
)
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.values import encode_value
from site_plugins import LocalFederation
from site_plugins.certificates import new_authority, write_certificates
from site_plugins.config import SiteConfig, parse_config
from site_plugins.endpoint import peering as module
from site_plugins.endpoint.peering import DELEGATION_HEADER, Delegation, Peering
from site_plugins.keys import new_issuer_key, public_key_of
from site_plugins.statements import StatementSigner
from site_plugins.tokens import create_token
from tests.site_plugins import graphs
from tests.site_plugins.graphs import block, call, template
from tests.site_plugins.helpers import AIR, Caller, as_message, value_of

LEASE = "0123456789abcdef" * 2
OWNER = "urn:federated-dask:site:south\nada"
SITES = ("north", "south", "ocean")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, SiteConfig]:
    """Three sites that list one another; nothing runs."""
    authority = new_authority()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name in SITES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "key.pem").write_bytes(new_issuer_key())
        (tmp_path / name / "public.pem").write_bytes(public_key_of(tmp_path / name / "key.pem"))
    return {name: config_of(tmp_path, name, authority) for name in SITES}


def config_of(folder: Path, name: str, authority: Any, **changes: Any) -> SiteConfig:
    own = folder / f"{name}-certificates"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    files = write_certificates(own, authority=authority)
    described = {
        "site": {"name": name},
        "endpoint": {"certificate": str(files.certificate), "private_key": str(files.private_key)},
        "tokens": {"private_key": str(folder / name / "key.pem")},
        "peers": [
            {
                "name": other,
                "address": f"https://127.0.0.1:{9000 + number}",
                "ca": str(folder / "ca.pem"),
                "public_key": str(folder / other / "public.pem"),
                **changes.get(other, {}),
            }
            for number, other in enumerate(SITES)
            if other != name
        ],
    }
    return parse_config(described, folder)


@dataclasses.dataclass
class Three:
    """The sites' peerings, and what can be signed with their keys."""

    configs: dict[str, SiteConfig]

    def __post_init__(self) -> None:
        self.at = {name: Peering(config) for name, config in self.configs.items()}

    def sign(self, site: str, kind: str, claims: dict[str, Any], seconds: float = 60.0) -> str:
        return StatementSigner(self.configs[site].tokens.private_key).sign(kind, claims, seconds)

    def delegation(self, **changes: Any) -> str:
        """South lets north have outputs 0 and 1."""
        given = {
            "owner": OWNER,
            "receiver": "north",
            "lease": LEASE,
            "outputs": [1, 0],
            "limit": 100,
        }
        return self.at["south"].delegate(**{**given, **changes})

    def statement(self, delegation: str, site: str = "north", **changes: Any) -> str:
        claims = {"iss": "north", "aud": "south", "for": module._digest(delegation), **changes}
        return self.sign(site, "peer+jwt", claims)

    def check(self, delegation: str, statement: str, lease: str = LEASE, output: int = 0) -> Any:
        return self.at["south"].check(delegation, statement, lease, output)

    def refused(self, delegation: str, statement: str) -> None:
        with pytest.raises(NotAuthenticated) as error:
            self.check(delegation, statement)
        assert error.value.reason is Reason.TOKEN_INVALID
        assert error.value.site == "south"
        assert not delegation or delegation not in str(error.value)
        assert error.value.__cause__ is None


@pytest.fixture
def three(configs: dict[str, SiteConfig]) -> Three:
    return Three(configs)


# Delegations and statements


def test_the_receiver_may_fetch(three: Three) -> None:
    delegation = three.delegation()
    for output in (0, 1):
        found = three.check(delegation, three.statement(delegation), output=output)
        assert found == Delegation(owner=OWNER, receiver="north", limit=100)


@pytest.mark.parametrize(("lease", "output"), [(LEASE, 2), (LEASE[:-1], 0), ("", 0), (LEASE, -1)])
def test_other_results(three: Three, lease: str, output: int) -> None:
    delegation = three.delegation()
    with pytest.raises(NotPermitted):
        three.check(delegation, three.statement(delegation), lease, output)


@pytest.mark.parametrize("receiver", ["south", "west", "", "https://north.example", "../north"])
def test_only_peers_receive(three: Three, receiver: str) -> None:
    with pytest.raises(NotFound) as error:
        three.delegation(receiver=receiver)
    assert error.value.reason is Reason.UNKNOWN_SITE


FORGED: dict[str, Callable[[Three, str], tuple[str, str]]] = {
    "nothing": lambda t, d: ("", ""),
    "no statement": lambda t, d: (d, ""),
    "no delegation": lambda t, d: ("", t.statement(d)),
    "garbage": lambda t, d: ("a.b.c", "\x00" * 10),
    "not ascii": lambda t, d: (d, "é.é.é"),
    "huge": lambda t, d: (d, "a" * 10**6),
    "statement of another peer": lambda t, d: (d, t.statement(d, "ocean")),
    "another peer as itself": lambda t, d: (d, t.statement(d, "ocean", iss="ocean")),
    "statement by the source": lambda t, d: (d, t.statement(d, "south")),
    "statement to another site": lambda t, d: (d, t.statement(d, aud="ocean")),
    "no audience": lambda t, d: (d, t.statement(d, aud=None)),
    "for another delegation": lambda t, d: (d, t.statement(t.delegation())),
    "for none": lambda t, d: (d, t.statement(d, **{"for": None})),
    "delegation as statement": lambda t, d: (d, d),
    "statement as delegation": lambda t, d: (t.statement(d), t.statement(t.statement(d))),
    "delegation by the receiver": lambda t, d: both(t, t.sign("north", "delegation+jwt", GOOD)),
    "delegation of another kind": lambda t, d: both(t, t.sign("south", "peer+jwt", GOOD)),
    "access token's kind": lambda t, d: both(t, t.sign("south", "at+jwt", GOOD)),
    "of another issuer": lambda t, d: both(
        t, t.sign("south", "delegation+jwt", {**GOOD, "iss": "ocean"})
    ),
    "expired": lambda t, d: both(t, t.sign("south", "delegation+jwt", GOOD, -1)),
    "too long a life": lambda t, d: both(t, t.sign("south", "delegation+jwt", GOOD, 86_400)),
    "expired statement": lambda t, d: (d, t.sign("north", "peer+jwt", stated(d), -1)),
    "long-lived statement": lambda t, d: (d, t.sign("north", "peer+jwt", stated(d), 3600)),
    "receiver nobody knows": lambda t, d: both(
        t, t.sign("south", "delegation+jwt", {**GOOD, "receiver": "west"})
    ),
    "receiver is no name": lambda t, d: both(
        t, t.sign("south", "delegation+jwt", {**GOOD, "receiver": ["north"]})
    ),
    "user's token as delegation": lambda t, d: both(t, create_token(t.configs["south"], "ada", 60)),
    "user's token as statement": lambda t, d: (d, create_token(t.configs["north"], "ada", 60)),
    "user's token of the source": lambda t, d: (d, create_token(t.configs["south"], "ada", 60)),
    "changed": lambda t, d: both(t, changed(d, lease="f" * 32)),
    "unsigned": lambda t, d: both(t, d.rpartition(".")[0] + "."),
    "alg none": lambda t, d: both(t, with_header(d, alg="none")),
    "alg HS256": lambda t, d: both(t, with_header(d, alg="HS256")),
    "key in the header": lambda t, d: both(t, with_header(d, jwk={})),
}
GOOD = {
    "iss": "south",
    "aud": "south",
    "owner": OWNER,
    "receiver": "north",
    "lease": LEASE,
    "outputs": [0],
    "bytes": 100,
}


def stated(delegation: str) -> dict[str, Any]:
    return {"iss": "north", "aud": "south", "for": module._digest(delegation)}


def both(three: Three, delegation: str) -> tuple[str, str]:
    """A delegation and an honest statement for it."""
    return delegation, three.statement(delegation)


def coded(data: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()


def changed(token: str, **claims: Any) -> str:
    header, payload, signature = token.split(".")
    old = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return ".".join([header, coded({**old, **claims}), signature])


def with_header(token: str, **fields: Any) -> str:
    _, payload, signature = token.split(".")
    return ".".join(
        [coded({"alg": "Ed25519", "typ": "delegation+jwt", **fields}), payload, signature]
    )


def test_the_forger_signs_well(three: Three) -> None:
    """What the forgeries below are made of is good: they fail for their one flaw alone."""
    delegation = three.sign("south", "delegation+jwt", GOOD)
    assert three.check(delegation, three.statement(delegation)).owner == OWNER


@pytest.mark.parametrize("kind", FORGED)
def test_forged(three: Three, kind: str) -> None:
    three.refused(*FORGED[kind](three, three.delegation()))


def test_time_passes(three: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    delegation = three.delegation()
    statement = three.statement(delegation)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    three.refused(delegation, statement)
    assert three.check(delegation, three.statement(delegation))
    monkeypatch.setattr(time, "time", lambda: now + 601)
    three.refused(delegation, three.statement(delegation))


def test_as_many_outputs_as_one_may_have(three: Three) -> None:
    outputs = range(10**6 - DELEGATED_OUTPUTS, 10**6)
    delegation = three.delegation(outputs=outputs)
    assert len(delegation) < 8192
    assert three.check(delegation, three.statement(delegation), output=10**6 - 1)


def test_a_peer_with_a_new_key(configs: dict[str, SiteConfig], tmp_path: Path) -> None:
    delegation = Three(configs).delegation()
    old = Three(configs).statement(delegation)
    private = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "north" / "key.pem").write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "north" / "public.pem").write_bytes(public_key_of(tmp_path / "north" / "key.pem"))
    three = Three(configs)
    three.refused(delegation, old)
    assert three.check(delegation, three.statement(delegation)).receiver == "north"


# Configuration


def rsa_key() -> bytes:
    key = rsa.generate_private_key(65537, 2048).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("content", [b"", b"canary", rsa_key, new_issuer_key])
def test_keys_that_cannot_be_used(
    configs: dict[str, SiteConfig], tmp_path: Path, content: bytes | Callable[[], bytes]
) -> None:
    data = content if isinstance(content, bytes) else content()
    (tmp_path / "north" / "public.pem").write_bytes(data)
    with pytest.raises(ConfigurationError, match="public key of peer 'north'") as error:
        Peering(configs["south"])
    assert "canary" not in str(error.value)
    assert "PRIVATE" not in str(error.value)


def test_an_authority_that_cannot_be_used(configs: dict[str, SiteConfig], tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigurationError, match="authority of peer"):
        Peering(configs["south"])


def test_without_a_public_key_nothing_is_exchanged(tmp_path: Path, three: Three) -> None:
    config = config_of(tmp_path, "south", new_authority(), north={"public_key": None})
    source = Three({**three.configs, "south": config})
    assert source.at["south"].trusted == {"ocean"}
    with pytest.raises(NotFound):
        source.delegation()
    # Made while north was still listed.
    delegation = source.sign("south", "delegation+jwt", GOOD)
    source.refused(delegation, source.statement(delegation))


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "file:///etc/passwd", "127.0.0.1"])
def test_addresses_are_https(tmp_path: Path, configs: Any, address: str) -> None:
    with pytest.raises(ConfigurationError, match="https"):
        config_of(tmp_path, "south", new_authority(), north={"address": address})


# Real sites


@pytest.fixture
def south(federation: LocalFederation) -> Iterator[Caller]:
    caller = Caller(federation, "south", federation.token["south"])
    yield caller
    caller.wait_until_idle()


def speaker(federation: LocalFederation, site: str) -> StatementSigner:
    return StatementSigner(federation._configs[site].tokens.private_key)


def delegated(federation: LocalFederation, lease: str = LEASE) -> dict[str, str]:
    """What south takes for a delegation of north."""
    claims = {"iss": "north", "aud": "north", "lease": lease, "outputs": [0]}
    text = speaker(federation, "north").sign(module.DELEGATION, claims, 60)
    return {delegation_key(lease, 0): text}


def credentials(
    federation: LocalFederation, delegation: str, site: str = "south"
) -> dict[str, str]:
    claims = {"iss": site, "aud": "north", "for": module._digest(delegation)}
    statement = speaker(federation, site).sign("peer+jwt", claims, 60)
    return {"Authorization": f"Bearer {statement}", DELEGATION_HEADER: delegation}


ONES = Graph(templates=(template(call("numpy.ones", graphs.Number(1000))),), blocks=(block(0),))


async def hold(caller: Caller, graph: Graph = ONES, *tasks: int) -> str:
    outputs = [Output(task=task, release=False, hold=True) for task in tasks or (0,)]
    _, last = await caller.run(graph, *outputs)
    assert isinstance(last, Finished)
    return str(last.lease)


async def ask(caller: Caller, lease: str, *outputs: int, receiver: str = "south") -> str:
    body = json.dumps({"receiver": receiver, "outputs": outputs or [0]})
    status, reply = await caller.read("POST", f"/leases/{lease}/delegations", data=body)
    assert status == 200, reply
    return msgspec.json.decode(reply, type=DelegationReply).delegation


@pytest.fixture
async def lease(north: Caller) -> AsyncIterator[str]:
    """A thousand ones that north holds."""
    name = await hold(north)
    yield name
    await north.read("DELETE", f"/leases/{name}")


FIRST = Output(task=0)


def use(*held: Held) -> Graph:
    """Takes the first of some held results, which has to be the first operand."""
    return Graph(held=held, templates=(template(Reference()),), blocks=(block(0, 0),))


def job(graph: Graph, delegations: dict[str, str], output: Output) -> bytes:
    message = JobSubmission(graph=graph, outputs=(output,), delegations=delegations)
    return b"".join(map(bytes, encode_frame(message)))


async def run(
    caller: Caller, graph: Graph, delegations: dict[str, str], output: Output = FIRST
) -> tuple[Any, Any]:
    """Run a job: its result and its last event; None and the failure where it is not admitted."""
    value = last = None
    async with caller.request("POST", "/jobs", data=job(graph, delegations, output)) as response:
        body = await response.read()
        if response.status != 200:
            return None, msgspec.json.decode(body, type=Failure)
    for frame in FrameDecoder().feed(body):
        last = as_message(frame)
        if isinstance(last, Result):
            value = value_of(last.value, frame)
    return value, last


async def test_pulled(
    federation: LocalFederation, north: Caller, south: Caller, lease: str
) -> None:
    delegation = await ask(north, lease)
    value, last = await run(
        south, use(Held(lease, 0, "north")), {delegation_key(lease, 0): delegation}
    )
    np.testing.assert_array_equal(value, np.ones(1000))
    assert isinstance(last, Finished)
    assert 0 < last.pulled_bytes["north"] < 10_000


async def test_pulled_once(
    south: Caller, north: Caller, lease: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulls = []
    real = Peering.pull

    async def counted(self: Peering, *arguments: Any, **keywords: Any) -> Any:
        pulls.append(arguments)
        return await real(self, *arguments, **keywords)

    monkeypatch.setattr(Peering, "pull", counted)
    graph = use(*[Held(lease, 0, "north")] * 50)
    _, last = await run(south, graph, {delegation_key(lease, 0): await ask(north, lease)})
    assert isinstance(last, Finished)
    assert len(pulls) == 1


async def test_delegations_are_for_the_owner(
    federation: LocalFederation, north: Caller, lease: str
) -> None:
    other = Caller(federation, "north", federation.new_token("north", "eve"))
    body = json.dumps({"receiver": "south", "outputs": [0]})
    status, failure = await other.refused("POST", f"/leases/{lease}/delegations", data=body)
    assert (status, failure.reason) == (404, "unknown_result")
    status, same = await other.refused("POST", f"/leases/{'f' * 32}/delegations", data=body)
    assert (status, same) == (404, failure)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ('{"receiver": "south", "outputs": [1]}', 404, "unknown_result"),
        ('{"receiver": "south", "outputs": [0, 7]}', 404, "unknown_result"),
        ('{"receiver": "west", "outputs": [0]}', 404, "unknown_site"),
        ('{"receiver": "north", "outputs": [0]}', 404, "unknown_site"),
        ('{"receiver": "https://evil.example/", "outputs": [0]}', 400, "malformed"),
        ('{"receiver": "south", "outputs": []}', 400, "malformed"),
        ('{"receiver": "south", "outputs": [-1]}', 400, "malformed"),
        ('{"receiver": "south", "outputs": ["0"]}', 400, "malformed"),
        ('{"receiver": "south"}', 400, "malformed"),
        (json.dumps({"receiver": "south", "outputs": [0] * 501}), 400, "malformed"),
        ("", 400, "malformed"),
        ("[" * 60_000, 400, "malformed"),
        ("\x80", 400, "malformed"),
        ("x" * 70_000, 413, "limit_exceeded"),
    ],
)
async def test_requests_that_do_not_fit(
    north: Caller, lease: str, body: str, status: int, reason: str
) -> None:
    found, failure = await north.refused("POST", f"/leases/{lease}/delegations", data=body)
    assert (found, failure.reason, failure.site) == (status, reason, "north")


async def test_delegated_needs_both_credentials(
    federation: LocalFederation, nobody: Caller, north: Caller, lease: str
) -> None:
    delegation = await ask(north, lease)
    good = credentials(federation, delegation)
    path = f"/delegated/{lease}/0"
    assert (await nobody.read("GET", path, headers=good))[0] == 200
    bad = [
        {},
        {DELEGATION_HEADER: delegation},
        {"Authorization": good["Authorization"]},
        # The client itself holds the delegation, and a token.
        {**good, "Authorization": f"Bearer {federation.token['north']}"},
        {**good, "Authorization": f"Bearer {federation.token['south']}"},
        {**good, "Authorization": good["Authorization"].replace("Bearer", "Basic")},
        {**good, "Authorization": f"Bearer {delegation}"},
        {**good, DELEGATION_HEADER: federation.token["north"]},
        {**good, DELEGATION_HEADER: "x" * 20_000},
        credentials(federation, delegation, "north"),
    ]
    for headers in bad:
        status, failure = await nobody.refused("GET", path, headers=headers)
        assert (status, failure.reason, failure.site) == (401, "token_invalid", "north")
    # Whether there is such a lease is not for everybody.
    status, same = await nobody.refused("GET", f"/delegated/{'f' * 32}/0", headers={})
    assert (status, same) == (401, (await nobody.refused("GET", path, headers={}))[1])
    assert (await nobody.refused("GET", f"/delegated/{lease}/1", headers=good))[0] == 403


async def test_delegation_and_statement_are_no_tokens(
    federation: LocalFederation, nobody: Caller, north: Caller, lease: str
) -> None:
    delegation = await ask(north, lease)
    statement = credentials(federation, delegation)["Authorization"]
    for bearer in (statement, f"Bearer {delegation}"):
        for method, path in (("GET", f"/leases/{lease}/0"), ("DELETE", f"/leases/{lease}")):
            headers = {"Authorization": bearer, DELEGATION_HEADER: delegation}
            status, failure = await nobody.refused(method, path, headers=headers)
            assert (status, failure.reason) == (401, "token_invalid")


async def test_a_delegation_ends_with_the_lease(
    federation: LocalFederation, nobody: Caller, north: Caller
) -> None:
    lease = await hold(north)
    good = credentials(federation, await ask(north, lease))
    await north.read("DELETE", f"/leases/{lease}")
    status, failure = await nobody.refused("GET", f"/delegated/{lease}/0", headers=good)
    assert (status, failure.reason) == (404, "unknown_result")


async def test_the_limit_of_a_delegation(
    federation: LocalFederation, nobody: Caller, lease: str, north: Caller
) -> None:
    claims = {**GOOD, "iss": "north", "aud": "north", "owner": north.owner, "receiver": "south"}
    small = speaker(federation, "north").sign(
        "delegation+jwt", {**claims, "lease": lease, "bytes": 10}, 60
    )
    status, failure = await nobody.refused(
        "GET", f"/delegated/{lease}/0", headers=credentials(federation, small)
    )
    assert (status, failure.reason) == (403, "export_not_allowed")


# What no message can do


@pytest.mark.parametrize(
    "peer",
    ["south", "west", "", ".", "..", "../north", "https://127.0.0.1:1", "127.0.0.1", "north/", "é"],
)
async def test_only_peers_are_asked(south: Caller, north: Caller, lease: str, peer: str) -> None:
    delegation = await ask(north, lease)
    value, failure = await run(
        south, use(Held(lease, 0, peer)), {delegation_key(lease, 0): delegation}
    )
    assert value is None
    assert isinstance(failure, Failure)
    assert failure.site == "south"
    assert failure.reason in ("unknown_result", "malformed")


@pytest.mark.parametrize(
    "lease",
    [
        "../datasets/a1b",
        "..",
        ".",
        "x?y=1",
        "x#y",
        "x/0",
        "",
        "a b",
        "x" * 5000,
        "%2e%2e",
        "@h",
        "é",
    ],
)
async def test_no_lease_is_a_path(
    federation: LocalFederation, south: Caller, lease: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*arguments: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(Peering, "_fetch", never)
    value, failure = await run(south, use(Held(lease, 0, "north")), delegated(federation, lease))
    assert value is None
    assert (failure.reason, failure.site) == ("malformed", "south")


@pytest.mark.parametrize("delegation", ["a\r\nHost: b", "a b", "é", "\x00", "x" * 10_000])
async def test_no_delegation_is_a_header(south: Caller, delegation: str) -> None:
    value, failure = await run(
        south, use(Held(LEASE, 0, "north")), {delegation_key(LEASE, 0): delegation}
    )
    assert value is None
    assert (failure.reason, failure.site) == ("malformed", "south")


@pytest.mark.parametrize("delegations", [{}, {delegation_key(LEASE, 0): ""}, {LEASE: "a.b.c"}])
async def test_without_a_delegation(south: Caller, delegations: dict[str, str]) -> None:
    _, failure = await run(south, use(Held(LEASE, 0, "north")), delegations)
    assert failure.reason == "unknown_result"


async def test_a_delegation_that_the_source_refuses(
    south: Caller, north: Caller, lease: str
) -> None:
    # It is for another output.
    delegation = await ask(north, lease)
    _, failure = await run(
        south, use(Held(lease, 1, "north")), {delegation_key(lease, 1): delegation}
    )
    assert (failure.reason, failure.site) == ("operation_not_allowed", "north")
    assert "'north' refused" in failure.message


async def test_a_delegation_that_does_not_hold_ends_before_the_pull(
    south: Caller, north: Caller, lease: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*arguments: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(Peering, "_fetch", never)
    delegation = await ask(north, lease)
    for wrong in ("a.b.c", f"{delegation[:-8]}AAAAAAAA"):
        value, failure = await run(
            south, use(Held(lease, 0, "north")), {delegation_key(lease, 0): wrong}
        )
        assert value is None
        assert (failure.reason, failure.site) == ("unknown_result", "south")


# What may leave


async def test_derived_data_is_refused_by_its_source(
    federation: LocalFederation, north: Caller, south: Caller, nobody: Caller
) -> None:
    graph = graphs.chunk_sums(await north.version("secret"), "secret")
    # One chunk of 2400 bytes, where 964 may leave; and sums of 240.
    lease = await hold(north, graph, 0)
    delegation = await ask(north, lease)
    status, failure = await nobody.refused(
        "GET", f"/delegated/{lease}/0", headers=credentials(federation, delegation)
    )
    assert (status, failure.reason) == (403, "budget_exhausted")
    _, failure = await run(
        south, use(Held(lease, 0, "north")), {delegation_key(lease, 0): delegation}
    )
    assert (failure.reason, failure.site) == ("budget_exhausted", "north")
    await north.read("DELETE", f"/leases/{lease}")


@pytest.mark.parametrize("who", ["owner", "peer"])
async def test_derived_data_does_not_leave_piece_by_piece(
    federation: LocalFederation, north: Caller, nobody: Caller, who: str
) -> None:
    graph = graphs.chunk_sums(await north.version("secret"), "secret")
    lease = await hold(north, graph, 4, 5, 6, 7)
    delegation = await ask(north, lease, 0, 1, 2, 3)
    headers = credentials(federation, delegation)
    kept = {
        "peer": (nobody, f"/delegated/{lease}", headers),
        "owner": (north, f"/leases/{lease}", {}),
    }
    caller, path, headers = kept[who]
    statuses = [(await caller.read("GET", f"{path}/{n}", headers=headers))[0] for n in range(4)]
    # Four sums of 240 bytes, each with its frame.
    assert statuses == [200, 200, 200, 403]
    # What has left may be fetched once more, also by the other.
    for caller, path, headers in kept.values():
        assert (await caller.read("GET", f"{path}/0", headers=headers))[0] == 200
        assert (await caller.read("GET", f"{path}/3", headers=headers))[0] == 403
    await north.read("DELETE", f"/leases/{lease}")


async def test_what_a_job_released_counts_for_what_it_holds(north: Caller) -> None:
    graph = graphs.chunk_sums(await north.version("secret"), "secret")
    outputs = [*range(4, 7), Output(task=7, release=False, hold=True), Output(task=4, hold=True)]
    results, last = await north.run(graph, *outputs[:3], outputs[3])
    assert isinstance(last, Finished), last
    assert len(results) == 3
    assert (await north.read("GET", f"/leases/{last.lease}/3"))[0] == 403
    await north.read("DELETE", f"/leases/{last.lease}")


# Peers that do not behave


@dataclasses.dataclass
class Fake:
    """A server in the place of south's peer north, with a certificate that south trusts."""

    federation: LocalFederation

    @contextlib.asynccontextmanager
    async def serving(
        self, handler: Handler, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[None]:
        endpoint = self.federation._configs["north"].endpoint
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(endpoint.certificate, endpoint.private_key)
        writers = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                await handler(reader, writer)
            writer.transport.abort()

        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
        address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        real = Peering._fetch

        async def fetch(peering: Peering, peer: str, url: str, *arguments: Any) -> Any:
            path = url.partition("/delegated/")[2]
            return await real(peering, peer, f"{address}/delegated/{path}", *arguments)

        monkeypatch.setattr(Peering, "_fetch", fetch)
        try:
            yield
        finally:
            server.close()
            for writer in writers:
                writer.transport.abort()
            await asyncio.sleep(0.05)


def ok(*pieces: Any, headers: str = "") -> bytes:
    body = b"".join(map(bytes, pieces))
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def value_frame(value: Any, output: int = 0) -> bytes:
    buffers: list[Any] = []
    encoded = encode_value(value, buffers, resolver=operation_table())
    message = Result(output=output, value=encoded)
    return b"".join(map(bytes, encode_frame(message, buffers)))


def sends(*pieces: bytes, then: float | None = None) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if then is not None:
            await asyncio.sleep(then)

    return handler


async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\nF\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    frame = value_frame(1)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(frame * 1000)
        await writer.drain()


HUGE = b"FDF1" + (2**31).to_bytes(4, "little") * 2
INTERNAL, UNREACHABLE, LIMIT = "internal", "unreachable", "limit_exceeded"


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        pytest.param(sends(ok(b"garbage" * 100)), INTERNAL, id="garbage"),
        pytest.param(sends(ok()), INTERNAL, id="empty"),
        pytest.param(sends(b"\x00\xff" * 1000), UNREACHABLE, id="not HTTP"),
        pytest.param(sends(ok(value_frame(1) * 2)), INTERNAL, id="two values"),
        pytest.param(sends(ok(value_frame(1), b"x")), INTERNAL, id="more behind"),
        pytest.param(sends(ok(value_frame(1)[:-1])), INTERNAL, id="truncated"),
        pytest.param(sends(ok(value_frame(1))[:-1]), UNREACHABLE, id="broken off"),
        pytest.param(sends(ok(value_frame(1, output=1))), INTERNAL, id="another output"),
        pytest.param(
            sends(ok(*encode_frame(Progress(done=1, total=2)))), INTERNAL, id="another message"
        ),
        pytest.param(sends(ok(value_frame(np.ones(9))[:-8], bytes(8)[:-1])), INTERNAL, id="short"),
        pytest.param(sends(ok(HUGE)), LIMIT, id="huge header"),
        pytest.param(sends(ok(value_frame(np.zeros(10**8, "u1")))), LIMIT, id="bomb"),
        pytest.param(floods, INTERNAL, id="flood"),
        pytest.param(drips, INTERNAL, id="drips garbage"),
        pytest.param(
            sends(b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\n\r\n"),
            INTERNAL,
            id="redirect",
        ),
        pytest.param(
            sends(b"HTTP/1.1 500 No\r\n\r\n", *[b"x" * 10**6] * 3, then=30),
            INTERNAL,
            id="long error",
        ),
        pytest.param(
            sends(b'HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n{"a": [1}'), INTERNAL, id="JSON"
        ),
        pytest.param(sends(), UNREACHABLE, id="closes"),
        pytest.param(sends(then=30), UNREACHABLE, id="hangs"),
        pytest.param(sends(ok(value_frame(1))[:-1], then=30), UNREACHABLE, id="hangs in the body"),
        pytest.param(
            sends(ok(b"\x1f\x8b\x08", headers="Content-Encoding: gzip\r\n")), INTERNAL, id="gzip"
        ),
    ],
)
async def test_a_peer_that_does_not_behave(
    federation: LocalFederation,
    south: Caller,
    monkeypatch: pytest.MonkeyPatch,
    handler: Handler,
    reason: str,
) -> None:
    monkeypatch.setattr(module, "PULL_SECONDS", 3.0)
    limits = Limits(header_bytes=2**20, buffer_bytes=2**24)
    real = Peering.pull

    async def pull(self: Peering, *arguments: Any, **keywords: Any) -> Any:
        return await real(self, *arguments, **{**keywords, "limits": limits})

    monkeypatch.setattr(Peering, "pull", pull)
    started = time.monotonic()
    async with Fake(federation).serving(handler, monkeypatch):
        value, failure = await run(south, use(Held(LEASE, 0, "north")), delegated(federation))
    assert value is None
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.site) == (reason, "south")
    assert "'north'" in failure.message
    assert time.monotonic() - started < 60


async def test_a_peer_that_drips_for_ever(
    federation: LocalFederation, south: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never silent for long, never done."""
    monkeypatch.setattr(module, "PULL_SECONDS", 1.0)

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ok(value_frame(np.ones(1000)))[:-4000])
        for _ in range(4000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    started = time.monotonic()
    async with Fake(federation).serving(slow, monkeypatch):
        _, failure = await run(south, use(Held(LEASE, 0, "north")), delegated(federation))
    assert failure.reason == "unreachable"
    assert time.monotonic() - started < 60


async def test_what_a_peer_says_is_said_to_be_its_words(
    federation: LocalFederation, south: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = json.dumps({"event": "failure", "reason": "made_up", "message": "m" * 9000, "site": "x"})
    reply = f"HTTP/1.1 418 No\r\nContent-Length: {len(said)}\r\n\r\n{said}".encode()
    async with Fake(federation).serving(sends(reply), monkeypatch):
        _, failure = await run(south, use(Held(LEASE, 0, "north")), delegated(federation))
    assert failure.site == "north"
    assert "'north' refused: mmm" in failure.message
    assert len(failure.message) < 2000
    assert failure.reason in [reason.value for reason in Reason]


async def test_a_peer_that_is_not_there(
    federation: LocalFederation, south: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Fake(federation).serving(sends(), monkeypatch):
        pass
    _, failure = await run(south, use(Held(LEASE, 0, "north")), delegated(federation))
    assert (failure.reason, failure.site) == ("unreachable", "south")
    assert "https://" not in failure.message


async def test_a_peer_without_a_certificate_to_trust(tmp_path: Path, configs: Any) -> None:
    (tmp_path / "other").mkdir()
    files = write_certificates(tmp_path / "other", authority=new_authority())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files.certificate, files.private_key)
    heard = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1))
        writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    address = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = configs["south"].model_copy(
        update={
            "peers": tuple(
                peer.model_copy(update={"address": address}) for peer in configs["south"].peers
            )
        }
    )
    peering = Peering(config)
    with pytest.raises(FederatedError) as error:
        await peering.pull("north", LEASE, 0, "a.b.c", limits=Limits(), table=operation_table())
    assert error.value.reason is Reason.UNREACHABLE
    assert not any(heard)
    await peering.close()
    server.close()
    await asyncio.sleep(0.05)


# Nothing is left


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.1])
async def test_a_client_that_goes_away_while_values_come(
    north: Caller, south: Caller, monkeypatch: pytest.MonkeyPatch, moment: float
) -> None:
    graph = graphs.chunk_sums(await north.version())
    lease = await hold(north, graph, *range(8))
    delegation = await ask(north, lease, *range(8))
    begun = asyncio.Event()
    real = Client._scatter
    loop = asyncio.get_running_loop()

    async def slow(self: Client, *arguments: Any, **keywords: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        await asyncio.sleep(0.05)
        found = await real(self, *arguments, **keywords)
        await asyncio.sleep(0.05)
        return found

    monkeypatch.setattr(Client, "_scatter", slow)
    held = tuple(Held(lease, n, "north") for n in range(8))
    body = job(use(*held), {delegation_key(lease, 0): delegation}, FIRST)
    task = asyncio.create_task(south.read("POST", "/jobs", data=body))
    await begun.wait()
    await asyncio.sleep(moment)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.3)
    south.wait_until_idle()
    await north.read("DELETE", f"/leases/{lease}")


async def test_pulled_values_last_as_long_as_they_are_used(north: Caller, south: Caller) -> None:
    """A job that holds what it made of them; the source lets go meanwhile."""
    graph = graphs.chunk_sums(await north.version())
    lease = await hold(north, graph, *range(4, 8))
    delegation = await ask(north, lease, *range(4))
    total = template(call("operator.add", Reference(), Reference()))
    graph = Graph(
        held=tuple(Held(lease, n, "north") for n in range(4)),
        templates=(total,),
        blocks=(block(0, 0, 1), block(0, 2, 3), block(0, 4, 5)),
    )
    output = Output(task=2, release=False, hold=True)
    _, last = await run(south, graph, {delegation_key(lease, 0): delegation}, output)
    assert isinstance(last, Finished), last
    await north.read("DELETE", f"/leases/{lease}")
    value, _ = await run(south, use(Held(str(last.lease), 0)), {})
    np.testing.assert_allclose(value, AIR.sum(axis=0))
    await south.read("DELETE", f"/leases/{last.lease}")
