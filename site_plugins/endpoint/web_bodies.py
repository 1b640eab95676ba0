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
from site_plugins.endpoint.bodies import Entry, pieces_of, require_length
from site_plugins.endpoint.byte_budgets import Intake, Room, expanded
from site_plugins.endpoint.streams import SMALL_BODY

__all__ = ["ARGUMENTS", "receive_arguments"]

ARGUMENTS = "arguments"
"""Name of the part with the JSON object, where there are others."""
MOST_PARTS = 256


@contextlib.asynccontextmanager
async def receive_arguments(
    request: Request, limits: Limits, seconds: float, intake: Intake, owner: str
) -> AsyncGenerator[
    tuple[dict[str, Any], dict[str, Buffer], Room],
    None,
]:
    """Receive the arguments of a call, to be used inside of the block.

    Parameters
    ----------
    request : Request
        Its body has not been read.
    limits : Limits
        JSON has at most `Limits.header_bytes`, everything together `Limits.buffer_bytes`.
    seconds : float
        Deadline for the whole body.
    intake : Intake
        What all bodies that are in use at once may take; room for this one is there before
        any of it is read.
    owner : str
        Who sends it.

    Yields
    ------
    arguments : dict
        JSON by argument.
    parts : dict
        Raw bytes by name of the part.
    room : Room
        Memory that they take; who goes on with them takes it over by `pop_all`.

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
    is_json = kind == "application/json"
    # Nothing else tells beforehand; who does not say how much it is may send the most.
    most = limits.header_bytes if is_json else limits.buffer_bytes
    told = require_length(request, most)
    size = most if told is None else told
    entry = Entry(intake, owner, seconds)
    async with contextlib.aclosing(entry.room) as room, contextlib.AsyncExitStack() as stack:
        if size > SMALL_BODY:
            json = min(size, limits.header_bytes)
            await entry.for_header(json + expanded(json, limits))
            if not is_json:
                await entry.for_buffers(size)
        try:
            async with asyncio.timeout(seconds):
                if is_json:
                    body = bytearray()
                    async for data in _bounded(request, size):
                        body += data
                    arguments = await _parsed(bytes(body), limits)
                    parts: dict[str, Buffer] = {}
                else:
                    # Until all are there, large parts are in files.
                    form = await _form(request, limits, size)
                    stack.push_async_callback(form.close)
                    json = sum(_size(item) for item in form.getlist(ARGUMENTS))
                    _require(json, limits.header_bytes)
                    arguments, parts = await _parts(form, limits)
        except TimeoutError:
            raise RequestRefused(
                f"The body was not taken in within {seconds:g} seconds.",
                reason=Reason.MALFORMED,
                hint="Send less at once, use a faster connection, or try again later.",
            ) from None
        except ClientDisconnect:
            raise RequestRefused("The body ended early.", reason=Reason.MALFORMED) from None
        yield arguments, parts, room


async def _bounded(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for data in pieces_of(request):
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


async def _form(request: Request, limits: Limits, most: int) -> FormData:
    parser = MultiPartParser(
        request.headers,
        _bounded(request, most),
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
