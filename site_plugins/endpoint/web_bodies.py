"""Bodies of calls: a JSON object of arguments, alone or beside raw parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.limits import Limits

__all__ = ["ARGUMENTS", "receive_arguments"]

ARGUMENTS = "arguments"
"""Name of the part with the JSON object, where there are others."""
MOST_PARTS = 256


async def receive_arguments(
    request: Request, limits: Limits, seconds: float
) -> tuple[dict[str, Any], dict[str, Buffer]]:
    """Receive the arguments of a call.

    Parameters
    ----------
    request : Request
        Its body has not been read.
    limits : Limits
        JSON has at most `Limits.header_bytes`, everything together `Limits.buffer_bytes`.
    seconds : float
        Deadline for the whole body.

    Returns
    -------
    arguments : dict
        JSON by argument.
    parts : dict
        Raw bytes by name of the part.

    Raises
    ------
    RequestRefused
        ``malformed`` or ``limit_exceeded``.
    HTTPException
        Status 415, if the body is of another media type.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(seconds):
            if kind == "multipart/form-data":
                return await _multipart(request, limits)
            if kind == "application/json":
                body = bytearray()
                async for data in _bounded(request, limits.header_bytes):
                    body += data
                return _parsed(bytes(body)), {}
    except TimeoutError:
        raise RequestRefused(
            f"The body did not arrive within {seconds:g} seconds.",
            reason=Reason.MALFORMED,
            hint="Send less at once, or use a faster connection.",
        ) from None
    except ClientDisconnect:
        raise RequestRefused("The body ended early.", reason=Reason.MALFORMED) from None
    raise HTTPException(415, "Arguments come as application/json or multipart/form-data.")


async def _bounded(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for data in request.stream():
        size += len(data)
        if size > most:
            raise RequestRefused(
                f"The body is longer than {most} bytes.",
                reason=Reason.LIMIT_EXCEEDED,
                hint="Send large arrays as raw parts of multipart/form-data, or by reference.",
            )
        yield data


async def _multipart(request: Request, limits: Limits) -> tuple[dict[str, Any], dict[str, Buffer]]:
    parser = MultiPartParser(
        request.headers,
        _bounded(request, limits.buffer_bytes),
        max_files=MOST_PARTS,
        max_fields=MOST_PARTS,
        max_part_size=limits.header_bytes,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        told = error.message if isinstance(error, MultiPartException) else "no boundary"
        raise RequestRefused(
            f"The parts do not parse: {told[:200]}", reason=Reason.MALFORMED
        ) from None
    try:
        arguments: bytes | None = None
        parts: dict[str, Buffer] = {}
        for name, item in form.multi_items():
            content = await item.read() if isinstance(item, UploadFile) else item.encode()
            if name in parts or (name == ARGUMENTS and arguments is not None):
                raise RequestRefused(f"There are two parts {name[:64]!r}.", reason=Reason.MALFORMED)
            if name == ARGUMENTS:
                arguments = content
            else:
                parts[name] = content
        if arguments is None:
            raise RequestRefused(
                f"There is no part {ARGUMENTS!r} with the arguments as JSON.",
                reason=Reason.MALFORMED,
            )
        return _parsed(arguments), parts
    finally:
        await form.close()


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found: Any = msgspec.json.decode(body or b"{}")
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise RequestRefused(
            f"The arguments are no JSON: {str(error)[:200]}.", reason=Reason.MALFORMED
        ) from None
    if not isinstance(found, dict):
        raise RequestRefused(
            "The arguments are no JSON object.",
            reason=Reason.MALFORMED,
            hint='Send them by name: {"start": 2070}.',
        )
    return found
