"""A result as a read-only Zarr store (format 3): its metadata, and one chunk at a time.

::

    zarr.json                  the group, and the metadata of all its arrays beside
    air/zarr.json              one array
    air/c/0/3/1                one chunk: bytes, little-endian, C order, not compressed

What is small was written when the store was made; a chunk of what is in parts is put
together of them when it is asked for.  Zarr's chunks are all of one shape: where those
of a result differ, a chunk of the store may need several parts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np

from federated_dask.errors import NotFound, Reason, RequestRefused
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.structures import (
    DATA,
    ArrayObject,
    DataArrayObject,
    DatasetObject,
    Object,
    Parts,
    PlainObject,
    TableObject,
    put_together,
)

__all__ = ["ZarrStore"]

CHUNK = re.compile(r"(?P<name>.+)/c(?P<index>(?:/(?:0|[1-9][0-9]{0,11}))*)")
LARGEST_CHUNK = 256 * 2**20
NUMERIC = "biufc"
DATES = {"M": "since 1970-01-01", "m": ""}
UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


@dataclasses.dataclass(frozen=True)
class _Chunked:
    """An array in parts, and the shape of the store's chunks of it."""

    parts: Parts
    dtype: np.dtype
    chunk: tuple[int, ...]

    @classmethod
    def of(cls, parts: Parts) -> _Chunked:
        dtype = decode_dtype(parts.dtype)
        if dtype.kind not in NUMERIC + "".join(DATES) or dtype.itemsize > 16:
            raise _unfit(f"an array of {dtype} has no Zarr form here")
        chunk = tuple(max(1, *lengths) if lengths else 1 for lengths in parts.chunks)
        if math.prod(chunk) * dtype.itemsize > LARGEST_CHUNK:
            raise _unfit(f"a chunk of it has more than {LARGEST_CHUNK} bytes")
        return cls(parts, dtype, chunk)

    @property
    def stored(self) -> np.dtype:
        """The dtype of the store: times are whole numbers."""
        if self.dtype.kind in DATES:
            return np.dtype("<i8")
        return self.dtype.newbyteorder("<")

    def overlapping(self, index: tuple[int, ...]) -> Iterator[tuple[int, Any, Any]]:
        """Give the parts that a chunk is made of: number, where in the chunk, where in the part."""
        axes = [
            list(_cuts(number * size, (number + 1) * size, lengths))
            for number, size, lengths in zip(index, self.chunk, self.parts.chunks, strict=True)
        ]
        grid = tuple(len(lengths) for lengths in self.parts.chunks)
        for combination in itertools.product(*axes):
            positions = tuple(position for position, _, _ in combination)
            number = int(np.ravel_multi_index(positions, grid)) if grid else 0
            yield (
                number,
                tuple(inside for _, inside, _ in combination),
                tuple(within for _, _, within in combination),
            )


def _cuts(start: int, stop: int, lengths: tuple[int, ...]) -> Iterator[tuple[int, slice, slice]]:
    """Cut a range of an axis into its parts: number, where in the range, where in the part."""
    for position, end in enumerate(itertools.accumulate(lengths)):
        begin = end - lengths[position]
        first, last = max(start, begin), min(stop, end)
        if first < last:
            yield position, slice(first - start, last - start), slice(first - begin, last - begin)


