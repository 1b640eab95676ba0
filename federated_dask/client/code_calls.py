"""Functions of the researcher's own that run at a site, for who has a grant for `code` there.

The callable is pickled here and unpickled by the worker that runs it; nobody in between
looks into it.  Its arguments go the ways of those of published functions, and what comes
back is no pickle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from federated_dask.client.arguments import Encoded, check_argument, encode_arguments
from federated_dask.client.catalogue import Datasets
from federated_dask.client.computing import Computer
from federated_dask.client.functions import DescribedFunction
from federated_dask.client.future import FederatedFuture, lazy_result
from federated_dask.errors import ConfigurationError, NotPermitted, Reason, RequestRefused
from federated_dask.protocol.call_messages import (
    LARGEST_CODE,
    CodeSubmission,
    FunctionDescription,
    ParameterDescription,
)

__all__ = ["encode_code", "pickled_callable", "refusals_explained"]


def pickled_callable(function: Callable[..., Any], site: str) -> bytes:
    """Pickle a callable for a site.

    Raises
    ------
    ConfigurationError
        If it cannot be pickled.
    RequestRefused
        If it is too large.
    """
    # Comes with dask; not needed by who calls functions by their names.
    import cloudpickle

    name = getattr(function, "__name__", type(function).__name__)
    try:
        pickled: bytes = cloudpickle.dumps(function)
    except Exception as error:
        # What a callable closes over raises whatever its author wrote.
        raise ConfigurationError(
            f"{name} cannot be sent to {site}: {type(error).__name__}: {error}",
            hint="Pass what it needs as arguments instead of closing over it.",
        ) from error
    if len(pickled) > LARGEST_CODE:
        raise RequestRefused(
            f"{name} has {len(pickled):,} bytes with what it closes over; a site takes "
            f"{LARGEST_CODE:,}.",
            reason=Reason.LIMIT_EXCEEDED,
            site=site,
            hint="Pass data as arguments instead of closing over it.",
        )
    return pickled


async def encode_code(
    computer: Computer,
    site: str,
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
    label: str,
) -> tuple[CodeSubmission, Encoded]:
    """Bring arguments to a site, as far as needed, and encode them.

    Parameters
    ----------
    computer : Computer
        Computes what is lazy.
    site : str
        Where the callable is going to run.
    arguments, keywords : tuple, mapping
        Futures among them are waited for; texts that name datasets stand for these.
    label : str
        What the callable is called.

    Returns
    -------
    CodeSubmission
        The call.
    Encoded
        Its buffers, and what must stay held until it has ended.
    """
    given = {str(number): await _ready(value) for number, value in enumerate(arguments)}
    given.update({name: await _ready(value) for name, value in keywords.items()})
    described = FunctionDescription(
        name=label,
        parameters=tuple(
            ParameterDescription(name=name, kind=_kind(computer.federation.datasets, value))
            for name, value in given.items()
        ),
    )
    function = DescribedFunction(site, described)
    checked = {
        name: check_argument(function, function.parameters[name], value)
        for name, value in given.items()
    }
    encoded = await encode_arguments(computer, function, checked)
    submission = CodeSubmission(
        arguments=tuple(encoded.keywords[str(number)] for number in range(len(arguments))),
        keywords={name: encoded.keywords[name] for name in keywords},
        label=label[:200] if label.isprintable() else "",
    )
    return submission, encoded


@contextlib.contextmanager
def refusals_explained(label: str, site: str) -> Iterator[None]:
    """Say the ways out where a site does not take code."""
    try:
        yield
    except NotPermitted as error:
        if error.reason is not Reason.NOT_PERMITTED:
            raise
        raise NotPermitted(
            f"{label} was not run: {error.message}",
            reason=error.reason,
            site=error.site or site,
            hint=f"Write it with operations of xarray and dask, which run at {site}; call a "
            f"function that {site} publishes (fed.functions); ask the institute to publish this "
            "one, or to grant you `code`; or leave out site= to run it at home, on what may come "
            "there.",
        ) from None


async def _ready(value: Any) -> Any:
    return await lazy_result(value) if isinstance(value, FederatedFuture) else value


def _kind(datasets: Datasets, value: Any) -> str:
    """Tell how a value is passed."""
    if isinstance(value, str):
        site, _, rest = value.removeprefix("fed://").partition("/")
        name, slash, variable = rest.partition("/")
        if f"{site}/{name}" not in datasets:
            return "value"
        return "dataarray" if slash and variable else "dataset"
    if isinstance(value, xr.Dataset):
        return "dataset"
    if isinstance(value, xr.DataArray):
        return "dataarray"
    if isinstance(value, pd.DataFrame):
        return "dataframe"
    if isinstance(value, np.ndarray) or (hasattr(value, "dask") and hasattr(value, "chunks")):
        return "ndarray"
    return "value"
