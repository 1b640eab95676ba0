import shutil
from pathlib import Path
from typing import Any

import iris_sample_data
import msgspec
import numpy as np
import pytest
import xarray as xr

from federated_dask.errors import DatasetUnreadable
from federated_dask.protocol.frames import FrameDecoder, encode_frame
from federated_dask.protocol.messages import DatasetDescription
from federated_dask.protocol.values import decode_value
from site_plugins import datasets
from site_plugins.datasets import StoredDataset
from site_plugins.descriptions import check, describe

SAMPLES = Path(iris_sample_data.path)
A1B = StoredDataset(
    name="a1b",
    path=str(SAMPLES / "A1B_north_america.nc"),
    open_options={"decode_timedelta": False},
    egress="derived",
    share=0.25,
)
SST = StoredDataset(name="sst", path=str(SAMPLES / "ostia_monthly.nc"))


def sent(dataset: StoredDataset) -> tuple[DatasetDescription, dict[str, Any]]:
    """The description after its way over the wire, and the values that came with it."""
    description, buffers = describe(dataset, "north")
    [frame] = FrameDecoder().feed(b"".join(encode_frame(description, buffers)))
    received = msgspec.msgpack.decode(frame.message, type=DatasetDescription)
    values = {
        name: decode_value(variable.value, frame.buffers)
        for name, variable in received.variables.items()
        if variable.value is not None
    }
    return received, values


@pytest.fixture(params=[A1B, SST], ids=["a1b", "sst"])
def stored(request: pytest.FixtureRequest) -> StoredDataset:
    return request.param


def test_what_is_described_is_what_xarray_shows(stored: StoredDataset) -> None:
    received, values = sent(stored)
    expected = xr.load_dataset(stored.path, **stored.open_options)
    assert (received.site, received.name) == ("north", stored.name)
    assert received.version == stored.fingerprint()
    assert list(received.variables) == list(
        xr.open_dataset(stored.path, **stored.open_options).variables
    )
    assert received.attributes == expected.attrs
    assert received.size == expected.nbytes
    for name, variable in received.variables.items():
        wanted = expected.variables[name]
        assert variable.dimensions == wanted.dims
        assert variable.shape == wanted.shape
        assert variable.attributes == wanted.attrs
        assert variable.coordinate == (name in expected.coords)
        assert variable.dtype == ("object:cftime" if wanted.dtype == object else wanted.dtype.str)
    # All coordinates of these files are small; what xarray looks at goes along too.
    looked_at = {
        name
        for name, variable in expected.variables.items()
        if stored.egress == "open" and (variable.ndim == 0 or variable.dtype == object)
    }
    assert set(values) == set(expected.coords) | looked_at
    for name, value in values.items():
        np.testing.assert_array_equal(value, expected.variables[name].to_numpy())
        assert value.dtype == expected.variables[name].dtype


def test_encoding_is_that_of_xarray_without_the_path(stored: StoredDataset) -> None:
    received, _ = sent(stored)
    expected = xr.open_dataset(stored.path, **stored.open_options)
    for name, variable in received.variables.items():
        wanted = dict(expected.variables[name].encoding)
        assert wanted.pop("source") == stored.path
        found = dict(variable.encoding)
        assert np.dtype(found.pop("dtype")) == wanted.pop("dtype")
        assert found == {key: _listed(value) for key, value in wanted.items()}
    assert str(SAMPLES) not in repr(received)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_storage_chunks(stored: StoredDataset) -> None:
    received, _ = sent(stored)
    variables = received.variables
    if stored is A1B:
        assert variables["air_temperature"].chunks == (1, 37, 49)
        assert variables["time_bnds"].chunks == (1, 2)
    else:
        assert variables["surface_temperature"].chunks == (1, 18, 432)
    assert variables["latitude"].chunks is None
    assert variables["latitude_longitude"].chunks is None


