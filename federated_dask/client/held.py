"""Results that stay at a site: what `persist` puts into a graph.

A lease lasts as long as something in this process refers to it: until then it is
renewed, well before it ends, by timers of the background loop::

    Lease ── seconds / 3 ──► POST /leases/{lease} ── seconds / 3 ──► …
      │ nothing refers to it any more
      └────────────────────► DELETE /leases/{lease}
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import weakref
from typing import Any

from dask._task_spec import DataNode, Task
from dask.core import flatten
from dask.highlevelgraph import MaterializedLayer

from federated_dask.client import loop
from federated_dask.client.connection import SiteConnection
from federated_dask.client.results import decode_result
from federated_dask.errors import FederatedError, NotFound
from federated_dask.planner.graph import Key
from federated_dask.planner.sources import HeldReference
from federated_dask.protocol.operations import operation_table

__all__ = ["HeldValue", "Lease", "held_task", "held_values"]

RELEASE_SECONDS = 10.0
RENEW_SECONDS = 30.0
RENEWALS = 3
"""Renewals in the time that a lease lasts, so that one or two may fail."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 3600.0
"""Seconds between two renewals, whatever a site says."""


class Lease:
    """A lease at a site.

    It is renewed as long as something in this process refers to it, and let go
    of after that.

    Parameters
    ----------
    connection : SiteConnection
        The site.
    name : str
        The lease.
    seconds : float, optional
        How long it lasts unless it is renewed; None where the site does not tell.
    """

    def __init__(self, connection: SiteConnection, name: str, seconds: float | None = None) -> None:
        self.connection = connection
        self.name = name
        weakref.finalize(self, _release_later, connection, name)
        if seconds is not None:
            _renew_later(weakref.ref(self), seconds)


_renewals: set[asyncio.Task[None]] = set()


def _renew_later(lease: weakref.ref[Lease], seconds: float) -> None:
    # In this order, what is no number (NaN) becomes the shortest pause.
    pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, seconds / RENEWALS))
    with contextlib.suppress(RuntimeError):
        background = loop.background_loop()
        # A timer, not a task that sleeps: the process's end waits for tasks.  In a context of
        # its own, since renewing is not part of the compute that began the lease.
        background.call_soon_threadsafe(
            background.call_later,
            pause,
            _start_renewal,
            lease,
            seconds,
            context=contextvars.Context(),
        )


def _start_renewal(reference: weakref.ref[Lease], seconds: float) -> None:
    lease = reference()
    if lease is None:
        return
    renewal = asyncio.get_running_loop().create_task(
        _renew(reference, lease.connection, lease.name, seconds)
    )
    # The loop itself keeps no more than a weak reference.
    _renewals.add(renewal)
    renewal.add_done_callback(_renewals.discard)


async def _renew(
    reference: weakref.ref[Lease], connection: SiteConnection, name: str, seconds: float
) -> None:
    try:
        async with asyncio.timeout(RENEW_SECONDS):
            seconds = await connection.renew(name)
    except NotFound:
        return  # It has ended; who uses it is told what to do.
    except (FederatedError, TimeoutError):
        pass  # There is time for another try.
    _renew_later(reference, seconds)


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
        connection = self.lease.connection
        limit = connection.parameters.limits.buffer_bytes
        return decode_result(result.value, buffers, operation_table(), connection.name, limit)


def fetch_held(held: HeldValue) -> Any:
    """Bring a held result home; the callable of the task that stands for it in a graph."""
    return held.fetch()


def held_task(key: Key, held: HeldValue) -> Task:
    """Make the graph node that stands for a held result."""
    return Task(key, fetch_held, held)


def held_values(array: Any) -> list[HeldValue] | None:
    """Give the held results that a dask array is made of, in C order of its chunks.

    None for an array of anything else.
    """
    layer = array.dask.layers.get(array.name)
    if not isinstance(layer, MaterializedLayer):
        return None
    found = []
    for key in flatten(array.__dask_keys__()):
        node = layer.mapping.get(key)
        if not (isinstance(node, Task) and node.func is fetch_held):
            return None
        held = node.args[0]
        held = held.value if isinstance(held, DataNode) else held
        found.append(held)
    return found
