"""Real data for the demo: files of the package iris-sample-data, prepared once.

The files are © British Crown copyright, Met Office, under the UK Open
Government Licence.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import xarray as xr

__all__ = ["DATASETS", "DemoDataset", "open_local", "prepare"]

STEPS_PER_CHUNK = 24


@dataclass(frozen=True)
class DemoDataset:
    """One dataset of the demo: who serves it, and from which file."""

    site: str
    name: str
    file: str
    title: str
    zarr: bool

    @property
    def qualified_name(self) -> str:
        """``site/dataset``."""
        return f"{self.site}/{self.name}"

    @property
    def original(self) -> Path:
        """The file as iris-sample-data ships it."""
        return Path(str(files("iris_sample_data"))) / "sample_data" / self.file


DATASETS = (
    DemoDataset("north", "a1b", "A1B_north_america.nc", "Air temperature, scenario A1B", True),
    DemoDataset("south", "e1", "E1_north_america.nc", "Air temperature, scenario E1", True),
    # As NetCDF, unconverted: a site needs no Zarr.
    DemoDataset("ocean", "sst", "ostia_monthly.nc", "Sea surface temperature, monthly", False),
)


def open_local(dataset: DemoDataset) -> xr.Dataset:
    """Open the original file with plain xarray, in chunks, to compare with."""
    return xr.open_dataset(dataset.original, decode_timedelta=False).chunk()


def prepare(dataset: DemoDataset, folder: Path) -> Path:
    """Write a dataset to Zarr, unless that was done or it is served as it is.

    Returns
    -------
    Path
        What the site serves.
    """
    if not dataset.zarr:
        return dataset.original
    store = folder / f"{dataset.name}.zarr"
    if store.exists():
        return store
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = store.with_suffix(".unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    with xr.open_dataset(dataset.original, decode_timedelta=False) as opened:
        for variable in opened.variables.values():
            # Chunks and filters of NetCDF mean nothing to Zarr.
            for key in (
                "chunksizes",
                "contiguous",
                "original_shape",
                "source",
                "szip",
                "zstd",
                "bzip2",
                "blosc",
                "shuffle",
                "complevel",
                "fletcher32",
                "zlib",
                "dtype",
            ):
                variable.encoding.pop(key, None)
        encoding = {
            name: {"chunks": (min(STEPS_PER_CHUNK, variable.shape[0]), *variable.shape[1:])}
            for name, variable in opened.data_vars.items()
            if variable.ndim == 3
        }
        opened.to_zarr(unfinished, zarr_format=2, consolidated=True, encoding=encoding)
    unfinished.rename(store)
    return store
