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
from site_plugins.endpoint.streams import EXPANSION, SMALL_BODY, ByteBudget

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
                    size = len(body) + _expanded(len(body), limits)
                    await stack.enter_async_context(budget.taken(size))
                    arguments = await _parsed(bytes(body), limits)
                    received: tuple[dict[str, Any], dict[str, Buffer]] = arguments, {}
                else:
                    # Until there is room for them, large parts are in files.
                    form = await _form(request, limits)
                    stack.push_async_callback(form.close)
                    size = sum(_size(item) for _, item in form.multi_items())
                    json = sum(_size(item) for item in form.getlist(ARGUMENTS))
                    _require(json, limits.header_bytes)
                    size += _expanded(json, limits)
                    await stack.enter_async_context(budget.taken(size))
                    received = await _parts(form, limits)
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
        _require(size, most)
        yield data


def _require(size: int, most: int) -> None:
    if size > most:
        raise RequestRefused(
            f"The body is longer than {most} bytes.",
            reason=Reason.LIMIT_EXCEEDED,
            hint="Send large arrays as raw parts of multipart/form-data, or by reference.",
        )


def _expanded(size: int, limits: Limits) -> int:
    """Bytes that JSON may take once it is decoded."""
    return EXPANSION * min(size, limits.parts)


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


async def _parts(form: FormData, limits: Limits) -> tuple[dict[str, Any], dict[str, Buffer]]:
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
    return await _parsed(arguments, limits), parts


async def _parsed(body: bytes, limits: Limits) -> dict[str, Any]:
    if len(body) <= SMALL_BODY:
        return _decoded(body, limits)
    return await asyncio.to_thread(_decoded, body, limits)


def _decoded(body: bytes, limits: Limits) -> dict[str, Any]:
    # Those in texts are counted, too, of which there are few in what is honest.
    count = sum(map(body.count, (b",", b"[", b"{", b":")))
    if count > limits.parts:
        raise RequestRefused(
            f"The arguments have {count} items; at most {limits.parts} are taken in as JSON.",
            reason=Reason.LIMIT_EXCEEDED,
            hint="Send large arrays as raw parts of multipart/form-data, or by reference.",
        )
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
