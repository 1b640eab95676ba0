"""What sites announced, as the planner wants it."""

from __future__ import annotations

from typing import Protocol

from federated_dask.client.connection import SiteConnection
from federated_dask.errors import ConfigurationError, FederatedError
from federated_dask.planner.sources import SiteFacts
from federated_dask.protocol.messages import SiteDescription

__all__ = ["AnnouncedFacts", "facts_of"]


class Connects(Protocol):
    """What the facts need of a client."""

    def connection_of(self, site: str) -> SiteConnection:
        """Give the connection to a site, or raise why there is none."""


class AnnouncedFacts(dict[str, SiteFacts]):
    """What sites announced; asked for a site that is not there, it says why."""

    def __init__(self, client: Connects) -> None:
        super().__init__()
        self._client = client

    def __missing__(self, site: str) -> SiteFacts:
        raise _unusable(self._client, site)


def _unusable(client: Connects, site: str) -> FederatedError:
    try:
        client.connection_of(site)
    except FederatedError as error:
        return error
    return ConfigurationError(
        "The client did not ask the site what it can do.", site=site, hint="Call fed.refresh()."
    )


def facts_of(description: SiteDescription, operations: frozenset[str]) -> SiteFacts:
    """Take from a site's description what bears on a plan."""
    peers = frozenset(peer.name for peer in description.peers if peer.exchanges)
    return SiteFacts(
        description.name,
        operations,
        peers,
        description.resources,
        description.limits.get("task_bytes"),
    )
