"""Messages about grants, quotas and what has been used of them."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from federated_dask.protocol.messages import Message, Name

__all__ = [
    "Grant",
    "GrantAnswer",
    "GrantQuestion",
    "Grants",
    "NewGrant",
    "Usage",
    "UsageLine",
]

Action: TypeAlias = Literal["describe", "compute", "export", "call", "publish", "code", "admin"]
Recipient: TypeAlias = Annotated[str, Meta(min_length=1, max_length=1200)]
Pattern: TypeAlias = Annotated[str, Meta(min_length=1, max_length=300)]
Text: TypeAlias = Annotated[str, Meta(max_length=512)]


class NewGrant(Message, frozen=True, kw_only=True):
    """What is to be granted (``POST /grants``)."""

    to: Recipient
    """``anyone``, ``user:SUBJECT``, ``user:ISSUER SUBJECT``, ``group:G``, ``project:NAME@SITE``."""
    may: Annotated[tuple[Action, ...], Meta(min_length=1, max_length=7)]
    on: Annotated[tuple[Pattern, ...], Meta(min_length=1, max_length=100)]
    """Such as ``dataset:soil-*``."""


class Grant(Message, frozen=True, kw_only=True):
    """A grant that holds at a site."""

    id: str
    to: str
    may: tuple[str, ...]
    on: tuple[str, ...]
    by: str = "site.toml"
    """Who made it."""


class Grants(Message, frozen=True, kw_only=True):
    """Grants of a site that who asks may know of (``GET /grants``)."""

    site: Name
    grants: tuple[Grant, ...] = ()


class GrantQuestion(Message, frozen=True, kw_only=True):
    """Whether somebody may do something (``POST /grants/explain``)."""

    subject: Annotated[str, Meta(min_length=1, max_length=512)]
    issuer: Text = ""
    """That of the site's own tokens by default."""
    groups: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    projects: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    action: Action
    resource: Pattern


class GrantAnswer(Message, frozen=True, kw_only=True):
    """Whether it is allowed, and which grants decided."""

    allowed: bool
    grants: tuple[Grant, ...] = ()
    embargoed: bool = False
    """Whether the dataset is, for now, for those to whom it was granted by its name."""


class UsageLine(Message, frozen=True, kw_only=True):
    """One quota, and what is used of it."""

    name: str
    used: float
    limit: float
    resets: str | None = None
    """When it begins anew, in UTC; None where it counts what runs now."""


class Usage(Message, frozen=True, kw_only=True):
    """What who asks uses of a site, and may use (``GET /usage``)."""

    site: Name
    jobs_today: int = 0
    lines: tuple[UsageLine, ...] = ()
