import contextlib
import datetime
import functools
import math
import warnings
from typing import Any

import cftime
import dask.array as da
import msgspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federated_dask.errors import FederatedError, NotPermitted, RequestRefused
from federated_dask.protocol import dtypes
from federated_dask.protocol import values as v
from federated_dask.protocol.codecs import from_fields
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.trees import Value
from federated_dask.protocol.values import decode_value, encode_value, object_kind

TABLE = operation_table()
DECODER = msgspec.msgpack.Decoder(Value)


def sent(obj: object) -> tuple[Value, list[bytearray]]:
    """What arrives: the tree through msgpack, the buffers as bytes of their own."""
    buffers: list[Buffer] = []
    tree = encode_value(obj, buffers, TABLE)
    return DECODER.decode(msgspec.msgpack.encode(tree)), [bytearray(buffer) for buffer in buffers]


def round_trip(obj: object) -> Any:
    return decode_value(*sent(obj), TABLE)


def written(array: np.ndarray) -> bytes:
    """Bytes of an array without those that lie between long doubles."""
    if array.dtype.char not in "gG":
        return array.tobytes()
    return np.frombuffer(array.tobytes(), "u1").reshape(-1, 16)[:, :10].tobytes()


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        if theirs.dtype.hasobject:
            for one, other in zip(ours.flat, theirs.flat, strict=True):
                assert_same(one, other)
        else:
            assert written(ours) == written(theirs)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, dict):
        assert_same(list(ours.items()), list(theirs.items()))
    elif isinstance(theirs, np.generic):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()
    elif isinstance(theirs, complex):
        assert_same((ours.real, ours.imag), (theirs.real, theirs.imag))
    elif isinstance(theirs, float):
        assert math.copysign(1, ours) == math.copysign(1, theirs)
        assert ours == theirs or (ours != ours and theirs != theirs)
    else:
        assert ours == theirs


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


@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(2, 20, 3, name="r"),
        pd.Index([3, 1, 2]),
        pd.Index([0.5, math.nan]),
        pd.Index(["a", "b"], name="t"),
        pd.Index(["a", 1], dtype=object),
        pd.Index([True, False]),
        pd.date_range("2000", periods=3, freq="D", name="time"),
        pd.DatetimeIndex(["2000-01-01", "NaT", "1999-05-05"]),
        pd.DatetimeIndex(["2000-01-01"]).as_unit("s"),
        pd.IntervalIndex.from_breaks([0, 1.5, 4], closed="left", name="bins"),
        pd.IntervalIndex.from_breaks(pd.date_range("2000", periods=3)),
    ],
    ids=repr,
)
def test_pandas_indexes(index: pd.Index) -> None:
    decoded = round_trip(index)
    assert type(decoded) is type(index)
    assert decoded.equals(index)
    assert decoded.dtype == index.dtype
    assert decoded.name == index.name


@pytest.mark.parametrize(
    "index",
    [
        pd.date_range("2000", periods=2, tz="UTC"),
        pd.Index([1, None], dtype="Int64"),
        pd.Index(["a", None], dtype="string"),
        pd.Index(["a"], dtype="category"),
        pd.MultiIndex.from_tuples([(1, "a")]),
    ],
    ids=lambda index: str(index.dtype),
)
def test_indexes_that_would_come_back_as_something_else_do_not_cross(index: pd.Index) -> None:
    with pytest.raises(TypeError):
        encode_value(index, [], TABLE)


def aggregations() -> list[Any]:
    """Flox's objects as they stand in real graphs."""
    time = pd.date_range("2000", periods=24, freq="MS")
    array = xr.DataArray(da.ones((24, 2), chunks=(5, 2)), dims=("time", "x"), coords={"time": time})
    found: dict[int, Any] = {}

    def look(value: Any) -> None:
        if type(value).__module__.startswith("flox") and not callable(value):
            found[id(value)] = value
        for part in (
            *(value if isinstance(value, list | tuple) else ()),
            *(value.values() if isinstance(value, dict) else ()),
            *(
                (value.func, value.args, value.keywords)
                if isinstance(value, functools.partial)
                else ()
            ),
            *((value.first, value.funcs) if hasattr(value, "funcs") else ()),
            *((value.func, value.args, value.kwargs) if hasattr(value, "kwargs") else ()),
            *((value.value,) if type(value).__name__ == "DataNode" else ()),
        ):
            look(part)

    for name in ("mean", "std", "first", "median", "max"):
        for method in ("map-reduce", "cohorts", "blockwise"):
            if name in ("median", "first") and method != "blockwise":
                continue
            chunked = array.chunk(time=-1) if method == "blockwise" else array
            options = {} if name == "first" else {"method": method}
            grouped = getattr(chunked.groupby("time.month"), name)(**options)
            for task in dict(grouped.__dask_graph__()).values():
                look(task)
    return list(found.values())


