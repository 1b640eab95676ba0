"""Data types on the wire: an enumeration, never text that numpy interprets freely."""

from __future__ import annotations

import re
from typing import TypeAlias

import msgspec
import numpy as np

from federated_dask.errors import Reason, RequestRefused

__all__ = ["DType", "Field", "decode_dtype", "encode_dtype"]

PLAIN = re.compile(r"[<>|][biufcSUmMV]\d{1,9}(\[(\d{1,9})?[a-zA-Z]{1,2}\])?|\|O")


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
    if dtype.subdtype is not None or dtype.metadata or dtype.char == "T":
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
        fields.append(Field(name, encode_dtype(base), shape))
    if np.dtype([_described(field) for field in fields]) != dtype:
        raise TypeError(f"dtype {dtype!r} has gaps between its fields")
    return tuple(fields)


def _described(field: Field) -> tuple[str, object, tuple[int, ...]]:
    return (field.name, decode_dtype(field.dtype), field.shape)


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
        if isinstance(described, str):
            if PLAIN.fullmatch(described) is None:
                raise ValueError(described)
            return np.dtype(described)
        return np.dtype([_described(field) for field in described])
    except (TypeError, ValueError) as error:
        raise RequestRefused("A dtype does not parse.", reason=Reason.MALFORMED) from error
