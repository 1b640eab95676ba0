"""The sites that a site knows: those of its `site.toml`, and those learnt by invitation.

Learnt ones are kept in the registry, so that a running site knows of them at once,
and none of them can take the name of one that is known already.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from federated_dask.errors import ConfigurationError, NotFound, Reason
from site_plugins.config import PeerSection, SiteConfig
from site_plugins.registry import Registry
from site_plugins.statements import StatementVerifier

__all__ = ["KnownPeer", "PeerList", "plain_certificates", "plain_public_key"]

TABLE = """
CREATE TABLE IF NOT EXISTS peers (
    name TEXT PRIMARY KEY,
    address TEXT NOT NULL,
    ca TEXT,
    public_key TEXT NOT NULL UNIQUE,
    made_at REAL NOT NULL
) STRICT
"""
MOST_CERTIFICATES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownPeer:
    """Another site, with what is needed to speak to it."""

    name: str
    address: str
    verifier: StatementVerifier | None
    """Reads what it states; None where its public key is not known."""
    trust: ssl.SSLContext
    ca: str | None = None
    """What is trusted, as PEM text for users of the site; None for what the system trusts."""
    learnt: bool = False
    """By invitation, rather than from `site.toml`."""


class PeerList:
    """The peers of a site.

    Parameters
    ----------
    config : SiteConfig
        The site.
    registry : Registry
        Where those learnt by invitation are kept.

    Raises
    ------
    ConfigurationError
        If a key or a certificate authority of `site.toml` cannot be used.
    """

    def __init__(self, config: SiteConfig, registry: Registry) -> None:
        self.site = config.name
        self._registry = registry
        registry.create(TABLE)
        self._configured = {peer.name: _configured(peer) for peer in config.peers}
        self._lock = threading.Lock()
        self._version: tuple[int, int] | None = None
        self._learnt: dict[tuple[str, str, str | None, str], KnownPeer] = {}
        self._all: Mapping[str, KnownPeer] = MappingProxyType(dict(self._configured))

    def current(self) -> Mapping[str, KnownPeer]:
        """All peers by name, as they are now."""
        version = self._registry.version()
        if version != self._version:
            with self._lock:
                rows = self._registry.rows("SELECT name, address, ca, public_key FROM peers")
                self._learnt = {row: self._learnt.get(row) or _learnt(*row) for row in rows}
                learnt = {peer.name: peer for peer in self._learnt.values()}
                # The operator's own words come first.
                self._all = MappingProxyType({**learnt, **self._configured})
                self._version = version
        return self._all

    def exchanging(self) -> Mapping[str, KnownPeer]:
        """Peers whose public key is known: only with them anything is exchanged."""
        return {name: peer for name, peer in self.current().items() if peer.verifier is not None}

    def require_new(self, name: str) -> None:
        """Raise unless a name is free for a new peer.

        Raises
        ------
        ConfigurationError
            If it is that of this site or of a peer.
        """
        if name == self.site:
            raise ConfigurationError(f"{name!r} is the name of this site itself.", site=self.site)
        if name in self.current():
            raise ConfigurationError(
                f"There is a peer {name!r} already.",
                site=self.site,
                hint=f"`federated-dask site forget SITE.TOML {name}` removes it.",
            )

    def add(self, name: str, address: str, ca: str | None, public_key: str) -> None:
        """Add a peer whose name and key no peer has; what is given was checked.

        Raises
        ------
        ConfigurationError
            If the name or the key is taken.
        """
        self.require_new(name)
        with self._registry.transaction() as connection:
            added = connection.execute(
                "INSERT OR IGNORE INTO peers VALUES (?, ?, ?, ?, ?)",
                (name, address, ca, public_key, time.time()),
            ).rowcount
        if not added:
            raise ConfigurationError(
                f"The peer {name!r} or one with its key is known already.", site=self.site
            )

    def has(self, name: str, public_key: str) -> bool:
        """Say whether a peer with this name and this key was learnt."""
        return bool(
            self._registry.rows(
                "SELECT 1 FROM peers WHERE name = ? AND public_key = ?", (name, public_key)
            )
        )

    def forget(self, name: str) -> None:
        """Remove a peer that was learnt; it is refused from now on.

        Raises
        ------
        ConfigurationError
            If it is one of `site.toml`.
        NotFound
            If there is none.
        """
        with self._registry.transaction() as connection:
            gone = connection.execute("DELETE FROM peers WHERE name = ?", (name,)).rowcount
        if gone:
            return
        if name in self._configured:
            raise ConfigurationError(
                f"The peer {name!r} is listed in site.toml.",
                site=self.site,
                hint="Remove it there, and start the site again.",
            )
        raise NotFound(
            f"There is no peer {name[:128]!r}.", reason=Reason.UNKNOWN_SITE, site=self.site
        )


def plain_public_key(text: str) -> str:
    """Write a public key anew, as PEM; ValueError where it is none that signs statements.

    One key has one text then, whatever came with it.
    """
    try:
        key = load_pem_public_key(text.encode())
        StatementVerifier(text.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError("a kind of key that is not supported") from error
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def plain_certificates(text: str) -> str:
    """Write certificates anew, as PEM without anything between them; ValueError if there are none.

    Private keys and comments that a file may hold are left out.
    """
    certificates = x509.load_pem_x509_certificates(text.encode())
    if len(certificates) > MOST_CERTIFICATES:
        raise ValueError(f"more than {MOST_CERTIFICATES} certificates")
    plain = "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates)
    try:
        # Whoever takes them in is sure that they can be used.
        ssl.create_default_context(cadata=plain)
    except ssl.SSLError as error:
        raise ValueError("certificates that TLS does not take") from error
    return plain


def _learnt(name: str, address: str, ca: str | None, public_key: str) -> KnownPeer:
    context = ssl.create_default_context(cadata=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    verifier = StatementVerifier(public_key.encode())
    return KnownPeer(
        name=name, address=address, verifier=verifier, trust=context, ca=ca, learnt=True
    )


def _configured(peer: PeerSection) -> KnownPeer:
    trust = _trust(peer)
    try:
        ca = None if peer.ca is None else plain_certificates(peer.ca.read_text())
    except (OSError, ValueError):
        # A bundle of the whole institute, say: too much to be handed on.
        ca = None
    return KnownPeer(
        name=peer.name, address=peer.address, verifier=_verifier(peer), trust=trust, ca=ca
    )


def _verifier(peer: PeerSection) -> StatementVerifier | None:
    if peer.public_key is None:
        return None
    try:
        return StatementVerifier(peer.public_key.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"The public key of peer {peer.name!r} cannot be used: {error}.",
            hint="It is the file keys/issuer_public.pem of that site.",
        ) from error


def _trust(peer: PeerSection) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if peer.ca is None else str(peer.ca))
    except OSError as error:
        raise ConfigurationError(
            f"The certificate authority of peer {peer.name!r} cannot be used: {error}.",
            hint="It is a PEM file with the certificates to trust.",
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
