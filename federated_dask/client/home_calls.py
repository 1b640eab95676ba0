"""Functions of the researcher's own: they run at home, on what may come there.

What a site publishes is called by its name, and code that a site may be sent is
(`federated_dask.client.code_calls`); anything else has its arguments brought home first,
as far as their sites let them go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import dask.base

from federated_dask.client.computing import Computer
from federated_dask.client.future import FederatedFuture
from federated_dask.errors import NotPermitted

__all__ = ["call_at_home"]


async def call_at_home(
    computer: Computer,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
) -> Any:
    """Call a function here, on a thread.

    Parameters
    ----------
    computer : Computer
        Computes what is lazy.
    function : callable
        What is called.
    arguments, keywords : tuple, mapping
        Its arguments; futures in them are waited for, lazy collections computed.

    Raises
    ------
    NotPermitted
        If what it needs may not leave its site; says the ways out.
    """
    given = await _resolved(list(arguments))
    named = await _resolved(dict(keywords))

    def call() -> Any:
        try:
            positional, by_name = dask.base.compute(given, named, scheduler=computer.get)
        except NotPermitted as error:
            raise _refusal(function, error) from error
        return function(*positional, **by_name)

    return await asyncio.to_thread(call)


async def _resolved(nested: Any) -> Any:
    if isinstance(nested, FederatedFuture):
        return await nested
    if isinstance(nested, list | tuple):
        return type(nested)([await _resolved(each) for each in nested])
    if isinstance(nested, dict):
        return {key: await _resolved(each) for key, each in nested.items()}
    return nested


def _refusal(function: Any, error: NotPermitted) -> NotPermitted:
    name = getattr(function, "__name__", type(function).__name__)
    where = error.site or "the site"
    return NotPermitted(
        f"{name} would run at home, and what it needs may not come here: {error.message}",
        reason=error.reason,
        site=error.site,
        hint=f"Write it with operations of xarray and dask, which run at {where}; reduce the data "
        f"before it is called; call a function that {where} publishes (fed.functions), or ask the "
        "institute to publish this one or to grant you `code`, which `site=` takes.",
    )
