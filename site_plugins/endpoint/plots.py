"""Pictures of arrays: a map, an image, or lines.

Drawn by matplotlib's object interface, which keeps no state between two pictures.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = ["NoPicture", "picture_of"]

LATITUDES = {"lat", "latitude", "nav_lat", "rlat", "y"}
LONGITUDES = {"lon", "longitude", "nav_lon", "rlon", "x"}
MOST_POINTS = 2_000
"""Along one axis; a picture shows no more."""
MOST_LINES = 12
LONGEST_TITLE = 80
DOTS_PER_INCH = 110
PAPER, INK, GRID = "#ffffff", "#1d2733", "#d9dee4"

_drawing = threading.Lock()


class NoPicture(ValueError):
    """There is nothing in it that can be drawn; the message says why."""


def picture_of(obj: Any, variable: str | None = None) -> bytes:
    r"""Draw an object.

    Parameters
    ----------
    obj : object
        An xarray object, an array, a DataFrame, or a number.
    variable : str, optional
        Which variable of a Dataset, or column of a DataFrame; the first that can be drawn
        by default.

    Returns
    -------
    bytes
        PNG.

    Raises
    ------
    NoPicture
        If it cannot be drawn.

    Examples
    --------
    >>> picture_of(np.arange(5.0))[:4]
    b'\x89PNG'
    """
    array = _thinned(_chosen(obj, variable))
    # matplotlib's caches of fonts are shared, and two cores draw no faster than one.
    with _drawing:
        return _drawn(array)


def _chosen(obj: Any, variable: str | None) -> xr.DataArray:
    """Find what is to be drawn; of more than two dimensions, the first of each further one."""
    import pandas as pd
    import xarray as xr

    if isinstance(obj, pd.DataFrame):
        obj = obj.select_dtypes(["number", "bool", "datetime"])
        obj = xr.Dataset(
            {
                str(name): ("row", column.to_numpy(), {"long_name": str(name)})
                for name, column in obj.items()
            }
        )
    if isinstance(obj, xr.Dataset):
        candidates = {str(name): each for name, each in obj.data_vars.items()}
        if variable is not None and variable not in candidates:
            raise NoPicture(f"there is no variable {variable[:64]!r}")
        names = [variable] if variable is not None else list(candidates)
        array = next((candidates[name] for name in names if _is_drawn(candidates[name])), None)
    elif isinstance(obj, xr.DataArray):
        array = obj if _is_drawn(obj) else None
    else:
        values = np.asarray(obj)
        names = [f"axis {number}" for number in range(values.ndim)]
        array = xr.DataArray(values, dims=names)
        array = array if _is_drawn(array) else None
    if array is None:
        raise NoPicture("it holds no numbers")
    kept = _axes_kept(array)
    for dimension in array.dims:
        if dimension not in kept:
            array = array.isel({dimension: 0})
    return array


def _is_drawn(array: xr.DataArray) -> bool:
    return array.dtype.kind in "biuf" and array.size > 0


def _axes_kept(array: xr.DataArray) -> tuple[Hashable, ...]:
    latitude = [name for name in array.dims if str(name).lower() in LATITUDES]
    longitude = [name for name in array.dims if str(name).lower() in LONGITUDES]
    if latitude and longitude:
        return latitude[0], longitude[0]
    long = [name for name in array.dims if array.sizes[name] > 1]
    return tuple(long[-2:])


def _thinned(array: xr.DataArray) -> xr.DataArray:
    steps = {name: -(-size // MOST_POINTS) for name, size in array.sizes.items()}
    return array.isel({name: slice(None, None, step) for name, step in steps.items() if step > 1})


def _drawn(array: xr.DataArray) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 10,
        "axes.edgecolor": GRID,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        # A text of the data with a dollar sign is no formula.
        "text.parse_math": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.2, 4.2), dpi=DOTS_PER_INCH, layout="constrained")
        figure.set_facecolor(PAPER)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        match array.ndim:
            case 0:
                _number(axes, array)
            case 1:
                _lines(axes, array)
            case _ if array.shape[0] <= MOST_LINES and not _is_map(array):
                _lines(axes, array)
            case _:
                _image(figure, axes, array)
        axes.set_title(_title(array))
        target = io.BytesIO()
        canvas.print_png(target)
    return target.getvalue()


def _is_map(array: xr.DataArray) -> bool:
    return [str(name).lower() in names for name, names in zip(
        array.dims, (LATITUDES, LONGITUDES), strict=True
    )] == [True, True]  # fmt: skip


def _number(axes: Axes, array: xr.DataArray) -> None:
    axes.set_axis_off()
    units = str(array.attrs.get("units", ""))[:32]
    axes.text(0.5, 0.5, f"{array.item():.6g} {units}", ha="center", va="center", fontsize=28)


def _lines(axes: Axes, array: xr.DataArray) -> None:
    rows = array if array.ndim == 2 else array.expand_dims("line")
    across, along = rows.dims
    positions = _positions(rows, along)
    for number in range(rows.sizes[across]):
        line = rows.isel({across: number})
        values = line.to_numpy()
        marker = "o" if values.size < 3 else None
        label = str(_shown(array, across, number)) if array.ndim == 2 else None
        axes.plot(positions, values, linewidth=1.4, marker=marker, label=label)
    if array.ndim == 2:
        axes.legend(title=_label(array, across), fontsize=8, title_fontsize=8, frameon=False)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_xlabel(_label(array, along))
    axes.set_ylabel(_quantity(array))
    axes.margins(x=0.01)
    _dates(axes, positions)


def _image(figure: Any, axes: Axes, array: xr.DataArray) -> None:
    if _is_map(array):
        array = _eastward(array)
    upward, rightward = array.dims
    horizontal, vertical = _positions(array, rightward), _positions(array, upward)
    values = np.ma.masked_invalid(array.to_numpy().astype(float))
    colours, limits = _colours(values)
    mesh = axes.pcolormesh(
        horizontal, vertical, values, shading="nearest", cmap=colours, rasterized=True, **limits
    )
    # Inside of the axes' own frame, so that it is as tall as a map of whatever shape.
    bar = figure.colorbar(mesh, cax=axes.inset_axes((1.02, 0.0, 0.03, 1.0)))
    bar.outline.set_visible(False)
    bar.set_label(_quantity(array))
    axes.set_xlabel(_label(array, rightward))
    axes.set_ylabel(_label(array, upward))
    if _is_map(array) and _spans_degrees(horizontal, vertical):
        axes.set_aspect("equal")
    _dates(axes, horizontal)


def _eastward(array: xr.DataArray) -> xr.DataArray:
    """Turn a map so that both axes ascend."""
    for name in array.dims:
        if name in array.coords and array[name].ndim == 1 and array[name].dtype.kind in "iuf":
            array = array.sortby(name)
    return array


def _spans_degrees(horizontal: np.ndarray, vertical: np.ndarray) -> bool:
    if horizontal.dtype.kind not in "iuf" or vertical.dtype.kind not in "iuf":
        return False
    return bool(np.abs(vertical).max() <= 90 and np.abs(horizontal).max() <= 360)


def _colours(values: Any) -> tuple[str, dict[str, Any]]:
    """Choose colours: two hues around zero where values lie on both sides of it."""
    if not values.count():
        return "viridis", {}
    low, high = (float(limit) for limit in np.percentile(values.compressed(), [1, 99]))
    if low < 0 < high and min(-low, high) > 0.15 * max(-low, high):
        largest = max(-low, high)
        return "RdBu_r", {"vmin": -largest, "vmax": largest}
    return "viridis", {"vmin": low, "vmax": high} if low < high else {}


def _positions(array: xr.DataArray, dimension: Hashable) -> np.ndarray:
    """Give where the points of a dimension lie on an axis."""
    numbers = np.arange(array.sizes[dimension])
    if dimension not in array.coords:
        return numbers
    values = array.coords[dimension].to_numpy()
    if values.dtype.kind in "iufM" and not (values.dtype.kind == "M" and np.isnat(values).any()):
        return np.asarray(values)
    if values.dtype.kind == "O" and hasattr(values.flat[0], "calendar"):
        import cftime

        first = values.flat[0]
        # Years with a fraction: other calendars have days that matplotlib does not know.
        days = cftime.date2num(values, "days since 0001-01-01", calendar=first.calendar)
        length = {"360_day": 360.0, "noleap": 365.0, "365_day": 365.0}.get(first.calendar, 365.2425)
        return np.asarray(1.0 + np.asarray(days, dtype=float) / length)
    return numbers


def _dates(axes: Axes, positions: np.ndarray) -> None:
    if positions.dtype.kind == "M":
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _label(array: xr.DataArray, dimension: Hashable) -> str:
    if dimension not in array.coords:
        return str(dimension)[:64]
    coordinate = array.coords[dimension]
    return _with_units(str(coordinate.attrs.get("long_name", dimension)), coordinate)


def _quantity(array: xr.DataArray) -> str:
    attributes = array.attrs
    name = attributes.get("long_name", attributes.get("standard_name", array.name))
    return _with_units("" if name is None else str(name), array)


def _with_units(name: str, array: xr.DataArray) -> str:
    units = array.attrs.get("units")
    return f"{name[:64]} [{str(units)[:32]}]" if units else name[:64]


def _title(array: xr.DataArray) -> str:
    """Name what is drawn, and which one of each further dimension."""
    fixed = [
        f"{name} = {_text(coordinate.to_numpy()[()])}"
        for name, coordinate in array.coords.items()
        if coordinate.ndim == 0 and coordinate.dtype.kind in "iufMO"
    ]
    # Times say more than the rest.
    fixed.sort(key=lambda text: "time" not in text.partition(" ")[0])
    named = [] if array.name is None else [str(array.name)[:64]]
    title = ""
    for part in (*named, *fixed):
        longer = f"{title}, {part}" if title else part
        title = longer if len(longer) <= LONGEST_TITLE else title
    return title


def _shown(array: xr.DataArray, dimension: Hashable, number: int) -> Any:
    if dimension not in array.coords:
        return number
    return _text(array.coords[dimension].to_numpy()[number])


def _text(value: Any) -> str:
    if isinstance(value, np.datetime64):
        return str(value)[:16]
    if hasattr(value, "calendar"):
        return str(value.isoformat())[:16]
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)[:24]
