"""`FederatedClient`: several institutes' datasets and clusters, as one Dask scheduler."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar, overload, runtime_checkable
from urllib.parse import urlsplit

import dask
import dask.threaded
import xarray as xr
from dask._expr import FinalizeCompute
from dask.base import collections_to_expr, unpack_collections
from dask.core import flatten

from federated_dask.client import current, loop
from federated_dask.client.catalogue import Datasets, Site, Sites
from federated_dask.client.connection import SiteConnection
from federated_dask.client.execution import execute
from federated_dask.client.future import FederatedFuture
from federated_dask.client.held import HeldValue, held_task
from federated_dask.client.progress import ProgressBars, wants_bars
from federated_dask.client.run_record import RunRecord
from federated_dask.errors import ConfigurationError, FederatedError
from federated_dask.planner.explanation import Explanation
from federated_dask.planner.graph import Key, has_site_data
from federated_dask.planner.plan import Plan, make_plan
from federated_dask.planner.sources import HOME, SiteFacts
from federated_dask.protocol.messages import Catalogue, SiteDescription
from federated_dask.protocol.operations import operation_table

__all__ = ["FederatedClient"]

T = TypeVar("T")


@runtime_checkable
class _Federation(Protocol):
    """Anything that says how to reach sites, such as ``site_plugins.LocalFederation``."""

    @property
    def addresses(self) -> Mapping[str, str]: ...
    @property
    def token(self) -> str | Mapping[str, str]: ...
    @property
    def verify(self) -> bool | str | Path: ...


class FederatedClient:
    """Connect to the sites of a federation and compute near their data.

    Used as a context manager, or after `as_current`, it is Dask's scheduler:
    ``.compute()``, ``.load()``, ``.persist()`` and ``dask.compute`` of
    expressions over datasets that it opened run at the sites that store them.
    Expressions without data of a site run in this process as usual.

    Parameters
    ----------
    address : str, sequence or mapping of str, or federation
        Address of one endpoint (``https://host:port``), several of them, site
        names to addresses, or an object with ``addresses``, ``token`` and
        ``verify``.  Peers of these sites are discovered.
    token : str or mapping of str to str, optional
        One bearer token for all sites, peers included; or a token per site, by
        name or address.  Tokens by name go only to addresses given here, tokens
        by address also to peers that are discovered there.
    verify : bool, str or Path, default True
        True for the system's certificate authorities, or a PEM file of the only
        ones to trust.
    timeout : float, default 60
        Seconds of silence after which a site counts as unavailable.
    compute_timeout : float, optional
        Seconds that one compute may take; no limit by default.
    progress : bool, optional
        Show progress bars; by default where somebody is looking.
    asynchronous : bool, default False
        For use in coroutines: methods that wait return awaitables.

    Raises
    ------
    SiteUnavailable, NotAuthenticated
        If a given address does not answer or does not accept the token.  Peers
        that cannot be reached are listed in `sites` with the reason.

    Examples
    --------
    >>> fed = FederatedClient("https://north.example:8786", token="…")  # doctest: +SKIP
    >>> with fed:  # doctest: +SKIP
    ...     a1b = fed.open_dataset("north/a1b").air_temperature
    ...     e1 = fed.open_dataset("south/e1").air_temperature
    ...     warming = (a1b.mean("time") - e1.mean("time")).compute()
    """

    def __init__(
        self,
        address: str | Sequence[str] | Mapping[str, str] | _Federation,
        *,
        token: str | Mapping[str, str] | None = None,
        verify: bool | str | Path = True,
        timeout: float = 60.0,
        compute_timeout: float | None = None,
        progress: bool | None = None,
        asynchronous: bool = False,
    ) -> None:
        if isinstance(address, _Federation):
            token = address.token if token is None else token
            verify = address.verify if verify is True else verify
            address = address.addresses
        self.asynchronous = asynchronous
        self.compute_timeout = compute_timeout
        self._addresses = _named(address)
        self._token = token
        self._verify = verify
        self._timeout = timeout
        self._progress = wants_bars() if progress is None else progress
        self._table = operation_table()
        self._connections: dict[str, SiteConnection] = {}
        self._facts: dict[str, SiteFacts] = {}
        self._sites = Sites({})
        self._datasets = Datasets({})
        self._last_run: RunRecord | None = None
        self._config: dask.config.set | None = None
        self._previous: current.HasConnections | None = None
        if not asynchronous:
            loop.sync(self._connect())

    # Connecting

    async def _connect(self) -> FederatedClient:
        sites = {}
        async with _first_error(), asyncio.TaskGroup() as group:
            given = [
                group.create_task(self._reach(name, address, given=True))
                for name, address in self._addresses
            ]
        for site, catalogue in (task.result() for task in given):
            self._add(sites, site, catalogue)
        peers = {
            peer.name: peer.address
            for site in list(sites.values())
            if site.description is not None
            for peer in site.description.peers
            if peer.name not in sites
        }
        async with asyncio.TaskGroup() as group:
            found = [group.create_task(self._reach_peer(*peer)) for peer in peers.items()]
        for site, catalogue in (task.result() for task in found):
            self._add(sites, site, catalogue)
        self._sites = Sites(sites)
        return self

    async def _reach(
        self, name: str | None, address: str, *, given: bool
    ) -> tuple[Site, Catalogue]:
        if name is None:
            anonymous = self._make_connection(urlsplit(address).netloc or address, address, None)
            name = (await anonymous.health()).get("site", "")
        connection = self._make_connection(name, address, self._token_for(name, address, given))
        description, catalogue = await asyncio.gather(
            connection.describe_site(), connection.catalogue()
        )
        if description.name != name or name == HOME:
            raise ConfigurationError(
                f"The endpoint at {address} is the site {description.name!r}, not {name!r}.",
                site=name,
                hint="Check the addresses.",
            )
        self._connections[name] = connection
        return Site(name, address, description), catalogue

    async def _reach_peer(self, name: str, address: str) -> tuple[Site, Catalogue]:
        try:
            return await self._reach(name, address, given=False)
        except FederatedError as error:
            return Site(name, address, error=error), Catalogue(site=name, datasets=())

    def _make_connection(self, name: str, address: str, token: str | None) -> SiteConnection:
        return SiteConnection(name, address, token, self._verify, self._timeout)

    def _token_for(self, name: str, address: str, given: bool) -> str | None:
        if self._token is None or isinstance(self._token, str):
            return self._token
        by_address = self._token.get(address)
        # A site says where its peers are; were tokens sent there by name, it
        # could have them sent anywhere.
        return self._token.get(name, by_address) if given else by_address

    def _add(self, sites: dict[str, Site], site: Site, catalogue: Catalogue) -> None:
        sites[site.name] = site
        if site.description is None:
            return
        self._facts[site.name] = _facts(site.description)
        known = dict(self._datasets)
        known.update({f"{site.name}/{each.name}": each for each in catalogue.datasets})
        self._datasets = Datasets(known)

    def connection_of(self, site: str) -> SiteConnection:
        """Connection to a site.

        Raises
        ------
        NotFound
            If the federation has no such site.
        FederatedError
            Why the site could not be reached.
        """
        if site in self._connections:
            return self._connections[site]
        error = self._sites[site].error
        raise (
            error
            if error is not None
            else ConfigurationError(
                "The client is not connected.", site=site, hint="Await it first."
            )
        )

    # Looking around

    @property
    def sites(self) -> Sites:
        """Sites of the federation by name, those that could not be reached included."""
        return self._sites

    @property
    def datasets(self) -> Datasets:
        """Datasets of all sites by qualified name; ``fed.datasets.search("sea")`` searches."""
        return self._datasets

    @property
    def last_run(self) -> RunRecord | None:
        """What the last compute really did and moved; None before the first."""
        return self._last_run

    def refresh(self) -> Any:
        """Ask all sites again what they offer."""
        return self._run(self._connect())

    def open_dataset(
        self,
        name: str,
        *,
        chunks: Any = "auto",
        drop_variables: str | Iterable[str] | None = None,
    ) -> Any:
        """Open a dataset lazily, in one round trip.

        Parameters
        ----------
        name : str
            Qualified name, ``site/dataset``.
        chunks : int, dict, "auto" or None, default "auto"
            As in `xarray.open_dataset`: ``"auto"`` joins storage chunks to
            sensible sizes, ``{}`` takes storage chunks, None gives arrays that
            are downloaded when they are used.
        drop_variables : str or iterable of str, optional
            Variables to leave out.

        Returns
        -------
        xarray.Dataset
            An awaitable of it, in asynchronous mode.

        Raises
        ------
        NotFound
            If there is no such site or dataset.
        DatasetUnreadable
            If the site cannot open it.
        """

        def open_() -> xr.Dataset:
            return xr.open_dataset(
                f"fed://{name}",
                engine="federated",
                chunks=chunks,
                drop_variables=drop_variables,
                backend_kwargs={"client": self},
            )

        return asyncio.to_thread(open_) if self.asynchronous else open_()

    # Computing

    def get(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute keys of a graph: the scheduler that Dask calls.

        Parameters
        ----------
        dsk : dask Expr, HighLevelGraph or mapping
            The graph.
        keys : key or nested list of keys
            What to compute.

        Returns
        -------
        object or nested list
            Results in the shape of `keys`.
        """
        wanted = keys if isinstance(keys, list) else [keys]
        if not has_site_data(dsk):
            return dask.threaded.get(dsk, keys, **kwargs)
        plan = self._plan(dsk, wanted)
        if self._progress:
            with ProgressBars() as bars:
                results = loop.sync(self._execute(plan, bars))
        else:
            results = loop.sync(self._execute(plan))
        return _shaped(keys, results)

    def compute(self, collections: Any, *, sync: bool = False, timeout: float | None = None) -> Any:
        """Compute collections in the background.

        Parameters
        ----------
        collections : dask collection, or list or tuple of them
            What to compute.
        sync : bool, default False
            Wait and return the results themselves.
        timeout : float, optional
            Seconds that the compute may take; `compute_timeout` by default.

        Returns
        -------
        FederatedFuture or list of FederatedFuture
            In the shape of `collections`; the results themselves with ``sync=True``.
        """
        several = isinstance(collections, list | tuple)
        items = list(collections) if several else [collections]
        found, repack = unpack_collections(*items)
        expression = FinalizeCompute(collections_to_expr(found)).optimize()
        keys = list(flatten(expression.__dask_keys__()))
        if has_site_data(expression):
            plan = self._plan(expression, keys)
            run = loop.start(self._execute(plan, timeout=timeout))
        else:
            run = loop.start(asyncio.to_thread(_computed_here, expression, keys))
        futures = [
            FederatedFuture(_then(run, lambda results, i=i: repack([results[k] for k in keys])[i]))
            for i in range(len(items))
        ]
        if sync:
            results = [future.result() for future in futures]
            return type(collections)(results) if several else results[0]
        return futures if several else futures[0]

    def persist(self, collections: Any, *, optimize_graph: bool = True, **kwargs: Any) -> Any:
        """Compute collections and leave the results where they are made.

        Parameters
        ----------
        collections : dask collection, or list or tuple of them
            What to compute.
        optimize_graph : bool, default True
            For collections that have no data of a site; the plan is always
            optimised.

        Returns
        -------
        collection or list of collections
            Of the same kinds; chunks made at a site stay there under a lease
            until nothing refers to them any more.
        """
        several = isinstance(collections, list | tuple)
        items = list(collections) if several else [collections]
        persisted = self._persist(items, optimize_graph)
        return persisted if several else persisted[0]

    def _persist(self, items: list[Any], optimize_graph: bool) -> list[Any]:
        expression = collections_to_expr(items, optimize_graph)
        if not has_site_data(expression):
            # Not `self.get`: Dask would find `persist` beside it and come back here.
            plain: Callable[..., Any] = lambda dsk, keys, **kw: dask.threaded.get(dsk, keys, **kw)
            return list(dask.persist(*items, optimize_graph=optimize_graph, scheduler=plain))
        keys = list(flatten([item.__dask_keys__() for item in items]))
        results = loop.sync(self._execute(self._plan(expression, keys, hold=True)))
        rebuilt = []
        for item in items:
            rebuild, state = item.__dask_postpersist__()
            own = flatten(item.__dask_keys__())
            rebuilt.append(rebuild({key: _node(key, results[key]) for key in own}, *state))
        return rebuilt

    def explain(self, collections: Any) -> Explanation:
        """Show the plan of a compute without running it.

        Parameters
        ----------
        collections : dask collection, or list or tuple of them
            What would be computed.

        Returns
        -------
        Explanation
            Tasks and bytes read per site, bytes per link, what downloading would
            cost, and why tasks are not at their data; text and HTML.
        """
        items = list(collections) if isinstance(collections, list | tuple) else [collections]
        found, _ = unpack_collections(*items)
        expression = FinalizeCompute(collections_to_expr(found)).optimize()
        return Explanation(self._plan(expression, list(flatten(expression.__dask_keys__()))))

    def _plan(self, expression: Any, keys: Iterable[Key], hold: bool = False) -> Plan:
        return make_plan(expression, keys, self._facts, self._table, hold=hold)

    async def _execute(
        self, plan: Plan, report: ProgressBars | None = None, timeout: float | None = None
    ) -> dict[Key, Any]:
        results, self._last_run = await execute(
            plan,
            {site: self.connection_of(site) for site in plan.sites},
            report=report,
            timeout=self.compute_timeout if timeout is None else timeout,
        )
        return results

    # Life

    def as_current(self) -> FederatedClient:
        """Make this client Dask's scheduler, until it is closed or another takes over."""
        if self._config is None:
            # P2P rechunking belongs to one scheduler; a plan needs plain tasks.
            self._config = dask.config.set({"scheduler": self.get, "array.rechunk.method": "tasks"})
            self._previous = current.get_current()
            current.set_current(self)
        return self

    def close(self) -> Any:
        """Close the connections and stop being Dask's scheduler."""
        if self._config is not None:
            self._config.__exit__(None, None, None)
            self._config = None
            if current.get_current() is self:
                current.set_current(self._previous)
        return self._run(self._close())

    async def _close(self) -> None:
        await asyncio.gather(*(connection.close() for connection in self._connections.values()))

    @overload
    def _run(self: FederatedClient, coroutine: Coroutine[Any, Any, T]) -> T: ...
    @overload
    def _run(self, coroutine: Coroutine[Any, Any, T]) -> Any: ...
    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return coroutine if self.asynchronous else loop.sync(coroutine)

    def __enter__(self) -> FederatedClient:
        return self.as_current()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __await__(self) -> Generator[Any, None, FederatedClient]:
        return self._connect().__await__()

    async def __aenter__(self) -> FederatedClient:
        await self._connect()
        return self.as_current()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<FederatedClient: {len(self._connections)} sites, {len(self._datasets)} datasets>"

    def _repr_html_(self) -> str:
        return (
            f"<div><h3>FederatedClient</h3>{self.sites._repr_html_()}"
            f"{self.datasets._repr_html_()}</div>"
        )


def _named(
    address: str | Sequence[str] | Mapping[str, str],
) -> list[tuple[str | None, str]]:
    if isinstance(address, str):
        return [(None, address.rstrip("/"))]
    if isinstance(address, Mapping):
        return [(name, each.rstrip("/")) for name, each in address.items()]
    addresses: list[tuple[str | None, str]] = [(None, each.rstrip("/")) for each in address]
    if not addresses:
        raise ConfigurationError(
            "There is no address to connect to.", hint="Give the address of at least one site."
        )
    return addresses


def _facts(description: SiteDescription) -> SiteFacts:
    names = description.operations
    known = operation_table().names if names is None else names
    return SiteFacts(description.name, frozenset(known))


class _first_error:  # noqa: N801
    """Raise the first error of a task group instead of the group."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        if isinstance(exc, BaseExceptionGroup):
            raise exc.exceptions[0] from None
        return False


def _computed_here(expression: Any, keys: list[Key]) -> dict[Key, Any]:
    return dict(zip(keys, dask.threaded.get(expression, keys), strict=True))


def _then(
    run: concurrent.futures.Future[Any], function: Callable[[Any], Any]
) -> concurrent.futures.Future[Any]:
    """Make a future of what `function` makes of another's result; cancelling reaches both."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def settle(done: concurrent.futures.Future[Any]) -> None:
        if future.cancelled():
            return
        if done.cancelled():
            future.cancel()
            future.set_running_or_notify_cancel()
        elif (error := done.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(function(done.result()))

    run.add_done_callback(settle)
    future.add_done_callback(lambda done: run.cancel() if done.cancelled() else None)
    return future


def _node(key: Key, value: Any) -> Any:
    return held_task(key, value) if isinstance(value, HeldValue) else value


def _shaped(keys: Any, results: Mapping[Key, Any]) -> Any:
    if isinstance(keys, list):
        return [_shaped(key, results) for key in keys]
    return results[keys]
