"""Orthogonal indexes: what they select, their text in a URL, and cutting long ones in two."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

__all__ = ["Entry", "Index", "encode_index", "expand", "join", "split_index"]

Entry: TypeAlias = int | slice | np.ndarray
"""What is selected along one axis; an integer drops the axis."""

Index: TypeAlias = tuple[Entry, ...]
"""One entry per axis, each applied on its own."""


def expand(key: Any, shape: Sequence[int]) -> tuple[Index, tuple[int, ...]]:
    """Write out an index over an array, with bounds checked.

    Parameters
    ----------
    key : int, slice, Ellipsis, list, 1-d ndarray or tuple of them
        As given to ``__getitem__``.
    shape : sequence of int
        Shape of the array.

    Returns
    -------
    index : tuple of int, slice or ndarray
        One entry per axis, nothing negative but the step of a slice.
    selected : tuple of int
        Shape of the result.

    Raises
    ------
    IndexError
        If it is out of bounds or of another kind.

    Examples
    --------
    >>> expand((..., -1), (3, 4))
    ((slice(0, 3, 1), 3), (3,))
    """
    entries = list(key) if isinstance(key, tuple) else [key]
    dots = [position for position, entry in enumerate(entries) if entry is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    missing = len(shape) - len(entries) + len(dots)
    if missing < 0:
        raise IndexError(
            f"too many indices: the array has {len(shape)} dimensions, "
            f"{len(entries) - len(dots)} were indexed"
        )
    where = dots[0] if dots else len(entries)
    entries[where : where + len(dots)] = [slice(None)] * missing
    index = tuple(_entry(entry, size) for entry, size in zip(entries, shape, strict=True))
    counts = (_count(entry, size) for entry, size in zip(index, shape, strict=True))
    return index, tuple(count for count in counts if count is not None)


def _entry(entry: Any, size: int) -> Entry:
    if isinstance(entry, slice):
        start, stop, step = entry.indices(size)
        # Going backwards, "before the first" cannot be written as a number.
        return slice(start, None if stop < 0 else stop, step)
    if entry is None or isinstance(entry, bool | np.bool_):
        raise IndexError(f"{entry!r} is not supported as an index of a stored variable")
    if isinstance(entry, list | np.ndarray) and np.ndim(entry) > 0:
        return _positions(np.asarray(entry), size)
    try:
        position = operator.index(entry)
    except TypeError as error:
        raise IndexError(
            f"only integers, slices, '...' and 1-d arrays are valid indices, not {entry!r}"
        ) from error
    if not -size <= position < size:
        raise IndexError(f"index {position} is out of bounds for an axis of size {size}")
    return position % size


def _positions(array: np.ndarray, size: int) -> np.ndarray:
    if array.ndim != 1:
        raise IndexError("arrays that index a stored variable have one dimension")
    if array.dtype == bool:
        if len(array) != size:
            raise IndexError(f"a mask of {len(array)} for an axis of size {size}")
        return np.flatnonzero(array)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu":
        raise IndexError("arrays used as indices must be of integer or boolean type")
    if array.min() < -size or array.max() >= size:
        raise IndexError(f"positions are out of bounds for an axis of size {size}")
    positions = array.astype(np.int64)
    return np.where(positions < 0, positions + size, positions)


def _count(entry: Entry, size: int) -> int | None:
    if isinstance(entry, slice):
        return len(range(*entry.indices(size)))
    return None if isinstance(entry, int) else len(entry)


def encode_index(index: Index) -> str:
    """Write an index as the JSON text of a read request.

    Examples
    --------
    >>> encode_index((3, slice(0, 10), np.array([1, 2, 5])))
    '[3,[0,10,null],{"take":[1,2,5]}]'
    """
    return msgspec.json.encode([_encode(entry) for entry in index]).decode()


def _encode(entry: Entry) -> object:
    if isinstance(entry, slice):
        parts = (entry.start, entry.stop, entry.step)
        return [None if part is None else operator.index(part) for part in parts]
    if isinstance(entry, np.ndarray):
        positions = np.flatnonzero(entry) if entry.dtype == bool else entry
        return _as_slice(positions) or {"take": positions.tolist()}
    return operator.index(entry)


def _as_slice(positions: np.ndarray) -> list[int] | None:
    """Evenly spaced, ascending positions as a slice: short, and quick to read."""
    if len(positions) == 0 or positions[0] < 0:
        return None
    steps = np.diff(positions)
    step = int(steps[0]) if len(steps) else 1
    if step < 1 or not (steps == step).all():
        return None
    return [int(positions[0]), int(positions[-1]) + 1, step]


def split_index(index: Index) -> tuple[int, Index, Index] | None:
    """Cut the longest list of positions of an index into two halves.

    Returns
    -------
    axis : int
        Where it was cut.
    first, second : tuple
        The index with either half; see `join`.  None in place of all three
        where there is nothing to cut.

    Examples
    --------
    >>> split_index((0, np.array([4, 1, 7, 2])))
    (1, (0, array([4, 1])), (0, array([7, 2])))
    """
    arrays = {
        axis: np.flatnonzero(entry) if entry.dtype == bool else entry
        for axis, entry in enumerate(index)
        if isinstance(entry, np.ndarray)
    }
    lists = {axis: array for axis, array in arrays.items() if _as_slice(array) is None}
    if not lists:
        return None
    axis = max(lists, key=lambda axis: len(lists[axis]))
    positions = lists[axis]
    middle = len(positions) // 2
    if middle == 0:
        return None
    first, second = positions[:middle], positions[middle:]
    return axis, _replaced(index, axis, first), _replaced(index, axis, second)


def _replaced(index: Index, axis: int, entry: Entry) -> Index:
    return (*index[:axis], entry, *index[axis + 1 :])


def join(index: Index, axis: int, halves: Sequence[np.ndarray]) -> np.ndarray:
    """Put together what the halves of an index selected."""
    dropped = sum(not isinstance(entry, slice | np.ndarray) for entry in index[:axis])
    return np.concatenate(halves, axis=axis - dropped)
