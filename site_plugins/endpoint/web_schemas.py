"""What OpenAPI says of the routes for callers that speak no frames."""

from __future__ import annotations

from typing import Any

from site_plugins.endpoint.renderings import ARROW, JSON, NETCDF, PNG, RAW
from site_plugins.endpoint.schemas import SCHEMA

__all__ = ["NOT_ACCEPTABLE", "renderings"]

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
