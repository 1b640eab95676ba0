"""The routes of the endpoint; see docs/design.md."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Path, Query, Request, Response

from federated_dask.errors import FederatedError, Reason, VersionChanged
from federated_dask.protocol.frames import encode_frame
from federated_dask.protocol.messages import (
    FRAMES_MEDIA_TYPE,
    Catalogue,
    DelegationReply,
    DelegationRequest,
    LeaseTerms,
    Operations,
    Peer,
    SiteDescription,
)
from site_plugins.datasets import StoredVariable
from site_plugins.endpoint.access import Access
from site_plugins.endpoint.authentication import Asker, owner_of
from site_plugins.endpoint.bodies import receive_frame
from site_plugins.endpoint.gateway import Gateway
from site_plugins.endpoint.indexing import parse_index, require_readable
from site_plugins.endpoint.jobs import JobRunner
from site_plugins.endpoint.json_messages import json_reply, json_request
from site_plugins.endpoint.parameters import DatasetName, PeerStatement
from site_plugins.endpoint.peering import Peering
from site_plugins.endpoint.schemas import READING, failures, frames, json_body, json_of
from site_plugins.endpoint.streams import FrameResponse, FrameStream
from site_plugins.policy import Policy

__all__ = ["router"]

HEALTH_SECONDS = 3.0

router = APIRouter()

Lease = Annotated[str, Path(description="The `lease` of a job's `finished` event.")]


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def _policy(request: Request) -> Policy:
    policy: Policy = request.app.state.policy
    return policy


@router.get(
    "/health",
    tags=["site"],
    summary="Whether the site works",
    responses={
        200: {"content": {"application/json": {"example": {"status": "ok", "site": "north"}}}},
        503: {"description": "The site's scheduler does not answer."},
    },
    response_class=Response,
)
async def health(request: Request) -> Response:
    """Tell whether the site's scheduler answers. Needs no token."""
    gateway = _gateway(request)
    try:
        async with asyncio.timeout(HEALTH_SECONDS):
            await gateway.state()
    except (FederatedError, TimeoutError):
        body, status = {"status": "scheduler does not answer", "site": gateway.site}, 503
    else:
        body, status = {"status": "ok", "site": gateway.site}, 200
    return Response(msgspec.json.encode(body), status, media_type="application/json")


@router.get(
    "/site",
    tags=["site"],
    summary="The site and its peers",
    responses={**json_of(SiteDescription), **failures(Reason.TOKEN_MISSING)},
    response_class=Response,
)
async def site(request: Request, principal: Asker) -> Response:
    """Describe the site: its peers, library versions and caps.

    Its size and its dashboard are told to those who may describe the site.
    """
    state = await _gateway(request).state()
    runner: JobRunner = request.app.state.runner
    # Whoever has a token is told what it takes to speak to the site, so that it can be told more.
    inside = _policy(request).allows(principal, "describe", f"site:{state.name}")
    return json_reply(
        SiteDescription(
            name=state.name,
            title=state.title,
            versions=dict(state.versions),
            operations_digest=request.app.state.table.digest,
            peers=_peers(request, state.peers),
            dashboard_link=state.dashboard_link if inside else None,
            workers=state.workers if inside else 0,
            threads=state.threads if inside else 0,
            memory=state.memory if inside else 0,
            resources=dict(state.resources),
            limits={
                **msgspec.structs.asdict(runner.settings.limits),
                "task_bytes": await runner.admission.task_bytes(),
            },
        )
    )


def _peers(request: Request, stated: Sequence[Peer]) -> tuple[Peer, ...]:
    """Tell the peers that the scheduler knows, those of `site.toml`, and those that joined.

    The site vouches for the certificates of both to its users.
    """
    peering: Peering | None = request.app.state.peering
    if peering is None:
        return tuple(stated)
    known = peering.peers.current()
    peers = {peer.name: peer for peer in stated}
    for name, peer in known.items():
        if peer.learnt and name not in peers:
            peers[name] = Peer(name=name, address=peer.address, exchanges=True)
        if name in peers and peers[name].address == peer.address:
            peers[name] = msgspec.structs.replace(peers[name], ca=peer.ca)
    return tuple(peers.values())


