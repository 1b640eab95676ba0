"""Opening a dataset of a federation as lazy xarray objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import xarray as xr

from federated_dask.client.federation import Federation
from federated_dask.errors import NotFound

__all__ = ["open_dataset"]


def open_dataset(
    federation: Federation,
    name: str,
    chunks: Any = "auto",
    drop_variables: str | Iterable[str] | None = None,
) -> xr.Dataset:
    """Open a dataset, and wait for it; see `FederatedClient.open_dataset`."""
    address = f"fed://{federation.qualified(name)}"

    def open_as(chunks: Any) -> xr.Dataset:
        return xr.open_dataset(
            address,
            engine="federated",
            chunks=chunks,
            drop_variables=drop_variables,
            backend_kwargs={"client": federation},
        )

    try:
        return open_as(chunks)
    except NotFound as error:
        error.hint = federation.datasets.hint(name.removeprefix("fed://")) or error.hint
        raise
    except NotImplementedError:
        if not isinstance(chunks, str):
            raise
        # Dask cannot tell how large texts are, and gives up on the whole dataset.
        return open_as({})
