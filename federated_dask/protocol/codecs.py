"""Classes of libraries that may cross, each field by field.

A codec names a class, says which of its fields cross, and builds the instance
from those fields at the other end.  Field names are data of this module; what
arrives under any other name is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgspec

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol.operation_names import FLOX_FUNCTIONS, FLOX_KEYWORDS

__all__ = ["from_fields", "to_fields"]


LARGEST_POOL = 64
PART = 2**16
"""Coordinates that are looked at at once."""
MOST_DATES = 100_000
"""Dates of an index with a frequency, of which pandas makes as many to compare them."""
MOST_DIMENSIONS = 32
"""Axes of a sparse array; the package `sparse` itself has no bound."""


class Codec(msgspec.Struct, frozen=True):
    """How instances of one class cross."""

    name: str
    cls: type
    to_fields: Callable[[Any], dict[str, object]]
    from_fields: Callable[[dict[str, Any]], Any]


def to_fields(instance: object) -> tuple[str, dict[str, object]] | None:
    """Codec name and fields of an instance of a registered class, or None.

    Examples
    --------
    >>> import pandas as pd
    >>> to_fields(pd.RangeIndex(3))
    ('pandas.RangeIndex', {'start': 0, 'stop': 3, 'step': 1, 'name': None})
    """
    codec = _by_class().get(type(instance))
    return None if codec is None else (codec.name, codec.to_fields(instance))


def from_fields(name: str, fields: dict[str, Any]) -> Any:
    """Make an instance.

    Raises
    ------
    RequestRefused
        If the codec is not registered or the fields are not those of its class.
    """
    codec = _by_name().get(name)
    if codec is None:
        raise RequestRefused(f"No codec {name[:64]!r}.", reason=Reason.MALFORMED)
    try:
        return codec.from_fields(fields)
    except Exception as error:
        # Libraries raise whatever they like for fields that they were never meant to get.
        raise RequestRefused(
            f"The fields of a {codec.name} do not fit.", reason=Reason.MALFORMED
        ) from error


@functools.cache
def _by_name() -> dict[str, Codec]:
    found = [*_pandas(), *_numpy(), *_scipy(), *_flox(), *_pydata_sparse()]
    return {codec.name: codec for codec in found}


@functools.cache
def _by_class() -> dict[type, Codec]:
    return {codec.cls: codec for codec in _by_name().values()}


def _attributes(cls: type, name: str, fields: str) -> Codec:
    """Make a codec that copies plain attributes, without calling the class's ``__init__``."""
    names = tuple(fields.split())

    def take(instance: Any) -> dict[str, object]:
        return {field: getattr(instance, field) for field in names}

    def make(values: dict[str, Any]) -> Any:
        if set(values) != set(names):
            raise ValueError("other fields")
        instance: Any = object.__new__(cls)
        for field in names:
            setattr(instance, field, values[field])
        return instance

    return Codec(name, cls, take, make)


def _pandas() -> list[Codec]:
    import numpy as np
    import pandas as pd

    def index(fields: dict[str, Any]) -> Any:
        if fields["dtype"] not in ("", "str"):
            raise ValueError("unknown dtype of an index")
        values = _column(fields["values"])
        return pd.Index(values, dtype=fields["dtype"] or values.dtype, name=fields["name"])

    def dates(fields: dict[str, Any]) -> Any:
        values, freq = _column(fields["values"]), fields["freq"]
        if freq is not None and len(values) > MOST_DATES:
            # It is no more than a hint, which long indices go without.
            freq = None
        return pd.DatetimeIndex(values, freq=freq, name=fields["name"])

    def dtype_of(x: Any) -> str:
        if isinstance(x.dtype, np.dtype):
            return ""
        if isinstance(x.dtype, pd.StringDtype) and x.dtype.na_value is not pd.NA:
            return "str"
        raise TypeError(f"an index of dtype {x.dtype} has no wire form")

    return [
        Codec(
            "pandas.RangeIndex",
            pd.RangeIndex,
            lambda x: {"start": x.start, "stop": x.stop, "step": x.step, "name": x.name},
            lambda f: pd.RangeIndex(f["start"], f["stop"], f["step"], name=f["name"]),
        ),
        Codec(
            "pandas.Index",
            pd.Index,
            lambda x: {
                "values": x.to_numpy(),
                "dtype": dtype_of(x),
                "name": x.name,
            },
            index,
        ),
        Codec(
            "pandas.DatetimeIndex",
            pd.DatetimeIndex,
            lambda x: {
                "values": _naive(x).to_numpy(),
                "freq": x.freqstr if len(x) <= MOST_DATES else None,
                "name": x.name,
            },
            dates,
        ),
        Codec(
            "pandas.IntervalIndex",
            pd.IntervalIndex,
            lambda x: {
                "left": x.left.to_numpy(),
                "right": x.right.to_numpy(),
                "closed": x.closed,
                "name": x.name,
            },
            lambda f: pd.IntervalIndex.from_arrays(
                _column(f["left"]), _column(f["right"]), closed=f["closed"], name=f["name"]
            ),
        ),
    ]


