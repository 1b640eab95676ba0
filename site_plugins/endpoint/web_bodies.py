"""Bodies of calls: a JSON object of arguments, alone or beside raw parts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from federated_dask.errors import Reason, RequestRefused
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.limits import Limits
from site_plugins.endpoint.streams import ByteBudget

__all__ = ["ARGUMENTS", "receive_arguments"]

ARGUMENTS = "arguments"
"""Name of the part with the JSON object, where there are others."""
MOST_PARTS = 256


@contextlib.asynccontextmanager
async def receive_arguments(
    request: Request, limits: Limits, seconds: float, budget: ByteBudget
) -> AsyncGenerator[tuple[dict[str, Any], dict[str, Buffer]], None]:
    """Receive the arguments of a call, to be used inside of the block.

    Parameters
    ----------
    request : Request
        Its body has not been read.
    limits : Limits
        JSON has at most `Limits.header_bytes`, everything together `Limits.buffer_bytes`.
    seconds : float
        Deadline for the whole body.
    budget : ByteBudget
        What all bodies that are in use at once may take.

    Yields
    ------
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
    if kind not in ("application/json", "multipart/form-data"):
        raise HTTPException(415, "Arguments come as application/json or multipart/form-data.")
    async with contextlib.AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(seconds):
                if kind == "application/json":
                    body = bytearray()
                    async for data in _bounded(request, limits.header_bytes):
                        body += data
                    await stack.enter_async_context(budget.taken(len(body)))
                    received: tuple[dict[str, Any], dict[str, Buffer]] = _parsed(bytes(body)), {}
                else:
                    # Until there is room for them, large parts are in files.
                    form = await _form(request, limits)
                    stack.push_async_callback(form.close)
                    size = sum(_size(item) for _, item in form.multi_items())
                    await stack.enter_async_context(budget.taken(size))
                    received = await _parts(form)
        except TimeoutError:
            raise RequestRefused(
                f"The body was not taken in within {seconds:g} seconds.",
                reason=Reason.MALFORMED,
                hint="Send less at once, use a faster connection, or try again later.",
            ) from None
        except ClientDisconnect:
            raise RequestRefused("The body ended early.", reason=Reason.MALFORMED) from None
        yield received


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


async def _form(request: Request, limits: Limits) -> FormData:
    parser = MultiPartParser(
        request.headers,
        _bounded(request, limits.buffer_bytes),
        max_files=MOST_PARTS,
        max_fields=MOST_PARTS,
        max_part_size=limits.header_bytes,
    )
    try:
        return await parser.parse()
    except (MultiPartException, KeyError) as error:
        told = error.message if isinstance(error, MultiPartException) else "no boundary"
        raise RequestRefused(
            f"The parts do not parse: {told[:200]}", reason=Reason.MALFORMED
        ) from None


def _size(item: UploadFile | str) -> int:
    return (item.size or 0) if isinstance(item, UploadFile) else len(item)


async def _parts(form: FormData) -> tuple[dict[str, Any], dict[str, Buffer]]:
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
