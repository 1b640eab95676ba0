"""Licences that have to be accepted before a dataset is used, and who accepted which."""

from __future__ import annotations

import time

from site_plugins.datasets import StoredDataset
from site_plugins.registry import Registry

__all__ = ["Licences"]

TABLE = """
CREATE TABLE IF NOT EXISTS licences (
    principal TEXT NOT NULL,
    dataset TEXT NOT NULL,
    license TEXT NOT NULL,
    accepted_at REAL NOT NULL,
    PRIMARY KEY (principal, dataset, license)
) STRICT, WITHOUT ROWID
"""
MOST_KEPT = 100_000


class Licences:
    """Who accepted the licence of which dataset.

    Parameters
    ----------
    registry : Registry
        Where it is written down.

    Examples
    --------
    >>> licences = Licences(Registry(None))
    >>> soil = StoredDataset(name="soil", path="", license="CC-BY-4.0", accept_license=True)
    >>> licences.is_accepted("ada", soil)
    False
    >>> licences.accept("ada", soil)
    >>> licences.is_accepted("ada", soil)
    True
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._accepted: set[tuple[str, str, str]] = set()
        registry.create(TABLE)

    def is_accepted(self, principal: str, dataset: StoredDataset) -> bool:
        """Say whether a principal may use a dataset as far as its licence goes."""
        if not dataset.accept_license:
            return True
        # Another text is another licence, to be accepted anew.
        key = (principal, dataset.name, dataset.license)
        if key in self._accepted:
            return True
        found = self._registry.rows(
            "SELECT 1 FROM licences WHERE principal = ? AND dataset = ? AND license = ?", key
        )
        if not found:
            return False
        if len(self._accepted) >= MOST_KEPT:
            self._accepted.clear()
        self._accepted.add(key)
        return True

    def accept(self, principal: str, dataset: StoredDataset) -> None:
        """Write down that a principal accepted the licence that a dataset has now."""
        with self._registry.transaction() as connection:
            connection.execute(
                "INSERT INTO licences VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (principal, dataset.name, dataset.license, time.time()),
            )
