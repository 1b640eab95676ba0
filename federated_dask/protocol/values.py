"""Values on the wire: plain data, arrays as raw buffers, and a few library classes.

`encode_value` turns a Python object into a tree of structs plus a list of
buffers, `decode_value` turns them back.  Nothing is pickled.  Arrays of Python
objects travel only through a codec that knows their elements: text, cftime
dates, or other values of this module one by one.  Classes of libraries travel
as an `InstanceValue`: the name of a registered class and its fields.
"""

from __future__ import annotations

import datetime
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol.compression import as_rows
from federated_dask.protocol.dtypes import DType, decode_dtype, encode_dtype, has_gaps
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.limits import LARGEST_INTEGER_BITS
from federated_dask.protocol.trees import (
    ArrayValue,
    BytesValue,
    CFTimeValue,
    ComplexValue,
    DictValue,
    DTypeValue,
    InstanceValue,
    LargeIntegerValue,
    ListValue,
    MaskedValue,
    ObjectArrayValue,
    OperationValue,
    PartialValue,
    ScalarValue,
    SliceValue,
    TextArrayValue,
    TimeDeltaValue,
    TupleValue,
    Value,
)

__all__ = [
    "HASH_MODULUS",
    "MOST_TUPLE_KEYS",
    "Resolver",
    "ValueDecoder",
    "decode_value",
    "encode_value",
    "object_kind",
]

