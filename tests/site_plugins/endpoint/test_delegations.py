"""Delegations and statements: who may fetch what from a site."""

import base64
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from federated_dask.errors import (
    ConfigurationError,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    Reason,
)
from federated_dask.protocol.messages import (
    DELEGATED_OUTPUTS,
)
from site_plugins.certificates import new_authority
from site_plugins.config import SiteConfig
from site_plugins.endpoint import peering as module
from site_plugins.endpoint.peering import Delegation, Peering
from site_plugins.keys import new_issuer_key, public_key_of
from site_plugins.statements import StatementSigner
from site_plugins.tokens import create_token
from tests.site_plugins.peers import (
    GOOD,
    LEASE,
    OWNER,
    config_of,
)


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
