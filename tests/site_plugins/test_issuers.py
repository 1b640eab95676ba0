"""Tokens of OpenID providers: a provider of ours that misbehaves at will, and a real one."""

import asyncio
import contextlib
import dataclasses
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from federated_dask.errors import ConfigurationError, NotAuthenticated, Reason, SiteUnavailable
from site_plugins import issuer_keys
from site_plugins.certificates import CertificateFiles, write_certificates
from site_plugins.config import IssuerSection
from site_plugins.issuer_keys import IssuerKeys, KeysUnavailable
from site_plugins.issuers import OpenIDIssuer, TokenVerifiers
from site_plugins.tokens import TokenVerifier, create_token
from tests.openid.provider import OpenIDProvider, run_provider
from tests.site_plugins.forgeries import (
    FORGED,
    HEADER,
    Forge,
    Site,
    attacker_embeds,
    encode,
    flip,
    make_site,
    pem,
    public_pem,
    with_claims,
    with_header,
)

AUDIENCE = "urn:federated-dask:site:north"
KID = "key-1"


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return write_certificates(tmp_path_factory.mktemp("issuer"))


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Issuer:
    """An OpenID provider that answers as a test wants."""

    def __init__(self, files: CertificateFiles) -> None:
        self.files = files
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.keys: Any = [self.public(self.key, kid=KID)]
        self.clock = Clock()
        self.asked: list[str] = []
        self.answer: Callable[[web.Request], web.StreamResponse] | None = None
        self.document: dict[str, Any] = {}

    @staticmethod
    def public(key: Any, **members: Any) -> dict[str, Any]:
        kinds = {ed25519.Ed25519PrivateKey: OKPKey, rsa.RSAPrivateKey: RSAKey}
        type_ = next((t for kind, t in kinds.items() if isinstance(key, kind)), ECKey)
        return {**type_.import_key(public_pem(key)).as_dict(), **members}

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator["Issuer"]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.files.certificate, self.files.private_key)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        self.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        self.document = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}
        self.keys_of_site = IssuerKeys(self.section(), clock=self.clock)
        try:
            yield self
        finally:
            await self.keys_of_site.close()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.answer is not None:
            return self.answer(request)
        if request.path == "/.well-known/openid-configuration":
            return web.json_response(self.document)
        return web.json_response({"keys": self.keys})

    def section(self, **changes: Any) -> IssuerSection:
        described = {
            "name": "idp",
            "url": self.url,
            "audience": AUDIENCE,
            "ca": str(self.files.ca),
            "max_lifetime": "1h",
            "namespaces": ["urn:geant:idp.de"],
            **changes,
        }
        return IssuerSection.model_validate(described, context={"folder": Path("/")})

    def issuer(self, **changes: Any) -> OpenIDIssuer:
        return OpenIDIssuer(self.section(**changes), keys=self.keys_of_site, site="north")

    def verifiers(self, own: Site, **changes: Any) -> TokenVerifiers:
        return TokenVerifiers(
            TokenVerifier.from_config(own.config), own.config.token_issuer, [self.issuer(**changes)]
        )

    def forger(self) -> Site:
        """Signs with the issuer's own key."""
        config: Any = SimpleNamespace(token_issuer=self.url, token_audience=AUDIENCE)
        return Site(config, self.key)

    def token(self, **changes: Any) -> str:
        forger = self.forger()
        claims = {key: value for key, value in forger.claims(**changes).items() if value != ()}
        return forger.sign(claims, {**HEADER, "kid": KID})


@pytest.fixture
async def idp(files: CertificateFiles) -> AsyncIterator[Issuer]:
    async with Issuer(files).serve() as issuer:
        yield issuer


@pytest.fixture
def own(tmp_path: Path) -> Site:
    return make_site(tmp_path / "north")


async def refused(verifiers: TokenVerifiers, text: str) -> NotAuthenticated:
    with pytest.raises(NotAuthenticated) as caught:
        await verifiers.verify(text)
    return caught.value


# What a provider may do, and the site's own issuer may not.
ALLOWED_HERE = {
    "alg EdDSA",
    "aud of several",
    "groups a text",
    "groups of numbers",
    "groups too many",
}


