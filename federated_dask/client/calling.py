"""Calling functions: published ones, and the researcher's own.

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
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgspec

from federated_dask.client import loop
from federated_dask.client.arguments import check_argument, delegations_for, encode_arguments
from federated_dask.client.code_calls import encode_code, pickled_callable, refusals_explained
from federated_dask.client.computing import Computer
from federated_dask.client.connection import SiteConnection
from federated_dask.client.functions import Function
from federated_dask.client.future import CallProgress, FederatedFuture
from federated_dask.client.held import HeldValue
from federated_dask.client.home_calls import call_at_home
from federated_dask.client.remote_errors import clean_text, connection_lost, task_error
from federated_dask.client.returned import ReturnedObject
from federated_dask.errors import ConfigurationError
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
    """Calls functions for a client.

    Parameters
    ----------
    computer : Computer
        Computes what is lazy among the arguments.
    """

    def __init__(self, computer: Computer) -> None:
        self._computer = computer
        self._federation = computer.federation
        self._turns: dict[str, asyncio.Semaphore] = {}

    def submit(
        self,
        function: str | Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
    ) -> FederatedFuture[Any]:
        """Call a function, published or the researcher's own; see `FederatedClient.submit`."""
        if not isinstance(function, str):
            return self._submit_own(function, arguments, keywords)
        name, _, version = function.partition("@")
        found = self._federation.functions[name]
        bound = found.bind(arguments, keywords)
        given = {
            parameter: check_argument(found, found.parameters[parameter], value)
            for parameter, value in bound.items()
        }
        call = partial(self._call, found, version or None, given)
        return _repeatable(name, lambda progress: _started(partial(call, progress)))

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
            at_home = partial(call_at_home, self._computer, function, arguments, keywords)
            return _repeatable(label, lambda _: loop.start(at_home()))
        connection = self._federation.connection_of(site)
        # Now, so that what is changed afterwards does not count.
        pickled = pickled_callable(function, site)
        call = partial(self._run_code, connection, pickled, arguments, keywords, label)
        return _repeatable(label, lambda progress: _started(partial(call, progress)))

    async def _run_code(
        self,
        connection: SiteConnection,
        pickled: bytes,
        arguments: tuple[Any, ...],
        keywords: Mapping[str, Any],
        label: str,
        progress: CallProgress,
        settled: concurrent.futures.Future[Any],
    ) -> None:
        site = connection.name
        submission, encoded = await encode_code(self._computer, site, arguments, keywords, label)

        def begin(delegations: dict[str, str]) -> Calling:
            complete = msgspec.structs.replace(submission, delegations=delegations)
            return connection.run_code(complete, [*encoded.buffers, pickled])

        with refusals_explained(label, site):
            await self._followed(connection, begin, encoded.kept, progress, settled)

    async def _call(
        self,
        function: Function,
        version: str | None,
        given: Mapping[str, Any],
        progress: CallProgress,
        settled: concurrent.futures.Future[Any],
    ) -> None:
        encoded = await encode_arguments(self._computer, function, given)
        description = function.description
        submission = CallSubmission(
            function=description.name,
            # The one by which the arguments were checked.
            version=version or description.version,
            keywords=encoded.keywords,
            label=function.name[:200],
        )
        connection = self._federation.connection_of(function.site)

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
            delegations = await delegations_for(self._federation, connection.name, kept)
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


def _repeatable(
    label: str, begin: Callable[[CallProgress], concurrent.futures.Future[Any]]
) -> FederatedFuture[Any]:
    """Begin a call; give the future by which it can be made again."""
    progress = CallProgress()
    return FederatedFuture(begin(progress), label=label, progress=progress, again=begin)


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
