"""`FederatedFuture`: a result that is on its way, or that stays at its site until it is wanted."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import xarray as xr

from federated_dask.client import loop
from federated_dask.client.returned import ReturnedObject
from federated_dask.client.tracebacks import without_coroutines
from federated_dask.errors import ConfigurationError, Reason, SiteUnavailable

__all__ = ["CallProgress", "FederatedFuture", "lazy_result", "share"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class CallProgress:
    """How far a called function is, as it says itself."""

    fraction: float = 0.0
    """From 0 to 1."""
    message: str = ""


class FederatedFuture(Generic[T]):
    """The result of a compute or call that may still run; mirrors `distributed.Future`.

    Made by ``FederatedClient.compute``, ``submit`` and ``map``.  In a coroutine it
    can be awaited.  What a called function returned stays at its site until
    `result` fetches it; `to_dataset` and `to_dataarray` give it lazily, and as an
    argument of another call it goes from site to site.

    Parameters
    ----------
    future : concurrent.futures.Future
        What it waits for.
    label : str, default "compute"
        What it is the result of.
    progress : CallProgress, optional
        Where the call writes how far it is.
    again : callable, optional
        Makes the call anew; only calls can be tried again.

    Examples
    --------
    >>> from concurrent.futures import Future
    >>> inner = Future()
    >>> future = FederatedFuture(inner, label="north/trend")
    >>> future.status
    'pending'
    >>> inner.set_result(2.5)
    >>> future.status, future.result(timeout=1)
    ('finished', 2.5)
    """

    def __init__(
        self,
        future: concurrent.futures.Future[Any],
        *,
        label: str = "compute",
        progress: CallProgress | None = None,
        again: Callable[[CallProgress], concurrent.futures.Future[Any]] | None = None,
    ) -> None:
        self._future = future
        self._label = label
        self._progress = progress or CallProgress()
        self._again = again

    @property
    def status(self) -> str:
        """One of ``pending``, ``finished``, ``error`` and ``cancelled``."""
        if self._future.cancelled():
            return "cancelled"
        if not self._future.done():
            return "pending"
        return "error" if self._future.exception() is not None else "finished"

    @property
    def label(self) -> str:
        """What it is the result of: ``site/function``, or ``compute``."""
        return self._label

    @property
    def progress(self) -> CallProgress:
        """How far the called function is, where it reports that."""
        if self.status == "finished":
            return CallProgress(1.0, self._progress.message)
        return CallProgress(self._progress.fraction, self._progress.message)

    def done(self) -> bool:
        """Say whether it has ended, in whatever way."""
        return self._future.done()

    def cancelled(self) -> bool:
        """Say whether it was cancelled."""
        return self._future.cancelled()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result; bring it here, where it is at a site.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; the compute or call goes on after that.

        Returns
        -------
        object
            What was computed, or what the function returned.

        Raises
        ------
        SiteUnavailable
            With reason ``timed_out`` if the result is not there in time.
        TaskFailed
            If a task or the function raised; where that was an exception of Python, numpy,
            pandas, xarray or zarr, one of that type, with `TaskFailed` as its ``__cause__``.
        FederatedError
            Whatever else the compute or call failed with.
        concurrent.futures.CancelledError
            If it was cancelled.
        """
        settled = self._settled(timeout)
        if not isinstance(settled, ReturnedObject):
            return settled  # type: ignore[no-any-return]
        if settled.is_here:
            return settled.value  # type: ignore[no-any-return]
        try:
            return loop.sync(settled.fetch(), timeout)  # type: ignore[no-any-return]
        except TimeoutError:
            raise _late(timeout) from None

    def _settled(self, timeout: float | None = None) -> Any:
        try:
            error = self._future.exception(timeout)
        except concurrent.futures.TimeoutError:
            raise _late(timeout) from None
        try:
            if error is not None:
                raise without_coroutines(error)
        finally:
            # Its traceback holds this frame, which would hold it.
            del error
        return self._future.result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end; return what was raised.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait.

        Returns
        -------
        BaseException or None
            None where nothing was raised.

        Raises
        ------
        SiteUnavailable
            With reason ``timed_out`` if it has not ended in time.
        concurrent.futures.CancelledError
            If it was cancelled.
        """
        try:
            return self._future.exception(timeout)
        except concurrent.futures.TimeoutError:
            raise _late(timeout) from None

    def traceback(self, timeout: float | None = None) -> str | None:
        """Wait for the end; tell where it failed, at the site too, as Python shows it.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait.

        Returns
        -------
        str or None
            None where nothing was raised.

        Raises
        ------
        SiteUnavailable
            With reason ``timed_out`` if it has not ended in time.
        concurrent.futures.CancelledError
            If it was cancelled.
        """
        error = self.exception(timeout)
        return None if error is None else "".join(traceback.format_exception(error))

    def cancel(self) -> None:
        """Stop the compute or call, at the sites too.

        Futures made in one `compute` are one compute, which stops when all of
        them are cancelled.
        """
        self._future.cancel()

    def retry(self) -> None:
        """Make the call again, where it has ended; a new try has the same arguments.

        Raises
        ------
        ConfigurationError
            If this is no call.
        """
        if self._again is None:
            raise ConfigurationError(
                "Only calls of functions can be tried again.", hint="Compute it once more."
            )
        if self._future.done():
            self._progress = CallProgress()
            self._future = self._again(self._progress)

    def to_dataset(self) -> xr.Dataset:
        """Give the result as a lazy dataset, once the function has returned.

        Its chunks stay at the site; expressions over it run there.

        Returns
        -------
        xarray.Dataset

        Raises
        ------
        ConfigurationError
            If it is no dataset.
        TaskFailed, FederatedError, concurrent.futures.CancelledError
            As `result` does.
        """
        found = self._lazily()
        if isinstance(found, xr.Dataset):
            return found
        raise _other_kind(found, "Dataset")

    def to_dataarray(self) -> xr.DataArray:
        """Give the result as a lazy array, once the function has returned.

        Its chunks stay at the site; expressions over it run there.

        Returns
        -------
        xarray.DataArray

        Raises
        ------
        ConfigurationError
            If it is no array.
        TaskFailed, FederatedError, concurrent.futures.CancelledError
            As `result` does.
        """
        found = self._lazily()
        if isinstance(found, xr.DataArray):
            return found
        if hasattr(found, "shape") and hasattr(found, "dtype"):
            return xr.DataArray(found)
        raise _other_kind(found, "DataArray")

    def _lazily(self) -> Any:
        return _as_lazy(self._settled())

    def add_done_callback(self, function: Callable[[FederatedFuture[T]], object]) -> None:
        """Call `function` with this future once it is done, on a thread of its own.

        Parameters
        ----------
        function : callable
            Takes the future; what it raises is logged.
        """

        def call() -> None:
            try:
                function(self)
            except Exception:
                # Code of the user's, which nobody waits for: as `concurrent.futures` does it.
                logger.exception("A callback of %r raised.", self)

        def start(_: object) -> None:
            # The loop's own thread must not run it: it may wait for a site.
            threading.Thread(target=call, name="federated-dask-callback", daemon=True).start()

        self._future.add_done_callback(start)

    async def _settlement(self) -> Any:
        # Others may wait for it too: who gives up waiting does not cancel it.
        return await asyncio.shield(asyncio.wrap_future(self._future))

    async def _result(self) -> T:
        settled = await self._settlement()
        if isinstance(settled, ReturnedObject):
            if settled.is_here:
                return settled.value  # type: ignore[no-any-return]
            return await asyncio.wrap_future(loop.start(settled.fetch()))
        return settled  # type: ignore[no-any-return]

    def __await__(self) -> Generator[Any, None, T]:
        return self._result().__await__()

    def __repr__(self) -> str:
        what = f"{self._label}, " if self._again is not None else ""
        return f"<{type(self).__name__}: {what}{self.status}>"


async def lazy_result(future: FederatedFuture[Any]) -> Any:
    """Wait for a future; give its result, lazily where that stays at its site."""
    return _as_lazy(await future._settlement())


def _as_lazy(settled: Any) -> Any:
    return settled.lazy() if isinstance(settled, ReturnedObject) else settled


def share(
    run: concurrent.futures.Future[Any],
    count: int,
    unpack: Callable[[Any], Sequence[Any]] = list,
) -> list[concurrent.futures.Future[Any]]:
    """Make a future of each part of another future's result.

    Parameters
    ----------
    run : Future
        The whole.  It is cancelled when all parts are.
    count : int
        How many parts there are.
    unpack : callable, optional
        From its result to the parts.

    Examples
    --------
    >>> whole = concurrent.futures.Future()
    >>> first, second = share(whole, 2)
    >>> whole.set_result([1, 2])
    >>> first.result(), second.result()
    (1, 2)
    """
    parts: list[concurrent.futures.Future[Any]] = [
        concurrent.futures.Future() for _ in range(count)
    ]

    def settle(done: concurrent.futures.Future[Any]) -> None:
        values: Sequence[Any] = ()
        error: BaseException | None = None
        if not done.cancelled():
            error = done.exception()
        if error is None and not done.cancelled():
            try:
                values = unpack(done.result())
            except Exception as broken:
                # Whatever it was, nobody may wait for it for ever.
                error = broken
        for number, part in enumerate(parts):
            if done.cancelled():
                part.cancel()
            if not part.set_running_or_notify_cancel():
                continue
            if error is not None:
                part.set_exception(error)
            else:
                part.set_result(values[number])

    def stop(_: concurrent.futures.Future[Any]) -> None:
        if all(part.cancelled() for part in parts):
            run.cancel()

    for part in parts:
        part.add_done_callback(stop)
    run.add_done_callback(settle)
    return parts


def _late(timeout: float | None) -> SiteUnavailable:
    return SiteUnavailable(
        f"The result was not there within {timeout:g} seconds.",
        reason=Reason.TIMED_OUT,
        hint="Wait longer, or cancel() it.",
    )


def _other_kind(found: object, wanted: str) -> ConfigurationError:
    return ConfigurationError(
        f"The result is a {type(found).__name__}, not a {wanted}.",
        hint="future.result() gives it as it is.",
    )
