"""Publishing at run time, by the institute's own Dask users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from federated_dask.errors import ConfigurationError
from site_plugins.functions import (
    PickledOrigin,
    Publication,
    PublishedFunction,
    published_function,
)

__all__ = ["publish_function"]


def publish_function(client: Any, function: Callable[..., Any], publication: Publication) -> Any:
    """Publish a function at once; see `site_plugins.publish`."""
    import cloudpickle

    published = published_function(
        function, PickledOrigin(cloudpickle.dumps(function)), publication
    )
    return client.sync(_publish, client, published)


async def _publish(client: Any, published: PublishedFunction) -> str:
    from distributed.protocol.serialize import ToPickle

    error = await client.scheduler.federated_publish_function(function=ToPickle(published))
    if error:
        raise ConfigurationError(error)
    return published.name
