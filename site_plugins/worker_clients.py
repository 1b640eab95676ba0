"""The client by which tasks of a worker compute on its own cluster.

Dask makes it when a task first asks for one, and makes it the client and the scheduler
of the whole process.  Where workers are threads (`LocalFederation`), that process is
the researcher's, who has a scheduler.  So it is made here before anybody asks, and is
the client of the task's thread only, while the task runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import dask.config
from distributed.client import Client, _current_client
from distributed.worker import Worker

__all__ = ["close_clients", "own_client"]

_lock = threading.Lock()


@contextmanager
def own_client(worker: Any) -> Iterator[None]:
    """Have Dask compute on the worker's cluster what the block asks for, in this thread."""
    _ensure_client(worker)
    # `Client.as_current` would change Dask's configuration too, for all threads.
    token = _current_client.set(worker._client)
    try:
        yield
    finally:
        _current_client.reset(token)


def _ensure_client(worker: Any) -> None:
    with _lock:
        if worker._client is None:
            # As `Worker._get_client` makes it, but for `set_as_default`.
            worker._client = Client(
                worker.scheduler,
                loop=worker.loop,
                security=worker.security,
                set_as_default=False,
                direct_to_workers=True,
                name="worker",
                timeout=dask.config.get("distributed.comm.timeouts.connect"),
            )
            Worker._initialized_clients.add(worker._client)


async def close_clients(workers: Iterable[Any]) -> None:
    """Close the clients of workers that are about to end; from their event loop.

    Dask leaves it to the last worker of the process, which may be another cluster's, in
    another loop, when that of these has long been closed.
    """
    for worker in workers:
        # What stands for a worker of another process has none.
        client = getattr(worker, "_client", None)
        if client is not None and client in Worker._initialized_clients:
            Worker._initialized_clients.discard(client)
            worker._client = None
            client._asynchronous = True
            await client.close()
