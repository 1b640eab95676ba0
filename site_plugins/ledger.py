"""The ledger of byte budgets: how much of each dataset has left the site, for whom.

An account is a project's, or a principal's own where it asks for no project.
Bytes are taken from the budget before they leave, and before a job runs as far
as its size is known; what was taken and did not leave is given back at the end.
A process that dies in between gives nothing back: what may have left has left.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from site_plugins.registry import Registry

__all__ = ["Account", "Exhausted", "Ledger"]

TABLE = """
CREATE TABLE IF NOT EXISTS budgets (
    account TEXT NOT NULL,
    dataset TEXT NOT NULL,
    used INTEGER NOT NULL CHECK (used >= 0),
    PRIMARY KEY (account, dataset)
) STRICT, WITHOUT ROWID
"""


@dataclass(frozen=True)
class Account:
    """Who takes from the budget of a dataset, and how large the budget is."""

    name: str
    total: int
    """Bytes that may ever leave for this account."""


class Exhausted(Exception):
    """A budget has less left than was to be taken."""

    def __init__(self, dataset: str, left: int) -> None:
        super().__init__(dataset)
        self.dataset = dataset
        self.left = left


class Ledger:
    """What has left of datasets with a budget.

    Parameters
    ----------
    registry : Registry
        Where it is written down; shared by all endpoint processes.

    Examples
    --------
    >>> ledger = Ledger(Registry(None))
    >>> soil = {"soil": Account("project:drought@north", total=1000)}
    >>> ledger.take(soil, 800)
    >>> ledger.give_back(soil, {"soil": 300})
    >>> ledger.used("project:drought@north", "soil")
    500
    >>> ledger.take(soil, 501)
    Traceback (most recent call last):
    site_plugins.ledger.Exhausted: soil
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        registry.create(TABLE)

    def take(self, accounts: Mapping[str, Account], size: int | Mapping[str, int]) -> None:
        """Take bytes from the budgets of datasets: from all of them, or from none.

        Parameters
        ----------
        accounts : mapping of str to Account
            Dataset to account.
        size : int or mapping of str to int
            Bytes, of each dataset or by dataset.

        Raises
        ------
        Exhausted
            If one has not as much left.
        """
        sizes = _by_dataset(accounts, size)
        if not sizes:
            return
        with self._registry.transaction() as connection:
            for dataset, wanted in sizes.items():
                account = accounts[dataset]
                used = _used(connection, account.name, dataset)
                if used + wanted > account.total:
                    raise Exhausted(dataset, max(0, account.total - used))
                connection.execute(
                    "INSERT INTO budgets VALUES (?, ?, ?) "
                    "ON CONFLICT DO UPDATE SET used = excluded.used",
                    (account.name, dataset, used + wanted),
                )

    def give_back(self, accounts: Mapping[str, Account], sizes: Mapping[str, int]) -> None:
        """Give back what was taken and did not leave."""
        sizes = _by_dataset(accounts, sizes)
        if not sizes:
            return
        with self._registry.transaction() as connection:
            for dataset, size in sizes.items():
                connection.execute(
                    "UPDATE budgets SET used = max(0, used - ?) WHERE account = ? AND dataset = ?",
                    (size, accounts[dataset].name, dataset),
                )

    def used(self, account: str, dataset: str) -> int:
        """Tell the bytes of a dataset that have left, or are set aside, for an account."""
        rows = self._registry.rows(
            "SELECT used FROM budgets WHERE account = ? AND dataset = ?", (account, dataset)
        )
        return int(rows[0][0]) if rows else 0


def _by_dataset(accounts: Mapping[str, Account], size: int | Mapping[str, int]) -> dict[str, int]:
    sizes = dict.fromkeys(accounts, size) if isinstance(size, int) else dict(size)
    if any(each < 0 for each in sizes.values()):
        raise ValueError("bytes are not negative")
    return {dataset: each for dataset, each in sizes.items() if each}


def _used(connection: sqlite3.Connection, account: str, dataset: str) -> int:
    row = connection.execute(
        "SELECT used FROM budgets WHERE account = ? AND dataset = ?", (account, dataset)
    ).fetchone()
    return 0 if row is None else int(row[0])
