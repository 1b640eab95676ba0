"""HTTP sessions: one per event loop and set of connection parameters, and their trust.

Many lazy arrays point to one site, in a Dask worker each with a connection
object of its own that came out of a pickle.  They share one session, so that
they share its open sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from federated_dask.client import loop as background
from federated_dask.errors import ConfigurationError

__all__ = ["check_address", "close_sessions", "read_trust", "session_of", "tls_context"]

CONNECT_SECONDS = 15.0
KEEPALIVE_SECONDS = 4.0
"""Below the 5 s after which uvicorn closes an idle connection, so that ours never races it."""
READ_BUFFER = 2**18
CLOSE_STEPS = 50


@dataclass(eq=False)
class _Entry:
    session: aiohttp.ClientSession
    sockets: weakref.WeakSet[socket.socket]
    users: weakref.WeakSet[object] = field(default_factory=weakref.WeakSet)

    async def close(self) -> None:
        await self.session.close()
        # A socket whose peer does not answer TLS's goodbye, or takes no bytes, would outlive the
        # session by up to 30 s.
        for last in list(self.sockets):
            with contextlib.suppress(OSError):
                last.shutdown(socket.SHUT_RDWR)
        for _ in range(CLOSE_STEPS):
            if all(last.fileno() < 0 for last in self.sockets):
                return
            await asyncio.sleep(0.01)


_entries: dict[tuple[asyncio.AbstractEventLoop, Hashable], _Entry] = {}


def session_of(
    user: object, key: Hashable, trust: str | None, timeout: float
) -> aiohttp.ClientSession:
    """Give the session for `key` on the running loop; open it where there is none.

    Parameters
    ----------
    user : object
        Who uses it; see `close_sessions`.
    key : hashable
        Connection parameters.
    trust : str or None
        CA certificates as PEM text; None for those of the system.
    timeout : float
        Seconds of silence after which a request fails.
    """
    loop = asyncio.get_running_loop()
    for place in [place for place in _entries if place[0].is_closed()]:
        del _entries[place]
    entry = _entries.get((loop, key))
    if entry is None or entry.session.closed:
        sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

        def new_socket(info: aiohttp.AddrInfoType) -> socket.socket:
            made = socket.socket(*info[:3])
            sockets.add(made)
            return made

        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=tls_context(trust),
                limit=0,
                keepalive_timeout=KEEPALIVE_SECONDS,
                socket_factory=new_socket,
            ),
            # Replies are not decompressed behind our back: frames bring their own, bounded,
            # compression, and counted is what crosses the wire.
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "federated-dask"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=min(timeout, CONNECT_SECONDS), sock_read=timeout
            ),
            read_bufsize=READ_BUFFER,
        )
        entry = _entries[loop, key] = _Entry(session, sockets)
    entry.users.add(user)
    return entry.session


async def close_sessions(user: object, key: Hashable) -> None:
    """Close the sessions for `key`, on whichever loop, that nobody but `user` still uses."""
    here = asyncio.get_running_loop()
    for place, entry in list(_entries.items()):
        loop, other = place
        if other != key:
            continue
        entry.users.discard(user)
        if entry.users or loop.is_closed():
            continue
        _entries.pop(place, None)
        if loop is here:
            await entry.close()
        elif loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(entry.close(), loop)
            await asyncio.wrap_future(closing)


async def _close_all() -> None:
    here = asyncio.get_running_loop()
    for place, entry in list(_entries.items()):
        if place[0] is here:
            del _entries[place]
            await entry.close()


background.at_exit(_close_all)


def read_trust(verify: bool | str | Path) -> str | None:
    """Turn the `verify` argument of a client into PEM text.

    Parameters
    ----------
    verify : bool or str or Path
        True for the system's CAs; else a PEM file, or its text.

    Returns
    -------
    str or None
        PEM text; None for the system's CAs.

    Raises
    ------
    ConfigurationError
        If it names no readable PEM file, or is False.

    Examples
    --------
    >>> read_trust(True) is None
    True
    """
    if verify is True:
        return None
    if verify is False:
        raise ConfigurationError(
            "Certificates are always checked.",
            hint="Give the site's CA file: verify='ca.pem'.",
        )
    text = str(verify)
    if "-----BEGIN" not in text:
        try:
            text = Path(verify).expanduser().read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no PEM file"
            raise ConfigurationError(
                f"The CA file {str(verify)!r} cannot be read: {why}.",
                hint="The site's operator hands out its CA file.",
            ) from None
    tls_context(text)
    return text


def tls_context(trust: str | None) -> ssl.SSLContext:
    """Make the TLS settings of a client: TLS 1.2 or newer, certificate and host name checked.

    Parameters
    ----------
    trust : str or None
        The only CA certificates to trust, as PEM text; None for those of the system.

    Raises
    ------
    ConfigurationError
        If the text holds no certificate.
    """
    try:
        context = ssl.create_default_context(cadata=trust)
    except (ssl.SSLError, ValueError):
        raise ConfigurationError(
            "The CA certificates do not parse.", hint="A PEM file is expected."
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def check_address(address: str) -> str:
    """Check the address of a site, and write it without a slash at its end.

    Raises
    ------
    ConfigurationError
        If it is no ``https://`` URL.  Plain ``http://`` is accepted on this
        machine's own loopback interface only: elsewhere the token would be
        readable on the way.

    Examples
    --------
    >>> check_address("https://north.example:8786/")
    'https://north.example:8786'
    """
    hint = "An address looks like https://north.example:8786."
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{address!r} is no address of a site.", hint=hint) from error
    if (
        parts.scheme not in ("https", "http")
        or not host
        or parts.query
        or parts.fragment
        or parts.username is not None
        or not address.isascii()
        or not address.isprintable()
    ):
        raise ConfigurationError(f"{address!r} is no address of a site.", hint=hint)
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigurationError(
            f"{address!r} is not encrypted: the token would be readable on the way.",
            hint="Use https://.",
        )
    return address.rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
