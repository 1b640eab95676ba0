"""Who asks: the bearer token of a request."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from federated_dask.protocol.messages import PROJECT_HEADER
from site_plugins.issuers import TokenVerifiers
from site_plugins.memberships import Memberships
from site_plugins.tokens import Principal

__all__ = ["CHALLENGE", "Asker", "owner_of", "principal_of"]

CHALLENGE = {"WWW-Authenticate": "Bearer"}
"""Header of every reply with status 401."""

LONGEST_PROJECT = 300

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    bearerFormat="JWT",
    description="A token of the site (`federated-dask token create`) or of one of its issuers.",
)


async def principal_of(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Principal:
    """Tell who asks; a FastAPI dependency.

    Raises
    ------
    NotAuthenticated
        If there is no token or it is not valid here.
    SiteUnavailable
        If the issuer of the token cannot be asked for its keys.
    """
    verifiers: TokenVerifiers = request.app.state.verifiers
    # More than one header of a kind is how proxies and servers are brought to disagree.
    if len(request.headers.getlist("authorization")) > 1:
        credentials = None
    principal = await verifiers.verify(None if credentials is None else credentials.credentials)
    memberships: Memberships | None = request.app.state.memberships
    if memberships is not None:
        principal = dataclasses.replace(principal, projects=await memberships.of(principal))
    project = request.headers.get(PROJECT_HEADER, "")
    if project:
        principal = dataclasses.replace(principal, project=project[:LONGEST_PROJECT])
    # The audit log names it, should the request be refused.
    request.state.principal = principal
    return principal


Asker = Annotated[Principal, Depends(principal_of)]
"""Annotation of a route's argument: the principal who asks."""


def owner_of(principal: Principal) -> str:
    """Name under which leases of a principal are kept.

    Examples
    --------
    >>> owner_of(Principal(issuer="urn:site", subject="ada", expires=0.0)).splitlines()
    ['urn:site', 'ada']
    """
    # No printable text holds a line break, so no two principals share a name.
    return f"{principal.issuer}\n{principal.subject}"