def with_kid(kid: Any) -> Forge:
    return lambda site: site.sign(site.claims(), {**HEADER, "kid": kid})


def rsa_signed(algorithm: str) -> Forge:
    def forge(site: Site) -> str:
        key = RSAKey.import_key(pem(rsa.generate_private_key(65537, 2048)))
        return site.joserfc({"alg": algorithm, "typ": "at+jwt", "kid": KID}, key)

    return forge


def unicode_issuer(change: Callable[[str], str]) -> Forge:
    return lambda site: site.token(iss=change(site.config.token_issuer))


MORE: dict[str, Forge] = {
    "kid unknown": with_kid("key-2"),
    "kid a path": with_kid("../../key-1"),
    "kid with SQL": with_kid("key-1' OR '1'='1"),
    "kid an address": with_kid("https://evil.example/key"),
    "kid empty": with_kid(""),
    "kid null": with_kid(None),
    "kid a number": with_kid(1),
    "kid a list": with_kid([KID]),
    "kid an object": with_kid({KID: KID}),
    "kid in capitals": with_kid(KID.upper()),
    "kid with a null character": with_kid(f"{KID}\0"),
    "kid too long": with_kid("k" * 2000),
    "another key, kid right": lambda site: dataclasses.replace(
        site, key=ed25519.Ed25519PrivateKey.generate()
    ).sign(site.claims(), {**HEADER, "kid": KID}),
    "own key, jku in the header": with_header(kid=KID, jku="https://evil.example/jwks"),
    "own key, x5u in the header": with_header(kid=KID, x5u="https://evil.example/x5u"),
    "own key, x5c in the header": with_header(kid=KID, x5c=["AAAA"]),
    "own key, zip in the header": with_header(kid=KID, zip="DEF"),
    "own key, enc in the header": with_header(kid=KID, enc="A256GCM"),
    "own key, unknown header": with_header(kid=KID, nonce="1"),
    "own key, iss in the header": with_header(kid=KID, iss="https://other.example"),
    "jwk and kid": attacker_embeds("jwk", lambda public: {**public, "kid": KID}),
    "RS256": rsa_signed("RS256"),
    "PS256": rsa_signed("PS256"),
    "RS512": rsa_signed("RS512"),
    "alg ES256 of an Ed25519 key": with_header(alg="ES256", kid=KID),
    "alg a number": with_header(alg=1),
    "alg an object": with_header(alg={}),
    "alg with a space": with_header(alg="Ed25519 "),
    "typ a list": with_header(typ=["at+jwt"]),
    "typ id_token": with_header(typ="id_token+jwt"),
    "typ of a peer's statement": with_header(typ="peer+jwt"),
    "typ of a delegation": with_header(typ="delegation+jwt"),
    "typ of a membership": with_header(typ="membership+jwt"),
    "iss with a slash": unicode_issuer(lambda url: url + "/"),
    "iss in capitals": unicode_issuer(str.upper),
    "iss with http": unicode_issuer(lambda url: url.replace("https", "http")),
    "iss with a user": unicode_issuer(lambda url: url.replace("//", "//x@")),
    "iss with a fragment": unicode_issuer(lambda url: url + "#"),
    "iss with a query": unicode_issuer(lambda url: url + "?"),
    "iss with a space": unicode_issuer(lambda url: url + " "),
    "iss with a null character": unicode_issuer(lambda url: url + "\0"),
    "iss in full width": unicode_issuer(lambda url: url.replace("h", "\uff48")),
    "iss with a zero width space": unicode_issuer(lambda url: url + "\u200b"),
    "iss with a Cyrillic letter": unicode_issuer(lambda url: url.replace("p", "\u0440")),
    "iss with dots": unicode_issuer(lambda url: url + "/../x/.."),
    "iss an object": with_claims(iss={"url": "x"}),
    "iss a number": with_claims(iss=1),
    "iss null": with_claims(iss=None),
    "the site's own issuer, the provider's key": with_claims(iss=AUDIENCE),
    "aud in capitals": with_claims(aud=AUDIENCE.upper()),
    "aud with a space": with_claims(aud=f"{AUDIENCE} "),
    "aud in full width": with_claims(aud=AUDIENCE.replace("n", "\uff4e")),
    "aud of another site": with_claims(aud=[f"{AUDIENCE}-west", "x"]),
    "aud nested": with_claims(aud=[[AUDIENCE]]),
    "aud an object": with_claims(aud={AUDIENCE: True}),
    "aud among numbers": with_claims(aud=[1, AUDIENCE]),
    "aud too many": with_claims(aud=[AUDIENCE, *map(str, range(20))]),
    "aud empty list": with_claims(aud=[]),
    "aud null": with_claims(aud=None),
    "aud as one text of two": with_claims(aud=f"{AUDIENCE},other"),
    "azp right, aud wrong": with_claims(aud="other", azp=AUDIENCE),
    "sub null": with_claims(sub=None),
    "sub a list": with_claims(sub=["ada"]),
    "sub an object": with_claims(sub={"name": "ada"}),
    "sub with a null character": with_claims(sub="ada\0"),
    "sub right to left": with_claims(sub="ada\u202eroot"),
    "sub with a zero width space": with_claims(sub="ada\u200b"),
    "sub a lone surrogate": lambda site: site.sign(
        json.dumps(site.claims()).replace('"ada"', '"\\ud800"')
    ),
    "exp a list": with_claims(exp=[9e9]),
    "exp an object": with_claims(exp={}),
    "exp negative": with_claims(exp=-1),
    "exp far": with_claims(exp=2.0**60),
    "exp minus infinity": lambda site: site.raw("-Infinity"),
    "exp hexadecimal": lambda site: site.raw("0xffffffff"),
    "iat a text": with_claims(iat="now"),
    "iat true": with_claims(iat=True),
    "nbf a text": with_claims(nbf="now"),
    "nbf a list": with_claims(nbf=[]),
    "a token in a token": lambda site: site.sign(site.token()),
    "a token as claim": lambda site: site.sign({"token": site.token()}),
    "payload two objects": lambda site: site.sign(json.dumps(site.claims()) * 2),
    "payload UTF-16": lambda site: site.sign(json.dumps(site.claims()).encode("utf-16")),
    "payload with a comment": lambda site: site.sign("/**/" + json.dumps(site.claims())),
    "header flipped": lambda site: flip(site.token(), 10),
    "header and payload swapped": lambda site: ".".join(
        site.token().split(".")[index] for index in (1, 0, 2)
    ),
    "header with spaces": lambda site: site.token().replace(".", " .", 1),
    "header UTF-16": lambda site: site.sign(site.claims(), json.dumps(HEADER).encode("utf-16")),
    "alg none in capitals, no signature": lambda site: (
        f"{encode({**HEADER, 'alg': 'NONE', 'kid': KID})}.{encode(site.claims())}."
    ),
    "alg none with the signature": lambda site: (
        f"{encode({**HEADER, 'alg': 'none', 'kid': KID})}.{site.token().split('.', 1)[1]}"
    ),
}

