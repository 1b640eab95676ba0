"""What other programs read of a result."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from starlette.exceptions import HTTPException

from federated_dask.errors import FederatedError, RequestRefused
from site_plugins.endpoint import renderings
from site_plugins.endpoint.negotiation import best_of
from site_plugins.endpoint.plain import as_json, dumped, object_from_json
from site_plugins.endpoint.plots import NoPicture, picture_of
from site_plugins.endpoint.renderings import ARROW, JSON, NETCDF, PNG, RAW, choose, render

DTYPES = ["?", "<i1", "<u2", "<i4", ">i8", "<u8", "<f4", ">f8", "<c8", "<c16", "<M8[s]", "<m8[ms]"]


def example() -> xr.Dataset:
    return xr.Dataset(
        {
            "air": (("time", "lat", "lon"), np.arange(24.0).reshape(2, 3, 4), {"units": "K"}),
            "name": ("lat", np.array(["a", "b", "c"])),
        },
        coords={
            "time": pd.date_range("2001-01-01", periods=2, unit="s"),
            "lat": ("lat", [10.0, 0.0, -10.0], {"units": "degrees_north"}),
        },
        attrs={"title": "T", "levels": np.arange(2)},
    )


@given(
    hnp.arrays(
        st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    ),
    st.sampled_from(["lists", "base64"]),
)
def test_arrays_come_back_as_they_went(array: np.ndarray, form: Any) -> None:
    text = dumped(as_json(array, form))
    found = object_from_json(json.loads(text), "ndarray", "x")
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("form", ["lists", "base64"])
def test_xarray_objects_come_back(form: Any) -> None:
    plain = json.loads(dumped(as_json(example(), form)))
    xr.testing.assert_identical(
        object_from_json(plain, "dataset", "x").drop_attrs(deep=False),
        example().drop_attrs(deep=False),
    )
    assert plain["attrs"] == {"title": "T", "levels": [0, 1]}
    array = example()["air"]
    plain = json.loads(dumped(as_json(array, form)))
    xr.testing.assert_identical(object_from_json(plain, "dataarray", "x"), array)


def test_what_xarray_itself_writes_is_read() -> None:
    given = example()[["air"]].isel(time=0, drop=True)
    plain = json.loads(json.dumps(given.to_dict(), default=list))
    plain["attrs"] = {}
    xr.testing.assert_equal(object_from_json(plain, "dataset", "x"), given)


def test_tables_come_back() -> None:
    table = pd.DataFrame({"year": [2000, 2001], "mean": [1.5, np.nan]}, index=[3, 4])
    found = object_from_json(json.loads(dumped(as_json(table))), "dataframe", "x")
    pd.testing.assert_frame_equal(found, table)


def test_what_json_has_no_word_for() -> None:
    assert as_json(np.array([np.nan, np.inf, -np.inf]))["data"][1:] == ["Infinity", "-Infinity"]
    assert dumped(as_json(np.array([np.nan]))) == b'{"dtype":"<f8","shape":[1],"data":[null]}'
    dates = np.array([cftime.DatetimeNoLeap(2000, 2, 28)], dtype=object)
    assert as_json(dates)["data"] == ["2000-02-28T00:00:00"]
    assert as_json({"x": np.float32(0.5), "when": np.datetime64("2000-01-01"), "z": 1j}) == {
        "x": 0.5,
        "when": "2000-01-01",
        "z": [0.0, 1.0],
    }
    with pytest.raises(TypeError):
        as_json(object())


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("text", "array"),
        ([[1], [1, 2]], "array"),
        ({"dtype": "<f8"}, "array"),
        ({"dtype": "|O", "data": [1]}, "dtype"),
        ({"dtype": "<f8", "base64": "%%"}, "base64"),
        ({"dtype": "<f8", "base64": "AAAA"}, "whole"),
        ({"dtype": "<f8", "base64": "AAAAAAAAAAA=", "shape": [2]}, "elements"),
        ({"dtype": "<f8", "base64": "AAAAAAAAAAA=", "shape": [-1]}, "shape"),
        ({"dtype": "<f8", "base64": "", "shape": [0] * 100}, "axes"),
        ({"dtype": "<f8", "part": "a"}, "part"),
        ({"base64": "AAAA"}, "dtype"),
        ({"dtype": "<c8", "data": [1]}, "two"),
        ({"dtype": "<f8", "data": [1], "shape": [2]}, "shape"),
        ({"dtype": 5, "data": [1]}, "dtype"),
    ],
)  # fmt: skip
def test_arrays_that_contradict_themselves(given: Any, what: str) -> None:
    with pytest.raises(FederatedError) as refused:
        object_from_json(given, "ndarray", "field")
    assert refused.value.reason == "invalid_argument"
    assert what in refused.value.message
    assert "'field'" in refused.value.message


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"data_vars": {"a": {"dims": ["x"], "data": [1]}, "b": {"dims": ["x"], "data": [1, 2]}}},
         "dataset"),
        ({"data_vars": {"a": {"dims": ["x", "x"], "data": [[1]]}}}, "dataset"),
        ({"data_vars": [1]}, "dataset"),
        ({"unknown": 1}, "dataset"),
        ([1, 2], "dataset"),
        ({"dims": ["x"], "data": 1}, "dataarray"),
        ({"dims": "x", "data": [1]}, "dataarray"),
        ({"dims": ["x"], "data": [1], "name": 3}, "dataarray"),
        ({"dims": ["x"], "data": [1], "coords": {"x": {"dims": ["x"], "data": [1, 2]}}},
         "dataarray"),
        ({"columns": {"a": [1], "b": [1, 2]}}, "dataframe"),
        ({"columns": {"a": 1}}, "dataframe"),
        (3, "dataframe"),
    ],
)  # fmt: skip
def test_objects_that_contradict_themselves(given: Any, kind: str) -> None:
    with pytest.raises(FederatedError) as refused:
        object_from_json(given, kind, "field")
    assert refused.value.reason == "invalid_argument"


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["dims", "data", "dtype", "shape", "base64", "part", "coords", "attrs",
                         "data_vars", "columns", "index", "name"]), inner, max_size=4),
    max_leaves=12,
), st.sampled_from(["dataset", "dataarray", "ndarray", "dataframe"]))  # fmt: skip
def test_any_json_is_read_or_refused(given: Any, kind: str) -> None:
    with contextlib.suppress(RequestRefused):
        assert object_from_json(given, kind, "x") is not None


def test_raw_bytes_and_what_describes_them() -> None:
    rendered = render(np.arange(6, dtype=">i4").reshape(2, 3), RAW)
    assert bytes(rendered.body) == struct.pack("<6i", *range(6))
    assert rendered.headers["Federated-DType"] == "<i4"
    assert rendered.headers["Federated-Shape"] == "[2, 3]"
    rendered = render(example(), RAW, variable="air")
    assert rendered.headers["Federated-Dimensions"] == '["time", "lat", "lon"]'
    assert len(rendered.body) == 24 * 8
    for obj in ("text", {"a": 1}, example(), np.array(["a"])):
        with pytest.raises(HTTPException) as refused:
            render(obj, RAW)
        assert refused.value.status_code == 406


def test_netcdf_is_read_by_xarray(tmp_path: Path) -> None:
    given = example()
    given["air"].encoding = {"scale_factor": 1000.0, "dtype": "i2"}
    path = tmp_path / "it.nc"
    path.write_bytes(render(given, NETCDF).body)
    with xr.open_dataset(path, engine="netcdf4") as found:
        xr.testing.assert_equal(found, given)
    path.write_bytes(render(np.ones(3), NETCDF).body)
    with xr.open_dataset(path, engine="h5netcdf") as found:
        np.testing.assert_array_equal(found["result"], np.ones(3))
    with pytest.raises(HTTPException):
        render("text", NETCDF)


def test_arrow_is_read_by_pyarrow() -> None:
    table = pd.DataFrame({"year": [2000, 2001], "site": ["a", None]}, index=[3, 4])
    found = pa.ipc.open_stream(io.BytesIO(render(table, ARROW).body)).read_pandas()
    assert found["year"].tolist() == [2000, 2001]
    assert found.index.tolist() == [3, 4]
    long = pa.ipc.open_stream(io.BytesIO(render(example(), ARROW).body)).read_pandas()
    assert sorted(long.columns) == ["air", "lat", "lon", "name", "time"]
    assert long["air"].sum() == np.arange(24.0).sum()
    assert pa.ipc.open_stream(io.BytesIO(render(2.5, ARROW).body)).read_all().num_rows == 1


def size_of(png: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize(
    "obj",
    [
        example(),
        example()["air"],
        example()["air"].isel(time=0, lat=0),
        example()["air"].isel(lat=0, lon=0),
        example()["air"].rename(lat="a", lon="b").expand_dims(e=20),
        example()["air"].mean(),
        np.full((30, 40), np.nan),
        np.random.default_rng(0).normal(size=(50, 60)),
        np.arange(5_000_000),
        np.array([np.inf, 1.0]),
        pd.DataFrame({"year": [2000, 2001], "mean": [1.5, 2.5]}),
        xr.DataArray(
            [1.0, 2.0],
            dims="time",
            coords={"time": xr.date_range("2000", periods=2, calendar="360_day", use_cftime=True)},
            name="$\\frac{1}{",
        ),
        3.5,
    ],
    ids=range(13),
)
def test_pictures(obj: Any) -> None:
    assert size_of(render(obj, PNG).body) == (792, 462)


@pytest.mark.parametrize("obj", ["text", {"a": 1}, np.array(["a"]), np.empty((0, 3))])
def test_where_there_is_no_picture(obj: Any) -> None:
    with pytest.raises(HTTPException) as refused:
        render(obj, PNG)
    assert refused.value.status_code == 406
    with pytest.raises(NoPicture):
        picture_of(obj)


def test_what_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(renderings.CAPS, JSON, 100)
    with pytest.raises(FederatedError) as refused:
        render(np.zeros(100), JSON)
    assert refused.value.reason == "limit_exceeded"
    assert json.loads(bytes(render(np.zeros(100), JSON, arrays="omitted").body))["shape"] == [100]


def test_a_variable_that_is_missing() -> None:
    for obj in (example(), np.ones(3), pd.DataFrame({"a": [1]}), 3):
        with pytest.raises(FederatedError) as refused:
            render(obj, JSON, variable="nothing")
        assert refused.value.reason == "unknown_variable"


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("image/*", PNG),
        ("image/png;q=0.1, application/json;q=0.2", JSON),
        ("application/*;q=0.5, image/png;q=0.6", PNG),
        ("application/json;q=0, */*;q=0.1", RAW),
        ("application/json;q=nan, image/png;q=0.1", PNG),
        ("IMAGE/PNG", PNG),
        ("text/html", None),
        ("image/png;q=2", None),
        (";;,,q=", None),
    ],
)
def test_what_is_accepted_best(accept: str, best: str | None) -> None:
    assert best_of(accept, renderings.MEDIA_TYPES) == best
    if best is None:
        with pytest.raises(HTTPException) as refused:
            choose(accept)
        assert refused.value.status_code == 406


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_any_header_is_read(accept: str) -> None:
    assert best_of(accept, renderings.MEDIA_TYPES) in (None, *renderings.MEDIA_TYPES)
