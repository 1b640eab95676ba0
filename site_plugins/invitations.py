"""Becoming peers by a one-time code, without copying files.

::

    north: site invite --name south   ──► CODE = secret + fingerprint of north's certificate
                                          (north keeps a digest of the secret for an hour)
    south: site join URL CODE
       south ── connects; the certificate has that fingerprint, or nothing is sent
       south ── secret, name, address, public key, CA, statement by that key ──► north
             ◄── name, address, public key, CA ─────────────────────────────────
    Both list each other.

The secret shows that the operator of north invited; the fingerprint, that it is
north that answers; the statement, that south holds its key.  A code is for one
name, which nobody had before.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from pydantic import ValidationError

from federated_dask.errors import ConfigurationError, NotAuthenticated, Reason, RequestRefused
from federated_dask.protocol.identity_messages import JoinRequest, SiteIntroduction
from site_plugins.config import PeerSection, SiteConfig
from site_plugins.keys import public_key_of
from site_plugins.peers import PeerList, plain_certificates, plain_public_key
from site_plugins.registry import Registry
from site_plugins.statements import StatementSigner, StatementVerifier

__all__ = ["InvitationCode", "Invitations", "introduction", "join_request", "shown_by"]

TABLE = """
CREATE TABLE IF NOT EXISTS invitations (
    digest TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    expires REAL NOT NULL,
    used INTEGER NOT NULL
) STRICT
"""
JOIN = "join+jwt"
JOIN_SECONDS = 60.0
INVITATION_SECONDS = 3600.0
SECRET_BYTES = 18
CODE = re.compile(r"fd1_([A-Za-z0-9_-]{24})([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, kw_only=True)
class InvitationCode:
    """What one operator hands to another.

    Examples
    --------
    >>> code = InvitationCode(secret="s" * 24, fingerprint=bytes(32))
    >>> InvitationCode.parse(str(code)) == code
    True
    """

    secret: str
    fingerprint: bytes
    """SHA-256 of the inviting site's certificate."""

    def __str__(self) -> str:
        shown = base64.urlsafe_b64encode(self.fingerprint).rstrip(b"=").decode()
        return f"fd1_{self.secret}{shown}"

    @classmethod
    def parse(cls, text: str) -> InvitationCode:
        """Read a code; `ConfigurationError` where it is none."""
        match = CODE.fullmatch(text.strip())
        if match is None:
            raise ConfigurationError(
                "This is no invitation code.",
                hint="`federated-dask site invite` at the other site prints one.",
            )
        return cls(secret=match[1], fingerprint=base64.urlsafe_b64decode(match[2] + "="))


class Invitations:
    """The invitations of a site, and what comes of them.

    Parameters
    ----------
    config : SiteConfig
        The site that invites.
    registry : Registry
        Where digests of the codes are kept.
    peers : PeerList
        Gets those who join.
    """

    def __init__(self, config: SiteConfig, registry: Registry, peers: PeerList) -> None:
        self._config = config
        self._registry = registry
        self._peers = peers
        registry.create(TABLE)

    def create(self, name: str, lifetime: float = INVITATION_SECONDS) -> InvitationCode:
        """Make a code by which the site `name` may become a peer, once.

        Raises
        ------
        ConfigurationError
            If that name is taken, or is none.
        """
        try:
            PeerSection(name=name, address="https://any.example")
        except ValidationError as error:
            raise ConfigurationError(
                f"{name[:128]!r} cannot be the name of a site.",
                hint="Only letters, digits, dot, dash and underscore.",
            ) from error
        self._peers.require_new(name)
        secret = secrets.token_urlsafe(SECRET_BYTES)
        with self._registry.transaction() as connection:
            connection.execute("DELETE FROM invitations WHERE expires < ?", (time.time(),))
            connection.execute(
                "INSERT INTO invitations VALUES (?, ?, ?, 0)",
                (_digest(secret), name, time.time() + lifetime),
            )
        fingerprint = _fingerprint(self._config.endpoint.certificate)
        return InvitationCode(secret=secret, fingerprint=fingerprint)

    def accept(self, asked: JoinRequest) -> SiteIntroduction:
        """Make a peer of the site that shows a code, and introduce this one to it.

        Raises
        ------
        NotAuthenticated
            If the code does not hold, is for another name, or the site does not
            show that it holds its key.
        RequestRefused
            If address, key or certificates cannot be ones, or the key is that of
            another peer.
        """
        digest = _digest(asked.secret)
        # Read only: strangers do not get to make the site write, or wait for who writes.
        if not self._holds(digest, asked.name):
            raise _refused("The invitation does not hold, or not any more.", self._config.name)
        fingerprint = _fingerprint(self._config.endpoint.certificate)
        address, public_key, ca = shown_by(asked, fingerprint, self._config.name)
        self._use(digest, asked.name, public_key)
        if not self._peers.has(asked.name, public_key):
            try:
                self._peers.add(asked.name, address, ca, public_key)
            except ConfigurationError as error:
                raise RequestRefused(
                    error.message, reason=Reason.INVALID_ARGUMENT, site=self._config.name
                ) from error
        return introduction(self._config)

    def _holds(self, digest: str, name: str) -> bool:
        found = self._registry.rows(
            "SELECT name, expires FROM invitations WHERE digest = ?", (digest,)
        )
        return [row[0] for row in found if row[1] > time.time()] == [name]

    def _use(self, digest: str, name: str, public_key: str) -> None:
        if self._peers.has(name, public_key):
            # It joined by this code, or is known anyway; its answer may have got lost.
            return
        with self._registry.transaction() as connection:
            used = connection.execute(
                "UPDATE invitations SET used = 1 WHERE digest = ? AND name = ?"
                " AND expires > ? AND NOT used",
                (digest, name, time.time()),
            ).rowcount
        if not used:
            raise _refused("The invitation does not hold, or not any more.", self._config.name)


