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
BOX, GAP, ROW = 132, 26, 58
MOST_COLUMNS = 40
LONGEST_LABEL = 18
STYLE = (
    "text{font:12px sans-serif;fill:#222}.small{font-size:11px}.link{fill:none;stroke:#888}"
    ".edge{fill:none;stroke:#bbb}.box{stroke:#fff}.inside{fill:#fff}"
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
    sites = places[:-1]
    step = 230
    width = max(step * len(sites), step) + 40
    top = 86 if any(HOME not in link for link in links) else 42
    at = {site: (step * number + step // 2 + 20, top) for number, site in enumerate(sites)}
    at[HOME] = (width // 2, top + 150)
    parts = []
    for (start, end), size in sorted(links.items()):
        if size:
            parts.append(_link(at[start], at[end], size, HOME not in (start, end)))
    for place in places:
        x, y = at[place]
        detail = f"{tasks.get(place, 0):,} tasks"
        if place != HOME:
            detail += f", reads {format_bytes(read_bytes.get(place, 0))}"
        parts.append(
            f'<rect class="box" x="{x - 88}" y="{y - 26}" width="176" height="52" rx="8" '
            f'fill="{colours[place]}"/>'
            f'<text class="inside" x="{x}" y="{y - 4}" text-anchor="middle">'
            f"{html.escape(place)}</text>"
            f'<text class="inside small" x="{x}" y="{y + 14}" text-anchor="middle">{detail}</text>'
        )
    return parts, width, top + 190


def _link(start: tuple[int, int], end: tuple[int, int], size: int, level: bool) -> str:
    """Draw an arrow, bent so that both directions show; between sites it runs above them."""
    x1, y1, x2, y2 = (float(each) for each in (*start, *end))
    # Labels stand where lines are apart: near the site, or in the middle of an arc.
    label_at = 0.5 if level else 0.28 if y1 < y2 else 0.72
    if level:
        y1, y2 = y1 - 26, y2 - 26
        cx, cy = (x1 + x2) / 2, y1 - (46 if x1 < x2 else 80)
    else:
        y1, y2 = (y1 + 26, y2 - 26) if y1 < y2 else (y1 - 26, y2 + 26)
        apart = 24 if y1 < y2 else -24
        x1, x2 = x1 + apart, x2 + apart
        cx, cy = (x1 + x2) / 2 + 2 * apart, (y1 + y2) / 2
    tx, ty = _on_curve((x1, y1), (cx, cy), (x2, y2), label_at)
    anchor, shift = ("middle", 0) if level else ("start", 6) if cx > (x1 + x2) / 2 else ("end", -6)
    weight = 1 + math.log10(max(size, 1)) / 2
    return (
        f'<path class="link" d="M{x1:.0f} {y1:.0f} Q{cx:.0f} {cy:.0f} {x2:.0f} {y2:.0f}" '
        f'stroke-width="{weight:.1f}" marker-end="url(#arrow)"/>'
        f'<text class="small" x="{tx + shift:.0f}" y="{ty - 5 * level:.0f}" '
        f'text-anchor="{anchor}">{format_bytes(size)}</text>'
    )


def _on_curve(
    start: tuple[float, float], control: tuple[float, float], end: tuple[float, float], t: float
) -> tuple[float, float]:
    """Give a point of a quadratic Bézier curve."""
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
    return (
        a * start[0] + b * control[0] + c * end[0],
        a * start[1] + b * control[1] + c * end[1],
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
        short = group.label
        if len(short) > LONGEST_LABEL:
            short = short[: LONGEST_LABEL - 1] + "…"
        parts.append(
            f"<g><title>{counts[group]} × {html.escape(group.label)} at "
            f"{html.escape(group.place)}</title>"
            f'<rect class="box" x="{x}" y="{box_top}" width="{BOX}" height="36" rx="6" '
            f'fill="{colours[group.place]}"/><text class="inside small" x="{x + BOX / 2}" '
            f'y="{box_top + 15}" text-anchor="middle">{html.escape(short)}</text>'
            f'<text class="inside small" x="{x + BOX / 2}" y="{box_top + 29}" '
            f'text-anchor="middle">{counts[group]:,} at {html.escape(group.place)}</text></g>'
        )
    return parts, 40 + len(columns) * (BOX + GAP), y - top + 10


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = start[0] + BOX, start[1] + 18, end[0], end[1] + 18
    bend = max(GAP, (x2 - x1) / 2)
    return f'<path class="edge" d="M{x1} {y1} C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"/>'


def _condensed(
    plan: Plan,
) -> tuple[list[_Group], Counter[_Group], list[tuple[_Group, _Group]]]:
    """Group tasks by place and layer; the level of a group is that of its deepest task."""
    graph, places = plan.graph, plan.placement.places
    key: list[tuple[str, str, str] | None] = []
    levels: dict[tuple[str, str, str], int] = {}
    for position, task in enumerate(graph.tasks):
        place = places[position]
        if place is None or task.finalise:
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
