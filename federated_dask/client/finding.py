"""Finding the sites of a federation: those that are given, and the peers that they name."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from federated_dask.client.addresses import check_name
from federated_dask.client.catalogue import Site
from federated_dask.client.connection import SiteConnection
from federated_dask.client.first_error import first_error
from federated_dask.client.login import LoginToken, stored_token
from federated_dask.errors import (
    ConfigurationError,
    FederatedError,
    NotAuthenticated,
    NotFound,
    Reason,
)
from federated_dask.protocol.call_messages import FunctionDescription
from federated_dask.protocol.messages import Catalogue, SiteDescription
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.project_messages import Projects

__all__ = ["Reached", "SiteFinder"]

Reached: TypeAlias = tuple[Site, Catalogue]


class SiteFinder:
    """Reaches sites and keeps the connections to them.

    What a given site says of its peers decides where tokens go: one token for all
    sites, or a token by address, is sent to a peer's address as soon as one given
    site names it.  Where given sites name different addresses for the same peer,
    none of them is connected to, and the peer is listed with the reason.

    A given site also vouches for the certificates of its peers, each for that peer's address
    and nothing else.  It is believed where its word is what sends the token there anyway:
    not for an address that the user has a token or a login for, and not where given sites
    say different things.

    Parameters
    ----------
    addresses : sequence of (str or None, str)
        Name, where it is given, and address of every site to begin with.
    token : str, mapping of str to str, or None
        As `FederatedClient` takes it; sites without one get that of their login.
    verify : bool, str or Path
        Whom to trust.
    timeout : float
        Seconds of silence after which a site counts as unavailable.
    project : str, optional
        Project for which all is asked.
    """

    def __init__(
        self,
        addresses: Sequence[tuple[str | None, str]],
        token: str | Mapping[str, str] | None,
        verify: bool | str | Path,
        timeout: float,
        project: str | None = None,
    ) -> None:
        self._addresses = addresses
        self._token = token
        self._verify = verify
        self._timeout = timeout
        self._project = project
        self.connections: dict[str, SiteConnection] = {}
        self._logins: dict[str, LoginToken | None] = {}

    async def reach_all(self) -> tuple[list[Reached], list[Reached]]:
        """Reach the given sites and their peers.

        Returns
        -------
        given, peers : list of (Site, Catalogue)

        Raises
        ------
        FederatedError
            If a given site cannot be reached; a peer that cannot says so itself.
        """
        with first_error():
            async with asyncio.TaskGroup() as group:
                asked = [
                    group.create_task(self._reach(name, address, given=True))
                    for name, address in self._addresses
                ]
        given = [task.result() for task in asked]
        known = {site.name for site, _ in given}
        peers: dict[str, dict[str, list[str]]] = {}
        vouched: dict[str, set[str | None]] = {}
        for site, _ in given:
            for peer in site.description.peers if site.description is not None else ():
                if peer.name not in known:
                    stated = peers.setdefault(peer.name, {})
                    stated.setdefault(peer.address.rstrip("/"), []).append(site.name)
                    vouched.setdefault(peer.name, set()).add(peer.ca)
        async with asyncio.TaskGroup() as group:
            found = [
                group.create_task(self._reach_peer(name, stated, _only(vouched[name])))
                for name, stated in peers.items()
            ]
        return given, [task.result() for task in found]

    async def require_membership(self) -> None:
        """Raise `NotFound` for a project that its site does not know, or only without the user."""
        name, _, host = (self._project or "").rpartition("@")
        connection = self.connections.get(host)
        if connection is None:
            # None is named, or its site is none of these: then the sites decide.
            return
        found = await connection.ask("GET", "/projects", Projects)
        if all(project.name != self._project for project in found.projects):
            raise NotFound(
                f"You are no member of project {name!r}.",
                reason=Reason.UNKNOWN_PROJECT,
                site=host,
                hint="Ask its owner for an invitation; `federated-dask project list` names yours.",
            )

    async def _reach(
        self, name: str | None, address: str, *, given: bool, ca: str | None = None
    ) -> Reached:
        told = name if name is not None else await self._name_at(address)
        token = await self._token_for(told, address, given)
        # Whom the user chose to send a token is recognised as the user said.
        if token is not None and token is not self._token:
            ca = None
        connection = await self._make_connection(told, address, token, ca)
        try:
            description, catalogue, published = await self._ask(connection)
            check_name(told, description.name, address)
            operations = await _operations(connection, description)
        except BaseException as error:
            # A cancellation too must not leave the connection open.
            await connection.close()
            if isinstance(error, NotAuthenticated) and name is not None:
                # No token fits where the name is wrong; then the name is what to tell of.
                check_name(name, await self._name_at(address, ca), address)
            raise
        self.connections[told] = connection
        site = Site(told, address, description, operations=operations, published=published)
        return site, catalogue

    async def _ask(
        self, connection: SiteConnection
    ) -> tuple[SiteDescription, Catalogue, tuple[FunctionDescription, ...]]:
        with first_error():
            async with asyncio.TaskGroup() as group:
                description = group.create_task(connection.describe_site())
                catalogue = group.create_task(connection.catalogue())
                published = group.create_task(_published(connection))
        return description.result(), catalogue.result(), published.result()

    async def _name_at(self, address: str, ca: str | None = None) -> str:
        called = urlsplit(address).netloc or address
        anonymous = await self._make_connection(called, address, None, ca)
        try:
            return (await anonymous.health()).get("site", "")
        finally:
            await anonymous.close()

    async def _reach_peer(
        self, name: str, stated: Mapping[str, Sequence[str]], ca: str | None
    ) -> Reached:
        """Reach a peer; `stated` holds its address, with the sites that say so."""
        address, *others = stated
        if others:
            # One of them may have been made up to collect tokens; nobody here knows which.
            if (known := self.connections.pop(name, None)) is not None:
                await known.close()
            error = _conflict(name, stated)
            return Site(name, address, error=error), Catalogue(site=name, datasets=())
        try:
            return await self._reach(name, address, given=False, ca=ca)
        except FederatedError as error:
            self.connections.pop(name, None)
            return Site(name, address, error=error), Catalogue(site=name, datasets=())

    async def _make_connection(
        self,
        name: str,
        address: str,
        token: str | LoginToken | None,
        ca: str | None = None,
    ) -> SiteConnection:
        # A token that was given has nothing to do with an earlier login.
        looking = self._verify is True and not isinstance(token, str)
        login = await self._login_at(address) if looking else None
        # Who logged in with a CA file trusts it for this site.
        verify = self._verify if login is None or login.trust is None else login.trust
        if ca is not None and login is None:
            verify = ca
        made = SiteConnection(name, address, token, verify, self._timeout, project=self._project)
        known = self.connections.get(name)
        # Open datasets use the connection that they were opened with: there is one to close.
        return known if known is not None and known.parameters == made.parameters else made

    async def _token_for(self, name: str, address: str, given: bool) -> str | LoginToken | None:
        if isinstance(self._token, str):
            return self._token
        tokens = self._token or {}
        # A site says where its peers are; were tokens sent there by name, it
        # could have them sent anywhere.
        if given and name in tokens:
            return tokens[name]
        by_address = {key.rstrip("/"): token for key, token in tokens.items()}
        return by_address[address] if address in by_address else await self._login_at(address)

    async def _login_at(self, address: str) -> LoginToken | None:
        if address not in self._logins:
            # The keyring may have to ask the user first.
            self._logins[address] = await asyncio.to_thread(stored_token, address)
        return self._logins[address]

    def shut(self, is_shut: bool) -> None:
        """Let nothing new be asked for by the connections, or let it again."""
        for connection in self.connections.values():
            connection.is_shut = is_shut

    async def close(self) -> None:
        """Close all connections."""
        self.shut(True)
        await asyncio.gather(*(connection.close() for connection in self.connections.values()))


async def _published(connection: SiteConnection) -> tuple[FunctionDescription, ...]:
    try:
        return (await connection.functions()).functions
    except NotFound as error:
        if error.reason is Reason.UNKNOWN_ROUTE:
            # A site of before there were functions.
            return ()
        raise


async def _operations(connection: SiteConnection, description: SiteDescription) -> frozenset[str]:
    """Tell which operations a site has; it is asked only where its libraries differ from ours."""
    table = operation_table()
    if description.operations_digest in ("", table.digest):
        return frozenset(table.names)
    return await connection.operations()


def _only(vouched: set[str | None]) -> str | None:
    """Give what all say, or None."""
    return next(iter(vouched)) if len(vouched) == 1 else None


def _conflict(name: str, stated: Mapping[str, Sequence[str]]) -> ConfigurationError:
    said = "; ".join(f"{' and '.join(sites)}: {address}" for address, sites in stated.items())
    return ConfigurationError(
        f"Its peers state different addresses for it ({said}).",
        site=name,
        hint=f"Give its address yourself: FederatedClient({{{name!r}: 'https://…', …}}).",
    )