LONG_DOUBLE = np.dtype(np.longdouble)
LONG_DOUBLE_BYTES = 10 if np.finfo(np.longdouble).nmant == 63 else LONG_DOUBLE.itemsize
INT64 = range(-(2**63), 2**63)
CFTIME_UNITS = "microseconds since 0001-01-01"
CALENDARS = frozenset(
    "360_day 365_day 366_day all_leap gregorian julian noleap proleptic_gregorian standard".split()
)
IDEALIZED = frozenset({"360_day", "365_day", "366_day", "all_leap", "noleap"})
LARGEST_ELEMENTWISE = 1_000_000
"""Python objects of one value that are encoded or decoded one by one."""
HASH_MODULUS = 2**61 - 1
"""Python's hash of a number is its remainder: larger integers with equal ones are easy to find."""
MOST_TUPLE_KEYS = 256
"""Tuples with equal hashes can be found too; with so few, even those cost next to nothing."""
FURTHEST_DATE = 100_000 * 366 * 86_400 * 10**6
"""Microseconds from year 1: cftime needs time in proportion to the distance of a date."""
UNENCODABLE = (KeyError, OverflowError, RecursionError, ValueError)
UNDECODABLE = (
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


class Resolver(Protocol):
    """What values need of the operation table and the codec registry."""

    def name_of(self, function: object) -> str | None:
        """Name of a callable of the table, or None."""

    def lookup(self, name: str) -> Any:
        """Give the callable of that name; refuses names that are not in the table."""

    def to_fields(self, instance: object) -> tuple[str, dict[str, object]] | None:
        """Codec name and fields of an instance of a registered class, or None."""

    def from_fields(self, codec: str, fields: dict[str, Any]) -> Any:
        """Make the instance; refuses codecs that are not registered."""


def encode_value(obj: object, buffers: list[Buffer], resolver: Resolver | None = None) -> Value:
    """Encode an object.

    Parameters
    ----------
    obj : object
        What is to cross.
    buffers : list of bytes-like
        Raw buffers are appended here; the tree refers to them by position.
    resolver : Resolver, optional
        Admits callables of the operation table and registered classes.

    Returns
    -------
    Value
        The tree.

    Raises
    ------
    TypeError
        If the object has no wire form.

    Examples
    --------
    >>> buffers = []
    >>> tree = encode_value({"total": np.arange(3.0), "n": 3}, buffers)
    >>> decode_value(tree, [bytearray(buffer) for buffer in buffers])
    {'total': array([0., 1., 2.]), 'n': 3}
    """
    try:
        return _Encoder(buffers, resolver).encode(obj)
    except UNENCODABLE as error:
        raise TypeError(f"{_describe(obj)} has no wire form: {error}") from error


class _Encoder:
    def __init__(self, buffers: list[Buffer], resolver: Resolver | None) -> None:
        self.buffers = buffers
        self.resolver = resolver
        self.elements = 0

    def count(self, elements: int) -> None:
        """Count what is encoded one by one, before it is."""
        self.elements += elements
        if self.elements > LARGEST_ELEMENTWISE:
            raise ValueError(f"more than {LARGEST_ELEMENTWISE} Python objects are too many")

    def buffer(self, data: np.ndarray) -> int:
        # Zero-size arrays and void-like dtypes do not cast to bytes; views do.
        flat = np.ascontiguousarray(_without_gaps(data)).reshape(-1)
        if data.dtype.char in "gG":
            # Between such numbers is memory that nobody wrote, of whoever had it before.
            flat = flat.copy()
            flat.view(np.uint8).reshape(-1, LONG_DOUBLE.itemsize)[:, LONG_DOUBLE_BYTES:] = 0
        self.buffers.append(as_rows(flat) if flat.nbytes else b"")
        return len(self.buffers) - 1

    def encode(self, obj: object) -> Value:
        if obj is None or (isinstance(obj, bool | float) and type(obj) in (bool, float)):
            return obj
        if type(obj) is str:
            # Text that is no Unicode would only be refused with the whole message.
            obj.encode()
            return obj
        if type(obj) is int:
            return obj if obj in INT64 else _large_integer(obj)
        encode = _ENCODERS.get(type(obj))
        if encode is not None:
            return encode(self, obj)
        if isinstance(obj, np.generic) and not obj.dtype.hasobject:
            # numpy gives empty texts one character of bytes.
            data = _scalar_bytes(obj) if obj.dtype.itemsize else b""
            return ScalarValue(encode_dtype(obj.dtype), data)
        if isinstance(obj, np.dtype):
            return DTypeValue(encode_dtype(obj))
        if _is_cftime(obj):
            return self.cftime(np.array([obj], dtype=object), None)
        if self.resolver is not None:
            if isinstance(obj, functools.partial):
                return self.partial(obj)
            name = self.resolver.name_of(obj)
            if name is not None:
                return OperationValue(name)
            fields = self.resolver.to_fields(obj)
            if fields is not None:
                return InstanceValue(
                    fields[0], {name: self.encode(value) for name, value in fields[1].items()}
                )
        raise TypeError(f"{_describe(obj)} has no wire form")

    def sequence(self, items: Sequence[object]) -> tuple[Value, ...]:
        self.count(len(items))
        return tuple(self.encode(item) for item in items)

    def mapping(self, items: dict[object, object]) -> DictValue:
        self.count(2 * len(items))
        _check_keys(items)
        return DictValue(
            tuple((self.encode(key), self.encode(value)) for key, value in items.items())
        )

    def partial(self, obj: functools.partial[Any]) -> PartialValue:
        keywords = {name: self.encode(value) for name, value in obj.keywords.items()}
        return PartialValue(self.encode(obj.func), self.sequence(obj.args), keywords)

    def array(self, array: np.ndarray) -> Value:
        if array.dtype.char == "O":
            return self.objects(array)
        dtype = encode_dtype(array.dtype)
        nested = array.dtype.names is not None and _holds_long_doubles(array.dtype)
        if array.dtype.hasobject or not array.dtype.itemsize or nested:
            raise TypeError(f"an array of dtype {array.dtype} has no wire form")
        stored = _without_repeats(array)
        fortran = stored.flags.f_contiguous and not stored.flags.c_contiguous
        buffer = self.buffer(stored.T if fortran else stored)
        return ArrayValue(dtype, array.shape, stored.shape, fortran, buffer)

    def masked(self, array: np.ma.MaskedArray) -> MaskedValue:
        return MaskedValue(
            self.encode(np.asarray(array.data)),
            self.encode(np.ma.getmaskarray(array)),
            self.encode(array.fill_value),
        )

    def objects(self, array: np.ndarray) -> Value:
        self.count(array.size)
        kind = object_kind(array)
        if kind == "texts":
            return self.texts(array)
        if kind == "cftime":
            return self.cftime(array, array.shape)
        return ObjectArrayValue(array.shape, tuple(self.encode(item) for item in array.flat))

    def texts(self, array: np.ndarray) -> TextArrayValue:
        encoded = [
            item.encode() if isinstance(item, str) else (-1 if item is None else -2)
            for item in array.flat
        ]
        lengths = [item if isinstance(item, int) else len(item) for item in encoded]
        data = b"".join(item for item in encoded if isinstance(item, bytes))
        where = self.buffer(np.array(lengths, dtype="<i8"))
        self.buffers.append(data)
        return TextArrayValue(array.shape, where, len(self.buffers) - 1)

    def cftime(self, array: np.ndarray, shape: tuple[int, ...] | None) -> CFTimeValue:
        import cftime

        first = array.flat[0]
        numbers = cftime.date2num(
            array, CFTIME_UNITS, calendar=first.calendar, has_year_zero=first.has_year_zero
        )
        exact = np.asarray(numbers, dtype="<i8")
        if np.abs(exact).max() > FURTHEST_DATE:
            raise ValueError("dates so far away cannot be sent")
        buffer = self.buffer(exact)
        return CFTimeValue(shape, first.calendar, bool(first.has_year_zero), buffer)


def _large_integer(number: int) -> LargeIntegerValue:
    if number.bit_length() > LARGEST_INTEGER_BITS:
        raise TypeError(f"an integer of {number.bit_length()} bits has no wire form")
    return LargeIntegerValue(hex(number))


def _check_keys(keys: Iterable[object]) -> None:
    """Refuse keys of a dict that could be made to have the same hash.

    A dict takes time in proportion to the square of such keys. Texts and bytes are hashed
    with a secret of the process; of numbers within the bounds only a few are alike.
    """
    tuples = 0
    for key in keys:
        if type(key) is tuple:
            tuples += 1
        if not _is_key(key):
            raise ValueError("a key of a dict is not plain data")
    if tuples > MOST_TUPLE_KEYS:
        raise ValueError("a dict has too many keys that are tuples")


def _is_key(key: object) -> bool:
    if type(key) is tuple:
        return all(map(_is_key, key))
    if type(key) is int:
        return abs(key) < HASH_MODULUS
    return key is None or type(key) in (str, bytes, bool, float)


def _holds_long_doubles(dtype: np.dtype) -> bool:
    base = dtype.base
    if base.names is None:
        return base.char in "gG"
    return any(_holds_long_doubles(base[name]) for name in base.names)


def _scalar_bytes(scalar: np.generic) -> bytes:
    if scalar.dtype.names is not None and _holds_long_doubles(scalar.dtype):
        raise ValueError("numbers with gaps have no wire form inside of a structure")
    if scalar.dtype.char not in "gG" and not has_gaps(scalar.dtype):
        return scalar.tobytes()
    buffers: list[Buffer] = []
    _Encoder(buffers, None).buffer(np.asarray(scalar).reshape(1))
    return bytes(buffers[0])


def _without_gaps(array: np.ndarray) -> np.ndarray:
    """Clear what lies between fields: memory that nobody wrote, of whoever had it before."""
    if array.dtype.names is None or not has_gaps(array.dtype):
        return array
    cleared = np.zeros(array.shape, array.dtype)
    _copy_fields(cleared, array)
    return cleared


def _copy_fields(to: np.ndarray, array: np.ndarray) -> None:
    if array.dtype.names is None:
        to[...] = array
        return
    for name in array.dtype.names:
        _copy_fields(to[name], array[name])


def _describe(obj: object) -> str:
    cls = type(obj)
    return f"{cls.__module__}.{cls.__qualname__}"


def _without_repeats(array: np.ndarray) -> np.ndarray:
    if all(
        stride != 0 or size <= 1 for stride, size in zip(array.strides, array.shape, strict=True)
    ):
        return array
    return array[tuple(slice(None) if stride else slice(0, 1) for stride in array.strides)]


def _is_cftime(obj: object) -> bool:
    return type(obj).__module__ in ("cftime", "cftime._cftime") and hasattr(obj, "calendar")


def object_kind(array: np.ndarray) -> str:
    """Say which codec an object array needs: ``texts``, ``cftime`` or ``objects``.

    Examples
    --------
    >>> object_kind(np.array(["a", None], dtype=object))
    'texts'
    """
    if array.size == 0:
        return "objects"
    first = array.flat[0]
    if _is_cftime(first):
        kind = (type(first), first.calendar, first.has_year_zero)
        if all(
            _is_cftime(item) and (type(item), item.calendar, item.has_year_zero) == kind
            for item in array.flat
        ):
            return "cftime"
    if all(
        type(item) is str or item is None or (type(item) is float and math.isnan(item))
        for item in array.flat
    ):
        return "texts"
    return "objects"


_ENCODERS: dict[type, Callable[[_Encoder, Any], Value]] = {
    int: lambda _, obj: obj,
    np.ndarray: _Encoder.array,
    np.memmap: _Encoder.array,
    np.ma.MaskedArray: _Encoder.masked,
    list: lambda encoder, obj: ListValue(encoder.sequence(obj)),
    tuple: lambda encoder, obj: TupleValue(encoder.sequence(obj)),
    dict: _Encoder.mapping,
    bytes: lambda _, obj: BytesValue(obj),
    complex: lambda _, obj: ComplexValue(obj.real, obj.imag),
    datetime.timedelta: lambda _, obj: TimeDeltaValue(obj.days, obj.seconds, obj.microseconds),
    slice: lambda encoder, obj: SliceValue(*encoder.sequence((obj.start, obj.stop, obj.step))),
}


def decode_value(
    value: Value, buffers: Sequence[bytearray], resolver: Resolver | None = None
) -> Any:
    """Decode a value tree.

    Arrays are made over the buffers without copying them.

    Parameters
    ----------
    value : Value
        The tree.
    buffers : sequence of bytearray
        Buffers of the frame in which the tree came.
    resolver : Resolver, optional
        Admits callables of the operation table and registered classes.

    Returns
    -------
    object
        What was encoded.

    Raises
    ------
    RequestRefused
        If the tree and the buffers do not fit together, or name something that
        is not in the table or registry.
    """
    return ValueDecoder(buffers, resolver).decode(value)


class ValueDecoder:
    """Decodes the values of one message: together they keep to its bounds.

    Parameters
    ----------
    buffers : sequence of bytearray
        Of the message; each is used once, so that what is made of them is bounded.
    resolver : Resolver, optional
        As for `decode_value`.
    """

    def __init__(self, buffers: Sequence[bytearray], resolver: Resolver | None = None) -> None:
        self._decoder = _Decoder(buffers, resolver)

    def decode(self, value: Value) -> Any:
        """Decode a value; see `decode_value`."""
        try:
            return self._decoder.decode(value)
        except UNDECODABLE as error:
            raise RequestRefused("A value does not parse.", reason=Reason.MALFORMED) from error


class _Decoder:
    def __init__(self, buffers: Sequence[bytearray], resolver: Resolver | None) -> None:
        self.buffers = buffers
        self.resolver = resolver
        self.used: set[int] = set()
        self.elements = 0

    def count(self, elements: int) -> None:
        self.elements += elements
        if self.elements > LARGEST_ELEMENTWISE:
            raise ValueError(f"{self.elements} Python objects are too large a value")

    def decode(self, value: Value) -> Any:
        decode = _DECODERS.get(type(value))
        return value if decode is None else decode(self, value)

    def sequence(self, values: Sequence[Value]) -> list[Any]:
        return [self.decode(value) for value in values]

    def raw(self, position: int) -> bytearray:
        if position < 0 or position in self.used:
            # What is made of a buffer is bounded by its bytes, if it is made once.
            raise ValueError("a negative position, or one that is used already")
        self.used.add(position)
        return self.buffers[position]

    def buffer(self, position: int, dtype: np.dtype, count: int) -> np.ndarray:
        data = self.raw(position)
        if count < 0 or not dtype.itemsize:
            # What has no bytes is not bounded by the bytes that came.
            raise ValueError("negative size, or elements without bytes")
        if len(data) != dtype.itemsize * count:
            raise ValueError("a buffer does not have the size of its array")
        if not len(data):
            return np.empty(count, dtype)
        return np.frombuffer(data, dtype=dtype, count=count)

    def array(self, value: ArrayValue) -> np.ndarray:
        dtype = _plain(value.dtype)
        flat = self.buffer(value.buffer, dtype, math.prod(value.stored_shape))
        if value.fortran:
            stored = flat.reshape(value.stored_shape[::-1]).T
        else:
            stored = flat.reshape(value.stored_shape)
        if value.shape == value.stored_shape:
            return stored
        return np.broadcast_to(stored, value.shape)

    def scalar(self, value: ScalarValue) -> Any:
        dtype = _plain(value.dtype)
        if len(value.data) != dtype.itemsize:
            raise ValueError("a scalar does not have the size of its dtype")
        if not dtype.itemsize:
            return np.zeros((), dtype)[()]
        return np.frombuffer(value.data, dtype=dtype, count=1)[0]

    def masked(self, value: MaskedValue) -> np.ma.MaskedArray:
        data, mask = self.decode(value.data), self.decode(value.mask)
        is_mask = isinstance(mask, np.ndarray) and mask.dtype == np.ma.make_mask_descr(data.dtype)
        if not is_mask or mask.shape != data.shape:
            raise ValueError("a mask does not fit its data")
        return np.ma.MaskedArray(data, mask=mask, fill_value=self.decode(value.fill_value))

    def texts(self, value: TextArrayValue) -> np.ndarray:
        count = math.prod(value.shape)
        self.count(count)
        lengths = self.buffer(value.lengths, np.dtype("<i8"), count).tolist()
        data = self.raw(value.data)
        array = np.empty(count, dtype=object)
        start = 0
        for position, length in enumerate(lengths):
            if length in (-1, -2):
                array[position] = None if length == -1 else math.nan
                continue
            if not 0 <= length <= len(data) - start:
                raise ValueError("a text beyond its buffer")
            array[position] = data[start : start + length].decode()
            start += length
        if start != len(data):
            raise ValueError("texts do not fill their buffer")
        return array.reshape(value.shape)

    def cftime(self, value: CFTimeValue) -> Any:
        import cftime

        if value.calendar not in CALENDARS:
            raise ValueError("no such calendar")
        count = 1 if value.shape is None else math.prod(value.shape)
        self.count(count)
        numbers = self.buffer(value.buffer, np.dtype("<i8"), count)
        if count and max(int(numbers.max()), -int(numbers.min())) > FURTHEST_DATE:
            raise ValueError("a date is too far away")
        # cftime warns where the calendar leaves no choice.
        year_zero = None if value.calendar in IDEALIZED else value.has_year_zero
        array = np.empty(count, dtype=object)
        array[:] = cftime.num2date(
            numbers, CFTIME_UNITS, calendar=value.calendar, has_year_zero=year_zero
        )
        return array[0] if value.shape is None else array.reshape(value.shape)

    def objects(self, value: ObjectArrayValue) -> np.ndarray:
        array = np.empty(len(value.elements), dtype=object)
        for position, element in enumerate(value.elements):
            array[position] = self.decode(element)
        return array.reshape(value.shape)

    def mapping(self, value: DictValue) -> dict[Any, Any]:
        keys = [self.decode(key) for key, _ in value.items]
        _check_keys(keys)
        return dict(zip(keys, (self.decode(item) for _, item in value.items), strict=True))

    def large_integer(self, value: LargeIntegerValue) -> int:
        if len(value.text) > LARGEST_INTEGER_BITS // 4 + 3:
            raise ValueError("an integer is too long")
        return int(value.text, 16)

    def operation(self, value: OperationValue) -> Any:
        return self.known().lookup(value.name)

    def partial(self, value: PartialValue) -> Any:
        if not isinstance(value.function, OperationValue | PartialValue):
            raise ValueError("a partial is made of something that is not an operation")
        keywords = {name: self.decode(item) for name, item in value.keywords.items()}
        arguments = self.sequence(value.arguments)
        return functools.partial(self.decode(value.function), *arguments, **keywords)

    def instance(self, value: InstanceValue) -> Any:
        fields = {name: self.decode(item) for name, item in value.fields.items()}
        return self.known().from_fields(value.codec, fields)

    def known(self) -> Resolver:
        if self.resolver is None:
            raise ValueError("operations and instances have no place here")
        return self.resolver


def _plain(described: DType) -> np.dtype:
    dtype = decode_dtype(described)
    if dtype.hasobject:
        raise ValueError("values of the object dtype need a codec")
    return dtype


_DECODERS: dict[type, Callable[[_Decoder, Any], Any]] = {
    ArrayValue: _Decoder.array,
    ScalarValue: _Decoder.scalar,
    MaskedValue: _Decoder.masked,
    TextArrayValue: _Decoder.texts,
    CFTimeValue: _Decoder.cftime,
    ObjectArrayValue: _Decoder.objects,
    ListValue: lambda decoder, value: decoder.sequence(value.items),
    TupleValue: lambda decoder, value: tuple(decoder.sequence(value.items)),
    DictValue: _Decoder.mapping,
    LargeIntegerValue: _Decoder.large_integer,
    ComplexValue: lambda _, value: complex(value.real, value.imag),
    TimeDeltaValue: lambda _, value: datetime.timedelta(
        value.days, value.seconds, value.microseconds
    ),
    BytesValue: lambda _, value: value.data,
    DTypeValue: lambda _, value: decode_dtype(value.dtype),
    SliceValue: lambda decoder, value: slice(
        *decoder.sequence((value.start, value.stop, value.step))
    ),
    OperationValue: _Decoder.operation,
    PartialValue: _Decoder.partial,
    InstanceValue: _Decoder.instance,
}
