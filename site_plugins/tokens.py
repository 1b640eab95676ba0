"""The site's own tokens: making the issuer's key, creating tokens, verifying them.

A token is a signed JWT (compact JWS, ``typ`` "at+jwt", RFC 9068).  What a token
may look like is fixed before it is read: one algorithm, given by the key; a
header with nothing but ``alg`` and ``typ``; one issuer and one audience; finite
times; a bounded lifetime.  The verifier holds the public key only.  No error
holds any part of a token.
"""

from __future__ import annotations

import base64
import json
import math
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey

from federated_dask.errors import ConfigurationError, NotAuthenticated, Reason
from site_plugins.config import SiteConfig

__all__ = [
    "Principal",
    "StatementSigner",
    "StatementVerifier",
    "TokenVerifier",
    "create_token",
    "new_issuer_key",
    "public_key_of",
]

TYPE = "at+jwt"
LONGEST_TOKEN = 8 * 1024
LONGEST_TEXT = 512
MOST_GROUPS = 64
LATEST_TIME = 2.0**40
CLOCK_SKEW = 30.0
"""Seconds by which the issuer's clock may be ahead, where the site runs on several machines."""
NEW_TOKEN = (
    "Ask the site's operator for a new token (`federated-dask token create`) "  # noqa: S105
    "and pass it as FederatedClient(..., token=...)."
)

