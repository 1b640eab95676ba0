"""Who gets at which dataset: grant, tier, embargo, licence and budget, in this order."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from federated_dask.errors import NotPermitted, Reason
from federated_dask.protocol.messages import Budget, Egress
from site_plugins.audit import Audit
from site_plugins.datasets import StoredDataset
from site_plugins.endpoint.authentication import owner_of
from site_plugins.endpoint.gateway import Gateway
from site_plugins.endpoint.release import Release
from site_plugins.ledger import Account, Ledger
from site_plugins.licences import Licences
from site_plugins.policy import Policy, unknown
from site_plugins.quotas import Quotas
from site_plugins.registry import Registry
from site_plugins.tokens import Principal

__all__ = ["Access"]


class Access:
    """Decides on the use of datasets.

    Parameters
    ----------
    gateway : Gateway
        Knows the datasets; from now on the policy hears from it of embargoes.
    policy : Policy
        What principals may do.
    registry : Registry
        Where budgets and accepted licences are written down.
    audit : Audit
        Where it is written down what was let out.
    quotas : Quotas, optional
        What one principal may use; by default what `site.toml` has by default.
    """

    def __init__(
        self,
        gateway: Gateway,
        policy: Policy,
        registry: Registry,
        audit: Audit,
        quotas: Quotas | None = None,
    ) -> None:
        self.gateway = gateway
        self.policy = policy
        self.audit = audit
        self.quotas = quotas or Quotas(registry, site=gateway.site)
        self.ledger = Ledger(registry)
        self.licences = Licences(registry)
        policy.embargo_of = gateway.embargo_of

    async def dataset(self, principal: Principal, action: str, name: str) -> StoredDataset:
        """Look up a dataset for a principal who wants to do something with it.

        Raises
        ------
        NotFound
            If it is not there, or the principal may not know of it.
        NotPermitted
            If it may not do this.
        """
        # The policy has to hear of an embargo before it decides.
        await self.gateway.state()
        self.policy.require(principal, action, f"dataset:{name}")
        return await self.gateway.dataset(name)

    async def source(self, principal: Principal, name: str) -> StoredDataset:
        """Look up a dataset that a principal's own expression is to read.

        Raises
        ------
        NotFound, NotPermitted
            As `dataset`; also where only functions may read it, or its licence
            was not accepted.
        """
        dataset = await self.dataset(principal, "compute", name)
        if dataset.egress == "functions-only":
            raise NotPermitted(
                f"Dataset {name!r} is read by published functions only.",
                reason=Reason.EXPORT_NOT_ALLOWED,
                site=self.gateway.site,
                hint="`fed.functions` lists them.",
            )
        self.require_license(principal, dataset)
        return dataset

    async def require_use(self, principal: Principal, *uses: tuple[str, str]) -> None:
        """Ask, before a body is read, whether there is anything that its sender could ask for.

        Parameters
        ----------
        principal : Principal
            Who sends it.
        uses : tuple of str
            Pairs of an action and a kind of resource, one of which must be allowed.

        Raises
        ------
        NotPermitted
            If none is, or as much of the principal's runs as may: whatever the body says.
        """
        state = await self.gateway.state()
        names = {
            # Where there are none, what counts is a grant on whichever there will be.
            "dataset": list(state.datasets) or ["any"],
            "function": list(state.functions) or ["any"],
            "site": [self.gateway.site],
        }
        allows = self.policy.allows
        if not any(
            allows(principal, action, f"{kind}:{name}")
            for action, kind in uses
            for name in names[kind]
        ):
            raise unknown(f"site:{self.gateway.site}", self.gateway.site)
        self.quotas.require(owner_of(principal), tasks=1)

    def require_license(self, principal: Principal, dataset: StoredDataset) -> None:
        """Raise `NotPermitted` where a licence has to be accepted first."""
        if not self.licences.is_accepted(owner_of(principal), dataset):
            raise NotPermitted(
                f"Dataset {dataset.name!r} is under the licence {dataset.license!r}, "
                "which you have not accepted yet.",
                reason=Reason.LICENSE_NOT_ACCEPTED,
                site=self.gateway.site,
                hint="Read it, and if you agree: "
                f'fed.accept_license("{self.gateway.site}/{dataset.name}").',
            )

    async def account(self, principal: Principal, dataset: StoredDataset) -> Account | None:
        """Tell whose budget of a dataset binds a principal; None where none does.

        The budget is that of the project by which the dataset was granted, so
        that its members share one; of the principal itself where it has a grant
        of its own.

        Raises
        ------
        NotPermitted
            If several projects could be meant.
        """
        resource = f"dataset:{dataset.name}"
        if dataset.egress == "open":
            return None
        if dataset.egress == "derived" and self.policy.allows(principal, "export", resource):
            return None
        description, _ = await self.gateway.description(dataset)
        total = description.egress.limit or 0
        grants = self.policy.decide(principal, "compute", resource).grants
        shared = sorted({grant.to for grant in grants if grant.to.startswith("project:")})
        asked = f"project:{principal.project}"
        if asked in shared:
            return Account(asked, total)
        if len(shared) == len({grant.to for grant in grants}) and shared:
            if len(shared) > 1:
                raise NotPermitted(
                    f"Dataset {dataset.name!r} is open to you by several projects.",
                    reason=Reason.NOT_PERMITTED,
                    site=self.gateway.site,
                    hint=f'Name one: FederatedClient(…, project="{shared[0][8:]}").',
                )
            return Account(shared[0], total)
        return Account(owner_of(principal), total)

    async def budget(self, principal: Principal, dataset: StoredDataset) -> Budget:
        """Tell what is left of a dataset's budget for a principal."""
        account = await self.account(principal, dataset)
        if account is None:
            return Budget(dataset=dataset.name, tier=dataset.egress)
        used = self.ledger.used(account.name, dataset.name)
        kind, _, name = account.name.partition(":")
        return Budget(
            dataset=dataset.name,
            tier=dataset.egress,
            project=name if kind == "project" and "\n" not in name else None,
            total=account.total,
            used=min(used, account.total),
        )

    async def egress(self, principal: Principal, dataset: StoredDataset) -> Egress:
        """Tell what may still leave of a dataset for a principal."""
        if dataset.egress == "functions-only":
            return Egress(tier=dataset.egress, limit=0)
        try:
            budget = await self.budget(principal, dataset)
        except NotPermitted:
            return Egress(tier=dataset.egress, limit=0)
        left = None if budget.total is None else budget.total - budget.used
        return Egress(tier=dataset.egress, limit=left)

    def reasons(self, principal: Principal, names: Iterable[str]) -> dict[str, list[str]]:
        """Tell by which grants a principal computes with datasets, for the audit log."""
        return {
            name: [
                grant.id
                for grant in self.policy.decide(principal, "compute", f"dataset:{name}").grants
            ]
            for name in sorted(names)
        }

    async def release(
        self, principal: Principal, names: Iterable[str], read: Collection[str] = ()
    ) -> Release:
        """Begin to let out what derives from datasets; those of peers have a ``/`` in their name.

        Parameters
        ----------
        principal : Principal
            For whom.
        names : iterable of str
            Datasets from which it derives.
        read : collection of str, optional
            Datasets that only a function reads: of their budget nothing is taken.

        Raises
        ------
        NotFound, NotPermitted
            If one may not leave at all.
        """
        egress, accounts = {}, {}
        for name in sorted({*names, *read}):
            if "/" in name:
                continue
            # A held result may derive from a dataset withdrawn since: unknown means refuse.
            dataset = await self.gateway.dataset(name)
            egress[name] = Egress(tier=dataset.egress)
            account = None if name in read else await self.account(principal, dataset)
            if account is not None:
                accounts[name] = account
        release = Release(
            self.policy, self.ledger, self.quotas, self.audit, principal, egress, accounts
        )
        # Held results may derive from datasets whose grant was revoked since.
        release.require()
        return release
