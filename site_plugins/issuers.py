"""Tokens of all issuers that a site accepts: its own, and OpenID providers.

The issuer that a token names is looked up among those of `site.toml`, letter for
letter, and decides on everything else: keys, audience, type, lifetime, and which
claims hold groups.  Groups of a provider are called ``group@name`` after the name
that the operator gave it, so that no two issuers' groups can be taken for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError

from federated_dask.errors import NotAuthenticated, Reason, SiteUnavailable
from site_plugins.config import IssuerSection, SiteConfig
from site_plugins.entitlements import groups_of
from site_plugins.issuer_keys import ALGORITHMS, IssuerKeys, KeysUnavailable, ProviderKey
from site_plugins.registry import Registry
from site_plugins.revocations import Revocations
from site_plugins.signed_texts import Verified, expiry_of, is_text, parse_json, peek
from site_plugins.tokens import Principal, TokenVerifier

__all__ = ["OpenIDIssuer", "TokenVerifiers"]

HEADERS = {"alg", "typ", "kid", "x5t", "x5t#S256"}
"""Thumbprints are ignored; whatever could bring a key or change the meaning is refused."""
KNOWN_ALGORITHMS = {algorithm for some in ALGORITHMS.values() for algorithm in some}
TYPES = {"at+jwt": {"at+jwt", "application/at+jwt"}, "JWT": {"JWT"}}
MOST_AUDIENCES = 16
MOST_TEXTS = 256
"""In a claim of groups, and groups in all."""
LOG_IN = "`federated-dask login URL` gets a new token."


class OpenIDIssuer:
    """Verifies the tokens of one OpenID provider.

    Parameters
    ----------
    section : IssuerSection
        The provider.
    keys : IssuerKeys, optional
        Its keys; by default fetched from the provider.
    site : str, optional
        Name of the site, shown in errors.
    clock : callable, optional
        Returns the seconds since the epoch.
    """

    def __init__(
        self,
        section: IssuerSection,
        *,
        keys: IssuerKeys | None = None,
        site: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.section = section
        self.keys = IssuerKeys(section) if keys is None else keys
        self._site = site
        self._clock = clock
        self._verified: Verified[Principal] = Verified()

    async def verify(self, text: str, header: dict[str, Any]) -> Principal:
        """Tell who asks.

        Parameters
        ----------
        text : str
            The token.
        header : dict
            Its header, as `peek` gives it.

        Raises
        ------
        NotAuthenticated
            With reason ``token_expired`` or ``token_invalid``.
        SiteUnavailable
            If the provider's keys cannot be had.
        """
        key, unavailable = None, False
        if _is_plain(header, TYPES[self.section.token_type]):
            try:
                key = await self.keys.find(header.get("kid"), header["alg"])
            except KeysUnavailable:
                unavailable = True
        if unavailable:
            raise SiteUnavailable(
                f"The issuer {self.section.name!r} cannot be asked for its keys, "
                "so no token of it can be checked.",
                reason=Reason.UNREACHABLE,
                site=self._site,
                hint="Try again later.",
            )
        principal = None if key is None else self._principal(text, key, header["alg"])
        # Raised outside of every `except`, so that no error carries another that holds the text.
        if principal is None:
            raise self._refusal(Reason.TOKEN_INVALID, "The token is not valid here.")
        if principal.expires <= self._clock():
            raise self._refusal(Reason.TOKEN_EXPIRED, "The token has expired.")
        return principal

    def _principal(self, text: str, key: ProviderKey, algorithm: str) -> Principal | None:
        # A provider that gives up a key gives up what it verified.
        principal = self._verified.get(text, key)
        if principal is None:
            claims = _verified(text, key, algorithm)
            principal = None if claims is None else self._checked(claims)
            if principal is not None:
                self._verified.add(text, key, principal)
        return principal

    def _refusal(self, reason: Reason, message: str) -> NotAuthenticated:
        return NotAuthenticated(message, reason=reason, site=self._site, hint=LOG_IN)

    def _checked(self, claims: dict[str, Any]) -> Principal | None:
        section = self.section
        expires = expiry_of(claims, self._clock(), section.max_lifetime)
        subject, token_id = claims.get("sub"), claims.get("jti")
        if expires is None or not is_text(subject) or claims.get("iss") != section.url:
            return None
        if section.audience not in _texts(claims.get("aud"), MOST_AUDIENCES):
            return None
        groups = tuple(dict.fromkeys(f"{group}@{section.name}" for group in self._groups(claims)))
        if len(groups) > MOST_TEXTS or not all(is_text(group) for group in groups):
            return None
        return Principal(
            issuer=section.url,
            subject=subject,
            groups=groups,
            expires=expires,
            issued=float(claims["iat"]),
            token_id=token_id if is_text(token_id) else None,
        )

    def _groups(self, claims: dict[str, Any]) -> Iterator[str]:
        for name in self.section.groups_claims:
            yield from _texts(claims.get(name), MOST_TEXTS)
        for name in self.section.entitlement_claims:
            for entitlement in _texts(claims.get(name), MOST_TEXTS):
                yield from groups_of(entitlement, self.section.namespaces)


def _is_plain(header: dict[str, Any], types: set[str]) -> bool:
    named = header.get("kid")
    return (
        header.keys() <= HEADERS
        and isinstance(header.get("alg"), str)
        and header["alg"] in KNOWN_ALGORITHMS
        and isinstance(header.get("typ"), str)
        and header["typ"] in types
        and ("kid" not in header or is_text(named))
    )


def _verified(text: str, key: ProviderKey, algorithm: str) -> dict[str, Any] | None:
    try:
        claims = parse_json(jws.deserialize_compact(text, key, [algorithm]).payload)
    except (ValueError, RecursionError, JoseError):
        return None
    return claims if isinstance(claims, dict) else None


def _texts(value: object, most: int) -> list[str]:
    """Give the texts of a claim that may be one or a list; none where it is anything else."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > most or not all(map(is_text, found)):
        return []
    return found


