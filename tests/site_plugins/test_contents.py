import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from federated_dask.protocol.messages import Content
from federated_dask.protocol.samples import SAMPLE
from site_plugins import LocalFederation, contents
from site_plugins.contents import ContentReader, content_of
from site_plugins.datasets import StoredDataset
from site_plugins.descriptions import describe

DIMENSIONS = ("t", "lat", "lon")


def values(shape: tuple[int, ...] = (48, 30, 40)) -> np.ndarray:
    """Measured values on a map with land, and two clouds."""
    made = np.random.default_rng(0).random(shape)
    made[..., :10] = np.nan
    return made


def described(dataset: xr.Dataset, folder: Path, **options: Any) -> dict[str, Content | None]:
    path = folder / "x.zarr"
    dataset.to_zarr(path, zarr_format=2, mode="w")
    found, _ = describe(StoredDataset(name="x", path=str(path), **options), "north")
    return {name: variable.content for name, variable in found.variables.items()}


@pytest.mark.parametrize("chunks", [None, (12, 30, 40), (1, 7, 9), (48, 1, 1)])
def test_a_few_parts_show_what_the_whole_is_like(chunks: tuple[int, ...] | None) -> None:
    found = content_of(xr.Variable(DIMENSIONS, values()), chunks)
    assert found.missing == pytest.approx(0.25, abs=0.25)
    assert found.ever_missing == pytest.approx(found.missing, abs=0.01)
    assert found.left == pytest.approx(0.95 * (1 - found.missing), abs=0.12)


def test_what_is_missing_here_and_there_is_told_from_what_always_is() -> None:
    clouds = np.random.default_rng(0).random((48, 30, 40))
    clouds[clouds < 0.3] = np.nan
    found = content_of(xr.Variable(DIMENSIONS, clouds))
    assert found.missing == pytest.approx(0.3, abs=0.05)
    assert found.ever_missing > 0.45


def test_no_more_than_a_few_small_parts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def reading(variable: xr.Variable) -> np.ndarray:
        array = variable.to_numpy()
        read.append(array.nbytes)
        return array

    monkeypatch.setattr(contents, "decoded", reading)
    content_of(xr.Variable(DIMENSIONS, np.zeros((500, 300, 200), "f4")))
    assert 1 < len(read) <= 4
    assert max(read) <= SAMPLE


@pytest.mark.parametrize(
    ("egress", "is_told"), [("open", True), ("derived", False), ("functions-only", False)]
)
def test_it_is_told_of_open_datasets_only(egress: Any, is_told: bool, tmp_path: Path) -> None:
    dataset = xr.Dataset({"x": (DIMENSIONS, values())}, {"t": np.arange(48.0)})
    found = described(dataset, tmp_path, egress=egress)
    assert (found["x"] is not None) is is_told
    # What is sent along needs no telling.
    assert found["t"] is None


def test_texts_tiny_variables_and_huge_chunks_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = np.array(["a", "b"] * 1000, dtype=object)
    dataset = xr.Dataset(
        {"texts": ("x", texts), "tiny": ("y", np.ones(3)), "large": ("z", np.ones(5000))}
    )
    monkeypatch.setattr(contents, "LARGEST_CHUNK", 5000 * 8 - 1)
    assert described(dataset, tmp_path) == {"texts": None, "tiny": None, "large": None}


def test_no_variable_is_looked_at_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "SECONDS", -1.0)
    assert ContentReader().read(xr.Variable("t", np.ones(5000)), None) is None


def test_what_cannot_be_read_does_not_keep_a_dataset_from_being_described(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.zarr"
    xr.Dataset({"x": ("t", np.arange(5000.0))}).to_zarr(path, zarr_format=2)
    (chunk,) = [file for file in (path / "x").iterdir() if not file.name.startswith(".")]
    chunk.write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        found, _ = describe(StoredDataset(name="x", path=str(path)), "north")
    assert found.variables["x"].content is None
    assert "could be looked at" in caplog.text


def test_a_first_run_is_predicted_by_what_sites_tell() -> None:
    random = np.random.default_rng(3)
    stored = xr.Dataset(
        {
            "x": (("t", "lat", "lon"), values()),
            "i": (("t", "lat", "lon"), random.integers(0, 4, (48, 30, 40))),
        }
    )
    with (
        LocalFederation({"north": {"datasets": {"data": stored.chunk(t=12)}}}) as federation,
        FederatedClient(federation) as fed,
    ):
        opened = fed.open_dataset("north/data", chunks={})
        for array in (opened.x * 2, opened.i + 1):
            array.compute()
            assert fed.last_run is not None
            (link,) = [link for link in fed.last_run.links if link.start == "north"]
            assert link.actual_bytes < 0.85 * array.nbytes
            assert abs(link.predicted_bytes - link.actual_bytes) <= 0.2 * link.actual_bytes
