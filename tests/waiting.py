"""Waiting for an effect that comes by itself, and saying which where it does not."""

import asyncio
import inspect
import time
from collections.abc import Callable

SECONDS = 60.0
PAUSE = 0.02


def until(
    condition: Callable[[], object], what: str | Callable[[], str], seconds: float = SECONDS
) -> None:
    """Wait until a condition holds; `what` says that it does, or how things stand instead."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, _in_vain(what)
        time.sleep(PAUSE)


async def async_until(
    condition: Callable[[], object], what: str | Callable[[], str], seconds: float = SECONDS
) -> None:
    """Wait likewise in an event loop, also for what a coroutine gives."""
    deadline = time.monotonic() + seconds
    while True:
        held = condition()
        if await held if inspect.isawaitable(held) else held:
            return
        assert time.monotonic() < deadline, _in_vain(what)
        await asyncio.sleep(PAUSE)


def _in_vain(what: str | Callable[[], str]) -> str:
    return f"waited in vain until {what if isinstance(what, str) else what()}"
