"""The picture of a plan says what the plan says."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import dask.array as da
import numpy as np
import pytest
from dask.base import collections_to_expr
from dask.core import flatten

from federated_dask.planner.explanation import Explanation
from federated_dask.planner.plan import make_plan
from federated_dask.planner.sources import SiteFacts, SourceReference
from federated_dask.protocol.operations import operation_table

SVG = "{http://www.w3.org/2000/svg}"


class Stored:
    def __init__(self, site: str) -> None:
        self.source = SourceReference(site, "data", "1", "x")
        self.shape, self.dtype, self.ndim = (40, 8), np.dtype("f8"), 2

    def __getitem__(self, index: object) -> np.ndarray:
        raise AssertionError("a picture needs no data")


def explained(*sites: str) -> Explanation:
    arrays = [
        da.from_array(Stored(site), chunks=(10, 8), name=f"x-{site}", meta=np.empty((0, 0)))
        for site in sites
    ]
    mean = da.concatenate(arrays).mean(axis=0)
    names = frozenset(operation_table().names)
    facts = {site: SiteFacts(site, names) for site in sites}
    expression = collections_to_expr([mean])
    keys = list(flatten(mean.__dask_keys__()))
    return Explanation(make_plan(expression, keys, facts, operation_table()))


@pytest.mark.parametrize("sites", [("north",), ("north", "south"), ("a", "b", "c", "d", "e")])
def test_every_place_and_link_is_drawn(sites: tuple[str, ...]) -> None:
    plan = explained(*sites)
    root = ElementTree.fromstring(plan.to_svg())  # noqa: S314
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    for place in (*sites, "home"):
        assert place in texts
    drawn = len(root.findall(f"{SVG}path[@class='link']"))
    assert drawn == sum(size > 0 for size in plan.links.values())
    assert sum(text.startswith("4 at ") for text in texts) >= len(sites)


def boxes_of_sizes(root: ElementTree.Element) -> list[tuple[int, int, int, int]]:
    """Where labels of links are, roughly: characters are six pixels wide and twelve high."""
    found = []
    for text in root.findall(f"{SVG}text[@class='small size']"):
        x, y, wide = int(text.attrib["x"]), int(text.attrib["y"]), 6 * len(text.text or "")
        left = x - {"start": 0, "middle": wide // 2, "end": wide}[text.attrib["text-anchor"]]
        found.append((left, y - 12, left + wide, y))
    return found


@pytest.mark.parametrize("sites", [("north", "south"), ("a", "b", "c", "d", "e")])
def test_no_size_is_written_over_another(sites: tuple[str, ...]) -> None:
    plan = explained(*sites)
    everything = {(one, other): 10**6 for one in (*sites, "home") for other in (*sites, "home")}
    plan.links = {link: size for link, size in everything.items() if link[0] != link[1]}
    boxes = boxes_of_sizes(ElementTree.fromstring(plan.to_svg()))  # noqa: S314
    assert len(boxes) == len(plan.links)
    for one, other in itertools.combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


def test_long_names_stay_in_their_boxes() -> None:
    root = ElementTree.fromstring(explained("institute-" * 6).to_svg())  # noqa: S314
    assert all(len(text.text or "") <= 32 for text in root.iter(f"{SVG}text"))


def test_reasons_fit_a_terminal() -> None:
    text = repr(explained("north-" * 4, "south-" * 4, "ocean-" * 4))
    assert "together" in text
    assert max(map(len, text.splitlines())) <= 80


def test_names_are_escaped() -> None:
    root = ElementTree.fromstring(explained("a<b>&c").to_svg())  # noqa: S314
    assert "a<b>&c" in [text.text for text in root.iter(f"{SVG}text")]


def test_notebooks_show_it() -> None:
    assert "<svg" in explained("north", "south")._repr_html_()
