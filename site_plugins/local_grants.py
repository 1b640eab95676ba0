"""Grants of a site on this machine, for its operator."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from federated_dask.protocol.grant_messages import (
    Grant,
    GrantAnswer,
    GrantQuestion,
    Grants,
    NewGrant,
)
from site_plugins.audit import AUDIT_LOG, Audit
from site_plugins.config import load_config
from site_plugins.granting import Granting
from site_plugins.policy import Policy
from site_plugins.registry import REGISTRY, Registry

__all__ = ["LocalGrants"]


class LocalGrants:
    """Shows and changes the grants of a site, whether it runs or not.

    Parameters
    ----------
    path : Path
        Its `site.toml`.

    Raises
    ------
    ConfigurationError
        If that cannot be used, or the state of the site cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        config = load_config(path)
        self._registry = Registry(config.site.state / REGISTRY)
        self._audit = Audit(config.site.state / AUDIT_LOG)
        self._policy = Policy.from_config(config, self._registry)

        def embargo_of(name: str) -> date | None:
            section = config.datasets.get(name)
            return None if section is None else section.embargo

        self._policy.embargo_of = embargo_of

    def _granting(self) -> Granting:
        return Granting(self._policy, self._audit, None)

    def grants(self) -> Grants:
        """List all grants."""
        return self._granting().grants()

    def add(self, new: NewGrant) -> Grant:
        """Grant something."""
        return self._granting().add(new)

    def revoke(self, id_: str) -> Grant:
        """Take a grant back."""
        return self._granting().revoke(id_)

    def explain(self, question: GrantQuestion) -> GrantAnswer:
        """Say whether somebody may do something, and why."""
        return self._granting().explain(question)

    def close(self) -> None:
        """Close the state of the site."""
        self._audit.close()
        self._registry.close()
