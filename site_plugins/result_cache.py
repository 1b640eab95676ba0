"""Results of finished jobs, kept for a while: an equal or overlapping query finds them made.

Keys are digests of what tasks do with which dataset versions, so a task of a later job
that does the same has the same key, and the scheduler has its result already.  What is
kept is bounded per owner in bytes, the oldest going first, and in time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from distributed.protocol.serialize import ToPickle
from tornado.ioloop import PeriodicCallback

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed.scheduler import Scheduler

__all__ = ["ResultCache"]

CHECK_SECONDS = 1.0
CACHED_PART = 0.05
"""Part of the workers' memory that is kept for one owner, where the site says nothing."""


class ResultCache:
    """Keeps results on a scheduler although no job needs them any more.

    Parameters
    ----------
    seconds : float
        How long a result is kept after a job made or used it last; 0 keeps nothing.
    nbytes : int, optional
        Bytes kept for one owner; by default a twentieth of the memory of all workers.
    """

    name = "federated-cache"

    def __init__(self, seconds: float, nbytes: int | None = None) -> None:
        self.seconds = seconds
        self.nbytes = nbytes
        self._scheduler: Scheduler | None = None
        self._kept: dict[str, OrderedDict[Key, tuple[float, int]]] = {}
        """By owner: key to the end of its time and its bytes, the oldest first."""

    def start(self, scheduler: Scheduler) -> None:
        """Add the RPC handler."""
        self._scheduler = scheduler
        scheduler.handlers["federated_keep"] = self.federated_keep
        check = PeriodicCallback(self._release_expired, CHECK_SECONDS * 1000)
        scheduler.periodic_callbacks[self.name] = check
        check.start()

    def close(self) -> None:
        """Let go of everything."""
        if self._scheduler is not None:
            self._scheduler.periodic_callbacks[self.name].stop()
            for owner in list(self._kept):
                self._release(owner, list(self._kept[owner]))

    def federated_keep(self, owner: str, keys: Any) -> None:
        """Keep results for an owner, as far as there is room for them."""
        scheduler = self._scheduler
        if scheduler is None or self.seconds <= 0:
            return
        wanted: Iterable[Key] = keys.data if isinstance(keys, ToPickle) else keys
        kept = self._kept.setdefault(owner, OrderedDict())
        end = time.monotonic() + self.seconds
        most = self._limit(scheduler)
        for key in wanted:
            task = scheduler.tasks.get(key)
            if task is None or task.state != "memory" or task.get_nbytes() > most:
                continue
            if key not in kept:
                scheduler.client_desires_keys([key], _holder(owner))
            kept[key] = (end, task.get_nbytes())
            kept.move_to_end(key)
        total = sum(nbytes for _, nbytes in kept.values())
        leaving = []
        for key, (_, nbytes) in kept.items():
            if total <= most:
                break
            total -= nbytes
            leaving.append(key)
        self._release(owner, leaving)

    def _limit(self, scheduler: Scheduler) -> int:
        if self.nbytes is not None:
            return self.nbytes
        return int(CACHED_PART * sum(w.memory_limit or 0 for w in scheduler.workers.values()))

    def _release_expired(self) -> None:
        now = time.monotonic()
        for owner, kept in list(self._kept.items()):
            self._release(owner, [key for key, (end, _) in kept.items() if end <= now])

    def _release(self, owner: str, keys: list[Key]) -> None:
        kept = self._kept[owner]
        for key in keys:
            del kept[key]
        scheduler, holder = self._scheduler, _holder(owner)
        if scheduler is not None and keys and holder in scheduler.clients:
            scheduler.client_releases_keys(keys, holder)
        if not kept:
            del self._kept[owner]
            if scheduler is not None:
                # The scheduler makes such a client on the spot but never removes it.
                scheduler.clients.pop(holder, None)


def _holder(owner: str) -> str:
    return f"federated-cache-{blake2b(owner.encode(), digest_size=16).hexdigest()}"
