"""Stored variables as arrays, and as xarray's lazy arrays.

A `RemoteVariable` knows which stored variable it is (`source`) and how to reach
its site.  The planner asks it for the former; any other Dask scheduler indexes
it, in whichever process it runs, and gets just that part over HTTPS.  Values
arrive decoded: the site's xarray did that.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from xarray.backends import BackendArray
from xarray.core import indexing

from federated_dask.client import loop
from federated_dask.client.connection import SiteConnection
from federated_dask.client.indexes import Index, expand
from federated_dask.errors import RequestRefused
from federated_dask.planner.sources import SourceReference
from federated_dask.protocol.messages import Content

__all__ = ["FederatedBackendArray", "RemoteVariable", "remote_variable_of"]

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
    content : Content, optional
        What the site tells of its values, for the planner's estimates.

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
        content: Content | None = None,
    ) -> None:
        self.egress_limit = egress_limit
        self.content = content
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
        return self.checked(await self._fetch(index, shape), shape)

    def checked(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Give a part that came, if it is what was described.

        Raises
        ------
        RequestRefused
            If its shape or dtype is another.
        """
        if array.shape != shape or array.dtype != self.dtype:
            raise RequestRefused(
                f"Variable {self.source.variable!r} was described with shape {shape} and dtype "
                f"{self.dtype}, but came with {array.shape} and {array.dtype}.",
                site=self.source.site,
                hint="Open the dataset again; if it happens again, tell the site's operator.",
            )
        return array

    async def _fetch(self, index: Index, shape: tuple[int, ...]) -> np.ndarray:
        source = self.source
        largest = None if self.dtype.hasobject else math.prod(shape) * self.dtype.itemsize + SLACK
        return await self.connection.read(
            source.dataset, source.variable, source.version, index, largest=largest
        )


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

    @property
    def content(self) -> Content | None:
        """What the site tells of the variable's values."""
        return self.variable.content

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
