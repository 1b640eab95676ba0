"""Values that cross and come back as they were."""

import datetime
import functools
import math
from typing import Any

import cftime
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federated_dask.errors import RequestRefused
from federated_dask.protocol import dtypes
from federated_dask.protocol import values as v
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.values import decode_value, encode_value, object_kind
from tests.protocol.round_trips import TABLE, assert_same, round_trip, sent

# Arrays

PLAIN = [
    *("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"),
    *(">i4", ">f8", ">c16", ">U3", "S5", "U7", "V3", "g", "G"),
    *(f"M8[{unit}]" for unit in ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "25s")),
    *("m8", "m8[ns]", "m8[D]", ">M8[ns]"),
    [("a", "f4"), ("b", "<i2")],
    [("a", "M8[ns]"), ("b", [("c", "S3"), ("d", ">f8", (2, 3))]), ("é", "?")],
]


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3), (1, 1, 4)])
def test_arrays_of_plain_data(dtype: Any, shape: tuple[int, ...]) -> None:
    wanted = np.dtype(dtype)
    count = math.prod(shape)
    noise = np.random.default_rng(0).integers(0, 2, count * wanted.itemsize, dtype="u1")
    array = (
        np.frombuffer(noise.tobytes(), wanted, count).reshape(shape)
        if count
        else np.empty(shape, wanted)
    )
    assert_same(round_trip(array), array)


@settings(max_examples=150)
@given(
    array=hnp.arrays(
        hnp.scalar_dtypes() | hnp.structured_dtype()
        if hasattr(hnp, "structured_dtype")
        else hnp.scalar_dtypes(),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
    )
)
def test_arrays_of_any_kind(array: np.ndarray) -> None:
    if not array.dtype.itemsize:
        return
    assert_same(round_trip(array), array)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T,
        lambda x: np.asfortranarray(x),
        lambda x: x[::-1],
        lambda x: x[:, ::-2],
        lambda x: x[1:, 1:],
        lambda x: x.transpose(1, 0)[::2],
        lambda x: x[..., None],
        lambda x: np.lib.stride_tricks.sliding_window_view(x, 2, axis=0),
        lambda x: np.require(x, requirements="O").copy()[:0],
    ],
)
def test_memory_layouts(view: Any) -> None:
    array = view(np.arange(12.0).reshape(3, 4))
    assert_same(round_trip(array), array)


@pytest.mark.parametrize("shape", [(1000, 1000), (1000, 3), (3, 1000), ()])
def test_repeats_are_not_stored(shape: tuple[int, ...]) -> None:
    array = np.broadcast_to(np.float64(7), shape)
    tree, buffers = sent(array)
    assert sum(map(len, buffers)) == 8
    decoded = decode_value(tree, buffers)
    assert_same(decoded, np.array(array))
    assert decoded.strides == (0,) * len(shape)


def test_repeats_along_one_axis_are_not_stored() -> None:
    array = np.broadcast_to(np.arange(3.0)[:, None], (3, 1000))
    _, buffers = sent(array)
    assert sum(map(len, buffers)) == 24
    assert_same(round_trip(array), np.array(array))


def test_decoding_copies_nothing() -> None:
    tree, buffers = sent(np.arange(6.0).reshape(2, 3))
    decoded = decode_value(tree, buffers)
    assert np.shares_memory(decoded, np.frombuffer(buffers[0]))
    decoded[0, 0] = 5
    assert np.frombuffer(buffers[0])[0] == 5


def test_encoding_copies_nothing() -> None:
    array = np.arange(6.0)
    buffers: list[Buffer] = []
    encode_value(array, buffers)
    assert np.shares_memory(np.frombuffer(buffers[0]), array)


@pytest.mark.parametrize("shape", [(), (4,), (2, 2), (0,)])
def test_masked_arrays(shape: tuple[int, ...]) -> None:
    data = np.arange(math.prod(shape), dtype="f4").reshape(shape)
    array = np.ma.MaskedArray(data, mask=data > 1, fill_value=9)
    decoded = round_trip(array)
    assert_same(decoded.data, array.data)
    assert_same(np.ma.getmaskarray(decoded), np.ma.getmaskarray(array))
    assert decoded.fill_value == 9


def test_the_masked_constant_is_itself() -> None:
    assert round_trip(np.ma.masked) is np.ma.masked


def test_masked_array_without_mask_and_structured() -> None:
    assert not round_trip(np.ma.MaskedArray([1, 2])).mask.any()
    array = np.ma.zeros(2, dtype=[("a", "i4"), ("b", "f8")])
    array["a"][1] = np.ma.masked
    assert round_trip(array).mask.tolist() == [(False, False), (True, False)]


# Arrays of Python objects


