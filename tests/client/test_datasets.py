import asyncio
import datetime
import pickle
from collections.abc import Iterator
from typing import Any

import cftime
import dask
import msgspec
import numpy as np
import pytest
import xarray as xr

from federated_dask.client import loop
from federated_dask.client.connection import SiteConnection
from federated_dask.client.datasets import build_dataset, fetch_dataset
from federated_dask.client.remote_variable import (
    FederatedBackendArray,
    RemoteVariable,
    remote_variable_of,
)
from federated_dask.errors import NotFound, RequestRefused, SiteUnavailable, VersionChanged
from federated_dask.planner.sources import SourceReference
from federated_dask.protocol.messages import DatasetDescription, VariableDescription
from federated_dask.protocol.values import encode_value

FILES = {"a1b": "A1B_north_america.nc", "sst": "ostia_monthly.nc"}


@pytest.fixture
def blocking(address: str, ca: str) -> SiteConnection:
    """A connection to the stub, for the background loop only."""
    return SiteConnection("north", address, "good-token", ca, timeout=10)


@pytest.fixture(params=["a1b", "sst"])
def pair(request, blocking, stub, sample_data) -> Iterator[tuple[xr.Dataset, xr.Dataset]]:
    """The same dataset, opened over the wire and from its file."""
    options: dict[str, Any] = {"decode_timedelta": False} if request.param == "a1b" else {}
    with xr.open_dataset(sample_data / FILES[request.param], **options) as local:
        yield loop.sync(fetch_dataset(blocking, request.param)), local


@pytest.fixture
def remote(blocking, stub) -> RemoteVariable:
    dataset = loop.sync(fetch_dataset(blocking, "sst"))
    found = remote_variable_of(dataset.variables["surface_temperature"]._data)
    assert found is not None
    return found


def offline(
    version: str = "9f2c", variable: str = "air", token: str | None = None
) -> RemoteVariable:
    connection = SiteConnection("north", "https://north.example", token)
    source = SourceReference("north", "a1b", version, variable)
    return RemoteVariable(connection, source, (4, 3), np.dtype("f4"))


class TestOpening:
    def test_identical_to_the_local_file(self, pair) -> None:
        remote, local = pair
        xr.testing.assert_identical(remote, local)
        assert list(remote.data_vars) == list(local.data_vars)
        assert set(remote.coords) == set(local.coords)
        assert dict(remote.sizes) == dict(local.sizes)

    def test_indexes_are_real(self, pair) -> None:
        remote, local = pair
        assert set(remote.indexes) == set(local.indexes)
        for name, index in local.indexes.items():
            assert type(remote.indexes[name]) is type(index)
            assert remote.indexes[name].equals(index)
            assert remote.indexes[name].dtype == index.dtype
        years = [str(int(local.time.dt.year[5])), str(int(local.time.dt.year[7]))]
        xr.testing.assert_identical(
            remote.sel(time=slice(*years)).time, local.sel(time=slice(*years)).time
        )

    def test_encodings(self, pair) -> None:
        remote, local = pair
        for name, variable in local.variables.items():
            expected = {k: v for k, v in variable.encoding.items() if k != "source"}
            found = {k: v for k, v in remote.variables[name].encoding.items() if k in expected}
            assert found == expected
            assert {k: type(v) for k, v in found.items()} == {
                k: type(v) for k, v in expected.items()
            }
        assert remote.encoding["unlimited_dims"] == local.encoding["unlimited_dims"]

    def test_written_again_it_is_the_same(self, pair, tmp_path) -> None:
        remote, local = pair
        remote.to_netcdf(tmp_path / "copy.nc")
        options = {"decode_timedelta": False} if "air_temperature" in local else {}
        with xr.open_dataset(tmp_path / "copy.nc", **options) as copy:
            xr.testing.assert_identical(copy.load(), local)

    def test_where_it_came_from(self, pair, stub) -> None:
        remote, local = pair
        name = remote.encoding["source"].removeprefix("fed://north/")
        assert remote.encoding["version"] == stub.datasets[name].fingerprint()
        assert remote.attrs == local.attrs

    def test_large_variables_stay_where_they_are(self, blocking, stub) -> None:
        dataset = loop.sync(fetch_dataset(blocking, "a1b"))
        reads = [request for request in stub.requests if "/variables/" in request]
        # The bounds: xarray would ask for their first value soon, to learn that they are dates.
        assert set(reads) <= {"GET /datasets/a1b/variables/time_bnds"}
        assert not dataset.variables["air_temperature"]._in_memory
        repr(dataset)
        assert len(stub.requests) == 1 + len(reads)

    def test_values_sent_along_cost_no_round_trip(self, blocking, stub) -> None:
        loop.sync(fetch_dataset(blocking, "sst"))
        assert stub.requests == ["GET /datasets/sst"]

    def test_dates(self, blocking) -> None:
        dataset = loop.sync(fetch_dataset(blocking, "a1b"))
        assert isinstance(dataset.indexes["time"], xr.CFTimeIndex)
        assert dataset.time_bnds.dtype == object
        assert dataset.time.dt.calendar == "360_day"
        first = dataset.time_bnds.values[0, 0]
        assert isinstance(first, cftime.datetime)

    def test_dropped_variables_are_not_fetched(self, blocking, stub) -> None:
        dataset = loop.sync(fetch_dataset(blocking, "a1b", drop_variables={"time_bnds"}))
        assert "time_bnds" not in dataset
        assert stub.requests == ["GET /datasets/a1b"]

    def test_unknown(self, blocking) -> None:
        with pytest.raises(NotFound):
            loop.sync(fetch_dataset(blocking, "a1c"))


