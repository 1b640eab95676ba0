"""What a site tells of a stored dataset: to a client, and to its operator.

`describe` makes the one message from which a client opens a dataset lazily.
Only plain data goes into it; of the encoding only what is listed here, because
encodings also hold the path.  `check` says in words what is wrong with a dataset.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from federated_dask.errors import DatasetUnreadable, FederatedError
from federated_dask.protocol import messages
from federated_dask.protocol.dtypes import encode_dtype
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.values import encode_value, object_kind
from site_plugins.contents import ContentReader
from site_plugins.datasets import StoredDataset, borrow, decoded, decoded_dtype

__all__ = ["check", "describe"]

LARGEST_INLINE = 16 * 1024
LARGEST_CHUNK = 2**30
INT64 = range(-(2**63), 2**64)
DEEPEST_ATTRIBUTE = 8
VARIABLE_ENCODING = (
    "dtype", "units", "calendar", "_FillValue", "missing_value", "scale_factor", "add_offset",
    "_Unsigned", "_Encoding", "char_dim_name", "coordinates", "grid_mapping", "chunks",
    "chunksizes", "preferred_chunks", "shards", "contiguous", "original_shape", "zlib", "zstd",
    "szip", "bzip2", "blosc", "shuffle", "complevel", "fletcher32",
)  # fmt: skip
DATASET_ENCODING = ("unlimited_dims", "coordinates", "zarr_format", "consolidated")


def describe(dataset: StoredDataset, site: str) -> tuple[messages.DatasetDescription, list[Buffer]]:
    """Describe a dataset so that it can be opened elsewhere without another question.

    Index coordinates and coordinates of at most 16 KiB come with their values; of
    datasets that are open, so do other small scalars, dates and texts; of those that
    only functions read, nothing does.  Of the variables of open datasets is told what
    their values are like, as far as a few small parts show it.
    Variables whose values have no wire form are left out; `check` names them.

    Parameters
    ----------
    dataset : StoredDataset
        The dataset.
    site : str
        Name of the site.

    Returns
    -------
    description : DatasetDescription
        The message.
    buffers : list of bytes-like
        The buffers of the values in it.

    Raises
    ------
    DatasetUnreadable
        If it does not open.
    VersionChanged
        If it changed meanwhile.
    """
    version = dataset.fingerprint()
    buffers: list[Buffer] = []
    variables = {}
    reader = ContentReader()
    with borrow(dataset, version) as content:
        for name, variable in content.variables.items():
            try:
                dtype = _wire_dtype(variable)
            except TypeError:
                continue
            chunks = stored_chunks(variable)
            goes_along = _goes_along(name, variable, content, dataset)
            # Where there is a budget, bytes count as they are, so nothing would be gained
            # by telling; of what only functions read, nothing of the content is told.
            is_told = dataset.egress == "open" and not goes_along
            variables[str(name)] = messages.VariableDescription(
                dimensions=tuple(map(str, variable.dims)),
                shape=variable.shape,
                dtype=dtype,
                attributes=_plain_items(variable.attrs),
                encoding=_plain_items(variable.encoding, VARIABLE_ENCODING),
                chunks=chunks,
                coordinate=name in content.coords,
                value=encode_value(decoded(variable), buffers) if goes_along else None,
                content=reader.read(variable, chunks) if is_told else None,
            )
        size = sum(_size(content.variables[name]) for name in variables)
        limit = int(dataset.share * size) if dataset.egress == "derived" else None
        limit = 0 if dataset.egress == "functions-only" else limit
        description = messages.DatasetDescription(
            site=site,
            name=dataset.name,
            version=version,
            variables=variables,
            attributes=_plain_items(content.attrs),
            encoding=_plain_items(content.encoding, DATASET_ENCODING),
            egress=messages.Egress(tier=dataset.egress, limit=limit),
            size=size,
        )
    return description, buffers


def _goes_along(
    name: Hashable, variable: xr.Variable, content: xr.Dataset, dataset: StoredDataset
) -> bool:
    """Say whether a variable's values are part of the description."""
    if dataset.egress == "functions-only":
        return False
    if variable.dims == (name,):
        return True
    if _size(variable) > LARGEST_INLINE:
        return False
    # xarray and Dask look at scalars and at dates and texts to name and cut them:
    # one more question each, if they stayed behind.
    is_looked_at = variable.ndim == 0 or variable.dtype.kind in "OT"
    return name in content.coords or (is_looked_at and dataset.egress == "open")


