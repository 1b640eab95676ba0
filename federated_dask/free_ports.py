"""Ports of this machine on which sites can listen."""

from __future__ import annotations

import contextlib
import random
import socket

__all__ = ["free_ports"]

PORTS = range(15_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Find ports that are free now: each site has to know the others' before any has started.

    Not of those that the system hands out by itself: on a busy machine one of them
    would be somebody else's before the site listens there.

    Examples
    --------
    >>> len(set(free_ports(3)))
    3
    """
    candidates = random.sample(PORTS, len(PORTS))
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            found = stack.enter_context(socket.socket())
            # When all of these are taken, any will do.
            wanted = candidates.pop() if candidates else 0
            with contextlib.suppress(OSError):
                found.bind(("127.0.0.1", wanted))
                ports.append(int(found.getsockname()[1]))
        return ports
