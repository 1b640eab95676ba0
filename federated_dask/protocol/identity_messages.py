"""Messages about who asks: where to log in, projects and their members."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from federated_dask.protocol.messages import PRINTABLE, Message, Name

__all__ = ["JoinRequest", "LoginIssuer", "LoginOptions", "SiteIntroduction"]

ShownText: TypeAlias = Annotated[str, Meta(min_length=1, max_length=512, pattern=PRINTABLE)]


Pem: TypeAlias = Annotated[str, Meta(max_length=16 * 1024)]


class SiteIntroduction(Message, frozen=True, kw_only=True):
    """What a site says of itself to a new peer."""

    name: Name
    address: ShownText
    public_key: Pem
    """Verifies what it states, and its tokens."""
    ca: Pem | None = None
    """Certificates to trust for its endpoint; None for public authorities."""


class JoinRequest(SiteIntroduction, frozen=True, kw_only=True):
    """A site that was invited becomes a peer (``POST /peers``)."""

    secret: Annotated[str, Meta(max_length=128)]
    """Of the invitation."""
    statement: Annotated[str, Meta(max_length=8192)]
    """Signed by the joining site: that it is for this invitation, and to whom."""


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
