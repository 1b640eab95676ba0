"""The site's own tokens: creating them, verifying them; and who asks, as a token says.

A token is a signed JWT (compact JWS, ``typ`` "at+jwt", RFC 9068).  What a token
may look like is fixed before it is read: one algorithm, given by the key; a
header with nothing but ``alg`` and ``typ``; one issuer and one audience; finite
times; a bounded lifetime.  The verifier holds the public key only.  No error
holds any part of a token.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from joserfc import jws

from federated_dask.errors import ConfigurationError, NotAuthenticated, Reason
from site_plugins.config import SiteConfig
from site_plugins.keys import public_key_of, signing_key, verifying_key
from site_plugins.signed_texts import (
    LONGEST_TEXT,
    LONGEST_TOKEN,
    Verified,
    expiry_of,
    is_text,
    read_signed,
)

__all__ = ["Principal", "TokenVerifier", "create_token"]

TYPE = "at+jwt"
MOST_GROUPS = 64
NEW_TOKEN = (
    "Ask the site's operator for a new token, made by `federated-dask token create`, "  # noqa: S105
    "and pass it: token=… in Python, --token-file in a shell, as Authorization: Bearer in HTTP."
)


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who asks, as a valid token says."""

    issuer: str
    subject: str
    groups: tuple[str, ...] = ()
    expires: float
    """Seconds since the epoch."""
    projects: tuple[str, ...] = ()
    """Projects of which the principal is a verified member, as "name@host"."""
    project: str = field(default="", compare=False)
    """For which of them it asks; empty for none, and not verified to be one of them."""
    issued: float = field(default=0.0, compare=False)
    """Seconds since the epoch."""
    token_id: str | None = field(default=None, compare=False)
    """The token's ``jti``, by which it can be revoked."""


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
    if not all(is_text(text) for text in (subject, *groups)) or len(groups) > MOST_GROUPS:
        raise ConfigurationError(
            f"Subject and groups are printable texts of at most {LONGEST_TEXT} characters, "
            f"and there are at most {MOST_GROUPS} groups."
        )
    algorithm, key = signing_key(config.tokens.private_key)
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
    >>> from site_plugins.keys import new_issuer_key
    >>> path = getfixture("tmp_path") / "issuer.pem"
    >>> _ = path.write_bytes(new_issuer_key())
    >>> pem = public_key_of(path)
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
        self._algorithm, self._key = verifying_key(public_key)
        self._issuer = issuer
        self._audience = audience
        self._max_lifetime = max_lifetime
        self._site = site
        self._clock = clock
        self._verified: Verified[Principal] = Verified()

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
        principal = self._verified.get(text, self._key)
        if principal is None:
            principal = self._principal(text)
            if principal is not None:
                self._verified.add(text, self._key, principal)
        # Raised outside of every `except`, so that no error carries another that holds the text.
        if principal is None:
            raise self._refusal(Reason.TOKEN_INVALID, "The token is not valid here.")
        if principal.expires <= self._clock():
            raise self._refusal(Reason.TOKEN_EXPIRED, "The token has expired.")
        return principal

    def knows(self, text: str) -> bool:
        """Say whether a token was verified before, be it that it has expired since."""
        return self._verified.get(text, self._key) is not None

    def _refusal(self, reason: Reason, message: str) -> NotAuthenticated:
        return NotAuthenticated(message, reason=reason, site=self._site, hint=NEW_TOKEN)

    def _principal(self, text: str) -> Principal | None:
        claims = read_signed(text, TYPE, self._algorithm, self._key)
        return None if claims is None else self._checked(claims)

    def _checked(self, claims: dict[str, Any]) -> Principal | None:
        expires = expiry_of(claims, self._clock(), self._max_lifetime)
        if expires is None:
            return None
        if claims.get("iss") != self._issuer or claims.get("aud") != self._audience:
            return None
        subject, groups = claims.get("sub"), claims.get("groups", [])
        if not is_text(subject) or not isinstance(groups, list) or len(groups) > MOST_GROUPS:
            return None
        if not all(is_text(group) for group in groups):
            return None
        token_id = claims.get("jti")
        return Principal(
            issuer=self._issuer,
            subject=subject,
            groups=tuple(groups),
            expires=expires,
            issued=float(claims["iat"]),
            token_id=token_id if is_text(token_id) else None,
        )