AGAINST_A_PROVIDER = {
    **{kind: forge for kind, forge in FORGED.items() if kind not in ALLOWED_HERE},
    **MORE,
}


def test_there_are_more_than_two_hundred_forgeries() -> None:
    assert len(FORGED) + len(AGAINST_A_PROVIDER) >= 250


@pytest.mark.parametrize("kind", AGAINST_A_PROVIDER)
async def test_no_forged_token_of_a_provider_is_accepted(idp: Issuer, own: Site, kind: str) -> None:
    text = AGAINST_A_PROVIDER[kind](idp.forger())
    error = await refused(idp.verifiers(own), text)
    assert error.reason == Reason.TOKEN_INVALID
    assert error.site == "north"
    assert error.__context__ is None
    assert all(len(part) < 12 or part not in repr(error) + str(error) for part in text.split("."))
    # Nothing in a token leads the site anywhere but to its configured provider.
    assert set(idp.asked) <= {"/.well-known/openid-configuration", "/jwks"}


async def test_the_forger_can_make_a_valid_token(idp: Issuer, own: Site) -> None:
    # Otherwise the tests above would prove nothing.
    principal = await idp.verifiers(own).verify(idp.forger().token(jti="t1"))
    assert (principal.issuer, principal.subject) == (idp.url, "ada")
    assert principal.groups == ("climate@idp",)
    assert principal.token_id == "t1"


