"""Forged and broken tokens, and a forger who holds the issuer's key."""

import base64
import dataclasses
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from site_plugins.config import SiteConfig, parse_config
from site_plugins.keys import new_issuer_key

HEADER = {"alg": "Ed25519", "typ": "at+jwt"}
Forge = Callable[["Site"], str]


def pem(key: Any) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def encode(data: bytes | str | dict[str, Any]) -> str:
    if isinstance(data, dict):
        data = json.dumps(data)
    if isinstance(data, str):
        data = data.encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclasses.dataclass
class Site:
    """A site with its issuer's key, and means to sign anything with it."""

    config: SiteConfig
    key: ed25519.Ed25519PrivateKey

    def token(self, **changes: Any) -> str:
        return self.sign(
            {key: value for key, value in self.claims(**changes).items() if value != ()}
        )

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = time.time()
        return {
            "iss": self.config.token_issuer,
            "aud": self.config.token_audience,
            "sub": "ada",
            "groups": ["climate"],
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            **changes,
        }

    def sign(
        self, payload: bytes | str | dict[str, Any], header: bytes | str | dict[str, Any] = HEADER
    ) -> str:
        text = f"{encode(header)}.{encode(payload)}"
        return f"{text}.{encode(self.key.sign(text.encode()))}"

    def raw(self, exp: str) -> str:
        """A signed token whose `exp` is written as given."""
        text = json.dumps(self.claims(exp="EXP"))
        return self.sign(text.replace('"EXP"', exp))

    def joserfc(self, header: dict[str, Any], key: Any) -> str:
        return jws.serialize_compact(
            header,
            json.dumps(self.claims()),
            key,
            [header["alg"]],
            jws.JWSRegistry(algorithms=[header["alg"]], strict_check_header=False),
        )


def make_site(folder: Path, key: Any = None) -> Site:
    folder.mkdir(exist_ok=True)
    (folder / "certificate.pem").touch()
    (folder / "issuer.pem").write_bytes(pem(key) if key else new_issuer_key())
    config = parse_config(
        {
            "site": {"name": "north"},
            "endpoint": {"certificate": "certificate.pem", "private_key": "certificate.pem"},
            "tokens": {"private_key": "issuer.pem", "max_lifetime": "1h"},
        },
        folder,
    )
    loaded = load_pem_private_key((folder / "issuer.pem").read_bytes(), None)
    return Site(config, loaded)  # type: ignore[arg-type]


def hmac_token(site: Site, secret: bytes) -> str:
    text = f"{encode({'alg': 'HS256', 'typ': 'at+jwt'})}.{encode(site.claims())}"
    return f"{text}.{encode(hmac.digest(secret, text.encode(), hashlib.sha256))}"


def attacker_embeds(name: str, value: Callable[[Any], Any]) -> Forge:
    def forge(site: Site) -> str:
        key = ed25519.Ed25519PrivateKey.generate()
        attacker = dataclasses.replace(site, key=key)
        public = OKPKey.import_key(public_pem(key)).as_dict()
        return attacker.sign(site.claims(), {**HEADER, name: value(public)})

    return forge


def with_header(**changes: Any) -> Forge:
    header = {key: value for key, value in {**HEADER, **changes}.items() if value != ()}
    return lambda site: site.sign(site.claims(), header)


def with_claims(**changes: Any) -> Forge:
    return lambda site: site.token(**changes)


def shifted(**offsets: float) -> Forge:
    return lambda site: site.token(**{name: time.time() + by for name, by in offsets.items()})


def mangled(change: Callable[[str, str, str], str]) -> Forge:
    return lambda site: change(*site.token().split("."))


def flip(text: str, position: int) -> str:
    letter = "A" if text[position] != "A" else "B"
    return text[:position] + letter + text[position:][1:]


def json_serialised(site: Site) -> str:
    header, payload, signature = site.token().split(".")
    return json.dumps({"protected": header, "payload": payload, "signature": signature})


