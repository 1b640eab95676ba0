"""A stored dataset as a lazy xarray object for the site's own functions, on a worker."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from site_plugins.datasets import StoredDataset, StoredVariable, borrow, decoded, decoded_dtype
from site_plugins.descriptions import VARIABLE_ENCODING, stored_chunks

__all__ = ["open_lazily", "without_paths"]

SMALL = 64 * 1024
"""Bytes up to which a coordinate is read at once."""


def open_lazily(dataset: StoredDataset, version: str, call: str) -> xr.Dataset:
    """Open a version of a dataset with a dask array for each variable.

    Chunks are those of the store; index coordinates and small ones are in memory.  Names
    of arrays are those of one call: xarray names some of what it makes of them at random,
    so that two calls would give tasks of one name to the cluster that differ, over which
    Dask's scheduler may lose track (dask#9888).

    Parameters
    ----------
    dataset : StoredDataset
        What to open.
    version : str
        Which version.
    call : str
        For which call.

    Raises
    ------
    VersionChanged
        If the store does not hold that version any more; also later, in the tasks.
    DatasetUnreadable
        If it does not open.
    """
    import dask.array as da

    variables: dict[str, xr.Variable] = {}
    with borrow(dataset, version) as content:
        coordinates = [str(name) for name in content.coords]
        for name, variable in content.variables.items():
            dtype = decoded_dtype(variable)
            is_small = variable.size * dtype.itemsize <= SMALL
            data: Any
            if variable.dims == (name,) or (name in content.coords and is_small):
                data = decoded(variable)
            else:
                chunks = stored_chunks(variable)
                stored = StoredVariable(dataset, version, str(name))
                data = da.from_array(
                    stored,
                    chunks=chunks or (variable.shape if dtype.hasobject else "auto"),
                    name=f"stored-{_token(stored, call)}",
                    meta=np.empty((0,) * variable.ndim, dtype),
                    inline_array=True,
                )
            variables[str(name)] = xr.Variable(
                variable.dims, data, variable.attrs, plain_encoding(variable.encoding)
            )
        attributes = dict(content.attrs)
    data_variables = {name: each for name, each in variables.items() if name not in coordinates}
    coords = {name: variables[name] for name in coordinates}
    return xr.Dataset(data_variables, coords, attributes)


def _token(stored: StoredVariable, call: str) -> str:
    from dask.base import tokenize

    return tokenize(stored, call)


def plain_encoding(encoding: Any) -> dict[Any, Any]:
    """Give the part of an encoding that tells of values, not of files."""
    return {name: encoding[name] for name in VARIABLE_ENCODING if name in encoding}


def without_paths(obj: Any) -> Any:
    """Give a result without what xarray remembers of the files that it came from."""
    if isinstance(obj, xr.DataArray):
        name = obj.name
        made = without_paths(obj._to_temp_dataset())
        return obj._from_temp_dataset(made, name)
    if isinstance(obj, xr.Dataset):
        obj = obj.copy(deep=False)
        obj.encoding = {}
        for variable in obj.variables.values():
            variable.encoding = plain_encoding(variable.encoding)
    return obj