@router.get(
    "/operations",
    tags=["site"],
    summary="The operations that graphs may use",
    responses={**json_of(Operations), **failures(Reason.TOKEN_MISSING)},
    response_class=Response,
)
async def operations(request: Request, principal: Asker) -> Response:
    """List the operations that the site's libraries have."""
    return json_reply(Operations(names=request.app.state.table.names))


@router.get(
    "/datasets",
    tags=["datasets"],
    summary="The catalogue",
    responses={**json_of(Catalogue), **failures(Reason.TOKEN_MISSING)},
    response_class=Response,
)
async def datasets(request: Request, principal: Asker) -> Response:
    """List the datasets of the site that you may know of."""
    state = await _gateway(request).state()
    policy = _policy(request)
    summaries = tuple(
        dataset.summary
        for name, dataset in sorted(state.datasets.items())
        if policy.allows(principal, "describe", f"dataset:{name}")
    )
    return json_reply(Catalogue(site=state.name, datasets=summaries))


@router.get(
    "/datasets/{name}",
    tags=["datasets"],
    summary="One dataset",
    responses={
        **json_of(None, frames("`DatasetDescription`, with the values of its coordinates.")),
        **failures(Reason.TOKEN_MISSING, Reason.UNKNOWN_DATASET, Reason.DATASET_UNREADABLE),
    },
    response_class=Response,
)
async def dataset(
    request: Request,
    principal: Asker,
    name: DatasetName,
    accept: Annotated[str, Header(description="Frames or JSON.")] = "*/*",
) -> Response:
    """Describe a dataset: variables, dimensions, data types, attributes, encoding, version.

    As a frame, the values of index coordinates and small coordinates come along;
    as JSON they are left out.
    """
    access: Access = request.app.state.access
    stored = await access.dataset(principal, "describe", name)
    description, buffers = await _gateway(request).description(stored)
    egress = await access.egress(principal, stored)
    description = msgspec.structs.replace(description, egress=egress)
    if FRAMES_MEDIA_TYPE in accept:
        return FrameResponse(encode_frame(description, buffers))
    variables = {
        key: msgspec.structs.replace(variable, value=None)
        for key, variable in description.variables.items()
    }
    return json_reply(msgspec.structs.replace(description, variables=variables))


@router.get(
    "/datasets/{name}/variables/{variable}",
    tags=["datasets"],
    summary="A part of a variable",
    responses={
        **frames("`Result` of output 0: the values.", status=200),
        **failures(*READING),
    },
    response_class=Response,
)
async def variable(
    request: Request,
    principal: Asker,
    name: DatasetName,
    variable: Annotated[str, Path(description="Name of the variable.")],
    version: Annotated[str, Query(description="The version that was opened.", max_length=128)],
    index: Annotated[
        str,
        Query(
            description="JSON, one entry for each axis: an integer, `[start, stop, step]` (each "
            'may be null), or `{"take": [integers]}`; several of these select orthogonally.',
            examples=["[0, [0, 10, null], [null, null, null]]"],
        ),
    ],
) -> Response:
    """Read a part of a variable, decoded."""
    gateway = _gateway(request)
    runner: JobRunner = request.app.state.runner
    parts = parse_index(index)
    stored = await runner.access.source(principal, name)
    await gateway.require_version(stored, version)
    description, _ = await gateway.description(stored)
    if description.version != version:
        raise VersionChanged(f"Dataset {name!r} is no longer version {version}.", site=gateway.site)
    require_readable(description, variable, parts, runner.settings.limits)
    return FrameResponse(
        await runner.read(StoredVariable(stored, version, variable), parts, principal)
    )


