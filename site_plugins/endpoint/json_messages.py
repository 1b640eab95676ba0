"""Messages as JSON: receiving a small one, and replying with one."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from fastapi import Request, Response

from federated_dask.errors import Reason, RequestRefused
from site_plugins.endpoint.bodies import receive_small

__all__ = ["json_reply", "json_request"]

T = TypeVar("T")


async def json_request(request: Request, type_: type[T]) -> T:
    """Receive and check a small JSON body.

    Raises
    ------
    RequestRefused
        If it is too long, too late, or does not parse.
    """
    body = await receive_small(request, request.app.state.body_seconds)
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Why, may quote what was sent.
        raise RequestRefused("The request does not parse.", reason=Reason.MALFORMED) from None


def json_reply(message: msgspec.Struct) -> Response:
    """Reply with a message."""
    return Response(msgspec.json.encode(message), media_type="application/json")
