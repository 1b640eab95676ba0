"""Routes about who asks: where to log in, and how sites become peers."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from federated_dask.errors import NotAuthenticated, Reason
from federated_dask.protocol.identity_messages import (
    JoinRequest,
    LoginIssuer,
    LoginOptions,
    SiteIntroduction,
)
from site_plugins.config import IssuerSection
from site_plugins.endpoint.json_messages import json_request
from site_plugins.endpoint.schemas import failures, json_body, json_of
from site_plugins.invitations import Invitations

__all__ = ["login_options", "router"]

T = TypeVar("T")

router = APIRouter(tags=["identity"])


def login_options(site: str, issuers: tuple[IssuerSection, ...]) -> LoginOptions:
    """Say where users of a site may log in: at issuers with a client for the device flow."""
    return LoginOptions(
        site=site,
        issuers=tuple(
            LoginIssuer(
                name=issuer.name,
                url=issuer.url,
                client_id=issuer.client_id,
                audience=issuer.audience,
                scopes=issuer.scopes,
            )
            for issuer in issuers
            if issuer.client_id is not None
        ),
    )


@router.get(
    "/login",
    summary="Where to log in",
    responses=json_of(LoginOptions),
    response_class=Response,
)
async def login(request: Request) -> Response:
    """Name the OpenID providers at which users log in for this site. Needs no token."""
    options: LoginOptions = request.app.state.login_options
    return Response(msgspec.json.encode(options), media_type="application/json")


@router.post(
    "/peers",
    summary="Become a peer",
    openapi_extra=json_body(JoinRequest),
    responses={
        **json_of(SiteIntroduction),
        **failures(Reason.TOKEN_INVALID, Reason.INVALID_ARGUMENT, Reason.MALFORMED),
    },
    response_class=Response,
)
async def join(request: Request) -> Response:
    """Become a peer of this site by an invitation. For sites; needs no token but a code."""
    invitations: Invitations | None = request.app.state.invitations
    if invitations is None:
        raise NotAuthenticated("This site invites nobody.", reason=Reason.TOKEN_INVALID)
    asked = await json_request(request, JoinRequest)
    introduction = await asyncio.to_thread(invitations.accept, asked)
    request.app.state.audit.write("peer_joined", None, peer=asked.name, address=asked.address)
    return Response(msgspec.json.encode(introduction), media_type="application/json")
