"""Descriptions of datasets as lazy xarray objects.

::

    DatasetDescription ──► xr.Dataset
      values sent along      in memory; index coordinates become real indexes
      everything else        LazilyIndexedArray(FederatedBackendArray(RemoteVariable))
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from federated_dask.client.connection import SiteConnection
from federated_dask.client.remote_variable import (
    FederatedBackendArray,
    RemoteVariable,
    remote_variable_of,
)
from federated_dask.client.results import announced_limit, decode_result
from federated_dask.errors import FederatedError, Reason, RequestRefused
from federated_dask.planner.sources import SourceReference
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.messages import DatasetDescription, VariableDescription

__all__ = ["build_dataset", "fetch_dataset"]

LARGEST_EAGER = 65_536
"""Elements of an object variable up to which its values are fetched at opening."""


class _StoredVariable(xr.Variable):
    """A variable of a stored dataset, for `xarray.open_dataset` to cut into chunks.

    It differs from its base in two things that `open_dataset` does with it.  Dask
    arrays are named there after the URL and the other arguments; the same URL may
    stand for changed data later, and Dask takes tasks of one name for the same.
    And values that were sent along are taken there for values to be read.
    """

    __slots__ = ()

    @property
    def _in_memory(self) -> bool:
        data = self._data
        while isinstance(data, indexing.CopyOnWriteArray | indexing.MemoryCachedArray):
            data = data.array
        return isinstance(data, indexing.NumpyIndexingAdapter) or super()._in_memory

    def __reduce__(self) -> tuple[object, ...]:
        # Whoever unpickles it needs an ordinary variable.
        return (xr.Variable, (self._dims, self._data, self._attrs, self._encoding, True))

    def chunk(
        self,
        chunks: Any = {},  # noqa: B006  # as in xarray
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        from dask.base import tokenize

        remote = remote_variable_of(self._data)
        options = dict(kwargs.get("from_array_kwargs") or {})
        if remote is not None and isinstance(options.get("name"), str):
            prefix = options["name"].rpartition("-")[0]
            options["name"] = f"{prefix}-{tokenize(remote, chunks)}"
            kwargs["from_array_kwargs"] = options
        chunked: Any = super().chunk(chunks, *args, **kwargs)
        return xr.Variable(
            chunked.dims, chunked._data, chunked._attrs, chunked._encoding, fastpath=True
        )


def build_dataset(
    connection: SiteConnection,
    description: DatasetDescription,
    buffers: list[bytearray],
    *,
    values: Mapping[str, np.ndarray] | None = None,
    drop_variables: Collection[str] = (),
    create_default_indexes: bool = True,
) -> xr.Dataset:
    """Make the lazy dataset that a description stands for.

    Parameters
    ----------
    connection : SiteConnection
        The connection over which the description came.
    description : DatasetDescription
        What the site says of the dataset.
    buffers : list of bytearray
        Buffers of the values in the description.
    values : mapping of str to ndarray, optional
        Values of further variables, fetched beforehand.
    drop_variables : collection of str, optional
        Variables to leave out.
    create_default_indexes : bool, optional
        Make pandas indexes of the index coordinates.

    Returns
    -------
    xarray.Dataset
        As if opened where it is stored; ``encoding["source"]`` says where that
        is, ``encoding["version"]`` which version it is.

    Raises
    ------
    RequestRefused
        If the description contradicts itself.
    """
    address = f"fed://{connection.name}/{description.name}"
    try:
        variables = {
            name: _variable(connection, description, name, buffers, (values or {}).get(name))
            for name in description.variables
            if name not in drop_variables
        }
        # Coordinates that name a dimension would get an index at once, and be read for it.
        indexed = [name for name, variable in variables.items() if variable.dims == (name,)]
        dataset = xr.Dataset(
            {name: variable for name, variable in variables.items() if name not in indexed},
            coords=xr.Coordinates({name: variables[name] for name in indexed}, indexes={}),
            attrs=description.attributes,
        )
        # `xr.Coordinates` would make ordinary variables of the others.
        dataset = dataset.set_coords(
            [name for name in variables if description.variables[name].coordinate]
        )
        dataset.encoding = _dataset_encoding(description) | {
            "source": address,
            "version": description.version,
        }
        if create_default_indexes:
            dataset = dataset.assign_coords(
                xr.Coordinates({name: dataset.variables[name] for name in indexed})
            )
    except (ValueError, TypeError) as error:
        raise RequestRefused(
            f"The description of {address} contradicts itself: {str(error)[:200]}.",
            reason=Reason.MALFORMED,
            site=connection.name,
            hint="Tell the site's operator.",
        ) from error
    except FederatedError as error:
        error.site = error.site or connection.name
        raise
    return dataset


async def fetch_dataset(
    connection: SiteConnection,
    name: str,
    *,
    drop_variables: Collection[str] = (),
    create_default_indexes: bool = True,
) -> xr.Dataset:
    """Open a dataset lazily; see `build_dataset`.

    One round trip, and a second one where the site did not send along the
    values of small variables of texts or cftime dates: xarray and Dask look at
    such values to choose chunks, one question per variable otherwise.
    """
    description, buffers = await connection.describe_dataset(name)
    wanted = [
        name
        for name, variable in description.variables.items()
        if variable.dtype.startswith("object:")
        and variable.value is None
        and name not in drop_variables
        and 0 < math.prod(variable.shape) <= LARGEST_EAGER
    ]
    values = {}
    if wanted:
        remotes = [
            _remote(connection, description, name, description.variables[name]) for name in wanted
        ]
        replies = await asyncio.gather(
            *(remote.read(...) for remote in remotes), return_exceptions=True
        )
        for name, reply in zip(wanted, replies, strict=True):
            if isinstance(reply, np.ndarray):
                values[name] = reply
            elif not isinstance(reply, FederatedError):
                raise reply
            # What may not leave the site, or could not be read, stays lazy; using it says why.
    return build_dataset(
        connection,
        description,
        buffers,
        values=values,
        drop_variables=drop_variables,
        create_default_indexes=create_default_indexes,
    )


def _variable(
    connection: SiteConnection,
    description: DatasetDescription,
    name: str,
    buffers: list[bytearray],
    values: np.ndarray | None,
) -> xr.Variable:
    described = description.variables[name]
    remote = _remote(connection, description, name, described)
    if values is None and described.value is not None:
        limit = announced_limit(0)
        value = decode_result(described.value, buffers, None, connection.name, limit)
        values = remote.checked(np.asarray(value), remote.shape)
    attributes, encoding = described.attributes, _encoding(described)
    if values is not None:
        return _StoredVariable(described.dimensions, values, attributes, encoding)
    lazy = indexing.LazilyIndexedArray(FederatedBackendArray(remote))
    return _StoredVariable(described.dimensions, lazy, attributes, encoding)


def _remote(
    connection: SiteConnection,
    description: DatasetDescription,
    name: str,
    described: VariableDescription,
) -> RemoteVariable:
    if described.dtype.startswith("object:"):
        dtype = np.dtype(object)
    else:
        dtype = decode_dtype(described.dtype)
    if len(described.dimensions) != len(described.shape):
        raise ValueError(f"variable {name!r} does not have one size for every dimension")
    source = SourceReference(connection.name, description.name, description.version, name)
    # Nothing leaves of what only functions read; else what is not told has no limit.
    limit = 0 if description.egress.tier == "functions-only" else description.egress.limit
    return RemoteVariable(connection, source, described.shape, dtype, limit, described.content)


def _encoding(described: VariableDescription) -> dict[str, Any]:
    """Give the encoding the types that plain data on the wire does not have."""
    encoding = dict(described.encoding)
    if isinstance(encoding.get("dtype"), str):
        try:
            stored_as = encoding["dtype"]
            encoding["dtype"] = str if stored_as == "str" else decode_dtype(stored_as)
        except RequestRefused:
            # How texts are stored, for example; good to know, and no reason not to open it.
            del encoding["dtype"]
    for name in ("chunks", "chunksizes", "original_shape", "shards"):
        if isinstance(encoding.get(name), list):
            encoding[name] = tuple(encoding[name])
    stored = encoding.get("dtype")
    for name in ("_FillValue", "missing_value"):
        if isinstance(stored, np.dtype) and stored.kind in "iuf":
            number = encoding.get(name)
            if isinstance(number, int | float) and not isinstance(number, bool):
                encoding[name] = _cast(number, stored)
    if described.chunks is not None and "preferred_chunks" not in encoding:
        encoding["preferred_chunks"] = dict(
            zip(described.dimensions, described.chunks, strict=True)
        )
    return encoding


def _cast(number: float, dtype: np.dtype) -> Any:
    try:
        return dtype.type(number)
    except (OverflowError, ValueError):
        return number


def _dataset_encoding(description: DatasetDescription) -> dict[str, Any]:
    encoding = dict(description.encoding)
    if isinstance(encoding.get("unlimited_dims"), list):
        encoding["unlimited_dims"] = set(encoding["unlimited_dims"])
    return encoding