@router.post(
    "/jobs",
    tags=["jobs"],
    summary="Run a job",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "One frame: `JobSubmission`, and the buffers of the graph's values.",
            "content": {FRAMES_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    responses={
        **frames(
            "Frames of job events: `accepted` before any `result`, `progress` and `heartbeat` now "
            "and then, a `result` for each released output, `finished` or `failure` last.",
            status=200,
        ),
        **failures(
            Reason.TOKEN_MISSING,
            Reason.OPERATION_NOT_ALLOWED,
            Reason.NOT_PERMITTED,
            Reason.BUDGET_EXHAUSTED,
            Reason.LICENSE_NOT_ACCEPTED,
            Reason.UNKNOWN_DATASET,
            Reason.VERSION_CHANGED,
            Reason.LIMIT_EXCEEDED,
            Reason.MALFORMED,
            Reason.DATASET_UNREADABLE,
        ),
    },
    response_class=Response,
)
async def jobs(request: Request, principal: Asker) -> Response:
    """Compute outputs of a task graph over the site's datasets.

    The request is the job's life line: when the client goes away, the site
    cancels what is not to be held.
    """
    runner: JobRunner = request.app.state.runner
    state = request.app.state
    # Before anything of the body is read.
    await runner.access.require_use(
        principal, ("compute", "dataset"), ("call", "function"), ("code", "site")
    )
    async with receive_frame(
        request, runner.settings.limits, state.body_seconds, state.intake, owner_of(principal)
    ) as received:
        job = await runner.admission.admit(received.frame, principal)
        job.room = received.room.pop_all()
    return FrameStream(runner.events(job), job.room)


@router.get(
    "/leases/{lease}/{output}",
    tags=["jobs"],
    summary="A held result",
    responses={
        **frames("`Result` of that output.", status=200),
        **failures(
            Reason.TOKEN_MISSING,
            Reason.NOT_PERMITTED,
            Reason.BUDGET_EXHAUSTED,
            Reason.UNKNOWN_RESULT,
        ),
    },
    response_class=Response,
)
async def held(
    request: Request,
    principal: Asker,
    lease: Lease,
    output: Annotated[int, Path(description="Position in the job's outputs.", ge=0)],
) -> Response:
    """Fetch a result that a job of yours holds at the site."""
    runner: JobRunner = request.app.state.runner
    return FrameResponse(await runner.fetch(lease, output, principal))


@router.post(
    "/leases/{lease}",
    tags=["jobs"],
    summary="Keep held results for longer",
    responses={
        **json_of(LeaseTerms),
        **failures(Reason.TOKEN_MISSING, Reason.UNKNOWN_RESULT),
    },
    response_class=Response,
)
async def renew(request: Request, principal: Asker, lease: Lease) -> Response:
    """Renew a lease of yours: it lasts as long as after its job, but not for ever."""
    seconds = await _gateway(request).renew(lease, owner_of(principal))
    return json_reply(LeaseTerms(lease_seconds=seconds))


@router.post(
    "/leases/{lease}/delegations",
    tags=["jobs"],
    summary="Let another site fetch held results",
    openapi_extra=json_body(DelegationRequest),
    responses={
        **json_of(DelegationReply),
        **failures(Reason.TOKEN_MISSING, Reason.UNKNOWN_RESULT, Reason.UNKNOWN_SITE),
    },
    response_class=Response,
)
async def delegate(request: Request, principal: Asker, lease: Lease) -> Response:
    """Let a peer of this site fetch outputs that a job of yours holds here.

    The delegation is of use to that peer only, for these outputs and a few
    minutes; hand it over with the job that needs them.
    """
    runner: JobRunner = request.app.state.runner
    asked = await json_request(request, DelegationRequest)
    delegation = await runner.delegate(lease, asked, principal)
    return json_reply(DelegationReply(delegation=delegation))


@router.get(
    "/delegated/{lease}/{output}",
    tags=["jobs"],
    summary="A held result, for a peer",
    responses={
        **frames("`Result` of that output.", status=200),
        **failures(Reason.TOKEN_INVALID, Reason.EXPORT_NOT_ALLOWED, Reason.UNKNOWN_RESULT),
    },
    response_class=Response,
)
async def delegated(
    request: Request,
    lease: Lease,
    output: Annotated[int, Path(description="Position in the job's outputs.", ge=0)],
    statement: PeerStatement,
    federated_delegation: Annotated[
        str, Header(description="The delegation that this site signed.")
    ] = "",
) -> Response:
    """Fetch a held result with a delegation; for the site that it was made for."""
    runner: JobRunner = request.app.state.runner
    return FrameResponse(
        await runner.fetch_delegated(lease, output, federated_delegation, statement)
    )


@router.delete(
    "/leases/{lease}",
    tags=["jobs"],
    summary="Let go of held results",
    status_code=204,
    responses=failures(Reason.TOKEN_MISSING, Reason.UNKNOWN_RESULT),
    response_class=Response,
)
async def release(request: Request, principal: Asker, lease: Lease) -> Response:
    """End a lease of yours; the site lets go of its results."""
    await _gateway(request).release(lease, owner_of(principal))
    return Response(status_code=204)
