"""The joining side of an invitation: asks the inviting site, and lists it as a peer."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
import msgspec

from federated_dask.errors import (
    ConfigurationError,
    NotAuthenticated,
    Reason,
    SiteUnavailable,
)
from federated_dask.protocol.identity_messages import SiteIntroduction
from federated_dask.protocol.messages import Failure
from site_plugins.config import PeerSection, SiteConfig
from site_plugins.invitations import InvitationCode, join_request
from site_plugins.outgoing import NETWORK_ERRORS, OutgoingSession, read_up_to
from site_plugins.peers import PeerList, plain_certificates, plain_public_key

__all__ = ["join"]

JOIN_SECONDS = 30.0
LONGEST_REPLY = 64 * 1024


async def join(config: SiteConfig, peers: PeerList, address: str, text: str) -> str:
    """Become a peer of the site that made a code; both list each other then.

    Parameters
    ----------
    config : SiteConfig
        The site that joins.
    peers : PeerList
        Its peers.
    address : str
        Of the inviting site's endpoint.
    text : str
        The code.

    Returns
    -------
    str
        Name of the other site.

    Raises
    ------
    ConfigurationError
        If address or code cannot be ones, or the other site has a name that is
        taken here.
    NotAuthenticated
        If another site than the inviting one answers, or it does not accept the code.
    SiteUnavailable
        If it does not answer as a site.
    """
    code = InvitationCode.parse(text)
    try:
        address = PeerSection(name="any", address=address).address
    except ValueError as error:
        raise ConfigurationError(
            f"{address!r} is no address of a site.", hint="It looks like https://host:port."
        ) from error
    body = msgspec.json.encode(join_request(config, code))
    pinned = aiohttp.Fingerprint(code.fingerprint)
    reply = await _ask(address, "POST", "/peers", pinned, body)
    try:
        told = msgspec.json.decode(reply, type=SiteIntroduction)
        public_key = plain_public_key(told.public_key)
        ca = None if told.ca is None else plain_certificates(told.ca)
        trust = ssl.create_default_context(cadata=ca)
        PeerSection(name=told.name, address=address)
    except (msgspec.MsgspecError, ValueError, ssl.SSLError) as error:
        raise _unlike_a_site(address) from error
    if peers.has(told.name, public_key):
        return told.name
    peers.require_new(told.name)
    # From now on certificates decide; better to find out here that they do not fit.
    await _ask(address, "GET", "/health", trust, None)
    # Where it is, is what the operator wrote, and not what came over the network.
    peers.add(told.name, address, ca, public_key)
    return told.name


async def _ask(
    address: str,
    method: str,
    path: str,
    trust: ssl.SSLContext | aiohttp.Fingerprint,
    body: bytes | None,
) -> bytes:
    session = OutgoingSession(headers={"Content-Type": "application/json"})
    try:
        async with (
            asyncio.timeout(JOIN_SECONDS),
            session.request(method, address + path, trust, body=body) as reply,
        ):
            data = await read_up_to(reply, LONGEST_REPLY)
    except aiohttp.ServerFingerprintMismatch as error:
        raise NotAuthenticated(
            f"At {address} answers another site than the one that made the code.",
            reason=Reason.TOKEN_INVALID,
            hint="Nothing was sent to it. Check the address, and that the code is complete.",
        ) from error
    except aiohttp.ClientConnectorCertificateError as error:
        raise SiteUnavailable(
            f"The certificate of {address} does not fit what that site says of it.",
            reason=Reason.CERTIFICATE_NOT_TRUSTED,
            hint="Its operator sets [endpoint] ca in site.toml; then join again.",
        ) from error
    except NETWORK_ERRORS as error:
        raise SiteUnavailable(
            f"{address} does not answer ({type(error).__name__}).",
            reason=Reason.UNREACHABLE,
            hint="Check the address, and that the site is running.",
        ) from error
    finally:
        await session.close()
    if data is None:
        raise _unlike_a_site(address)
    if reply.status == 200:
        return data
    try:
        raise msgspec.json.decode(data, type=Failure).to_error()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _unlike_a_site(address) from error


def _unlike_a_site(address: str) -> SiteUnavailable:
    return SiteUnavailable(
        f"{address} did not answer as a site does.",
        reason=Reason.INTERNAL,
        hint="Check that it is the address of an endpoint.",
    )
