"""Results as sites send them, held against what the plan knows of them.

A site is trusted with its own data, not with this process: a few bytes may stand
for an array of any size where it repeats itself, and a result of another shape
would be broadcast into wrong numbers by what uses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from federated_dask.errors import Reason, SiteUnavailable
from federated_dask.planner.graph import PlanTask
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.trees import ArrayValue, Value
from federated_dask.protocol.values import decode_value

__all__ = ["announced_limit", "check_announced", "check_result", "decode_result", "misbehaved"]

SLACK = 64 * 2**20
"""Bytes that any result may have: predictions of small ones can be far off."""
FACTOR = 16
"""How many times larger than predicted it may be beyond that."""


def announced_limit(predicted: int) -> int:
    """Bytes that a result with repeats may have, all repeats counted."""
    return SLACK + FACTOR * predicted


def misbehaved(site: str, message: str) -> SiteUnavailable:
    """Make the error for what no site of ours would send."""
    return SiteUnavailable(
        message, reason=Reason.INTERNAL, site=site, hint="Report this to the site's operator."
    )


def decode_result(
    value: Value, buffers: Sequence[bytearray], table: OperationTable | None, site: str, limit: int
) -> Any:
    """Decode what a site sent.

    Parameters
    ----------
    value : Value
        The tree.
    buffers : sequence of bytearray
        What it refers to.
    table : OperationTable or None
        Operations of this process; None where none may come.
    site : str
        Name of the site, for the error.
    limit : int
        Bytes that arrays which repeat themselves may have together.

    Raises
    ------
    SiteUnavailable
        If they are larger; nothing is made of them then.
    """
    check_announced(value, limit, site)
    return decode_value(value, buffers, table)


def check_announced(described: object, limit: int, site: str) -> None:
    """Refuse trees whose arrays repeat themselves to more than `limit` bytes.

    Raises
    ------
    SiteUnavailable
        If they do.
    """
    announced = sum(_bytes_with_repeats(described))
    if announced > limit:
        raise misbehaved(
            site, f"The site announced a result of {announced:,} bytes; at most {limit:,} can be."
        )


def _bytes_with_repeats(value: Any) -> Iterator[int]:
    """Sizes of the arrays in a tree that are larger than the bytes that came for them."""
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, ArrayValue):
            if node.shape != node.stored_shape:
                yield math.prod(node.shape) * decode_dtype(node.dtype).itemsize
        elif isinstance(node, msgspec.Struct):
            stack.extend(getattr(node, name) for name in node.__struct_fields__)
        elif isinstance(node, dict):
            stack.extend(node.values())
        elif isinstance(node, tuple | list):
            stack.extend(node)


def check_result(value: Any, task: PlanTask, site: str) -> None:
    """Hold a result against the shape and dtype that its collection states.

    Raises
    ------
    SiteUnavailable
        If it does not fit.
    """
    is_numpy = isinstance(value, np.ndarray | np.generic)
    if task.shape is None or (hasattr(value, "shape") and not is_numpy):
        # Sparse matrices have two axes, whatever Dask says.
        return
    stated = tuple(int(size) for size in task.shape)
    if value is np.ma.masked and not stated:
        # What a reduction of masked values gives where all are masked, whatever their dtype.
        return
    shape = getattr(value, "shape", ())
    dtype = getattr(value, "dtype", None)
    fits = dtype is None or task.dtype is None or _fits(dtype, task.dtype)
    if shape != stated or not fits:
        raise misbehaved(
            site,
            f"The site sent {dtype} of shape {shape} for {task.label!r}, where the expression "
            f"has {task.dtype} of shape {stated}.",
        )


def _fits(found: np.dtype, stated: np.dtype) -> bool:
    # Dask itself states float64 for what is float32, or int64 for int32, now and then; no
    # number gets wrong by that.  What an object is nobody states.
    return found.hasobject or stated.hasobject or np.can_cast(found, stated, "same_kind")