PrivateKey: TypeAlias = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
Key: TypeAlias = OKPKey | ECKey


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who asks, as a valid token says."""

    issuer: str
    subject: str
    groups: tuple[str, ...] = ()
    expires: float
    """Seconds since the epoch."""


def new_issuer_key() -> bytes:
    """Make the private key of a site's issuer.

    Returns
    -------
    bytes
        An Ed25519 key as PEM (PKCS #8, not encrypted).

    Examples
    --------
    >>> new_issuer_key().splitlines()[0]
    b'-----BEGIN PRIVATE KEY-----'
    """
    key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def create_token(
    config: SiteConfig, subject: str, lifetime: float, groups: Iterable[str] = ()
) -> str:
    """Create a token that the site accepts.

    Parameters
    ----------
    config : SiteConfig
        The site; its issuer's private key is read.
    subject : str
        For whom the token is.
    lifetime : float
        Seconds until it expires.
    groups : iterable of str, optional
        Groups of the subject.

    Returns
    -------
    str
        The token.

    Raises
    ------
    ConfigurationError
        If the key cannot be used, the lifetime is not within the site's, or
        subject or groups are empty or too long.
    """
    groups = list(groups)
    longest = config.tokens.max_lifetime
    if not 0 < lifetime <= longest:
        raise ConfigurationError(
            f"A token lives longer than 0 and at most {longest / 86_400:g} days at this site.",
            hint="Choose a shorter lifetime, or raise tokens.max_lifetime in site.toml.",
        )
    if not all(_is_text(text) for text in (subject, *groups)) or len(groups) > MOST_GROUPS:
        raise ConfigurationError(
            f"Subject and groups are printable texts of at most {LONGEST_TEXT} characters, "
            f"and there are at most {MOST_GROUPS} groups."
        )
    algorithm, key = _private_key(config.tokens.private_key)
    now = time.time()
    claims = {
        "iss": config.token_issuer,
        "aud": config.token_audience,
        "sub": subject,
        "groups": groups,
        "iat": now,
        "nbf": now,
        "exp": now + lifetime,
        "jti": secrets.token_urlsafe(12),
    }
    payload = json.dumps(claims, separators=(",", ":"))
    token = jws.serialize_compact({"alg": algorithm, "typ": TYPE}, payload, key, [algorithm])
    if len(token) > LONGEST_TOKEN:
        raise ConfigurationError("The token would be longer than 8 KiB.", hint="Name fewer groups.")
    return token


class TokenVerifier:
    """Tell who asks from a token.

    Parameters
    ----------
    public_key : bytes
        The issuer's public key: Ed25519 or EC P-256, as PEM.
    issuer, audience : str
        What ``iss`` and ``aud`` must be.
    max_lifetime : float
        Largest time between ``iat`` and ``exp``, seconds.
    site : str, optional
        Name of the site, shown in errors.
    clock : callable, optional
        Returns the seconds since the epoch.

    Raises
    ------
    ValueError
        If the key is no such public key.

    Examples
    --------
    >>> key = load_pem_private_key(new_issuer_key(), None).public_key()
    >>> pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    >>> TokenVerifier(pem, issuer="i", audience="a", max_lifetime=60.0).verify("x.y.z")
    Traceback (most recent call last):
    federated_dask.errors.NotAuthenticated: The token is not valid here. Ask ... (token_invalid)
    """

    def __init__(
        self,
        public_key: bytes,
        *,
        issuer: str,
        audience: str,
        max_lifetime: float,
        site: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        # The kind of the key decides on the algorithm; the token has no say in it.
        self._algorithm, self._key = _for_joserfc(load_pem_public_key(public_key), public_key)
        self._issuer = issuer
        self._audience = audience
        self._max_lifetime = max_lifetime
        self._site = site
        self._clock = clock

    @classmethod
    def from_config(
        cls, config: SiteConfig, *, clock: Callable[[], float] = time.time
    ) -> TokenVerifier:
        """Make the verifier of a site.

        Raises
        ------
        ConfigurationError
            If the issuer's key cannot be used.
        """
        return cls(
            public_key_of(config.tokens.private_key),
            issuer=config.token_issuer,
            audience=config.token_audience,
            max_lifetime=config.tokens.max_lifetime,
            site=config.name,
            clock=clock,
        )

    def verify(self, text: str | None) -> Principal:
        """Tell who asks.

        Parameters
        ----------
        text : str or None
            The token, without the word "Bearer".

        Returns
        -------
        Principal
            Whom the token was made for.

        Raises
        ------
        NotAuthenticated
            With reason ``token_missing``, ``token_expired`` or ``token_invalid``.
        """
        if not text:
            raise self._refusal(Reason.TOKEN_MISSING, "This site answers only with a token.")
        principal = self._principal(text)
        # Raised outside of every `except`, so that no error carries another that holds the text.
        if principal is None:
            raise self._refusal(Reason.TOKEN_INVALID, "The token is not valid here.")
        if principal.expires <= self._clock():
            raise self._refusal(Reason.TOKEN_EXPIRED, "The token has expired.")
        return principal

    def _refusal(self, reason: Reason, message: str) -> NotAuthenticated:
        return NotAuthenticated(message, reason=reason, site=self._site, hint=NEW_TOKEN)

    def _principal(self, text: str) -> Principal | None:
        claims = _read(text, TYPE, self._algorithm, self._key)
        return None if claims is None else self._checked(claims)

    def _checked(self, claims: dict[str, Any]) -> Principal | None:
        expires = _expiry(claims, self._clock(), self._max_lifetime)
        if expires is None:
            return None
        if claims.get("iss") != self._issuer or claims.get("aud") != self._audience:
            return None
        subject, groups = claims.get("sub"), claims.get("groups", [])
        if not _is_text(subject) or not isinstance(groups, list) or len(groups) > MOST_GROUPS:
            return None
        if not all(_is_text(group) for group in groups):
            return None
        return Principal(
            issuer=self._issuer, subject=subject, groups=tuple(groups), expires=expires
        )


class StatementSigner:
    """Signs what a site states to its peers, with the key that signs its tokens.

    Parameters
    ----------
    private_key : Path
        Ed25519 or EC P-256, PEM.
    """

    def __init__(self, private_key: Path) -> None:
        self._algorithm, self._key = _private_key(private_key)

    def sign(self, kind: str, claims: dict[str, Any], lifetime: float) -> str:
        """Sign a statement.

        Parameters
        ----------
        kind : str
            The header's ``typ``: a statement of one kind is never taken for another.
        claims : dict
            What is stated; plain JSON data.
        lifetime : float
            Seconds for which it holds.
        """
        now = time.time()
        stated = {**claims, "iat": now, "exp": now + lifetime, "jti": secrets.token_urlsafe(12)}
        payload = json.dumps(stated, separators=(",", ":"))
        header = {"alg": self._algorithm, "typ": kind}
        return jws.serialize_compact(header, payload, self._key, [self._algorithm])


class StatementVerifier:
    """Reads what one site stated, by its public key.

    Parameters
    ----------
    public_key : bytes
        Ed25519 or EC P-256, PEM.

    Raises
    ------
    ValueError
        If the key is no such public key.
    """

    def __init__(self, public_key: bytes) -> None:
        self._algorithm, self._key = _for_joserfc(load_pem_public_key(public_key), public_key)

    def verify(self, kind: str, text: str, max_lifetime: float) -> dict[str, Any] | None:
        """Give the claims of a statement, or None where it does not hold (any more)."""
        claims = _read(text, kind, self._algorithm, self._key)
        expires = None if claims is None else _expiry(claims, time.time(), max_lifetime)
        return None if expires is None or expires <= time.time() else claims


def public_key_of(private_key: Path) -> bytes:
    """Give the public key that goes with a private key file, as PEM.

    Raises
    ------
    ConfigurationError
        If the key cannot be used.
    """
    return (
        _load(private_key)
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


def _read(text: str, kind: str, algorithm: str, key: Key) -> dict[str, Any] | None:
    if len(text) > LONGEST_TOKEN or not text.isascii():
        return None
    try:
        header, _, _ = (_decode(part) for part in text.split("."))
        if _parse(header) != {"alg": algorithm, "typ": kind}:
            return None
        claims = _parse(jws.deserialize_compact(text, key, [algorithm]).payload)
    except (ValueError, RecursionError, JoseError):
        return None
    return claims if isinstance(claims, dict) else None


def _expiry(claims: dict[str, Any], now: float, max_lifetime: float) -> float | None:
    """Give the end of a statement whose times make sense, else None."""
    issued, expires = claims.get("iat"), claims.get("exp")
    starts = claims.get("nbf", issued)
    if not (_is_time(issued) and _is_time(expires) and _is_time(starts)):
        return None
    latest = now + CLOCK_SKEW
    if issued > latest or starts > latest or not 0 < expires - issued <= max_lifetime + 1:
        return None
    return float(expires)


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and value.isprintable()


def _is_time(value: object) -> TypeGuard[float]:
    # bool is an int; NaN fails every comparison.
    return type(value) in (int, float) and 0 <= value <= LATEST_TIME  # type: ignore[operator]


def _decode(part: str) -> bytes:
    data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    # One token, one text: spare bits and padding would make other texts of it.
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part.encode():
        raise ValueError("not the canonical base64url")
    return data


def _parse(data: bytes) -> Any:
    return json.loads(
        data.decode(),
        object_pairs_hook=_without_duplicates,
        parse_constant=_refuse_constant,
        parse_float=_finite,
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError("NaN and infinities are not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is not finite")
    return number


def _load(path: Path) -> PrivateKey:
    """Read the issuer's private key, of a kind that can sign tokens."""
    wrong = "is not an Ed25519 or EC P-256 private key in PEM form without a password"
    hint = "`federated-dask site init DIR` makes one."
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigurationError(f"The key {path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause may quote the file.
        key = None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ConfigurationError(f"{path} {wrong}.", hint=hint)


def _private_key(path: Path) -> tuple[str, Key]:
    key = _load(path)
    return _for_joserfc(key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _for_joserfc(key: object, pem: bytes) -> tuple[str, Key]:
    """Import a key that was loaded from `pem`, and name the one algorithm that goes with it."""
    if isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return "Ed25519", OKPKey.import_key(pem)
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) and isinstance(
        key.curve, ec.SECP256R1
    ):
        return "ES256", ECKey.import_key(pem)
    raise ValueError("only Ed25519 and EC P-256 keys sign tokens")
