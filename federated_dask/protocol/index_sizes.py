"""How many elements an index selects."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["indexed_elements"]


def indexed_elements(shape: tuple[int, ...], index: Any) -> int:
    """Bound the elements that an index selects, where it copies them; 0 for a view.

    Examples
    --------
    >>> indexed_elements((10, 100), (np.array([3, 3, 3]), slice(None)))
    300
    >>> indexed_elements((10, 100), slice(0, 5))
    0
    """
    parts = index if type(index) is tuple else (index,)
    consumed = sum(
        0 if part is None or part is Ellipsis else max(1, _mask_axes(part)) for part in parts
    )
    axis = 0
    size = 1
    fancy: list[tuple[int, ...]] = []
    masked = 1
    for part in parts:
        if part is None:
            continue
        if part is Ellipsis:
            skipped = max(0, len(shape) - consumed)
            size *= math.prod(shape[axis : axis + skipped])
            axis += skipped
        elif isinstance(part, slice):
            size *= len(range(*part.indices(shape[axis])))
            axis += 1
        elif isinstance(part, list | np.ndarray) or hasattr(part, "__array__"):
            array = np.asarray(part)
            if array.dtype == bool and array.ndim:
                masked = max(masked, array.size)
                axis += array.ndim
            else:
                fancy.append(array.shape)
                axis += 1
        else:
            axis += 1
    if not fancy and masked == 1:
        return 0
    size *= math.prod(shape[axis:])
    return size * max(masked, math.prod(np.broadcast_shapes(*fancy)))


def _mask_axes(part: Any) -> int:
    if isinstance(part, np.ndarray) and part.dtype == bool:
        return part.ndim
    if isinstance(part, list) and part and np.asarray(part).dtype == bool:
        return np.ndim(part)
    return 1