class TestDescriptions:
    def describe(self, **variables: VariableDescription) -> DatasetDescription:
        return DatasetDescription(site="north", name="d", version="1", variables=variables)

    def build(self, description: DatasetDescription, buffers: Any = ()) -> xr.Dataset:
        connection = SiteConnection("north", "https://north.example", "t")
        return build_dataset(connection, description, [bytearray(b) for b in buffers])

    @pytest.mark.parametrize("dtype", ["object:texts", "object:cftime", "<f4", "|S3", "<M8[ns]"])
    def test_dtypes(self, dtype: str) -> None:
        described = VariableDescription(dimensions=("x",), shape=(3,), dtype=dtype)
        found = self.build(self.describe(v=described)).v.dtype
        assert found == np.dtype(object if dtype.startswith("object") else dtype)

    @pytest.mark.parametrize(
        "described",
        [
            VariableDescription(dimensions=("x",), shape=(3, 4), dtype="<f4"),
            VariableDescription(dimensions=("x",), shape=(3,), dtype="no dtype"),
            VariableDescription(dimensions=("x",), shape=(3,), dtype="<f4", chunks=(1, 2)),
            VariableDescription(
                dimensions=("x",), shape=(3,), dtype="<f4", coordinate=True, value="text"
            ),
        ],
    )
    def test_contradictions(self, described: VariableDescription) -> None:
        with pytest.raises(RequestRefused) as caught:
            self.build(self.describe(x=described))
        assert caught.value.site == "north"

    def test_sizes_that_do_not_agree(self) -> None:
        a = VariableDescription(dimensions=("x",), shape=(3,), dtype="<f4")
        b = VariableDescription(dimensions=("x",), shape=(4,), dtype="<f4")
        with pytest.raises(RequestRefused):
            self.build(self.describe(a=a, b=b))

    @pytest.mark.parametrize(
        "value", [np.zeros(4, "f4"), np.zeros(3, "f8"), np.zeros((3, 1), "f4"), [1.0], {}]
    )
    def test_values_that_are_not_what_was_described(self, value: Any) -> None:
        buffers: list[Any] = []
        described = VariableDescription(
            dimensions=("x",),
            shape=(3,),
            dtype="<f4",
            coordinate=True,
            value=encode_value(value, buffers),
        )
        with pytest.raises(RequestRefused):
            self.build(self.describe(x=described), buffers)

    @pytest.mark.parametrize("coordinate", [True, False])
    def test_dask_names_tell_the_version(self, coordinate: bool) -> None:
        described = VariableDescription(
            dimensions=("x", "y"), shape=(30, 4), dtype="<f4", coordinate=coordinate
        )
        description = self.describe(v=described)
        names = set()
        for version in ("1", "2", "2"):
            dataset = self.build(msgspec.structs.replace(description, version=version))
            variable = dataset.variables["v"].chunk(
                {"x": 10}, from_array_kwargs={"name": "open_dataset-v-0123"}
            )
            assert type(variable) is xr.Variable
            names.add(variable.data.name)
        assert len(names) == 2
        assert all(name.startswith("open_dataset-v-") for name in names)

    def test_preferred_chunks_from_the_storage(self) -> None:
        described = VariableDescription(
            dimensions=("x", "y"), shape=(30, 4), dtype="<f4", chunks=(10, 4)
        )
        dataset = self.build(self.describe(v=described))
        assert dataset.v.encoding["preferred_chunks"] == {"x": 10, "y": 4}
        assert dataset.v.chunk().chunks is not None

    def test_an_encoding_that_names_no_dtype_is_left_out(self) -> None:
        described = VariableDescription(
            dimensions=("x",), shape=(3,), dtype="<f4", encoding={"dtype": "os.system", "a": 1}
        )
        assert self.build(self.describe(v=described)).v.encoding == {"a": 1}

    def test_pickled_without_a_trace_of_us(self) -> None:
        buffers: list[Any] = []
        value = encode_value(np.zeros(3, "f4"), buffers)
        described = VariableDescription(
            dimensions=("x",), shape=(3,), dtype="<f4", coordinate=True, value=value
        )
        dataset = self.build(self.describe(c=described), buffers)
        pickled = pickle.dumps(dataset)
        assert b"federated" not in pickled
        xr.testing.assert_identical(pickle.loads(pickled), dataset)


