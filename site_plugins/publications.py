"""What was published at run time, kept in the site's state folder.

One file for each function and dataset, renamed into place.  The scheduler reads them
when it starts.  Of a function it keeps the pickle as it is and never loads it.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from pathlib import Path

import msgspec

from federated_dask.protocol.call_messages import FunctionDescription
from site_plugins.datasets import StoredDataset
from site_plugins.functions import PickledOrigin, PublishedFunction

__all__ = ["Publications"]

logger = logging.getLogger(__name__)

FOLDER = "published"
WRITTEN = "datasets"
"""Folder of the datasets that were handed over as objects, within that of the publications."""


class _KeptFunction(msgspec.Struct, frozen=True):
    description: FunctionDescription
    pickle: bytes
    digest: str


class Publications:
    """The publications of a site on its disk.

    Parameters
    ----------
    state : Path or None
        The site's state folder; None keeps nothing.

    Examples
    --------
    >>> Publications(None).load()
    ([], [])
    """

    def __init__(self, state: Path | None) -> None:
        self._folder = None if state is None else Path(state) / FOLDER

    def load(self) -> tuple[list[PublishedFunction], list[StoredDataset]]:
        """Read what was kept; what cannot be read is left out, and logged."""
        functions: list[PublishedFunction] = []
        datasets: list[StoredDataset] = []
        for path in [] if self._folder is None else sorted(self._folder.glob("*.msgpack")):
            try:
                data = path.read_bytes()
                if path.name.startswith("function-"):
                    kept = msgspec.msgpack.decode(data, type=_KeptFunction)
                    functions.append(
                        PublishedFunction(
                            description=kept.description,
                            origin=PickledOrigin(kept.pickle),
                            digest=kept.digest,
                        )
                    )
                else:
                    datasets.append(msgspec.msgpack.decode(data, type=StoredDataset))
            except (OSError, msgspec.MsgspecError, TypeError) as error:
                logger.error("The publication %s cannot be read: %s", path, error)
        return functions, datasets

    def keep_function(self, function: PublishedFunction) -> None:
        """Keep a function; raises OSError."""
        assert isinstance(function.origin, PickledOrigin)  # noqa: S101
        kept = _KeptFunction(function.description, function.origin.pickle, function.digest)
        self._write(f"function-{function.name}", kept)

    def keep_dataset(self, dataset: StoredDataset) -> None:
        """Keep a dataset; raises OSError."""
        self._write(f"dataset-{dataset.name}", dataset)

    def drop_function(self, name: str) -> None:
        """Forget a function."""
        self._remove(f"function-{name}")

    def drop_dataset(self, dataset: StoredDataset) -> None:
        """Forget a dataset; its data goes too, where it was written here."""
        self._remove(f"dataset-{dataset.name}")
        self.discard(dataset)

    def discard(self, dataset: StoredDataset) -> None:
        """Remove the data of a dataset, where it was written here."""
        if self._folder is not None and Path(dataset.path).parent == self._folder / WRITTEN:
            shutil.rmtree(dataset.path, ignore_errors=True)

    def place(self, name: str) -> str | None:
        """Name a new folder for the data of a dataset."""
        if self._folder is None:
            return None
        folder = self._folder / WRITTEN
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(folder / f"{name}-{secrets.token_hex(4)}.zarr")

    def _write(self, name: str, kept: _KeptFunction | StoredDataset) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._folder / f".{name}.{secrets.token_hex(4)}"
        opened = os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        with os.fdopen(opened, "wb") as file:
            file.write(msgspec.msgpack.encode(kept))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._folder / f"{name}.msgpack")

    def _remove(self, name: str) -> None:
        if self._folder is not None:
            (self._folder / f"{name}.msgpack").unlink(missing_ok=True)
