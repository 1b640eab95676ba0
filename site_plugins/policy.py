"""The policy of a site: what each principal may do, decided by Cedar from its grants.

::

    site.toml ──► grants ─┐
                          ├─► Cedar policies ─► decision, kept per (principal, action, resource)
    registry  ──► grants ─┘        until a grant changes, here or in another process

Nothing is allowed that no grant allows.  What a principal may not describe does
not exist for it: it is told the same as of a name that nobody has used.
"""

from __future__ import annotations

import datetime
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cedarpy

from federated_dask.errors import FederatedError, NotFound, NotPermitted, Reason
from site_plugins.grants import (
    Grant,
    cedar_policies,
    check_action,
    check_pattern,
    check_recipient,
    names_of,
    user_entity,
)
from site_plugins.registry import Registry

if TYPE_CHECKING:
    from site_plugins.config import SiteConfig
    from site_plugins.tokens import Principal

__all__ = ["Decision", "Policy", "unknown"]

LOOK_SECONDS = 0.5
"""How often to look whether another process changed a grant."""
MOST_KEPT = 100_000
TABLE = """
CREATE TABLE IF NOT EXISTS grants (
    id TEXT PRIMARY KEY,
    recipient TEXT NOT NULL,
    may TEXT NOT NULL,
    patterns TEXT NOT NULL,
    made_by TEXT NOT NULL,
    made_at REAL NOT NULL
) STRICT
"""

UNKNOWN = {
    "dataset": (Reason.UNKNOWN_DATASET, "fed.datasets or `federated-dask ls SITE` lists them."),
    "function": (Reason.UNKNOWN_FUNCTION, "fed.functions or `federated-dask ls SITE` lists them."),
    "project": (Reason.UNKNOWN_PROJECT, "Ask its owner for an invitation."),
}


