"""Counts of what really crosses each link, taken where bodies pass the socket.

A link is the way between home and one site.  Counted are bodies after
compression; HTTP and TLS headers are not.  Every connection counts all it ever
moved; `count_links` counts what happens inside a block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["LinkCounter", "count_links", "run_counter"]


@dataclass(slots=True)
class LinkCounter:
    """Bytes of bodies that crossed one link.

    Parameters
    ----------
    sent : int
        Bytes from home to the site.
    received : int
        Bytes from the site to home.
    flowed : int
        Those of them that came close behind others, not after a time of waiting.
    flow_seconds : float
        How long these took.
    """

    sent: int = 0
    received: int = 0
    flowed: int = 0
    flow_seconds: float = 0.0


_links: ContextVar[dict[str, LinkCounter] | None] = ContextVar("federated_dask_links", default=None)


@contextlib.contextmanager
def count_links() -> Iterator[dict[str, LinkCounter]]:
    """Count what crosses each link inside the block.

    Counts requests that begin in this context: coroutines and tasks started in
    the block, and `federated_dask.client.loop.sync` called from it.  Another
    thread counts here too if it runs in a copy of this context
    (``contextvars.copy_context().run``).

    Yields
    ------
    dict of str to LinkCounter
        By the site's name; a site appears with its first request.
    """
    links: dict[str, LinkCounter] = {}
    token = _links.set(links)
    try:
        yield links
    finally:
        _links.reset(token)


def run_counter(site: str) -> LinkCounter | None:
    """Give the counter of the surrounding `count_links` block for a site, if there is one."""
    links = _links.get()
    return None if links is None else links.setdefault(site, LinkCounter())
