"""`FederatedClient`: several institutes' datasets and clusters, as one Dask scheduler."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Coroutine, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import dask
import dask.base
import dask.threaded
import xarray as xr
from dask._expr import FinalizeCompute
from dask.base import collections_to_expr, unpack_collections
from dask.core import flatten

from federated_dask.client import loop, takeover
from federated_dask.client.addresses import check_token, named_addresses
from federated_dask.client.calling import FunctionCaller
from federated_dask.client.catalogue import Datasets, Sites
from federated_dask.client.collector import without_collection
from federated_dask.client.connection import SiteConnection
from federated_dask.client.execution import HomeCluster, execute
from federated_dask.client.facts import AnnouncedFacts, facts_of
from federated_dask.client.finding import SiteFinder
from federated_dask.client.functions import published
from federated_dask.client.future import FederatedFuture, share
from federated_dask.client.held import HeldValue, held_task
from federated_dask.client.progress import ProgressBars, wants_bars
from federated_dask.client.run_record import RunRecord
from federated_dask.client.terms import Terms
from federated_dask.errors import ConfigurationError
from federated_dask.planner.explanation import Explanation
from federated_dask.planner.graph import Key, has_site_data
from federated_dask.planner.learning import LearntSizes
from federated_dask.planner.links import LinkCosts
from federated_dask.planner.plan import Plan, make_plan
from federated_dask.planner.sources import SiteFacts
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


class FederatedClient(FunctionCaller, Terms):
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
        name or address; by default those of `federated-dask login`, by address.
        Tokens by name go only to addresses given here, tokens
        by address also to peers that are discovered there.  A peer for which the
        given sites state different addresses is not connected to.
    verify : bool, str or Path, default True
        True for the system's certificate authorities, or a PEM file of the only
        ones to trust.
    timeout : float, default 60
        Seconds of silence after which a site counts as unavailable.
    compute_timeout : float, optional
        Seconds that one compute may take; no limit by default.
    home : distributed.Client, optional
        The researcher's own cluster, for what must run at home; by default that
        runs on threads of this process.
    progress : bool, optional
        Show progress bars; by default where somebody is looking.
    project : str, optional
        Project for which you compute, ``name@site``: where it was given a dataset,
        its budget counts.
    link_costs : mapping of (str, str) to float, optional
        What a byte costs on a link, relative to others: ``{("north", "home"): 2.0}``;
        by default as slow as earlier runs of this client found it.
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
        home: HomeCluster | None = None,
        progress: bool | None = None,
        project: str | None = None,
        link_costs: Mapping[tuple[str, str], float] | None = None,
        asynchronous: bool = False,
    ) -> None:
        if isinstance(address, _Federation):
            token = address.token if token is None else token
            verify = address.verify if verify is True else verify
            address = address.addresses
        super().__init__()
        check_token(token)
        self.asynchronous = asynchronous
        self.compute_timeout = compute_timeout
        self._home = home
        self._finder = SiteFinder(named_addresses(address), token, verify, timeout, project)
        self._progress = wants_bars() if progress is None else progress
        self._table = operation_table()
        self._facts = AnnouncedFacts(self)
        self._sites = Sites({})
        self._datasets = Datasets({})
        self._last_run: RunRecord | None = None
        self._learnt = LearntSizes()
        self._links = LinkCosts(link_costs)
        if not asynchronous:
            loop.sync(self._connect())

    # Connecting

    async def _connect(self) -> FederatedClient:
        try:
            given, peers = await self._finder.reach_all()
        except BaseException:
            # Nobody gets to close a client that could not be made.
            await self._close()
            raise
        found = {site.name: (site, catalogue) for site, catalogue in (*peers, *given)}
        facts = {
            name: facts_of(site.description, site.operations)
            for name, (site, _) in found.items()
            if site.description is not None
        }
        # Another thread may be planning: no site is ever missing that is there.
        self._facts.update(facts)
        for name in self._facts.keys() - facts.keys():
            del self._facts[name]
        self._datasets = Datasets(
            {
                f"{name}/{summary.name}": summary
                for name, (_, catalogue) in found.items()
                for summary in catalogue.datasets
            }
        )
        self._functions = published(
            {name: site.published for name, (site, _) in found.items()}, self
        )
        self._sites = Sites(
            {
                name: dataclasses.replace(site, functions=self._functions.at(name))
                for name, (site, _) in found.items()
            }
        )
        return self

    def connection_of(self, site: str) -> SiteConnection:
        """Give the connection to a site.

        Raises
        ------
        NotFound
            If the federation has no such site.
        FederatedError
            Why the site could not be reached.
        """
        if site in self._finder.connections:
            return self._finder.connections[site]
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
    def facts(self) -> Mapping[str, SiteFacts]:
        """What the sites announced, as far as it bears on a plan."""
        return self._facts

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
            are downloaded when they are used.  A dataset with texts has its
            storage chunks for ``"auto"``.
        drop_variables : str or iterable of str, optional
            Variables to leave out.

        Returns
        -------
        xarray.Dataset
            An awaitable of it, in asynchronous mode.

        Raises
        ------
        ConfigurationError
            If the name is not of the form ``site/dataset``.
        NotFound
            If there is no such site or dataset.
        DatasetUnreadable
            If the site cannot open it.
        """
        address = f"fed://{self._qualified(name)}"
        if self.asynchronous:
            return asyncio.to_thread(self.open_waiting, address, chunks, drop_variables)
        return self.open_waiting(address, chunks, drop_variables)

    def open_waiting(
        self, name: str, chunks: Any = "auto", drop_variables: str | Iterable[str] | None = None
    ) -> xr.Dataset:
        """Open a dataset and wait for it, in asynchronous mode too; see `open_dataset`."""
        address = f"fed://{self._qualified(name)}"

        def open_as(chunks: Any) -> xr.Dataset:
            return xr.open_dataset(
                address,
                engine="federated",
                chunks=chunks,
                drop_variables=drop_variables,
                backend_kwargs={"client": self},
            )

        try:
            return open_as(chunks)
        except NotImplementedError:
            if not isinstance(chunks, str):
                raise
            # Dask cannot tell how large texts are, and gives up on the whole dataset.
            return open_as({})

    def _qualified(self, name: str) -> str:
        bare = str(name or "").removeprefix("fed://")
        site, _, dataset = bare.partition("/")
        if site and dataset and "/" not in dataset:
            return bare
        alike = [each for each in self._datasets if bare and each.endswith(f"/{bare}")]
        raise ConfigurationError(
            f"{name!r} is no name of a dataset.",
            hint=f"Give its site as well: {' or '.join(map(repr, alike or ['north/a1b']))}.",
        )

    # Computing

    def get(self, dsk: Any, keys: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Compute keys of a graph: the scheduler that Dask calls.

        Parameters
        ----------
        dsk : dask Expr, HighLevelGraph or mapping
            The graph.
        keys : key or nested list of keys
            What to compute.
        timeout : float, optional
            Seconds that the compute may take, as in ``x.compute(timeout=60)``;
            `compute_timeout` by default.
        **kwargs : object
            For Dask's threads, where the graph has no data of a site.

        Returns
        -------
        object or nested list
            Results in the shape of `keys`.
        """
        wanted = keys if isinstance(keys, list) else [keys]
        if not has_site_data(dsk):
            here = dask.threaded.get if self._home is None else self._home.get
            return here(dsk, keys, **kwargs)
        return _shaped(keys, self._run_plan(self._plan(dsk, wanted), timeout))

    def _run_plan(self, plan: Plan, timeout: float | None) -> dict[Key, Any]:
        with ProgressBars() if self._progress else contextlib.nullcontext() as bars:
            return loop.sync(self._execute(plan, bars, timeout))

    def compute(self, collections: Any, *, sync: bool = False, timeout: float | None = None) -> Any:
        """Compute collections in the background.

        Parameters
        ----------
        collections : dask collection, or list or tuple of them
            What to compute; anything else is its own result, as in `dask.compute`.
        sync : bool, default False
            Wait and return the results themselves; in asynchronous mode an
            awaitable of them.
        timeout : float, optional
            Seconds that the compute may take; `compute_timeout` by default.

        Returns
        -------
        FederatedFuture or list of FederatedFuture
            In the shape of `collections`; the results themselves with ``sync=True``.
        """
        several = isinstance(collections, list | tuple)
        futures = self._start(list(collections) if several else [collections], timeout)
        if sync and self.asynchronous:
            return _gathered(futures, type(collections) if several else None)
        if sync:
            try:
                results = [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
            return type(collections)(results) if several else results[0]
        return futures if several else futures[0]

    def _start(self, items: list[Any], timeout: float | None) -> list[FederatedFuture[Any]]:
        found, repack = unpack_collections(*items)
        if not found:
            return [FederatedFuture(future) for future in share(_finished(items), len(items))]
        expression = FinalizeCompute(collections_to_expr(found)).optimize()
        keys: list[Key] = list(flatten(expression.__dask_keys__()))
        if has_site_data(expression):
            run = loop.start(self._execute(self._plan(expression, keys), timeout=timeout))
        else:
            run = loop.start(asyncio.to_thread(_computed_here, expression, keys))
        shares = share(run, len(items), lambda results: repack([results[key] for key in keys]))
        return [FederatedFuture(future) for future in shares]

    def persist(
        self,
        collections: Any,
        *,
        optimize_graph: bool = True,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compute collections and leave the results where they are made.

        Parameters
        ----------
        collections : dask collection, or list or tuple of them
            What to compute.
        optimize_graph : bool, default True
            For collections that have no data of a site; the plan is always
            optimised.
        timeout : float, optional
            Seconds that the compute may take; `compute_timeout` by default.
        **kwargs : object
            For Dask's threads, where there is no data of a site.

        Returns
        -------
        collection or list of collections
            Of the same kinds; chunks made at a site stay there under a lease
            until nothing refers to them any more.  An awaitable of them in
            asynchronous mode.
        """
        several = isinstance(collections, list | tuple)
        items = list(collections) if several else [collections]

        def persist() -> Any:
            persisted = self.persist_waiting(items, optimize_graph, timeout, **kwargs)
            return persisted if several else persisted[0]

        return asyncio.to_thread(persist) if self.asynchronous else persist()

    def persist_waiting(
        self, items: list[Any], optimize_graph: bool, timeout: float | None, **options: Any
    ) -> list[Any]:
        """Persist collections and wait for it, in asynchronous mode too; see `persist`."""
        found, repack = unpack_collections(*items)
        if not found:
            return items
        expression = collections_to_expr(found, optimize_graph)
        if not has_site_data(expression):
            return list(
                dask.base.persist(
                    *items, optimize_graph=optimize_graph, scheduler=dask.threaded.get, **options
                )
            )
        keys: list[Key] = list(flatten([each.__dask_keys__() for each in found]))
        results = self._run_plan(self._plan(expression, keys, hold=True), timeout)
        rebuilt = []
        for each in found:
            rebuild, state = each.__dask_postpersist__()
            own = flatten(each.__dask_keys__())
            rebuilt.append(rebuild({key: _node(key, results[key]) for key in own}, *state))
        return list(repack(rebuilt))

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
        if not found:
            raise ConfigurationError(
                "There is nothing to compute in what was given.",
                hint="Give lazy objects, before .compute().",
            )
        expression = FinalizeCompute(collections_to_expr(found)).optimize()
        return Explanation(self._plan(expression, list(flatten(expression.__dask_keys__()))))

    def _plan(
        self, expression: Any, keys: Iterable[Key], hold: bool = False, at: str | None = None
    ) -> Plan:
        return without_collection(
            lambda: make_plan(
                expression,
                keys,
                self._facts,
                self._table,
                hold=hold,
                at=at,
                learnt=self._learnt,
                links=self._links,
            )
        )

    async def _execute(
        self, plan: Plan, report: ProgressBars | None = None, timeout: float | None = None
    ) -> dict[Key, Any]:
        results, self._last_run = await execute(
            plan,
            {site: self.connection_of(site) for site in plan.sites},
            home=self._home,
            report=report,
            timeout=self.compute_timeout if timeout is None else timeout,
            learnt=self._learnt,
            links=self._links,
        )
        return results

    # Life

    def as_current(self) -> FederatedClient:
        """Make this client Dask's scheduler, until it is closed or another takes over."""
        takeover.enter(self)
        return self

    def close(self) -> Any:
        """Close the connections and stop being Dask's scheduler.

        An awaitable in asynchronous mode.
        """
        takeover.leave(self)
        return self._run(self._close())

    async def _close(self) -> None:
        await self._finder.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> Any:
        return coroutine if self.asynchronous else loop.sync(coroutine)

    def __enter__(self) -> FederatedClient:
        if self.asynchronous:
            raise ConfigurationError(
                "This client is asynchronous.", hint="Use `async with FederatedClient(...)`."
            )
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
        if not self._finder.connections:
            await self._connect()
        return self.as_current()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        takeover.leave(self)
        await self._close()

    def __dask_tokenize__(self) -> tuple[str, ...]:
        # xarray names arrays by how they were opened, the client included.
        addresses = (each.address for each in self._finder.connections.values())
        return (type(self).__qualname__, *sorted(addresses))

    def __repr__(self) -> str:
        sites = len(self._finder.connections)
        functions = f", {len(self._functions)} functions" if self._functions else ""
        return f"<FederatedClient: {sites} sites, {len(self._datasets)} datasets{functions}>"

    def _repr_html_(self) -> str:
        return (
            f"<div><h3>FederatedClient</h3>{self.sites._repr_html_()}"
            f"{self.datasets._repr_html_()}{self.functions._repr_html_()}</div>"
        )


def _computed_here(expression: Any, keys: list[Any]) -> dict[Key, Any]:
    return dict(zip(keys, dask.threaded.get(expression, keys), strict=True))


def _finished(result: Any) -> concurrent.futures.Future[Any]:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_result(result)
    return future


async def _gathered(futures: list[FederatedFuture[Any]], container: type | None) -> Any:
    try:
        results = [await future for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return results[0] if container is None else container(results)


def _node(key: Key, value: Any) -> Any:
    return held_task(key, value) if isinstance(value, HeldValue) else value


def _shaped(keys: Any, results: Mapping[Key, Any]) -> Any:
    if isinstance(keys, list):
        return [_shaped(key, results) for key in keys]
    return results[keys]
