"""What may leave the site of one job: asked before each result goes out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping

from federated_dask.errors import NotPermitted, Reason
from federated_dask.protocol.messages import Egress
from site_plugins.audit import Audit
from site_plugins.endpoint.authentication import owner_of
from site_plugins.endpoint.finishing import finished
from site_plugins.ledger import Account, Exhausted, Ledger
from site_plugins.policy import Policy
from site_plugins.quotas import Quotas
from site_plugins.tokens import Principal

__all__ = ["OUTCOME_BYTES", "Release"]

OUTCOME_BYTES = 8
"""What a job over data with a budget costs at least: whether it fails tells something too."""


class Release:
    """Lets results of a job out, or not.

    Parameters
    ----------
    policy : Policy
        Decides anew each time: grants may be revoked while a job runs.
    ledger : Ledger
        Of the budgets.
    quotas : Quotas
        Of the principal.
    audit : Audit
        Told of everything that leaves a dataset with a budget.
    principal : Principal
        For whom the results are.
    egress : mapping of str to Egress
        Of every dataset of this site that the results derive from.
    accounts : mapping of str to Account
        Of those datasets whose budget binds this principal.
    """

    def __init__(
        self,
        policy: Policy,
        ledger: Ledger,
        quotas: Quotas,
        audit: Audit,
        principal: Principal,
        egress: Mapping[str, Egress],
        accounts: Mapping[str, Account],
    ) -> None:
        self.policy = policy
        self.ledger = ledger
        self.quotas = quotas
        self.audit = audit
        self.job = ""
        """Name of the job, for the audit log."""
        self.tasks = 0
        """Tasks of the job."""
        self.compute_seconds = 0.0
        """What they took so far."""
        self._owner = owner_of(principal)
        self._entered = False
        self.principal = principal
        self.egress = egress
        self.accounts = accounts
        self.released: Counter[str] = Counter()
        """Bytes released so far, by dataset."""
        self.bytes = 0
        """Bytes released so far in all."""
        self.again = False
        """Whether it all has left before, and costs nothing."""
        self._aside: Counter[str] = Counter()
        """Taken from the budgets, not released yet."""

    def limited(self, datasets: Iterable[str]) -> list[str]:
        """Those of some datasets of which not everything may leave."""
        return [name for name in sorted(datasets) if name in self.accounts]

    def left(self, dataset: str) -> int | None:
        """Tell how much of a dataset may still leave; None where nothing binds."""
        account = self.accounts.get(dataset)
        if account is None:
            return None
        return max(0, account.total - self.ledger.used(account.name, dataset))

    def withheld(self, datasets: Iterable[str]) -> list[str]:
        """Those of some datasets whose values no message may quote."""
        return [
            name
            for name in sorted(datasets)
            if name not in self.egress or self.egress[name].tier != "open"
        ]

    def require(self, datasets: Iterable[str] | None = None) -> None:
        """Raise `NotPermitted` unless the principal may still compute with datasets."""
        if self.policy.standing(self.principal) is None:
            raise NotPermitted(
                "Your token was revoked.",
                reason=Reason.NOT_PERMITTED,
                site=self.policy.site,
                hint="Ask the site's operator.",
            )
        for name in self.egress if datasets is None else datasets:
            # What came from a peer was released there, to the same principal.
            if name not in self.egress:
                continue
            if not self.policy.allows(self.principal, "compute", f"dataset:{name}"):
                raise self._ended(name)

    def _ended(self, dataset: str) -> NotPermitted:
        """Say why a principal may not compute with a dataset any more."""
        message = f"You may not compute with dataset {dataset!r} any more"
        left = self.policy.left(self.principal, "compute", f"dataset:{dataset}")
        if left:
            return NotPermitted(
                f"{message}: it was open to members of {', '.join(left)}, and you are none now.",
                reason=Reason.NOT_PERMITTED,
                site=self.policy.site,
                hint="Ask who leads the project; where its site does not answer, try again later.",
            )
        return NotPermitted(
            f"{message}: the grant was revoked.",
            reason=Reason.NOT_PERMITTED,
            site=self.policy.site,
            hint="Ask the site's operator.",
        )

    def require_quotas(self) -> None:
        """Raise `NotPermitted` where a running job uses up a quota."""
        self.quotas.require_seconds(self._owner, self.compute_seconds)

    async def reserve(self, planned: Mapping[str, int]) -> None:
        """Begin: take what a job is going to release from the budgets, before it runs.

        Parameters
        ----------
        planned : mapping of str to int
            Dataset to bytes, as far as they are known.

        Raises
        ------
        NotPermitted
            If less is left, or a quota is used up.
        """
        self.quotas.enter(self._owner, tasks=self.tasks)
        self._entered = True
        if self.accounts and not self.again:
            sizes = {name: planned.get(name, 0) for name in self.accounts}
            await self._take({name: size + OUTCOME_BYTES for name, size in sizes.items()})
            self._aside.update(sizes)

    async def charge(self, datasets: Iterable[str], size: int) -> None:
        """Count bytes of a result that derives from datasets, before it goes out.

        Raises
        ------
        NotPermitted
            If they may not leave.
        """
        datasets = sorted(datasets)
        self.require(datasets)
        limited = [] if self.again else self.limited(datasets)
        missing = {name: max(0, size - self._aside[name]) for name in limited}
        # Set aside or taken now: until this has happened nothing leaves.
        if any(missing.values()):
            await self._take(missing)
        for name in limited:
            self._aside[name] -= size - missing[name]
        # Only now: what these refuse tells the size, which is paid for by then.
        self.quotas.require_result(self.bytes + size)
        if not self.quotas.is_ahead(self._owner, size):
            await asyncio.to_thread(self.quotas.spend, self._owner, size)
        else:
            self.quotas.spend(self._owner, size)
        self.released.update(dict.fromkeys(datasets, size))
        self.bytes += size
        if limited:
            self.audit.write(
                "released", self.principal, job=self.job, bytes=size, datasets=datasets
            )

    async def _take(self, sizes: Mapping[str, int]) -> None:
        taking = asyncio.ensure_future(asyncio.to_thread(self.ledger.take, self.accounts, sizes))
        try:
            # A thread goes on, whoever leaves.
            await finished(taking)
        except asyncio.CancelledError:
            if taking.exception() is None:
                # Nothing leaves for it: it is given back at the end.
                self._aside.update(sizes)
            raise
        except Exhausted as error:
            # Sizes may depend on values: what was refused is not told, nor by how much.
            raise NotPermitted(
                f"The results would be more than the {error.left:,} bytes that are left of the "
                f"budget of {error.dataset!r}.",
                reason=Reason.BUDGET_EXHAUSTED,
                site=self.policy.site,
                hint="Reduce more before the data leaves: average over more of it. "
                f'fed.budget("{self.policy.site}/{error.dataset}") shows the budget.',
            ) from None

    async def close(self) -> None:
        """End: give back what was taken from the budgets and not released."""
        rest = {name: size for name, size in self._aside.items() if size > 0}
        self._aside.clear()
        if self._entered:
            self._entered = False
            self.quotas.leave(self._owner, tasks=self.tasks, cpu_seconds=self.compute_seconds)
        if rest:
            await finished(asyncio.to_thread(self.ledger.give_back, self.accounts, rest))
