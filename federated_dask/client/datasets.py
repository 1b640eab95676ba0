"""Descriptions of datasets as lazy xarray objects.

::

    DatasetDescription ──► xr.Dataset
      values sent along      in memory; index coordinates become real indexes
      everything else        LazilyIndexedArray(FederatedBackendArray(RemoteVariable))

A `RemoteVariable` knows which stored variable it is (`source`) and how to reach
its site.  The planner asks it for the former; any other Dask scheduler indexes
it, in whichever process it runs, and gets just that part over HTTPS.  Values
arrive decoded: the site's xarray did that.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike
from xarray.backends import BackendArray
from xarray.core import indexing

from federated_dask.client import loop
from federated_dask.client.connection import SiteConnection
from federated_dask.client.indexes import Index, expand
from federated_dask.client.results import announced_limit, decode_result
from federated_dask.errors import FederatedError, Reason, RequestRefused
from federated_dask.planner.sources import SourceReference
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.messages import DatasetDescription, VariableDescription

__all__ = [
    "FederatedBackendArray",
    "RemoteVariable",
    "build_dataset",
    "fetch_dataset",
    "remote_variable_of",
]

LARGEST_EAGER = 65_536
"""Elements of an object variable up to which its values are fetched at opening."""
SLACK = 4096
"""Bytes by which a reply may exceed its array."""


class RemoteVariable:
    """A stored variable of a dataset version at a site, as an array.

    Indexing fetches that part, waiting for it; any thread of any process may do
    so.  Pickled, it takes the connection's parameters along, the token too.

    Parameters
    ----------
    connection : SiteConnection
        How to reach the site.
    source : SourceReference
        Which variable it is.
    shape : tuple of int
        Its shape.
    dtype : dtype
        Its dtype; texts and cftime dates have the object dtype.
    egress_limit : int, optional
        Bytes derived from its dataset that one job may release; no limit by
        default.  The planner goes by it, the site enforces it.

    Examples
    --------
    >>> connection = SiteConnection("north", "https://north.example:8443", "secret")
    >>> source = SourceReference("north", "a1b", "9f2c", "air_temperature")
    >>> RemoteVariable(connection, source, (240, 37, 49), np.dtype("f4"))
    <RemoteVariable fed://north/a1b air_temperature (240, 37, 49) float32>
    """

    def __init__(
        self,
        connection: SiteConnection,
        source: SourceReference,
        shape: tuple[int, ...],
        dtype: np.dtype,
        egress_limit: int | None = None,
    ) -> None:
        self.egress_limit = egress_limit
        self.connection = connection
        self.source = source
        self.shape = shape
        self.dtype = dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        source = self.source
        where = f"fed://{source.site}/{source.dataset} {source.variable}"
        return f"<{type(self).__name__} {where} {self.shape} {self.dtype}>"

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __dask_tokenize__(self) -> tuple[str, str, str, str, str]:
        source = self.source
        kind = type(self).__qualname__
        return (kind, source.site, source.dataset, source.version, source.variable)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Fetch a part: integers, slices, ``...`` and 1-d arrays, each axis on its own."""
        return loop.sync(self.read(key))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("The values are at another site; an array of them is always a copy.")
        return np.asarray(self[...], dtype=dtype)

    async def read(self, key: Any) -> np.ndarray:
        """Fetch a part, on the running event loop.

        Raises
        ------
        IndexError
            If the index does not fit.
        FederatedError
            If the site does not give it, or something else than described.
        """
        index, shape = expand(key, self.shape)
        if 0 in shape:
            return np.empty(shape, self.dtype)
        return _checked(await self._fetch(index, shape), self, shape)

    async def _fetch(self, index: Index, shape: tuple[int, ...]) -> np.ndarray:
        source = self.source
        largest = None if self.dtype.hasobject else math.prod(shape) * self.dtype.itemsize + SLACK
        return await self.connection.read(
            source.dataset, source.variable, source.version, index, largest=largest
        )


def _checked(array: np.ndarray, described: RemoteVariable, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape or array.dtype != described.dtype:
        raise RequestRefused(
            f"Variable {described.source.variable!r} was described with shape {shape} and dtype "
            f"{described.dtype}, but came with {array.shape} and {array.dtype}.",
            site=described.source.site,
            hint="Open the dataset again; if it happens again, tell the site's operator.",
        )
    return array


class FederatedBackendArray(BackendArray):
    """A `RemoteVariable` for xarray's lazy indexing."""

    __slots__ = ("dtype", "shape", "variable")

    def __init__(self, variable: RemoteVariable) -> None:
        self.variable = variable
        self.shape = variable.shape
        self.dtype = variable.dtype

    @property
    def source(self) -> SourceReference:
        """Which stored variable it is."""
        return self.variable.source

    @property
    def egress_limit(self) -> int | None:
        """Bytes derived from its dataset that one job may release."""
        return self.variable.egress_limit

    def __dask_tokenize__(self) -> object:
        return self.variable.__dask_tokenize__()

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.variable,))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.variable!r})"

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self.variable.__getitem__
        )

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> Any:
        """Fetch a part for ``load_async``; the background loop talks to the site."""

        async def fetch(index: Any) -> np.ndarray:
            return await asyncio.wrap_future(loop.start(self.variable.read(index)))

        return await indexing.async_explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, fetch
        )


def remote_variable_of(data: object) -> RemoteVariable | None:
    """Give the stored variable that an xarray variable's data stands for, whole and unchanged.

    Parameters
    ----------
    data : object
        ``variable._data``: an array, or xarray's adapters around one.

    Returns
    -------
    RemoteVariable or None
        None for a part of one, for changed values and for everything else.
    """
    while isinstance(data, indexing.CopyOnWriteArray | indexing.MemoryCachedArray):
        data = data.array
    if not isinstance(data, indexing.LazilyIndexedArray):
        return None
    if not isinstance(data.array, FederatedBackendArray):
        return None
    whole = all(entry == slice(None) for entry in data.key.tuple)
    return data.array.variable if whole else None


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
        values = _checked(np.asarray(value), remote, remote.shape)
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
    limit = None if description.egress.tier == "open" else description.egress.limit or 0
    return RemoteVariable(connection, source, described.shape, dtype, limit)


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