FORGED: dict[str, Forge] = {
    # Algorithms and keys.
    "alg none, no signature": lambda site: (
        f"{encode({**HEADER, 'alg': 'none'})}.{encode(site.claims())}."
    ),
    "alg None": with_header(alg="None"),
    "alg missing": with_header(alg=()),
    "alg EdDSA": with_header(alg="EdDSA"),
    "alg is a list": with_header(alg=["Ed25519"]),
    "alg lower case": with_header(alg="ed25519"),
    "HS256 with the public key": lambda site: hmac_token(site, public_pem(site.key)),
    "HS256 with the raw public key": lambda site: hmac_token(
        site, site.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    ),
    "HS256 with nothing": lambda site: hmac_token(site, b""),
    "HS512 by joserfc": lambda site: site.joserfc(
        {"alg": "HS512", "typ": "at+jwt"}, OctKey.import_key("0" * 64)
    ),
    "ES256 of another key": lambda site: site.joserfc(
        {"alg": "ES256", "typ": "at+jwt"},
        ECKey.import_key(pem(ec.generate_private_key(ec.SECP256R1()))),
    ),
    "RS256 of another key": lambda site: site.joserfc(
        {"alg": "RS256", "typ": "at+jwt"},
        RSAKey.import_key(pem(rsa.generate_private_key(65537, 2048))),
    ),
    "another Ed25519 key": lambda site: dataclasses.replace(
        site, key=ed25519.Ed25519PrivateKey.generate()
    ).token(),
    # Headers that name a key or change the meaning.
    "jwk in the header": attacker_embeds("jwk", lambda public: public),
    "jku in the header": attacker_embeds("jku", lambda public: "https://evil.example/jwks"),
    "x5u in the header": attacker_embeds("x5u", lambda public: "https://evil.example/x5u"),
    "x5c in the header": attacker_embeds("x5c", lambda public: [encode(b"certificate")]),
    "kid in the header": attacker_embeds("kid", lambda public: "../../etc/passwd"),
    "own key, but jwk in the header": with_header(jwk={}),
    "crit": with_header(crit=["exp"]),
    "b64 false": with_header(b64=False, crit=["b64"]),
    "cty": with_header(cty="JWT"),
    "typ missing": with_header(typ=()),
    "typ JWT": with_header(typ="JWT"),
    "typ at+JWT": with_header(typ="at+JWT"),
    "header is a list": lambda site: site.sign(site.claims(), "[]"),
    "header with a key twice": lambda site: site.sign(
        site.claims(), '{"alg":"none","alg":"Ed25519","typ":"at+jwt"}'
    ),
    "header is deep": lambda site: site.sign(site.claims(), "[" * 2000),
    "header is no UTF-8": lambda site: site.sign(site.claims(), b"\xff"),
    # Issuer, audience, subject, groups.
    "iss wrong": with_claims(iss="urn:federated-dask:site:south"),
    "iss missing": with_claims(iss=()),
    "iss a list": with_claims(iss=["urn:federated-dask:site:north"]),
    "aud wrong": with_claims(aud="urn:federated-dask:site:northern"),
    "aud missing": with_claims(aud=()),
    "aud of several": with_claims(aud=["urn:federated-dask:site:north", "other"]),
    "sub missing": with_claims(sub=()),
    "sub empty": with_claims(sub=""),
    "sub a number": with_claims(sub=1),
    "sub with a line break": with_claims(sub="ada\nroot"),
    "sub too long": with_claims(sub="a" * 1000),
    "groups a text": with_claims(groups="climate"),
    "groups of numbers": with_claims(groups=[1]),
    "groups too many": with_claims(groups=["g"] * 100),
    # Times.
    "exp missing": with_claims(exp=()),
    "exp a text": lambda site: site.token(exp=str(time.time() + 600)),
    "exp true": with_claims(exp=True),
    "exp null": with_claims(exp=None),
    "exp NaN": lambda site: site.raw("NaN"),
    "exp Infinity": lambda site: site.raw("Infinity"),
    "exp 1e999": lambda site: site.raw("1e999"),
    "exp of 5000 digits": lambda site: site.raw("9" * 5000),
    "exp of 300 digits": lambda site: site.raw("9" * 300),
    "exp before iat": shifted(iat=20, exp=10),
    "lifetime over the site's": shifted(exp=3700),
    "iat missing": with_claims(iat=()),
    "iat in the future": shifted(iat=600, nbf=600, exp=900),
    "iat negative": with_claims(iat=-1),
    "nbf in the future": shifted(nbf=120),
    "nbf NaN": lambda site: site.sign(json.dumps(site.claims(nbf=float("nan")))),
    "nbf null": with_claims(nbf=None),
    # Payloads.
    "payload with a key twice": lambda site: site.sign(
        json.dumps(site.claims())[:-1] + ', "sub": "root"}'
    ),
    "payload with a nested key twice": lambda site: site.sign(
        json.dumps(site.claims())[:-1] + ', "more": {"a": 1, "a": 2}}'
    ),
    "payload a list": lambda site: site.sign("[]"),
    "payload a text": lambda site: site.sign('"ada"'),
    "payload empty": lambda site: site.sign(""),
    "payload no UTF-8": lambda site: site.sign(b"\xff\xfe"),
    "payload no JSON": lambda site: site.sign("{'sub': 'ada'}"),
    "payload deep lists": lambda site: site.sign("[" * 5000),
    "payload deep objects": lambda site: site.sign('{"a":' * 1100),
    "payload with a byte order mark": lambda site: site.sign(
        b"\xef\xbb\xbf" + json.dumps(site.claims()).encode()
    ),
    # The text of the token.
    "oversized, signed": with_claims(padding="x" * 8000),
    "oversized, dots": lambda site: "." * 10_000,
    "not ASCII": mangled(lambda h, p, s: f"{h}.{p}.{s}é"),
    "signature truncated": mangled(lambda h, p, s: f"{h}.{p}.{s[:-2]}"),
    "signature halved": mangled(lambda h, p, s: f"{h}.{p}.{s[:43]}"),
    "signature empty": mangled(lambda h, p, s: f"{h}.{p}."),
    "signature flipped": mangled(lambda h, p, s: f"{h}.{p}.{flip(s, 20)}"),
    "signature with other spare bits": mangled(
        lambda h, p, s: (
            f"{h}.{p}.{s[:-1]}{'ABCDEFGHIJKLMNOP'['AQgw'.index(s[-1])]}"
            if s[-1] != "A"
            else f"{h}.{p}.{s[:-1]}B"
        )
    ),
    "signature padded": mangled(lambda h, p, s: f"{h}.{p}.{s}=="),
    "signature in standard base64": mangled(lambda h, p, s: f"{h}.{p}.+/{s[2:]}"),
    "payload of another token": mangled(lambda h, p, s: f"{h}.{flip(p, 30)}.{s}"),
    "four parts": mangled(lambda h, p, s: f"{h}.{p}.{s}.{s}"),
    "two parts": mangled(lambda h, p, s: f"{h}.{p}"),
    "one word": lambda site: "token",
    "only dots": lambda site: "..",
    "detached payload": mangled(lambda h, p, s: f"{h}..{s}"),
    "five parts, as if encrypted": mangled(lambda h, p, s: f"{h}.{p}.{s}.{p}.{s}"),
    "white space before": mangled(lambda h, p, s: f" {h}.{p}.{s}"),
    "line break after": mangled(lambda h, p, s: f"{h}.{p}.{s}\n"),
    "the word Bearer before": mangled(lambda h, p, s: f"Bearer {h}.{p}.{s}"),
    "JSON serialisation": json_serialised,
    "null characters": mangled(lambda h, p, s: f"{h}.{p}.{s}\0"),
}
