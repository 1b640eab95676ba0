"""What a function returned: small values are here, the parts of large ones still at the site.

::

    Returned ──► ReturnedObject ── fetch ──► the object, its parts brought here
                        └───────── lazy ───► the same over dask arrays of `HeldValue`
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np

from federated_dask.client.connection import SiteConnection
from federated_dask.client.first_error import first_error
from federated_dask.client.held import HeldValue, Lease, held_task
from federated_dask.client.results import check_announced, decode_result, misbehaved
from federated_dask.errors import FederatedError, Reason, RequestRefused
from federated_dask.planner.sources import HeldReference
from federated_dask.protocol.call_messages import Returned
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.structures import (
    Parts,
    array_of,
    check_parts,
    parts_of,
    put_together,
)

__all__ = ["ReturnedObject"]

FETCHES_AT_ONCE = 6
"""Parts that are brought here at the same time."""
LARGEST_CONTENT = 256 * 2**20
"""Bytes that repeats in what stands in the reply itself may stand for."""


class ReturnedObject:
    """What a function returned, taken apart.

    Parameters
    ----------
    connection : SiteConnection
        The site that ran it.
    returned : Returned
        What the site says of it.
    buffers : list of bytearray
        What the values in it refer to.

    Raises
    ------
    SiteUnavailable
        If it contradicts itself.
    """

    def __init__(
        self, connection: SiteConnection, returned: Returned, buffers: list[bytearray]
    ) -> None:
        self.connection = connection
        self.returned = returned
        self.buffers = buffers
        self.lease: Lease | None = None
        if returned.lease is not None:
            self.lease = Lease(connection, returned.lease, returned.lease_seconds)
        self.value: Any = None
        """The object itself, where nothing of it stayed at the site."""
        self._check()
        if self.is_here:
            self.value = self._put_together({})

    @property
    def is_here(self) -> bool:
        """Whether nothing of it stayed at the site."""
        return self.returned.outputs == 0

    def _check(self) -> None:
        site, returned = self.connection.name, self.returned
        check_announced(returned.content, LARGEST_CONTENT, site)
        try:
            check_parts(returned.content, returned.outputs)
            sizes = [
                math.prod(parts.shape) * decode_dtype(parts.dtype).itemsize
                for parts in parts_of(returned.content)
            ]
        except FederatedError as error:
            raise misbehaved(site, error.message) from error
        if returned.outputs and returned.lease is None:
            raise misbehaved(site, "The site sent a result in parts and holds none of them.")
        self.nbytes = sum(sizes)
        """Bytes of its parts together."""

    def lazy(self) -> Any:
        """Give the object with dask arrays whose chunks stay at the site."""
        return self.value if self.is_here else self._put_together(None)

    def held(self, number: int) -> HeldValue:
        """Give one of the parts that stay at the site."""
        assert self.lease is not None  # noqa: S101
        site = self.connection.name
        reference = HeldReference(site, self.lease.name, number, self.returned.derived)
        return HeldValue(reference, self.lease)

    async def fetch(self) -> Any:
        """Bring the object here.

        Raises
        ------
        FederatedError
            If a part does not come, or is not what was announced.
        """
        if self.is_here:
            return self.value
        limit = self.connection.parameters.limits.buffer_bytes
        if self.nbytes > limit:
            raise RequestRefused(
                f"The result has {self.nbytes:,} bytes; {limit:,} fit here.",
                reason=Reason.LIMIT_EXCEEDED,
                site=self.connection.name,
                hint="Take it lazily: future.to_dataset() or future.to_dataarray(), and reduce.",
            )
        gate = asyncio.Semaphore(FETCHES_AT_ONCE)
        arrays: dict[int, np.ndarray] = {}

        async def bring(parts: Parts, number: int) -> None:
            async with gate:
                array = await self._fetch_part(parts, number)
            if parts.count == 1:
                arrays[parts.first] = array
                return
            index = parts.index_of(number)
            place = tuple(
                slice(sum(lengths[:i]), sum(lengths[: i + 1]))
                for lengths, i in zip(parts.chunks, index, strict=True)
            )
            if parts.first not in arrays:
                arrays[parts.first] = np.empty(parts.shape, decode_dtype(parts.dtype))
            arrays[parts.first][place] = array

        with first_error():
            async with asyncio.TaskGroup() as group:
                for parts in parts_of(self.returned.content):
                    for number in range(parts.count):
                        group.create_task(bring(parts, number))
        return self._put_together(arrays)

    async def _fetch_part(self, parts: Parts, number: int) -> np.ndarray:
        assert self.lease is not None  # noqa: S101
        site = self.connection.name
        result, buffers = await self.connection.fetch_held(self.lease.name, parts.first + number)
        shape, dtype = parts.shape_of(number), decode_dtype(parts.dtype)
        size = math.prod(shape) * dtype.itemsize
        array = np.asarray(decode_result(result.value, buffers, operation_table(), site, size))
        if array.shape != shape or not np.can_cast(array.dtype, dtype, "same_kind"):
            raise misbehaved(
                site,
                f"The site sent a part of shape {array.shape} and dtype {array.dtype}, where it "
                f"had announced {shape} and {dtype}.",
            )
        return array.astype(dtype, copy=False)

    def _put_together(self, arrays: dict[int, np.ndarray] | None) -> Any:
        """Make the object over arrays that were brought here, or over lazy ones."""

        def make(parts: Parts) -> Any:
            if arrays is not None:
                return arrays[parts.first]
            assert self.lease is not None  # noqa: S101
            name = f"{self.connection.name}-{self.lease.name}-{parts.first}"
            nodes = [
                held_task((name, *parts.index_of(number)), self.held(parts.first + number))
                for number in range(parts.count)
            ]
            return array_of(parts, nodes, name)

        try:
            return put_together(self.returned.content, self.buffers, make, operation_table())
        except RequestRefused as error:
            raise misbehaved(self.connection.name, error.message) from error