def test_flox_objects_of_real_graphs() -> None:
    objects = aggregations()
    assert {"Aggregation", "ReindexStrategy"} <= {type(obj).__name__ for obj in objects}
    for obj in objects:
        again = round_trip(obj)
        assert type(again) is type(obj)
        assert_same_fields(again, obj)


def assert_same_fields(ours: Any, theirs: Any) -> None:
    fields = getattr(theirs, "__dict__", None) or {
        name: getattr(theirs, name) for name in getattr(theirs, "__slots__", ())
    }
    for name, value in fields.items():
        other = getattr(ours, name)
        if isinstance(value, tuple) and any(isinstance(x, functools.partial) for x in value):
            assert [str(x) for x in other] == [str(x) for x in value]
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(other, value)
        else:
            assert repr(other) == repr(value)


def test_operations_and_partials() -> None:
    assert round_trip(np.nansum) is np.nansum
    again = round_trip(functools.partial(np.nansum, axis=0))
    assert (again.func, again.keywords) == (np.nansum, {"axis": 0})


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
        *(np.dtype(("f4", (2,))), np.dtype({"names": ["a"], "formats": ["f4"], "offsets": [4]})),
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


# Hostile trees

ONE = bytearray(8)
F8 = "<f8"
DEEP: Any = F8
for _ in range(500):
    DEEP = (dtypes.Field("a", DEEP),)


def array(dtype: Any = F8, shape: Any = (1,), stored: Any = None, buffer: int = 0) -> v.ArrayValue:
    return v.ArrayValue(dtype, shape, shape if stored is None else stored, False, buffer)


def instance(codec: str, **fields: Any) -> v.InstanceValue:
    return v.InstanceValue(codec, fields)


HUGE = array(shape=(10**13,), stored=(1,))
AGGREGATION = dict.fromkeys(
    (
        *("name", "preprocess", "reduction_type", "numpy", "chunk", "combine", "simple_combine"),
        *("finalize", "fill_value", "dtype_init", "dtype", "finalize_kwargs", "min_count"),
        *("new_dims_func", "preserves_dtype"),
    )
)


def aggregation(**fields: Any) -> v.InstanceValue:
    return v.InstanceValue("flox.Aggregation", {**AGGREGATION, **fields})