def _column(values: Any) -> Any:
    """Return the values of an index, which pandas copies: nothing that repeats itself unstored."""
    import numpy as np

    if not isinstance(values, np.ndarray) or values.ndim != 1:
        raise ValueError("the values of an index are a row")
    if values.size > 1 and values.strides[0] == 0:
        raise ValueError("the values of an index repeat themselves")
    return values


def _naive(index: Any) -> Any:
    if index.tz is not None:
        raise TypeError("an index with a time zone has no wire form")
    return index


def _numpy() -> list[Codec]:
    import numpy as np
    from numpy.random import SeedSequence

    def make(fields: dict[str, Any]) -> SeedSequence:
        entropy, spawn_key, pool = fields["entropy"], fields["spawn_key"], fields["pool_size"]
        words = entropy if isinstance(entropy, list | tuple) else (entropy,)
        if type(spawn_key) is not tuple or not all(type(x) is int for x in (*words, *spawn_key)):
            raise ValueError("a seed is made of integers")
        if type(pool) is not int or not 4 <= pool <= LARGEST_POOL:
            raise ValueError("a pool of another size")
        return SeedSequence(entropy, spawn_key=spawn_key, pool_size=pool)

    def take(seed: SeedSequence) -> dict[str, object]:
        entropy = seed.entropy
        return {"entropy": entropy, "spawn_key": seed.spawn_key, "pool_size": seed.pool_size}

    def matrix(fields: dict[str, Any]) -> np.matrix:
        array = fields["array"]
        if type(array) is not np.ndarray or array.ndim != 2:
            raise ValueError("a matrix has two dimensions")
        return np.asmatrix(array)

    return [
        Codec("numpy.random.SeedSequence", SeedSequence, take, make),
        Codec("numpy.matrix", np.matrix, lambda x: {"array": np.asarray(x)}, matrix),
        # What a reduction of masked values gives where all are masked.
        Codec("numpy.ma.masked", type(np.ma.masked), lambda _: {}, lambda _: np.ma.masked),
    ]


def _scipy() -> list[Codec]:
    from scipy import sparse

    return [
        _compressed(f"scipy.sparse.{cls.__name__}", cls)
        for cls in (sparse.csc_array, sparse.csc_matrix, sparse.csr_array, sparse.csr_matrix)
    ]


def _compressed(name: str, cls: type) -> Codec:
    """Make the codec of a sparse array in compressed rows or columns."""
    import numpy as np

    def take(instance: Any) -> dict[str, object]:
        if instance.ndim != 2:
            raise TypeError("a sparse array that is not two-dimensional has no wire form")
        parts = {part: getattr(instance, part) for part in ("data", "indices", "indptr")}
        return {**parts, "shape": tuple(map(int, instance.shape))}

    def make(fields: dict[str, Any]) -> Any:
        parts = fields["data"], fields["indices"], fields["indptr"]
        for part, kinds in zip(parts, ("biufc", "i", "i"), strict=True):
            if type(part) is not np.ndarray or part.ndim != 1 or part.dtype.kind not in kinds:
                raise ValueError("a part of a sparse array is no row of numbers")
            if part.size > 1 and part.strides[0] == 0:
                raise ValueError("a part of a sparse array repeats itself")
        if type(fields["shape"]) is not tuple or len(fields["shape"]) != 2:
            raise ValueError("a sparse array has two dimensions")
        instance = cls(parts, shape=fields["shape"])
        # scipy's compiled code trusts the indices.
        instance.check_format(full_check=True)
        return instance

    return Codec(name, cls, take, make)


def _pydata_sparse() -> list[Codec]:
    """Make the codec of `sparse.COO`, where that package is installed."""
    import numpy as np

    from federated_dask.protocol.wrappers import pydata_sparse

    sparse = pydata_sparse()
    if sparse is None:
        return []

    def take(instance: Any) -> dict[str, object]:
        fill_value = np.asarray(instance.fill_value, dtype=instance.dtype)[()]
        parts = {"coords": np.asarray(instance.coords), "data": np.asarray(instance.data)}
        return {**parts, "shape": tuple(map(int, instance.shape)), "fill_value": fill_value}

    def make(fields: dict[str, Any]) -> Any:
        coords, data, shape = fields["coords"], fields["data"], fields["shape"]
        fill_value = fields["fill_value"]
        _check_part(coords, 2, "iu")
        _check_part(data, 1, "biufc")
        _check_shape(shape)
        if coords.shape != (len(shape), len(data)):
            raise ValueError("coordinates do not fit shape and data")
        if not isinstance(fill_value, np.generic) or fill_value.dtype != data.dtype:
            raise ValueError("the value of what is not stored has another type")
        _check_coordinates(coords, shape)
        return sparse.COO(
            coords, data, shape=shape, has_duplicates=False, sorted=True, fill_value=fill_value
        )

    return [Codec("sparse.COO", sparse.COO, take, make)]


