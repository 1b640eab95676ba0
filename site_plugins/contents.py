"""What the values of a variable are like: how far they shrink, how many are missing.

The planner of a client chooses where values travel before anything ran, and how much a
value takes on a link depends on what is in it.  So a few small parts are looked at::

    first dimension   ┌──────────────────────────────┐
        first chunk   │    ▒▒▒▒          ▒▒▒▒        │   at the same places each time:
            …         │                              │   if they miss the same, it is missing
         last chunk   │    ▒▒▒▒          ▒▒▒▒        │   throughout (land, say)
                      └──────────────────────────────┘
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from federated_dask.protocol.messages import Content
from federated_dask.protocol.samples import SAMPLE, share_left
from site_plugins.datasets import decoded, decoded_dtype

__all__ = ["ContentReader", "content_of"]

logger = logging.getLogger(__name__)

SECONDS = 0.5
"""Time after which no further variable of a dataset is looked at."""
SMALLEST = 1024
LARGEST_CHUNK = 16 * 1024 * 1024
"""Bytes of a storage chunk above which reading a small part of it is no small matter."""
PLACES = (0.25, 0.75)
"""Where parts lie along the dimensions after the first."""


class ContentReader:
    """Looks at the variables of one dataset, as long as that takes little time."""

    def __init__(self) -> None:
        self._end = math.inf

    def read(self, variable: xr.Variable, chunks: tuple[int, ...] | None) -> Content | None:
        """Tell what a variable's values are like.

        Parameters
        ----------
        variable : xarray.Variable
            Decoded and lazy.
        chunks : tuple of int, optional
            Shape of a storage chunk.

        Returns
        -------
        Content or None
            None where looking would take long, or failed, or would be of no use.
        """
        dtype = decoded_dtype(variable)
        chunk_bytes = math.prod(chunks or ()) * dtype.itemsize
        is_worth_it = variable.ndim and variable.size * dtype.itemsize >= SMALLEST
        if dtype.kind not in "biufcmM" or not is_worth_it or chunk_bytes > LARGEST_CHUNK:
            return None
        now = time.monotonic()
        # From the first look on: what opening took is not its fault.
        self._end = min(self._end, now + SECONDS)
        if now > self._end:
            return None
        try:
            return content_of(variable, chunks)
        except Exception:
            # Engines raise whatever their libraries do.  The dataset can be used all the same.
            logger.warning("No part of a variable could be looked at", exc_info=True)
            return None


def content_of(variable: xr.Variable, chunks: tuple[int, ...] | None = None) -> Content:
    """Look at some parts of a variable with one dimension at least.

    Examples
    --------
    >>> values = np.random.default_rng(0).random((50, 100))
    >>> values[:, :50] = np.nan
    >>> found = content_of(xr.Variable(("time", "x"), values))
    >>> found.missing, found.ever_missing, 0.3 < found.left < 0.6
    (0.5, 0.5, True)
    """
    rows = [
        [decoded(variable[part]) for part in parts]
        for parts in _parts(variable.shape, chunks or variable.shape, decoded_dtype(variable))
    ]
    values = [part for row in rows for part in row]
    left = _left(values)
    if values[0].dtype.kind not in "fcmM":
        return Content(left=round(left, 3))
    missing = [np.isnan(part) for part in values]
    places = [
        np.concatenate([np.isnan(part) for part in looks]) for looks in zip(*rows, strict=True)
    ]
    ever = [np.asarray(place.any(axis=0)) for place in places]
    return Content(
        left=round(left, 3),
        missing=round(_share(missing), 3),
        ever_missing=round(_share(ever), 3),
    )


def _left(parts: Sequence[np.ndarray]) -> float:
    """Share of the bytes that is left; of each part alone, since parts may overlap."""
    bytes_left = sum((share_left(part) or 0.0) * part.nbytes for part in parts)
    return bytes_left / max(1, sum(part.nbytes for part in parts))


def _share(masks: Sequence[np.ndarray]) -> float:
    # Numbers of numpy have no wire form in messages.
    return float(sum(np.count_nonzero(mask) for mask in masks) / sum(mask.size for mask in masks))


def _parts(
    shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype
) -> Iterator[list[tuple[slice, ...]]]:
    """Give indices of parts, a row of them for each position along the first dimension."""
    left = max(1, SAMPLE // dtype.itemsize)
    lengths = []
    for size, chunk in zip(reversed(shape), reversed(chunks), strict=True):
        lengths.append(min(size, chunk, left))
        left = max(1, left // lengths[-1])
    first, *others = reversed(lengths)
    is_whole = tuple(others) == shape[1:]
    for start in dict.fromkeys((0, shape[0] - first)):
        yield [
            (slice(start, start + first), *_across(shape[1:], chunks[1:], others, place))
            for place in (PLACES[:1] if is_whole else PLACES)
        ]


def _across(
    shape: tuple[int, ...], chunks: tuple[int, ...], lengths: list[int], place: float
) -> Iterator[slice]:
    for size, chunk, length in zip(shape, chunks, lengths, strict=True):
        start = int((size - length) * place)
        end_chunk = (start + length - 1) // chunk
        if start // chunk != end_chunk:
            # One chunk is read instead of two.
            start = min(end_chunk * chunk, size - length)
        yield slice(start, start + length)
