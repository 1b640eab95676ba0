"""Having sites let another site fetch what they hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from federated_dask.client.connection import SiteConnection
from federated_dask.protocol.messages import delegation_key

__all__ = ["delegate"]


async def delegate(
    connections: Mapping[str, SiteConnection],
    receiver: str,
    results: Iterable[tuple[str, str, int]],
) -> dict[str, str]:
    """Ask for the delegations with which a site may fetch results from others.

    Parameters
    ----------
    connections : mapping of str to SiteConnection
        Site name to connection.
    receiver : str
        Site that is to fetch them.
    results : iterable of (str, str, int)
        Site that holds a result, lease, and output.

    Returns
    -------
    dict
        For the field ``delegations`` of a submission.
    """
    outputs: dict[tuple[str, str, str], dict[int, None]] = {}
    for site, lease, output in results:
        numbers = outputs.setdefault((delegation_key(lease, output), site, lease), {})
        numbers[output] = None
    if not outputs:
        return {}
    async with asyncio.TaskGroup() as group:
        asked = {
            key: group.create_task(connections[site].delegate(lease, receiver, list(numbers)))
            for (key, site, lease), numbers in outputs.items()
        }
    return {key: task.result() for key, task in asked.items()}
