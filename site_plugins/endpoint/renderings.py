"""Results in the media types that other programs read.

============================================== ===========================================
``application/json``                            anything; see `site_plugins.endpoint.plain`
``application/octet-stream``                    one array, its bytes in C order
``application/vnd.apache.arrow.stream``         tables; arrays as long tables
``application/x-netcdf``                        xarray objects and arrays
``image/png``                                   a picture of anything that holds numbers
============================================== ===========================================

All of it takes processor time: callers do it in a thread.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException

from federated_dask.errors import NotFound, Reason, RequestRefused
from federated_dask.protocol.frames import Buffer
from site_plugins.endpoint.negotiation import best_of
from site_plugins.endpoint.plain import RAW_KINDS, ArrayForm, as_json, dumped, kind_of
from site_plugins.endpoint.plots import NoPicture, picture_of

__all__ = ["ARROW", "JSON", "MEDIA_TYPES", "NETCDF", "PNG", "RAW", "Rendered", "choose", "render"]

JSON = "application/json"
RAW = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.stream"
NETCDF = "application/x-netcdf"
PNG = "image/png"
MEDIA_TYPES = (JSON, RAW, ARROW, NETCDF, PNG)
"""All of them, the one that is sent by default first."""
SUFFIXES = {JSON: "json", RAW: "bin", ARROW: "arrows", NETCDF: "nc", PNG: "png"}

MEBI = 2**20
CAPS = {JSON: 32 * MEBI, RAW: 512 * MEBI, ARROW: 256 * MEBI, NETCDF: 256 * MEBI, PNG: 256 * MEBI}
"""Bytes of arrays that are rendered at once."""


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A body, and what its headers say of it."""

    body: Buffer
    media_type: str
    headers: dict[str, str]


def choose(accept: str, offered: tuple[str, ...] = MEDIA_TYPES) -> str:
    """Choose the media type that a request accepts best.

    Raises
    ------
    HTTPException
        Status 406, if it accepts none.
    """
    found = best_of(accept, offered)
    if found is None:
        raise HTTPException(406, f"None of the accepted media types; {', '.join(offered)} can be.")
    return found


def render(
    obj: Any,
    media_type: str,
    *,
    arrays: ArrayForm = "lists",
    variable: str | None = None,
    name: str = "result",
) -> Rendered:
    """Render an object.

    Parameters
    ----------
    obj : object
        In memory.
    media_type : str
        One of `MEDIA_TYPES`.
    arrays : {"lists", "base64", "omitted"}, optional
        Of JSON: how arrays stand in it.
    variable : str, optional
        Only this variable of a Dataset, or column of a DataFrame.
    name : str, optional
        Name of the file where a browser saves it.

    Raises
    ------
    HTTPException
        Status 406, if the object has no such form.
    RequestRefused
        If it is too large for that form.
    NotFound
        If it has no such variable.

    Examples
    --------
    >>> render({"mean": 1.5}, JSON).body
    b'{"mean":1.5}'
    """
    if variable is not None:
        obj = _part_of(obj, variable)
    size = _size(obj) if arrays != "omitted" or media_type != JSON else 0
    if size > CAPS[media_type]:
        raise RequestRefused(
            f"The result has {size} bytes; as {media_type} this site sends {CAPS[media_type]}.",
            reason=Reason.LIMIT_EXCEEDED,
            hint="Read it as Zarr, chunk by chunk, or reduce it more before it travels.",
        )
    headers = {"Content-Disposition": f'inline; filename="{name}.{SUFFIXES[media_type]}"'}
    try:
        match media_type:
            case "application/octet-stream":
                array = _one_array(obj)
                headers |= describing(array, getattr(obj, "dims", None))
                body: Buffer = raw_bytes(array)
            case "application/vnd.apache.arrow.stream":
                body = _arrow(obj)
            case "application/x-netcdf":
                body = _netcdf(obj)
            case "image/png":
                body = picture_of(obj)
            case _:
                body = dumped(as_json(obj, arrays))
    except NoPicture as error:
        raise HTTPException(406, f"There is no picture of it: {error}.") from None
    except TypeError as error:
        raise HTTPException(406, f"It cannot be sent as {media_type}: {error}.") from None
    return Rendered(body, media_type, headers)


