"""Which client is Dask's scheduler, and what was before it.

Clients become Dask's scheduler one over the other, and may be closed in any
order; what was set last is undone first.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, Protocol

import dask
import dask.threaded

from federated_dask.client import current
from federated_dask.client.current import HasConnections

__all__ = ["enter", "leave"]


class Computes(Protocol):
    """What Dask needs of who computes."""

    def get(self, dsk: Any, keys: Any, timeout: float | None = None, **options: Any) -> Any:
        """Compute keys of a graph."""

    def persist(
        self, items: list[Any], optimize_graph: bool, timeout: float | None, **options: Any
    ) -> list[Any]:
        """Persist collections, and wait for it."""


class _Scheduler:
    """What Dask calls in place of a scheduler function; it looks for ``persist`` beside it."""

    def __init__(self, client: HasConnections, computer: Computes) -> None:
        self._client = client
        self._computer = computer

    def __call__(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        if (cluster := _own_cluster()) is not None:
            return cluster.get(dsk, keys, **kwargs)
        if not _is_entered(self._client):
            # Another Client that ended later has put this one back into the configuration.
            return dask.threaded.get(dsk, keys, **kwargs)
        return self._computer.get(dsk, keys, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # Dask hands its configuration to the processes of workers, which have no such scheduler.
        return (_no_scheduler, ())

    def persist(
        self,
        collections: Any,
        *,
        optimize_graph: bool = True,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Persist collections, waiting even in asynchronous mode: Dask does not await it."""
        if (cluster := _own_cluster()) is not None:
            return list(cluster.persist(list(collections), optimize_graph=optimize_graph))
        return self._computer.persist(list(collections), optimize_graph, timeout, **kwargs)


def _no_scheduler() -> None:
    """Give what stands for a client's scheduler in other processes."""


def _is_entered(client: HasConnections) -> bool:
    with _lock:
        return any(entry.client is client and not entry.over for entry in _entered)


def _own_cluster() -> Any:
    """Give the client of the cluster in whose task this runs, if it runs in one.

    Sites may be in this process (`LocalFederation`), and Dask's configuration is that of the
    process: what a task of theirs computes inside is theirs to compute.
    """
    worker = sys.modules.get("distributed.worker")
    if worker is None or not hasattr(worker.thread_state, "execution_state"):
        return None
    return worker.get_client()


class _Entered:
    """One time that a client became Dask's scheduler, and how to undo it."""

    def __init__(
        self, client: HasConnections, computer: Computes, previous: HasConnections | None
    ) -> None:
        self.client = client
        self.previous = previous
        self.over = False
        # P2P rechunking belongs to one scheduler; a plan needs plain tasks.
        self.scheduler = _Scheduler(client, computer)
        self.config = dask.config.set(
            {"scheduler": self.scheduler, "array.rechunk.method": "tasks"}
        )

    def undo(self) -> None:
        """Be the scheduler no longer."""
        self.config.__exit__(None, None, None)
        if current.get_current() is self.client:
            current.set_current(self.previous)


_lock = threading.RLock()
_entered: list[_Entered] = []
"""Clients that are or were Dask's scheduler, the latest last."""


def enter(client: HasConnections, computer: Computes) -> None:
    """Make a client Dask's scheduler, unless it is already; `computer` computes for it."""
    with _lock:
        is_scheduler = _entered and dask.config.get("scheduler", None) is _entered[-1].scheduler
        if not is_scheduler or _entered[-1].client is not client:
            _entered.append(_Entered(client, computer, current.get_current()))
            current.set_current(client)


def leave(client: HasConnections) -> None:
    """Let a client be Dask's scheduler no longer; what was before it is again."""
    with _lock:
        for entry in _entered:
            entry.over = entry.over or entry.client is client
        while _entered and _entered[-1].over:
            _entered.pop().undo()
        if current.get_current() is client:
            current.set_current(_entered[-1].client if _entered else None)
