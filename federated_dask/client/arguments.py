"""What a researcher passes to a function → what is sent to its site.

::

    a name of a dataset there        DatasetArgument         the site opens it lazily
    a name of one elsewhere          ┐
    a lazy dataset or array          ┴ HeldArgument          computed to the site first
    a future, a persisted array      HeldArgument            by reference; site → site
    data in memory                   SentArgument
    everything else                  PlainArgument           as JSON
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from federated_dask.client.computing import Computer
from federated_dask.client.delegations import delegate
from federated_dask.client.federation import Federation
from federated_dask.client.first_error import first_error
from federated_dask.client.functions import DescribedFunction
from federated_dask.client.future import FederatedFuture, lazy_result
from federated_dask.client.held import HeldValue, held_values
from federated_dask.client.opening import open_dataset
from federated_dask.client.plain import broken_rule, to_plain
from federated_dask.errors import Reason, RequestRefused
from federated_dask.planner.placement import exchange
from federated_dask.protocol.call_messages import (
    Argument,
    DatasetArgument,
    HeldArgument,
    ParameterDescription,
    PlainArgument,
    SentArgument,
)
from federated_dask.protocol.frames import Buffer
from federated_dask.protocol.graph import Held
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.structures import take_apart

__all__ = ["Encoded", "NamedDataset", "check_argument", "delegations_for", "encode_arguments"]


@dataclass(frozen=True)
class NamedDataset:
    """A dataset, or one variable of it, by name."""

    site: str
    name: str
    variable: str | None = None


@dataclass
class Encoded:
    """Arguments as they are sent."""

    keywords: dict[str, Argument] = field(default_factory=dict)
    buffers: list[Buffer] = field(default_factory=list)
    kept: list[HeldValue] = field(default_factory=list)
    """Results that must stay held until the call has ended."""


WANTED = {
    "dataset": "a dataset: its name ('north/a1b'), an xarray.Dataset or a future",
    "dataarray": "an array: the name of a dataset ('north/a1b') or variable "
    "('north/a1b/air_temperature'), an xarray.DataArray or a future",
    "ndarray": "an array of numpy or dask, or a future",
    "dataframe": "a pandas.DataFrame or a future",
}


def check_argument(function: DescribedFunction, parameter: ParameterDescription, value: Any) -> Any:
    """Check an argument as far as that goes here, and bring it into one of the forms to send.

    Parameters
    ----------
    function : DescribedFunction
        What is called.
    parameter : ParameterDescription
        For which parameter.
    value : object
        What was passed.

    Returns
    -------
    object
        A `PlainArgument`, `NamedDataset`, future, or data: an xarray object,
        array or table.

    Raises
    ------
    RequestRefused
        If it does not fit; names the parameter and the rule.
    """
    if isinstance(value, FederatedFuture):
        return value
    if parameter.kind == "value":
        return _plain(function, parameter, value)
    if value is None and not parameter.required and parameter.default is None:
        return PlainArgument()
    found = _data(parameter.kind, value)
    if found is None:
        raise function.refusal(
            f"{parameter.name!r} takes {WANTED[parameter.kind]}; {type(value).__name__} was given.",
            _way_out(parameter.kind, value),
        )
    return found


def _plain(function: DescribedFunction, parameter: ParameterDescription, value: Any) -> Any:
    if _has_futures(value):
        return value
    try:
        plain = to_plain(value)
    except (TypeError, RecursionError) as error:
        raise function.refusal(f"{parameter.name!r} takes plain data: {error}.") from None
    broken = broken_rule(plain, parameter.json_schema, function.description.json_schema)
    if broken is not None:
        raise function.refusal(f"{parameter.name!r} {broken}.", f"See {function.usage()}.")
    return PlainArgument(value=plain)


def _has_futures(value: Any) -> bool:
    if isinstance(value, FederatedFuture):
        return True
    if isinstance(value, Mapping):
        return any(map(_has_futures, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_futures, value))


def _data(kind: str, value: Any) -> Any:
    if kind in ("dataset", "dataarray") and isinstance(value, str):
        return _named(kind, value)
    if kind == "dataset":
        return value if isinstance(value, xr.Dataset) else None
    if kind == "dataarray":
        return value if isinstance(value, xr.DataArray) else None
    if kind == "dataframe":
        return value if isinstance(value, pd.DataFrame) else None
    if isinstance(value, xr.DataArray):
        return value.variable._data if _is_lazy(value.variable._data) else value.to_numpy()
    if isinstance(value, np.ndarray) or _is_lazy(value):
        return value
    if isinstance(value, list | tuple | int | float | np.generic):
        array = np.asarray(value)
        return None if array.dtype.hasobject else array
    return None


def _named(kind: str, value: str) -> NamedDataset | None:
    parts = value.removeprefix("fed://").split("/", 2)
    if not all(parts) or len(parts) < 2 or (len(parts) == 3 and kind == "dataset"):
        return None
    return NamedDataset(*parts)


def _way_out(kind: str, value: Any) -> str | None:
    if isinstance(value, str):
        return f"{value!r} has another form than 'site/dataset'."
    if kind == "dataset" and isinstance(value, xr.DataArray):
        return "to_dataset() makes one of it."
    if kind == "dataarray" and isinstance(value, xr.Dataset):
        return f"Choose a variable: {', '.join(map(repr, value.data_vars))}."
    return None


def _is_lazy(array: Any) -> bool:
    return hasattr(array, "dask") and hasattr(array, "chunks")


def _is_part(array: Any) -> bool:
    return _is_lazy(array) and not array.dtype.hasobject


async def encode_arguments(
    computer: Computer, function: DescribedFunction, given: Mapping[str, Any]
) -> Encoded:
    """Bring checked arguments to a function's site, as far as needed, and encode them.

    Parameters
    ----------
    computer : Computer
        Computes what is lazy.
    function : DescribedFunction
        What is called.
    given : mapping of str to object
        From `check_argument`, by the name of the parameter.
    """
    encoded = Encoded()
    lazy: list[Any] = []
    described = {}
    for name, value in given.items():
        parameter = function.parameters[name]
        ready = await _ready(computer, function, parameter, value)
        if isinstance(ready, PlainArgument | DatasetArgument):
            encoded.keywords[name] = ready
            continue
        try:
            content, arrays = take_apart(
                ready, encoded.buffers, operation_table(), is_part=_is_part
            )
        except TypeError as error:
            raise function.refusal(f"{name!r} cannot be sent: {error}.") from None
        if not arrays:
            encoded.keywords[name] = SentArgument(content=content)
            continue
        described[name] = content, range(len(lazy), len(lazy) + len(arrays))
        lazy += arrays
    if lazy:
        results = await _held(computer, function.site, lazy)
        for name, (content, positions) in described.items():
            held = [each for position in positions for each in results[position]]
            encoded.kept += held
            references = tuple(_reference(each, function.site) for each in held)
            encoded.keywords[name] = HeldArgument(content=content, held=references)
    return encoded


async def _ready(
    computer: Computer, function: DescribedFunction, parameter: ParameterDescription, value: Any
) -> Any:
    """Wait for futures, open what lies at other sites, and read what must be read first."""
    if parameter.kind == "value":
        if not _has_futures(value):
            return value
        return _plain(function, parameter, await _with_results(value))
    if isinstance(value, FederatedFuture):
        value = check_argument(function, parameter, await lazy_result(value))
    if isinstance(value, NamedDataset):
        if value.site == function.site:
            return DatasetArgument(name=value.name, variable=value.variable)
        name = f"{value.site}/{value.name}"
        opened = await asyncio.to_thread(open_dataset, computer.federation, name)
        value = opened if parameter.kind == "dataset" else _variable(function, opened, value)
    if isinstance(value, xr.Dataset | xr.DataArray):
        return await _read(value)
    if _is_lazy(value) and value.dtype.hasobject:
        return await asyncio.to_thread(value.compute)
    return value


async def _with_results(value: Any) -> Any:
    if isinstance(value, FederatedFuture):
        return await value
    if isinstance(value, Mapping):
        return {key: await _with_results(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [await _with_results(item) for item in value]
    return value


def _variable(function: DescribedFunction, opened: xr.Dataset, named: NamedDataset) -> xr.DataArray:
    names = [str(name) for name in opened.data_vars]
    if named.variable is None and len(names) == 1:
        return opened[names[0]]
    if named.variable is not None and named.variable in opened.variables:
        return opened[named.variable]
    raise RequestRefused(
        f"{function.description.name}: {named.site}/{named.name} is no single array.",
        reason=Reason.INVALID_ARGUMENT,
        site=function.site,
        hint=f"Name the variable as well: {named.site}/{named.name}/{names[0] if names else '…'}.",
    )


async def _read(obj: Any) -> Any:
    """Make chunks of stored variables that have none; read texts and dates, which cross whole."""
    dataset = obj._to_temp_dataset() if isinstance(obj, xr.DataArray) else obj
    texts: list[Any] = []
    bare: list[Any] = []
    for name, variable in dataset.variables.items():
        if _is_lazy(variable._data):
            if variable.dtype.hasobject:
                texts.append(name)
        elif not variable._in_memory and not isinstance(variable._data, np.ndarray):
            (texts if variable.dtype.hasobject else bare).append(name)
    if not texts and not bare:
        return obj
    chunked = {name: dataset.variables[name].chunk() for name in bare}
    if texts:
        loaded = await asyncio.to_thread(dataset[texts].compute)
        chunked.update({name: loaded.variables[name] for name in texts})
    changed = dataset._replace_with_new_dims({**dataset.variables, **chunked})
    return obj._from_temp_dataset(changed) if isinstance(obj, xr.DataArray) else changed


async def _held(computer: Computer, site: str, arrays: Sequence[Any]) -> list[list[HeldValue]]:
    """Give for every dask array its chunks, held where the site can get them."""
    results: dict[int, list[HeldValue]] = {}
    for position, array in enumerate(arrays):
        values = held_values(array)
        if values is not None and all(_can_fetch(computer, site, value) for value in values):
            results[position] = values
    rest = [position for position in range(len(arrays)) if position not in results]
    if rest:
        computed = await computer.bring([arrays[position] for position in rest], site)
        results.update(zip(rest, computed, strict=True))
    return [results[position] for position in range(len(arrays))]


def _can_fetch(computer: Computer, site: str, value: HeldValue) -> bool:
    holder = value.source.site
    return holder == site or exchange(computer.federation.facts, holder, site)


def _reference(value: HeldValue, site: str) -> Held:
    source = value.source
    return Held(source.lease, source.output, None if source.site == site else source.site)


async def delegations_for(
    federation: Federation, site: str, held: Sequence[HeldValue]
) -> dict[str, str]:
    """Have the sites that hold parts let another site fetch them; they allow it for minutes."""
    elsewhere = [each.source for each in held if each.source.site != site]
    connections = {each.site: federation.connection_of(each.site) for each in elsewhere}
    results = [(each.site, each.lease, each.output) for each in elsewhere]
    with first_error():
        return await delegate(connections, site, results)
