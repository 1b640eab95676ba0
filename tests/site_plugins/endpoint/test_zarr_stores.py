"""A result read by xarray and zarr as they are, through nothing but paths and bytes."""

from __future__ import annotations

import asyncio
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from zarr.storage import MemoryStore

from federated_dask.errors import FederatedError
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.structures import take_apart
from site_plugins.endpoint.zarr_stores import ZarrStore


def store_of(obj: Any) -> ZarrStore:
    buffers: list[Any] = []
    content, arrays = take_apart(obj, buffers, operation_table())
    blocks: list[np.ndarray] = []
    for array in arrays:
        grid = tuple(len(lengths) for lengths in array.chunks)
        blocks += [np.asarray(array.blocks[i].compute()) for i in np.ndindex(*grid)]

    async def fetch(number: int) -> np.ndarray:
        return blocks[number]

    return ZarrStore.of(content, [bytearray(buffer) for buffer in buffers], fetch)


def opened(store: ZarrStore) -> xr.Dataset:
    """Read everything that the store's metadata promises into a store of zarr's own."""
    from zarr.core.buffer import default_buffer_prototype

    make = default_buffer_prototype().buffer.from_bytes
    held = {path: make(content) for path, content in store.files.items()}

    async def read_all() -> None:
        for name, chunked in store.chunked.items():
            shape = chunked.parts.shape
            grid = [-(-n // size) for n, size in zip(shape, chunked.chunk, strict=True)]
            for index in np.ndindex(*grid):
                path = "/".join([name, "c", *map(str, index)])
                held[path] = make(bytes(await store.read(path)))

    asyncio.run(read_all())
    return xr.open_zarr(MemoryStore(held), consolidated=True, chunks=None).load()


def example(chunks: Any) -> xr.Dataset:
    values = np.random.default_rng(3).normal(size=(10, 7)).astype("f4")
    values[2, 3] = np.nan
    return xr.Dataset(
        {
            "air": (("time", "lat"), da.from_array(values, chunks=chunks), {"units": "K"}),
            "small": ("lat", np.arange(7)),
            "flag": ("time", da.from_array(np.arange(10) % 2 == 0, chunks=4)),
        },
        coords={
            "time": pd.date_range("2000-01-01", periods=10, freq="D"),
            "name": ("lat", np.array(list("abcdefg"), dtype=object)),
            "when": ("time", da.from_array(np.arange(10).astype("M8[s]"), chunks=3)),
        },
        attrs={"title": "T"},
    )


@pytest.mark.parametrize("chunks", [(4, 7), (10, 7), ((3, 5, 2), (2, 5)), ((1, 9), (6, 1))])
def test_a_dataset_in_regular_and_irregular_parts(chunks: Any) -> None:
    given = example(chunks)
    found = opened(store_of(given))
    xr.testing.assert_equal(found, given.compute())
    assert found.air.attrs == {"units": "K"}
    assert found.attrs == {"title": "T"}
    assert found.air.dtype == np.dtype("f4")
    assert found.flag.dtype == bool


def test_a_dataarray_without_a_name_and_a_bare_array() -> None:
    array = xr.DataArray(da.ones((4, 3), chunks=2), dims=("x", "y")).rename(None)
    np.testing.assert_array_equal(opened(store_of(array))["result"], np.ones((4, 3)))
    lazily = da.arange(6, chunks=4)
    np.testing.assert_array_equal(opened(store_of(lazily))["result"], np.arange(6))


def test_values_that_stand_in_the_result() -> None:
    table = pd.DataFrame({"year": [2000, 2001], "mean": [1.5, 2.5]})
    np.testing.assert_array_equal(opened(store_of(table))["mean"], [1.5, 2.5])
    assert opened(store_of(3.5))["result"].item() == 3.5


@pytest.mark.parametrize(
    "path", ["", "air", "air/c", "air/c/0", "air/c/0/9", "air/c/9/0", "air/c/0/0/0", "../zarr.json",
             "air/c/-1/0", "air/c/00/0", "small/c/1", "nothing/c/0"],
)  # fmt: skip
def test_where_there_is_nothing(path: str) -> None:
    store = store_of(example((4, 7)))
    with pytest.raises(FederatedError) as refused:
        asyncio.run(store.read(path))
    assert refused.value.reason == "unknown_result"


@pytest.mark.parametrize("obj", [{"a": 1}, "text", [1, "b"], None])
def test_what_is_no_array(obj: Any) -> None:
    with pytest.raises(FederatedError) as refused:
        store_of(obj)
    assert refused.value.reason == "invalid_argument"
