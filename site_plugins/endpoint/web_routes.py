"""Routes of calls without frames: JSON, server-sent events, and results by `Accept`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Path, Query, Request, Response

from federated_dask.errors import Reason
from federated_dask.protocol.call_messages import CallStatus, FunctionDescription
from federated_dask.protocol.frames import Buffer
from site_plugins.endpoint.authentication import Asker, owner_of
from site_plugins.endpoint.calls import CallRunner
from site_plugins.endpoint.renderings import JSON, MEDIA_TYPES, choose
from site_plugins.endpoint.replies import SAFE, BytesResponse, rendered
from site_plugins.endpoint.schemas import CALLING, failures, json_of
from site_plugins.endpoint.streams import FrameStream
from site_plugins.endpoint.web_arguments import submission_of
from site_plugins.endpoint.web_bodies import receive_arguments
from site_plugins.endpoint.web_calls import CallBook, WebCall
from site_plugins.endpoint.web_data import Accept, Arrays
from site_plugins.endpoint.web_schemas import (
    CALLED,
    NOT_ACCEPTABLE,
    call_body,
    event_stream,
    list_of,
    renderings,
)
from site_plugins.tokens import Principal

__all__ = ["router"]

EVENTS = "text/event-stream"
WAIT = re.compile(r"\bwait=(\d{1,6})\b")

router = APIRouter()

CallId = Annotated[str, Path(description="The `call` of its status.", max_length=64)]
Variable = Annotated[
    str | None,
    Query(description="Only this variable of the result, or column of a table.", max_length=256),
]


def _book(request: Request) -> CallBook:
    book: CallBook = request.app.state.book
    return book


def _status(call: WebCall, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = msgspec.json.encode(call.status)
    return Response(body, status, {**SAFE, **(headers or {})}, media_type=JSON)


@router.post(
    "/functions/{name}",
    tags=["functions"],
    summary="Call a function, without frames",
    openapi_extra=call_body(),
    responses={
        **renderings(*MEDIA_TYPES),
        **CALLED,
        **NOT_ACCEPTABLE,
        **failures(*CALLING, Reason.FUNCTION_FAILED, Reason.QUOTA_EXCEEDED),
    },
    response_class=Response,
)
async def call(
    request: Request,
    principal: Asker,
    name: Annotated[str, Path(description="Name of the function, as in the list.")],
    version: Annotated[
        str | None,
        Query(
            description="The version that is meant; whichever is published by default.",
            max_length=128,
        ),
    ] = None,
    arrays: Arrays = "lists",
    variable: Variable = None,
    prefer: Annotated[
        str,
        Header(
            description="`respond-async` for a reply at once, `wait=SECONDS` for how long to wait "
            "before that (RFC 7240).",
            max_length=256,
        ),
    ] = "",
    accept: Accept = "*/*",
) -> Response:
    """Call a function of the site; the reply is the result.

    The body is a JSON object of arguments by name. What takes a dataset is given a name
    (`"a1b"`, `"a1b/air"`), a reference (`{"dataset": "a1b", "variable": "air"}`), an
    earlier result (`{"result": {"call": "…"}}`), or data.

    Arrays are nested lists, or `{"dtype": "<f8", "shape": [2, 3], "base64": "…"}` (bytes in C
    order; `"part": "name"` instead of base64 names a part of a multipart body). Datasets are
    written as `xarray.Dataset.to_dict` does: `coords` and `data_vars` hold objects with
    `dims`, `data` and `attrs`. Tables are `{"columns": {name: list}}`.

    The request is the call's life line, unless it prefers `respond-async`: the reply then
    has the status 202, and `Location` is where to ask.
    """
    runner: CallRunner = request.app.state.calls
    book = _book(request)
    is_async = "respond-async" in prefer.lower()
    media_type = JSON if is_async else choose(accept)
    function = await runner.admission.function(name, principal)
    # Before the body is taken in, of which only what is admitted need be.
    runner.policy.require(principal, "call", f"function:{name}")
    runner.jobs.access.quotas.require(owner_of(principal), tasks=1)
    book.require_room(principal)
    begun = await _begun(request, principal, function.description, version)
    if is_async:
        found = WAIT.search(prefer)
        seconds = float(found[1]) if found else 0.0
        if not await _ended_while_there(request, book, begun, seconds):
            where = f"/calls/{begun.id}"
            return _status(begun, 202, {"Location": where, "Preference-Applied": "respond-async"})
        media_type = choose(accept)
    else:
        await _ended_while_there(request, book, begun, None)
    return await _result(request, begun, principal, media_type, arrays, variable)


async def _begun(
    request: Request, principal: Principal, function: FunctionDescription, version: str | None
) -> WebCall:
    """Take in the arguments of a call and begin it; nothing of them is kept here."""
    state = request.app.state
    runner: CallRunner = state.calls
    book = _book(request)
    async with receive_arguments(
        request, runner.settings.limits, state.body_seconds, state.intake, owner_of(principal)
    ) as (arguments, parts, room):
        submission, buffers = await asyncio.to_thread(
            submission_of,
            function,
            arguments,
            site=book.gateway.site,
            version=version,
            parts=parts,
            results=lambda earlier: book.returned(earlier, principal),
        )
        admitted = await runner.admission.admit(submission, buffers, principal)
        return book.start(admitted, principal, room)


async def _ended_while_there(
    request: Request, book: CallBook, begun: WebCall, seconds: float | None
) -> bool:
    """Wait for a call; end it where the client leaves. False where it goes on after `seconds`."""
    ending = asyncio.ensure_future(begun.ended())
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait([ending, leaving], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done() and leaving.done():
            await book.remove(begun)
        return not begun.is_running
    except asyncio.CancelledError:
        await book.remove(begun)
        raise
    finally:
        ending.cancel()
        leaving.cancel()
        await asyncio.gather(ending, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _result(
    request: Request,
    begun: WebCall,
    principal: Principal,
    media_type: str,
    arrays: Any,
    variable: str | None,
) -> Response:
    await begun.ended()
    limits = request.app.state.runner.settings.limits
    summary = begun.status.result
    # One that is larger than all that there is has it for itself.
    size = begun.content_bytes + (summary.size if summary else 0)
    size = min(size, limits.header_bytes + limits.buffer_bytes)
    async with request.app.state.rendering.taken(size):
        obj = await _book(request).result(begun, principal)
        return await rendered(
            obj,
            media_type,
            {"Content-Location": f"/calls/{begun.id}/result"},
            arrays=arrays,
            variable=variable,
            name=begun.function,
        )


@router.get(
    "/calls",
    tags=["functions"],
    summary="Your calls",
    responses={**list_of(CallStatus), **failures(Reason.TOKEN_MISSING)},
    response_class=Response,
)
async def calls(request: Request, principal: Asker) -> Response:
    """List your calls that were made without frames, the newest first."""
    found = [begun.status for begun in _book(request).of(principal)]
    return Response(msgspec.json.encode(found), headers=SAFE, media_type=JSON)


@router.get(
    "/calls/{call}",
    tags=["functions"],
    summary="How a call goes",
    responses={
        **json_of(CallStatus),
        **failures(Reason.TOKEN_MISSING, Reason.UNKNOWN_CALL),
    },
    response_class=Response,
)
async def status(request: Request, principal: Asker, call: CallId) -> Response:
    """Tell whether a call of yours runs, how far it is, and what became of it."""
    return _status(_book(request).get(call, principal))


@router.get(
    "/calls/{call}/events",
    tags=["functions"],
    summary="How a call goes, as it goes",
    responses={
        **event_stream(),
        **failures(Reason.TOKEN_MISSING, Reason.UNKNOWN_CALL),
    },
    response_class=Response,
)
async def events(request: Request, principal: Asker, call: CallId) -> Response:
    """Tell how a call of yours goes, as server-sent events.

    `progress` when something changed, `heartbeat` every few seconds at least, and `end` last;
    the data of each is the call's status.
    """
    book = _book(request)
    beat = request.app.state.runner.settings.heartbeat_seconds
    response = FrameStream(_server_sent(book, book.get(call, principal), beat))
    response.headers.update({**SAFE, "Content-Type": EVENTS})
    return response


async def _server_sent(
    book: CallBook, call: WebCall, beat: float
) -> AsyncGenerator[list[Buffer], None]:
    async for kind, told in book.events(call, beat):
        yield [f"event: {kind}\ndata: ".encode() + msgspec.json.encode(told) + b"\n\n"]


@router.get(
    "/calls/{call}/result",
    tags=["functions"],
    summary="What a call returned",
    responses={
        **renderings(*MEDIA_TYPES),
        **NOT_ACCEPTABLE,
        **failures(
            Reason.TOKEN_MISSING,
            Reason.UNKNOWN_CALL,
            Reason.FUNCTION_FAILED,
            Reason.EXPORT_NOT_ALLOWED,
            Reason.LIMIT_EXCEEDED,
        ),
    },
    response_class=Response,
)
async def result(
    request: Request,
    principal: Asker,
    call: CallId,
    arrays: Arrays = "lists",
    variable: Variable = None,
    accept: Accept = "*/*",
) -> Response:
    """Fetch what a call of yours returned; waits for its end."""
    media_type = choose(accept)
    begun = _book(request).get(call, principal)
    return await _result(request, begun, principal, media_type, arrays, variable)


@router.get(
    "/calls/{call}/zarr/{path:path}",
    tags=["functions"],
    summary="What a call returned, as a Zarr store",
    responses={
        200: {
            "description": "A file of the store (Zarr format 3): `zarr.json`, or a chunk.",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        },
        **failures(
            Reason.TOKEN_MISSING,
            Reason.UNKNOWN_CALL,
            Reason.UNKNOWN_RESULT,
            Reason.INVALID_ARGUMENT,
            Reason.EXPORT_NOT_ALLOWED,
        ),
    },
    response_class=Response,
)
async def zarr(
    request: Request,
    principal: Asker,
    call: CallId,
    path: Annotated[str, Path(description="Path in the store.", max_length=1024)],
) -> Response:
    """Read a result chunk by chunk: `xarray.open_zarr(address + "/calls/{call}/zarr")`."""
    book = _book(request)
    store = await book.zarr(book.get(call, principal), principal)
    return BytesResponse(await store.read(path), "application/octet-stream")


@router.delete(
    "/calls/{call}",
    tags=["functions"],
    summary="Cancel or forget a call",
    status_code=204,
    responses=failures(Reason.TOKEN_MISSING, Reason.UNKNOWN_CALL),
    response_class=Response,
)
async def remove(request: Request, principal: Asker, call: CallId) -> Response:
    """Stop a call of yours where it goes on, and let go of its result."""
    book = _book(request)
    await book.remove(book.get(call, principal))
    return Response(status_code=204)
