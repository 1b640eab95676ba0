"""Data types on the wire: an enumeration, never text that numpy interprets freely."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from federated_dask.errors import Reason, RequestRefused

__all__ = ["DType", "Field", "decode_dtype", "encode_dtype", "has_gaps"]

PLAIN = re.compile(r"[<>|][biufcSUmMV][0-9]{1,9}(\[([0-9]{1,9})?[a-zA-Z]{1,2}\])?|\|O")
GAP = re.compile(r"\|V[1-9][0-9]{0,8}")
MAX_NESTING = 16


class Field(msgspec.Struct, frozen=True, array_like=True):
    """One field of a structured dtype; without a name, bytes between or behind the others."""

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
    end = 0
    for name in dtype.names:
        base, offset = dtype.fields[name][:2]  # type: ignore[index]
        if not name or offset < end:
            raise TypeError(f"dtype {dtype!r} has fields out of order")
        if offset > end:
            fields.append(Field("", f"|V{offset - end}"))
        end = offset + base.itemsize
        shape: tuple[int, ...] = ()
        if base.subdtype is not None:
            base, shape = base.subdtype
        fields.append(Field(name, _encode(base, nesting - 1), shape))
    if dtype.itemsize > end:
        fields.append(Field("", f"|V{dtype.itemsize - end}"))
    if _structure(fields, nesting) != dtype:
        raise TypeError(f"dtype {dtype!r} has no wire form")
    return tuple(fields)


def has_gaps(dtype: np.dtype) -> bool:
    """Say whether between the fields of a dtype, or behind them, is memory of no field.

    Examples
    --------
    >>> has_gaps(np.dtype([("a", "i1"), ("b", "f8")], align=True))
    True
    """
    base = dtype.base
    if base.names is None:
        return False
    fields = [base[name] for name in base.names]
    return sum(field.itemsize for field in fields) != base.itemsize or any(map(has_gaps, fields))


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
    return _structure(described, nesting)


def _structure(fields: Sequence[Field], nesting: int) -> np.dtype:
    names, formats, offsets = [], [], []
    end = 0
    for field in fields:
        if field.name:
            offsets.append(end)
            names.append(field.name)
            formats.append(np.dtype((_decode(field.dtype, nesting - 1), field.shape)))
            end += formats[-1].itemsize
        elif isinstance(field.dtype, str) and GAP.fullmatch(field.dtype) and not field.shape:
            end += int(field.dtype[2:])
        else:
            raise ValueError("a field without a name")
    layout = {"names": names, "formats": formats, "offsets": offsets, "itemsize": end}
    return np.dtype(layout)  # type: ignore[call-overload, no-any-return]
