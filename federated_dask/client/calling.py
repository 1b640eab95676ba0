"""Calling functions: what `FederatedClient` has of `submit`, `map` and `gather`.

A call is a coroutine of the background loop; its future is there at once::

    submit ── names, types, limits ──► future
                  (errors here)          │  wait for futures among the arguments
                                         │  compute what is lazy, to the site
                                         │  POST /calls ──► progress …
                                         ▼
                                     ReturnedObject, its parts at the site
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
import xarray as xr
from dask.base import collections_to_expr
from dask.core import flatten

from federated_dask.client import loop
from federated_dask.client.arguments import check_argument, delegations_for, encode_arguments
from federated_dask.client.catalogue import Datasets
from federated_dask.client.code_calls import encode_code, pickled_callable, refusals_explained
from federated_dask.client.connection import SiteConnection
from federated_dask.client.functions import Function, Functions
from federated_dask.client.future import CallProgress, FederatedFuture
from federated_dask.client.held import HeldValue
from federated_dask.client.home_calls import call_at_home
from federated_dask.client.remote_errors import clean_text, connection_lost, task_error
from federated_dask.client.returned import ReturnedObject
from federated_dask.errors import ConfigurationError
from federated_dask.planner.graph import Key
from federated_dask.planner.plan import Plan
from federated_dask.planner.sources import SiteFacts
from federated_dask.protocol.call_messages import AnyCallEvent, CallSubmission, Returned
from federated_dask.protocol.call_messages import (
    CallProgress as ProgressEvent,
)
from federated_dask.protocol.frames import Frame
from federated_dask.protocol.messages import Failure

__all__ = ["FunctionCaller"]

Calling: TypeAlias = AsyncGenerator[tuple[AnyCallEvent, Frame], None]
"""The events of a call that is made when the first is asked for."""

CALLS_AT_ONCE = 32
"""Calls that one client has running at one site; others wait for their turn here."""


class FunctionCaller:
    """The part of `FederatedClient` that calls functions."""

    if TYPE_CHECKING:
        asynchronous: bool

        @property
        def facts(self) -> Mapping[str, SiteFacts]:
            """What the sites announced."""

        @property
        def datasets(self) -> Datasets:
            """Datasets of all sites by qualified name."""

        def connection_of(self, site: str) -> SiteConnection:
            """Give the connection to a site."""

        def open_waiting(self, name: str) -> xr.Dataset:
            """Open a dataset lazily; waits."""

        def _plan(
            self, expression: Any, keys: Iterable[Key], hold: bool = False, at: str | None = None
        ) -> Plan: ...

        async def _execute(self, plan: Plan) -> dict[Key, Any]: ...

        def get(self, dsk: Any, keys: Any, timeout: float | None = None, **kwargs: Any) -> Any:
            """Compute keys of a graph: the scheduler that Dask calls."""

    def __init__(self) -> None:
        self._functions = Functions({})
        self._turns: dict[str, asyncio.Semaphore] = {}

    @property
    def functions(self) -> Functions:
        """Functions of all sites by qualified name; ``fed.functions.search("trend")`` searches."""
        return self._functions

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
        >>> slope = fed.submit("north/trend", "north/a1b", start=2070)  # doctest: +SKIP
        >>> slope.result()  # doctest: +SKIP
        """
        if not isinstance(function, str):
            return self._submit_own(function, arguments, keywords)
        name, _, version = function.partition("@")
        found = self.functions[name]
        bound = found.bind(arguments, keywords)
        given = {
            parameter: check_argument(found, found.parameters[parameter], value)
            for parameter, value in bound.items()
        }
        call = partial(self._call, found, version or None, given)

        def again(progress: CallProgress) -> concurrent.futures.Future[Any]:
            return _started(lambda settled: call(progress, settled))

        progress = CallProgress()
        return FederatedFuture(again(progress), label=name, progress=progress, again=again)

    def _submit_own(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> FederatedFuture[Any]:
        site = keywords.pop("site", None)
        if not callable(function):
            raise ConfigurationError(
                f"A {type(function).__name__} cannot be called.",
                hint='Give the name of a function ("north/trend"), or a callable.',
            )
        label = str(getattr(function, "__name__", type(function).__name__))
        if site is None:

            def again(progress: CallProgress) -> concurrent.futures.Future[Any]:
                return loop.start(call_at_home(self, function, arguments, keywords))

        else:
            connection = self.connection_of(site)
            # Now, so that what is changed afterwards does not count.
            pickled = pickled_callable(function, site)

            def again(progress: CallProgress) -> concurrent.futures.Future[Any]:
                return _started(partial(call, progress))

            async def call(progress: CallProgress, settled: concurrent.futures.Future[Any]) -> None:
                submission, encoded = await encode_code(self, site, arguments, keywords, label)

                def begin(delegations: dict[str, str]) -> Calling:
                    complete = msgspec.structs.replace(submission, delegations=delegations)
                    return connection.run_code(complete, [*encoded.buffers, pickled])

                with refusals_explained(label, site):
                    await self._followed(connection, begin, encoded.kept, progress, settled)

        progress = CallProgress()
        return FederatedFuture(again(progress), label=label, progress=progress, again=again)

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

        Examples
        --------
        >>> fed.map("north/trend", ["north/a1b", "north/e1"], start=2070)  # doctest: +SKIP
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
        errors : {"raise", "skip"}
            Raise what one of them raised, or leave those out.

        Returns
        -------
        object
            Results in the shape of `futures`; an awaitable of it in asynchronous mode.
        """
        if errors not in ("raise", "skip"):
            raise ConfigurationError(f"errors is 'raise' or 'skip', not {errors!r}.")
        gathering = _gathered(futures, errors)
        return gathering if self.asynchronous else loop.sync(gathering)

    def cancel(self, futures: FederatedFuture[Any] | Iterable[FederatedFuture[Any]]) -> None:
        """Stop computes and calls, at the sites too."""
        for future in _several(futures):
            future.cancel()

    def retry(self, futures: FederatedFuture[Any] | Iterable[FederatedFuture[Any]]) -> None:
        """Make calls again that have ended, for example because a site was away."""
        for future in _several(futures):
            future.retry()

    async def bring(self, arrays: Sequence[Any], at: str) -> list[list[HeldValue]]:
        """Compute dask arrays and leave their chunks at a site.

        Returns
        -------
        list of list of HeldValue
            For every array its chunks, in C order.
        """
        keys: list[list[Any]] = [list(flatten(array.__dask_keys__())) for array in arrays]
        wanted = [key for each in keys for key in each]

        def plan() -> Plan:
            return self._plan(collections_to_expr(arrays), wanted, hold=True, at=at)

        results = await self._execute(await asyncio.to_thread(plan))
        return [[results[key] for key in each] for each in keys]

    async def _call(
        self,
        function: Function,
        version: str | None,
        given: Mapping[str, Any],
        progress: CallProgress,
        settled: concurrent.futures.Future[Any],
    ) -> None:
        encoded = await encode_arguments(self, function, given)
        description = function.description
        submission = CallSubmission(
            function=description.name,
            # The one by which the arguments were checked.
            version=version or description.version,
            keywords=encoded.keywords,
            label=function.name[:200],
        )
        connection = self.connection_of(function.site)

        def begin(delegations: dict[str, str]) -> Calling:
            complete = msgspec.structs.replace(submission, delegations=delegations)
            return connection.call(complete, encoded.buffers, idempotent=description.idempotent)

        await self._followed(connection, begin, encoded.kept, progress, settled)

    async def _followed(
        self,
        connection: SiteConnection,
        begin: Callable[[dict[str, str]], Calling],
        kept: Sequence[HeldValue],
        progress: CallProgress,
        settled: concurrent.futures.Future[Any],
    ) -> None:
        """Make a call when it is its turn, and follow its events."""
        turn = self._turns.setdefault(connection.name, asyncio.Semaphore(CALLS_AT_ONCE))
        async with turn:
            # They last for minutes only, which a turn may be longer in coming.
            delegations = await delegations_for(self, connection.name, kept)
            async with contextlib.aclosing(begin(delegations)) as events:
                async for event, frame in events:
                    match event:
                        case ProgressEvent():
                            progress.fraction = event.fraction
                            progress.message = clean_text(event.message, 200)
                        case Failure():
                            raise task_error(event)
                        case Returned():
                            # At once; what comes after is only the end of the reply.
                            with contextlib.suppress(concurrent.futures.InvalidStateError):
                                settled.set_result(
                                    ReturnedObject(connection, event, list(frame.buffers))
                                )
        if not settled.done():
            raise connection_lost(connection.name)


def _started(
    call: Callable[[concurrent.futures.Future[Any]], Coroutine[Any, Any, None]],
) -> concurrent.futures.Future[Any]:
    """Start a call; give the future that it settles, maybe some time before it ends."""
    settled: concurrent.futures.Future[Any] = concurrent.futures.Future()
    run = loop.start(call(settled))

    # Neither holds the other, so that what was returned goes when nobody wants it any more.
    reference = weakref.ref(settled)

    def stop(ended: concurrent.futures.Future[Any]) -> None:
        if ended.cancelled():
            ended.set_running_or_notify_cancel()
            run.cancel()

    def end(_: object) -> None:
        error = None if run.cancelled() else run.exception()
        waiting = reference()
        if waiting is None or waiting.done():
            return
        # It may be cancelled at this very moment.
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            if error is not None:
                waiting.set_exception(error)
            else:
                waiting.cancel()

    settled.add_done_callback(stop)
    run.add_done_callback(end)
    return settled


def _several(
    futures: FederatedFuture[Any] | Iterable[FederatedFuture[Any]],
) -> Iterable[FederatedFuture[Any]]:
    return [futures] if isinstance(futures, FederatedFuture) else futures


async def _gathered(futures: Any, errors: str) -> Any:
    found: list[FederatedFuture[Any]] = []
    _collect(futures, found.append)
    unique = list(dict.fromkeys(found))
    skipping = errors == "skip" and not isinstance(futures, FederatedFuture)
    waiting = (future._result() for future in unique)
    replies = await asyncio.gather(*waiting, return_exceptions=skipping)
    return _filled(futures, dict(zip(unique, replies, strict=True)))


def _collect(nested: Any, take: Callable[[FederatedFuture[Any]], object]) -> None:
    if isinstance(nested, FederatedFuture):
        take(nested)
    elif isinstance(nested, Mapping):
        _collect(list(nested.values()), take)
    elif isinstance(nested, list | tuple | set | frozenset):
        for each in nested:
            _collect(each, take)


def _filled(nested: Any, results: Mapping[FederatedFuture[Any], Any]) -> Any:
    if isinstance(nested, FederatedFuture):
        return results[nested]
    if isinstance(nested, Mapping):
        return {
            key: _filled(each, results) for key, each in nested.items() if _is_there(each, results)
        }
    if isinstance(nested, list | tuple | set | frozenset):
        return type(nested)(_filled(each, results) for each in nested if _is_there(each, results))
    return nested


def _is_there(each: Any, results: Mapping[FederatedFuture[Any], Any]) -> bool:
    return not (isinstance(each, FederatedFuture) and isinstance(results[each], BaseException))
