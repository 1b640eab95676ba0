"""The public keys of an OpenID provider: fetched from where the operator said, and kept a while.

::

    age of the keys   0 ─────── FRESH ─────────── EXPIRED ──►
    a token comes     used      fetched anew;      fetched anew;
                                used if that fails refused if that fails

A token that names a key which is not among them has them fetched anew too, at most
every `SEARCH_SECONDS`, so that a provider may change its keys at any time and nobody
can have it flooded.  No address comes from a token; redirects are not followed.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from federated_dask.errors import ConfigurationError
from site_plugins.config import IssuerSection
from site_plugins.outgoing import NETWORK_ERRORS, OutgoingSession, read_up_to
from site_plugins.signed_texts import decode_part, is_text, parse_json

__all__ = ["ALGORITHMS", "IssuerKeys", "KeysUnavailable", "ProviderKey"]

logger = logging.getLogger(__name__)

ProviderKey: TypeAlias = RSAKey | ECKey | OKPKey

FRESH_SECONDS = 600.0
EXPIRED_SECONDS = 3600.0
SEARCH_SECONDS = 30.0
RETRY_SECONDS = 5.0
FETCH_SECONDS = 10.0
LONGEST_DOCUMENT = 256 * 1024
MOST_KEYS = 64
RSA_BYTES = range(2048 // 8, 8192 // 8 + 1)
PUBLIC_PARTS: Mapping[str, tuple[type[ProviderKey], tuple[str, ...]]] = {
    "RSA": (RSAKey, ("kty", "n", "e")),
    "EC": (ECKey, ("kty", "crv", "x", "y")),
    "OKP": (OKPKey, ("kty", "crv", "x")),
}
ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "RSA": ("RS256", "PS256"),
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "Ed25519": ("Ed25519", "EdDSA"),
}
"""Kind of key to the algorithms that go with it; there are no others."""


class KeysUnavailable(Exception):
    """The keys cannot be had now, so nobody can tell whether a token is genuine."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    kid: str | None
    algorithms: tuple[str, ...]
    key: ProviderKey


class IssuerKeys:
    """The key set of one issuer.

    Parameters
    ----------
    section : IssuerSection
        Where it is.
    clock : callable, optional
        Returns seconds that never go back.

    Raises
    ------
    ConfigurationError
        If the certificate authority cannot be used.
    """

    def __init__(
        self, section: IssuerSection, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._section = section
        self._clock = clock
        self._trust = _trust(section)
        self._keys: list[_Known] = []
        self._fetched = self._searched = -float("inf")
        self._retry = -float("inf")
        self._fetching: asyncio.Task[None] | None = None
        self._session = OutgoingSession(headers={"Accept": "application/json"})

    async def find(self, kid: str | None, algorithm: str) -> ProviderKey | None:
        """Give the key that a token names, or None where the issuer has no such key.

        Parameters
        ----------
        kid : str or None
            As the token's header says; without it the issuer must have one such key only.
        algorithm : str
            As the token's header says.

        Raises
        ------
        KeysUnavailable
            If the keys are not known, or were for too long.
        """
        if self._clock() - self._fetched >= FRESH_SECONDS:
            await self._renew()
        found = self._known(kid, algorithm)
        if found is None and self._clock() - self._searched >= SEARCH_SECONDS:
            self._searched = self._clock()
            await self._renew()
            found = self._known(kid, algorithm)
        return found

    def _known(self, kid: str | None, algorithm: str) -> ProviderKey | None:
        if self._clock() - self._fetched >= EXPIRED_SECONDS:
            raise KeysUnavailable
        matching = [
            known.key
            for known in self._keys
            if algorithm in known.algorithms and (kid is None or known.kid == kid)
        ]
        return matching[0] if len(matching) == 1 else None

    async def _renew(self) -> None:
        if self._fetching is None:
            if self._clock() < self._retry:
                return
            self._fetching = asyncio.ensure_future(self._fetch())
            self._fetching.add_done_callback(self._done)
        # All who wait share one fetch, and none of them ends it by going away.
        await asyncio.shield(self._fetching)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                address = self._section.keys or await self._discovered()
                document = await self._document(address)
            listed = document.get("keys")
            if not isinstance(listed, list):
                raise ValueError("the key set lists no keys")
        except (*NETWORK_ERRORS, ValueError, RecursionError) as error:
            self._retry = self._clock() + RETRY_SECONDS
            logger.warning("Keys of issuer %s not fetched: %s", self._section.url, error)
            return
        self._keys = [known for entry in listed[:MOST_KEYS] if (known := _usable(entry))]
        self._fetched = self._clock()

    async def _discovered(self) -> str:
        document = await self._document(
            self._section.url.rstrip("/") + "/.well-known/openid-configuration"
        )
        if document.get("issuer") != self._section.url:
            raise ValueError("the discovery document is that of another issuer")
        address = document.get("jwks_uri")
        if not isinstance(address, str) or urlsplit(address).scheme != "https":
            raise ValueError("the discovery document names no key set at an https:// address")
        return address

    async def _document(self, address: str) -> dict[str, Any]:
        async with self._session.request("GET", address, self._trust) as reply:
            if reply.status != 200:
                raise ValueError(f"status {reply.status}")
            body = await read_up_to(reply, LONGEST_DOCUMENT)
        if body is None:
            raise ValueError("a document is too long")
        parsed = parse_json(body)
        if not isinstance(parsed, dict):
            raise ValueError("a document is no object")
        return parsed

    async def close(self) -> None:
        """End what is being fetched, and close the connection."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])
        await self._session.close()


def _usable(entry: object) -> _Known | None:
    """Read a key of the set: its public parts only, and only if it may verify signatures."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    kind, kid = entry.get("kty"), entry.get("kid")
    if not isinstance(kind, str) or kind not in PUBLIC_PARTS or not (kid is None or is_text(kid)):
        return None
    if "verify" not in entry.get("key_ops", ("verify",)):
        return None
    type_, parts = PUBLIC_PARTS[kind]
    algorithms = ALGORITHMS.get("RSA" if kind == "RSA" else str(entry.get("crv")), ())
    if (only := entry.get("alg")) is not None:
        algorithms = tuple(algorithm for algorithm in algorithms if algorithm == only)
    try:
        public = {part: entry[part] for part in parts}
        if not algorithms or (kind == "RSA" and len(decode_part(public["n"])) not in RSA_BYTES):
            return None
        key = type_.import_key(public)
    except (JoseError, AttributeError, KeyError, ValueError, TypeError):
        return None
    return _Known(kid=kid, algorithms=algorithms, key=key)


def _trust(section: IssuerSection) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if section.ca is None else section.ca)
    except OSError as error:
        raise ConfigurationError(
            f"The certificate authority of issuer {section.name!r} cannot be used: {error}.",
            hint="It is a PEM file with the certificates to trust.",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
