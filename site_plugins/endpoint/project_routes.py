"""Routes of projects and their members, for users; and of memberships, for peers."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from federated_dask.errors import NotFound, Reason
from federated_dask.protocol.project_messages import (
    Invited,
    MemberRef,
    MembershipAnswer,
    MembershipQuestion,
    NewInvitation,
    NewProject,
    Project,
    ProjectCode,
    Projects,
)
from site_plugins.audit import Audit
from site_plugins.endpoint.authentication import Asker
from site_plugins.endpoint.bodies import receive_small
from site_plugins.endpoint.json_messages import json_reply, json_request
from site_plugins.endpoint.parameters import PeerStatement
from site_plugins.endpoint.schemas import failures, json_body, json_of
from site_plugins.memberships import Memberships
from site_plugins.projects import ProjectStore

__all__ = ["router"]

router = APIRouter(tags=["projects"])

ProjectName = Annotated[str, Path(description="Name of the project, without the site's.")]
ANY = failures(Reason.TOKEN_MISSING, Reason.NOT_PERMITTED, Reason.UNKNOWN_PROJECT, Reason.MALFORMED)


def _store(request: Request) -> ProjectStore:
    store: ProjectStore | None = request.app.state.projects
    if store is None:
        raise NotFound("This site has no projects.", reason=Reason.UNKNOWN_PROJECT)
    return store


def _audit(request: Request) -> Audit:
    audit: Audit = request.app.state.audit
    return audit


@router.get(
    "/projects",
    summary="Your projects",
    responses={**json_of(Projects), **failures(Reason.TOKEN_MISSING)},
    response_class=Response,
)
async def projects(request: Request, principal: Asker) -> Response:
    """List the projects of this site of which you are a member."""
    store = _store(request)
    return json_reply(Projects(site=store.site, projects=tuple(store.seen_by(principal))))


@router.post(
    "/projects",
    summary="Make a project",
    openapi_extra=json_body(NewProject),
    responses={**json_of(Project), **ANY},
    response_class=Response,
)
async def create(request: Request, principal: Asker) -> Response:
    """Make a project that you lead."""
    new = await json_request(request, NewProject)
    project = await asyncio.to_thread(_store(request).create, principal, new.name)
    _audit(request).write("project_created", principal, project=project.name)
    return json_reply(project)


@router.get(
    "/projects/{name}",
    summary="One project",
    responses={**json_of(Project), **ANY},
    response_class=Response,
)
async def project(request: Request, principal: Asker, name: ProjectName) -> Response:
    """List the members of a project of yours."""
    return json_reply(_store(request).members(principal, name))


@router.post(
    "/projects/{name}/invitations",
    summary="Invite to a project",
    openapi_extra=json_body(NewInvitation),
    responses={**json_of(Invited), **ANY},
    response_class=Response,
)
async def invite(request: Request, principal: Asker, name: ProjectName) -> Response:
    """Make a code by which others join a project that you lead."""
    new = await json_request(request, NewInvitation)
    store = _store(request)
    invited = await asyncio.to_thread(store.invite, principal, name, new.uses, new.lifetime)
    _audit(request).write("project_invited", principal, project=invited.project, uses=new.uses)
    return json_reply(invited)


@router.post(
    "/projects/join",
    summary="Join a project",
    openapi_extra=json_body(ProjectCode),
    responses={**json_of(Project), **ANY, **failures(Reason.UNKNOWN_SITE, Reason.UNREACHABLE)},
    response_class=Response,
)
async def join(request: Request, principal: Asker) -> Response:
    """Join a project by a code; one that is at home at a peer, too, as a user of this site."""
    code = await json_request(request, ProjectCode)
    store = _store(request)
    name, _, host = code.project.partition("@")
    if host == store.site:
        await asyncio.to_thread(store.join, principal.issuer, principal.subject, name, code.code)
    else:
        memberships: Memberships = request.app.state.memberships
        await memberships.join_at(principal, host, name, code.code)
    _audit(request).write("project_joined", principal, project=code.project)
    return json_reply(Project(name=code.project))


@router.delete(
    "/projects/{name}/membership",
    summary="Leave a project",
    responses={**json_of(Project), **ANY},
    response_class=Response,
)
async def leave(request: Request, principal: Asker, name: ProjectName) -> Response:
    """Leave a project; with its last member it ends."""
    store = _store(request)
    await asyncio.to_thread(store.remove, principal, name, principal.issuer, principal.subject)
    _audit(request).write("project_left", principal, project=f"{name}@{store.site}")
    return json_reply(Project(name=f"{name}@{store.site}"))


@router.post(
    "/projects/{name}/removals",
    summary="Remove a member",
    openapi_extra=json_body(MemberRef),
    responses={**json_of(Project), **ANY},
    response_class=Response,
)
async def remove(request: Request, principal: Asker, name: ProjectName) -> Response:
    """Remove a member of a project that you lead; all sites know within a minute."""
    who = await json_request(request, MemberRef)
    store = _store(request)
    await asyncio.to_thread(store.remove, principal, name, who.issuer, who.subject)
    _audit(request).write(
        "project_member_removed",
        principal,
        project=f"{name}@{store.site}",
        member=f"{who.subject} ({who.issuer})",
    )
    return json_reply(store.members(principal, name))


@router.post(
    "/memberships",
    summary="Who is a member, for peers",
    openapi_extra=json_body(MembershipQuestion),
    responses={
        **json_of(MembershipAnswer),
        **failures(Reason.TOKEN_INVALID, Reason.UNKNOWN_PROJECT, Reason.MALFORMED),
    },
    response_class=Response,
)
async def memberships(request: Request, statement: PeerStatement) -> Response:
    """State of which projects somebody is a member. For peers; needs no token of this site."""
    _store(request)
    found: Memberships = request.app.state.memberships
    body = await receive_small(request, request.app.state.body_seconds)
    return json_reply(await asyncio.to_thread(found.answer, body, statement))
