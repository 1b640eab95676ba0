"""Who may grant what: administrators see and change the grants of what they administer."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from federated_dask.errors import FederatedError, NotFound, NotPermitted, Reason, RequestRefused
from federated_dask.protocol import grant_messages as messages
from site_plugins.audit import Audit
from site_plugins.grants import Grant, check_pattern, check_recipient
from site_plugins.policy import Policy
from site_plugins.tokens import Principal

__all__ = ["Granting", "overlap"]


class Granting:
    """Shows and changes grants for a principal, or for the operator of the site.

    Parameters
    ----------
    policy : Policy
        The site's policy.
    audit : Audit
        Told of every change.
    principal : Principal or None
        Who asks; None for the operator, who may everything.
    """

    def __init__(self, policy: Policy, audit: Audit, principal: Principal | None) -> None:
        self._policy = policy
        self._audit = audit
        self._principal = principal
        self._all = policy.grants()
        self._scope = ("*",) if principal is None else self._administered(principal)

    def _administered(self, principal: Principal) -> tuple[str, ...]:
        """Patterns of what a principal administers."""
        found: list[str] = []
        for grant in self._all:
            if "admin" in grant.may:
                for pattern in grant.on:
                    if grant in self._policy.decide(principal, "admin", pattern).grants:
                        found.append(pattern)
        return tuple(dict.fromkeys(found))

    def grants(self) -> messages.Grants:
        """Give the grants that touch what the principal administers, and no more of them.

        Raises
        ------
        NotPermitted
            If it administers nothing.
        """
        self._require_scope()
        shown = []
        for grant in self._all:
            touched = tuple(
                pattern for pattern in grant.on if any(overlap(pattern, own) for own in self._scope)
            )
            if touched:
                shown.append(self._message(grant, touched))
        return messages.Grants(site=self._policy.site, grants=tuple(shown))

    def add(self, new: messages.NewGrant) -> messages.Grant:
        """Grant something.

        Raises
        ------
        RequestRefused
            If it cannot be a grant.
        NotPermitted
            If the principal does not administer all of it.
        """
        self._require_scope()
        try:
            check_recipient(new.to)
            for pattern in new.on:
                check_pattern(pattern)
        except ValueError as error:
            raise RequestRefused(
                f"{error}.", reason=Reason.INVALID_ARGUMENT, site=self._policy.site
            ) from error
        self._require_admin(new.on)
        grant = self._policy.add(new.to, new.may, new.on, by=self._by)
        self._audit.write(
            "grant_added", self._principal, by=self._by, id=grant.id, grant=str(grant)
        )
        return self._message(grant, grant.on)

    def revoke(self, id_: str) -> messages.Grant:
        """Take a grant back.

        Raises
        ------
        NotFound
            If there is none such that the principal may know of.
        NotPermitted
            If it stands in `site.toml`, or the principal does not administer all of it.
        """
        self._require_scope()
        visible = {grant.id: grant for grant in self.grants().grants}
        if id_ not in visible:
            raise NotFound(
                f"No grant {id_[:64]!r}.",
                reason=Reason.UNKNOWN_GRANT,
                site=self._policy.site,
                hint="`federated-dask grant list` shows their ids.",
            )
        [grant] = [grant for grant in self._all if grant.id == id_]
        self._require_admin(grant.on)
        if id_.startswith("site.toml:"):
            raise NotPermitted(
                f"Grant {id_} stands in site.toml.",
                reason=Reason.NOT_PERMITTED,
                site=self._policy.site,
                hint="The site's operator takes it out there and starts the site again.",
            )
        by = self._policy.made_by(id_)
        self._policy.revoke(id_)
        self._audit.write(
            "grant_revoked", self._principal, by=self._by, id=grant.id, grant=str(grant)
        )
        return self._message(grant, grant.on, by)

    def explain(self, question: messages.GrantQuestion) -> messages.GrantAnswer:
        """Say whether somebody may do something, and by which grants.

        Raises
        ------
        NotPermitted
            If the principal does not administer that resource.
        """
        self._require_scope()
        self._require_admin((question.resource,))
        who = Principal(
            issuer=question.issuer or self._policy.own_issuer,
            subject=question.subject,
            groups=question.groups,
            projects=question.projects,
            expires=0.0,
        )
        decision = self._policy.decide(who, question.action, question.resource)
        return messages.GrantAnswer(
            allowed=decision.allowed,
            grants=tuple(self._message(grant, grant.on) for grant in decision.grants),
            embargoed=self._policy.is_embargoed(question.resource),
        )

    @property
    def _by(self) -> str:
        if self._principal is None:
            return "the operator"
        return f"{self._principal.subject} ({self._principal.issuer})"

    def _message(self, grant: Grant, on: Iterable[str], by: str | None = None) -> messages.Grant:
        by = by or self._policy.made_by(grant.id) or "site.toml"
        return messages.Grant(id=grant.id, to=grant.to, may=grant.may, on=tuple(on), by=by)

    def _require_scope(self) -> None:
        if not self._scope:
            raise self._refusal("You administer nothing at this site.")

    def _require_admin(self, patterns: Iterable[str]) -> None:
        for pattern in patterns:
            if self._principal is not None and not self._policy.allows(
                self._principal, "admin", pattern
            ):
                raise self._refusal(f"You do not administer all of {pattern[:128]!r}.")

    def _refusal(self, message: str) -> FederatedError:
        return NotPermitted(
            message,
            reason=Reason.NOT_PERMITTED,
            site=self._policy.site,
            hint="Ask the site's operator, or somebody with `admin` on it.",
        )


def overlap(one: str, other: str) -> bool:
    """Say whether anything fits two patterns.

    Examples
    --------
    >>> overlap("dataset:soil-*", "dataset:*-2024"), overlap("dataset:a*", "dataset:b*")
    (True, False)
    """

    @cache
    def fits(i: int, j: int) -> bool:
        if i == len(one) and j == len(other):
            return True
        if i < len(one) and one[i] == "*":
            return fits(i + 1, j) or (j < len(other) and fits(i, j + 1))
        if j < len(other) and other[j] == "*":
            return fits(i, j + 1) or (i < len(one) and fits(i + 1, j))
        return i < len(one) and j < len(other) and one[i] == other[j] and fits(i + 1, j + 1)

    return fits(0, 0)
