"""Data types on the wire: an enumeration, never text that numpy interprets freely."""

from __future__ import annotations

import re
from typing import TypeAlias

import msgspec
import numpy as np

from federated_dask.errors import Reason, RequestRefused

__all__ = ["DType", "Field", "decode_dtype", "encode_dtype"]

PLAIN = re.compile(r"[<>|][biufcSUmMV][0-9]{1,9}(\[([0-9]{1,9})?[a-zA-Z]{1,2}\])?|\|O")
MAX_NESTING = 16


class Field(msgspec.Struct, frozen=True, array_like=True):
    """One field of a structured dtype."""

    name: str
    dtype: str | tuple[Field, ...]
    shape: tuple[int, ...] = ()


DType: TypeAlias = str | tuple[Field, ...]
"""numpy's ``dtype.str`` of a plain dtype, or the fields of a structured one."""


def encode_dtype(dtype: np.dtype) -> DType:
    """Describe a dtype.

    Raises
    ------
    TypeError
        If the dtype is not plain data.  The object dtype is described
        (``|O``): as a *name* it is harmless; values of it need a codec.

    Examples
    --------
    >>> encode_dtype(np.dtype("datetime64[ns]"))
    '<M8[ns]'
    """
    return _encode(dtype, MAX_NESTING)


def _encode(dtype: np.dtype, nesting: int) -> DType:
    if dtype.subdtype is not None or dtype.metadata or dtype.char == "T" or not nesting:
        raise TypeError(f"dtype {dtype!r} has no wire form")
    if dtype.names is None:
        if PLAIN.fullmatch(dtype.str) is None:
            raise TypeError(f"dtype {dtype!r} has no wire form")
        return dtype.str
    fields = []
    for name in dtype.names:
        base = dtype[name]
        shape: tuple[int, ...] = ()
        if base.subdtype is not None:
            base, shape = base.subdtype
        fields.append(Field(name, _encode(base, nesting - 1), shape))
    if np.dtype([_described(field, nesting) for field in fields]) != dtype:
        raise TypeError(f"dtype {dtype!r} has gaps between its fields")
    return tuple(fields)


def _described(field: Field, nesting: int) -> tuple[str, object, tuple[int, ...]]:
    if not field.name:
        # numpy would make up a name.
        raise ValueError("a field without a name")
    return (field.name, _decode(field.dtype, nesting - 1), field.shape)


def decode_dtype(described: DType) -> np.dtype:
    """Make the dtype that was described.

    Raises
    ------
    RequestRefused
        If the description is not one that `encode_dtype` makes.

    Examples
    --------
    >>> decode_dtype("<f4")
    dtype('float32')
    """
    try:
        return _decode(described, MAX_NESTING)
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestRefused("A dtype does not parse.", reason=Reason.MALFORMED) from error


def _decode(described: DType, nesting: int) -> np.dtype:
    if not nesting:
        raise ValueError("a dtype is nested too deep")
    if isinstance(described, str):
        if PLAIN.fullmatch(described) is None:
            raise ValueError(described)
        return np.dtype(described)
    return np.dtype([_described(field, nesting) for field in described])
