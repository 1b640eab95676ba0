"""The page at ``/`` and the JavaScript client: files of the package, with nothing from elsewhere.

They need no token: what they show is fetched with the one that is entered.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import HTMLResponse

from federated_dask.errors import NotFound, Reason
from site_plugins.endpoint.documentation import STYLE, documentation_page

__all__ = ["router"]

MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "ts": "text/plain; charset=utf-8",
}
PAGE = ("app.js", "elements.js", "forms.js", "icon.svg", "runs.js", "style.css")
CLIENT = ("federated-dask.js", "federated-dask.d.ts", "package.json")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
STYLE_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
DOCUMENTATION_POLICY = (
    f"default-src 'none'; style-src 'sha256-{STYLE_DIGEST}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Asked for again each time, and not sent again while it is the same.
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@functools.cache
def _file(folder: str, name: str) -> tuple[bytes, str]:
    """Give a file of the package, and its digest."""
    place: Any = files("site_plugins") / "endpoint" / "page"
    if folder == "js":
        place = files("federated_dask") / "js"
    content: bytes = (place / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _reply(request: Request, folder: str, name: str) -> Response:
    content, digest = _file(folder, name)
    headers = {**HEADERS, "ETag": digest, "Content-Security-Policy": POLICY}
    if request.headers.get("if-none-match") == digest:
        return Response(status_code=304, headers=headers)
    media_type = MEDIA_TYPES[name.rpartition(".")[2]]
    return Response(content, headers={**headers, "Content-Type": media_type})


@router.get("/")
async def page(request: Request) -> Response:
    """Show the page."""
    return _reply(request, "page", "index.html")


@router.get("/page/{name}")
async def page_file(request: Request, name: str) -> Response:
    """Give a file of the page."""
    # Only names that are known: nothing is looked up by what was asked.
    if name not in PAGE:
        raise _nothing()
    return _reply(request, "page", name)


@router.get("/js/{name}")
async def client_file(request: Request, name: str) -> Response:
    """Give a file of the JavaScript client."""
    if name not in CLIENT:
        raise _nothing()
    return _reply(request, "js", name)


@router.get("/docs")
async def documentation(request: Request) -> Response:
    """Show the OpenAPI document."""
    headers = {**HEADERS, "Content-Security-Policy": DOCUMENTATION_POLICY}
    return HTMLResponse(documentation_page(request.app.openapi()), headers=headers)


def _nothing() -> NotFound:
    return NotFound("No such file.", reason=Reason.UNKNOWN_ROUTE, hint="GET / is the page.")
