"""Requests of a site to servers that its operator named, and to nowhere else.

Neither proxies nor cookies, no redirects, and none of HTTP's compression, which has no cap.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

import aiohttp

__all__ = ["NETWORK_ERRORS", "OutgoingSession", "read_up_to"]

CONNECT_SECONDS = 20.0
SILENCE_SECONDS = 60.0
NETWORK_ERRORS = (aiohttp.ClientError, ssl.SSLError, OSError, TimeoutError)
"""What a request may raise where the network or the other side fails."""


class OutgoingSession:
    """Connections to other servers, opened with the first request.

    Silence ends a request; how long one may take as a whole is the caller's to say.

    Parameters
    ----------
    headers : mapping of str to str, optional
        Of every request.
    keep_alive : bool, optional
        Use a connection for several requests.
    """

    def __init__(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        keep_alive: bool = False,
    ) -> None:
        self._headers = {"Accept-Encoding": "identity", **(headers or {})}
        self._keep_alive = keep_alive
        self._session: aiohttp.ClientSession | None = None

    def request(
        self,
        method: str,
        url: str,
        trust: ssl.SSLContext | aiohttp.Fingerprint,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send a request; the reply's body has not been read yet."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
                ),
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                connector=aiohttp.TCPConnector(force_close=not self._keep_alive),
            )
        return self._session.request(
            method, url, ssl=trust, headers=headers, data=body, allow_redirects=False
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            # aiohttp ends its TLS connections one turn of the loop later.
            await asyncio.sleep(0)
            self._session = None


async def read_up_to(reply: aiohttp.ClientResponse, longest: int) -> bytes | None:
    """Read a body of at most so many bytes; None where there are more."""
    body = bytearray()
    async for data in reply.content.iter_any():
        body += data
        if len(body) > longest:
            return None
    return bytes(body)
