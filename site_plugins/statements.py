"""What a site states to its peers, signed with the key that signs its tokens."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any

from joserfc import jws

from site_plugins.keys import signing_key, verifying_key
from site_plugins.signed_texts import expiry_of, read_signed

__all__ = ["StatementSigner", "StatementVerifier"]


class StatementSigner:
    """Signs what a site states to its peers, with the key that signs its tokens.

    Parameters
    ----------
    private_key : Path
        Ed25519 or EC P-256, PEM.
    """

    def __init__(self, private_key: Path) -> None:
        self._algorithm, self._key = signing_key(private_key)

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
        self._algorithm, self._key = verifying_key(public_key)

    def verify(self, kind: str, text: str, max_lifetime: float) -> dict[str, Any] | None:
        """Give the claims of a statement, or None where it does not hold (any more)."""
        claims = read_signed(text, kind, self._algorithm, self._key)
        expires = None if claims is None else expiry_of(claims, time.time(), max_lifetime)
        return None if expires is None or expires <= time.time() else claims
