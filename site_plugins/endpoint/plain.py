"""Arrays, xarray objects and tables as JSON, for callers that speak nothing else.

::

    array       [[1, 2], [3, 4]]
                {"dtype": "<f8", "shape": [2, 2], "data": [[1, 2], [3, 4]]}
                {"dtype": "<f8", "shape": [2, 2], "base64": "…"}        bytes in C order
                {"dtype": "<f8", "shape": [2, 2], "part": "name"}       in the request's part
    variable    an array, and "dims" and "attrs"
    DataArray   a variable, and "name" and "coords": {name: variable}
    Dataset     {"data_vars": {name: variable}, "coords": {name: variable}, "attrs": {}}
    DataFrame   {"columns": {name: array}, "index": array}

As `xarray.Dataset.to_dict` writes it, and dtypes beside.  In lists, a number that is
none is null, infinities are the texts "Infinity" and "-Infinity", times are texts
(ISO 8601), and a complex number is a list of two.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import numpy as np

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.frames import Buffer

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["ArrayForm", "as_json", "dumped", "kind_of", "object_from_json", "plain_array"]

ArrayForm: TypeAlias = Literal["lists", "base64", "omitted"]
"""How arrays stand in JSON: nested lists, their bytes, or only dtype and shape."""

RAW_KINDS = "biufcmM"
"""Kinds of dtypes whose bytes say all."""
INFINITIES = {math.inf: "Infinity", -math.inf: "-Infinity"}
MOST_BYTES = 64 * 2**20
"""Of arrays that are made of the lists of one argument. As many numbers as a body may have
take less; texts become as wide as the longest of them."""
MOST_AXES = 64
DATAARRAY_KEYS = {"dims", "attrs", "coords", "name", "dtype", "shape", "data", "base64", "part"}
DATASET_KEYS = {"data_vars", "coords", "attrs", "dims"}


def kind_of(obj: object) -> str:
    """Say what an object is, in the words of a function's description.

    Examples
    --------
    >>> kind_of(np.arange(3))
    'ndarray'
    """
    import pandas as pd
    import xarray as xr

    match obj:
        case xr.Dataset():
            return "dataset"
        case xr.DataArray():
            return "dataarray"
        case np.ndarray():
            return "ndarray"
        case pd.DataFrame():
            return "dataframe"
    return "value"


def as_json(obj: object, arrays: ArrayForm = "lists") -> Any:
    """Give an object in plain data that msgspec writes as JSON.

    Parameters
    ----------
    obj : object
        A result: an array, an xarray object, a DataFrame, or plain data.
    arrays : {"lists", "base64", "omitted"}, optional
        How arrays stand in it; what has no raw form is in lists all the same.

    Raises
    ------
    TypeError
        If it has no JSON form.

    Examples
    --------
    >>> as_json(np.array([1.5, np.inf]))
    {'dtype': '<f8', 'shape': [2], 'data': [1.5, 'Infinity']}
    """
    import pandas as pd
    import xarray as xr

    match obj:
        case xr.Dataset():
            return {
                "attrs": _plain(obj.attrs),
                "dims": {str(name): int(size) for name, size in obj.sizes.items()},
                "coords": _variables(obj.coords, arrays),
                "data_vars": _variables(obj.data_vars, arrays),
            }
        case xr.DataArray():
            described = _variable(obj.variable, arrays)
            return {
                "name": obj.name,
                **described,
                "coords": _variables(obj.coords, arrays),
            }
        case pd.DataFrame():
            columns = {
                str(name): plain_array(column.to_numpy(), arrays) for name, column in obj.items()
            }
            return {"columns": columns, "index": plain_array(obj.index.to_numpy(), arrays)}
        case np.ndarray():
            return plain_array(obj, arrays)
    return _plain(obj)


def _variables(items: Mapping[Any, xr.DataArray], arrays: ArrayForm) -> dict[str, Any]:
    return {str(name): _variable(item.variable, arrays) for name, item in items.items()}


def _variable(variable: xr.Variable, arrays: ArrayForm) -> dict[str, Any]:
    return {
        "dims": [str(dimension) for dimension in variable.dims],
        "attrs": _plain(variable.attrs),
        **plain_array(variable.to_numpy(), arrays),
    }


def plain_array(array: np.ndarray, arrays: ArrayForm = "lists") -> dict[str, Any]:
    """Give an array in plain data.

    Examples
    --------
    >>> plain_array(np.arange(2, dtype="<i2"), "base64")
    {'dtype': '<i2', 'shape': [2], 'base64': 'AAABAA=='}
    """
    if array.dtype.kind == "T":
        array = array.astype(object)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        # What no other language reads.
        array = array.astype("<f8")
    is_raw = array.dtype.kind in RAW_KINDS
    stored = array.astype(array.dtype.newbyteorder("<"), copy=False) if is_raw else array
    described: dict[str, Any] = {"dtype": stored.dtype.str, "shape": list(array.shape)}
    if arrays == "omitted":
        return described
    if arrays == "base64" and is_raw:
        raw = np.ascontiguousarray(stored).tobytes()
        return {**described, "base64": base64.b64encode(raw).decode()}
    return {**described, "data": _lists(array)}


def _lists(array: np.ndarray) -> Any:
    match array.dtype.kind:
        case "b" | "i" | "u" | "U":
            return array.tolist()
        case "f":
            # msgspec writes what is no number as null; infinities would be lost in it.
            infinite = np.isinf(array)
            if not infinite.any():
                return array.tolist()
            items = array.astype(object)
            items[infinite] = [INFINITIES[value] for value in array[infinite].tolist()]
            return items.tolist()
        case "M":
            texts = np.datetime_as_string(array).astype(object)
            return _with_nulls(texts, np.isnat(array))
        case "m":
            return _with_nulls(array.astype("<i8").astype(object), np.isnat(array))
        case "c":
            return _lists(np.stack([array.real, array.imag], axis=-1))
    return _plain(array.tolist())


def _with_nulls(items: np.ndarray, missing: np.ndarray) -> Any:
    # Of no dimensions, numpy gives the item itself.
    items = np.asarray(items, dtype=object)
    items[missing] = None
    return items.tolist()


def _plain(item: Any) -> Any:
    """Give an item as msgspec can write it; TypeError for what is not plain."""
    match item:
        case None | bool() | int() | str():
            return item
        case float():
            return INFINITIES.get(item, item)
        case complex():
            return [_plain(item.real), _plain(item.imag)]
        case bytes():
            return item.decode("utf-8", "backslashreplace")
        case np.ndarray():
            return _lists(item)
        case np.generic():
            return _lists(np.asarray(item))
        case datetime.datetime() | datetime.date() | datetime.time():
            return item.isoformat()
        case datetime.timedelta():
            return item.total_seconds()
        case Mapping():
            return {str(key): _plain(value) for key, value in item.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(value) for value in item]
    if hasattr(item, "isoformat"):
        # Dates of cftime.
        return item.isoformat()
    if isinstance(item, np.dtype):
        return item.str
    raise TypeError(f"a {type(item).__name__} has no JSON form")


class _Argument:
    """Reads one argument; errors name it."""

    def __init__(self, name: str, parts: Mapping[str, Buffer]) -> None:
        self.name = name
        self.parts = parts
        self.nbytes = 0

    def refuse(self, what: str) -> RequestRefused:
        return RequestRefused(
            f"Argument {self.name[:128]!r} {what}.",
            reason=Reason.INVALID_ARGUMENT,
            hint="GET /docs describes how arrays and datasets are written in JSON.",
        )

    def mapping(self, given: Any, what: str) -> dict[str, Any]:
        if given is None:
            return {}
        if not isinstance(given, dict):
            raise self.refuse(f"needs an object as {what}")
        return given

    def array(self, given: Any) -> np.ndarray:
        if not isinstance(given, dict):
            return self.lists(given, None)
        dtype = None
        if given.get("dtype") is not None:
            if not isinstance(given["dtype"], str):
                raise self.refuse("has a dtype that is no text")
            dtype = decode_dtype(given["dtype"])
            if dtype.kind not in RAW_KINDS + "US":
                raise self.refuse(f"has the dtype {dtype.str}, which has no JSON form")
        if "base64" in given or "part" in given:
            return self.raw(given, dtype)
        if "data" not in given:
            raise self.refuse('needs an array: a list, or an object with "data" or "base64"')
        array = self.lists(given["data"], dtype)
        shape = given.get("shape")
        if shape is not None and list(array.shape) != shape:
            # Lists do not tell the lengths of axes behind an empty one.
            if array.size or not isinstance(shape, list):
                raise self.refuse("has another shape than its data")
            array = self.reshaped(array, shape)
        return array

    def raw(self, given: dict[str, Any], dtype: np.dtype | None) -> np.ndarray:
        if dtype is None or dtype.kind not in RAW_KINDS:
            raise self.refuse("needs the dtype of its bytes")
        data: Buffer
        if "base64" in given:
            try:
                data = base64.b64decode(given["base64"], validate=True)
            except (binascii.Error, TypeError, ValueError):
                raise self.refuse("is no base64") from None
        else:
            name = given["part"]
            if not isinstance(name, str) or name not in self.parts:
                raise self.refuse("names a part that the request does not have")
            data = self.parts[name]
        if len(data) % dtype.itemsize:
            raise self.refuse(f"has {len(data)} bytes, which are no whole {dtype.str}")
        shape = given.get("shape")
        return self.reshaped(
            np.frombuffer(data, dtype), [len(data) // dtype.itemsize] if shape is None else shape
        )

    def reshaped(self, array: np.ndarray, shape: Any) -> np.ndarray:
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise self.refuse("needs a shape of whole numbers")
        if len(shape) > MOST_AXES:
            raise self.refuse("has a shape with too many axes")
        if math.prod(shape) != array.size:
            raise self.refuse(f"has {array.size} elements, which do not make its shape")
        try:
            return array.reshape(shape)
        except ValueError:
            raise self.refuse("has a shape with too many axes") from None

    def bound(self, data: Any, dtype: np.dtype | None) -> None:
        """Refuse lists that would become too large an array; numpy does not ask before."""
        count = longest = 0
        stack = [data]
        while stack:
            item = stack.pop()
            if isinstance(item, list):
                stack.extend(item)
                continue
            count += 1
            if isinstance(item, str):
                # Beside texts, numbers become texts.
                longest = max(longest, len(item), 32)
        # A dtype of texts without a length takes that of the longest, too.
        width = max(16, (dtype.itemsize if dtype is not None else 0) or 4 * longest)
        self.nbytes += count * width
        if self.nbytes > MOST_BYTES:
            raise RequestRefused(
                f"Argument {self.name[:128]!r} would take {self.nbytes} bytes as arrays; lists "
                f"may make {MOST_BYTES}.",
                reason=Reason.LIMIT_EXCEEDED,
                hint="Send arrays as raw parts; shorten the longest text, to which all are padded.",
            )

    def lists(self, data: Any, dtype: np.dtype | None) -> np.ndarray:
        self.bound(data, dtype)
        try:
            if dtype is not None and dtype.kind == "c":
                pairs = np.array(data, dtype="<f8")
                if not pairs.size:
                    return np.empty(pairs.shape, dtype)
                if pairs.shape[-1:] != (2,):
                    raise self.refuse("needs lists of two for complex numbers")
                return pairs.view("<c16")[..., 0].astype(dtype)
            if dtype is not None:
                return np.array(data, dtype=dtype)
            array = np.array(data)
            if array.dtype.kind in "biuf" or (array.dtype.kind == "U" and array.ndim):
                return array
            if array.dtype.kind == "O":
                # Numbers, and null among them.
                return np.array(data, dtype="<f8")
        except (ValueError, TypeError, OverflowError, RecursionError):
            pass
        raise self.refuse("is no array: lists of equal lengths of numbers, or of texts")

    def variable(self, given: Any) -> xr.Variable:
        import xarray as xr

        described = self.mapping(given, "variable")
        array = self.array(described)
        dimensions = described.get("dims", [])
        if not isinstance(dimensions, list) or not all(isinstance(d, str) for d in dimensions):
            raise self.refuse("needs the names of its dimensions as a list")
        if len(dimensions) != array.ndim or len(set(dimensions)) != array.ndim:
            raise self.refuse(f"has {len(dimensions)} dimensions for {array.ndim} axes")
        return xr.Variable(dimensions, array, self.mapping(described.get("attrs"), "attrs"))

    def variables(self, given: Any, what: str) -> dict[str, xr.Variable]:
        return {name: self.variable(item) for name, item in self.mapping(given, what).items()}

    def dataset(self, given: Any) -> xr.Dataset:
        import xarray as xr

        described = self.mapping(given, "dataset")
        if unknown := sorted(described.keys() - DATASET_KEYS):
            raise self.refuse(f"has the unknown entry {unknown[0][:64]!r}")
        try:
            return xr.Dataset(
                self.variables(described.get("data_vars"), "data_vars"),
                coords=self.variables(described.get("coords"), "coords"),
                attrs=self.mapping(described.get("attrs"), "attrs"),
            )
        except ValueError as error:
            raise self.refuse(f"contradicts itself: {str(error)[:200]}") from None

    def dataarray(self, given: Any) -> xr.DataArray:
        import xarray as xr

        described = self.mapping(given, "DataArray")
        if unknown := sorted(described.keys() - DATAARRAY_KEYS):
            raise self.refuse(f"has the unknown entry {unknown[0][:64]!r}")
        name = described.get("name")
        if name is not None and not isinstance(name, str):
            raise self.refuse("has a name that is no text")
        try:
            return xr.DataArray(
                self.variable(described),
                coords=self.variables(described.get("coords"), "coords"),
                name=name,
            )
        except ValueError as error:
            raise self.refuse(f"contradicts itself: {str(error)[:200]}") from None

    def dataframe(self, given: Any) -> pd.DataFrame:
        import pandas as pd

        described = self.mapping(given, "table")
        columns = {
            name: self.array(column)
            for name, column in self.mapping(described.get("columns"), "columns").items()
        }
        given_index = described.get("index")
        index = None if given_index is None else self.array(given_index)
        if any(column.ndim != 1 for column in (*columns.values(), index) if column is not None):
            raise self.refuse("has a column that is no list")
        try:
            return pd.DataFrame(columns, index=index)
        except ValueError:
            raise self.refuse("has columns of different lengths") from None


def object_from_json(
    given: Any, kind: str, name: str, parts: Mapping[str, Buffer] | None = None
) -> Any:
    """Make an argument of its JSON form.

    Parameters
    ----------
    given
        Decoded JSON.
    kind : {"value", "dataset", "dataarray", "ndarray", "dataframe"}
        What the function's parameter is.
    name : str
        Name of the argument, for errors.
    parts : mapping of str to bytes-like, optional
        Raw parts of the request.

    Raises
    ------
    RequestRefused
        With reason ``invalid_argument``.

    Examples
    --------
    >>> object_from_json([1, None], "ndarray", "x")
    array([ 1., nan])
    """
    argument = _Argument(name, parts or {})
    match kind:
        case "dataset":
            return argument.dataset(given)
        case "dataarray":
            return argument.dataarray(given)
        case "ndarray":
            return argument.array(given)
        case "dataframe":
            return argument.dataframe(given)
    return given


def dumped(plain: Any) -> bytes:
    """Write plain data as JSON."""
    return msgspec.json.encode(plain)
