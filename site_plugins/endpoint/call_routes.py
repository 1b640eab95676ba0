"""The routes of published functions; see docs/design.md."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from federated_dask.errors import Reason
from federated_dask.protocol.call_messages import (
    CallSubmission,
    CodeSubmission,
    FunctionDescription,
    Functions,
)
from federated_dask.protocol.frames import Buffer, decode_message, encode_frame
from federated_dask.protocol.messages import FRAMES_MEDIA_TYPE
from site_plugins.endpoint.authentication import Asker, owner_of
from site_plugins.endpoint.bodies import receive_frame
from site_plugins.endpoint.call_admission import Call
from site_plugins.endpoint.calls import CallRunner
from site_plugins.endpoint.code import admit_code, require_code
from site_plugins.endpoint.json_messages import json_reply
from site_plugins.endpoint.schemas import CALLING, failures, frames, json_of
from site_plugins.endpoint.streams import FrameStream

__all__ = ["router"]

router = APIRouter()

FunctionName = Annotated[str, Path(description="Name of the function, as in the list.")]


def _calls(request: Request) -> CallRunner:
    calls: CallRunner = request.app.state.calls
    return calls


@router.get(
    "/functions",
    tags=["functions"],
    summary="The functions",
    responses={**json_of(Functions), **failures(Reason.TOKEN_MISSING)},
    response_class=Response,
)
async def functions(request: Request, principal: Asker) -> Response:
    """List the functions of the site that you may know of, with their signatures."""
    admission = _calls(request).admission
    found = await admission.functions(principal)
    return json_reply(
        Functions(
            site=admission.gateway.site, functions=tuple(function.description for function in found)
        )
    )


@router.get(
    "/functions/{name}",
    tags=["functions"],
    summary="One function",
    responses={
        **json_of(FunctionDescription),
        **failures(Reason.TOKEN_MISSING, Reason.UNKNOWN_FUNCTION),
    },
    response_class=Response,
)
async def function(request: Request, principal: Asker, name: FunctionName) -> Response:
    """Describe a function: parameters, result, limits, and the JSON Schema of its arguments."""
    return json_reply((await _calls(request).admission.function(name, principal)).description)


@router.post(
    "/calls",
    tags=["functions"],
    summary="Call a function",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "One frame: `CallSubmission`, and the buffers of what is sent along.",
            "content": {FRAMES_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    responses={
        **frames(
            "Frames of call events: `accepted`, `call_progress` and `heartbeat` now and then, "
            "`returned` or `failure` last.",
            status=200,
        ),
        **failures(*CALLING),
    },
    response_class=Response,
)
async def calls(request: Request, principal: Asker) -> Response:
    """Call a function of the site.

    The request is the call's life line: when the client goes away, the site stops
    the function.
    """
    runner = _calls(request)
    state = request.app.state
    # Before anything of the body is read, which says what is called.
    await runner.jobs.access.require_use(principal, ("call", "function"))
    async with receive_frame(
        request, runner.settings.limits, state.body_seconds, state.intake, owner_of(principal)
    ) as received:
        submission = decode_message(received.frame, CallSubmission)
        call = await runner.admission.admit(submission, received.frame.buffers, principal)
        call.room = received.room.pop_all()
    return FrameStream(_framed(runner, call), call.room)


@router.post(
    "/code",
    tags=["functions"],
    summary="Call a function of your own",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "One frame: `CodeSubmission`, the buffers of what is sent along, and "
            "the pickled callable as the last one.",
            "content": {FRAMES_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    responses={
        **frames("Frames of call events, as those of `POST /calls`.", status=200),
        **failures(
            Reason.TOKEN_MISSING,
            Reason.NOT_PERMITTED,
            Reason.INVALID_ARGUMENT,
            Reason.LIMIT_EXCEEDED,
            Reason.MALFORMED,
            Reason.DATASET_UNREADABLE,
        ),
    },
    response_class=Response,
)
async def code(request: Request, principal: Asker) -> Response:
    """Run a callable of your own on the site's workers; takes a grant for `code`.

    The request is the call's life line: when the client goes away, the site stops it.
    """
    runner = _calls(request)
    # Before anything of the body is looked at.
    require_code(runner.admission, principal)
    runner.jobs.access.quotas.require(owner_of(principal), tasks=1)
    state = request.app.state
    async with receive_frame(
        request, runner.settings.limits, state.body_seconds, state.intake, owner_of(principal)
    ) as received:
        submission = decode_message(received.frame, CodeSubmission)
        call = await admit_code(runner.admission, submission, received.frame.buffers, principal)
        call.room = received.room.pop_all()
    return FrameStream(_framed(runner, call), call.room)


async def _framed(runner: CallRunner, call: Call) -> AsyncGenerator[list[Buffer], None]:
    events = runner.events(call)
    try:
        async for event, buffers in events:
            yield encode_frame(event, buffers)
    finally:
        await events.aclose()