def _part_of(obj: Any, variable: str) -> Any:
    kind = kind_of(obj)
    names = {"dataset": lambda: obj.variables, "dataframe": lambda: obj.columns}.get(kind, tuple)()
    if kind == "dataarray" and variable == obj.name:
        return obj
    if kind == "dataarray" and variable in obj.coords:
        return obj.coords[variable]
    if variable not in names:
        raise NotFound(
            f"The result has no variable {variable[:128]!r}.", reason=Reason.UNKNOWN_VARIABLE
        )
    return obj[variable].to_numpy() if kind == "dataframe" else obj[variable]


def _size(obj: Any) -> int:
    match kind_of(obj):
        case "dataframe":
            return int(obj.memory_usage(deep=False).sum())
        case "value":
            return 0
    return int(obj.nbytes)


def _one_array(obj: Any) -> np.ndarray:
    kind = kind_of(obj)
    if kind == "dataarray":
        return obj.to_numpy()  # type: ignore[no-any-return]
    if kind == "ndarray" or isinstance(obj, bool | int | float | complex | np.generic):
        return np.asarray(obj)
    raise TypeError("only one array has raw bytes; choose one by `variable`")


def raw_bytes(array: np.ndarray) -> Buffer:
    """Give the bytes of an array, little-endian, in C order.

    Raises
    ------
    TypeError
        If its elements are no numbers, times or booleans.
    """
    if array.dtype.kind not in RAW_KINDS or array.dtype.itemsize > 16:
        raise TypeError(f"an array of {array.dtype} has no raw form")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype("<f8")
    stored = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return stored.reshape(-1).view(np.uint8).data if stored.size else b""


def describing(array: np.ndarray, dimensions: Any = None) -> dict[str, str]:
    """Describe raw bytes in headers.

    Examples
    --------
    >>> describing(np.zeros((2, 3), ">f4"))
    {'Federated-DType': '<f4', 'Federated-Shape': '[2, 3]'}
    """
    dtype = array.dtype.newbyteorder("<")
    if dtype.kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype("<f8")
    headers = {"Federated-DType": dtype.str, "Federated-Shape": json.dumps(list(array.shape))}
    if dimensions is not None:
        # JSON as it stands is ASCII, whatever the names hold.
        headers["Federated-Dimensions"] = json.dumps([str(name) for name in dimensions])
    return headers


def _as_xarray(obj: Any) -> Any:
    import xarray as xr

    match kind_of(obj):
        case "dataset" | "dataarray":
            return obj
        case "ndarray":
            return xr.DataArray(obj, name="result")
        case "dataframe":
            return obj.to_xarray()
    if isinstance(obj, bool | int | float | np.generic):
        return xr.DataArray(obj, name="result")
    raise TypeError(f"a {type(obj).__name__} is no array")


def _netcdf(obj: Any) -> Buffer:
    content = _as_xarray(obj)
    if kind_of(content) == "dataarray":
        content = content.to_dataset(name=content.name or "result")
    # What its source was packed with need not fit what was made of it.
    content = content.drop_encoding()
    try:
        written = content.to_netcdf(engine="h5netcdf")
    except ValueError as error:
        raise TypeError(str(error)[:200]) from None
    return written if isinstance(written, bytes) else bytes(written)


def _require_small_table(content: Any) -> None:
    """Refuse what would be too long a table: one of all combinations of its dimensions."""
    arrays = list(content.coords.values())
    arrays += content.data_vars.values() if kind_of(content) == "dataset" else [content]
    rows = math.prod(content.sizes.values())
    # Texts are objects in a DataFrame; dimensions are columns, too.
    width = 8 * len(content.sizes) + sum(
        max(8 if array.dtype.kind in RAW_KINDS else 64, array.dtype.itemsize) for array in arrays
    )
    if rows * width > CAPS[ARROW]:
        raise RequestRefused(
            f"The result makes a table of {rows} rows and {rows * width} bytes; as {ARROW} this "
            f"site sends {CAPS[ARROW]}.",
            reason=Reason.LIMIT_EXCEEDED,
            hint="Ask for one variable, for another media type, or read it as Zarr.",
        )


def _arrow(obj: Any) -> Buffer:
    import pyarrow as pa

    frame = obj
    if kind_of(obj) != "dataframe":
        content = _as_xarray(obj)
        if kind_of(content) == "dataarray":
            content = content.rename(content.name or "result")
        if not content.dims:
            content = content.expand_dims("row")
        _require_small_table(content)
        frame = content.to_dataframe().reset_index()
    try:
        table = pa.Table.from_pandas(frame)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise TypeError(str(error)[:200]) from None
    target = io.BytesIO()
    with pa.ipc.new_stream(target, table.schema) as writer:
        writer.write_table(table)
    return target.getvalue()
