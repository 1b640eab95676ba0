"""Objects cross as they are: taken apart, through a frame, and put together again."""

from typing import Any

import dask.array as da
import msgspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol.call_messages import CallSubmission, HeldArgument, SentArgument
from federated_dask.protocol.frames import FrameDecoder, decode_message, encode_frame
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.structures import (
    ArrayObject,
    Parts,
    array_of,
    check_parts,
    parts_of,
    put_together,
    take_apart,
)

TABLE = operation_table()


def chunks_of(arrays: list[Any]) -> list[np.ndarray]:
    return [
        np.asarray(array.blocks[index].compute())
        for array in arrays
        for index in np.ndindex(array.numblocks)
    ]


def crossed(obj: Any) -> Any:
    buffers: list[Any] = []
    content, arrays = take_apart(obj, buffers, TABLE)
    chunks = chunks_of(arrays)
    check_parts(content, len(chunks))
    frame = encode_frame(
        CallSubmission(function="f", arguments=(SentArgument(content=content),)), buffers
    )
    [received] = FrameDecoder().feed(b"".join(bytes(piece) for piece in frame))
    [argument] = decode_message(received, CallSubmission).arguments
    assert isinstance(argument, SentArgument)

    def make(parts: Parts) -> da.Array:
        own = chunks[parts.first : parts.first + parts.count]
        return array_of(parts, own, f"x-{parts.first}")

    return put_together(argument.content, received.buffers, make, TABLE)


def dataset() -> xr.Dataset:
    return xr.Dataset(
        {
            "air": (
                ("time", "x"),
                da.arange(24, chunks=5).reshape(4, 6).rechunk((2, 4)),
                {"units": "K"},
            ),
            "flag": ("x", np.array([True, False, True, True, False, True])),
            "name": ("x", np.array(list("abcdef"), dtype=object)),
        },
        coords={
            "time": pd.date_range("2001-01-01", periods=4, unit="ns"),
            "height": ("x", np.linspace(0, 1, 6)),
            "run": 3,
        },
        attrs={"title": "made up", "number": 7},
    )


@pytest.mark.parametrize(
    "obj",
    [
        dataset(),
        dataset().air,
        dataset().air.rename(None),
        dataset().drop_indexes("time"),
        xr.Dataset(),
        xr.DataArray(3.0),
    ],
    ids=["dataset", "dataarray", "unnamed", "without index", "empty", "scalar"],
)
def test_an_xarray_object_is_the_same_again(obj: Any) -> None:
    again = crossed(obj)
    xr.testing.assert_identical(again, obj)
    assert set(again.xindexes) == set(obj.xindexes)
    assert again.chunks == obj.chunks


def test_a_table_is_the_same_again() -> None:
    frame = pd.DataFrame(
        {"n": [1, 2, 3], "x": [0.5, np.nan, 2.0], "text": ["a", "b", "ß"]},
        index=pd.Index([10, 20, 30], name="station"),
    )
    pd.testing.assert_frame_equal(crossed(frame), frame)


@pytest.mark.parametrize("obj", [3, "text", None, [1, {"a": 2.5}], np.arange(3), np.float32(2)])
def test_plain_data_are_the_same_again(obj: Any) -> None:
    again = crossed(obj)
    assert type(again) is type(obj)
    np.testing.assert_equal(again, obj)


def test_what_is_no_plain_data_of_attributes_stays_behind() -> None:
    array = xr.DataArray(np.arange(3), attrs={"units": "m", "function": print})
    assert crossed(array).attrs == {"units": "m"}


@pytest.mark.parametrize(
    "obj",
    [
        print,
        xr.Dataset({("a", 1): 3}),
        xr.DataArray([1, 2], coords={"x": pd.MultiIndex.from_tuples([(1, 2), (3, 4)])}, dims="x"),
        da.ones(4, chunks=2)[da.ones(4, chunks=2) > 0],
        pd.DataFrame({1: [2]}),
    ],
    ids=["function", "name", "multi-index", "unknown chunks", "column"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_wire_form_is_refused(obj: Any) -> None:
    with pytest.raises(TypeError, match=r"no wire form|names are texts"):
        take_apart(obj, [])


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        (Parts(dtype="<f8", chunks=((2, 2),), first=0), 3),
        (Parts(dtype="<f8", chunks=((2, 2),), first=1), 2),
    ],
)
def test_parts_that_do_not_add_up_are_refused(parts: Parts, count: int) -> None:
    with pytest.raises(RequestRefused) as caught:
        check_parts(ArrayObject(parts=parts), count)
    assert caught.value.reason is Reason.MALFORMED


def test_too_many_parts_are_refused_before_they_are_counted() -> None:
    parts = Parts(dtype="<f8", chunks=((1,) * 10_000,) * 30, first=0)
    with pytest.raises(RequestRefused) as caught:
        check_parts(ArrayObject(parts=parts), 1)
    assert caught.value.reason is Reason.LIMIT_EXCEEDED


def test_a_description_that_contradicts_itself_is_refused() -> None:
    buffers: list[Any] = []
    content, _ = take_apart(dataset().compute(), buffers)
    wrong = msgspec.structs.replace(content, coordinates=("air", "nothing"))
    with pytest.raises(RequestRefused):
        put_together(wrong, [bytearray(b) for b in buffers], lambda parts: None)


def test_every_part_is_named_once() -> None:
    content, arrays = take_apart(dataset(), [])
    [parts] = parts_of(content)
    assert parts.count == arrays[0].npartitions
    assert HeldArgument(content=content, held=()).content is content
