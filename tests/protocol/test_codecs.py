"""Library classes that cross field by field."""

import functools
import math
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from federated_dask.errors import RequestRefused
from federated_dask.protocol import codecs
from federated_dask.protocol import values as v
from federated_dask.protocol.codecs import from_fields
from federated_dask.protocol.values import decode_value, encode_value
from tests.protocol.round_trips import TABLE, instance, round_trip


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
                "indices": v.ArrayValue("<i4", (0,), (0,), False, 2),
                "indptr": v.ArrayValue("<i4", (10**9,), (1,), False, 0),
                "shape": v.TupleValue((10**9 - 1, 10)),
            },
        ),
    ],
)
def test_whatever_a_library_raises_is_a_refusal(codec: str, fields: Any) -> None:
    tree = v.InstanceValue(codec, fields)
    with pytest.raises(RequestRefused, match="do not fit"):
        decode_value(tree, [bytearray(4), bytearray(), bytearray()], TABLE)


def test_long_indices_of_dates_go_without_their_frequency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pandas makes as many dates one by one, to compare them: 52 s for four million."""
    short, long = (pd.date_range("2000", periods=n, freq="D") for n in (3, 12))
    monkeypatch.setattr(codecs, "MOST_DATES", 10)
    assert round_trip(short).freq == "D"
    assert round_trip(long).freq is None
    np.testing.assert_array_equal(round_trip(long), long)
    # Whoever says it all the same is not believed.
    fields = {"values": long.to_numpy(), "freq": "h", "name": None}
    assert from_fields("pandas.DatetimeIndex", fields).freq is None
