"""Of which projects a principal is a member: here, and at the peers where projects are at home.

::

    principal (issuer, subject) ──► south ── "which of drought, flood?", signed by south ──► north
                                          ◄── "drought, for a minute", signed by north ─────
    Principal.projects = ("drought@north",)

Only projects to which something was granted here are asked for, and only at peers,
at the addresses of the site's own list.  An answer is kept for `KEPT_SECONDS` from
the moment of the question on; what cannot be found out is no membership.  Running
jobs look again (`standing`): what ages is asked for anew behind their back.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from federated_dask.errors import (
    FederatedError,
    NotAuthenticated,
    NotFound,
    Reason,
    RequestRefused,
    SiteUnavailable,
)
from federated_dask.protocol.project_messages import MembershipAnswer, MembershipQuestion
from site_plugins.peer_requests import PeerRequests
from site_plugins.peers import PeerList
from site_plugins.policy import Policy
from site_plugins.projects import ProjectStore
from site_plugins.signed_texts import peek
from site_plugins.statements import StatementSigner
from site_plugins.tokens import Principal

__all__ = ["Memberships"]

logger = logging.getLogger(__name__)

QUESTION = "membership-question+jwt"
ANSWER = "membership+jwt"
STATEMENT_SECONDS = 60.0
KEPT_SECONDS = 50.0
"""With the time that asking takes, what was revoked is without effect within a minute."""
AGING_SECONDS = 20.0
FAILED_SECONDS = 10.0
ASK_SECONDS = 5.0
MOST_KEPT = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Answer:
    asked: float
    about: frozenset[str]
    projects: frozenset[str]

    def holds(self, about: frozenset[str], seconds: float | None = None) -> bool:
        """Say whether it can still be used; whether it is younger than some seconds."""
        longest = KEPT_SECONDS if seconds is None else seconds
        return about <= self.about and time.monotonic() - self.asked < longest


class Memberships:
    """Finds out the projects of principals.

    Parameters
    ----------
    policy : Policy
        Knows to which projects something was granted.
    projects : ProjectStore
        Those that are at home here.
    peers : PeerList
        Where others are.
    private_key : Path
        Signs what the site states.
    verified_issuers : iterable of str
        Whose tokens this site verifies itself.
    """

    def __init__(
        self,
        policy: Policy,
        projects: ProjectStore,
        peers: PeerList,
        private_key: Path,
        verified_issuers: Iterable[str],
    ) -> None:
        self._policy = policy
        self._projects = projects
        self._peers = peers
        self._signer = StatementSigner(private_key)
        self._verified_issuers = frozenset(verified_issuers)
        self._requests = PeerRequests(policy.site)
        self._answers: dict[tuple[str, str, str], _Answer] = {}
        self._down: dict[str, float] = {}
        """Peers that did not answer, and until when they are not asked."""
        self._asking: dict[tuple[str, str, str], asyncio.Task[_Answer]] = {}

    @property
    def site(self) -> str:
        """Name of the site."""
        return self._policy.site

    # What counts here

    async def of(self, principal: Principal) -> tuple[str, ...]:
        """Tell the projects of a principal, as ``name@site``."""
        found = list(self._own(principal))
        wanted = self._wanted()
        if wanted:
            answers = await asyncio.gather(
                *(self._at(host, principal, about) for host, about in wanted.items())
            )
            for host, answer in zip(wanted, answers, strict=True):
                found += [f"{name}@{host}" for name in sorted(answer.projects & wanted[host])]
        return tuple(found)

    def standing(self, principal: Principal) -> Principal:
        """Give a principal with those of its projects only of which it still is a member.

        For what runs longer than a request: it does not wait; answers that age are
        asked for anew meanwhile.
        """
        if not principal.projects:
            return principal
        own = frozenset(self._own(principal))
        still = tuple(
            each
            for each in principal.projects
            if each in own or self._still(principal, *each.partition("@")[::2])
        )
        return dataclasses.replace(principal, projects=still)

    def _own(self, principal: Principal) -> tuple[str, ...]:
        names = self._projects.of(principal.issuer, principal.subject)
        return tuple(f"{name}@{self.site}" for name in names)

    def _still(self, principal: Principal, name: str, host: str) -> bool:
        key, about = _key(host, principal), self._wanted().get(host, frozenset())
        known = self._answers.get(key)
        if known is None:
            return False
        is_down = time.monotonic() < self._down.get(host, 0.0)
        if about and not is_down and not known.holds(about, AGING_SECONDS):
            # Policies are asked in threads too, where nobody can be asked.
            with contextlib.suppress(RuntimeError):
                self._ask(key, principal, about)
        return known.holds(frozenset({name})) and name in known.projects

    def _wanted(self) -> Mapping[str, frozenset[str]]:
        """Peers to the projects at home there to which something was granted here."""
        wanted: dict[str, set[str]] = {}
        for qualified in self._policy.projects():
            name, _, host = qualified.partition("@")
            wanted.setdefault(host, set()).add(name)
        wanted.pop(self.site, None)
        known = self._peers.exchanging() if wanted else {}
        return {host: frozenset(names) for host, names in wanted.items() if host in known}

    async def _at(self, host: str, principal: Principal, about: frozenset[str]) -> _Answer:
        key = _key(host, principal)
        known = self._answers.get(key)
        if known is not None and known.holds(about):
            return known
        if time.monotonic() < self._down.get(host, 0.0):
            # Else a site that is down would slow down everybody's requests here.
            return _Answer(asked=time.monotonic(), about=about, projects=frozenset())
        # Whoever waits for it may go away; others wait too.
        return await asyncio.shield(self._ask(key, principal, about))

    def _ask(
        self, key: tuple[str, str, str], principal: Principal, about: frozenset[str]
    ) -> asyncio.Task[_Answer]:
        task = self._asking.get(key)
        if task is None:
            loop = asyncio.get_running_loop()
            task = loop.create_task(self._asked(key, principal, about))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._asking.pop(key, None))
        return task

    async def _asked(
        self, key: tuple[str, str, str], principal: Principal, about: frozenset[str]
    ) -> _Answer:
        host = key[0]
        asked = time.monotonic()
        question = MembershipQuestion(
            issuer=principal.issuer, subject=principal.subject, projects=tuple(sorted(about))
        )
        try:
            projects = await self._question(host, question)
            answer = _Answer(asked=asked, about=about, projects=projects & about)
        except FederatedError as error:
            logger.warning("Site %s did not tell of memberships: %s", host, error.reason)
            self._down[host] = time.monotonic() + FAILED_SECONDS
            # What was known still holds as long as it would have.
            known = self._answers.get(key)
            if known is not None and known.holds(about):
                return known
            return _Answer(asked=asked, about=about, projects=frozenset())
        if len(self._answers) >= MOST_KEPT:
            self._answers.clear()
        self._answers[key] = answer
        return answer

    async def _question(self, host: str, question: MembershipQuestion) -> frozenset[str]:
        peer = self._peers.exchanging().get(host)
        if peer is None or peer.verifier is None:
            raise NotFound(
                f"{host[:128]!r} is no peer of this site.",
                reason=Reason.UNKNOWN_SITE,
                site=self.site,
                hint="Sites become peers by `federated-dask site invite`.",
            )
        body = msgspec.json.encode(question)
        claims = {"iss": self.site, "aud": host, "for": _digest(body)}
        statement = self._signer.sign(QUESTION, claims, STATEMENT_SECONDS)
        reply = await self._requests.post(peer, "/memberships", body, statement, ASK_SECONDS)
        try:
            answer = msgspec.json.decode(reply, type=MembershipAnswer)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            answer = None
        stated = (
            None
            if answer is None
            else peer.verifier.verify(ANSWER, answer.statement, STATEMENT_SECONDS)
        )
        expected = {
            "iss": host,
            "aud": self.site,
            "issuer": question.issuer,
            "sub": question.subject,
        }
        if stated is None or any(stated.get(name) != value for name, value in expected.items()):
            raise SiteUnavailable(
                f"What the site {host!r} states of memberships does not hold.",
                reason=Reason.INTERNAL,
                site=self.site,
            )
        return _names(stated.get("projects"))

    async def join_at(self, principal: Principal, host: str, project: str, code: str) -> None:
        """Have a user of this site join a project that is at home at a peer.

        Raises
        ------
        NotFound
            If that site is no peer, or the code does not hold.
        """
        question = MembershipQuestion(
            issuer=principal.issuer, subject=principal.subject, projects=(project,), code=code
        )
        await self._question(host, question)
        # Whatever was known of the principal before is out of date.
        self._answers.pop(_key(host, principal), None)

    # What is told to peers

    def answer(self, body: bytes, statement: str) -> MembershipAnswer:
        """Answer a peer's question; where it brings a code, have its user join first.

        Raises
        ------
        NotAuthenticated
            If nobody asks who is a peer.
        RequestRefused
            If the question does not parse, or is about a user of an issuer whose
            tokens this site can verify itself.
        NotFound
            If the code does not hold.
        """
        asker = self._asker(body, statement)
        try:
            question = msgspec.json.decode(body, type=MembershipQuestion)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise RequestRefused(
                "The request does not parse.", reason=Reason.MALFORMED, site=self.site
            ) from None
        if question.code:
            if question.issuer in self._verified_issuers or len(question.projects) != 1:
                # Else a peer could speak for people whom this site knows by itself.
                raise RequestRefused(
                    "Users of that issuer join here with their own token.",
                    reason=Reason.INVALID_ARGUMENT,
                    site=self.site,
                )
            self._projects.join(
                question.issuer, question.subject, question.projects[0], question.code
            )
        asked = frozenset(question.projects)
        names = asked & frozenset(self._projects.of(question.issuer, question.subject))
        claims = {
            "iss": self.site,
            "aud": asker,
            "issuer": question.issuer,
            "sub": question.subject,
            "projects": sorted(names),
        }
        return MembershipAnswer(statement=self._signer.sign(ANSWER, claims, STATEMENT_SECONDS))

    def _asker(self, body: bytes, statement: str) -> str:
        # Who it says it is, tells with which key to verify it, and nothing else.
        seen = peek(statement)
        named = None if seen is None else seen[1].get("iss")
        peer = self._peers.exchanging().get(named) if isinstance(named, str) else None
        if peer is not None and peer.verifier is not None:
            claims = peer.verifier.verify(QUESTION, statement, STATEMENT_SECONDS) or {}
            expected = {"iss": peer.name, "aud": self.site, "for": _digest(body)}
            if all(claims.get(name) == value for name, value in expected.items()):
                return peer.name
        raise NotAuthenticated(
            "Only peers are told of memberships.", reason=Reason.TOKEN_INVALID, site=self.site
        )

    async def close(self) -> None:
        """End what is being asked, and close the connections."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._requests.close()


def _key(host: str, principal: Principal) -> tuple[str, str, str]:
    return (host, principal.issuer, principal.subject)


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _names(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return frozenset()
    return frozenset(value)