async def test_the_sites_own_tokens_stay_valid(idp: Issuer, own: Site) -> None:
    principal = await idp.verifiers(own).verify(create_token(own.config, "ada", 60.0, ["climate"]))
    assert (principal.issuer, principal.groups) == (own.config.token_issuer, ("climate",))
    assert idp.asked == []


async def test_no_token(idp: Issuer, own: Site) -> None:
    for text in (None, ""):
        with pytest.raises(NotAuthenticated) as caught:
            await idp.verifiers(own).verify(text)
        assert caught.value.reason == Reason.TOKEN_MISSING


async def test_who_has_no_token_is_told_to_log_in(idp: Issuer, own: Site) -> None:
    for client_id, hint in ((None, "federated-dask token create"), ("app", "federated-dask login")):
        verifiers = idp.verifiers(own, client_id=client_id)
        with pytest.raises(NotAuthenticated, match=hint) as caught:
            await verifiers.verify(None)
        assert caught.value.reason == Reason.TOKEN_MISSING


async def test_groups_of_all_claims(idp: Issuer, own: Site) -> None:
    token = idp.token(
        groups=["climate", "climate"],
        entitlements=["urn:geant:idp.de:group:john:role=chief#x", "urn:geant:evil:group:root#x"],
        eduperson_entitlement="urn:geant:idp.de:group:johnny#x",
        roles=["admin"],
    )
    principal = await idp.verifiers(own).verify(token)
    assert principal.groups == (
        "climate@idp",
        "john@idp",
        "john:role=chief@idp",
        "johnny@idp",
    )
    chosen = idp.verifiers(own, groups_claims=["roles"], entitlement_claims=[])
    assert (await chosen.verify(token)).groups == ("admin@idp",)


async def test_an_expired_token_is_told_apart(idp: Issuer, own: Site) -> None:
    now = time.time()
    error = await refused(idp.verifiers(own), idp.token(iat=now - 60, nbf=now - 60, exp=now - 1))
    assert error.reason == Reason.TOKEN_EXPIRED


async def test_the_type_is_the_configured_one(idp: Issuer, own: Site) -> None:
    jwt = idp.forger().sign(idp.forger().claims(), {**HEADER, "typ": "JWT", "kid": KID})
    await refused(idp.verifiers(own), jwt)
    assert (await idp.verifiers(own, token_type="JWT").verify(jwt)).subject == "ada"
    await refused(idp.verifiers(own, token_type="JWT"), idp.token())


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [
        ("RS256", lambda: rsa.generate_private_key(65537, 2048)),
        ("PS256", lambda: rsa.generate_private_key(65537, 2048)),
        ("ES256", lambda: ec.generate_private_key(ec.SECP256R1())),
        ("ES384", lambda: ec.generate_private_key(ec.SECP384R1())),
    ],
)
async def test_the_algorithms_of_providers(
    idp: Issuer, own: Site, algorithm: str, make: Callable[[], Any]
) -> None:
    key = make()
    idp.keys = [idp.public(key, kid="k")]
    type_ = RSAKey if algorithm[1] == "S" and algorithm[0] != "E" else ECKey
    header = {"alg": algorithm, "typ": "at+jwt", "kid": "k"}
    token = jws.serialize_compact(
        header, json.dumps(idp.forger().claims()), type_.import_key(pem(key)), [algorithm]
    )
    assert (await idp.verifiers(own).verify(token)).subject == "ada"


@pytest.mark.parametrize(
    "members",
    [
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"alg": "HS256"},
        {"alg": "ES256"},
        {"kty": "oct", "k": "AAAA"},
        {"kty": ["OKP"]},
        {"crv": "X25519"},
        {"x": "AAAA"},
        {"x": 1},
        {"kid": ["key-1"]},
        {"kid": 1},
    ],
)
async def test_keys_that_may_not_verify(idp: Issuer, own: Site, members: dict[str, Any]) -> None:
    idp.keys = [{**idp.keys[0], **members}, "key", None, []]
    assert (await refused(idp.verifiers(own), idp.token())).reason == Reason.TOKEN_INVALID