def shown_by(asked: JoinRequest, fingerprint: bytes, site: str) -> tuple[str, str, str | None]:
    """Give address, public key and certificates of a site that shows that it holds its key.

    Parameters
    ----------
    asked : JoinRequest
        What it sent.
    fingerprint : bytes
        Of the certificate of the site to which it did.
    site : str
        Name of that one, shown in errors.

    Raises
    ------
    NotAuthenticated
        If it does not show it.
    RequestRefused
        If address, key or certificates cannot be ones.
    """
    try:
        address = PeerSection(name=asked.name, address=asked.address).address
        public_key = plain_public_key(asked.public_key)
        ca = None if asked.ca is None else plain_certificates(asked.ca)
    except ValueError as error:
        raise RequestRefused(
            "Address, public key or certificates cannot be those of a site.",
            reason=Reason.INVALID_ARGUMENT,
            site=site,
        ) from error
    expected = _claims(asked, fingerprint)
    verifier = StatementVerifier(public_key.encode())
    stated = verifier.verify(JOIN, asked.statement, JOIN_SECONDS)
    if stated is None or any(stated.get(name) != value for name, value in expected.items()):
        raise _refused("The site does not show that it holds its key.", site)
    return address, public_key, ca


def _refused(message: str, site: str) -> NotAuthenticated:
    return NotAuthenticated(
        message,
        reason=Reason.TOKEN_INVALID,
        site=site,
        hint="Ask the operator of that site for a new code.",
    )


def introduction(config: SiteConfig) -> SiteIntroduction:
    """Say of a site what a peer has to know.

    Raises
    ------
    ConfigurationError
        If its certificates cannot be read.
    """
    ca = config.endpoint.ca
    try:
        certificates = None if ca is None else plain_certificates(ca.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            "[endpoint] ca holds no certificates in PEM form.", site=config.name
        ) from error
    return SiteIntroduction(
        name=config.name,
        address=config.public_address(),
        public_key=public_key_of(config.tokens.private_key).decode(),
        ca=certificates,
    )


def join_request(config: SiteConfig, code: InvitationCode) -> JoinRequest:
    """Make the request by which a site becomes a peer of the one that made the code."""
    own = introduction(config)
    unsigned = JoinRequest(secret=code.secret, statement="", **msgspec.structs.asdict(own))
    signer = StatementSigner(config.tokens.private_key)
    statement = signer.sign(JOIN, _claims(unsigned, code.fingerprint), JOIN_SECONDS)
    return msgspec.structs.replace(unsigned, statement=statement)


def _claims(asked: JoinRequest, fingerprint: bytes) -> dict[str, str]:
    """Give what the statement of a joining site is about: all that it sends, and to whom."""
    return {
        "iss": asked.name,
        "for": _digest(asked.secret),
        "aud": fingerprint.hex(),
        "address": asked.address,
        "ca": _digest(asked.ca or ""),
    }


def _fingerprint(certificate: Path) -> bytes:
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).fingerprint(hashes.SHA256())
    except (OSError, ValueError, binascii.Error) as error:
        raise ConfigurationError("[endpoint] certificate holds no certificate.") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