HOSTILE: dict[str, Any] = {
    "short buffer": array(shape=(2,)),
    "long buffer": array("<f4"),
    "missing buffer": array(buffer=1),
    "negative buffer": array(buffer=-1),
    "huge buffer number": array(buffer=2**62),
    "negative length": array(shape=(-1,)),
    "two negatives": array(shape=(-1, -1)),
    "product wraps": array(shape=(2**32, 2**32 + 1)),
    "huge shape": array(shape=(2**63,)),
    "many dimensions": array(shape=(1,) * 70),
    "shape does not fit": array(shape=(3,), stored=(1, 1)),
    "negative repeat": array(shape=(-3,), stored=(1,)),
    "repeats of repeats": array(shape=(2**62, 2**62), stored=(1, 1)),
    "no bytes but many": array("|S0", (10**12,), buffer=1),
    "void without bytes": array("|V0", (10**12,), buffer=1),
    "no fields": array((), (10**12,), buffer=1),
    "object dtype": array("|O"),
    "object field": array((dtypes.Field("a", "|O"),)),
    "unknown dtype": array("<i7"),
    "dtype as text": array("float64"),
    "dtype deep": array(DEEP),
    "dtype huge field": array((dtypes.Field("a", F8, (2**40,)),)),
    "dtype negative field": array((dtypes.Field("a", F8, (-1,)),)),
    "dtype twice a name": array((dtypes.Field("a", "<f4"), dtypes.Field("a", "<f4"))),
    "scalar size": v.ScalarValue(F8, b"1234"),
    "scalar object": v.ScalarValue("|O", bytes(8)),
    "mask is no array": v.MaskedValue(array(), True, 0.0),
    "mask of other shape": v.MaskedValue(array(), array("|b1", (8,)), 0.0),
    "mask that repeats": v.MaskedValue(HUGE, array(shape=(10**13,), stored=(1,)), 0.0),
    "masked text": v.MaskedValue("x", "y", 0.0),
    "texts negative data": v.TextArrayValue((1,), 0, -1),
    "texts beyond": v.TextArrayValue((1,), 2, 1),
    "texts unknown length": v.TextArrayValue((1,), 3, 1),
    "texts no unicode": v.TextArrayValue((1,), 4, 5),
    "texts too few": v.TextArrayValue((1,), 0, 0),
    "cftime calendar": v.CFTimeValue((1,), "maya", False, 0),
    "cftime no calendar": v.CFTimeValue((1,), "", False, 0),
    "cftime count": v.CFTimeValue((2,), "noleap", True, 0),
    "cftime far": v.CFTimeValue((1,), "standard", False, 2),
    "objects count": v.ObjectArrayValue((3,), (1,)),
    "key that is a list": v.DictValue(((v.ListValue(()), 1),)),
    "integer no digits": v.LargeIntegerValue("zz"),
    "integer too long": v.LargeIntegerValue("f" * 10_000),
    "timedelta": v.TimeDeltaValue(10**12, 0, 0),
    "operation unknown": v.OperationValue("os.system"),
    "operation dotted": v.OperationValue("numpy.linalg.linalg.os"),
    "partial of a number": v.PartialValue(3, (), {}),
    "partial of a partial of text": v.PartialValue(v.PartialValue("eval", (), {}), (), {}),
    "partial unknown": v.PartialValue(v.OperationValue("builtins.eval"), (), {}),
    "codec unknown": instance("builtins.object"),
    "codec fields": instance("pandas.RangeIndex"),
    "range step": instance("pandas.RangeIndex", start=0, stop=1, step=0, name=None),
    "range text": instance("pandas.RangeIndex", start="0", stop=[], step=1, name=None),
    "index huge": instance("pandas.Index", values=HUGE, dtype="", name=None),
    "index huge text": instance("pandas.Index", values=HUGE, dtype="str", name=None),
    "index dtype": instance("pandas.Index", values=array(), dtype="category", name=None),
    "index 2-d": instance("pandas.Index", values=array(shape=(1, 1)), dtype="", name=None),
    "index name": instance("pandas.Index", values=array(), dtype="", name=v.ListValue(())),
    "dates huge": instance("pandas.DatetimeIndex", values=HUGE, freq=None, name=None),
    "dates freq": instance("pandas.DatetimeIndex", values=array("<M8[ns]"), freq="os", name=None),
    "dates freq type": instance("pandas.DatetimeIndex", values=array("<M8[ns]"), freq=1, name=None),
    "intervals huge": instance(
        "pandas.IntervalIndex", left=HUGE, right=HUGE, closed="left", name=None
    ),
    "intervals closed": instance(
        "pandas.IntervalIndex", left=array(), right=array(), closed="x", name=None
    ),
    "seed pool": instance(
        "numpy.random.SeedSequence", entropy=1, spawn_key=v.TupleValue(()), pool_size=2**40
    ),
    "seed endless": instance(
        "numpy.random.SeedSequence",
        entropy=instance("pandas.RangeIndex", start=0, stop=2**62, step=1, name=None),
        spawn_key=v.TupleValue(()),
        pool_size=4,
    ),
    "reindex type": instance("flox.ReindexStrategy", blockwise=True, array_type="os"),
    "sentinel": instance("flox.ReprObject", value="__import__('os')"),
    "aggregation fields": instance("flox.Aggregation", name="sum"),
    "aggregation function": aggregation(chunk=v.TupleValue(("__import__",))),
    "aggregation nested function": aggregation(combine=v.TupleValue((v.TupleValue(("np",)),))),
    "aggregation text for a tuple": aggregation(numpy="np"),
    "aggregation finalize": aggregation(finalize="eval"),
    "aggregation preprocess": aggregation(preprocess=3),
    "aggregation keywords": aggregation(finalize_kwargs=v.DictValue((("out", 1),))),
}

