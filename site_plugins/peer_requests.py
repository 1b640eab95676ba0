"""Small requests from a site to its peers: known addresses, known certificates, no redirects."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
import msgspec

from federated_dask.errors import FederatedError, Reason, SiteUnavailable
from federated_dask.protocol.messages import Failure
from site_plugins.peers import KnownPeer

__all__ = ["PeerRequests"]

LONGEST_REPLY = 128 * 1024
LONGEST_MESSAGE = 1000


class PeerRequests:
    """Asks peers.

    Parameters
    ----------
    site : str
        Name of the asking site, shown in errors.
    """

    def __init__(self, site: str) -> None:
        self._site = site
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, peer: KnownPeer, path: str, body: bytes, statement: str, seconds: float
    ) -> bytes:
        """Send a JSON body with a signed statement of who asks; give the JSON reply.

        Raises
        ------
        SiteUnavailable
            If the peer does not answer in time, or not as a site does.
        FederatedError
            What the peer refused it with.
        """
        headers = {"Authorization": f"Bearer {statement}", "Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(seconds),
                self._open_session().post(
                    peer.address.rstrip("/") + path,
                    data=body,
                    headers=headers,
                    ssl=peer.trust,
                    allow_redirects=False,
                ) as reply,
            ):
                data = bytearray()
                async for piece in reply.content.iter_any():
                    data += piece
                    if len(data) > LONGEST_REPLY:
                        raise self._unlike_a_site(peer)
        except (aiohttp.ClientError, ssl.SSLError, OSError, TimeoutError) as error:
            raise SiteUnavailable(
                f"The peer {peer.name!r} does not answer ({type(error).__name__}).",
                reason=Reason.UNREACHABLE,
                site=self._site,
                hint="Try again later.",
            ) from error
        if reply.status != 200:
            raise self._refusal(bytes(data), peer)
        return bytes(data)

    def _refusal(self, body: bytes, peer: KnownPeer) -> FederatedError:
        try:
            failure = msgspec.json.decode(body, type=Failure)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._unlike_a_site(peer)
        message = f"The peer {peer.name!r} refused: {failure.message[:LONGEST_MESSAGE]}"
        return msgspec.structs.replace(failure, message=message, site=peer.name).to_error()

    def _unlike_a_site(self, peer: KnownPeer) -> SiteUnavailable:
        return SiteUnavailable(
            f"The peer {peer.name!r} did not answer as a site does.",
            reason=Reason.INTERNAL,
            site=self._site,
            hint="Tell the operator of that site.",
        )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                connector=aiohttp.TCPConnector(force_close=True),
            )
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            # aiohttp ends its TLS connections one turn of the loop later.
            await asyncio.sleep(0)
            self._session = None
