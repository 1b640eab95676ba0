"""Routes of grants, for those who administer something."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from federated_dask.errors import Reason
from federated_dask.protocol.grant_messages import (
    Grant,
    GrantAnswer,
    GrantQuestion,
    Grants,
    NewGrant,
)
from site_plugins.endpoint.authentication import Asker
from site_plugins.endpoint.json_messages import json_reply, json_request
from site_plugins.endpoint.schemas import failures, json_body, json_of
from site_plugins.granting import Granting
from site_plugins.tokens import Principal

__all__ = ["router"]

router = APIRouter()


def _granting(request: Request, principal: Principal) -> Granting:
    state = request.app.state
    return Granting(state.policy, state.audit, principal)


@router.get(
    "/grants",
    tags=["grants"],
    summary="Grants of what you administer",
    responses={**json_of(Grants), **failures(Reason.TOKEN_MISSING, Reason.NOT_PERMITTED)},
    response_class=Response,
)
async def grants(request: Request, principal: Asker) -> Response:
    """List the grants that touch what you administer, and only that part of them."""
    return json_reply(_granting(request, principal).grants())


@router.post(
    "/grants",
    tags=["grants"],
    summary="Grant something",
    openapi_extra=json_body(NewGrant),
    responses={
        **json_of(Grant),
        **failures(
            Reason.TOKEN_MISSING,
            Reason.NOT_PERMITTED,
            Reason.INVALID_ARGUMENT,
            Reason.MALFORMED,
            Reason.LIMIT_EXCEEDED,
        ),
    },
    response_class=Response,
)
async def add(request: Request, principal: Asker) -> Response:
    """Let somebody do something with what you administer; holds within a second."""
    new = await json_request(request, NewGrant)
    return json_reply(await asyncio.to_thread(_granting(request, principal).add, new))


@router.delete(
    "/grants/{id}",
    tags=["grants"],
    summary="Take a grant back",
    responses={
        **json_of(Grant),
        **failures(Reason.TOKEN_MISSING, Reason.NOT_PERMITTED, Reason.UNKNOWN_GRANT),
    },
    response_class=Response,
)
async def revoke(
    request: Request,
    principal: Asker,
    id_: Annotated[str, Path(alias="id", description="As listed.", max_length=64)],
) -> Response:
    """Take a grant back: running jobs that need it end, and held results stay where they are."""
    return json_reply(await asyncio.to_thread(_granting(request, principal).revoke, id_))


@router.post(
    "/grants/explain",
    tags=["grants"],
    summary="Why somebody may do something, or not",
    openapi_extra=json_body(GrantQuestion),
    responses={
        **json_of(GrantAnswer),
        **failures(
            Reason.TOKEN_MISSING, Reason.NOT_PERMITTED, Reason.MALFORMED, Reason.LIMIT_EXCEEDED
        ),
    },
    response_class=Response,
)
async def explain(request: Request, principal: Asker) -> Response:
    """Say whether somebody may do something with what you administer, and which grants decide."""
    question = await json_request(request, GrantQuestion)
    await request.app.state.gateway.state()
    return json_reply(_granting(request, principal).explain(question))
