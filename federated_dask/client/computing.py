"""Computing Dask collections over the data of a federation: planned, run, and put together.

::

    collections ──► expression + keys ──► Plan ──► execute ──► results by key
                          │                                        │
                          └─ no data of a site: Dask's threads ────┤
                                                                   ▼
                              get: in the shape of the keys; start: futures;
                              persist: collections over what stays at the sites
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dask.base
import dask.threaded
from dask._expr import FinalizeCompute
from dask.base import collections_to_expr, unpack_collections
from dask.core import flatten
from dask.utils import parse_bytes

from federated_dask.client import loop
from federated_dask.client.execution import HomeCluster, execute
from federated_dask.client.federation import Federation
from federated_dask.client.future import FederatedFuture, share
from federated_dask.client.held import HeldValue, held_task
from federated_dask.client.kept_results import KeptResults
from federated_dask.client.progress import ProgressBars
from federated_dask.client.run_record import RunRecord
from federated_dask.collector import without_collection
from federated_dask.errors import ConfigurationError
from federated_dask.planner.explanation import Explanation
from federated_dask.planner.graph import Key, has_site_data
from federated_dask.planner.learning import LearntSizes
from federated_dask.planner.links import LinkCosts
from federated_dask.planner.plan import Plan, make_plan
from federated_dask.protocol.operations import operation_table

__all__ = ["Computer"]


class Computer:
    """Computes for a client, and learns from each run for the next plan.

    Parameters
    ----------
    federation : Federation
        Whose sites compute.
    home : distributed.Client, optional
        Runs what must run at home; by default threads of this process do.
    progress : bool, optional
        Show progress bars where the caller waits.
    timeout : float, optional
        Seconds that one compute may take, where it has no limit of its own.
    link_costs : mapping of (str, str) to float, optional
        What a byte costs on a link.
    cache_bytes : int or str, default 0
        Memory for results that came home, which later plans take from there.

    Attributes
    ----------
    last_run : RunRecord or None
        What the last compute really did and moved.
    """

    def __init__(
        self,
        federation: Federation,
        *,
        home: HomeCluster | None = None,
        progress: bool = False,
        timeout: float | None = None,
        link_costs: Mapping[tuple[str, str], float] | None = None,
        cache_bytes: int | str = 0,
    ) -> None:
        self.federation = federation
        self.timeout = timeout
        self.last_run: RunRecord | None = None
        self._home = home
        self._progress = progress
        self._table = operation_table()
        self._learnt = LearntSizes()
        self._links = LinkCosts(link_costs)
        self._kept = KeptResults(parse_bytes(cache_bytes))

    def get(self, dsk: Any, keys: Any, timeout: float | None = None, **options: Any) -> Any:
        """Compute keys of a graph, and wait for them; see `FederatedClient.get`."""
        wanted = keys if isinstance(keys, list) else [keys]
        if not has_site_data(dsk):
            here = dask.threaded.get if self._home is None else self._home.get
            return here(dsk, keys, **options)
        return _shaped(keys, self._run(self._plan(dsk, wanted), timeout))

    def start(self, items: list[Any], timeout: float | None) -> list[FederatedFuture[Any]]:
        """Compute collections in the background; what is none is its own result."""
        found, repack = unpack_collections(*items)
        if not found:
            return [FederatedFuture(future) for future in share(_finished(items), len(items))]
        expression, keys = _finalised(found)
        if has_site_data(expression):
            run = loop.start(self._execute(self._plan(expression, keys), timeout=timeout))
        else:
            run = loop.start(asyncio.to_thread(_computed_here, expression, keys))
        shares = share(run, len(items), lambda results: repack([results[key] for key in keys]))
        return [FederatedFuture(future) for future in shares]

    def persist(
        self, items: list[Any], optimize_graph: bool, timeout: float | None, **options: Any
    ) -> list[Any]:
        """Persist collections, and wait for it; see `FederatedClient.persist`."""
        found, repack = unpack_collections(*items)
        if not found:
            return items
        expression = collections_to_expr(found, optimize_graph)
        if not has_site_data(expression):
            return list(
                dask.base.persist(
                    *items, optimize_graph=optimize_graph, scheduler=dask.threaded.get, **options
                )
            )
        keys: list[Key] = list(flatten([each.__dask_keys__() for each in found]))
        results = self._run(self._plan(expression, keys, hold=True), timeout)
        rebuilt = []
        for each in found:
            rebuild, state = each.__dask_postpersist__()
            own = flatten(each.__dask_keys__())
            rebuilt.append(rebuild({key: _node(key, results[key]) for key in own}, *state))
        return list(repack(rebuilt))

    async def bring(self, arrays: Sequence[Any], at: str) -> list[list[HeldValue]]:
        """Compute dask arrays and leave their chunks at a site.

        Returns
        -------
        list of list of HeldValue
            For every array its chunks, in C order.
        """
        keys: list[list[Any]] = [list(flatten(array.__dask_keys__())) for array in arrays]
        wanted = [key for each in keys for key in each]

        def plan() -> Plan:
            return self._plan(collections_to_expr(arrays), wanted, hold=True, at=at)

        results = await self._execute(await asyncio.to_thread(plan))
        return [[results[key] for key in each] for each in keys]

    def explain(self, items: list[Any]) -> Explanation:
        """Plan a compute without running it; see `FederatedClient.explain`."""
        found, _ = unpack_collections(*items)
        if not found:
            raise ConfigurationError(
                "There is nothing to compute in what was given.",
                hint="Give lazy objects, before .compute().",
            )
        return Explanation(self._plan(*_finalised(found)))

    def _plan(
        self, expression: Any, keys: Iterable[Key], hold: bool = False, at: str | None = None
    ) -> Plan:
        return without_collection(
            lambda: make_plan(
                expression,
                keys,
                self.federation.facts,
                self._table,
                hold=hold,
                at=at,
                learnt=self._learnt,
                links=self._links,
                kept=self._kept if self._kept.nbytes > 0 else None,
            )
        )

    def _run(self, plan: Plan, timeout: float | None) -> dict[Key, Any]:
        with ProgressBars() if self._progress else contextlib.nullcontext() as bars:
            return loop.sync(self._execute(plan, bars, timeout))

    async def _execute(
        self, plan: Plan, report: ProgressBars | None = None, timeout: float | None = None
    ) -> dict[Key, Any]:
        results, self.last_run = await execute(
            plan,
            {site: self.federation.connection_of(site) for site in plan.sites},
            home=self._home,
            report=report,
            timeout=self.timeout if timeout is None else timeout,
            learnt=self._learnt,
            links=self._links,
            kept=self._kept,
        )
        return results


def _finalised(found: Sequence[Any]) -> tuple[Any, list[Key]]:
    expression = FinalizeCompute(collections_to_expr(found)).optimize()
    return expression, list(flatten(expression.__dask_keys__()))


def _computed_here(expression: Any, keys: list[Any]) -> dict[Key, Any]:
    return dict(zip(keys, dask.threaded.get(expression, keys), strict=True))


def _finished(result: Any) -> concurrent.futures.Future[Any]:
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_result(result)
    return future


def _node(key: Key, value: Any) -> Any:
    return held_task(key, value) if isinstance(value, HeldValue) else value


def _shaped(keys: Any, results: Mapping[Key, Any]) -> Any:
    if isinstance(keys, list):
        return [_shaped(key, results) for key in keys]
    return results[keys]
