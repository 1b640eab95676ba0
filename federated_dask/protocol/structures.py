"""Arguments and results of functions: arrays, xarray objects and tables, taken apart.

::

    xr.Dataset ── take_apart ──► DatasetObject            + the dask arrays of its variables
                                   small variables: Value     (one part for each chunk)
                                   lazy or large: Parts
               ◄── put_together ── DatasetObject, and a way to make an array of its parts

A *part* is one chunk, a value of its own: a result that a site holds under a lease, or
that a graph computes.  The parts of one object are numbered through, in the order of
its variables, each array's in C order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta

from federated_dask.errors import FederatedError, Reason, RequestRefused
from federated_dask.protocol.dtypes import DType, decode_dtype, encode_dtype
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.trees import Value
from federated_dask.protocol.values import Resolver, ValueDecoder, encode_value

__all__ = [
    "ArrayObject",
    "DataArrayObject",
    "DatasetObject",
    "Object",
    "Parts",
    "PlainObject",
    "TableObject",
    "VariableObject",
    "array_of",
    "check_parts",
    "parts_of",
    "put_together",
    "take_apart",
]

MOST_PARTS = 1_000_000
DATA = "data"
"""Name under which the array of a DataArray crosses; that of the DataArray itself is free."""


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """An array whose chunks are values of their own."""

    dtype: DType
    chunks: tuple[tuple[Annotated[int, Meta(ge=0)], ...], ...]
    """As those of a dask array."""
    first: Annotated[int, Meta(ge=0)]
    """Number of its first part among those of the object."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(sum(lengths) for lengths in self.chunks)

    @property
    def count(self) -> int:
        """Number of its parts."""
        return math.prod(len(lengths) for lengths in self.chunks)

    def index_of(self, number: int) -> tuple[int, ...]:
        """Give the position of a part (0 to `count` - 1) in the grid of chunks.

        Examples
        --------
        >>> Parts(dtype="<f8", chunks=((2, 2), (3, 3, 1)), first=0).index_of(4)
        (1, 1)
        """
        grid = tuple(len(lengths) for lengths in self.chunks)
        return tuple(int(i) for i in np.unravel_index(number, grid)) if grid else ()

    def shape_of(self, number: int) -> tuple[int, ...]:
        """Give the shape of a part."""
        index = self.index_of(number)
        return tuple(lengths[i] for lengths, i in zip(self.chunks, index, strict=True))


class PlainObject(msgspec.Struct, frozen=True, kw_only=True, tag="plain"):
    """Anything that is a value as it stands."""

    value: Value


class ArrayObject(msgspec.Struct, frozen=True, kw_only=True, tag="array"):
    """An array in parts."""

    parts: Parts


class VariableObject(msgspec.Struct, frozen=True, kw_only=True):
    """A variable of an xarray object: its values, or its parts."""

    dimensions: tuple[str, ...]
    value: Value = None
    parts: Parts | None = None
    attributes: Value = None
    encoding: Value = None


class DatasetObject(msgspec.Struct, frozen=True, kw_only=True, tag="dataset"):
    """An `xarray.Dataset`."""

    variables: dict[str, VariableObject]
    coordinates: tuple[str, ...] = ()
    indexed: tuple[str, ...] = ()
    """Coordinates that have an index."""
    attributes: Value = None


class DataArrayObject(msgspec.Struct, frozen=True, kw_only=True, tag="dataarray"):
    """An `xarray.DataArray`: a dataset whose variable `DATA` it is."""

    content: DatasetObject
    name: str | None = None


class TableObject(msgspec.Struct, frozen=True, kw_only=True, tag="table"):
    """A `pandas.DataFrame`: its columns, one after the other."""

    columns: tuple[str, ...]
    values: tuple[Value, ...]
    index: Value


Object: TypeAlias = PlainObject | ArrayObject | DatasetObject | DataArrayObject | TableObject


def take_apart(
    obj: object,
    buffers: list[Buffer],
    resolver: Resolver | None = None,
    *,
    is_part: Callable[[Any], bool] | None = None,
) -> tuple[Object, list[Any]]:
    """Take an argument or result apart.

    Parameters
    ----------
    obj : object
        A value, numpy or dask array, xarray object or DataFrame.
    buffers : list of bytes-like
        Buffers of the values are appended here.
    resolver : Resolver, optional
        As in `encode_value`.
    is_part : callable, optional
        Says of an array whether it crosses in parts; by default dask arrays do.
        A numpy array that does is one part.

    Returns
    -------
    described : Object
    arrays : list of array
        Those that cross in parts, in the order of their parts.

    Raises
    ------
    TypeError
        If it has no wire form.

    Examples
    --------
    >>> import dask.array as da
    >>> take_apart(da.ones((4, 2), chunks=2), [])[0].parts.chunks
    ((2, 2), (2,))
    """
    return _Taker(buffers, resolver, is_part or _is_lazy).take(obj)


