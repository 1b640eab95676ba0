"""Messages about who asks: where to log in, projects and their members."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from federated_dask.protocol.messages import PRINTABLE, Message, Name

__all__ = ["LoginIssuer", "LoginOptions"]

ShownText: TypeAlias = Annotated[str, Meta(min_length=1, max_length=512, pattern=PRINTABLE)]


class LoginIssuer(Message, frozen=True, kw_only=True):
    """An OpenID provider whose tokens a site accepts."""

    name: Name
    url: ShownText
    client_id: ShownText
    """Of a public client that may use the device flow."""
    audience: ShownText
    """What a token has to be for."""
    scopes: Annotated[tuple[ShownText, ...], Meta(max_length=32)] = ()


class LoginOptions(Message, frozen=True, kw_only=True):
    """Where users of a site may log in."""

    site: Name
    issuers: Annotated[tuple[LoginIssuer, ...], Meta(max_length=64)] = ()
