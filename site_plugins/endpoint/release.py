"""What may leave the site of one job: asked before each result goes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from federated_dask.errors import NotPermitted, Reason
from federated_dask.protocol.messages import Egress
from site_plugins.policy import Policy
from site_plugins.tokens import Principal

__all__ = ["Release"]


class Release:
    """Lets results of a job out, or not.

    Parameters
    ----------
    policy : Policy
        Decides anew each time: grants may be revoked while a job runs.
    principal : Principal
        For whom the results are.
    egress : mapping of str to Egress
        Of every dataset that the results derive from.
    """

    def __init__(self, policy: Policy, principal: Principal, egress: Mapping[str, Egress]) -> None:
        self.policy = policy
        self.principal = principal
        self.egress = egress
        self.released: dict[str, int] = {}
        """Bytes released so far, by dataset whose egress has a limit."""

    def limited(self, datasets: Iterable[str]) -> list[str]:
        """Those of some datasets of which not everything may leave."""
        return [name for name in sorted(datasets) if self.egress[name].tier != "open"]

    def require(self, datasets: Iterable[str] | None = None) -> None:
        """Raise `NotPermitted` unless the principal may still compute with datasets."""
        for name in self.egress if datasets is None else datasets:
            if not self.policy.allows(self.principal, "compute", f"dataset:{name}"):
                raise NotPermitted(
                    f"You may not compute with dataset {name!r} any more.",
                    reason=Reason.NOT_PERMITTED,
                    site=self.policy.site,
                    hint="Ask the site's operator, who revoked the grant.",
                )

    def charge(self, datasets: Iterable[str], size: int) -> None:
        """Count bytes of a result that derives from datasets, before it goes out.

        Raises
        ------
        NotPermitted
            If they may not leave.
        """
        self.require(datasets)
        for dataset in self.limited(datasets):
            released = self.released.get(dataset, 0) + size
            limit = self.egress[dataset].limit
            if limit is None or released > limit:
                raise NotPermitted(
                    f"The job would release {released} bytes derived from {dataset!r}; "
                    f"{limit or 0} may leave the site.",
                    reason=Reason.EXPORT_NOT_ALLOWED,
                    site=self.policy.site,
                    hint="Reduce more before the data leaves: average over more of it.",
                )
            self.released[dataset] = released
