"""One xarray expression over several institutes' data, computed where the data lies.

>>> import federated_dask
>>> "FederatedClient" in federated_dask.__all__
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from federated_dask.client.federated_client import FederatedClient
    from federated_dask.client.future import FederatedFuture
    from federated_dask.client.waiting import as_completed, progress, wait
    from federated_dask.errors import FederatedError

__version__ = "0.1.0"

_MODULES = {
    "FederatedClient": "federated_dask.client.federated_client",
    "FederatedError": "federated_dask.errors",
    "FederatedFuture": "federated_dask.client.future",
    "as_completed": "federated_dask.client.waiting",
    "progress": "federated_dask.client.waiting",
    "wait": "federated_dask.client.waiting",
}

__all__ = [
    "FederatedClient",
    "FederatedError",
    "FederatedFuture",
    "__version__",
    "as_completed",
    "progress",
    "wait",
]


def __getattr__(name: str) -> object:
    # Lazily (PEP 562): importing the package must load neither xarray nor aiohttp.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