class TestReading:
    @pytest.mark.parametrize(
        "key",
        [
            ...,
            0,
            -1,
            (slice(None), 3),
            (slice(10, None, -3), ..., [5, -1]),
            (np.arange(54) > 50, 0, slice(0, 7)),
            (slice(5, 5),),
            (1, 2, 3),
        ],
    )
    def test_like_numpy(self, remote, sample_data, key) -> None:
        with xr.open_dataset(sample_data / FILES["sst"]) as local:
            expected = local.surface_temperature.values[key]
        found = remote[key]
        np.testing.assert_array_equal(found, expected)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)

    def test_orthogonal(self, remote, sample_data) -> None:
        with xr.open_dataset(sample_data / FILES["sst"]) as local:
            expected = local.surface_temperature.values[np.ix_([4, 2], range(18), [7, 3, 7])]
        np.testing.assert_array_equal(remote[[4, 2], :, [7, 3, 7]], expected)

    def test_as_an_array(self, remote) -> None:
        found = np.asarray(remote, dtype="f8")
        assert (found.shape, found.dtype, len(remote)) == ((54, 18, 432), np.dtype("f8"), 54)
        with pytest.raises(ValueError, match="always a copy"):
            np.array(remote, copy=False)

    def test_nothing_is_asked_for_nothing(self, remote, stub) -> None:
        before = len(stub.requests)
        assert remote[3:3].shape == (0, 18, 432)
        assert len(stub.requests) == before

    @pytest.mark.parametrize("key", [54, (0, 0, 0, 0), None, "time"])
    def test_out_of_bounds(self, remote, key) -> None:
        with pytest.raises(IndexError):
            remote[key]

    async def test_from_a_running_loop_and_threads(self, remote) -> None:
        # As in Jupyter, whose own loop runs in this thread.
        assert remote[0].shape == (18, 432)
        found = await asyncio.gather(*(asyncio.to_thread(remote.__getitem__, i) for i in range(8)))
        np.testing.assert_array_equal(np.stack(found), remote[:8])

    def test_the_version_must_be_the_opened_one(self, remote, stub) -> None:
        stub.versions["sst"] = "another"
        with pytest.raises(VersionChanged):
            remote[0]

    def test_something_else_than_described(self, remote) -> None:
        lying = RemoteVariable(remote.connection, remote.source, (54, 18, 432), np.dtype("f8"))
        with pytest.raises(RequestRefused):
            lying[0]
        larger = RemoteVariable(remote.connection, remote.source, (54, 18, 500), remote.dtype)
        with pytest.raises(RequestRefused):
            larger[...]

    def test_the_site_is_down(self) -> None:
        source = SourceReference("north", "sst", "1", "v")
        connection = SiteConnection("north", "https://localhost:9", "t", timeout=5)
        with pytest.raises(SiteUnavailable):
            RemoteVariable(connection, source, (3,), np.dtype("f4"))[0]

    async def test_load_async(self, remote, blocking) -> None:
        dataset = await asyncio.to_thread(lambda: loop.sync(fetch_dataset(blocking, "sst")))
        part = dataset.surface_temperature[3:5, ::2, [4, 1]]
        await part.load_async()
        np.testing.assert_array_equal(part.values, remote[3:5, ::2, [4, 1]])


