"""Messages about projects, their members, and what a site states of them to its peers."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from federated_dask.protocol.identity_messages import ShownText
from federated_dask.protocol.messages import Message, Name

__all__ = [
    "Invited",
    "Member",
    "MemberRef",
    "MembershipAnswer",
    "MembershipQuestion",
    "NewInvitation",
    "NewProject",
    "Project",
    "ProjectCode",
    "Projects",
]

QualifiedName: TypeAlias = Annotated[
    str, Meta(max_length=257, pattern=r"^[A-Za-z0-9_.\-]{1,128}@[A-Za-z0-9_.\-]{1,128}$")
]


class NewProject(Message, frozen=True, kw_only=True):
    """A project to be made (``POST /projects``)."""

    name: Name


class Member(Message, frozen=True, kw_only=True):
    """A member of a project."""

    issuer: ShownText
    subject: ShownText
    owner: bool = False
    since: float
    """Seconds since the epoch."""


class Project(Message, frozen=True, kw_only=True):
    """A project of a site, as its members see it."""

    name: QualifiedName
    members: tuple[Member, ...] = ()


class Projects(Message, frozen=True, kw_only=True):
    """The projects of a site of which one is a member."""

    site: Name
    projects: tuple[Project, ...]


class NewInvitation(Message, frozen=True, kw_only=True):
    """A link by which others join is wanted (``POST /projects/{name}/invitations``)."""

    uses: Annotated[int, Meta(ge=1, le=1000)] = 1
    lifetime: Annotated[float, Meta(gt=0, le=90 * 86_400.0)] = 7 * 86_400.0
    """Seconds."""


class Invited(Message, frozen=True, kw_only=True):
    """A code by which others join; see `federated_dask.client.projects.link_of`."""

    project: QualifiedName
    code: Annotated[str, Meta(max_length=128)]
    """Whoever has it may join, as often as was said."""
    expires: float
    """Seconds since the epoch."""


class ProjectCode(Message, frozen=True, kw_only=True):
    """What a link holds (``POST /projects/join``)."""

    project: QualifiedName
    code: Annotated[str, Meta(max_length=128)]


class MemberRef(Message, frozen=True, kw_only=True):
    """Who is to be removed (``POST /projects/{name}/removals``)."""

    issuer: ShownText
    subject: ShownText


class MembershipQuestion(Message, frozen=True, kw_only=True):
    """A peer asks of which projects of this site somebody is a member, or has them join."""

    issuer: ShownText
    subject: ShownText
    projects: Annotated[tuple[Name, ...], Meta(max_length=1000)] = ()
    code: Annotated[str, Meta(max_length=128)] = ""
    """Of an invitation, where the peer's user joins by it; else empty."""


class MembershipAnswer(Message, frozen=True, kw_only=True):
    """What the site states, signed."""

    statement: Annotated[str, Meta(max_length=64 * 1024)]