def _check_part(part: object, ndim: int, kinds: str) -> None:
    import numpy as np

    if type(part) is not np.ndarray or part.ndim != ndim or part.dtype.kind not in kinds:
        raise ValueError("a part of a sparse array holds something else")
    if not part.flags.c_contiguous and not part.flags.f_contiguous:
        raise ValueError("a part of a sparse array repeats itself")


def _check_shape(shape: object) -> None:
    if type(shape) is not tuple or len(shape) > MOST_DIMENSIONS:
        raise ValueError("no shape of a sparse array")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("no shape of a sparse array")


def _check_coordinates(coords: Any, shape: tuple[int, ...]) -> None:
    """Raise unless each is in range, in order, and there once: compiled code trusts them."""
    import numpy as np

    count = coords.shape[1]
    if not shape and count > 1:
        raise ValueError("a single number with several values")
    if not shape or not count:
        return
    # Raises where one is out of range, or the shape has more than 2**63 elements.
    last = -1
    # A part at a time: narrow coordinates would become eight times as much.
    for start in range(0, count, PART):
        part = coords[:, start : start + PART].astype(np.int64)
        flat = np.ravel_multi_index(tuple(part), shape)
        if flat[0] <= last or (np.diff(flat) <= 0).any():
            raise ValueError("coordinates out of order")
        last = int(flat[-1])


def _flox() -> list[Codec]:
    from flox.aggregations import Aggregation, Dim
    from flox.multiarray import MultiArray
    from flox.reindex import ReindexArrayType, ReindexStrategy
    from flox.xrutils import ReprObject

    plain = _attributes(
        Aggregation,
        "flox.Aggregation",
        "name preprocess reduction_type numpy chunk combine simple_combine finalize fill_value "
        "dtype_init dtype finalize_kwargs min_count new_dims_func preserves_dtype",
    )

    def aggregation(fields: dict[str, Any]) -> Any:
        # flox resolves these names with getattr on its engines, also inside of a sequence.
        for part in ("numpy", "chunk", "combine", "simple_combine"):
            functions = fields[part]
            if functions is not None and type(functions) is not tuple:
                raise ValueError("functions that are no tuple")
            if not all(_is_flox_function(function) for function in functions or ()):
                raise ValueError("an unknown function of flox")
        for part in ("preprocess", "finalize", "new_dims_func"):
            if fields[part] is not None and not callable(fields[part]):
                raise ValueError("a step that is no function")
        if not set(fields["finalize_kwargs"] or ()) <= FLOX_KEYWORDS:
            raise ValueError("an unknown keyword of flox")
        return plain.from_fields(fields)

    return [
        Codec(plain.name, plain.cls, plain.to_fields, aggregation),
        Codec(
            "flox.ReindexStrategy",
            ReindexStrategy,
            lambda x: {"blockwise": x.blockwise, "array_type": x.array_type.name},
            lambda f: ReindexStrategy(
                blockwise=f["blockwise"], array_type=ReindexArrayType[f["array_type"]]
            ),
        ),
        Codec(
            "flox.ReindexArrayType",
            ReindexArrayType,
            lambda x: {"name": x.name},
            lambda f: ReindexArrayType[f["name"]],
        ),
        Codec("flox.ReprObject", ReprObject, lambda x: {"value": repr(x)}, _repr_object),
        _attributes(Dim, "flox.Dim", "values name"),
        # The partial of a variance: sum of squared deviations, sum and count.
        Codec(
            "flox.MultiArray",
            MultiArray,
            lambda x: {"arrays": tuple(x.arrays)},
            lambda f: MultiArray(_alike(f["arrays"])),
        ),
    ]


def _alike(arrays: Any) -> Any:
    import numpy as np

    if type(arrays) is not tuple or not arrays:
        raise ValueError("no tuple of arrays")
    if not all(type(each) is np.ndarray and each.shape == arrays[0].shape for each in arrays):
        raise ValueError("arrays of different shapes")
    return arrays


def _is_flox_function(function: object) -> bool:
    if isinstance(function, str):
        return function in FLOX_FUNCTIONS
    return function is None or callable(function)


def _repr_object(fields: dict[str, Any]) -> Any:
    from flox.xrdtypes import NA

    if repr(NA) != fields["value"]:
        raise ValueError("unknown sentinel")
    return NA
