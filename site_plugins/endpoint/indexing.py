"""The ``index`` of a chunk read: JSON, one entry for each axis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import msgspec
import numpy as np

from federated_dask.errors import NotFound, Reason, RequestRefused
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import DatasetDescription

__all__ = ["Index", "parse_index", "require_readable"]

NUMBERS = range(-(2**62), 2**62)
Index: TypeAlias = tuple[int | slice | np.ndarray, ...]


class _Take(msgspec.Struct, forbid_unknown_fields=True):
    take: list[int]


# Bounds are checked below: msgspec 0.22 crashes on bounded integers in tuples (msgspec#717).
_decoder = msgspec.json.Decoder(list[int | tuple[int | None, int | None, int | None] | _Take])


def parse_index(text: str) -> Index:
    """Parse an index.

    Parameters
    ----------
    text : str
        A JSON list with one entry for each axis: an integer, ``[start, stop,
        step]`` (each may be null), or ``{"take": [integers]}``.

    Returns
    -------
    tuple of int, slice or ndarray

    Raises
    ------
    RequestRefused
        If it does not parse.

    Examples
    --------
    >>> parse_index('[3, [0, 10, null], {"take": [4, 2]}]')
    (3, slice(0, 10, None), array([4, 2]))
    """
    try:
        parts = _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise RequestRefused(
            f"The index does not parse: {error}.", reason=Reason.MALFORMED
        ) from error
    if any(number not in NUMBERS for part in parts for number in _numbers(part)):
        raise RequestRefused("A number of the index is too large.", reason=Reason.MALFORMED)
    if any(isinstance(part, tuple) and part[2] == 0 for part in parts):
        raise RequestRefused("A slice has the step 0.", reason=Reason.MALFORMED)
    return tuple(_part(part) for part in parts)


def _numbers(part: int | tuple[int | None, int | None, int | None] | _Take) -> Iterator[int]:
    if isinstance(part, _Take):
        yield from part.take
    elif isinstance(part, tuple):
        yield from (number for number in part if number is not None)
    else:
        yield part


def _part(
    part: int | tuple[int | None, int | None, int | None] | _Take,
) -> int | slice | np.ndarray:
    if isinstance(part, _Take):
        return np.array(part.take, dtype=np.int64)
    return slice(*part) if isinstance(part, tuple) else part


def require_readable(
    description: DatasetDescription, variable: str, index: Index, limits: Limits
) -> None:
    """Check a read before it is done.

    Raises
    ------
    NotFound
        If the dataset has no such variable.
    RequestRefused
        If the index does not fit the variable, or asks for too much at once.
    """
    described = description.variables.get(variable)
    if described is None:
        raise NotFound(
            f"Dataset {description.name!r} has no variable {variable[:128]!r}.",
            reason=Reason.UNKNOWN_VARIABLE,
            hint="Open the dataset again to see which variables it has.",
            site=description.site,
        )
    if len(index) != len(described.shape):
        raise RequestRefused(
            f"The index has {len(index)} entries; {variable!r} has {len(described.shape)} axes.",
            reason=Reason.MALFORMED,
        )
    size = math.prod(_length(part, axis) for part, axis in zip(index, described.shape, strict=True))
    itemsize = 8 if described.dtype.startswith("object") else np.dtype(described.dtype).itemsize
    if size * itemsize > limits.buffer_bytes:
        raise RequestRefused(
            f"The read has {size * itemsize} bytes; this site sends {limits.buffer_bytes} at once.",
            reason=Reason.LIMIT_EXCEEDED,
            hint="Use smaller chunks.",
        )


def _length(part: int | slice | np.ndarray, axis: int) -> int:
    if isinstance(part, slice):
        return len(range(*part.indices(axis)))
    numbers = np.atleast_1d(part)
    if numbers.size and not (-axis <= int(numbers.min()) and int(numbers.max()) < axis):
        raise RequestRefused(
            f"An index is out of bounds for an axis of {axis}.", reason=Reason.MALFORMED
        )
    return int(numbers.size)
