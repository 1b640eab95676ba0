"""Routes of what binds the use of a dataset: its licence and its budget."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from fastapi import APIRouter, Request, Response

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol.grant_messages import Usage
from federated_dask.protocol.messages import Budget, LicenseAcceptance, LicenseTerms
from site_plugins.endpoint.access import Access
from site_plugins.endpoint.authentication import Asker, owner_of
from site_plugins.endpoint.json_messages import json_reply, json_request
from site_plugins.endpoint.parameters import DatasetName
from site_plugins.endpoint.schemas import failures, json_body, json_of

__all__ = ["router"]

T = TypeVar("T")

router = APIRouter()


@router.get(
    "/datasets/{name}/budget",
    tags=["datasets"],
    summary="What may still leave of a dataset",
    responses={
        **json_of(Budget),
        **failures(Reason.TOKEN_MISSING, Reason.NOT_PERMITTED, Reason.UNKNOWN_DATASET),
    },
    response_class=Response,
)
async def budget(request: Request, principal: Asker, name: DatasetName) -> Response:
    """Tell how many bytes of a dataset's budget are used, by you or by your project."""
    access: Access = request.app.state.access
    dataset = await access.dataset(principal, "compute", name)
    return json_reply(await access.budget(principal, dataset))


@router.get(
    "/datasets/{name}/license",
    tags=["datasets"],
    summary="The licence of a dataset",
    responses={
        **json_of(LicenseTerms),
        **failures(Reason.TOKEN_MISSING, Reason.UNKNOWN_DATASET),
    },
    response_class=Response,
)
async def license_(request: Request, principal: Asker, name: DatasetName) -> Response:
    """Tell the licence of a dataset, and whether you accepted it."""
    access: Access = request.app.state.access
    dataset = await access.dataset(principal, "describe", name)
    return json_reply(
        LicenseTerms(
            dataset=name,
            license=dataset.license,
            required=dataset.accept_license,
            accepted=dataset.accept_license
            and access.licences.is_accepted(owner_of(principal), dataset),
        )
    )


@router.post(
    "/datasets/{name}/license",
    tags=["datasets"],
    summary="Accept the licence of a dataset",
    status_code=204,
    openapi_extra=json_body(LicenseAcceptance),
    responses=failures(Reason.TOKEN_MISSING, Reason.UNKNOWN_DATASET, Reason.INVALID_ARGUMENT),
    response_class=Response,
)
async def accept(request: Request, principal: Asker, name: DatasetName) -> Response:
    """Accept the licence that was shown to you; the site writes it down."""
    access: Access = request.app.state.access
    dataset = await access.dataset(principal, "describe", name)
    accepted = await json_request(request, LicenseAcceptance)
    if accepted.license != dataset.license:
        raise RequestRefused(
            f"Dataset {name!r} is under another licence than the one you accept.",
            reason=Reason.INVALID_ARGUMENT,
            hint="Ask for the licence again, and read it.",
        )
    await asyncio.to_thread(access.licences.accept, owner_of(principal), dataset)
    access.audit.write("license_accepted", principal, dataset=name, license=dataset.license)
    return Response(status_code=204)


@router.get(
    "/usage",
    tags=["site"],
    summary="What you use of the site",
    responses={**json_of(Usage), **failures(Reason.TOKEN_MISSING)},
    response_class=Response,
)
async def usage(request: Request, principal: Asker) -> Response:
    """Tell your quotas, and what you used of them."""
    access: Access = request.app.state.access
    return json_reply(access.quotas.usage(owner_of(principal)))
