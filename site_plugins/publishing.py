"""Publishing at run time, by the institute's own Dask users.

Whoever reaches the site's scheduler may run code there already; publishing gives nobody
more than that.  The site's grants say who may call, and who may read.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from federated_dask.errors import ConfigurationError
from site_plugins.config import DatasetSection
from site_plugins.datasets import StoredDataset
from site_plugins.functions import PickledOrigin, Publication, PublishedFunction, published_function
from site_plugins.worker_clients import own_client

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["publish_dataset", "publish_function", "unpublish"]


def publish_function(client: Any, function: Callable[..., Any], told: Publication) -> Any:
    """Publish a function at once; see `site_plugins.publish`."""
    import cloudpickle

    with _by_value(function):
        pickled = cloudpickle.dumps(function)
    published = published_function(function, PickledOrigin(pickled), told)
    return client.sync(_publish, client, published)


async def _publish(client: Any, published: PublishedFunction) -> str:
    await _told(client, "federated_publish_function", function=published)
    return published.name


@contextlib.contextmanager
def _by_value(function: Callable[..., Any]) -> Iterator[None]:
    """Have a function of the user's own module pickled as it is: the site has no such module."""
    import cloudpickle

    module = sys.modules.get(getattr(function, "__module__", None) or "")
    file = getattr(module, "__file__", None) or ""
    is_own = module is not None and module.__name__ != "__main__" and "site-packages" not in file
    if (
        module is None
        or not is_own
        or module.__name__ in cloudpickle.list_registry_pickle_by_value()
    ):
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def publish_dataset(
    client: Any, name: str, dataset: xr.Dataset | str | os.PathLike[str], **options: Any
) -> Any:
    """Publish a dataset of the site at run time, until `unpublish`.

    Parameters
    ----------
    client : distributed.Client
        Of the site's cluster.
    name : str
        Under which it is opened.
    dataset : xarray.Dataset or str or path
        A path or fsspec URL that the workers can open; or a dataset, which the cluster
        writes into the site's state folder.
    **options : object
        Whatever a ``[datasets.<name>]`` section of `site.toml` may hold: ``title``,
        ``egress``, ``engine`` …

    Returns
    -------
    str
        Its name; awaitable with an asynchronous client.

    Raises
    ------
    ConfigurationError
        If it cannot be published like that.

    Examples
    --------
    >>> from distributed import Client
    >>> from site_plugins import SitePlugin
    >>> options = {"processes": False, "n_workers": 1, "dashboard_address": None}
    >>> with Client(**options, set_as_default=False) as client:
    ...     client.register_plugin(SitePlugin("north"))
    ...     publish_dataset(client, "a1b", "s3://bucket/a1b.zarr", egress="derived")
    'a1b'
    """
    return client.sync(_publish_dataset, client, name, dataset, options)


async def _publish_dataset(client: Any, name: str, dataset: Any, options: dict[str, Any]) -> str:
    import xarray as xr

    if isinstance(dataset, xr.Dataset):
        # Wrong options are to be told before all is written.
        _stored(name, "elsewhere", options)
        place = await client.scheduler.federated_place(name=name)
        if place is None:
            raise ConfigurationError(
                "The site has no state folder to keep the dataset in.",
                hint="Write it yourself and publish its path.",
            )
        # As one argument: Dask would compute what it finds in it before the task runs.
        await client.submit(_write, _Unseen(dataset), place, pure=False)
        path = place
    else:
        path = os.fspath(dataset)
    await _told(client, "federated_publish", dataset=_stored(name, path, options))
    return name


class _Unseen:
    def __init__(self, content: Any) -> None:
        self.content = content


def _write(dataset: _Unseen, path: str) -> None:
    from distributed import get_worker, worker_client

    with own_client(get_worker()), worker_client():
        dataset.content.drop_encoding().to_zarr(path, zarr_format=2, consolidated=True)


def _stored(name: str, path: str, options: dict[str, Any]) -> StoredDataset:
    try:
        section = DatasetSection.model_validate(
            {"path": path, **options}, context={"folder": Path.cwd()}
        )
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        where = ".".join(map(str, details["loc"]))
        raise ConfigurationError(
            f"Dataset {name!r} cannot be published: {where}: {details['msg']}."
        ) from None
    return StoredDataset.from_config(name, section)


def unpublish(client: Any, name: str, kind: str | None = None) -> Any:
    """Publish a function or dataset no longer.

    Parameters
    ----------
    client : distributed.Client
        Of the site's cluster.
    name : str
        Its name.
    kind : {"function", "dataset"}, optional
        Which one, where both have that name.

    Returns
    -------
    None
        An awaitable with an asynchronous client.

    Raises
    ------
    ConfigurationError
        If nothing is published under that name, or both and `kind` does not say which.

    Examples
    --------
    >>> from distributed import Client
    >>> from site_plugins import SitePlugin, publish
    >>> def double(number: float) -> float:
    ...     return 2 * number
    >>> options = {"processes": False, "n_workers": 1, "dashboard_address": None}
    >>> with Client(**options, set_as_default=False) as client:
    ...     client.register_plugin(SitePlugin("north"))
    ...     publish(client, double)
    ...     unpublish(client, "double")
    'double'
    """
    return client.sync(_unpublish, client, name, kind)


async def _unpublish(client: Any, name: str, kind: str | None) -> None:
    from site_plugins.offers import unwrapped

    state = unwrapped(await client.scheduler.federated_site())
    offered = {"function": state.functions, "dataset": state.datasets}
    found = [each for each in offered if kind in (None, each) and name in offered[each]]
    if len(found) != 1:
        what = "A function and a dataset are" if found else "Nothing is"
        raise ConfigurationError(
            f"{what} published under the name {name!r}.", hint='Say kind="function" or "dataset".'
        )
    await client.scheduler.federated_unpublish(name=name, kind=found[0])


async def _told(client: Any, operation: str, **item: Any) -> None:
    from distributed.protocol.serialize import ToPickle

    wrapped = {key: ToPickle(value) for key, value in item.items()}
    problem = await getattr(client.scheduler, operation)(**wrapped)
    if problem:
        raise ConfigurationError(problem)