class TokenVerifiers:
    """Tell who asks from a token of any issuer that the site accepts.

    Parameters
    ----------
    own : TokenVerifier
        Of the site's own tokens.
    own_issuer : str
        What their ``iss`` is.
    issuers : sequence of OpenIDIssuer, optional
        The OpenID providers.
    revocations : Revocations, optional
        Tokens that do not count any more.
    site : str, optional
        Name of the site, shown in errors.
    """

    def __init__(
        self,
        own: TokenVerifier,
        own_issuer: str,
        issuers: Sequence[OpenIDIssuer] = (),
        *,
        revocations: Revocations | None = None,
        site: str | None = None,
    ) -> None:
        self._own = own
        self._revocations = Revocations(Registry(None)) if revocations is None else revocations
        self._site = site
        self._issuers = {
            issuer.section.url: issuer for issuer in issuers if issuer.section.url != own_issuer
        }

    @classmethod
    def from_config(cls, config: SiteConfig, registry: Registry) -> TokenVerifiers:
        """Make those of a site.

        Raises
        ------
        ConfigurationError
            If a key or a certificate authority cannot be used.
        """
        issuers = [OpenIDIssuer(section, site=config.name) for section in config.issuers]
        return cls(
            TokenVerifier.from_config(config),
            config.token_issuer,
            issuers,
            revocations=Revocations(registry),
            site=config.name,
        )

    @property
    def sections(self) -> tuple[IssuerSection, ...]:
        """The OpenID providers, as the operator wrote them down."""
        return tuple(issuer.section for issuer in self._issuers.values())

    async def verify(self, text: str | None) -> Principal:
        """Tell who asks.

        Parameters
        ----------
        text : str or None
            The token, without the word "Bearer".

        Raises
        ------
        NotAuthenticated
            With reason ``token_missing``, ``token_expired`` or ``token_invalid``.
        SiteUnavailable
            If an issuer's keys cannot be had.
        """
        principal = await self._verified(text)
        self._revocations.require(principal, site=self._site)
        return principal

    def stands(self, principal: Principal) -> bool:
        """Say whether the token of a principal still counts, for what runs longer than a request.

        That it ends meanwhile is no matter: it was valid when the request came.
        """
        return self._revocations.stands(principal)

    async def _verified(self, text: str | None) -> Principal:
        if text and self._own.knows(text):
            return self._own.verify(text)
        seen = peek(text) if text else None
        if seen is not None:
            header, claims = seen
            named = claims.get("iss")
            issuer = self._issuers.get(named) if isinstance(named, str) else None
            if issuer is not None:
                return await issuer.verify(str(text), header)
        if not text and any(section.client_id for section in self.sections):
            raise NotAuthenticated(
                "This site answers only with a token.",
                reason=Reason.TOKEN_MISSING,
                site=self._site,
                hint=LOG_IN,
            )
        return self._own.verify(text)

    async def close(self) -> None:
        """Close the connections to the providers."""
        for issuer in self._issuers.values():
            await issuer.keys.close()
