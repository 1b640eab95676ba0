"""The client that is used where none is named."""

from __future__ import annotations

from typing import Protocol

from federated_dask.client.connection import SiteConnection
from federated_dask.errors import ConfigurationError

__all__ = ["HasConnections", "current_connection", "get_current", "set_current"]


class HasConnections(Protocol):
    """What opening a dataset needs of a client."""

    def connection_of(self, site_name: str) -> SiteConnection:
        """Give the connection to a site; `NotFound` if the client knows no such site."""


_current: HasConnections | None = None


def set_current(client: HasConnections | None) -> None:
    """Make a client the current one of this process; None for no client."""
    global _current
    _current = client


def get_current() -> HasConnections | None:
    """Give the current client, or None."""
    return _current


def current_connection(site_name: str) -> SiteConnection:
    """Give the current client's connection to a site.

    Raises
    ------
    ConfigurationError
        If there is no current client.
    NotFound
        If it does not know the site.
    """
    client = get_current()
    if client is None:
        raise ConfigurationError(
            f"There is no client that knows how to reach site {site_name!r}.",
            site=site_name,
            hint="Open the dataset inside `with FederatedClient(...)`, call fed.as_current() "
            "first, or give the client: xr.open_dataset(..., client=fed).",
        )
    return client.connection_of(site_name)
