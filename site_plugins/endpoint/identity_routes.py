"""Routes about who asks: where to log in."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from federated_dask.protocol.identity_messages import LoginIssuer, LoginOptions
from site_plugins.config import IssuerSection
from site_plugins.endpoint.schemas import json_of

__all__ = ["login_options", "router"]

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
