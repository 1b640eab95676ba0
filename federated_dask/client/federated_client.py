"""`FederatedClient`: several institutes' datasets and clusters, as one Dask scheduler.

What it offers stands here, with its documentation; what is done stands with the
collaborators to which each method hands on::

    FederatedClient ──► BaseClient      (of which it is one) looking around, terms, its life
                    ──► Federation      sites, datasets, functions, connections
                    ──► Computer        plans and runs computes
                    ──► FunctionCaller  calls functions
                    ──► takeover        makes it Dask's scheduler
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from federated_dask.client import loop
from federated_dask.client.addresses import Addressed, check_token, named_addresses
from federated_dask.client.base_client import BaseClient
from federated_dask.client.calling import FunctionCaller
from federated_dask.client.computing import Computer
from federated_dask.client.execution import HomeCluster
from federated_dask.client.federation import Federation
from federated_dask.client.finding import SiteFinder
from federated_dask.client.future import FederatedFuture
from federated_dask.client.gathering import all_results, gathered
from federated_dask.client.opening import open_dataset
from federated_dask.client.progress import wants_bars
from federated_dask.client.waiting import checked_futures
from federated_dask.errors import ConfigurationError
from federated_dask.planner.explanation import Explanation

__all__ = ["FederatedClient"]

T = TypeVar("T")


class FederatedClient(BaseClient):
    """Connect to the sites of a federation and compute near their data.

    Like a `distributed.Client` it is Dask's scheduler from then on, until it is
    closed: ``.compute()``, ``.load()``, ``.persist()`` and ``dask.compute`` of
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
        ones to trust.  For a peer that is discovered, the certificates that the given
        sites vouch for take their place, unless it gets a token of its own address or
        a login.
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
    set_as_default : bool, default True
        Be Dask's scheduler at once; else in a ``with`` block or after `as_current` only.
    cache_bytes : int or str, default "64 MiB"
        Memory for results that came home: an equal or overlapping query fetches none
        twice.  0 keeps nothing.
    asynchronous : bool, default False
        For use in coroutines: methods that wait return awaitables.

    Raises
    ------
    NotFound
        If its site knows no such `project`, or not you as its member.
    ConfigurationError
        If addresses, token, `verify` or `link_costs` cannot be ones, or another site
        answers at an address than the one that was named.
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
        address: str | Sequence[str] | Mapping[str, str] | Addressed,
        *,
        token: str | Mapping[str, str] | None = None,
        verify: bool | str | Path = True,
        timeout: float = 60.0,
        compute_timeout: float | None = None,
        home: HomeCluster | None = None,
        progress: bool | None = None,
        project: str | None = None,
        link_costs: Mapping[tuple[str, str], float] | None = None,
        set_as_default: bool = True,
        cache_bytes: int | str = "64 MiB",
        asynchronous: bool = False,
    ) -> None:
        if isinstance(address, Addressed):
            token = address.token if token is None else token
            verify = address.verify if verify is True else verify
            address = address.addresses
        check_token(token)
        self.asynchronous = asynchronous
        finder = SiteFinder(named_addresses(address), token, verify, timeout, project)
        self._federation = Federation(finder, self)
        self._computer = Computer(
            self._federation,
            home=home,
            progress=wants_bars() if progress is None else progress,
            timeout=compute_timeout,
            link_costs=link_costs,
            cache_bytes=cache_bytes,
        )
        self._caller = FunctionCaller(self._computer)
        self._set_as_default = set_as_default
        if not asynchronous:
            loop.sync(self._connect())
            if set_as_default:
                self.as_current()

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
            If the name is not of the form ``site/dataset``, or this client is closed.
        NotFound
            If there is no such site or dataset.
        DatasetUnreadable
            If the site cannot open it.

        Examples
        --------
        >>> a1b = fed.open_dataset("north/a1b")
        >>> dict(a1b.sizes)
        {'time': 24, 'latitude': 6}
        """
        # Checked at once, in asynchronous mode too.
        name = self._federation.qualified(name)
        if self.asynchronous:
            return asyncio.to_thread(open_dataset, self._federation, name, chunks, drop_variables)
        return open_dataset(self._federation, name, chunks, drop_variables)

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
        return self._computer.get(dsk, keys, timeout, **kwargs)

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

        Raises
        ------
        NotPermitted
            If it would bring home more of a dataset than may leave its site; before
            anything runs.
        ConfigurationError
            If it needs what was persisted on a `distributed.Client`, or this client is closed.
        SiteUnavailable, TaskFailed, VersionChanged
            By ``sync=True``, or by the futures: a site is away, a task raised (see
            `FederatedFuture.result`), a dataset is no longer the one that was opened.

        Examples
        --------
        >>> temperature = fed.open_dataset("north/a1b").air_temperature
        >>> future = fed.compute(temperature.mean())
        >>> round(float(future.result()), 1)
        287.5
        """
        several = isinstance(collections, list | tuple)
        futures = self._computer.start(list(collections) if several else [collections], timeout)
        if not sync:
            return futures if several else futures[0]

        async def results() -> Any:
            found = await all_results(futures)
            return type(collections)(found) if several else found[0]

        return self._run(results())

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

        Raises
        ------
        NotPermitted
            If it would bring home more of a dataset than may leave its site.
        ConfigurationError
            If it needs what was persisted on a `distributed.Client`, or this client is closed.
        SiteUnavailable, TaskFailed, VersionChanged
            If a site is away, a task raised (see `FederatedFuture.result`), or a dataset is
            no longer the one that was opened.

        Examples
        --------
        >>> temperature = fed.open_dataset("north/a1b").air_temperature
        >>> yearly = fed.persist(temperature.groupby("time.year").mean())
        >>> yearly.shape  # its values are at north
        (2, 6)
        """
        several = isinstance(collections, list | tuple)
        items = list(collections) if several else [collections]

        def persist() -> Any:
            persisted = self._computer.persist(items, optimize_graph, timeout, **kwargs)
            return persisted if several else persisted[0]

        return asyncio.to_thread(persist) if self.asynchronous else persist()

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

        Raises
        ------
        NotPermitted
            If the compute would bring home more of a dataset than may leave its site.
        ConfigurationError
            If there is nothing to compute, or it needs what was persisted on a
            `distributed.Client`.

        Examples
        --------
        >>> a1b = fed.open_dataset("north/a1b").air_temperature
        >>> e1 = fed.open_dataset("south/e1").air_temperature
        >>> print(fed.explain(a1b.max() - e1.max()))
        Plan
          where  tasks     reads
          north      2  1.12 kiB
          south      ...
        Not at its data:
          1 × sub: it needs data of north and south together
        """
        several = isinstance(collections, list | tuple)
        return self._computer.explain(list(collections) if several else [collections])

    # Calling functions

    def submit(
        self, function: str | Callable[..., Any], /, *arguments: Any, **keywords: Any
    ) -> FederatedFuture[Any]:
        """Call a function that a site publishes, or one of your own.

        Parameters
        ----------
        function : str or callable
            Qualified name, ``site/function``; with a version behind an ``@`` where
            it has to be that one.  A callable runs at home, on what may come there;
            with ``site="north"`` on a worker of that site, which takes a grant for
            `code` there.
        *arguments, **keywords : object
            Its arguments.  For a dataset or array: a qualified name
            (``"north/a1b"``), a lazy expression, a future of this or another site,
            or data; see ``help(fed.sites["north"].trend)``.

        Returns
        -------
        FederatedFuture

        Raises
        ------
        NotFound
            If there is no such function.
        RequestRefused
            If an argument does not fit; names it and the rule.

        Notes
        -----
        Futures among the arguments are waited for, so none of this blocks.

        Examples
        --------
        >>> trend = fed.submit("north/linear_trend", "north/a1b/air_temperature", start=2070)
        >>> sorted(trend.result())
        ['intercept', 'slope']
        """
        return self._caller.submit(function, arguments, keywords)

    def map(
        self, function: str | Callable[..., Any], /, *iterables: Iterable[Any], **keywords: Any
    ) -> list[FederatedFuture[Any]]:
        """Call a function for each of many arguments; see `submit`.

        Parameters
        ----------
        function : str or callable
            Qualified name, or a callable of your own.
        *iterables : iterable
            Of its positional arguments; the shortest ends it.
        **keywords : object
            Passed to all calls alike.

        Returns
        -------
        list of FederatedFuture

        Raises
        ------
        ConfigurationError
            If there are no iterables, or one of them is a text.
        NotFound, RequestRefused
            As `submit` does.

        Examples
        --------
        >>> names = ["north/a1b/air_temperature", "south/e1/air_temperature"]
        >>> futures = fed.map("north/climatology", names, start=2070)
        >>> [future.result().shape for future in futures]
        [(12, 6), (12, 6)]
        """
        if not iterables or any(isinstance(each, str) for each in iterables):
            raise ConfigurationError(
                "map() calls a function for each item of iterables.",
                hint='Give a list: fed.map("north/trend", ["north/a1b", "north/e1"]).',
            )
        return [self.submit(function, *each, **keywords) for each in zip(*iterables, strict=False)]

    def gather(self, futures: Any, errors: Literal["raise", "skip"] = "raise") -> Any:
        """Wait for futures and bring their results here, several at the same time.

        Parameters
        ----------
        futures : future, or list, tuple, set or dict of them, nested as you like
            What to wait for; anything else is its own result.
        errors : {"raise", "skip"}, default "raise"
            Raise what one of them raised, or leave those out.

        Returns
        -------
        object
            Results in the shape of `futures`; an awaitable of it in asynchronous mode.

        Raises
        ------
        ConfigurationError
            If `errors` is anything else.
        TaskFailed, FederatedError, concurrent.futures.CancelledError
            What `FederatedFuture.result` of one of them raises, unless those are left out.

        Examples
        --------
        >>> temperature = fed.open_dataset("north/a1b").air_temperature
        >>> futures = {"least": fed.compute(temperature.min()), "first": fed.submit(min, 3, 2)}
        >>> sorted(fed.gather(futures))
        ['first', 'least']
        """
        if errors not in ("raise", "skip"):
            raise ConfigurationError(f"errors is 'raise' or 'skip', not {errors!r}.")
        return self._run(gathered(futures, skip_errors=errors == "skip"))

    def cancel(self, futures: FederatedFuture[Any] | Iterable[FederatedFuture[Any]]) -> None:
        """Stop computes and calls, at the sites too.

        Parameters
        ----------
        futures : FederatedFuture or iterable of them
            What to stop.  Those of one `compute` are one compute, which stops when all
            of them are cancelled.
        """
        for future in checked_futures(futures):
            future.cancel()

    def retry(self, futures: FederatedFuture[Any] | Iterable[FederatedFuture[Any]]) -> None:
        """Make calls again that have ended, for example because a site was away.

        Parameters
        ----------
        futures : FederatedFuture or iterable of them
            Those of calls; a call that has not ended goes on.

        Raises
        ------
        ConfigurationError
            If one of them is no call.
        """
        for future in checked_futures(futures):
            future.retry()
