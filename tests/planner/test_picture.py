"""The picture of a plan says what the plan says."""

from __future__ import annotations

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


def test_names_are_escaped() -> None:
    root = ElementTree.fromstring(explained("a<b>&c").to_svg())  # noqa: S314
    assert "a<b>&c" in [text.text for text in root.iter(f"{SVG}text")]


def test_notebooks_show_it() -> None:
    assert "<svg" in explained("north", "south")._repr_html_()
