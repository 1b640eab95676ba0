"""The sites and datasets that a client knows, for people to look at."""

from __future__ import annotations

import dataclasses
import difflib
import html
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dask.utils import format_bytes

from federated_dask.client.functions import Functions, attribute_name
from federated_dask.errors import FederatedError, NotFound, Reason
from federated_dask.planner.explanation import html_table, text_table
from federated_dask.protocol.call_messages import FunctionDescription
from federated_dask.protocol.messages import DatasetSummary, SiteDescription

__all__ = ["Datasets", "Site", "Sites"]


@dataclass(frozen=True)
class Site:
    """One site of the federation.

    Attributes
    ----------
    name, address : str
        Its name and endpoint.
    description : SiteDescription or None
        What it says of itself; None where it could not be reached.
    error : FederatedError or None
        Why it could not be reached.
    operations : frozenset of str
        Names of the operations that its libraries have.
    published : tuple of FunctionDescription
        The functions that it publishes, as it describes them.
    functions : Functions
        The same, to be called.  Each is an attribute as well:
        ``fed.sites["north"].trend(…)``.
    """

    name: str
    address: str
    description: SiteDescription | None = None
    error: FederatedError | None = None
    operations: frozenset[str] = dataclasses.field(default=frozenset(), repr=False)
    published: tuple[FunctionDescription, ...] = dataclasses.field(default=(), repr=False)
    functions: Functions = dataclasses.field(
        default_factory=lambda: Functions({}), repr=False, compare=False
    )

    @property
    def dashboard_link(self) -> str | None:
        """Address of the site's Dask dashboard, where it has one."""
        return None if self.description is None else self.description.dashboard_link

    @property
    def status(self) -> str:
        """``ok``, or the reason code of what went wrong."""
        return "ok" if self.error is None else str(self.error.reason)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Copies are made of an object that has no attributes at first.
        functions: Functions = self.__dict__.get("functions") or Functions({})
        for function in functions.values():
            if attribute_name(function.description.name) == name:
                return function.as_python()
        raise AttributeError(
            f"This site publishes no function {name!r}; fed.functions lists what there is."
        )

    def __dir__(self) -> list[str]:
        names = (attribute_name(each.description.name) for each in self.functions.values())
        return sorted({*super().__dir__(), *names})

    def __repr__(self) -> str:
        return f"<Site {self.name!r} at {self.address}: {self.status}>"


class Sites(Mapping[str, Site]):
    """Sites by name."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self._sites = dict(sorted(sites.items()))

    def __getitem__(self, name: str) -> Site:
        try:
            return self._sites[name]
        except KeyError:
            raise NotFound(
                f"There is no site {name!r} in this federation.",
                reason=Reason.UNKNOWN_SITE,
                hint=f"Known sites: {', '.join(self._sites) or 'none'}.",
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._sites

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __repr__(self) -> str:
        return "\n".join(["Sites", *text_table(HEAD, self._rows())])

    def _repr_html_(self) -> str:
        return f"<div><b>Sites</b>{html_table(HEAD, self._rows())}</div>"

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for site in self._sites.values():
            about = site.description or SiteDescription(name=site.name)
            rows.append(
                (
                    site.name,
                    about.title or site.address,
                    # A site tells these to those who may describe it, and nothing to others.
                    str(about.workers or "–"),
                    str(about.threads or "–"),
                    format_bytes(about.memory) if about.memory else "–",
                    site.status,
                )
            )
        return rows


HEAD = ("site", "title", "workers", "threads", "memory", "status")


class Datasets(Mapping[str, DatasetSummary]):
    """Datasets by qualified name, ``site/dataset``.

    Examples
    --------
    >>> datasets = Datasets({"north/a1b": DatasetSummary(name="a1b", title="A1B scenario")})
    >>> list(datasets.search("scenario"))
    ['north/a1b']
    """

    def __init__(self, datasets: Mapping[str, DatasetSummary]) -> None:
        self._datasets = dict(sorted(datasets.items()))

    def __getitem__(self, name: str) -> DatasetSummary:
        try:
            return self._datasets[name]
        except KeyError:
            raise NotFound(
                f"There is no dataset {name!r} in this federation.",
                reason=Reason.UNKNOWN_DATASET,
                hint=self.hint(name) or "fed.datasets lists what there is.",
            ) from None

    def hint(self, name: str) -> str | None:
        """Say which dataset somebody may have meant, if there is one.

        Examples
        --------
        >>> Datasets({"north/a1b": DatasetSummary(name="a1b")}).hint("north/a1c")
        "Did you mean 'north/a1b'? fed.datasets lists what you may see."
        """
        close = difflib.get_close_matches(name, self._datasets, n=1)
        if not close:
            return None
        return f"Did you mean {close[0]!r}? fed.datasets lists what you may see."

    def __contains__(self, name: object) -> bool:
        return name in self._datasets

    def __iter__(self) -> Iterator[str]:
        return iter(self._datasets)

    def __len__(self) -> int:
        return len(self._datasets)

    def search(self, text: str) -> Datasets:
        """Datasets with every word of `text` in their name, title, keywords or description."""
        words = text.lower().split()
        return Datasets(
            {
                name: summary
                for name, summary in self._datasets.items()
                if all(word in _searchable(name, summary) for word in words)
            }
        )

    def __repr__(self) -> str:
        return "\n".join(["Datasets", *text_table(("dataset", "egress", "title"), self._rows())])

    def _repr_html_(self) -> str:
        lines = "".join(
            f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(summary.title)}"
            f"<br><small>{html.escape(summary.description)}</small></td>"
            f"<td>{html.escape(', '.join(summary.keywords))}</td>"
            f"<td>{html.escape(summary.egress.tier)}</td></tr>"
            for name, summary in self._datasets.items()
        )
        head = "<tr><th>dataset</th><th>title</th><th>keywords</th><th>egress</th></tr>"
        return f"<div><b>Datasets</b><table>{head}{lines}</table></div>"

    def _rows(self) -> list[tuple[str, str, str]]:
        return [
            (name, summary.egress.tier, summary.title) for name, summary in self._datasets.items()
        ]


def _searchable(name: str, summary: DatasetSummary) -> str:
    return " ".join((name, summary.title, summary.description, *summary.keywords)).lower()
