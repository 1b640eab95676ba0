"""The endpoint as an ASGI application."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from federated_dask.errors import FederatedError, NotFound, Reason, RequestRefused
from federated_dask.protocol.messages import PROJECT_HEADER, Failure
from federated_dask.protocol.operations import OperationTable, operation_table
from site_plugins.audit import Audit
from site_plugins.config import FunctionsSection
from site_plugins.endpoint import call_routes, grant_routes, project_routes, terms_routes
from site_plugins.endpoint.access import Access
from site_plugins.endpoint.authentication import CHALLENGE
from site_plugins.endpoint.byte_budgets import ByteBudget, Intake, Outgoing, most_taken
from site_plugins.endpoint.calls import CallRunner
from site_plugins.endpoint.failures import JobFailed, internal_failure
from site_plugins.endpoint.gateway import Gateway
from site_plugins.endpoint.identity_routes import login_options
from site_plugins.endpoint.identity_routes import router as identity_router
from site_plugins.endpoint.jobs import JobRunner, JobSettings
from site_plugins.endpoint.page_routes import router as page_router
from site_plugins.endpoint.peering import Peering
from site_plugins.endpoint.refusals import Refusals
from site_plugins.endpoint.routes import router
from site_plugins.endpoint.schemas import SCHEMA, components
from site_plugins.endpoint.web_calls import CallBook
from site_plugins.endpoint.web_data import router as web_data_router
from site_plugins.endpoint.web_routes import router as web_router
from site_plugins.invitations import Invitations
from site_plugins.issuers import TokenVerifiers
from site_plugins.memberships import Memberships
from site_plugins.policy import Policy
from site_plugins.projects import ProjectStore
from site_plugins.quotas import Quotas
from site_plugins.registry import Registry

__all__ = ["ROUTERS", "create_app"]

logger = logging.getLogger(__name__)

ROUTERS = (
    # Requests are held against one route after the other: what is asked most often comes first.
    call_routes.router,
    router,
    web_data_router,
    web_router,
    terms_routes.router,
    grant_routes.router,
    identity_router,
    project_routes.router,
)
"""All routes of the endpoint but its documentation, its page and its JavaScript client."""

DESCRIPTION = """
One institute's site of a federation: its datasets, and computation beside them.

