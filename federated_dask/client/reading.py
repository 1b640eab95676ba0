"""Reading a part of a stored variable in as few requests as its positions need.

The positions stand in the URL, which has a longest length: where they are too many, they
are halved, until each half fits::

    read_parts ── fits ──► request
         └─ else: two halves, each likewise ──► join
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from federated_dask.client.first_error import first_error
from federated_dask.client.indexes import Index, encode_index, join, split_index
from federated_dask.errors import Reason, RequestRefused

__all__ = ["as_array", "read_parts"]

AT_ONCE = 4
"""Requests at the same time for one long list of positions."""


async def read_parts(
    version: str,
    index: Index,
    request: Callable[[str], Awaitable[np.ndarray]],
    *,
    longest_query: int,
    site: str,
) -> np.ndarray:
    """Read a part of a variable.

    Parameters
    ----------
    version : str
        Version of the dataset.
    index : tuple of int, slice or 1-d ndarray
        One entry per axis.
    request : callable
        Reads what a query names.
    longest_query : int
        Characters that a query may have.
    site : str
        Shown in errors.

    Raises
    ------
    RequestRefused
        If not even one position fits.
    """
    gate = asyncio.Semaphore(AT_ONCE)

    async def read(part: Index) -> np.ndarray:
        query = urlencode({"version": version, "index": encode_index(part)}, quote_via=quote)
        if len(query) <= longest_query:
            async with gate:
                return await request(query)
        halves = split_index(part)
        if halves is None:
            raise RequestRefused(
                "The names of what is to be read are too long for a request.",
                reason=Reason.LIMIT_EXCEEDED,
                site=site,
            )
        axis, first, second = halves
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read(half)) for half in (first, second)]
        return join(part, axis, [task.result() for task in tasks])

    with first_error():
        return await read(index)


def as_array(value: Any) -> np.ndarray:
    """Give what a site sent for a part as an array, where it is a single element too."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.generic):
        return np.asarray(value)
    # One cftime date or text, where every axis was indexed by an integer.
    array = np.empty((), dtype=object)
    array[()] = value
    return array