async def test_a_short_rsa_key_does_not_count(idp: Issuer, own: Site) -> None:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505
    modulus = key.public_key().public_numbers().n.to_bytes(128, "big")
    idp.keys = [{"kty": "RSA", "kid": "k", "n": encode(modulus), "e": "AQAB"}]
    header = {"alg": "RS256", "typ": "at+jwt", "kid": "k"}
    text = f"{encode(header)}.{encode(idp.forger().claims())}"
    signature = key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    await refused(idp.verifiers(own), f"{text}.{encode(signature)}")


async def test_a_token_without_kid_needs_a_single_key(idp: Issuer, own: Site) -> None:
    token = idp.forger().token()
    assert (await idp.verifiers(own).verify(token)).subject == "ada"
    idp.keys.append(idp.public(ed25519.Ed25519PrivateKey.generate(), kid="key-2"))
    idp.clock.now += issuer_keys.FRESH_SECONDS
    await refused(idp.verifiers(own), token)


# Keys: rotation, cache, and a provider that does not answer well.


async def test_a_new_key_is_found_at_once_and_the_old_one_forgotten(idp: Issuer, own: Site) -> None:
    verifiers, old = idp.verifiers(own), idp.token()
    await verifiers.verify(old)
    idp.key = ed25519.Ed25519PrivateKey.generate()
    idp.keys = [idp.public(idp.key, kid="key-2")]
    fresh = idp.forger().sign(idp.forger().claims(), {**HEADER, "kid": "key-2"})
    assert (await verifiers.verify(fresh)).subject == "ada"
    await refused(verifiers, old)


async def test_unknown_keys_do_not_flood_the_provider(idp: Issuer, own: Site) -> None:
    verifiers = idp.verifiers(own)
    unknown = idp.forger().sign(idp.forger().claims(), {**HEADER, "kid": "nowhere"})
    await asyncio.gather(*(refused(verifiers, unknown) for _ in range(50)))
    assert idp.asked.count("/jwks") <= 2
    idp.clock.now += issuer_keys.SEARCH_SECONDS
    asked = len(idp.asked)
    await refused(verifiers, unknown)
    assert len(idp.asked) == asked + 2


async def test_keys_are_kept(idp: Issuer, own: Site) -> None:
    verifiers = idp.verifiers(own)
    await asyncio.gather(*(verifiers.verify(idp.token()) for _ in range(20)))
    assert idp.asked.count("/jwks") == 1


async def test_an_unreachable_provider_fails_closed_once_its_keys_expire(
    idp: Issuer, own: Site
) -> None:
    verifiers = idp.verifiers(own)
    await verifiers.verify(idp.token())
    idp.answer = lambda request: web.Response(status=500)
    idp.clock.now += issuer_keys.FRESH_SECONDS
    assert (await verifiers.verify(idp.token())).subject == "ada"
    idp.clock.now += issuer_keys.EXPIRED_SECONDS
    with pytest.raises(SiteUnavailable) as caught:
        await verifiers.verify(idp.token())
    assert caught.value.reason == Reason.UNREACHABLE
    # It is not asked again for every request.
    asked = len(idp.asked)
    with pytest.raises(SiteUnavailable):
        await verifiers.verify(idp.token())
    assert len(idp.asked) == asked
    idp.answer = None
    idp.clock.now += issuer_keys.RETRY_SECONDS
    assert (await verifiers.verify(idp.token())).subject == "ada"


def redirect(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/elsewhere")


MISBEHAVIOUR: dict[str, Callable[[web.Request], web.StreamResponse]] = {
    "redirect": redirect,
    "500": lambda request: web.Response(status=500),
    "401": lambda request: web.Response(status=401),
    "no JSON": lambda request: web.Response(text="<html>"),
    "a list": lambda request: web.json_response([]),
    "deep": lambda request: web.Response(text="[" * 100_000),
    "a key twice": lambda request: web.Response(text='{"keys": [], "keys": []}'),
    "huge": lambda request: web.Response(text=json.dumps({"x": "y" * 2**20})),
    "compressed": lambda request: web.Response(
        body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}
    ),
    "no UTF-8": lambda request: web.Response(body=b"\xff"),
}


