"""What a preview of a dataset shows: which variable, and which few of its values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from federated_dask.errors import NotFound, Reason, RequestRefused
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.messages import DatasetDescription, VariableDescription
from federated_dask.protocol.values import decode_value

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Preview", "preview_of"]

MAP_POINTS = 96
"""Along one axis of a map."""
SERIES_POINTS = 512
FEW_POINTS = 24
"""Along one axis, of a dataset of which not everything may leave."""
NORTH = {"lat", "latitude", "nav_lat", "rlat", "y"}
EAST = {"lon", "longitude", "nav_lon", "rlon", "x"}


@dataclasses.dataclass(frozen=True)
class Preview:
    """A variable and a part of it."""

    variable: str
    index: tuple[int | slice, ...]
    description: DatasetDescription
    buffers: Sequence[Buffer]

    def labelled(self, values: np.ndarray) -> xr.DataArray:
        """Give values their dimensions, coordinates and attributes."""
        import xarray as xr

        described = self.description.variables[self.variable]
        coordinates = {}
        dimensions = []
        for name, part in zip(described.dimensions, self.index, strict=True):
            if isinstance(part, slice):
                dimensions.append(name)
            coordinate = self.description.variables.get(name)
            if coordinate is None or coordinate.value is None or coordinate.dimensions != (name,):
                continue
            found = np.asarray(decode_value(coordinate.value, self.buffers))[part]  # type: ignore[arg-type]
            dims = (name,) if isinstance(part, slice) else ()
            coordinates[name] = xr.Variable(dims, found, coordinate.attributes)
        return xr.DataArray(
            np.asarray(values),
            dims=dimensions,
            # Without indexes: nothing is looked up in a preview.
            coords=xr.Coordinates(coordinates, indexes={}),
            name=self.variable,
            attrs=described.attributes,
        )


def preview_of(
    description: DatasetDescription,
    buffers: Sequence[Buffer],
    variable: str | None = None,
    at: str = "",
) -> Preview:
    """Choose what to show.

    Parameters
    ----------
    description : DatasetDescription
        The dataset.
    buffers : sequence of bytes-like
        Of the values in it.
    variable : str, optional
        By default, the one with the most dimensions.
    at : str, optional
        JSON: positions along dimensions that are not shown, by name; 0 by default.

    Raises
    ------
    NotFound
        If there is no such variable, or none that can be shown.
    RequestRefused
        If a position does not parse or does not fit.
    """
    name = variable if variable is not None else _first(description)
    if name is None or name not in description.variables:
        raise NotFound(
            f"Dataset {description.name!r} has no variable {(name or 'with numbers')[:128]!r}.",
            reason=Reason.UNKNOWN_VARIABLE,
        )
    described = description.variables[name]
    if not _is_numeric(described):
        raise RequestRefused(
            f"Variable {name!r} has no numbers that could be shown.",
            reason=Reason.INVALID_ARGUMENT,
        )
    positions = _positions(at, described)
    shown = [d for d in _shown(description, described) if d not in positions]
    limited = description.egress.tier != "open"
    most = FEW_POINTS if limited else (MAP_POINTS if len(shown) > 1 else SERIES_POINTS)
    index: list[int | slice] = []
    for dimension, size in zip(described.dimensions, described.shape, strict=True):
        if dimension in shown:
            index.append(slice(0, size, max(1, -(-size // most))))
        else:
            index.append(positions.get(dimension, 0))
    return Preview(name, tuple(index), description, buffers)


def _is_numeric(described: VariableDescription) -> bool:
    numeric = not described.dtype.startswith("object") and np.dtype(described.dtype).kind in "biuf"
    return numeric and all(described.shape)


def _first(description: DatasetDescription) -> str | None:
    candidates = {
        name: described
        for name, described in description.variables.items()
        if not described.coordinate and described.shape and _is_numeric(described)
    }
    # Bounds of cells have as many dimensions as what is meant, and a short last one.
    return max(
        candidates,
        key=lambda name: sum(size > 2 for size in candidates[name].shape),
        default=None,
    )


def _shown(description: DatasetDescription, described: VariableDescription) -> list[str]:
    north = [d for d in described.dimensions if _points(description, d, NORTH, "degrees_north")]
    east = [d for d in described.dimensions if _points(description, d, EAST, "degrees_east")]
    if north and east:
        return [north[0], east[0]]
    sizes = dict(zip(described.dimensions, described.shape, strict=True))
    long = [dimension for dimension in described.dimensions if sizes[dimension] > 1]
    if any(_is_time(description, dimension) for dimension in long):
        return [next(d for d in long if _is_time(description, d))]
    return long[-2:]


def _points(description: DatasetDescription, dimension: str, names: set[str], units: str) -> bool:
    coordinate = description.variables.get(dimension)
    stated = None if coordinate is None else coordinate.attributes.get("units")
    return dimension.lower() in names or stated == units


def _is_time(description: DatasetDescription, dimension: str) -> bool:
    coordinate = description.variables.get(dimension)
    if coordinate is None:
        return dimension.lower() == "time"
    return coordinate.dtype == "object:cftime" or coordinate.dtype[1:2] == "M"


def _positions(at: str, described: VariableDescription) -> Mapping[str, int]:
    if not at:
        return {}
    try:
        positions: dict[str, Any] = msgspec.json.decode(at, type=dict[str, int])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise RequestRefused(
            "The positions do not parse.",
            reason=Reason.MALFORMED,
            hint='Write them as JSON, such as {"time": 3}.',
        ) from error
    sizes = dict(zip(described.dimensions, described.shape, strict=True))
    for dimension, position in positions.items():
        if dimension not in sizes or not 0 <= position < sizes[dimension]:
            raise RequestRefused(
                f"There is no position {position} along {dimension[:64]!r}.",
                reason=Reason.INVALID_ARGUMENT,
                hint=f"The variable's dimensions are {dict(sizes)}.",
            )
    return positions