Every route but `/health`, `/login`, `/docs`, `/openapi.json`, the page at `/` and the
JavaScript client at `/js/federated-dask.js` needs a token: `Authorization: Bearer …`.
Bodies of the media type
`application/vnd.federated-dask.frames` are made of frames: four bytes `FDF1`, the
sizes of the stored and the raw header (32 bits each, little-endian), the header
(msgpack, compressed by zstd where that is shorter), and the buffers of its arrays.
Errors are JSON: `Failure`, with a closed set of reasons.
"""


EXPOSED = [
    "Content-Location",
    "Federated-Dimensions",
    "Federated-DType",
    "Federated-Shape",
    "Federated-Version",
    "Location",
]
"""Headers of replies that scripts of other origins may read."""

ANY_OTHER = {
    "description": "Any other failure.",
    "content": {"application/json": {"schema": {"$ref": f"{SCHEMA}Failure"}}},
}


def create_app(
    gateway: Gateway,
    verifiers: TokenVerifiers,
    policy: Policy,
    registry: Registry,
    *,
    table: OperationTable | None = None,
    audit: Audit | None = None,
    quotas: Quotas | None = None,
    settings: JobSettings | None = None,
    peering: Peering | None = None,
    functions: FunctionsSection | None = None,
    invitations: Invitations | None = None,
    memberships: Memberships | None = None,
    projects: ProjectStore | None = None,
    body_seconds: float = 300.0,
    origins: Sequence[str] = (),
    call_seconds: float = 3600.0,
) -> FastAPI:
    """Make the endpoint's application.

    Parameters
    ----------
    gateway : Gateway
        The way to the site's cluster.
    verifiers : TokenVerifiers
        Tell who asks.
    policy : Policy
        Tells what they may do.
    registry : Registry
        What the site remembers.
    table : OperationTable, optional
        Operations that the site has; by default all that its libraries have.
    audit : Audit, optional
        Where it is written down what was asked and what was let out.
    quotas : Quotas, optional
        What one principal may use of the site.
    settings : JobSettings, optional
        Caps and intervals.
    peering : Peering, optional
        The site's dealings with its peers; without it, values are not exchanged.
    functions : FunctionsSection, optional
        Limits of functions that set none of their own.
    invitations : Invitations, optional
        By which sites become peers; without it, none does.
    memberships : Memberships, optional
        Finds out the projects of who asks; given with `projects`.
    projects : ProjectStore, optional
        Projects that are at home here.
    body_seconds : float, optional
        Deadline for the body of a request.
    origins : sequence of str, optional
        Of pages elsewhere that may ask this site; browsers let no others.
    call_seconds : float, optional
        How long a call without frames is remembered after its end.
    """
    app = FastAPI(
        title=f"federated_dask site {gateway.site}",
        description=DESCRIPTION,
        # FastAPI's own pages fetch scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    chosen = operation_table() if table is None else table
    app.state.gateway = gateway
    app.state.verifiers = verifiers
    app.state.policy = policy
    app.state.registry = registry
    app.state.audit = Audit(None) if audit is None else audit
    app.state.refusals = Refusals(app.state.audit)
    app.state.access = Access(gateway, policy, registry, app.state.audit, quotas)
    app.state.runner = JobRunner(gateway, chosen, app.state.access, settings, peering)
    app.state.calls = CallRunner(app.state.runner, functions)
    app.state.book = CallBook(app.state.calls, call_seconds)
    app.state.peering = peering
    app.state.invitations = invitations
    app.state.memberships = memberships
    app.state.projects = projects
    app.state.table = chosen
    app.state.body_seconds = body_seconds
    limits = app.state.runner.settings.limits
    app.state.intake = Intake(limits)
    app.state.rendering = ByteBudget(most_taken(limits))
    app.state.outgoing = Outgoing(2 * most_taken(limits))
    app.state.login_options = login_options(gateway.site, verifiers.sections)
    for each in (*ROUTERS, page_router):
        app.include_router(each)
    app.add_exception_handler(FederatedError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(_LastResort, site=gateway.site)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Prefer", PROJECT_HEADER],
            expose_headers=EXPOSED,
            max_age=3600,
        )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _reply(failure: Failure, status: int, headers: dict[str, str] | None = None) -> Response:
    body = msgspec.json.encode(failure)
    headers = {**(headers or {}), **(CHALLENGE if status == 401 else {})}
    return Response(body, status, headers, media_type="application/json")


async def _on_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, FederatedError):
        raise error
    error.site = error.site or request.app.state.gateway.site
    failure = error.failure if isinstance(error, JobFailed) else Failure.from_error(error)
    refusals: Refusals = request.app.state.refusals
    refusals.write(request, error)
    return _reply(failure, error.http_status)


async def _on_invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    # The input itself is not repeated.
    problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    refused = RequestRefused(
        f"The request does not parse: {'; '.join(problems)}", reason=Reason.MALFORMED
    )
    return await _on_error(request, refused)


async def _on_http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    known: FederatedError
    if error.status_code in (404, 405):
        known = NotFound(
            f"No route {request.method} {request.url.path[:128]!r}.",
            reason=Reason.UNKNOWN_ROUTE,
            hint="GET /docs lists the routes.",
        )
    else:
        known = RequestRefused(str(error.detail), reason=Reason.MALFORMED)
    known.site = request.app.state.gateway.site
    headers = dict(error.headers or {})
    return _reply(Failure.from_error(known), error.status_code, headers)


class _LastResort:
    """The boundary of the process: logs what nothing else expected, and tells none of it."""

    def __init__(self, app: ASGIApp, site: str) -> None:
        self.app = app
        self.site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            # The boundary to the client: it is told that something went wrong, no more.
            logger.exception("%s %s failed", scope.get("method"), scope.get("path"))
            if started:
                raise
            await _reply(internal_failure(self.site), 500)(scope, receive, send)


def _is_of_fastapi(response: dict[str, Any] | None) -> bool:
    return response is not None and "HTTPValidationError" in str(response)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
        )
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(components())
        for path in schema["paths"].values():
            for operation in path.values():
                # Our handlers answer invalid requests themselves, as a `Failure`.
                if _is_of_fastapi(operation["responses"].get("422")):
                    del operation["responses"]["422"]
                operation["responses"]["default"] = ANY_OTHER
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema
