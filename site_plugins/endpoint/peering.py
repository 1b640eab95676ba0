"""Values from site to site: who may fetch what, and fetching it.

::

    client ── "let north have outputs 0, 1 of this lease" ──► south     (the lease is the client's)
           ◄── delegation, signed by south ─────────────────
    client ── job + delegation ──► north
                                   north ── delegation + statement by north ──► south
                                         ◄── values ───────────────────────────

A delegation is bound to its receiver, a lease, outputs, a number of bytes and a
few minutes.  It is no use to anybody else: the receiver states who it is, for
this delegation only, with the key that the source has listed for it.  A site
fetches from the addresses in its own configuration and from nowhere else; no
address ever comes from a message, and redirects are not followed.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from federated_dask.errors import (
    NotAuthenticated,
    NotFound,
    NotPermitted,
    Reason,
    RequestRefused,
    SiteUnavailable,
)
from federated_dask.protocol.frames import FrameDecoder, StoredFrame, decode_message
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import Result
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.rules import check_value
from federated_dask.protocol.values import decode_value
from site_plugins.config import SiteConfig
from site_plugins.keys import public_key_of
from site_plugins.outgoing import NETWORK_ERRORS, OutgoingSession, read_up_to
from site_plugins.peer_requests import refusal_of, unlike_a_site
from site_plugins.peers import KnownPeer, PeerList
from site_plugins.registry import Registry
from site_plugins.statements import StatementSigner, StatementVerifier

__all__ = ["DELEGATION_HEADER", "Delegation", "Peering", "Pulled"]

DELEGATION_HEADER = "Federated-Delegation"
DELEGATION = "delegation+jwt"
PEER = "peer+jwt"
DELEGATION_SECONDS = 600.0
PEER_SECONDS = 60.0
PULL_SECONDS = 600.0
"""Longest time that one value may take, whatever drips in meanwhile."""
PIECE = 2**20
LONGEST_REFUSAL = 64 * 1024
TIERS = ("open", "derived")
DATASET = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
LEASE = re.compile(r"[A-Za-z0-9_-]{1,128}")
COMPACT = re.compile(r"[A-Za-z0-9_.-]{1,8192}")


@dataclass(frozen=True, kw_only=True)
class Delegation:
    """What a delegation allows, once it and its bearer have been checked."""

    owner: str
    """Whose lease it is."""
    groups: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    """Of the owner, those to which the site granted something."""
    project: str = ""
    """For which the owner asked."""
    receiver: str
    limit: int
    """Bytes that one output may have."""


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A value that came from a peer."""

    value: Any
    nbytes: int
    """Bytes of the reply's body."""