BUFFERS = [
    ONE,
    bytearray(),
    bytearray((2**62).to_bytes(8, "little")),
    bytearray((-3).to_bytes(8, "little", signed=True)),
    bytearray((2).to_bytes(8, "little")),
    bytearray(b"\xff\xfe"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_trees_are_refused(name: str) -> None:
    with pytest.raises((RequestRefused, NotPermitted)):
        decode_value(HOSTILE[name], BUFFERS, TABLE)


def test_deep_trees_are_refused_or_decoded() -> None:
    tree: Any = 1
    for _ in range(20_000):
        tree = v.ListValue((tree,))
    with pytest.raises(RequestRefused):
        decode_value(tree, [])


def test_codecs_and_operations_need_a_resolver() -> None:
    for tree in (
        v.OperationValue("numpy.sum"),
        instance("pandas.RangeIndex", start=0, stop=1, step=1, name=None),
    ):
        with pytest.raises(RequestRefused):
            decode_value(tree, [])


def test_unknown_codec_by_its_own_function() -> None:
    with pytest.raises(RequestRefused, match="No codec"):
        from_fields("x" * 1000, {})


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_trees_give_a_value_or_a_refusal(data: st.DataObject) -> None:
    value = [
        np.arange(6.0).reshape(2, 3).T,
        np.array(["a", None], dtype=object),
        np.ma.MaskedArray([1, 2], mask=[0, 1]),
        cftime.DatetimeNoLeap(2000, 1, 1),
        {"a": (1, 2.5, slice(1)), "b": np.float32(2)},
        pd.RangeIndex(3),
        pd.date_range("2000", periods=2),
        functools.partial(np.sum, axis=0),
        np.zeros(2, [("a", "f4"), ("b", "S2")]),
    ]
    buffers: list[Buffer] = []
    message = bytearray(msgspec.msgpack.encode(encode_value(value, buffers, TABLE)))
    for _ in range(data.draw(st.integers(1, 5))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = DECODER.decode(message)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        with contextlib.suppress(FederatedError):
            decode_value(tree, [bytearray(buffer) for buffer in buffers], TABLE)


P = 2**61 - 1


@pytest.mark.parametrize(
    "keys",
    [
        (v.LargeIntegerValue(hex(1025 * P)),),
        (P,),
        (-P,),
        (v.TupleValue((1, v.TupleValue((P,)))),),
        (v.ScalarValue("<c16", bytes(16)),),
        (v.ComplexValue(1.0, 2.0),),
        (v.TimeDeltaValue(1, 2, 3),),
        tuple(v.TupleValue((number,)) for number in range(v.MOST_TUPLE_KEYS + 1)),
    ],
)
def test_keys_of_a_dict_cannot_be_made_to_collide(keys: Any) -> None:
    with pytest.raises(RequestRefused):
        decode_value(v.DictValue(tuple((key, None) for key in keys)), [], TABLE)


@pytest.mark.parametrize("key", [P, 3**60, 1j, (1, (P,)), np.int64(1), datetime.timedelta(1)])
def test_dicts_with_other_keys_have_no_wire_form(key: Any) -> None:
    with pytest.raises(TypeError, match="wire form"):
        encode_value({key: 1}, [])


@pytest.mark.parametrize(
    "value",
    [
        [1] * 11,
        [[1, 2]] * 4,
        {number: number for number in range(6)},
        np.array(["a"] * 11, object),
        np.array([1, "a"] * 6, object),
        [np.array(["a"] * 8, object), np.array(["a"] * 8, object)],
    ],
)
def test_what_is_encoded_one_by_one_is_bounded(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_value(value, [])
    monkeypatch.setattr(v, "LARGEST_ELEMENTWISE", 10)
    with pytest.raises(TypeError, match="10 Python objects"):
        encode_value(value, [])


def test_texts_are_bounded_before_any_is_made() -> None:
    count = v.LARGEST_ELEMENTWISE + 1
    tree = v.TextArrayValue((count,), 0, 1)
    with pytest.raises(RequestRefused) as refusal:
        decode_value(tree, [bytearray(8 * count), bytearray()])
    assert "too large" in str(refusal.value.__cause__)


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


@pytest.mark.parametrize(
    ("codec", "fields"),
    [
        (
            "pandas.Index",
            {"values": v.ArrayValue("<f2", (2,), (2,), False, 0), "dtype": "", "name": None},
        ),
        (
            "scipy.sparse.csr_array",
            {
                "data": v.ArrayValue("<f8", (0,), (0,), False, 1),
                "indices": v.ArrayValue("<i4", (0,), (0,), False, 1),
                "indptr": v.ArrayValue("<i4", (10**9,), (1,), False, 0),
                "shape": v.TupleValue((10**9 - 1, 10)),
            },
        ),
    ],
)
def test_whatever_a_library_raises_is_a_refusal(codec: str, fields: Any) -> None:
    tree = v.InstanceValue(codec, fields)
    with pytest.raises(RequestRefused, match="do not fit"):
        decode_value(tree, [bytearray(4), bytearray()], TABLE)