def _is_lazy(array: Any) -> bool:
    return hasattr(array, "dask") and hasattr(array, "chunks")


class _Taker:
    def __init__(
        self, buffers: list[Buffer], resolver: Resolver | None, is_part: Callable[[Any], bool]
    ) -> None:
        self.buffers = buffers
        self.resolver = resolver
        self.is_part = is_part
        self.arrays: list[Any] = []
        self.count = 0

    def take(self, obj: object) -> tuple[Object, list[Any]]:
        import pandas as pd
        import xarray as xr

        described: Object
        if isinstance(obj, xr.DataArray):
            content = self.dataset(obj._to_temp_dataset().rename({_temporary(obj): DATA}))
            described = DataArrayObject(content=content, name=_name(obj.name))
        elif isinstance(obj, xr.Dataset):
            described = self.dataset(obj)
        elif isinstance(obj, pd.DataFrame):
            described = self.table(obj)
        elif isinstance(obj, np.ndarray) or _is_lazy(obj):
            parts = self.parts(obj)
            value = None if parts is not None else self.value(obj)
            described = ArrayObject(parts=parts) if parts is not None else PlainObject(value=value)
        else:
            described = PlainObject(value=self.value(obj))
        return described, self.arrays

    def dataset(self, obj: Any) -> DatasetObject:
        import pandas as pd

        if any(isinstance(index, pd.MultiIndex) for index in obj.indexes.values()):
            raise TypeError("an xarray object with a MultiIndex has no wire form: reset_index()")
        return DatasetObject(
            variables={_key(name): self.variable(obj.variables[name]) for name in obj.variables},
            coordinates=tuple(map(str, obj.coords)),
            indexed=tuple(map(str, obj.xindexes)),
            attributes=self.mapping(obj.attrs),
        )

    def variable(self, variable: Any) -> VariableObject:
        data = variable._data if _is_lazy(variable._data) else variable.to_numpy()
        parts = self.parts(data)
        return VariableObject(
            dimensions=tuple(_key(dimension) for dimension in variable.dims),
            value=None if parts is not None else self.value(data),
            parts=parts,
            attributes=self.mapping(variable.attrs),
            encoding=self.mapping(variable.encoding),
        )

    def parts(self, array: Any) -> Parts | None:
        if not self.is_part(array):
            return None
        lengths = array.chunks if _is_lazy(array) else tuple((size,) for size in array.shape)
        if any(math.isnan(length) for axis in lengths for length in axis):
            raise TypeError("an array of unknown chunk sizes has no wire form: persist() it first")
        chunks = tuple(tuple(int(length) for length in axis) for axis in lengths)
        described = Parts(dtype=encode_dtype(array.dtype), chunks=chunks, first=self.count)
        self.count += described.count
        self.arrays.append(array)
        return described

    def table(self, frame: Any) -> TableObject:
        values = []
        for number, dtype in enumerate(frame.dtypes):
            column = frame.iloc[:, number].to_numpy()
            if not isinstance(dtype, np.dtype) and column.dtype != object:
                raise TypeError(f"a column of dtype {dtype} has no wire form: convert it first")
            values.append(self.value(column))
        columns = tuple(_key(name) for name in frame.columns)
        return TableObject(columns=columns, values=tuple(values), index=self.value(frame.index))

    def value(self, obj: object) -> Value:
        return encode_value(obj, self.buffers, self.resolver)

    def mapping(self, items: Mapping[Any, Any]) -> Value:
        """Encode attributes or encoding: what is no plain data stays behind."""
        taken = {}
        for name, item in items.items():
            try:
                # Buffers of what turns out not to be plain must not stay.
                encode_value(item, [], None)
            except TypeError:
                continue
            taken[str(name)] = item
        return self.value(taken) if taken else None


def _temporary(obj: Any) -> Any:
    [name] = obj._to_temp_dataset().data_vars
    return name


def _key(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"names are texts; {name!r:.50} has no wire form")
    return name


def _name(name: object) -> str | None:
    return None if name is None else _key(name)


def parts_of(described: Object) -> Iterator[Parts]:
    """Give the arrays of an object that are in parts, in the order of their parts."""
    if isinstance(described, ArrayObject):
        yield described.parts
    elif isinstance(described, DataArrayObject):
        yield from parts_of(described.content)
    elif isinstance(described, DatasetObject):
        for variable in described.variables.values():
            if variable.parts is not None:
                yield variable.parts


