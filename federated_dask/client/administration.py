"""Administration of a site from afar: its grants."""

from __future__ import annotations

import asyncio
from pathlib import Path

from federated_dask.client import loop
from federated_dask.client.login import connection_at
from federated_dask.protocol.grant_messages import (
    Grant,
    GrantAnswer,
    GrantQuestion,
    Grants,
    NewGrant,
)

__all__ = ["RemoteGrants"]


class RemoteGrants:
    """Grants of the site at an address, as far as you administer them.

    Parameters
    ----------
    address : str
        Endpoint of the site.
    token : str, optional
        By default that of `federated-dask login`.
    verify : bool or Path, optional
        Certificate authorities to trust; by default those of the login.
    """

    def __init__(
        self, address: str, token: str | None = None, verify: bool | Path | None = None
    ) -> None:
        self._site = connection_at(address, token, verify)

    def grants(self) -> Grants:
        """List them."""
        return loop.sync(self._site.ask("GET", "/grants", Grants))

    def add(self, new: NewGrant) -> Grant:
        """Grant something."""
        return loop.sync(self._site.ask("POST", "/grants", Grant, new))

    def revoke(self, id_: str) -> Grant:
        """Take a grant back."""
        return loop.sync(self._site.ask("DELETE", f"/grants/{id_}", Grant))

    def explain(self, question: GrantQuestion) -> GrantAnswer:
        """Ask whether somebody may do something, and why."""
        return loop.sync(self._site.ask("POST", "/grants/explain", GrantAnswer, question))

    def close(self) -> None:
        """Close the connection."""

        async def close() -> None:
            await self._site.close()
            await asyncio.sleep(0)

        loop.sync(close())
