"""What `FederatedClient.explain` shows: a plan in words, as text and as HTML."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Sequence

from dask.utils import format_bytes

from federated_dask.planner.picture import draw_plan
from federated_dask.planner.plan import Plan
from federated_dask.planner.sources import HOME

__all__ = ["Explanation", "html_table", "kept_text", "text_table"]


class Explanation:
    """A plan, shown before anything runs.

    Attributes
    ----------
    plan : Plan
        The plan.
    links : dict of (str, str) to int
        Bytes predicted to cross each link, by (from, to).
    tasks : dict of str to int
        Tasks per site, and at ``home``.
    read_bytes : dict of str to int
        Bytes, decoded, read from storage per site.
    download_bytes : int
        Bytes that would cross if the inputs were downloaded instead.
    reasons : list of (str, str, int)
        Task, why it is not at its data, and how many there are of it.
    budgets : dict of str to (int, int)
        Dataset with a budget, to the bytes predicted to leave and the bytes that
        were left of the budget when it was opened.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.links = plan.predicted_links()
        self.tasks = {place: plan.tasks_at(place) for place in (*plan.sites, HOME)}
        self.read_bytes = {site: plan.read_bytes(site) for site in plan.sites}
        self.download_bytes = plan.download_bytes()
        self.reasons = plan.reasons()
        self.budgets = {
            f"{dataset.site}/{dataset.name}": (size, dataset.egress_limit or 0)
            for dataset, size in sorted(plan.leaving.items())
        }

    def __repr__(self) -> str:
        parts = ["Plan", *text_table(("where", "tasks", "reads"), self._places())]
        parts += ["", *text_table(("from", "to", "bytes predicted"), self._crossings())]
        parts += ["", self._total()]
        if self.budgets:
            parts += ["", *text_table(BUDGETS, self._budgets())]
        if self.reasons:
            parts += ["", "Not at its data:"]
            for label, reason, count in self.reasons:
                parts += _wrapped(f"{count} × {label}: {reason}")
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        body = [
            html_table(("where", "tasks", "reads"), self._places()),
            html_table(("from", "to", "bytes predicted"), self._crossings()),
            f"<p>{html.escape(self._total())}</p>",
        ]
        if self.budgets:
            body.append(html_table(BUDGETS, self._budgets()))
        if self.reasons:
            items = "".join(
                f"<li>{count} × {html.escape(label)}: {html.escape(reason)}</li>"
                for label, reason, count in self.reasons
            )
            body.append(f"<p>Not at its data:</p><ul>{items}</ul>")
        # Wide pictures are scrolled, not cut off or made too small to read.
        picture = f'<div style="overflow-x:auto">{self.to_svg()}</div>'
        return f"<div><b>Plan</b>{picture}{''.join(body)}</div>"

    def to_svg(self) -> str:
        """Draw sites, links with their bytes, and the condensed graph coloured by place.

        Returns
        -------
        str
            An SVG document; write it to a file to keep it.
        """
        return draw_plan(self.plan, self.links, self.tasks, self.read_bytes)

    def _places(self) -> list[tuple[str, str, str]]:
        return [
            (place, f"{tasks:,}", format_bytes(self.read_bytes.get(place, 0)))
            for place, tasks in self.tasks.items()
        ]

    def _crossings(self) -> list[tuple[str, str, str]]:
        return [
            (start, end, format_bytes(size)) for (start, end), size in sorted(self.links.items())
        ]

    def _budgets(self) -> list[tuple[str, str, str]]:
        return [
            (name, format_bytes(size), format_bytes(left))
            for name, (size, left) in self.budgets.items()
        ]

    def _total(self) -> str:
        crossing = sum(self.links.values())
        total = (
            f"{format_bytes(crossing)} cross in all; downloading the inputs instead would be "
            f"{format_bytes(self.download_bytes)}."
        )
        return f"{total}\n{kept_text(len(self.plan.kept))}".rstrip()


BUDGETS = ("dataset with a budget", "would leave", "left of it when opened")


def _wrapped(text: str) -> list[str]:
    """Lay out a long line for a terminal of 80 columns."""
    return textwrap.wrap(
        text,
        79,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def kept_text(count: int) -> str:
    """Say how many results are at home from earlier runs; nothing for none.

    Examples
    --------
    >>> kept_text(1)
    '1 result is at home from earlier runs.'
    """
    if not count:
        return ""
    return f"{count:,} {'result is' if count == 1 else 'results are'} at home from earlier runs."


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lay out a table for a terminal; the first columns are words, the others numbers."""
    table = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    words = 1 if len(head) < 3 or head[1] in ("tasks", "would leave") else 2
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table for a notebook."""
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"
