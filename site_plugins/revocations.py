"""Tokens that do not count any more although they have not ended: one, or all of somebody."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from federated_dask.errors import NotAuthenticated, Reason
from site_plugins.registry import Registry

if TYPE_CHECKING:
    from site_plugins.tokens import Principal

__all__ = ["Revocations"]

TABLE = """
CREATE TABLE IF NOT EXISTS revocations (
    issuer TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('token', 'subject')),
    name TEXT NOT NULL,
    made_at REAL NOT NULL,
    PRIMARY KEY (issuer, kind, name)
) STRICT
"""


LOOK_SECONDS = 1.0
MOST_LOOKED = 10_000


class Revocations:
    """What was revoked at a site; holds for all its endpoint processes at once.

    Parameters
    ----------
    registry : Registry
        Where it is kept.

    Examples
    --------
    >>> from site_plugins.tokens import Principal
    >>> revocations = Revocations(Registry(None))
    >>> ada = Principal(issuer="urn:north", subject="ada", expires=2e9, issued=1e9)
    >>> revocations.require(ada)
    >>> revocations.add("urn:north", "subject", "ada")
    >>> revocations.require(ada)
    Traceback (most recent call last):
    federated_dask.errors.NotAuthenticated: The token was revoked. Ask ... (token_invalid)
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        registry.create(TABLE)
        self._looked: dict[tuple[str, str, str | None, float], tuple[float, bool]] = {}

    def add(self, issuer: str, kind: Literal["token", "subject"], name: str) -> None:
        """Revoke a token by its ``jti``, or all tokens that somebody has been given until now."""
        with self._registry.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO revocations VALUES (?, ?, ?, ?)",
                (issuer, kind, name, time.time()),
            )

    def require(self, principal: Principal, *, site: str | None = None) -> None:
        """Raise where the principal's token was revoked.

        Raises
        ------
        NotAuthenticated
            With reason ``token_invalid``.
        """
        if self._is_revoked(principal):
            raise NotAuthenticated(
                "The token was revoked.",
                reason=Reason.TOKEN_INVALID,
                site=site,
                hint="Ask the site's operator.",
            )

    def stands(self, principal: Principal) -> bool:
        """Say whether a principal's token was not revoked, as far as is known for a second."""
        key = (principal.issuer, principal.subject, principal.token_id, principal.issued)
        now = time.monotonic()
        looked, stands = self._looked.get(key, (0.0, False))
        if now - looked >= LOOK_SECONDS:
            if len(self._looked) >= MOST_LOOKED:
                self._looked.clear()
            stands = not self._is_revoked(principal)
            self._looked[key] = (now, stands)
        return stands

    def _is_revoked(self, principal: Principal) -> bool:
        found = self._registry.rows(
            "SELECT kind, made_at FROM revocations WHERE issuer = ?"
            " AND ((kind = 'token' AND name = ?) OR (kind = 'subject' AND name = ?))",
            (principal.issuer, principal.token_id, principal.subject),
        )
        # A token made after its subject's were revoked is a new beginning.
        return any(kind == "token" or principal.issued <= made_at for kind, made_at in found)