def unknown(resource: str, site: str) -> FederatedError:
    """Make the one error for a resource that is not there, or not for this principal.

    Examples
    --------
    >>> print(unknown("dataset:soil", "north"))
    [north] No dataset 'soil'. ... (unknown_dataset)
    """
    kind, _, name = resource.partition(":")
    if kind not in UNKNOWN:
        return NotPermitted(
            "The site is not open to you.",
            reason=Reason.NOT_PERMITTED,
            site=site,
            hint="Ask the site's operator for a grant.",
        )
    reason, hint = UNKNOWN[kind]
    return NotFound(f"No {kind} {name[:128]!r}.", reason=reason, site=site, hint=hint)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether something is allowed, and by which grants."""

    allowed: bool
    grants: tuple[Grant, ...] = ()


class Policy:
    """Decides what principals may do at a site.

    Parameters
    ----------
    site : str
        Name of the site.
    own_issuer : str
        Issuer of the site's own tokens, which ``user:SUBJECT`` means.
    grants : sequence of Grant, optional
        Those of `site.toml`.
    registry : Registry, optional
        Where grants made at run time are kept.
    embargo_of : callable, optional
        Tells until which day a dataset is for those only to whom it was granted
        by its name.
    today : callable, optional
        Tells the day.

    Examples
    --------
    >>> from site_plugins.tokens import Principal
    >>> grant = Grant(id="1", to="group:climate", may=("compute",), on=("dataset:soil-*",))
    >>> policy = Policy("north", "urn:north", [grant])
    >>> ada = Principal(issuer="urn:north", subject="ada", groups=("climate",), expires=0.0)
    >>> policy.allows(ada, "compute", "dataset:soil-1"), policy.allows(ada, "export", "dataset:a1b")
    (True, False)
    >>> policy.require(ada, "compute", "dataset:a1b")
    Traceback (most recent call last):
    federated_dask.errors.NotFound: [north] No dataset 'a1b'. ... (unknown_dataset)
    """

    def __init__(
        self,
        site: str,
        own_issuer: str,
        grants: Sequence[Grant] = (),
        registry: Registry | None = None,
        *,
        embargo_of: Callable[[str], datetime.date | None] = lambda name: None,
        today: Callable[[], datetime.date] = lambda: datetime.datetime.now(datetime.UTC).date(),
    ) -> None:
        self.site = site
        self.own_issuer = own_issuer
        self.embargo_of = embargo_of
        self._today = today
        self.standing: Callable[[Principal], Principal | None] = lambda principal: principal
        """Tells a principal as it is by now: projects may have been left since it asked, and a
        token been revoked, which makes it None."""
        self._static = tuple(grants)
        self._registry = Registry(None) if registry is None else registry
        self._registry.create(TABLE)
        self._lock = threading.Lock()
        self._version: tuple[int, int] | None = None
        self._looked = 0.0
        self._kept: dict[tuple[Any, ...], bool] = {}
        self._grants: dict[str, Grant] = {}
        self._policies = cedarpy.PolicySet.from_json_str(_set_of({}))
        self._refresh(force=True)

    @classmethod
    def from_config(cls, config: SiteConfig, registry: Registry) -> Policy:
        """Make the policy of a site from its `site.toml` and its registry."""
        grants = [
            Grant(id=f"site.toml:{number}", to=section.to, may=section.may, on=section.on)
            for number, section in enumerate(config.grants, start=1)
        ]
        return cls(config.name, config.token_issuer, grants, registry)

    # Deciding

    def allows(self, principal: Principal, action: str, resource: str) -> bool:
        """Say whether a principal may do something; takes microseconds when asked again."""
        self._refresh()
        standing = self.standing(principal)
        if standing is None:
            return False
        principal = standing
        # When an embargo is set or ends, what was decided before does not count.
        key = (
            self.is_embargoed(resource),
            principal.issuer,
            principal.subject,
            principal.groups,
            principal.projects,
            action,
            resource,
        )
        # A change of grants begins another dict; what was decided before it stays in this one.
        kept = self._kept
        known = kept.get(key)
        if known is None:
            if len(kept) >= MOST_KEPT:
                kept.clear()
            known = kept[key] = self.decide(principal, action, resource).allowed
        return known

    def require(self, principal: Principal, action: str, resource: str) -> None:
        """Raise unless a principal may do something.

        Raises
        ------
        NotFound
            If it may not even know that there is such a thing.
        NotPermitted
            If it may know, and not do this.
        """
        # Both are asked whatever the first says, so that the time tells nothing.
        visible = self.allows(principal, "describe", resource)
        allowed = self.allows(principal, action, resource)
        if not visible:
            raise unknown(resource, self.site)
        if not allowed:
            raise NotPermitted(
                f"You may not {action} with {resource.replace(':', ' ', 1)}.",
                reason=Reason.NOT_PERMITTED,
                site=self.site,
                hint="Ask the site's operator for a grant: "
                f"`federated-dask grant add WHO {action} {resource}`.",
            )

    def decide(self, principal: Principal, action: str, resource: str) -> Decision:
        """Decide anew, and say by which grants."""
        self._refresh()
        user = user_entity(principal.issuer, principal.subject)
        parents = [{"type": "Group", "id": group} for group in principal.groups]
        parents += [{"type": "Project", "id": project} for project in principal.projects]
        entity = {"type": "Resource", "id": resource}
        attributes = {"name": resource, "embargoed": self.is_embargoed(resource)}
        answer = cedarpy.is_authorized(
            {
                "principal": user,
                "action": {"type": "Action", "id": action},
                "resource": entity,
                "context": {},
            },
            self._policies,
            [
                {"uid": user, "attrs": {}, "parents": parents},
                {"uid": entity, "attrs": attributes, "parents": []},
            ],
        )
        if not answer.allowed or answer.diagnostics.errors:
            # A policy that cannot be evaluated allows nothing.
            return Decision(allowed=False)
        ids = dict.fromkeys(name.partition(" ")[0] for name in answer.diagnostics.reasons)
        return Decision(
            allowed=True,
            grants=tuple(self._grants[each] for each in sorted(ids) if each in self._grants),
        )

    def left(self, principal: Principal, action: str, resource: str) -> list[str]:
        """Tell the projects that a principal left meanwhile and by which it was allowed something.

        None of them, where it is something else that ended.
        """
        standing = self.standing(principal)
        ended = set(principal.projects) - set(() if standing is None else standing.projects)
        grants = self.decide(principal, action, resource).grants
        return sorted(
            project for project in ended if f"project:{project}" in {g.to for g in grants}
        )

    def is_embargoed(self, resource: str) -> bool:
        """Say whether a dataset is, for now, for those to whom it was granted by its name."""
        kind, _, name = resource.partition(":")
        until = self.embargo_of(name) if kind == "dataset" else None
        return until is not None and self._today() < until

    def relevant(self, principal: Principal) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Tell the groups and projects of a principal to which anything was granted here."""
        self._refresh()
        grants = list(self._grants.values())
        groups, projects = names_of(grants, "group"), names_of(grants, "project")
        return (
            tuple(group for group in principal.groups if group in groups),
            tuple(project for project in principal.projects if project in projects),
        )

    def projects(self) -> frozenset[str]:
        """Tell the projects, as ``name@site``, to which anything was granted here."""
        self._refresh()
        return frozenset(names_of(list(self._grants.values()), "project"))

    # Grants

    def grants(self) -> tuple[Grant, ...]:
        """All grants that hold now."""
        self._refresh(force=True)
        return tuple(self._grants.values())

    def add(self, to: str, may: Iterable[str], on: Iterable[str], *, by: str) -> Grant:
        """Grant something at run time; holds for all endpoint processes within a second.

        Raises
        ------
        ValueError
            If recipient, actions or patterns cannot be ones.
        """
        grant = Grant(
            id=secrets.token_hex(4),
            to=check_recipient(to),
            may=tuple(map(check_action, may)),
            on=tuple(map(check_pattern, on)),
        )
        if not grant.may or not grant.on:
            raise ValueError("a grant has at least one action and one resource")
        with self._registry.transaction() as connection:
            connection.execute(
                "INSERT INTO grants VALUES (?, ?, ?, ?, ?, ?)",
                (grant.id, grant.to, json.dumps(grant.may), json.dumps(grant.on), by, time.time()),
            )
        self._refresh(force=True)
        return grant

    def revoke(self, id_: str) -> Grant | None:
        """Take a grant back that was made at run time; tell which, or None where there is none."""
        found = self._grants.get(id_)
        with self._registry.transaction() as connection:
            gone = connection.execute("DELETE FROM grants WHERE id = ?", (id_,)).rowcount
        self._refresh(force=True)
        return found if gone else None

    def made_by(self, id_: str) -> str | None:
        """Tell who made a grant at run time."""
        rows = self._registry.rows("SELECT made_by FROM grants WHERE id = ?", (id_,))
        return str(rows[0][0]) if rows else None

    def _refresh(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._looked < LOOK_SECONDS:
            return
        with self._lock:
            self._looked = now
            version = self._registry.version()
            if version != self._version:
                rows = self._registry.rows(
                    "SELECT id, recipient, may, patterns FROM grants ORDER BY made_at, id"
                )
                made = [
                    Grant(id=id_, to=to, may=tuple(json.loads(may)), on=tuple(json.loads(on)))
                    for id_, to, may, on in rows
                ]
                grants = {grant.id: grant for grant in (*self._static, *made)}
                if grants != self._grants or self._version is None:
                    self._policies = cedarpy.PolicySet.from_json_str(
                        _set_of(
                            {
                                name: policy
                                for grant in grants.values()
                                for name, policy in cedar_policies(grant, self.own_issuer)
                            }
                        )
                    )
                    self._grants = grants
                    self._kept = {}
                self._version = version


def _set_of(policies: dict[str, Any]) -> str:
    return json.dumps({"staticPolicies": policies, "templates": {}, "templateLinks": []})
