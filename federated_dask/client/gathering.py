"""Waiting for the results of several futures at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from federated_dask.client.future import FederatedFuture

__all__ = ["all_results", "gathered"]


async def all_results(futures: Sequence[FederatedFuture[Any]]) -> list[Any]:
    """Wait for futures that nobody else has; they stop with whoever waits."""
    try:
        return [await future for future in futures]
    except BaseException:
        # Whatever ended the waiting, an interrupt too: nobody wants the others any more.
        for future in futures:
            future.cancel()
        raise


async def gathered(nested: Any, *, skip_errors: bool) -> Any:
    """Wait for the futures in nested containers; give the results in their shape.

    Parameters
    ----------
    nested : object
        A future, or containers of them; anything else is its own result.
    skip_errors : bool
        Leave out of its container what raised, instead of raising it.
    """
    found: list[FederatedFuture[Any]] = []
    _collect(nested, found.append)
    unique = list(dict.fromkeys(found))
    skipping = skip_errors and not isinstance(nested, FederatedFuture)
    replies = await asyncio.gather(*unique, return_exceptions=skipping)
    return _filled(nested, dict(zip(unique, replies, strict=True)))


def _collect(nested: Any, take: Callable[[FederatedFuture[Any]], object]) -> None:
    if isinstance(nested, FederatedFuture):
        take(nested)
    elif isinstance(nested, Mapping):
        _collect(list(nested.values()), take)
    elif isinstance(nested, list | tuple | set | frozenset):
        for each in nested:
            _collect(each, take)


def _filled(nested: Any, results: Mapping[FederatedFuture[Any], Any]) -> Any:
    if isinstance(nested, FederatedFuture):
        return results[nested]
    if isinstance(nested, Mapping):
        return {
            key: _filled(each, results) for key, each in nested.items() if _is_there(each, results)
        }
    if isinstance(nested, list | tuple | set | frozenset):
        return type(nested)(_filled(each, results) for each in nested if _is_there(each, results))
    return nested


def _is_there(each: Any, results: Mapping[FederatedFuture[Any], Any]) -> bool:
    return not (isinstance(each, FederatedFuture) and isinstance(results[each], BaseException))
