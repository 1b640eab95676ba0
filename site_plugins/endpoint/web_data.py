"""Routes for data without frames: parts of variables, and previews."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response

from federated_dask.errors import Reason, VersionChanged
from federated_dask.protocol.messages import DatasetDescription
from site_plugins.datasets import StoredDataset, StoredVariable
from site_plugins.endpoint.access import Access
from site_plugins.endpoint.authentication import Asker
from site_plugins.endpoint.gateway import Gateway
from site_plugins.endpoint.indexing import Index, parse_index, require_readable
from site_plugins.endpoint.jobs import JobRunner
from site_plugins.endpoint.parameters import DatasetName
from site_plugins.endpoint.previews import preview_of
from site_plugins.endpoint.renderings import JSON, PNG, RAW, choose
from site_plugins.endpoint.replies import rendered, value_in
from site_plugins.endpoint.schemas import READING, failures
from site_plugins.endpoint.web_schemas import NOT_ACCEPTABLE, renderings
from site_plugins.tokens import Principal

__all__ = ["router"]

router = APIRouter()

Accept = Annotated[
    str, Header(description="Media types that are accepted, with qualities.", max_length=4096)
]
Arrays = Annotated[
    Literal["lists", "base64", "omitted"],
    Query(
        description="How arrays stand in JSON: nested lists, their bytes (little-endian, C order) "
        "as base64, or only dtype and shape."
    ),
]
REFUSALS = NOT_ACCEPTABLE | failures(*READING, Reason.INVALID_ARGUMENT)


@router.get(
    "/datasets/{name}/variables/{variable}/values",
    tags=["datasets"],
    summary="A part of a variable, for programs without frames",
    responses={**renderings(JSON, RAW), **REFUSALS},
    response_class=Response,
)
async def values(
    request: Request,
    principal: Asker,
    name: DatasetName,
    variable: Annotated[str, Path(description="Name of the variable.")],
    index: Annotated[
        str | None,
        Query(
            description="JSON, one entry for each axis: an integer, `[start, stop, step]` (each "
            'may be null), or `{"take": [integers]}`; the whole variable by default.',
            examples=["[0, [0, 10, null], [null, null, null]]"],
        ),
    ] = None,
    version: Annotated[
        str | None,
        Query(
            description="The version that is meant; whichever is there by default.", max_length=128
        ),
    ] = None,
    arrays: Arrays = "lists",
    accept: Accept = "*/*",
) -> Response:
    """Read a part of a variable: as JSON, or as raw bytes.

    Raw bytes are little-endian, in C order; the headers `Federated-DType` (numpy's
    `dtype.str`), `Federated-Shape` and `Federated-Dimensions` (JSON) describe them.
    """
    media_type = choose(accept, (JSON, RAW))
    stored, description, _ = await _opened(request, principal, name)
    if version is not None and description.version != version:
        raise VersionChanged(f"Dataset {name!r} is no longer version {version}.")
    described = description.variables.get(variable)
    if index is None:
        parts: Index = (slice(None),) * len(described.shape if described else ())
    else:
        parts = parse_index(index)
    array = await _read(request, principal, stored, description, variable, parts)
    dimensions = [
        dimension
        for dimension, part in zip(description.variables[variable].dimensions, parts, strict=True)
        if not isinstance(part, int)
    ]
    return await rendered(
        _labelled(array, dimensions, variable),
        media_type,
        {"Federated-Version": description.version},
        arrays=arrays,
        name="values",
    )


def _labelled(array: Any, dimensions: list[str], name: str) -> Any:
    import xarray as xr

    if len(set(dimensions)) != len(dimensions):
        # Covariances have one dimension twice, which xarray names with reluctance.
        dimensions = [f"{dimension}_{number}" for number, dimension in enumerate(dimensions)]
    return xr.DataArray(array, dims=dimensions, name=name)


@router.get(
    "/datasets/{name}/preview",
    tags=["datasets"],
    summary="A small picture of a dataset",
    responses={**renderings(PNG, JSON), **REFUSALS},
    response_class=Response,
)
async def preview(
    request: Request,
    principal: Asker,
    name: DatasetName,
    variable: Annotated[
        str | None,
        Query(description="The one with the most dimensions by default.", max_length=256),
    ] = None,
    at: Annotated[
        str,
        Query(
            description="JSON: positions along dimensions that are not shown, by name; 0 by "
            "default.",
            examples=['{"time": 3}'],
            max_length=4096,
        ),
    ] = "",
    arrays: Arrays = "lists",
    accept: Accept = "*/*",
) -> Response:
    """Show a few values of a variable: a map, or a series; as a picture, or as JSON.

    What is shown is released like any other read, and counts as such.
    """
    media_type = choose(accept, (PNG, JSON))
    stored, description, buffers = await _opened(request, principal, name)
    chosen = preview_of(description, buffers, variable, at)
    array = await _read(request, principal, stored, description, chosen.variable, chosen.index)
    return await rendered(
        chosen.labelled(array), media_type, {}, arrays=arrays, name=f"{name}-preview"
    )


async def _opened(
    request: Request, principal: Principal, name: str
) -> tuple[StoredDataset, DatasetDescription, Any]:
    """Look up and describe a dataset of which a principal wants values."""
    gateway: Gateway = request.app.state.gateway
    access: Access = request.app.state.access
    stored = await access.source(principal, name)
    description, buffers = await gateway.description(stored)
    return stored, description, buffers


async def _read(
    request: Request,
    principal: Principal,
    stored: StoredDataset,
    description: DatasetDescription,
    variable: str,
    parts: Index,
) -> Any:
    runner: JobRunner = request.app.state.runner
    require_readable(description, variable, parts, runner.settings.limits)
    source = StoredVariable(stored, description.version, variable)
    return await value_in(await runner.read(source, parts, principal))
