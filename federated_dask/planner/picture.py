"""A plan as an SVG picture: places and links above, the condensed graph below.

Tasks of one layer at one place are one box; boxes stand in the order of what
they need, one row per place.  Colours tell places apart and are readable for
colour-blind people (the palette of Okabe and Ito, 2008); every box also says in
words what it is.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from dask.utils import format_bytes

from federated_dask.planner.plan import Plan
from federated_dask.planner.sources import HOME

__all__ = ["draw_plan"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
HOME_COLOUR = "#666666"
STEP, DROP, LEVEL = 230, 64, 20
"""Pixels from site to site, from the sites to home, and between two links of sites."""
BOX, GAP, ROW = 132, 26, 58
MOST_COLUMNS = 40
LONGEST_LABEL, LONGEST_NAME = 18, 26
STYLE = (
    "text{font:12px sans-serif;fill:#222}.small{font-size:11px}.link{fill:none;stroke:#888}"
    ".edge{fill:none;stroke:#bbb}.box{stroke:#fff}.inside{fill:#fff}"
    ".size{paint-order:stroke;stroke:#fff;stroke-width:7px;stroke-linejoin:round}"
)


@dataclass(frozen=True)
class _Group:
    place: str
    layer: str
    label: str
    level: int


def draw_plan(
    plan: Plan,
    links: Mapping[tuple[str, str], int],
    tasks: Mapping[str, int],
    read_bytes: Mapping[str, int],
) -> str:
    """Draw a plan.

    Parameters
    ----------
    plan : Plan
        The plan.
    links : mapping of (str, str) to int
        Bytes predicted per link.
    tasks : mapping of str to int
        Tasks per place.
    read_bytes : mapping of str to int
        Bytes read from storage per site.

    Returns
    -------
    str
        An SVG document.
    """
    places = [*plan.sites, HOME]
    colours = dict(zip(plan.sites, COLOURS * len(places), strict=False)) | {HOME: HOME_COLOUR}
    above, width, height = _places(places, colours, links, tasks, read_bytes)
    below, graph_width, graph_height = _graph(plan, places, colours, height + 20)
    full = max(width, graph_width), height + 20 + graph_height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full[0]} {full[1]}" '
        f'width="{full[0]}" height="{full[1]}" role="img" aria-label="Plan">'
        f"<style>{STYLE}</style>"
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" '
        'markerHeight="9" markerUnits="userSpaceOnUse" orient="auto-start-reverse">'
        '<path d="M0 0 8 4 0 8z" fill="#888"/>'
        f"</marker></defs>{''.join((*above, *below))}</svg>"
    )


def _places(
    places: list[str],
    colours: Mapping[str, str],
    links: Mapping[tuple[str, str], int],
    tasks: Mapping[str, int],
    read_bytes: Mapping[str, int],
) -> tuple[list[str], int, int]:
    """Draw the sites in a row, and home as a bar below all of them.

    Each site is joined to home by its own two arrows straight down and up; links
    between sites run above them, each on a level of its own.
    """
    sites = places[:-1]
    between = [link for link, size in links.items() if size and HOME not in link]
    width = max(STEP * len(sites), STEP) + 40
    top = 42 + LEVEL * len(between) + (10 if between else 0)
    centres = {site: STEP * number + STEP // 2 + 20 for number, site in enumerate(sites)}
    below = top + 26, top + 26 + DROP
    parts = _links_between(between, centres, links, top - 26)
    for site, x in centres.items():
        for start, end, apart in ((site, HOME, -14), (HOME, site, 14)):
            if size := links.get((start, end), 0):
                y1, y2 = below if end == HOME else below[::-1]
                anchor = "end" if apart < 0 else "start"
                parts.append(
                    _arrow(f"M{x + apart} {y1}V{y2}", size)
                    + _size_label(x + apart * 3 // 2, sum(below) // 2 + 4, size, anchor)
                )
    boxes = [(site, x - 88, top - 26, 176) for site, x in centres.items()]
    for place, x, y, wide in (*boxes, (HOME, 32, below[1], width - 64)):
        detail = f"{tasks.get(place, 0):,} tasks"
        if place != HOME:
            detail += f", reads {format_bytes(read_bytes.get(place, 0))}"
        middle = x + wide // 2
        parts.append(
            f'<rect class="box" x="{x}" y="{y}" width="{wide}" height="52" rx="8" '
            f'fill="{colours[place]}"/>'
            f'<text class="inside" x="{middle}" y="{y + 22}" text-anchor="middle">'
            f"{html.escape(_shortened(place, LONGEST_NAME))}</text>"
            f'<text class="inside small" x="{middle}" y="{y + 40}" text-anchor="middle">'
            f"{detail}</text>"
        )
    return parts, width, below[1] + 62


def _links_between(
    between: list[tuple[str, str]],
    centres: Mapping[str, int],
    links: Mapping[tuple[str, str], int],
    edge: int,
) -> list[str]:
    """Draw links between sites, the shortest lowest, with ends apart from one another."""
    ends: dict[str, list[tuple[int, tuple[str, str]]]] = {site: [] for site in centres}
    for link in between:
        for site, other in (link, link[::-1]):
            ends[site].append((centres[other], link))
    at: dict[tuple[str, tuple[str, str]], int] = {}
    for site, found in ends.items():
        for number, (_, link) in enumerate(sorted(found), start=1):
            at[site, link] = centres[site] - 80 + 160 * number // (len(found) + 1)
    ordered = sorted(between, key=lambda link: (abs(at[link[0], link] - at[link[1], link]), link))
    arrows, labels = [], []
    for level, link in enumerate(ordered, start=1):
        x1, x2 = (at[site, link] for site in link)
        y = edge - 6 - LEVEL * level
        arrows.append(_arrow(f"M{x1} {edge}V{y}H{x2}V{edge}", links[link]))
        labels.append(_size_label((x1 + x2) // 2, y + 4, links[link], "middle"))
    return arrows + labels


def _arrow(path: str, size: int) -> str:
    weight = 1 + math.log10(max(size, 1)) / 2
    return f'<path class="link" d="{path}" stroke-width="{weight:.1f}" marker-end="url(#arrow)"/>'


def _size_label(x: int, y: int, size: int, anchor: str) -> str:
    return (
        f'<text class="small size" x="{x}" y="{y}" text-anchor="{anchor}">'
        f"{format_bytes(size)}</text>"
    )


def _graph(
    plan: Plan, places: list[str], colours: Mapping[str, str], top: int
) -> tuple[list[str], int, int]:
    groups, counts, edges = _condensed(plan)
    rows = {place: number for number, place in enumerate(places)}
    columns = {level: number for number, level in enumerate(sorted({g.level for g in groups}))}
    if len(columns) > MOST_COLUMNS:
        note = f"{len(groups)} groups of tasks: too many to draw"
        return [f'<text x="20" y="{top + 20}">{note}</text>'], 400, 40
    stacked: Counter[tuple[str, int]] = Counter()
    deepest: Counter[str] = Counter()
    offset: dict[_Group, int] = {}
    for group in groups:
        offset[group] = stacked[group.place, group.level]
        stacked[group.place, group.level] += 1
        deepest[group.place] = max(deepest[group.place], stacked[group.place, group.level])
    start_of, y = {}, top
    for place in places:
        start_of[place] = y
        y += ROW * deepest[place]
    at = {
        group: (
            20 + columns[group.level] * (BOX + GAP),
            start_of[group.place] + ROW * offset[group],
        )
        for group in groups
    }
    parts = [_edge(at[start], at[end]) for start, end in edges]
    for group in sorted(groups, key=lambda each: (rows[each.place], each.level)):
        x, box_top = at[group]
        short = _shortened(group.label, LONGEST_LABEL)
        parts.append(
            f"<g><title>{counts[group]} × {html.escape(group.label)} at "
            f"{html.escape(group.place)}</title>"
            f'<rect class="box" x="{x}" y="{box_top}" width="{BOX}" height="36" rx="6" '
            f'fill="{colours[group.place]}"/><text class="inside small" x="{x + BOX / 2}" '
            f'y="{box_top + 15}" text-anchor="middle">{html.escape(short)}</text>'
            f'<text class="inside small" x="{x + BOX / 2}" y="{box_top + 29}" '
            f'text-anchor="middle">{counts[group]:,} at '
            f"{html.escape(_shortened(group.place, LONGEST_LABEL - 5))}</text></g>"
        )
    return parts, 40 + len(columns) * (BOX + GAP), y - top + 10


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = start[0] + BOX, start[1] + 18, end[0], end[1] + 18
    bend = max(GAP, (x2 - x1) / 2)
    return f'<path class="edge" d="M{x1} {y1} C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"/>'


def _condensed(
    plan: Plan,
) -> tuple[list[_Group], Counter[_Group], list[tuple[_Group, _Group]]]:
    """Group tasks by place and layer; the level of a group is that of its deepest task."""
    graph, places = plan.graph, plan.placement.places
    # What is at home from an earlier run is not made again.
    runs = {p for stage in plan.jobs for job in stage for p in job.tasks}.union(*plan.home)
    key: list[tuple[str, str, str] | None] = []
    levels: dict[tuple[str, str, str], int] = {}
    for position, task in enumerate(graph.tasks):
        place = places[position]
        if place is None or task.finalise or position not in runs:
            key.append(None)
            continue
        mine = (place, _layer(task.key), task.label)
        below = [key[d] for d in task.dependencies]
        level = max((levels[each] + (each != mine) for each in below if each), default=0)
        levels[mine] = max(levels.get(mine, 0), level)
        key.append(mine)
    groups = {each: _Group(*each, level) for each, level in levels.items()}
    counts = Counter(groups[each] for each in key if each)
    edges = {
        (groups[start], groups[end])
        for position, end in enumerate(key)
        if end
        for dependency in graph.tasks[position].dependencies
        if (start := key[dependency]) and start != end
    }
    ordered = sorted(groups.values(), key=lambda each: (each.level, each.place, each.label))
    return ordered, counts, sorted(edges, key=str)


def _layer(key: object) -> str:
    """Name the layer of a task; the combine tasks of one reduction count as one layer."""
    while isinstance(key, tuple):
        key = key[1] if key[0] == "federated-combine" else key[0]
    return str(key)
