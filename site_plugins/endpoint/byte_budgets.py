"""Memory of the endpoint: who may take how much of it for what is received and sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from federated_dask.errors import NotPermitted, Reason
from federated_dask.protocol.limits import Limits

__all__ = ["ByteBudget", "Intake", "Outgoing", "Room", "Shares", "expanded", "most_taken"]

EXPANSION = 32
"""Bytes that a byte of a header may become, more or less: texts of one letter are the worst."""
READ_SECONDS = 60.0
"""How long a response waits for others of its principal that are not read."""
PRINCIPALS = 3
"""How many principals may use up their shares at the same time."""


class ByteBudget:
    """Memory that all requests together may take at once.

    Parameters
    ----------
    total : int
        Bytes.

    Examples
    --------
    >>> budget = ByteBudget(10)
    >>> budget.free
    10
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """Take `size` bytes for a while; waits for its turn until there are as many."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._hand_out()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self.free += size
            else:
                turn.cancel()
            self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.cancelled():
                if size > self.free:
                    # First come, first served: else small ones would starve a large one.
                    return
                self.free -= size
                turn.set_result(None)
            self._waiting.popleft()


class Shares:
    """Memory of which each who asks may take a share, so that nobody takes what others need.

    Parameters
    ----------
    share : int
        Bytes for one principal.
    total : int, optional
        Bytes for all of them; by default only shares bound.
    """

    def __init__(self, share: int, total: int | None = None) -> None:
        self.share = share
        self.all = None if total is None else ByteBudget(total)
        self._budgets: dict[str, ByteBudget] = {}

    @contextlib.asynccontextmanager
    async def taken(self, owner: str, size: int) -> AsyncIterator[None]:
        """Take `size` bytes for a while; waits until there are as many for this principal."""
        # What is larger than all that there is has it for itself.
        size = min(size, self.share)
        budget = self._budgets.setdefault(owner, ByteBudget(self.share))
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._forget, owner, budget)
            # In this order: who waits for others of its own holds nothing of what is for all.
            await stack.enter_async_context(budget.taken(size))
            if self.all is not None:
                await stack.enter_async_context(self.all.taken(size))
            yield

    def _forget(self, owner: str, budget: ByteBudget) -> None:
        if budget.free == self.share and self._budgets.get(owner) is budget:
            del self._budgets[owner]


class Intake:
    """Memory for messages, from their first bytes until the cluster has what they bring.

    Parameters
    ----------
    limits : Limits
        One principal's messages may take what the largest one does.

    Attributes
    ----------
    headers, buffers : Shares
        Taken in this order, so that nobody waits for who waits for it.
    """

    def __init__(self, limits: Limits) -> None:
        header = limits.header_bytes + expanded(limits.header_bytes, limits)
        self.headers = Shares(header, PRINCIPALS * header)
        self.buffers = Shares(limits.buffer_bytes, PRINCIPALS * limits.buffer_bytes)


class Room:
    """Memory that one message takes, until all of it is given back."""

    def __init__(self) -> None:
        self.header = contextlib.AsyncExitStack()
        self.buffers = contextlib.AsyncExitStack()

    def pop_all(self) -> Room:
        """Hand it over to who goes on with the message; this one has nothing to give back then."""
        other = Room()
        other.header, other.buffers = self.header.pop_all(), self.buffers.pop_all()
        return other

    async def aclose(self) -> None:
        """Give it back; what was given back already is not given back again."""
        await self.buffers.aclose()
        await self.header.aclose()


class Outgoing:
    """Memory that responses which are being sent may take, for each who asks.

    Parameters
    ----------
    total : int
        Bytes of one principal's responses: who reads slowly delays nobody else.
    seconds : float, optional
        How long a response waits for others of its principal.
    """

    def __init__(self, total: int, seconds: float = READ_SECONDS) -> None:
        self.shares = Shares(total)
        self._seconds = seconds

    @contextlib.asynccontextmanager
    async def taken(self, owner: str, size: int) -> AsyncIterator[None]:
        """Take bytes of a principal's share while a response is sent.

        Raises
        ------
        NotPermitted
            ``quota_exceeded``, if it did not read what was sent before.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._seconds):
                    await stack.enter_async_context(self.shares.taken(owner, size))
            except TimeoutError:
                raise NotPermitted(
                    "Too much is on its way to you that you have not read yet.",
                    reason=Reason.QUOTA_EXCEEDED,
                    hint="Read the results before you ask for more, or ask for smaller ones.",
                ) from None
            yield


def most_taken(limits: Limits) -> int:
    """Bytes that the largest message takes.

    Examples
    --------
    >>> most_taken(Limits(header_bytes=10, buffer_bytes=100, parts=1000))
    430
    """
    return limits.header_bytes + limits.buffer_bytes + expanded(limits.header_bytes, limits)


def expanded(header_bytes: int, limits: Limits) -> int:
    """Bytes that a header, or JSON, may take once it is decoded."""
    return EXPANSION * min(header_bytes, limits.parts)
