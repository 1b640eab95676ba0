"""The client by which tasks of a worker compute on its own cluster.

Dask makes it when a task first asks for one, and has Dask's configuration of the whole
process name it as scheduler.  Where workers are threads (`LocalFederation`), that
process is the researcher's, who has a scheduler.  So it is made before anybody asks,
and the configuration stays as it was; in a task Dask finds the client all the same.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import dask.config

__all__ = ["close_clients", "ensure_client"]

_lock = threading.Lock()


def ensure_client(worker: Any) -> None:
    """Give a worker its client, from a thread that runs one of its tasks."""
    with _lock:
        if worker._client is not None:
            return
        before = dask.config.get("scheduler", None)
        client = worker._get_client()
        with dask.config.config_lock:
            if before is None:
                dask.config.config.pop("scheduler", None)
            else:
                dask.config.config["scheduler"] = before
        # Closed, it would bring back what was configured when it was made.
        client.__dict__.pop("_set_config", None)


async def close_clients(workers: Iterable[Any]) -> None:
    """Close the clients of workers that are about to end; from their event loop.

    Dask leaves it to the last worker of the process, which may be another cluster's, in
    another loop, when that of these has long been closed.
    """
    from distributed.worker import Worker

    for worker in workers:
        # What stands for a worker of another process has none.
        client = getattr(worker, "_client", None)
        if client is not None and client in Worker._initialized_clients:
            Worker._initialized_clients.discard(client)
            worker._client = None
            client._asynchronous = True
            await client.close()
