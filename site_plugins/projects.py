"""Projects that are at home at a site: named groups that users make and lead themselves.

A project is called ``name@site``.  Its members may be of any issuer; they come by a
link, of which the site keeps a digest.  Whoever is no member of a project is told
the same as of one that does not exist.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from federated_dask.errors import FederatedError, NotFound, NotPermitted, Reason, RequestRefused
from federated_dask.protocol.project_messages import Invited, Member, Project
from site_plugins.registry import Registry

if TYPE_CHECKING:
    from site_plugins.policy import Policy
    from site_plugins.tokens import Principal

__all__ = ["ProjectStore", "fits"]

TABLES = (
    """
    CREATE TABLE IF NOT EXISTS projects (
        name TEXT PRIMARY KEY,
        made_by TEXT NOT NULL,
        made_at REAL NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE IF NOT EXISTS members (
        project TEXT NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
        issuer TEXT NOT NULL,
        subject TEXT NOT NULL,
        owner INTEGER NOT NULL,
        since REAL NOT NULL,
        PRIMARY KEY (project, issuer, subject)
    ) STRICT
    """,
    "CREATE INDEX IF NOT EXISTS members_by_person ON members (issuer, subject)",
    """
    CREATE TABLE IF NOT EXISTS project_invitations (
        digest TEXT PRIMARY KEY,
        project TEXT NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
        expires REAL NOT NULL,
        uses INTEGER NOT NULL
    ) STRICT
    """,
)
CODE_BYTES = 18
MOST_MEMBERS = 10_000
MOST_PROJECTS = 100
"""That one person may have made and still lead."""


def fits(recipient: str, principal: Principal, own_issuer: str) -> bool:
    """Say whether a recipient as in grants is this principal, or a group of theirs.

    Examples
    --------
    >>> from site_plugins.tokens import Principal
    >>> ada = Principal(issuer="urn:north", subject="ada", groups=("climate",), expires=0.0)
    >>> [fits(each, ada, "urn:north") for each in ("anyone", "user:ada", "group:soil")]
    [True, True, False]
    """
    kind, _, name = recipient.partition(":")
    if kind == "user":
        return (principal.issuer == own_issuer and name == principal.subject) or (
            name == f"{principal.issuer} {principal.subject}"
        )
    return kind == "anyone" or (kind == "group" and name in principal.groups)


class ProjectStore:
    """The projects of a site.

    Parameters
    ----------
    policy : Policy
        Says who administers projects.
    registry : Registry
        Where they are kept.
    may_create : iterable of str, optional
        Recipients, as in grants, who may make projects.
    """

    def __init__(self, policy: Policy, registry: Registry, may_create: Iterable[str] = ()) -> None:
        self._policy = policy
        self._registry = registry
        self._may_create = tuple(may_create)
        registry.create(*TABLES)

    @property
    def site(self) -> str:
        """Name of the site."""
        return self._policy.site

    # Of whom

    def of(self, issuer: str, subject: str) -> tuple[str, ...]:
        """Tell the projects of somebody, without the site's name."""
        rows = self._registry.rows(
            "SELECT project FROM members WHERE issuer = ? AND subject = ? ORDER BY project",
            (issuer, subject),
        )
        return tuple(name for (name,) in rows)

    def seen_by(self, principal: Principal, names: Iterable[str] | None = None) -> list[Project]:
        """Give the projects of a principal, with their members."""
        own = self.of(principal.issuer, principal.subject) if names is None else names
        return [Project(name=f"{name}@{self.site}", members=self._members(name)) for name in own]

    def members(self, principal: Principal, name: str) -> Project:
        """Give a project with its members.

        Raises
        ------
        NotFound
            If there is no such project, or the principal is no member.
        """
        self._require(principal, name, owner=False)
        [project] = self.seen_by(principal, [name])
        return project

    def _members(self, name: str) -> tuple[Member, ...]:
        rows = self._registry.rows(
            "SELECT issuer, subject, owner, since FROM members WHERE project = ?"
            " ORDER BY since, issuer, subject",
            (name,),
        )
        return tuple(
            Member(issuer=issuer, subject=subject, owner=bool(owner), since=since)
            for issuer, subject, owner, since in rows
        )

    # Changes

    def create(self, principal: Principal, name: str) -> Project:
        """Make a project, led by the principal.

        Raises
        ------
        NotPermitted
            If the principal may make none, or the name is taken.
        """
        listed = any(fits(each, principal, self._policy.own_issuer) for each in self._may_create)
        if not listed and not self._policy.allows(principal, "admin", f"project:{name}"):
            raise self._not_permitted(
                "You may not make projects.", "Ask the site's operator: [projects] may_create."
            )
        who = (principal.issuer, principal.subject)
        try:
            with self._registry.transaction() as connection:
                [(led,)] = connection.execute(
                    "SELECT count(*) FROM members WHERE issuer = ? AND subject = ? AND owner", who
                ).fetchall()
                if led >= MOST_PROJECTS:
                    raise self._not_permitted(
                        f"You lead {led} projects, and that is the limit.", "Leave some first."
                    )
                now = time.time()
                made_by = f"{principal.subject} ({principal.issuer})"
                connection.execute("INSERT INTO projects VALUES (?, ?, ?)", (name, made_by, now))
                connection.execute("INSERT INTO members VALUES (?, ?, ?, 1, ?)", (name, *who, now))
        except sqlite3.IntegrityError:
            raise self._not_permitted(
                f"The name {name!r} is taken.", "Choose another name."
            ) from None
        return self.members(principal, name)

    def invite(self, principal: Principal, name: str, uses: int, lifetime: float) -> Invited:
        """Make a code by which others join a project.

        Raises
        ------
        NotFound, NotPermitted
            If the principal does not lead the project.
        """
        self._require(principal, name, owner=True)
        code = secrets.token_urlsafe(CODE_BYTES)
        now = time.time()
        with self._registry.transaction() as connection:
            connection.execute("DELETE FROM project_invitations WHERE expires < ?", (now,))
            connection.execute(
                "INSERT INTO project_invitations VALUES (?, ?, ?, ?)",
                (_digest(code), name, now + lifetime, uses),
            )
        return Invited(project=f"{name}@{self.site}", code=code, expires=now + lifetime)

    def join(self, issuer: str, subject: str, name: str, code: str) -> None:
        """Make somebody a member by a code; whoever is one already does not use it up.

        Raises
        ------
        NotFound
            If the code does not hold for that project.
        """
        digest = _digest(code)
        # Read only: strangers do not get to make the site write, or wait for who writes.
        found = self._registry.rows(
            "SELECT project, expires FROM project_invitations WHERE digest = ? AND uses > 0",
            (digest,),
        )
        if [row[0] for row in found if row[1] > time.time()] != [name]:
            raise self._no_invitation()
        with self._registry.transaction() as connection:
            who = (name, issuer, subject)
            [(count,)] = connection.execute(
                "SELECT count(*) FROM members WHERE project = ?", (name,)
            ).fetchall()
            if count >= MOST_MEMBERS:
                raise RequestRefused(
                    "The project has as many members as it may have.",
                    reason=Reason.LIMIT_EXCEEDED,
                    site=self.site,
                )
            added = connection.execute(
                "INSERT OR IGNORE INTO members VALUES (?, ?, ?, 0, ?)", (*who, time.time())
            ).rowcount
            if added:
                used = connection.execute(
                    "UPDATE project_invitations SET uses = uses - 1"
                    " WHERE digest = ? AND uses > 0 AND expires > ?",
                    (digest, time.time()),
                ).rowcount
                if not used:
                    raise self._no_invitation()

    def remove(self, principal: Principal, name: str, issuer: str, subject: str) -> None:
        """Remove a member; anybody may remove themselves.

        With its last member a project ends, and its name is never used again: grants
        to it may be anywhere.

        Raises
        ------
        NotFound, NotPermitted
            If there is no such project or member, or the principal does not lead it,
            or nobody would.
        """
        oneself = (issuer, subject) == (principal.issuer, principal.subject)
        self._require(principal, name, owner=not oneself)
        with self._registry.transaction() as connection:
            gone = connection.execute(
                "DELETE FROM members WHERE project = ? AND issuer = ? AND subject = ?",
                (name, issuer, subject),
            ).rowcount
            if not gone:
                raise NotFound(
                    "There is no such member.",
                    reason=Reason.UNKNOWN_PROJECT,
                    site=self.site,
                    hint="`federated-dask project members` lists them, with their issuers.",
                )
            [(left, leading)] = connection.execute(
                "SELECT count(*), coalesce(sum(owner), 0) FROM members WHERE project = ?", (name,)
            ).fetchall()
            if left and not leading:
                raise self._not_permitted(
                    "Nobody would lead the project.", "Remove the other members first."
                )
            if not left:
                connection.execute("DELETE FROM project_invitations WHERE project = ?", (name,))

    def _require(self, principal: Principal, name: str, *, owner: bool) -> None:
        found = self._registry.rows(
            "SELECT owner FROM members WHERE project = ? AND issuer = ? AND subject = ?",
            (name, principal.issuer, principal.subject),
        )
        there = self._registry.rows("SELECT 1 FROM projects WHERE name = ?", (name,))
        administers = self._policy.allows(principal, "admin", f"project:{name}")
        if not there or not (found or administers):
            raise NotFound(
                f"No project {name[:128]!r}.",
                reason=Reason.UNKNOWN_PROJECT,
                site=self.site,
                hint="Ask one of its owners for an invitation.",
            )
        if owner and not administers and not found[0][0]:
            raise self._not_permitted("You do not lead the project.", "Ask one of its owners.")

    def _no_invitation(self) -> NotFound:
        return NotFound(
            "The invitation does not hold, or not any more.",
            reason=Reason.UNKNOWN_PROJECT,
            site=self.site,
            hint="Ask for a new one.",
        )

    def _not_permitted(self, message: str, hint: str) -> FederatedError:
        return NotPermitted(message, reason=Reason.NOT_PERMITTED, site=self.site, hint=hint)


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
