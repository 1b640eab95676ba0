"""How much of an array compression leaves, judged by some parts of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from federated_dask.protocol.compression import as_rows, compressed

__all__ = ["SAMPLE", "share_left"]

SAMPLES, SAMPLE = 8, 16 * 1024
"""Parts of an array that are compressed to see what is left of it, and bytes of each."""


def share_left(values: Any) -> float | None:
    """Share of an array's bytes that is left of them on the wire.

    Parameters
    ----------
    values : object
        Of a large array, some parts are looked at.

    Returns
    -------
    float or None
        At most 1; None for what is no array of plain numbers, or empty.

    Examples
    --------
    >>> share_left(np.random.default_rng(0).random(1000))
    1.0
    >>> share_left(np.zeros(1000)) < 0.01
    True
    """
    if type(values) is not np.ndarray or values.dtype.hasobject or not values.nbytes:
        return None
    flat = values.reshape(-1)
    step = max(1, flat.nbytes // SAMPLES)
    length = max(1, min(step, SAMPLE) // values.itemsize)
    starts = range(0, flat.size, max(1, step // values.itemsize))
    sample = np.concatenate([flat[start : start + length] for start in starts])
    stored, _ = compressed(as_rows(sample))
    return min(1.0, len(stored) / sample.nbytes)
