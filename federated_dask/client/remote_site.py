"""One site at an address, asked for what needs no federation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

import msgspec

from federated_dask.client import loop
from federated_dask.client.login import connection_at

__all__ = ["RemoteSite"]

T = TypeVar("T")


class RemoteSite:
    """The site at an address, asked from ordinary code.

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

    def _ask(
        self, method: str, path: str, type_: type[T], message: msgspec.Struct | None = None
    ) -> T:
        return loop.sync(self._site.ask(method, path, type_, message))

    def close(self) -> None:
        """Close the connection."""

        async def close() -> None:
            await self._site.close()
            await asyncio.sleep(0)

        loop.sync(close())
