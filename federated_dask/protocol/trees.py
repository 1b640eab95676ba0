"""Trees of structs that stand for values on the wire; see `federated_dask.protocol.values`."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from federated_dask.protocol.dtypes import DType

__all__ = [
    "ArrayValue",
    "BytesValue",
    "CFTimeValue",
    "ComplexValue",
    "DTypeValue",
    "DictValue",
    "InstanceValue",
    "LargeIntegerValue",
    "ListValue",
    "MaskedValue",
    "ObjectArrayValue",
    "OperationValue",
    "PartialValue",
    "ScalarValue",
    "SliceValue",
    "Tagged",
    "TextArrayValue",
    "TimeDeltaValue",
    "TupleValue",
    "Value",
]


class Tagged(msgspec.Struct, frozen=True, array_like=True, tag_field="kind"):
    """Base of the structs of a value tree."""


class ArrayValue(Tagged, frozen=True, array_like=True, tag="array"):
    """An n-dimensional array of plain data.

    `stored_shape` differs from `shape` where the array repeats itself along an
    axis without storing it (stride 0): there it is 1.
    """

    dtype: DType
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    fortran: bool
    buffer: int


class ScalarValue(Tagged, frozen=True, array_like=True, tag="scalar"):
    """A numpy scalar."""

    dtype: DType
    data: bytes


class MaskedValue(Tagged, frozen=True, array_like=True, tag="masked"):
    """A numpy masked array."""

    data: Value
    mask: Value
    fill_value: Value


class TextArrayValue(Tagged, frozen=True, array_like=True, tag="texts"):
    """An object array of str, or of str and None / NaN (lengths -1 and -2)."""

    shape: tuple[int, ...]
    lengths: int
    data: int


class CFTimeValue(Tagged, frozen=True, array_like=True, tag="cftime"):
    """An object array (or one object, shape None) of cftime dates of one calendar."""

    shape: tuple[int, ...] | None
    calendar: str
    has_year_zero: bool
    buffer: int


class ObjectArrayValue(Tagged, frozen=True, array_like=True, tag="objects"):
    """Any other object array, element by element."""

    shape: tuple[int, ...]
    elements: tuple[Value, ...]


class ListValue(Tagged, frozen=True, array_like=True, tag="list"):
    """A list."""

    items: tuple[Value, ...]


class TupleValue(Tagged, frozen=True, array_like=True, tag="tuple"):
    """A tuple."""

    items: tuple[Value, ...]


class DictValue(Tagged, frozen=True, array_like=True, tag="dict"):
    """A dict; keys are values too."""

    items: tuple[tuple[Value, Value], ...]


class LargeIntegerValue(Tagged, frozen=True, array_like=True, tag="integer"):
    """An int beyond 64 bits, as hexadecimal text."""

    text: str


class ComplexValue(Tagged, frozen=True, array_like=True, tag="complex"):
    """A Python complex."""

    real: float
    imag: float


class TimeDeltaValue(Tagged, frozen=True, array_like=True, tag="timedelta"):
    """A ``datetime.timedelta``."""

    days: int
    seconds: int
    microseconds: int


class BytesValue(Tagged, frozen=True, array_like=True, tag="bytes"):
    """A bytes object."""

    data: bytes


class DTypeValue(Tagged, frozen=True, array_like=True, tag="dtype"):
    """A numpy dtype."""

    dtype: DType


class SliceValue(Tagged, frozen=True, array_like=True, tag="slice"):
    """A slice."""

    start: Value
    stop: Value
    step: Value


class OperationValue(Tagged, frozen=True, array_like=True, tag="operation"):
    """A callable of the operation table, by its exact name."""

    name: str


class PartialValue(Tagged, frozen=True, array_like=True, tag="partial"):
    """A ``functools.partial`` of an operation."""

    function: Value
    arguments: tuple[Value, ...]
    keywords: dict[str, Value]


class InstanceValue(Tagged, frozen=True, array_like=True, tag="instance"):
    """An instance of a class of the codec registry."""

    codec: str
    fields: dict[str, Value]


Value: TypeAlias = (
    bool
    | int
    | float
    | str
    | BytesValue
    | ArrayValue
    | ScalarValue
    | MaskedValue
    | TextArrayValue
    | CFTimeValue
    | ObjectArrayValue
    | ListValue
    | TupleValue
    | DictValue
    | LargeIntegerValue
    | ComplexValue
    | TimeDeltaValue
    | DTypeValue
    | SliceValue
    | OperationValue
    | PartialValue
    | InstanceValue
    | None
)
"""Any value tree."""
