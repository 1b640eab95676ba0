"""What OpenAPI says of the routes for callers that speak no frames."""

from __future__ import annotations

from typing import Any

from site_plugins.endpoint.renderings import ARROW, JSON, NETCDF, PNG, RAW
from site_plugins.endpoint.schemas import SCHEMA

__all__ = ["CALLED", "NOT_ACCEPTABLE", "call_body", "event_stream", "list_of", "renderings"]

BINARY = {"type": "string", "format": "binary"}
MEANINGS = {
    JSON: "JSON",
    RAW: "the bytes of one array, little-endian, in C order",
    ARROW: "an Arrow IPC stream",
    NETCDF: "a NetCDF 4 file",
    PNG: "a picture",
}
NOT_ACCEPTABLE: dict[int | str, Any] = {
    406: {
        "description": "None of the accepted media types can be made of it.",
        "content": {JSON: {"schema": {"$ref": f"{SCHEMA}Failure"}}},
    }
}
FAILURE = {JSON: {"schema": {"$ref": f"{SCHEMA}Failure"}}}
CALLED: dict[int | str, Any] = {
    202: {
        "description": "`CallStatus`, and `Location`, where to ask: with `respond-async`.",
        "content": {JSON: {"schema": {"$ref": f"{SCHEMA}CallStatus"}}},
        "headers": {"Location": {"schema": {"type": "string"}}},
    },
    415: {"description": "The body is of another media type.", "content": FAILURE},
}


def call_body() -> dict[str, Any]:
    """Document the arguments of a call."""
    arguments = {"type": "object", "description": "Arguments by name.", "additionalProperties": {}}
    parts = {
        "type": "object",
        "properties": {"arguments": arguments},
        "required": ["arguments"],
        "additionalProperties": BINARY,
    }
    return {
        "requestBody": {
            "description": "Arguments by name; `GET /functions/{name}` has their JSON Schema. With "
            "raw parts beside, the part `arguments` is the JSON object.",
            "required": True,
            "content": {
                JSON: {"schema": arguments},
                "multipart/form-data": {
                    "schema": parts,
                    "encoding": {"arguments": {"contentType": JSON}},
                },
            },
        }
    }


def event_stream() -> dict[int | str, Any]:
    """Document server-sent events."""
    return {
        200: {
            "description": "Events `progress`, `heartbeat` and `end`; the data is `CallStatus`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    }


def list_of(type_: type) -> dict[int | str, Any]:
    """Document a JSON list."""
    schema = {"type": "array", "items": {"$ref": SCHEMA + type_.__name__}}
    return {200: {"description": f"`{type_.__name__}`s.", "content": {JSON: {"schema": schema}}}}


def renderings(*media_types: str) -> dict[int | str, Any]:
    """Document a reply in the media type that is accepted best.

    Examples
    --------
    >>> renderings(PNG, JSON)[200]["description"]
    'By `Accept`: a picture, JSON.'
    """
    content = {name: {"schema": {} if name == JSON else BINARY} for name in media_types}
    meanings = ", ".join(MEANINGS[name] for name in media_types)
    return {200: {"description": f"By `Accept`: {meanings}.", "content": content}}
