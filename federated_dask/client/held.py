"""Results that stay at a site: what `persist` puts into a graph."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import Any

from dask._task_spec import Task

from federated_dask.client import loop
from federated_dask.client.connection import SiteConnection
from federated_dask.errors import FederatedError
from federated_dask.planner.graph import Key
from federated_dask.planner.sources import HeldReference
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.values import decode_value

__all__ = ["HeldValue", "Lease", "held_task"]

RELEASE_SECONDS = 10.0


class Lease:
    """A lease at a site, let go of when nothing in this process refers to it any more."""

    def __init__(self, connection: SiteConnection, name: str) -> None:
        self.connection = connection
        self.name = name
        weakref.finalize(self, _release_later, connection, name)


def _release_later(connection: SiteConnection, name: str) -> None:
    # Finalizers run anywhere, so they must not wait.  Where the process is ending, the
    # lease ends by itself at the site.
    with contextlib.suppress(RuntimeError):
        loop.start(_release(connection, name))


async def _release(connection: SiteConnection, name: str) -> None:
    try:
        async with asyncio.timeout(RELEASE_SECONDS):
            await connection.release(name)
    except (FederatedError, TimeoutError):
        pass  # The lease ends by itself at the site.


class HeldValue:
    """One result that a site holds.

    The planner sees its `source` and uses the result where it is; any other
    Dask scheduler calls `fetch`.
    """

    def __init__(self, source: HeldReference, lease: Lease) -> None:
        self.source = source
        self.lease = lease

    def __repr__(self) -> str:
        return f"HeldValue({self.source.site!r}, {self.source.lease!r}, {self.source.output})"

    def __dask_tokenize__(self) -> tuple[str, str, int]:
        return (self.source.site, self.source.lease, self.source.output)

    def fetch(self) -> Any:
        """Bring the result home."""
        result, buffers = loop.sync(
            self.lease.connection.fetch_held(self.source.lease, self.source.output)
        )
        return decode_value(result.value, buffers, operation_table())


def fetch_held(held: HeldValue) -> Any:
    """Bring a held result home; the callable of the task that stands for it in a graph."""
    return held.fetch()


def held_task(key: Key, held: HeldValue) -> Task:
    """Make the graph node that stands for a held result."""
    return Task(key, fetch_held, held)
