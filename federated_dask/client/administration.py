"""Administration of a site from afar: its grants."""

from __future__ import annotations

from federated_dask.client.remote_site import RemoteSite
from federated_dask.protocol.grant_messages import (
    Grant,
    GrantAnswer,
    GrantQuestion,
    Grants,
    NewGrant,
)

__all__ = ["RemoteGrants"]


class RemoteGrants(RemoteSite):
    """Grants of the site at an address, as far as you administer them."""

    def grants(self) -> Grants:
        """List them."""
        return self._ask("GET", "/grants", Grants)

    def add(self, new: NewGrant) -> Grant:
        """Grant something."""
        return self._ask("POST", "/grants", Grant, new)

    def revoke(self, id_: str) -> Grant:
        """Take a grant back."""
        return self._ask("DELETE", f"/grants/{id_}", Grant)

    def explain(self, question: GrantQuestion) -> GrantAnswer:
        """Ask whether somebody may do something, and why."""
        return self._ask("POST", "/grants/explain", GrantAnswer, question)
