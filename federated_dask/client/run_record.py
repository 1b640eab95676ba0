"""What a compute really did: `FederatedClient.last_run`."""

from __future__ import annotations

import html
from dataclasses import dataclass, field

from dask.utils import format_bytes, format_time

from federated_dask.planner.explanation import html_table, kept_text, text_table

__all__ = ["Link", "RunRecord", "SiteRun"]


@dataclass(frozen=True)
class Link:
    """One direction between two places, in one run."""

    start: str
    end: str
    predicted_bytes: int
    actual_bytes: int
    """Bytes of message bodies, counted as they passed the connection."""


@dataclass
class SiteRun:
    """What one site did in one run."""

    tasks: int = 0
    compute_seconds: float = 0.0
    read_bytes: int = 0
    """Bytes, decoded, read from storage."""


@dataclass
class RunRecord:
    """What a compute really did.

    Attributes
    ----------
    links : list of Link
        Bytes predicted and bytes counted, per link and direction.
    sites : dict of str to SiteRun
        What each site did.
    download_bytes : int
        Bytes that downloading the inputs instead would have moved.
    seconds : float
        Wall time from planning to the last result.
    kept_results : int
        Results of earlier runs that were still at home and were used again.
    """

    links: list[Link] = field(default_factory=list)
    sites: dict[str, SiteRun] = field(default_factory=dict)
    download_bytes: int = 0
    seconds: float = 0.0
    kept_results: int = 0

    @property
    def crossed_bytes(self) -> int:
        """Bytes that crossed all links together, both ways."""
        return sum(link.actual_bytes for link in self.links)

    def __repr__(self) -> str:
        head = ("from", "to", "predicted", "crossed")
        return "\n".join(["Run", *text_table(head, self._rows()), "", self._total()])

    def _repr_html_(self) -> str:
        table = html_table(("from", "to", "predicted", "crossed"), self._rows())
        return f"<div><b>Run</b>{table}<p>{html.escape(self._total())}</p></div>"

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (
                link.start,
                link.end,
                format_bytes(link.predicted_bytes),
                format_bytes(link.actual_bytes),
            )
            for link in self.links
        ]

    def _total(self) -> str:
        total = (
            f"{format_bytes(self.crossed_bytes)} crossed in {format_time(self.seconds)}; "
            f"downloading the inputs instead would be {format_bytes(self.download_bytes)}."
        )
        return f"{total}\n{kept_text(self.kept_results)}".rstrip()
