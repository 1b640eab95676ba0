"""What is expected of the values of one result, as far as it decides how they shrink on a link.

Compression removes two things: elements that are all alike (*gaps*: what is missing, or
was filled in), and bytes that all elements have in common.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from federated_dask.planner.sources import StoredFacts
from federated_dask.protocol.compression import SMALLEST_COMPRESSED, WORTHWHILE
from federated_dask.protocol.samples import share_left

__all__ = [
    "CONSTANT",
    "EVEN",
    "NAN",
    "PER_BIT",
    "Expected",
    "expected_of_stored",
    "expected_of_value",
    "joined",
    "truth",
    "unknown",
]

PER_BIT = 0.14
"""Bytes that one bit of information in numbers takes: the wire compresses fast."""
PER_TRUTH = 0.18
"""The same for booleans, whose bytes are not shuffled."""
BIT = 0.125
"""Bytes of one bit: what takes less is told by runs of what is alike, without a code."""
LEAST = 15
"""Bytes that are left of values that are all alike."""
TABLE_BYTES, TABLE_BYTES_OF_TRUTH = 30, 65
"""What the description of a code takes, in front of values of which there are few."""
RICH = 0.5
"""Values that keep more than this share of their bytes are taken for measured ones."""
EVEN = 0.5
"""For how many elements a comparison is true, as long as nobody knows."""


@dataclasses.dataclass(frozen=True, slots=True)
class Expected:
    """What is expected of the values of one result."""

    count: float
    """Elements."""
    size: float
    """Bytes of an element before compression."""
    each: float
    """Bytes on a link of an element that is no gap."""
    gaps: float = 0.0
    """Share of the elements that are all alike."""
    places: float = 0.0
    """Share of the places at which there is a gap, anywhere along the first dimension."""
    missing: bool = False
    """Whether gaps are NaN, which spreads to what is computed from it."""
    true: float | None = None
    """Of booleans: share that is true."""
    windows: float = 1.0
    """In how many windows a value is, where neighbours are windows of the same values."""
    first: float = 0.0
    """Of several arrays: bytes on a link of an element of the first that is no gap."""
    is_counted: bool = False
    """Whether `count` follows from the values, and not from the shape that is stated."""
    most: float = math.inf
    """Elements that there are at most, however many such results are put together."""

    @property
    def plain_bytes(self) -> float:
        """Bytes before compression."""
        return self.count * self.size

    @property
    def wire_bytes(self) -> float:
        """Bytes on a link."""
        plain = self.count * self.size
        if plain < SMALLEST_COMPRESSED:
            return plain
        shrunk = LEAST + self.count * self.each * (1 - self.gaps)
        if BIT <= self.each < RICH * self.size:
            shrunk += TABLE_BYTES if self.size > 1 else TABLE_BYTES_OF_TRUTH
        return shrunk if shrunk < WORTHWHILE * plain else plain

    @property
    def is_constant(self) -> bool:
        """Whether all elements are alike."""
        return self.gaps >= 1.0 or not self.each

    @property
    def is_rich(self) -> bool:
        """Whether the values have about as many different values as their bytes allow."""
        return self.each > RICH * self.size


CONSTANT = Expected(1.0, 8.0, 0.0, 1.0, 1.0)
NAN = Expected(1.0, 8.0, 0.0, 1.0, 1.0, missing=True)


def unknown(count: float, size: float) -> Expected:
    """Expect nothing of some elements but their number and size."""
    return Expected(count, size, size)


def expected_of_stored(stored: StoredFacts) -> Expected:
    """Take what a site tells of a variable."""
    size = float(8 if stored.dtype.hasobject else stored.dtype.itemsize)
    count = float(math.prod(stored.shape))
    content = stored.content
    if stored.dtype.kind == "b":
        return truth(count, EVEN)
    if content is None:
        return unknown(count, size)
    there = 1.0 - content.missing
    each = min(size, content.left * size / there) if there else 0.0
    places = max(content.ever_missing, content.missing)
    return Expected(count, size, each, content.missing, places, missing=True)


def expected_of_value(value: Any) -> Expected | None:
    """Look at a value of the researcher; None where it is no array."""
    if not isinstance(value, np.ndarray | np.generic):
        return None
    array = np.asarray(value)
    size = float(8 if array.dtype.hasobject else array.dtype.itemsize)
    if array.size == 1 and array.dtype.kind in "biufcmM":
        return NAN if array.dtype.kind in "fcmM" and np.isnan(array).all() else CONSTANT
    if array.dtype.kind == "b" and array.size:
        true = float(np.count_nonzero(array)) / array.size
        each = size * (share_left(array) or 0.0)
        return Expected(float(array.size), size, each, true=true)
    left = share_left(array)
    return Expected(float(array.size), size, size * (1.0 if left is None else left))


def truth(count: float, true: float, *, in_patches: bool = False) -> Expected:
    """Booleans: what takes room is how unsure each is.  What is missing lies together."""
    true = min(1.0, max(0.0, true))
    bits = sum(-p * math.log2(p) for p in (true, 1 - true) if p)
    return Expected(count, 1.0, bits * (0.125 if in_patches else PER_TRUTH), true=true)


def joined(inputs: list[Expected]) -> Expected | None:
    """Put values together: each stays what it is."""
    inputs = [each for each in inputs if each is not CONSTANT and each is not NAN] or inputs[:1]
    total = sum(each.count for each in inputs)
    if not inputs or not total:
        return inputs[0] if inputs else None
    shares = [each.count / total for each in inputs]
    trues = [each.true for each in inputs if each.true is not None]
    gaps = sum(s * each.gaps for s, each in zip(shares, inputs, strict=True))
    rest = sum(s * each.each * (1 - each.gaps) for s, each in zip(shares, inputs, strict=True))
    return Expected(
        total,
        max(each.size for each in inputs),
        rest / (1 - gaps) if gaps < 1 else 0.0,
        gaps,
        sum(s * each.places for s, each in zip(shares, inputs, strict=True)),
        any(each.missing for each in inputs),
        sum(trues) / len(trues) if len(trues) == len(inputs) else None,
        windows=max(each.windows for each in inputs),
        first=max(each.first for each in inputs),
        most=max(each.most for each in inputs),
    )
