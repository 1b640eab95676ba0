"""Members of a project at one site, as its peers know them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from federated_dask.errors import (
    NotAuthenticated,
    NotFound,
    NotPermitted,
    Reason,
    RequestRefused,
    SiteUnavailable,
)
from federated_dask.protocol.messages import Egress
from federated_dask.protocol.project_messages import MembershipAnswer, MembershipQuestion
from site_plugins import memberships
from site_plugins.audit import Audit
from site_plugins.endpoint.release import Release
from site_plugins.grants import Grant
from site_plugins.invitations import join_request
from site_plugins.ledger import Ledger
from site_plugins.memberships import Memberships
from site_plugins.peers import KnownPeer
from site_plugins.policy import Policy
from site_plugins.projects import ProjectStore
from site_plugins.quotas import Quotas
from site_plugins.registry import Registry
from site_plugins.revocations import Revocations
from site_plugins.tokens import Principal
from tests.site_plugins.lone_sites import SiteAlone
from tests.site_plugins.members import ADA, BEN, BOB, EVE, person, with_bob
from tests.waiting import async_until, until


class Home(SiteAlone):
    """A site with projects, reached without a network."""

    def __init__(self, folder: Path, name: str, *grants: Grant) -> None:
        super().__init__(folder, name)
        self.policy = Policy(name, self.config.token_issuer, grants, self.registry)
        self.projects = ProjectStore(self.policy, self.registry, ("anyone",))
        self.memberships = Memberships(
            self.policy,
            self.projects,
            self.peers,
            self.config.tokens.private_key,
            [self.config.token_issuer, "https://idp.example"],
        )
        self.others: dict[str, Home] = {}
        self.asked: list[MembershipQuestion] = []
        self.tamper: Callable[[MembershipAnswer], MembershipAnswer] = lambda answer: answer
        self.wait: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)
        self.memberships._requests = self  # type: ignore[assignment]

    async def post(
        self, peer: KnownPeer, path: str, body: bytes, statement: str, seconds: float
    ) -> bytes:
        assert path == "/memberships"
        self.asked.append(msgspec.json.decode(body, type=MembershipQuestion))
        await self.wait()
        answer = self.others[peer.name].memberships.answer(body, statement)
        return msgspec.json.encode(self.tamper(answer))

    async def close(self) -> None:
        pass

    def meet(self, other: "Home") -> None:
        code = self.invitations.create(other.config.name)
        told = self.invitations.accept(join_request(other.config, code))
        other.peers.add(told.name, told.address, told.ca, told.public_key)
        self.others[other.config.name] = other
        other.others[self.config.name] = self


GRANTS = [
    Grant(id="1", to="project:drought@north", may=("compute",), on=("dataset:soil",)),
    Grant(id="2", to="project:flood@nowhere", may=("compute",), on=("dataset:soil",)),
]


@pytest.fixture
def north(tmp_path: Path) -> Home:
    return Home(tmp_path / "north", "north")


@pytest.fixture
def south(tmp_path: Path, north: Home) -> Home:
    made = Home(tmp_path / "south", "south", *GRANTS)
    north.meet(made)
    return made


async def test_a_site_honours_the_members_of_a_peers_project(north: Home, south: Home) -> None:
    with_bob(north.projects)
    assert await south.memberships.of(BOB) == ("drought@north",)
    assert await south.memberships.of(EVE) == ()
    # Only peers are asked, only for what was granted, and once for a while.
    await asyncio.gather(*(south.memberships.of(BOB) for _ in range(20)))
    assert [question.projects for question in south.asked] == [("drought",), ("drought",)]
    member = person("bob", BOB.issuer, projects=await south.memberships.of(BOB))
    south.policy.standing = south.memberships.standing
    assert south.policy.allows(member, "compute", "dataset:soil")
    assert not south.policy.allows(BOB, "compute", "dataset:soil")


def released_to(site: Home, principal: Principal) -> Release:
    quotas, ledger = Quotas(site.registry), Ledger(site.registry)
    egress = {"soil": Egress(tier="open")}
    return Release(site.policy, ledger, quotas, Audit(None), principal, egress, {})


async def test_what_ended_is_said(
    north: Home, south: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bob(north.projects)
    member = person("bob", BOB.issuer, projects=await south.memberships.of(BOB))
    south.policy.standing = south.memberships.standing
    release = released_to(south, member)
    release.require()
    monkeypatch.setattr(south.memberships, "_still", lambda *about: False)
    with pytest.raises(NotPermitted, match="members of drought@north") as error:
        release.require()
    assert "revoked" not in str(error.value)


def test_a_grant_that_is_revoked_is_said_to_be(south: Home) -> None:
    granted = south.policy.add("user:ada", ["compute"], ["dataset:soil"], by="test")
    ada = person("ada", south.config.token_issuer)
    release = released_to(south, ada)
    release.require()
    south.policy.revoke(granted.id)
    with pytest.raises(NotPermitted, match="the grant was revoked"):
        release.require()


async def test_own_projects_need_nobody(north: Home, south: Home) -> None:
    with_bob(north.projects)
    assert await north.memberships.of(BOB) == ("drought@north",)
    assert north.asked == []


async def test_questions_at_the_same_time_are_one(north: Home, south: Home) -> None:
    with_bob(north.projects)
    found = await asyncio.gather(*(south.memberships.of(BOB) for _ in range(20)))
    assert set(found) == {("drought@north",)}
    assert len(south.asked) == 1


def test_what_was_revoked_is_without_effect_within_a_minute() -> None:
    # What is used at the latest was asked for this long before.
    assert memberships.KEPT_SECONDS + memberships.ASK_SECONDS < 60
    assert memberships.AGING_SECONDS < memberships.KEPT_SECONDS
    assert memberships.STATEMENT_SECONDS <= 600


async def test_what_runs_long_looks_again(
    north: Home, south: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bob(north.projects)
    member = person("bob", BOB.issuer, projects=await south.memberships.of(BOB))
    assert south.memberships.standing(member) == member
    assert len(south.asked) == 1
    monkeypatch.setattr(memberships, "AGING_SECONDS", 0.0)
    # Old enough to be asked for anew, and used until the answer is there.
    assert south.memberships.standing(member) == member
    north.projects.remove(ADA, "drought", BOB.issuer, BOB.subject)
    await async_until(
        lambda: not south.memberships.standing(member).projects, "the membership has ended"
    )
    await south.memberships.close()


async def test_an_answer_that_is_too_old_is_none(
    north: Home, south: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bob(north.projects)
    member = person("bob", BOB.issuer, projects=await south.memberships.of(BOB))
    monkeypatch.setattr(memberships, "KEPT_SECONDS", 0.0)
    assert south.memberships.standing(member).projects == ()
    north.projects.remove(ADA, "drought", BOB.issuer, BOB.subject)
    assert await south.memberships.of(BOB) == ()
    # Nobody vouched for these.
    stranger = person("x", projects=("drought@north", "flood@nowhere", "storm@south", "odd"))
    assert south.memberships.standing(stranger).projects == ()


async def test_a_peer_that_does_not_answer_has_no_members(north: Home, south: Home) -> None:
    with_bob(north.projects)

    async def fail() -> None:
        raise SiteUnavailable("It is down.", reason=Reason.UNREACHABLE)

    south.wait = fail
    assert await south.memberships.of(BOB) == ()
    # Nor is it asked again at once, whoever it is about.
    assert await south.memberships.of(BOB) == ()
    assert await south.memberships.of(EVE) == ()
    assert len(south.asked) == 1


async def test_what_was_known_ends_although_the_peer_does_not_answer(
    north: Home, south: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bob(north.projects)
    member = person("bob", BOB.issuer, projects=await south.memberships.of(BOB))

    async def fail() -> None:
        raise SiteUnavailable("It is down.", reason=Reason.UNREACHABLE)

    south.wait = fail
    assert await south.memberships.of(BOB) == ("drought@north",)
    monkeypatch.setattr(memberships, "KEPT_SECONDS", 0.0)
    assert await south.memberships.of(BOB) == ()
    assert south.memberships.standing(member).projects == ()
    assert await south.memberships.of(BOB) == ()


async def test_a_forgotten_peer_is_not_asked(north: Home, south: Home) -> None:
    with_bob(north.projects)
    south.peers.forget("north")
    assert await south.memberships.of(BOB) == ()
    assert south.asked == []


async def test_statements_are_about_one_question(north: Home, south: Home, tmp_path: Path) -> None:
    """Whatever a host or somebody on the way answers, only its own true statement counts."""
    with_bob(north.projects)
    west = Home(tmp_path / "west", "west")
    north.meet(west)
    right = {"iss": "north", "aud": "south", "issuer": BOB.issuer, "sub": "bob"}
    right["projects"] = ["drought", "admins"]  # type: ignore[assignment]

    def signed(
        kind: str = "membership+jwt", by: Home = north, seconds: float = 60.0, **claims: Any
    ):
        statement = by.signer.sign(kind, {**right, **claims}, seconds)
        return lambda answer: MembershipAnswer(statement=statement)

    wrong = [
        signed(aud="west"),
        signed(iss="south"),
        signed(sub="eve"),
        signed(issuer="urn:federated-dask:site:north"),
        signed(kind="membership-question+jwt"),
        signed(kind="at+jwt"),
        signed(by=west),
        signed(by=south),
        signed(seconds=3600.0),
        signed(projects="drought"),
        signed(projects=[1]),
        signed(projects={"drought": True}),
        lambda answer: MembershipAnswer(statement=answer.statement[:-2]),
        lambda answer: MembershipAnswer(statement=""),
    ]
    for tamper in wrong:
        south.memberships._down.clear()
        south.memberships._answers.clear()
        south.tamper = tamper
        assert await south.memberships.of(BOB) == ()
    assert len(south.asked) == len(wrong)
    south.memberships._down.clear()
    south.memberships._answers.clear()
    south.tamper = signed()
    # Of more projects than were asked for, only those count that were.
    assert await south.memberships.of(BOB) == ("drought@north",)


def asked_by(site: Home, body: bytes, **changes: Any) -> str:
    import hashlib

    kind = changes.pop("kind", "membership-question+jwt")
    claims = {
        "iss": site.config.name,
        "aud": "north",
        "for": hashlib.sha256(body).hexdigest(),
        **changes,
    }
    return site.signer.sign(kind, claims, 60.0)


def test_only_peers_are_told(north: Home, south: Home, tmp_path: Path) -> None:
    with_bob(north.projects)
    question = MembershipQuestion(issuer=BOB.issuer, subject="bob", projects=("drought",))
    body = msgspec.json.encode(question)
    assert north.memberships.answer(body, asked_by(south, body)).statement
    stranger = Home(tmp_path / "stranger", "south")
    for statement in (
        "",
        "a.b.c",
        asked_by(stranger, body),
        asked_by(south, b"another question"),
        asked_by(south, body, aud="west"),
        asked_by(south, body, iss="north"),
        asked_by(south, body, kind="peer+jwt"),
        asked_by(south, body, kind="membership+jwt"),
    ):
        with pytest.raises(NotAuthenticated):
            north.memberships.answer(body, statement)
    with pytest.raises(RequestRefused) as caught:
        north.memberships.answer(b"{}", asked_by(south, b"{}"))
    assert caught.value.reason == Reason.MALFORMED


async def test_users_of_a_peer_join_by_way_of_it(north: Home, south: Home) -> None:
    north.projects.create(ADA, "drought")
    code = north.projects.invite(ADA, "drought", 1, 60.0).code
    assert await south.memberships.of(BEN) == ()
    await south.memberships.join_at(BEN, "north", "drought", code)
    # At once: what was known before is forgotten.
    assert await south.memberships.of(BEN) == ("drought@north",)
    with pytest.raises(NotFound):
        await south.memberships.join_at(
            person("x", "urn:federated-dask:site:south"), "north", "drought", code
        )
    with pytest.raises(NotFound, match="is no peer"):
        await south.memberships.join_at(BEN, "nowhere", "drought", code)


async def test_a_peer_does_not_speak_for_users_that_a_site_knows_itself(
    north: Home, south: Home
) -> None:
    north.projects.create(ADA, "drought")
    code = north.projects.invite(ADA, "drought", 5, 60.0).code
    for known in (EVE, BOB):
        with pytest.raises(RequestRefused, match="with their own token"):
            await south.memberships.join_at(known, "north", "drought", code)
        assert north.projects.of(known.issuer, known.subject) == ()


def test_a_revoked_token_stands_for_nobody() -> None:
    revocations = Revocations(Registry(None))
    grant = Grant(id="1", to="anyone", may=("compute",), on=("*",))
    policy = Policy("north", "urn:north", [grant])
    policy.standing = lambda each: each if revocations.stands(each) else None
    assert policy.allows(EVE, "compute", "dataset:soil")
    revocations.add(EVE.issuer, "subject", "eve")
    until(lambda: not policy.allows(EVE, "compute", "dataset:soil"), "the revocation is seen")
    assert policy.allows(ADA, "compute", "dataset:soil")