class Peering:
    """A site's dealings with its peers.

    Parameters
    ----------
    config : SiteConfig
        The site; its key signs, its peers' public keys verify.
    peers : PeerList, optional
        The peers; by default those of `config`.

    Raises
    ------
    ConfigurationError
        If a key or a certificate authority cannot be used.
    """

    def __init__(self, config: SiteConfig, peers: PeerList | None = None) -> None:
        self.peers = PeerList(config, Registry(None)) if peers is None else peers
        self._site = config.name
        self._signer = StatementSigner(config.tokens.private_key)
        self._own = StatementVerifier(public_key_of(config.tokens.private_key))
        self._session = OutgoingSession(keep_alive=True)

    @property
    def trusted(self) -> frozenset[str]:
        """Peers with which values are exchanged: those whose public key is known."""
        return frozenset(self.peers.exchanging())

    def delegate(
        self,
        *,
        owner: str,
        receiver: str,
        lease: str,
        outputs: Iterable[int],
        limit: int,
        groups: Iterable[str] = (),
        projects: Iterable[str] = (),
        project: str = "",
        derives: Mapping[str, str] | None = None,
    ) -> str:
        """Let a peer fetch outputs of a lease.

        Parameters
        ----------
        owner : str
            Whose lease it is; was checked.
        receiver : str
            The peer.
        lease : str
            The lease.
        outputs : iterable of int
            Outputs of it.
        limit : int
            Bytes that one output may have.
        groups, projects : iterable of str, optional
            Of the owner, those to which the site granted something.
        project : str, optional
            For which the owner asks.
        derives : mapping of str to str, optional
            Datasets that the outputs derive from and that are not open, and their tier.

        Raises
        ------
        NotFound
            If there is no such peer.
        """
        if receiver not in self.peers.exchanging():
            raise NotFound(
                f"{receiver[:128]!r} is no peer with which this site exchanges values.",
                reason=Reason.UNKNOWN_SITE,
                site=self._site,
                hint="Peers are listed in site.toml, each with its public key.",
            )
        claims = {
            "iss": self._site,
            "aud": self._site,
            "owner": owner,
            "groups": list(groups),
            "projects": list(projects),
            "project": project,
            "derives": dict(derives or {}),
            "receiver": receiver,
            "lease": lease,
            "outputs": sorted(outputs),
            "bytes": limit,
        }
        return self._signer.sign(DELEGATION, claims, DELEGATION_SECONDS)

    def check(self, delegation: str, statement: str, lease: str, output: int) -> Delegation:
        """Check what a peer shows to fetch an output.

        Raises
        ------
        NotAuthenticated
            If the delegation is not this site's, or the bearer is not the peer
            for which it was made.
        NotPermitted
            If it is for another output.
        """
        claims = self._own.verify(DELEGATION, delegation, DELEGATION_SECONDS)
        if claims is None or claims.get("iss") != self._site:
            raise self._refused("The delegation does not hold here, or not any more.")
        receiver = str(claims.get("receiver"))
        verifier = self._verifier(receiver)
        stated = None if verifier is None else verifier.verify(PEER, statement, PEER_SECONDS)
        expected = {"iss": receiver, "aud": self._site, "for": _digest(delegation)}
        if stated is None or any(stated.get(name) != value for name, value in expected.items()):
            raise self._refused("Only the peer for which it was made may use a delegation.")
        if claims.get("lease") != lease or output not in claims.get("outputs", ()):
            raise NotPermitted(
                "The delegation is for other results.",
                reason=Reason.OPERATION_NOT_ALLOWED,
                site=self._site,
            )
        return Delegation(
            owner=str(claims.get("owner")),
            groups=tuple(claims.get("groups", ())),
            projects=tuple(claims.get("projects", ())),
            project=str(claims.get("project", "")),
            receiver=receiver,
            limit=int(claims.get("bytes", 0)),
        )

    def derives(self, peer: str, delegation: str) -> dict[str, str]:
        """Tell from which of its datasets that are not open a peer lets values be fetched.

        Raises
        ------
        RequestRefused
            If the delegation cannot be one.
        NotFound
            If it is not the peer's, or has ended; the peer might see it otherwise, and
            hand over values of which nobody here knows where they are from.
        """
        if not COMPACT.fullmatch(delegation):
            raise RequestRefused("A delegation cannot be one.", reason=Reason.MALFORMED)
        verifier = self._verifier(peer)
        claims = verifier and verifier.verify(DELEGATION, delegation, DELEGATION_SECONDS)
        if not claims or claims.get("iss") != peer or claims.get("aud") != peer:
            raise NotFound(
                f"The delegation of {peer[:128]!r} does not hold, or not any more.",
                reason=Reason.UNKNOWN_RESULT,
                site=self._site,
                hint="Ask that site for a new one, or send the value along instead.",
            )
        derives = claims.get("derives")
        if not isinstance(derives, dict):
            return {}
        # Of another version of this software, say: what is not known does not get out.
        return {
            name: tier if tier in TIERS else "functions-only"
            for name, tier in derives.items()
            if DATASET.fullmatch(name)
        }

    def _verifier(self, name: str) -> StatementVerifier | None:
        known = self.peers.current().get(name)
        return None if known is None else known.verifier

    def _refused(self, message: str) -> NotAuthenticated:
        return NotAuthenticated(
            message,
            reason=Reason.TOKEN_INVALID,
            site=self._site,
            hint="Ask the site for a new one.",
        )

    async def pull(
        self,
        peer: str,
        lease: str,
        output: int,
        delegation: str,
        *,
        limits: Limits,
        table: OperationTable,
    ) -> Pulled:
        """Fetch a value from a peer.

        Parameters
        ----------
        peer : str
            Name of the site that holds it.
        lease, output
            Which value.
        delegation : str
            Signed by that site.
        limits : Limits
            Caps on the reply.
        table : OperationTable
            What the value may name.

        Raises
        ------
        NotFound
            If there is no such peer here.
        RequestRefused
            If lease or delegation cannot be one, or the value is over the caps.
        SiteUnavailable
            If the peer does not answer, or not with a value.
        FederatedError
            What the peer refused it with.
        """
        known = self.peers.exchanging().get(peer)
        if known is None:
            raise NotFound(
                f"{peer[:128]!r} is no peer with which this site exchanges values.",
                reason=Reason.UNKNOWN_SITE,
                site=self._site,
            )
        # They become a part of the URL and a header.
        if not (LEASE.fullmatch(lease) and COMPACT.fullmatch(delegation)):
            raise RequestRefused("A lease or a delegation cannot be one.", reason=Reason.MALFORMED)
        claims = {"iss": self._site, "aud": peer, "for": _digest(delegation)}
        headers = {
            "Authorization": f"Bearer {self._signer.sign(PEER, claims, PEER_SECONDS)}",
            DELEGATION_HEADER: delegation,
        }
        url = f"{known.address.rstrip('/')}/delegated/{lease}/{output}"
        try:
            async with asyncio.timeout(PULL_SECONDS):
                stored, nbytes = await self._fetch(known, url, headers, limits)
        except NETWORK_ERRORS as error:
            raise SiteUnavailable(
                f"The peer {peer!r} did not hand over a value ({type(error).__name__}).",
                reason=Reason.UNREACHABLE,
                site=self._site,
                hint="Try again later; without direct transfers, values go through your process.",
            ) from error
        try:
            # It may be large, and everybody else waits for this loop.
            result, value = await asyncio.to_thread(_decoded, stored, table)
        except (RequestRefused, NotPermitted) as error:
            raise unlike_a_site(peer, self._site) from error
        if result.output != output:
            raise unlike_a_site(peer, self._site)
        return Pulled(value=value, nbytes=nbytes)

    async def _fetch(
        self, known: KnownPeer, url: str, headers: Mapping[str, str], limits: Limits
    ) -> tuple[StoredFrame, int]:
        peer = known.name
        async with self._session.request("GET", url, known.trust, headers=headers) as reply:
            if reply.status != 200:
                raise refusal_of(await read_up_to(reply, LONGEST_REFUSAL), peer, self._site)
            decoder = FrameDecoder(limits)
            frames: list[StoredFrame] = []
            received = 0
            try:
                async for data in reply.content.iter_chunked(PIECE):
                    received += len(data)
                    frames += decoder.feed_stored(data)
                    if len(frames) > 1:
                        break
                decoder.close()
            except RequestRefused as error:
                if error.reason is Reason.LIMIT_EXCEEDED:
                    error.message = f"A value of the peer {peer!r}: {error.message}"
                    raise
                raise unlike_a_site(peer, self._site) from error
        if len(frames) != 1:
            raise unlike_a_site(peer, self._site)
        return frames[0], received

    async def close(self) -> None:
        """Close the connections to the peers."""
        await self._session.close()


def _decoded(stored: StoredFrame, table: OperationTable) -> tuple[Result, Any]:
    frame = stored.decompressed()
    result = decode_message(frame, Result)
    # As of anybody who sends a value: nothing in it may be called but by the rules.
    check_value(result.value, table)
    return result, decode_value(result.value, frame.buffers, table)


def _digest(delegation: str) -> str:
    return hashlib.sha256(delegation.encode()).hexdigest()
