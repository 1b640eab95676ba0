"""Small requests from a site to its peers, at known addresses with known certificates."""

from __future__ import annotations

import asyncio

import msgspec

from federated_dask.errors import FederatedError, Reason, SiteUnavailable
from federated_dask.protocol.messages import Failure
from site_plugins.outgoing import NETWORK_ERRORS, OutgoingSession, read_up_to
from site_plugins.peers import KnownPeer

__all__ = ["PeerRequests", "refusal_of", "unlike_a_site"]

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
        self._session = OutgoingSession(headers={"Accept": "application/json"})

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
        url = peer.address.rstrip("/") + path
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request("POST", url, peer.trust, headers=headers, body=body) as reply,
            ):
                data = await read_up_to(reply, LONGEST_REPLY)
        except NETWORK_ERRORS as error:
            raise SiteUnavailable(
                f"The peer {peer.name!r} does not answer ({type(error).__name__}).",
                reason=Reason.UNREACHABLE,
                site=self._site,
                hint="Try again later.",
            ) from error
        if data is None:
            raise unlike_a_site(peer.name, self._site)
        if reply.status != 200:
            raise refusal_of(data, peer.name, self._site)
        return data

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def refusal_of(body: bytes | None, peer: str, site: str) -> FederatedError:
    """Make the error of what a peer answered a request of `site` with, in its words."""
    try:
        failure = msgspec.json.decode(body or b"", type=Failure)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return unlike_a_site(peer, site)
    message = f"The peer {peer!r} refused: {failure.message[:LONGEST_MESSAGE]}"
    return msgspec.structs.replace(failure, message=message, site=peer).to_error()


def unlike_a_site(peer: str, site: str) -> SiteUnavailable:
    """Make the error of an answer to `site` that no site would give."""
    return SiteUnavailable(
        f"The peer {peer!r} did not answer as a site does.",
        reason=Reason.INTERNAL,
        site=site,
        hint="Tell the operator of that site.",
    )