class TestIdentity:
    def test_tokens(self) -> None:
        token = dask.base.tokenize(offline())
        assert dask.base.tokenize(offline(token="renewed")) == token
        assert dask.base.tokenize(FederatedBackendArray(offline())) == token
        assert dask.base.tokenize(offline("other")) != token
        assert dask.base.tokenize(offline(variable="other")) != token

    def test_pickles(self) -> None:
        copy = pickle.loads(pickle.dumps(FederatedBackendArray(offline())))
        assert copy.source == offline().source
        assert (copy.shape, copy.dtype) == ((4, 3), np.dtype("f4"))
        assert copy.variable.connection.parameters == offline().connection.parameters

    def test_the_token_does_not_show(self) -> None:
        hidden = offline(token="very-secret")
        assert "secret" not in f"{hidden!r} {FederatedBackendArray(hidden)!r}"

    def test_what_stands_for_a_whole_stored_variable(self, blocking) -> None:
        dataset = loop.sync(fetch_dataset(blocking, "sst"))
        variable = dataset.variables["surface_temperature"]
        found = remote_variable_of(variable._data)
        assert found is not None
        assert found.source.variable == "surface_temperature"
        assert remote_variable_of(variable[3:5]._data) is None
        assert remote_variable_of(dataset.variables["time"]._data) is None
        assert remote_variable_of(variable[:1].load()._data) is None


def test_attributes_of_other_kinds(blocking, stub, tmp_path) -> None:
    from site_plugins.datasets import StoredDataset

    made = xr.Dataset(
        {
            "v": ("x", [1.0, np.nan], {"valid_range": np.array([0.0, 5.0]), "flags": ["a", "b"]}),
            "name": ("x", np.array(["å", "b"], dtype=object)),
            "passed": ("x", np.array([1, 2], "m8[s]")),
        },
        coords={
            "x": ("x", np.array([datetime.datetime(2000, 1, d) for d in (1, 2)], "M8[s]")),
            "label": ("x", np.array(["p", "q"], dtype=object)),
        },
    )
    made.to_netcdf(tmp_path / "made.nc")
    options = {"decode_timedelta": True}
    stub.datasets["made"] = StoredDataset(
        name="made", path=str(tmp_path / "made.nc"), open_options=options
    )
    remote = loop.sync(fetch_dataset(blocking, "made"))
    with xr.open_dataset(tmp_path / "made.nc", **options) as local:
        xr.testing.assert_identical(remote, local)
        for name, variable in local.variables.items():
            assert remote.variables[name].dtype == variable.dtype
    assert msgspec.msgpack.encode(remote.attrs)
