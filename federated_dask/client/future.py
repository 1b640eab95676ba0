"""`FederatedFuture`: a result that is on its way."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Generator, Sequence
from typing import Any

from federated_dask.errors import Reason, SiteUnavailable

__all__ = ["FederatedFuture", "share"]


class FederatedFuture:
    """The result of a compute that may still run; mirrors `distributed.Future`.

    Made by ``FederatedClient.compute``.  In a coroutine it can be awaited.
    """

    def __init__(self, future: concurrent.futures.Future[Any]) -> None:
        self._future = future

    @property
    def status(self) -> str:
        """One of ``pending``, ``finished``, ``error`` and ``cancelled``."""
        if self._future.cancelled():
            return "cancelled"
        if not self._future.done():
            return "pending"
        return "error" if self._future.exception() is not None else "finished"

    def done(self) -> bool:
        """Say whether the compute has ended, in whatever way."""
        return self._future.done()

    def cancelled(self) -> bool:
        """Say whether it was cancelled."""
        return self._future.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; the compute goes on after that.

        Raises
        ------
        SiteUnavailable
            With reason ``timed_out`` if the result is not there in time.
        """
        try:
            return self._future.result(timeout)
        except concurrent.futures.TimeoutError:
            if self._future.done():
                raise
            raise _late(timeout) from None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end; return what was raised, or None."""
        try:
            return self._future.exception(timeout)
        except concurrent.futures.TimeoutError:
            raise _late(timeout) from None

    def cancel(self) -> None:
        """Stop the compute, at the sites too.

        Futures made in one call are one compute, which stops when all of them
        are cancelled.
        """
        self._future.cancel()

    def add_done_callback(self, function: Callable[[FederatedFuture], object]) -> None:
        """Call `function` with this future once it is done."""
        self._future.add_done_callback(lambda _: function(self))

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self._future).__await__()

    def __repr__(self) -> str:
        return f"<FederatedFuture: {self.status}>"


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