def check(dataset: StoredDataset) -> list[str]:
    """Say what is wrong with a dataset.

    Parameters
    ----------
    dataset : StoredDataset
        The dataset.

    Returns
    -------
    list of str
        One sentence per problem, for the operator only: they tell the path.
    """
    try:
        content = dataset.open_as_xarray_does()
    except Exception as error:
        # Engines raise whatever their libraries do; here the operator reads it.
        return [f"{dataset.path} does not open: {type(error).__name__}: {error}"]
    with content:
        problems = list(_problems(content))
    try:
        dataset.fingerprint()
    except DatasetUnreadable:
        problems.append(
            f"{dataset.path}: its filesystem does not tell whether it changed; give it a `version`"
        )
    if not problems:
        try:
            describe(dataset, "site")
        except FederatedError as error:
            cause = error.__context__
            problems.append(f"{dataset.path} cannot be read: {cause or error}")
    return problems


def _problems(content: xr.Dataset) -> Iterator[str]:
    if not content.variables:
        yield "it has no variables; if it has groups, name one by open_options = { group = … }"
    for name, variable in content.variables.items():
        try:
            _wire_dtype(variable)
        except TypeError as error:
            yield f"variable {name!r} is left out: {error}"
        except Exception as error:
            # Engines raise whatever their libraries do; here the operator reads it.
            yield f"variable {name!r} cannot be read: {type(error).__name__}: {error}"
        chunks = stored_chunks(variable)
        size = math.prod(chunks or ()) * variable.dtype.itemsize
        if chunks and size > LARGEST_CHUNK:
            yield f"variable {name!r} is stored in chunks of {size / 2**30:.1f} GiB, over 1 GiB"


def _wire_dtype(variable: xr.Variable) -> str:
    """Name the dtype as `VariableDescription.dtype` does; TypeError if it has no wire form."""
    dtype = decoded_dtype(variable)
    if not isinstance(dtype, np.dtype):
        raise TypeError(f"dtype {dtype} has no wire form")
    if not dtype.hasobject or dtype.names is not None:
        described = encode_dtype(dtype)
        if not isinstance(described, str):
            raise TypeError(f"the structured dtype {dtype} has no wire form")
        return described
    if not variable.size:
        return "object:objects"
    sample = decoded(variable[(0,) * variable.ndim])
    encode_value(sample, [])
    return f"object:{object_kind(sample)}"


def _size(variable: xr.Variable) -> int:
    return int(variable.size) * decoded_dtype(variable).itemsize


def stored_chunks(variable: xr.Variable) -> tuple[int, ...] | None:
    encoding = variable.encoding
    chunks: Any = encoding.get("chunks") or encoding.get("chunksizes")
    if preferred := encoding.get("preferred_chunks"):
        chunks = [preferred.get(dimension) for dimension in variable.dims]
    if not variable.ndim or not chunks or len(chunks) != variable.ndim:
        return None
    # Where a dimension is cut into pieces of different sizes, the largest counts.
    sizes = [max(chunk, default=0) if isinstance(chunk, tuple) else chunk for chunk in chunks]
    if not all(isinstance(size, int | np.integer) and size > 0 for size in sizes):
        return None
    return tuple(min(int(size), max(1, n)) for size, n in zip(sizes, variable.shape, strict=True))


class _NotPlain(Exception):
    """Has no form in msgpack, or not the same one afterwards."""


def _plain_items(items: Mapping[Any, Any], names: tuple[str, ...] | None = None) -> dict[str, Any]:
    found = {}
    for name, item in items.items():
        if names is not None and name not in names:
            continue
        try:
            found[_text(name)] = _plain(item)
        except _NotPlain:
            continue
    return found


def _plain(item: Any, depth: int = 0) -> Any:
    if depth > DEEPEST_ATTRIBUTE:
        raise _NotPlain
    match item:
        case np.ndarray() | np.generic() if item.dtype.kind in "biufSU":
            return _plain(item.tolist(), depth)
        case np.dtype() if item.names is None and item.subdtype is None:
            return item.str
        case type() if item is str:
            return "str"
        case str():
            return _text(item)
        case None | bool() | float() | bytes():
            return item
        case int() if item in INT64:
            return item
        case Mapping():
            return {_text(key): _plain(value, depth + 1) for key, value in item.items()}
        case list() | tuple():
            return [_plain(value, depth + 1) for value in item]
        case set() | frozenset():
            return sorted((_plain(value, depth + 1) for value in item), key=str)
    raise _NotPlain


def _text(item: Any) -> str:
    if isinstance(item, str):
        try:
            return item.encode().decode()
        except UnicodeEncodeError:
            # Files hold texts that are not Unicode; libraries keep their bytes as lone surrogates.
            raise _NotPlain from None
    raise _NotPlain
