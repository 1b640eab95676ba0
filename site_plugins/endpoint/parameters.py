"""Parameters that several routes take."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Path

__all__ = ["DatasetName", "PeerStatement"]

DatasetName = Annotated[str, Path(description="Name of the dataset, as in the catalogue.")]


def _statement(
    authorization: Annotated[
        str, Header(description="`Bearer` and the peer's signed statement of who it is.")
    ] = "",
) -> str:
    scheme, _, statement = authorization.partition(" ")
    return statement if scheme.lower() == "bearer" else ""


PeerStatement = Annotated[str, Depends(_statement)]
"""What a peer states of itself; empty where it states nothing."""