def test_storage_chunks_of_zarr(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    data = xr.Dataset({"t": (("x", "y"), np.zeros((10, 7)))})
    data.to_zarr(path, zarr_format=2, encoding={"t": {"chunks": (4, 20)}})
    received, _ = sent(StoredDataset(name="x", path=str(path)))
    assert received.variables["t"].chunks == (4, 7)


def test_egress() -> None:
    received, _ = sent(A1B)
    assert received.egress.tier == "derived"
    assert received.egress.limit == received.size // 4
    received, _ = sent(SST)
    assert (received.egress.tier, received.egress.limit) == ("open", None)


def test_large_coordinates_stay_unless_they_are_indexes(tmp_path: Path) -> None:
    path = tmp_path / "x.nc"
    xr.Dataset(
        coords={
            "x": np.arange(5000.0),
            "large": ("x", np.arange(5000.0)),
            "small": ("x", np.arange(5000, dtype="i2")),
        }
    ).to_netcdf(path)
    received, values = sent(StoredDataset(name="x", path=str(path)))
    assert set(values) == {"x", "small"}
    assert received.variables["large"].coordinate


def test_attributes_become_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "x.nc"
    attributes = {
        "number": np.float32(0.5),
        "count": np.int64(3),
        "range": np.array([1.0, 2.5]),
        "nothing": np.nan,
        "text": "Köln",
        "texts": ["a", "b"],
    }
    xr.Dataset({"t": ("x", [1.0], attributes)}, attrs=attributes).to_netcdf(path)
    received, _ = sent(StoredDataset(name="x", path=str(path)))
    for found in (received.attributes, received.variables["t"].attributes):
        assert np.isnan(found.pop("nothing"))
        assert found == {
            "number": 0.5,
            "count": 3,
            "range": [1.0, 2.5],
            "text": "Köln",
            "texts": ["a", "b"],
        }


def test_attributes_that_have_no_plain_form_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep: list[Any] = []
    for _ in range(50):
        deep = [deep]
    odd = {
        "complex": 1j,
        "deep": deep,
        "huge": 2**70,
        "object": object(),
        "lone": "\udcff",
        3: "three",
    }
    original = StoredDataset.open
    monkeypatch.setattr(
        StoredDataset, "open", lambda self: original(self).assign_attrs({**odd, "kept": 1})
    )
    path = tmp_path / "x.nc"
    xr.Dataset({"t": ("x", [1.0])}).to_netcdf(path)
    received, _ = sent(StoredDataset(name="x", path=str(path)))
    assert received.attributes == {"kept": 1}


def test_texts_are_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    content = xr.Dataset(coords={"station": np.array(["Köln", "Rio"], dtype=object)})
    content.to_zarr(path, zarr_format=2)
    received, values = sent(StoredDataset(name="x", path=str(path)))
    assert received.variables["station"].dtype == "object:texts"
    assert values["station"].tolist() == ["Köln", "Rio"]


def test_a_variable_without_a_wire_form_is_left_out_and_named_by_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.nc"
    xr.Dataset({"t": ("x", [1.0])}).to_netcdf(path)
    original = StoredDataset.open_as_xarray_does

    def open_with_odd_variables(self: StoredDataset) -> xr.Dataset:
        odd = np.array([object()], dtype=object)
        pair = np.zeros(1, dtype=[("a", "f4"), ("b", "i2")])
        return original(self).assign(odd=("x", odd), pair=("x", pair))

    monkeypatch.setattr(StoredDataset, "open_as_xarray_does", open_with_odd_variables)
    stored = StoredDataset(name="x", path=str(path))
    received, _ = sent(stored)
    assert set(received.variables) == {"t"}
    problems = check(stored)
    assert [problem.split(":")[0] for problem in problems] == [
        "variable 'odd' is left out",
        "variable 'pair' is left out",
    ]


def test_check_finds_nothing_wrong_with_real_data(stored: StoredDataset) -> None:
    assert check(stored) == []


def test_check_shows_the_path_of_what_does_not_open(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.nc"
    [problem] = check(StoredDataset(name="x", path=str(path)))
    assert problem.startswith(f"{path} does not open: FileNotFoundError: ")


def test_check_names_a_wrong_option() -> None:
    [problem] = check(StoredDataset(name="x", path=SST.path, open_options={"grupp": "a"}))
    assert "does not open: TypeError: " in problem
    assert "grupp" in problem


def test_check_of_no_variables(tmp_path: Path) -> None:
    path = tmp_path / "x.nc"
    xr.Dataset().to_netcdf(path)
    [problem] = check(StoredDataset(name="x", path=str(path)))
    assert "it has no variables" in problem


def test_check_of_huge_chunks(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    size = 2**31
    template = xr.Dataset({"t": ("x", np.zeros(1, "i1"))})
    template.to_zarr(path, zarr_format=2, encoding={"t": {"chunks": (1,)}})
    document = path / "t" / ".zarray"
    described = msgspec.json.decode(document.read_bytes())
    document.write_bytes(msgspec.json.encode({**described, "shape": [size], "chunks": [size]}))
    shutil.rmtree(path / "t" / "0", ignore_errors=True)
    (path / ".zmetadata").unlink()
    options = {"consolidated": False}
    [problem] = check(StoredDataset(name="x", path=str(path), open_options=options))
    assert problem == "variable 't' is stored in chunks of 2.0 GiB, over 1 GiB"


def test_check_of_data_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    xr.Dataset(coords={"x": np.arange(5.0)}).to_zarr(path, zarr_format=2)
    (path / "x" / "0").write_bytes(b"broken")
    stored = StoredDataset(name="x", path=str(path))
    [problem] = check(stored)
    assert problem.startswith(f"{path} cannot be read: ")
    with pytest.raises(DatasetUnreadable, match="'x' cannot be read: RuntimeError"):
        describe(stored, "north")


def test_check_asks_for_a_version_where_the_filesystem_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object) -> str:
        raise OSError("no listing")

    monkeypatch.setattr(datasets, "fingerprint", refuse)
    [problem] = check(SST)
    assert "give it a `version`" in problem