@pytest.mark.parametrize(
    "items",
    [
        ["a", "", "é" * 9, "\U0001f30d"],
        ["a", None, math.nan],
        [None, None],
        [math.nan],
        ["a\0b", "\0"],
    ],
)
def test_texts(items: list[Any]) -> None:
    array = np.array(items, dtype=object)
    assert object_kind(array) == "texts"
    assert_same(round_trip(array), array)
    assert_same(round_trip(array.reshape(1, -1)), array.reshape(1, -1))


CALENDARS = [
    *("standard", "gregorian", "proleptic_gregorian", "julian"),
    *("noleap", "365_day", "all_leap", "366_day", "360_day"),
]


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("year", [1, 1582, 1970, 2099, 9999])
def test_cftime(calendar: str, year: int) -> None:
    dates = cftime.num2date(
        np.array([0, 1, 86_399_999_999, 10**12 + 7]),
        f"microseconds since {year:04d}-02-03",
        calendar=calendar,
    )
    decoded = round_trip(dates)
    assert (decoded == dates).all()
    for one, other in zip(decoded, dates, strict=True):
        assert type(one) is type(other)
        assert one.calendar == other.calendar
        assert one.microsecond == other.microsecond
        assert one.has_year_zero == other.has_year_zero
    scalar = round_trip(dates[2])
    assert scalar == dates[2]
    assert type(scalar) is type(dates[2])
    assert (round_trip(dates.reshape(2, 2)) == dates.reshape(2, 2)).all()


@given(st.integers(-50_000 * 365 * 86_400 * 10**6, 50_000 * 365 * 86_400 * 10**6))
def test_cftime_is_exact_to_the_microsecond(number: int) -> None:
    date = cftime.num2date(number, v.CFTIME_UNITS, calendar="noleap")
    assert round_trip(date) == date
    assert round_trip(date).microsecond == date.microsecond


@pytest.mark.parametrize(
    "date",
    [cftime.datetime(2000, 1, 1, calendar=""), cftime.DatetimeNoLeap(200_000, 1, 1)],
    ids=["no calendar", "far away"],
)
def test_dates_without_wire_form(date: object) -> None:
    with pytest.raises(TypeError, match="no wire form"):
        encode_value(date, [])


def test_mixed_objects_travel_one_by_one() -> None:
    array = np.empty((2, 3), dtype=object)
    array[0] = [1, "a", 2.5]
    array[1] = [None, np.arange(3), cftime.Datetime360Day(2000, 2, 30)]
    assert_same(round_trip(array), array)
    assert_same(round_trip(np.empty((0, 2), object)), np.empty((0, 2), object))


def test_dates_of_two_calendars_travel_one_by_one() -> None:
    array = np.array([cftime.DatetimeNoLeap(2000, 1, 1), cftime.Datetime360Day(2000, 1, 1)])
    assert object_kind(array) == "objects"
    assert [type(date) for date in round_trip(array)] == [type(date) for date in array]


# Other values


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            True,
            False,
            0,
            -1,
            2**63 - 1,
            -(2**63),
            2**63,
            2**64,
            -(2**63) - 1,
            3**500,
            -(3**500),
        ),
        *(0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, "", "é\0\U0001f30d", b"", b"\0\xff"),
        *(1 + 2j, complex(-0.0, math.inf), datetime.timedelta(days=-3, microseconds=7)),
        *([], (), {}, [1, [2, (3, {4: [5]})]], {"a": 1, (1, "b"): None, 2.5: [True], None: ()}),
        *(slice(None), slice(1, -2, 3), np.dtype("f4"), np.dtype("O"), np.dtype([("a", "M8[ns]")])),
        *(np.float32(1.5), np.bool_(True), np.datetime64("NaT"), np.datetime64("2000-01-01", "ns")),
        *(np.timedelta64("NaT", "s"), np.str_("é"), np.str_(""), np.bytes_(b""), np.bytes_(b"ab")),
        *(np.complex64(1j), np.longdouble(1) / 3, np.float16("nan")),
        np.zeros(1, [("a", "f4"), ("b", "S3")])[0],
    ],
    ids=repr,
)
def test_plain_values(value: object) -> None:
    assert_same(round_trip(value), value)


SMALL_INTEGERS = st.integers(2 - 2**61, 2**61 - 2)
PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9)
    | st.complex_numbers() | st.timedeltas() | st.slices(9),
    lambda inner: st.lists(inner, max_size=3)
    | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text() | SMALL_INTEGERS | st.none(), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(PLAIN_VALUES)
def test_nested_plain_values(value: object) -> None:
    assert_same(round_trip(value), value)


class Own:
    pass


