"""What a site has to remember, in one SQLite file of its state folder.

Several endpoint processes share the file.  Each module that keeps something in
it names its own tables.  A transaction is on the disk when its block ends, so
that neither a killed process nor a lost machine brings anything back.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from federated_dask.errors import ConfigurationError

__all__ = ["REGISTRY", "Registry"]

REGISTRY = "site.db"
"""Name of the file in the state folder."""
WAIT_SECONDS = 30.0


class Registry:
    """The site's SQLite file.

    Parameters
    ----------
    path : Path or None
        The file; made if it is not there, for its owner only.  None keeps
        everything in memory.

    Raises
    ------
    ConfigurationError
        If it cannot be opened.

    Examples
    --------
    >>> registry = Registry(None)
    >>> registry.create("CREATE TABLE IF NOT EXISTS kept (name TEXT)")
    >>> with registry.transaction() as kept:
    ...     _ = kept.execute("INSERT INTO kept VALUES (?)", ("soil",))
    >>> registry.rows("SELECT name FROM kept")
    [('soil',)]
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._changes = 0
        try:
            if path is not None:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                # SQLite gives the files beside it the same permissions.
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = _connected(":memory:" if path is None else path)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            # Who reads waits for no disk: the event loop does, while threads write.
            self._reading, self._reading_lock = self._connection, self._lock
            if path is not None:
                self._reading, self._reading_lock = _connected(path), threading.RLock()
                self._reading.execute("PRAGMA query_only = ON")
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"The site's state {path} cannot be opened: {error}.",
                hint="[site] state names its folder.",
            ) from error

    def create(self, *statements: str) -> None:
        """Make tables where they are not there yet."""
        with self.transaction() as connection:
            for statement in statements:
                connection.execute(statement)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Read and write as one; undone where the block raises.

        Waits for the transactions of other threads and processes.
        """
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
            self._changes += 1

    def rows(self, query: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Answer a query by what was written before; waits for no transaction."""
        with self._reading_lock:
            return self._reading.execute(query, arguments).fetchall()

    def version(self) -> tuple[int, int]:
        """Tell apart what the file holds now from what it held before; takes microseconds."""
        with self._reading_lock:
            [(others,)] = self._reading.execute("PRAGMA data_version").fetchall()
            return self._changes, int(others)

    def close(self) -> None:
        """Close the file."""
        with self._reading_lock:
            self._reading.close()
        with self._lock:
            self._connection.close()


def _connected(path: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
    )
