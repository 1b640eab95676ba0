"""Endings that have to be whole: what was taken is given back, whoever leaves meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["finished"]

T = TypeVar("T")


async def finished(ending: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """Wait for something to its end, however often the waiting is cancelled; be cancelled then.

    A client that leaves cancels whatever waits for its sake.  Given up halfway, neither the
    place of a job nor what is left of a budget would ever be given back.
    """
    task = asyncio.ensure_future(ending)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            # Seen, so that asyncio does not complain of it.
            task.exception()
        raise cancelled
    return task.result()