@pytest.mark.parametrize(
    "value",
    [
        *(
            object(),
            Own(),
            Own,
            lambda: 0,
            print,
            open,
            {1, 2},
            range(3),
            Ellipsis,
            np.random.default_rng(),
        ),
        *(
            np.zeros(1).view(np.recarray),
            np.array([Own()], dtype=object),
            np.zeros(2, [("a", "O")]),
        ),
        *(
            np.zeros(1, [("a", "O")])[0],
            2**5000,
            "\ud800",
            ["\ud800"],
            np.empty(3, "V0"),
        ),
        *(np.array(["a"], dtype=np.dtypes.StringDType()), np.array([[]], dtype=[]), pd.Series([1])),
        *(functools.partial(print), np.array(["\ud800"], dtype=object)),
        np.dtype(("f4", (2,))),
        np.dtype({"names": ["a", "b"], "formats": ["f4", "f4"], "offsets": [4, 0]}),
        np.dtype({"names": ["a", "b"], "formats": ["f4", "f4"], "offsets": [0, 2]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_wire_form_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError):
        encode_value(value, [], TABLE)


def test_what_holds_itself_is_a_type_error() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(TypeError):
        encode_value(value, [])


def test_dtypes_are_an_enumeration() -> None:
    for text in ("<i8", "|b1", "<M8[25s]", "|O", ">U3"):
        assert dtypes.decode_dtype(text) == np.dtype(text)
    for text in (
        "f8",
        "float",
        "O",
        "(2,)f4",
        "f4,f4",
        "<f4 ",
        "<T16",
        "<U999999999",
        "<f٤",
        "",
        "|O8",
    ):
        with pytest.raises(RequestRefused):
            dtypes.decode_dtype(text)


@pytest.mark.parametrize("dtype", ["g", "G"])
def test_memory_between_long_doubles_does_not_cross(dtype: str) -> None:
    array = np.frombuffer(b"\xa5" * 64, dtype)
    for value in (array, array[0], array.reshape(1, -1).T):
        buffers: list[Any] = []
        tree: Any = encode_value(value, buffers)
        data = bytes(buffers[0]) if buffers else tree.data
        assert data == (b"\xa5" * 10 + bytes(6)) * (len(data) // 16)
    with pytest.raises(TypeError, match="wire form"):
        encode_value(np.zeros(1, [("a", dtype)]), [])
    with pytest.raises(TypeError, match="wire form"):
        encode_value(np.zeros(1, [("a", dtype)])[0], [])


GAPS = [
    np.dtype("i1, f8", align=True),
    np.dtype("f8, i1", align=True),
    np.dtype([("a", "i4"), ("b", "f8"), ("c", "i2")])[["a", "c"]],
    np.dtype({"names": ["a"], "formats": ["f4"], "offsets": [4]}),
    np.dtype([("outer", np.dtype("i1, (2,)i2, f8", align=True)), ("flag", "?")]),
    np.dtype([("many", np.dtype("i1, i4", align=True), (2, 3))]),
]


@pytest.mark.parametrize("dtype", GAPS, ids=str)
def test_structures_with_gaps_cross_without_what_lies_there(dtype: np.dtype) -> None:
    noise = np.random.default_rng(0).integers(2, 4, 6 * dtype.itemsize, dtype="u1")
    array = noise.view(dtype).reshape(2, 3)
    for value in (array, array.T, array[:, ::2], array[1, 2]):
        buffers: list[Any] = []
        tree: Any = encode_value(value, buffers)
        crossed = bytes(buffers[0]) if buffers else tree.data
        decoded = decode_value(tree, [bytearray(buffer) for buffer in buffers])
        assert decoded.dtype == dtype
        assert fields_of(decoded) == fields_of(value)
        written = np.frombuffer(fields_of(array[:1, 0]), "u1") > 0
        assert not np.frombuffer(crossed, "u1").reshape(-1, dtype.itemsize)[:, ~written].any()


def fields_of(value: Any) -> bytes:
    """Bytes of a structured array, with zeros between its fields."""
    fields = np.zeros(np.shape(value), value.dtype)
    copy_fields(fields, np.asarray(value))
    return fields.tobytes()


def copy_fields(to: np.ndarray, array: np.ndarray) -> None:
    for name in array.dtype.names or ():
        copy_fields(to[name], array[name])
    if array.dtype.names is None:
        to[...] = array


@pytest.mark.parametrize(
    "fields",
    [
        (dtypes.Field("", "|V0"),),
        (dtypes.Field("", "<f8"), dtypes.Field("a", "<f8")),
        (dtypes.Field("", "|V4", (2,)), dtypes.Field("a", "<f8")),
        (dtypes.Field("", (dtypes.Field("b", "<f8"),)), dtypes.Field("a", "<f8")),
        (dtypes.Field("a", "<f8"), *[dtypes.Field("", "|V999999999")] * 3),
    ],
)
def test_gaps_are_nothing_but_gaps(fields: Any) -> None:
    with pytest.raises(RequestRefused):
        dtypes.decode_dtype(fields)