class ZarrStore:
    """Read-only store of one result.

    Parameters
    ----------
    files : dict of str to bytes
        What is written already, by path.
    chunked : dict of str to Parts
        Arrays whose chunks are made when they are asked for.
    fetch : coroutine function
        From the number of a part to its values.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        chunked: dict[str, _Chunked],
        fetch: Callable[[int], Awaitable[np.ndarray]],
    ) -> None:
        self.files = files
        self.chunked = chunked
        self.fetch = fetch

    @classmethod
    def of(
        cls,
        content: Object,
        buffers: list[bytearray],
        fetch: Callable[[int], Awaitable[np.ndarray]],
    ) -> ZarrStore:
        """Make the store of a result; takes time, so callers do it in a thread.

        Raises
        ------
        RequestRefused
            If it is no array, xarray object or table, or holds what Zarr cannot.
        """
        chunked: dict[str, _Chunked] = {}
        for name, parts in _named_parts(content):
            chunked[name] = _Chunked.of(parts)
        lazy = {id(each.parts): each for each in chunked.values()}
        obj = put_together(
            content, buffers, lambda parts: _placeholder(lazy[id(parts)]), operation_table()
        )
        return cls(_written(_as_dataset(obj, content)), chunked, fetch)

    async def read(self, path: str) -> Buffer:
        """Give the bytes under a path.

        Raises
        ------
        NotFound
            If there are none.
        """
        found = self.files.get(path)
        if found is not None:
            return found
        match = CHUNK.fullmatch(path)
        chunked = self.chunked.get(match["name"]) if match else None
        if match is None or chunked is None:
            raise _nothing()
        index = tuple(int(number) for number in match["index"].split("/")[1:])
        shape = chunked.parts.shape
        if len(index) != len(shape) or any(
            number * size >= length
            for number, size, length in zip(index, chunked.chunk, shape, strict=True)
        ):
            raise _nothing()
        wanted = list(chunked.overlapping(index))
        values = [await self.fetch(chunked.parts.first + number) for number, _, _ in wanted]
        return await asyncio.to_thread(_assembled, chunked, wanted, values)


def _assembled(
    chunked: _Chunked, wanted: list[tuple[int, Any, Any]], values: list[np.ndarray]
) -> Buffer:
    chunk = np.zeros(chunked.chunk, chunked.stored)
    for (number, inside, within), value in zip(wanted, values, strict=True):
        if value.dtype != chunked.dtype or value.shape != chunked.parts.shape_of(number):
            raise RequestRefused(
                "A part of the result is not what was announced.", reason=Reason.MALFORMED
            )
        piece = value[within]
        chunk[inside] = piece.view("<i8") if chunked.dtype.kind in DATES else piece
    return chunk.reshape(-1).view(np.uint8).data


def _named_parts(content: Object) -> Iterator[tuple[str, Parts]]:
    match content:
        case ArrayObject():
            yield "result", content.parts
        case DataArrayObject():
            for name, parts in _named_parts(content.content):
                yield (content.name or "result") if name == DATA else name, parts
        case DatasetObject():
            for name, variable in content.variables.items():
                if variable.parts is not None:
                    yield name, variable.parts
        case PlainObject() | TableObject():
            return


def _placeholder(chunked: _Chunked) -> Any:
    """Make a lazy array that has the chunks of the store; its values are never asked for."""
    import dask.array as da

    if chunked.dtype.kind in DATES:
        return da.zeros(chunked.parts.shape, dtype="<i8", chunks=chunked.chunk)
    return da.zeros(chunked.parts.shape, dtype=chunked.stored, chunks=chunked.chunk)


def _as_dataset(obj: Any, content: Object) -> Any:
    import pandas as pd
    import xarray as xr

    if isinstance(obj, pd.DataFrame):
        obj = obj.to_xarray()
    if isinstance(obj, xr.DataArray):
        obj = obj.to_dataset(name="result" if obj.name is None else obj.name)
    elif not isinstance(obj, xr.Dataset):
        if not hasattr(obj, "dtype") and not isinstance(obj, bool | int | float | complex):
            raise _unfit("it is no array")
        obj = xr.DataArray(obj, name="result").to_dataset()
    obj = obj.drop_encoding()
    for name, parts in _named_parts(content):
        dtype = decode_dtype(parts.dtype)
        if dtype.kind in DATES:
            # Written as numbers here, so that xarray does not look for units in the values.
            unit = UNITS.get(np.datetime_data(dtype)[0])
            if unit is None:
                raise _unfit(f"times of {dtype} have no Zarr form")
            attributes = {"units": f"{unit} {DATES[dtype.kind]}".strip()}
            if dtype.kind == "M":
                attributes["calendar"] = "proleptic_gregorian"
            obj[name].attrs.update(attributes, _FillValue=np.iinfo("<i8").min)
    return obj


def _written(obj: Any) -> dict[str, bytes]:
    """Write metadata, and the values of what is not lazy."""
    from zarr.storage import MemoryStore

    stored: dict[str, Any] = {}
    encoding: dict[str, Any] = {}
    for name, variable in obj.variables.items():
        encoding[name] = {"compressors": None}
        if variable.chunks is None and variable.ndim:
            encoding[name]["chunks"] = tuple(max(1, size) for size in variable.shape)
    try:
        obj.to_zarr(
            MemoryStore(stored),
            compute=False,
            zarr_format=3,
            consolidated=False,
            encoding=encoding,
        )
    except (TypeError, ValueError) as error:
        raise _unfit(str(error)[:200]) from None
    files = {path: bytes(value.to_bytes()) for path, value in stored.items()}
    root = json.loads(files["zarr.json"])
    # A store over HTTP cannot be listed: the group tells of all its arrays.
    root["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {
            path.removesuffix("/zarr.json"): json.loads(value)
            for path, value in sorted(files.items())
            if path.endswith("/zarr.json")
        },
    }
    files["zarr.json"] = json.dumps(root).encode()
    return files


def _nothing() -> NotFound:
    return NotFound(
        "Nothing is stored there.",
        reason=Reason.UNKNOWN_RESULT,
        hint="The group's zarr.json names all arrays.",
    )


def _unfit(what: str) -> RequestRefused:
    return RequestRefused(
        f"The result cannot be read as Zarr: {what}.",
        reason=Reason.INVALID_ARGUMENT,
        hint="Ask for the result itself, for example as JSON.",
    )