def check_parts(described: Object, count: int) -> None:
    """Check that an object has `count` parts, numbered through.

    Raises
    ------
    RequestRefused
        If not.
    """
    expected = 0
    for parts in parts_of(described):
        # Each is looked at before products are formed of many.
        if any(len(axis) > MOST_PARTS for axis in parts.chunks) or parts.count > MOST_PARTS:
            raise RequestRefused("An object has too many parts.", reason=Reason.LIMIT_EXCEEDED)
        if parts.first != expected:
            break
        expected += parts.count
    else:
        if expected == count:
            return
    raise RequestRefused("The parts of an object do not add up.", reason=Reason.MALFORMED)


def put_together(
    described: Object,
    buffers: Sequence[bytearray],
    make: Callable[[Parts], Any],
    resolver: Resolver | None = None,
) -> Any:
    """Make the object that a description stands for.

    Parameters
    ----------
    described : Object
        From `take_apart` at the other end.
    buffers : sequence of bytearray
        Buffers of its values.
    make : callable
        From `Parts` to an array, lazy or not; see `array_of`.
    resolver : Resolver, optional
        As in `decode_value`.

    Raises
    ------
    RequestRefused
        If the description contradicts itself.
    """
    try:
        return _Maker(buffers, make, resolver).make_object(described)
    except FederatedError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise RequestRefused(
            f"The description of an object contradicts itself: {str(error)[:200]}.",
            reason=Reason.MALFORMED,
        ) from error


class _Maker:
    def __init__(
        self,
        buffers: Sequence[bytearray],
        make: Callable[[Parts], Any],
        resolver: Resolver | None,
    ) -> None:
        self.make = make
        self.decoder = ValueDecoder(buffers, resolver)

    def make_object(self, described: Object) -> Any:
        match described:
            case PlainObject():
                return self.value(described.value)
            case ArrayObject():
                return self.make(described.parts)
            case DatasetObject():
                return self.dataset(described)
            case DataArrayObject():
                return self.dataset(described.content)[DATA].rename(described.name)
            case TableObject():
                return self.table(described)

    def dataset(self, described: DatasetObject) -> Any:
        import xarray as xr

        variables = {name: self.variable(each) for name, each in described.variables.items()}
        indexed = {name: variables[name] for name in described.indexed}
        # Coordinates that name a dimension would get an index at once, wanted or not.
        bare = {name: variables[name] for name in described.coordinates if name not in indexed}
        made = xr.Dataset(
            {name: each for name, each in variables.items() if name not in described.coordinates},
            coords=xr.Coordinates(bare, indexes={}),
            attrs=self.mapping(described.attributes),
        )
        made = made.assign_coords(xr.Coordinates(indexed)) if indexed else made
        return made.set_coords(list(described.coordinates))

    def variable(self, described: VariableObject) -> Any:
        import xarray as xr

        if described.parts is not None:
            data = self.make(described.parts)
        else:
            data = self.value(described.value)
            if not isinstance(data, np.ndarray | np.generic):
                data = np.asarray(data, dtype=object)
        return xr.Variable(
            described.dimensions,
            data,
            self.mapping(described.attributes),
            self.mapping(described.encoding),
        )

    def table(self, described: TableObject) -> Any:
        import pandas as pd

        index = self.value(described.index)
        if not isinstance(index, pd.Index) or len(described.columns) != len(described.values):
            raise ValueError("a table without an index, or with other columns than values")
        columns = [self.value(value) for value in described.values]
        if not all(isinstance(c, np.ndarray) and c.shape == (len(index),) for c in columns):
            raise ValueError("a column that does not fit the index")
        made = pd.DataFrame(dict(enumerate(columns)), index=index, columns=range(len(columns)))
        made.columns = pd.Index(described.columns)
        return made

    def mapping(self, value: Value) -> dict[str, Any]:
        items = self.value(value)
        if items is None:
            return {}
        if not isinstance(items, dict):
            raise ValueError("attributes that are no mapping")
        return items

    def value(self, value: Value) -> Any:
        return self.decoder.decode(value)


def array_of(parts: Parts, values: Sequence[Any], name: str) -> Any:
    """Make a dask array of graph nodes or values, one for each part.

    Parameters
    ----------
    parts : Parts
        The array.
    values : sequence
        What stands for its parts in a graph, in C order: arrays, or tasks and
        aliases of `dask._task_spec` whose keys are ``(name, *index)``.
    name : str
        Name of the dask array.

    Examples
    --------
    >>> parts = Parts(dtype="<f8", chunks=((2, 1),), first=0)
    >>> array_of(parts, [np.ones(2), np.zeros(1)], "x").compute()
    array([1., 1., 0.])
    """
    import dask.array as da

    if len(values) != parts.count:
        raise ValueError("an array with other parts than announced")
    graph = {(name, *parts.index_of(n)): value for n, value in enumerate(values)}
    return da.Array(graph, name, chunks=parts.chunks, dtype=decode_dtype(parts.dtype))
