"""The datasets that a site stores: opening, reading, describing and checking them.

A `StoredDataset` says where a dataset lies and how it is opened; a
`StoredVariable` reads one variable of one version of it, in whichever worker
process it happens to arrive.  Opened datasets are kept per process::

    StoredVariable[index]
        │ borrow (dataset, version)
        ▼
    kept? ── no ──► open ──► fingerprint = version? ── no ──► VersionChanged
        │ yes                       │ yes
        ▼                           ▼
    read the values ──► fingerprint still = version? ── no ──► VersionChanged

The second look comes after the read, because only then it vouches for what was
read.  It is left out for fifty times as long as the last one took, so that
looking costs 2 % at most.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import operator
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NoReturn

import numpy as np
import xarray as xr
from xarray.core.indexing import ExplicitIndexer, VectorizedIndexer

from federated_dask.errors import (
    DatasetUnreadable,
    FederatedError,
    NotFound,
    Reason,
    VersionChanged,
)
from federated_dask.protocol import messages
from site_plugins.config import DatasetSection
from site_plugins.fingerprints import METADATA, fingerprint, local_path

__all__ = ["StoredDataset", "StoredVariable", "borrow"]

logger = logging.getLogger(__name__)

KEPT = 64
"""Datasets kept open per process."""
LOOK_COST = 50.0
LONGEST_WAIT = 60.0
HDF5_SUFFIXES = (".nc", ".nc4", ".cdf", ".h5", ".hdf5")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredDataset:
    """Where a dataset lies, how it is opened, and what may leave the site of it.

    Small and picklable; equal where everything is equal.
    """

    name: str
    path: str
    """Local path or fsspec URL."""
    engine: str | None = None
    open_options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Further arguments of `xarray.open_dataset`."""
    storage_options: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, hash=False, repr=False
    )
    title: str = ""
    description: str = ""
    keywords: tuple[str, ...] = ()
    license: str = ""
    accept_license: bool = False
    """Whether the licence has to be accepted before first use."""
    egress: Literal["open", "derived", "functions-only"] = "open"
    functions: tuple[str, ...] = ()
    """Of a ``functions-only`` dataset: the functions that may read it."""
    share: float = 0.01
    """Of a ``derived`` dataset: the part of its bytes that may ever leave for one project."""
    embargo: datetime.date | None = None
    """Until this day it is for those only to whom it was granted by its name."""
    version_override: str | None = None
    """The operator's word for the version, instead of a digest."""

    @classmethod
    def from_config(cls, name: str, section: DatasetSection) -> StoredDataset:
        """Take the dataset from its section of `site.toml`."""
        fields = section.model_dump()
        return cls(name=name, version_override=fields.pop("version"), **fields)

    @property
    def summary(self) -> messages.DatasetSummary:
        """The dataset's line in the site's catalogue."""
        return messages.DatasetSummary(
            name=self.name,
            title=self.title,
            description=self.description,
            keywords=self.keywords,
            license=self.license,
            egress=messages.Egress(tier=self.egress),
        )

    @property
    def opening(self) -> str:
        """All that decides on how the dataset is opened, as text."""
        described = [self.path, self.engine, dict(self.open_options), dict(self.storage_options)]
        return json.dumps(described, sort_keys=True, default=repr)

    def fingerprint(self) -> str:
        """Tell the version without reading the data.

        Returns
        -------
        str
            The operator's version, or a digest of what identifies the content
            and of the options that decide on how it is decoded.

        Raises
        ------
        DatasetUnreadable
            If nothing is there, or the filesystem cannot be asked.
        """
        if self.version_override is not None:
            return self.version_override
        settings = json.dumps([self.engine, dict(self.open_options)], sort_keys=True, default=repr)
        try:
            return fingerprint(self.path, self.storage_options, settings)
        except Exception as error:
            # Filesystems raise whatever their libraries do; none of it may tell the path.
            self.fail("cannot be found", error)

    def open(self) -> xr.Dataset:
        """Open the dataset: decoded, lazy, without Dask and without indexes.

        The caller closes it.  `borrow` is for reading.

        Raises
        ------
        DatasetUnreadable
            If it does not open.  The message does not tell the path.
        """
        try:
            return self.open_as_xarray_does()
        except Exception as error:
            # Engines raise whatever their libraries do; none of it may tell the path.
            self.fail("does not open", error)

    def open_as_xarray_does(self) -> xr.Dataset:
        """Open the dataset; errors are those of xarray and may tell the path."""
        options = dict(self.open_options)
        if self.storage_options:
            options["storage_options"] = dict(self.storage_options)
        return xr.open_dataset(
            local_path(self.path) or self.path,
            engine=self._engine(),
            chunks=None,
            cache=False,
            **{"create_default_indexes": False, **options},
        )

    def _engine(self) -> str | None:
        if self.engine is not None:
            return self.engine
        local = local_path(self.path)
        if local is not None:
            # xarray knows a Zarr folder by its suffix only.
            zarr = any(os.path.isfile(os.path.join(local, name)) for name in METADATA)
            return "zarr" if zarr else None
        if self.path.startswith(("http://", "https://")) and not self.storage_options:
            return None
        # The engine that xarray would guess for these names opens no URL.
        return "h5netcdf" if self.path.endswith(HDF5_SUFFIXES) else "zarr"

    def fail(self, what: str, error: BaseException) -> NoReturn:
        """Log an error where the operator sees it; raise one that does not tell the path."""
        logger.warning(
            "Dataset %s at %s %s", self.name, self.path, what, exc_info=error, stacklevel=2
        )
        match error:
            case FileNotFoundError():
                kind = "nothing is stored under it"
            case PermissionError():
                kind = "the site may not read it"
            case ImportError():
                kind = "an engine that it needs is not installed"
            case _:
                kind = f"{type(error).__name__}"
        raise DatasetUnreadable(
            f"Dataset {self.name!r} {what}: {kind}.",
            hint="Tell the site's operator, who finds the cause in the site's log "
            "and by `federated-dask site check`.",
        ) from None


