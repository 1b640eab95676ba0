"""What a site offers: datasets and functions of `site.toml`, and those published at run time."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from distributed.protocol.serialize import ToPickle

from site_plugins.datasets import StoredDataset
from site_plugins.functions import PublishedFunction
from site_plugins.publications import Publications

__all__ = ["Offers", "unwrapped"]

logger = logging.getLogger(__name__)


def unwrapped(payload: Any) -> Any:
    """Take what was sent by RPC out of its wrapper, which Dask leaves on within one process."""
    return payload.data if isinstance(payload, ToPickle) else payload


class Offers:
    """Datasets and functions by name, and the handlers by which they are changed.

    What `site.toml` names cannot be replaced at run time: the next start would undo it.

    Parameters
    ----------
    datasets : iterable of StoredDataset
        Those of `site.toml`.
    functions : iterable of PublishedFunction
        Those of its modules.
    publications : Publications
        Where the others are kept.
    """

    def __init__(
        self,
        datasets: Iterable[StoredDataset],
        functions: Iterable[PublishedFunction],
        publications: Publications,
    ) -> None:
        self.datasets = {dataset.name: dataset for dataset in datasets}
        self.functions = {function.name: function for function in functions}
        self._fixed_datasets = frozenset(self.datasets)
        self._fixed_functions = frozenset(self.functions)
        self._publications = publications

    def restore(self) -> None:
        """Offer again what was published before the scheduler last stopped."""
        functions, datasets = self._publications.load()
        for function in functions:
            self.functions.setdefault(function.name, function)
        for dataset in datasets:
            self.datasets.setdefault(dataset.name, dataset)

    def federated_publish(self, dataset: Any) -> str | None:
        """Offer a dataset, or another one under the name; tell why not, if it cannot be."""
        dataset = unwrapped(dataset)
        if dataset.name in self._fixed_datasets:
            return f"Dataset {dataset.name!r} is one of site.toml; change it there."
        before = self.datasets.get(dataset.name)
        try:
            self._publications.keep_dataset(dataset)
        except OSError as error:
            return _unkept(error)
        self.datasets[dataset.name] = dataset
        if before is not None and before.path != dataset.path:
            self._publications.discard(before)
        return None

    def federated_publish_function(self, function: Any) -> str | None:
        """Offer a function, or another one under the name; tell why not, if it cannot be."""
        function = unwrapped(function)
        if function.name in self._fixed_functions:
            return f"Function {function.name!r} is published by a module of site.toml."
        try:
            self._publications.keep_function(function)
        except OSError as error:
            return _unkept(error)
        self.functions[function.name] = function
        return None

    def federated_unpublish(self, name: str, kind: str = "dataset") -> bool:
        """Offer a dataset or function no longer; tell whether it was offered."""
        if kind == "function":
            self._publications.drop_function(name)
            return self.functions.pop(name, None) is not None
        dataset = self.datasets.pop(name, None)
        if dataset is not None:
            self._publications.drop_dataset(dataset)
        return dataset is not None

    def federated_place(self, name: str) -> str | None:
        """Name a new folder for the data of a dataset; None where the site keeps nothing."""
        return self._publications.place(name)


def _unkept(error: OSError) -> str:
    logger.error("A publication cannot be kept: %s", error)
    return f"The site's state folder cannot be written ({error.strerror})."