@pytest.mark.parametrize("how", MISBEHAVIOUR)
async def test_a_provider_that_misbehaves(idp: Issuer, how: str) -> None:
    idp.answer = MISBEHAVIOUR[how]
    with pytest.raises(KeysUnavailable):
        await idp.keys_of_site.find(KID, "Ed25519")
    assert "/elsewhere" not in idp.asked


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://other.example"},
        {"issuer": None},
        {"jwks_uri": "http://127.0.0.1/jwks"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": 1},
        {"jwks_uri": None},
    ],
)
async def test_a_discovery_document_that_does_not_fit(idp: Issuer, change: dict[str, Any]) -> None:
    idp.document |= change
    with pytest.raises(KeysUnavailable):
        await idp.keys_of_site.find(KID, "Ed25519")
    assert idp.asked == ["/.well-known/openid-configuration"]


async def test_a_configured_key_set_needs_no_discovery(idp: Issuer) -> None:
    keys = IssuerKeys(idp.section(keys=f"{idp.url}/keys"))
    assert await keys.find(KID, "Ed25519") is not None
    assert idp.asked == ["/keys"]
    await keys.close()


async def test_a_provider_without_our_trust(idp: Issuer, tmp_path: Path) -> None:
    other = write_certificates(tmp_path / "other")
    keys = IssuerKeys(idp.section(ca=str(other.ca)))
    with pytest.raises(KeysUnavailable):
        await keys.find(KID, "Ed25519")
    assert idp.asked == []
    await keys.close()


async def test_an_authority_that_is_none(idp: Issuer, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ConfigurationError, match="authority of issuer 'idp'"):
        IssuerKeys(idp.section(ca=str(tmp_path / "ca.pem")))


# A real provider.


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may be busy with other things."""
    monkeypatch.setattr(issuer_keys, "FETCH_SECONDS", 60.0)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenIDProvider]:
    with run_provider(tmp_path_factory.mktemp("openid")) as provider:
        yield provider


@pytest.fixture
async def trusting(real: OpenIDProvider, own: Site) -> AsyncIterator[TokenVerifiers]:
    described = {"name": "idp", "url": real.issuer, "audience": AUDIENCE, "ca": str(real.ca)}
    described["namespaces"] = ["urn:geant:idp.de"]  # type: ignore[assignment]
    section = IssuerSection.model_validate(described)
    verifiers = TokenVerifiers(
        TokenVerifier.from_config(own.config), own.config.token_issuer, [OpenIDIssuer(section)]
    )
    yield verifiers
    await verifiers.close()


async def test_tokens_of_a_real_provider(real: OpenIDProvider, trusting: TokenVerifiers) -> None:
    token = await asyncio.to_thread(
        real.token,
        AUDIENCE,
        groups=["climate"],
        entitlements=["urn:geant:idp.de:group:soil:lab#idp.de"],
    )
    principal = await trusting.verify(token)
    assert (principal.issuer, principal.subject) == (real.issuer, "robot")
    assert principal.groups == ("climate@idp", "soil@idp", "soil:lab@idp")
    wrong = await asyncio.to_thread(real.token, "urn:federated-dask:site:south")
    assert (await refused(trusting, wrong)).reason == Reason.TOKEN_INVALID


async def test_a_real_provider_changes_its_keys(
    real: OpenIDProvider, trusting: TokenVerifiers
) -> None:
    old = await asyncio.to_thread(real.token, AUDIENCE)
    assert (await trusting.verify(old)).subject == "robot"
    await asyncio.to_thread(real.command, rotate=True)
    new = await asyncio.to_thread(real.token, AUDIENCE)
    assert (await trusting.verify(new)).subject == "robot"
    assert (await refused(trusting, old)).reason == Reason.TOKEN_INVALID
