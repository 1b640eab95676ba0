import os
import pickle
import shutil
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import fsspec
import iris_sample_data
import numpy as np
import pytest
import xarray as xr
from dask.array.core import getter
from xarray.core.indexing import BasicIndexer, OuterIndexer, VectorizedIndexer

from federated_dask.errors import DatasetUnreadable, NotFound, VersionChanged
from site_plugins import datasets
from site_plugins.config import DatasetSection
from site_plugins.datasets import StoredDataset, StoredVariable, borrow

SAMPLES = Path(iris_sample_data.path)
FILES = {"a1b": "A1B_north_america.nc", "sst": "ostia_monthly.nc"}
OPTIONS: dict[str, dict[str, Any]] = {"a1b": {"decode_timedelta": False}, "sst": {}}
VARIABLE = {"a1b": "air_temperature", "sst": "surface_temperature"}


@pytest.fixture(params=["a1b-netcdf", "a1b-zarr", "sst-netcdf", "sst-zarr"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> StoredDataset:
    """Real data, as it is published and as Zarr."""
    name, form = request.param.split("-")
    return store(name, form, tmp_path)


def store(name: str, form: str, folder: Path) -> StoredDataset:
    path = folder / f"{name}.nc"
    shutil.copyfile(SAMPLES / FILES[name], path)
    if form == "zarr":
        target = folder / f"{name}.zarr"
        with xr.open_dataset(path, **OPTIONS[name]) as content:
            chunks = (1, *content[VARIABLE[name]].shape[1:])
            content.to_zarr(target, zarr_format=2, encoding={VARIABLE[name]: {"chunks": chunks}})
        path = target
    return StoredDataset(name=name, path=str(path), open_options=OPTIONS[name])


@pytest.fixture
def a1b(tmp_path: Path) -> StoredDataset:
    return store("a1b", "netcdf", tmp_path)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    datasets._kept.clear()
    assert not datasets._kept.retired


def plain(dataset: StoredDataset) -> xr.Dataset:
    return xr.load_dataset(dataset.path, **dataset.open_options)


def variable(dataset: StoredDataset, name: str | None = None) -> StoredVariable:
    return StoredVariable(dataset, dataset.fingerprint(), name or VARIABLE[dataset.name])


def age(path: Path) -> None:
    """Move the time of last change back, as if the file had been written long ago."""
    os.utime(path, ns=(10**18, 10**18))


def test_every_variable_reads_as_with_plain_xarray(stored: StoredDataset) -> None:
    expected = plain(stored)
    version = stored.fingerprint()
    for name, wanted in expected.variables.items():
        array = StoredVariable(stored, version, str(name))
        assert array.shape == wanted.shape
        assert array.ndim == wanted.ndim
        assert array.dtype == wanted.dtype
        values = array[...]
        assert type(values) is np.ndarray
        np.testing.assert_array_equal(values, wanted.to_numpy())


def test_the_dates_of_the_360_day_calendar(a1b: StoredDataset) -> None:
    bounds = variable(a1b, "time_bnds")[:2]
    assert bounds.dtype == object
    assert bounds[0, 0].calendar == "360_day"
    assert bounds[0, 0] == plain(a1b)["time_bnds"].values[0, 0]


INDICES = [
    pytest.param((), id="nothing"),
    pytest.param(..., id="ellipsis"),
    pytest.param(3, id="integer"),
    pytest.param(-1, id="negative"),
    pytest.param(np.int64(3), id="numpy integer"),
    pytest.param(slice(2, 9, 3), id="slice"),
    pytest.param(slice(9, 2, -2), id="backward"),
    pytest.param(slice(500, None), id="empty"),
    pytest.param((..., 4), id="ellipsis first"),
    pytest.param((slice(3), ..., slice(2)), id="ellipsis between"),
    pytest.param((1, 2, 3), id="one element"),
    pytest.param((slice(None), 2), id="fewer"),
    pytest.param([3, 1, 1], id="list"),
    pytest.param(np.array([-1, 0]), id="negative array"),
    pytest.param(np.array([], dtype=int), id="empty array"),
    pytest.param([], id="empty list"),
    pytest.param(np.array(2), id="array of no dimensions"),
]


@pytest.mark.parametrize("index", INDICES)
def test_indices_mean_what_they_mean_to_numpy(a1b: StoredDataset, index: Any) -> None:
    expected = plain(a1b)["air_temperature"].to_numpy()
    wanted = np.asarray(expected[[] if isinstance(index, list) and not index else index])
    found = variable(a1b)[index]
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found, wanted)


def test_arrays_select_orthogonally(stored: StoredDataset) -> None:
    array = variable(stored)
    rows, columns = np.array([5, 0, 2]), np.arange(array.shape[2]) % 2 == 0
    expected = plain(stored)[VARIABLE[stored.name]].to_numpy()
    wanted = expected[:, rows][:, :, columns]
    np.testing.assert_array_equal(array[:, rows, columns], wanted)
    np.testing.assert_array_equal(array[1, rows, columns], wanted[1])
    indexer = OuterIndexer((slice(None), rows, np.flatnonzero(columns)))
    np.testing.assert_array_equal(array[indexer], wanted)
    np.testing.assert_array_equal(array[BasicIndexer((0, 1, slice(4)))], expected[0, 1, :4])


@pytest.mark.parametrize(
    "index",
    [
        (0, 0, 0, 0),
        (..., ...),
        240,
        -241,
        [240],
        [-241],
        None,
        True,
        1.5,
        "time",
        np.zeros((2, 2), dtype=int),
        [True],
        [1.5],
        VectorizedIndexer((np.array([0]), np.array([0]), np.array([0]))),
    ],
)
def test_an_index_that_does_not_fit(a1b: StoredDataset, index: Any) -> None:
    with pytest.raises(IndexError):
        variable(a1b)[index]


def test_dask_reads_it(stored: StoredDataset) -> None:
    array = variable(stored)
    expected = plain(stored)[VARIABLE[stored.name]].to_numpy()
    lazy = da.from_array(array, chunks=(50, 10, 20), asarray=True)
    np.testing.assert_array_equal(lazy[::7, 3:].compute(scheduler="threads"), expected[::7, 3:])
    np.testing.assert_array_equal(
        getter(array, (slice(2), None, slice(3), 1)), expected[:2, None, :3, 1]
    )


def test_it_travels_small_and_reads_after_the_journey(stored: StoredDataset) -> None:
    array = variable(stored)
    array[0]
    travelled = pickle.dumps(array)
    assert len(travelled) < 1000
    np.testing.assert_array_equal(pickle.loads(travelled)[0], array[0])


def test_its_token_names_version_and_variable(a1b: StoredDataset) -> None:
    array = variable(a1b)
    assert dask.base.tokenize(array) == dask.base.tokenize(pickle.loads(pickle.dumps(array)))
    other = StoredVariable(a1b, "other", array.variable)
    assert dask.base.tokenize(array) != dask.base.tokenize(other)


def test_eight_threads_read_what_one_reads(stored: StoredDataset) -> None:
    expected = plain(stored)
    version = stored.fingerprint()
    start = threading.Barrier(8)

    def read(worker: int) -> None:
        start.wait()
        for name, wanted in expected.variables.items():
            array = StoredVariable(stored, version, str(name))
            np.testing.assert_array_equal(array[...], wanted.to_numpy())
            if wanted.ndim:
                part = slice(worker, None, 8)
                np.testing.assert_array_equal(array[part], wanted.to_numpy()[part])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


def test_threads_open_it_once(stored: StoredDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = StoredDataset.open

    def count(self: StoredDataset) -> xr.Dataset:
        opened.append(self)
        return original(self)

    monkeypatch.setattr(StoredDataset, "open", count)
    array = variable(stored)
    start = threading.Barrier(8)

    def read(_: int) -> np.ndarray:
        start.wait()
        return array[0]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert len(opened) == 1


def test_the_least_recently_read_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = datasets._Kept(2)
    monkeypatch.setattr(datasets, "_kept", kept)
    base = store("a1b", "netcdf", tmp_path)
    names = ["x", "y", "z"]
    several = []
    for name in names:
        path = tmp_path / f"{name}.nc"
        shutil.copyfile(base.path, path)
        several.append(StoredDataset(name=name, path=str(path), open_options=base.open_options))
    with borrow(several[0], several[0].fingerprint()) as held:
        for dataset in several[1:]:
            with borrow(dataset, dataset.fingerprint()):
                pass
        assert len(kept.entries) == 2
        # Retired, but not closed under the reader that still holds it.
        assert held["air_temperature"][0, 0, 0].to_numpy().shape == ()
        assert len(kept.retired) == 1
    assert not kept.retired
    kept.clear()


def test_the_fingerprint_stays_while_nothing_changes(stored: StoredDataset) -> None:
    before = stored.fingerprint()
    variable(stored)[...]
    assert stored.fingerprint() == before
    assert len(before) == 32


def test_the_fingerprint_changes_when_a_file_is_rewritten_in_place(a1b: StoredDataset) -> None:
    path = Path(a1b.path)
    age(path)
    before = a1b.fingerprint()
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(first)
    assert a1b.fingerprint() != before


def test_the_fingerprint_changes_when_one_chunk_is_rewritten(tmp_path: Path) -> None:
    stored = store("sst", "zarr", tmp_path)
    chunk = Path(stored.path) / "surface_temperature" / "0.0.0"
    age(chunk)
    before = stored.fingerprint()
    chunk.write_bytes(chunk.read_bytes())
    assert stored.fingerprint() != before


def test_the_fingerprint_sees_documents_of_zarr_themselves(tmp_path: Path) -> None:
    stored = store("sst", "zarr", tmp_path)
    document = Path(stored.path) / ".zattrs"
    age(document)
    before = stored.fingerprint()
    document.write_text(document.read_text().replace("CF", "FC"))
    age(document)
    assert stored.fingerprint() != before


def test_the_fingerprint_sees_files_come_go_and_change_name(tmp_path: Path) -> None:
    stored = store("sst", "zarr", tmp_path)
    seen = {stored.fingerprint()}
    extra = Path(stored.path) / "extra"
    extra.touch()
    seen.add(stored.fingerprint())
    extra.rename(extra.with_name("other"))
    seen.add(stored.fingerprint())
    assert len(seen) == 3
    extra.with_name("other").unlink()
    assert stored.fingerprint() in seen


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    stored = store("sst", "zarr", tmp_path)
    before = stored.fingerprint()
    moved = tmp_path / "moved.zarr"
    Path(stored.path).rename(moved)
    assert StoredDataset(name="sst", path=str(moved)).fingerprint() == before
    assert StoredDataset(name="sst", path=moved.as_uri()).fingerprint() == before


def test_the_fingerprint_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    stored = store("sst", "zarr", tmp_path)
    (Path(stored.path) / "again").symlink_to(stored.path)
    linked = tmp_path / "linked.zarr"
    linked.symlink_to(stored.path)
    assert StoredDataset(name="sst", path=str(linked)).fingerprint() == stored.fingerprint()


def test_options_that_change_the_values_change_the_version(a1b: StoredDataset) -> None:
    options = {"decode_timedelta": False, "mask_and_scale": False}
    other = StoredDataset(name="a1b", path=a1b.path, open_options=options)
    assert other.fingerprint() != a1b.fingerprint()


def test_the_operators_version_wins(tmp_path: Path) -> None:
    stored = StoredDataset(name="x", path=str(tmp_path / "none"), version_override="v7")
    assert stored.fingerprint() == "v7"


def test_a_store_that_changed_is_not_read(stored: StoredDataset, tmp_path: Path) -> None:
    array = variable(stored)
    array[0]
    path = Path(stored.path)
    if path.is_dir():
        path = path / VARIABLE[stored.name] / "0.0.0"
    replacement = tmp_path / "replacement"
    replacement.write_bytes(path.read_bytes())
    age(replacement)
    os.replace(replacement, path)
    for key, entry in datasets._kept.entries.items():
        assert key[1] == array.version
        # The next look is due at once, as after some time.
        entry.next_look = 0.0
    with pytest.raises(VersionChanged) as caught:
        array[0]
    assert tmp_path.name not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(VersionChanged):
        array[0]
    np.testing.assert_array_equal(
        variable(stored)[0], plain(stored)[VARIABLE[stored.name]].to_numpy()[0]
    )


def test_a_file_rewritten_in_place_is_read_anew(tmp_path: Path) -> None:
    # HDF5 shows a file that is still open as it was; the old one must be closed first.
    stored = store("a1b", "netcdf", tmp_path)
    old = variable(stored)
    before = old[...]
    other = tmp_path / "other.nc"
    with xr.open_dataset(stored.path, **stored.open_options) as content:
        content.assign(air_temperature=content.air_temperature + 1).to_netcdf(other)
    shutil.copyfile(other, stored.path)
    age(Path(stored.path))
    new = variable(stored)
    np.testing.assert_array_equal(new[...], before + 1)
    with pytest.raises(VersionChanged):
        old[...]
    # The failure of the old one did not close the new one.
    assert (stored.opening, new.version) in datasets._kept.entries


def test_an_older_reader_keeps_the_new_one_waiting(tmp_path: Path) -> None:
    stored = store("a1b", "netcdf", tmp_path)
    version = stored.fingerprint()
    order = []
    reading, change = threading.Event(), threading.Event()

    def read_slowly() -> None:
        with borrow(stored, version):
            reading.set()
            change.wait()
            for _, entry in datasets._kept.retired:
                entry.next_look = 0.0
            order.append("old")

    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(read_slowly)
        reading.wait()
        age(Path(stored.path))
        new = variable(stored)
        fast = pool.submit(lambda: (new[0], order.append("new")))
        while not datasets._kept.retired:
            time.sleep(0)
        change.set()
        with pytest.raises(VersionChanged):
            slow.result()
        fast.result()
    assert order == ["old", "new"]


@pytest.mark.parametrize("content", [None, b"", b"no data", b"\211HDF\r\n\032\n" + b"x" * 100])
def test_a_path_that_does_not_open(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "secret-place.nc"
    if content is not None:
        path.write_bytes(content)
    stored = StoredDataset(name="a1b", path=str(path))
    with pytest.raises(DatasetUnreadable) as caught:
        stored.open()
    shown = "".join(traceback.format_exception(caught.value)) + repr(
        pickle.loads(pickle.dumps(caught.value))
    )
    assert "'a1b' does not open" in caught.value.message
    assert "secret-place" not in shown
    with pytest.raises(DatasetUnreadable) as caught:
        _ = StoredVariable(stored, "0" * 32 if content is None else stored.fingerprint(), "x").shape
    assert "secret-place" not in "".join(traceback.format_exception(caught.value))


def test_the_log_tells_the_operator_what_the_client_does_not_learn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = StoredDataset(name="a1b", path=str(tmp_path / "nowhere.nc"))
    with pytest.raises(DatasetUnreadable, match="nothing is stored under it"):
        stored.open()
    assert str(tmp_path / "nowhere.nc") in caplog.text


def test_data_that_is_broken_behind_a_good_header(tmp_path: Path) -> None:
    stored = store("sst", "zarr", tmp_path)
    chunk = Path(stored.path) / "surface_temperature" / "0.0.0"
    chunk.write_bytes(b"broken")
    array = variable(stored)
    with pytest.raises(DatasetUnreadable, match="'sst' cannot be read") as caught:
        array[0]
    assert str(tmp_path) not in "".join(traceback.format_exception(caught.value))
    np.testing.assert_array_equal(
        array[1], plain(store("sst", "netcdf", tmp_path))["surface_temperature"].to_numpy()[1]
    )


def test_an_unknown_variable(a1b: StoredDataset) -> None:
    with pytest.raises(NotFound, match="'a1b' has no variable 'rain'"):
        variable(a1b, "rain")[0]


def test_texts(tmp_path: Path) -> None:
    names = np.array(["Köln", "", "Rio"], dtype=object)
    content = xr.Dataset({"names": ("x", names), "codes": ("x", np.array([b"a", b"bc", b""]))})
    content.to_netcdf(tmp_path / "texts.nc")
    content[["names"]].to_zarr(tmp_path / "texts.zarr", zarr_format=2)
    netcdf = StoredDataset(name="texts", path=str(tmp_path / "texts.nc"))
    zarr = StoredDataset(name="texts", path=str(tmp_path / "texts.zarr"))
    assert variable(netcdf, "names")[::-1].tolist() == ["Rio", "", "Köln"]
    assert variable(netcdf, "codes")[:2].tolist() == [b"a", b"bc"]
    # numpy's own dtype of texts has no wire form.
    assert variable(zarr, "names").dtype == object
    assert variable(zarr, "names")[::-1].dtype == object
    assert variable(zarr, "names")[...].tolist() == names.tolist()


@pytest.fixture
def remote() -> Iterator[str]:
    """A folder in fsspec's memory filesystem."""
    root = f"memory://{uuid.uuid4().hex}"
    yield root
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists(root):
        filesystem.rm(root, recursive=True)


def test_an_object_store(remote: str, tmp_path: Path) -> None:
    url = f"{remote}/sst.zarr"
    content = plain(store("sst", "netcdf", tmp_path))
    content.to_zarr(url, zarr_format=2)
    stored = StoredDataset(name="sst", path=url)
    array = variable(stored)
    assert array.version == stored.fingerprint()
    np.testing.assert_array_equal(array[3:5], content["surface_temperature"].to_numpy()[3:5])
    filesystem = fsspec.filesystem("memory")
    chunk = f"{url}/surface_temperature/0.0.0"
    filesystem.pipe_file(chunk, filesystem.cat_file(chunk))
    assert stored.fingerprint() != array.version


def test_a_netcdf_file_in_an_object_store(remote: str, a1b: StoredDataset) -> None:
    fsspec.filesystem("memory").pipe_file(f"{remote}/a1b.nc", Path(a1b.path).read_bytes())
    stored = StoredDataset(name="a1b", path=f"{remote}/a1b.nc", open_options=a1b.open_options)
    np.testing.assert_array_equal(variable(stored)[::50], variable(a1b)[::50])
    before = stored.fingerprint()
    fsspec.filesystem("memory").pipe_file(f"{remote}/a1b.nc", Path(a1b.path).read_bytes())
    assert stored.fingerprint() != before


def test_an_object_store_with_nothing_in_it(remote: str) -> None:
    with pytest.raises(DatasetUnreadable, match="nothing is stored under it"):
        StoredDataset(name="x", path=f"{remote}/none.zarr").fingerprint()


def test_from_config() -> None:
    section = DatasetSection.model_validate(
        {"path": "a.nc", "egress": "derived", "share": 0.5, "version": "3", "keywords": ["sea"]},
        context={"folder": "/data"},
    )
    stored = StoredDataset.from_config("sst", section)
    assert stored == StoredDataset(
        name="sst",
        path="/data/a.nc",
        egress="derived",
        share=0.5,
        version_override="3",
        keywords=("sea",),
    )
    assert hash(stored) == hash(pickle.loads(pickle.dumps(stored)))
    assert stored.summary.egress.tier == "derived"
    assert stored.summary.keywords == ("sea",)


def test_secrets_of_the_filesystem_are_not_shown() -> None:
    stored = StoredDataset(name="x", path="s3://b/x.zarr", storage_options={"secret": "hunter2"})
    assert "hunter2" not in repr(stored)