class _Opened:
    """One opened version of a dataset, and who reads it at the moment."""

    def __init__(self, dataset: StoredDataset, version: str) -> None:
        self.dataset = dataset
        self.version = version
        self.opening = threading.Lock()
        self.content: xr.Dataset | None = None
        self.readers = 0
        self.next_look = 0.0

    def open(self) -> xr.Dataset:
        with self.opening:
            if self.content is None:
                try:
                    content = self.dataset.open()
                except DatasetUnreadable:
                    self.look()
                    raise
                try:
                    self.look()
                except FederatedError:
                    content.close()
                    raise
                self.content = content
            return self.content

    def look(self) -> None:
        """Raise `VersionChanged` if the store holds another version by now."""
        start = time.perf_counter()
        found = self.dataset.fingerprint()
        end = time.perf_counter()
        if found != self.version:
            raise VersionChanged(
                f"Dataset {self.dataset.name!r} is no longer version {self.version}.",
                hint="Open it again; what was opened before cannot be computed any more.",
            ) from None
        self.next_look = end + LOOK_COST * (end - start)

    def close(self) -> None:
        if self.content is not None:
            self.content.close()
            self.content = None


class _Kept:
    """The opened datasets of one process, the least recently read closed first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.entries: OrderedDict[tuple[str, str], _Opened] = OrderedDict()
        self.retired: list[tuple[str, _Opened]] = []

    @contextmanager
    def borrow(self, dataset: StoredDataset, version: str) -> Iterator[_Opened]:
        key = (dataset.opening, version)
        if key not in self.entries:
            # A reader of an old version must not close the current one on its way to failing.
            _Opened(dataset, version).look()
        entry = self._take(dataset, key)
        try:
            entry.open()
            yield entry
        except (VersionChanged, DatasetUnreadable):
            with self.changed:
                if self.entries.get(key) is entry:
                    self._retire(key)
            raise
        finally:
            with self.changed:
                entry.readers -= 1
                self._close_retired()

    def clear(self) -> None:
        """Close all that nobody reads now, and the rest after its last reader."""
        with self.changed:
            for key in list(self.entries):
                self._retire(key)

    def _take(self, dataset: StoredDataset, key: tuple[str, str]) -> _Opened:
        opening, version = key
        with self.changed:
            if key not in self.entries:
                for other in [other for other in self.entries if other[0] == opening]:
                    self._retire(other)
                # HDF5 shows a file that is open already as it was when it was first opened.
                self.changed.wait_for(
                    lambda: all(retired != opening for retired, _ in self.retired), LONGEST_WAIT
                )
            # Another thread may have opened it during the wait.
            entry = self.entries.setdefault(key, _Opened(dataset, version))
            self.entries.move_to_end(key)
            entry.readers += 1
            while len(self.entries) > self.size:
                self._retire(next(iter(self.entries)))
            return entry

    def _retire(self, key: tuple[str, str]) -> None:
        self.retired.append((key[0], self.entries.pop(key)))
        self._close_retired()

    def _close_retired(self) -> None:
        for item in [item for item in self.retired if not item[1].readers]:
            self.retired.remove(item)
            item[1].close()
            self.changed.notify_all()


_kept = _Kept(KEPT)


@contextmanager
def borrow(dataset: StoredDataset, version: str) -> Iterator[xr.Dataset]:
    """Read a version of a dataset; opened once per process, by any number of threads.

    Parameters
    ----------
    dataset : StoredDataset
        The dataset.
    version : str
        What `StoredDataset.fingerprint` returned.

    Yields
    ------
    xarray.Dataset
        Lazy; not to be closed, nor used after the block.

    Raises
    ------
    VersionChanged
        If the store does not hold that version, before or after the block.
    DatasetUnreadable
        If it does not open, or reading in the block fails.
    """
    with _kept.borrow(dataset, version) as entry:
        try:
            yield entry.open()
        except (FederatedError, MemoryError):
            raise
        except Exception as error:
            # Engines raise whatever their libraries do; none of it may tell the path.
            entry.look()
            dataset.fail("cannot be read", error)
        if time.perf_counter() >= entry.next_look:
            entry.look()


@dataclasses.dataclass(frozen=True)
class StoredVariable:
    """One variable of one version of a stored dataset, as an array that reads when indexed.

    Small and picklable: it travels to the workers inside of the tasks.

    Parameters
    ----------
    dataset : StoredDataset
        The dataset.
    version : str
        The version that is to be read.
    variable : str
        Name of the variable.
    """

    dataset: StoredDataset
    version: str
    variable: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole variable."""
        with self._borrow() as variable:
            return variable.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """Data type of the decoded values."""
        with self._borrow() as variable:
            return decoded_dtype(variable)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read decoded values.

        Parameters
        ----------
        index
            Integers, slices, an ellipsis and one-dimensional arrays of integers
            or booleans; several arrays select orthogonally.  xarray's basic and
            outer indexers are taken too.

        Returns
        -------
        numpy.ndarray
            Also of zero dimensions.

        Raises
        ------
        IndexError
            If the index does not fit the variable.
        VersionChanged
            If the store does not hold that version any more.
        DatasetUnreadable
            If it does not open or reading fails.
        NotFound
            If the dataset has no such variable.
        """
        key = _normalised(index, self.shape)
        with self._borrow() as variable:
            return decoded(variable[key])

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return ("StoredVariable", self.dataset.opening, self.version, self.variable)

    @contextmanager
    def _borrow(self) -> Iterator[xr.Variable]:
        with borrow(self.dataset, self.version) as content:
            variable = content.variables.get(self.variable)
            if variable is None:
                raise NotFound(
                    f"Dataset {self.dataset.name!r} has no variable {self.variable!r}.",
                    reason=Reason.UNKNOWN_VARIABLE,
                )
            yield variable


def decoded_dtype(variable: xr.Variable) -> np.dtype:
    """Tell the data type of what `decoded` returns for a variable."""
    # Texts of variable length have no plain form; the wire has one for objects.
    return np.dtype(object) if variable.dtype.char == "T" else variable.dtype


def decoded(variable: xr.Variable) -> np.ndarray:
    """Read a variable into memory, as numpy."""
    values = np.asarray(variable.to_numpy())
    return values.astype(object) if values.dtype.char == "T" else values


def _normalised(index: Any, shape: tuple[int, ...]) -> tuple[int | slice | np.ndarray, ...]:
    """Check an index against a shape, so that errors after this are those of the store."""
    if isinstance(index, ExplicitIndexer):
        if isinstance(index, VectorizedIndexer):
            raise IndexError("arrays select orthogonally here, not point by point")
        index = index.tuple
    items = list(index) if isinstance(index, tuple) else [index]
    where = [position for position, item in enumerate(items) if item is Ellipsis]
    missing = len(shape) - len(items) + len(where)
    if len(where) > 1 or missing < 0:
        raise IndexError(f"too many indices for an array of {len(shape)} dimensions")
    start, stop = (where[0], where[0] + 1) if where else (len(items), len(items))
    items[start:stop] = [slice(None)] * missing
    return tuple(_normalised_item(item, size) for item, size in zip(items, shape, strict=True))


def _normalised_item(item: Any, size: int) -> int | slice | np.ndarray:
    if isinstance(item, slice):
        item.indices(size)
        return item
    if item is None or isinstance(item, bool):
        raise IndexError("new axes and single booleans cannot select here")
    if isinstance(item, list | np.ndarray):
        array = np.asarray(item, dtype=None if len(np.atleast_1d(item)) else np.intp)
        if array.ndim == 1:
            return _normalised_array(array, size)
        if array.ndim > 1:
            raise IndexError("only one-dimensional arrays can select here")
        item = array.item()
    try:
        number = operator.index(item)
    except TypeError:
        raise IndexError(f"a {type(item).__name__} cannot select here") from None
    if not -size <= number < size:
        raise IndexError(f"index {number} is out of bounds for an axis of size {size}")
    return number % size


def _normalised_array(array: np.ndarray, size: int) -> np.ndarray:
    if array.dtype.kind == "b":
        if len(array) != size:
            raise IndexError(f"{len(array)} booleans cannot select on an axis of size {size}")
        return np.flatnonzero(array)
    if array.dtype.kind not in "iu":
        raise IndexError(f"an array of {array.dtype} cannot select here")
    if array.size and not (-size <= int(array.min()) and int(array.max()) < size):
        raise IndexError(f"an index is out of bounds for an axis of size {size}")
    array = array.astype(np.intp)
    return np.where(array < 0, array + size, array)
