"""Functions that compute inside, at several federations of one process."""

import json
from typing import Any

import pytest

from site_plugins import LocalFederation
from tests.site_plugins.helpers import AIR, Caller, dataset


async def test_each_federation_ends_with_what_it_made() -> None:
    north: dict[str, Any] = {
        "datasets": {"a1b": dataset()},
        "functions": {"modules": ["tests.site_plugins.published"]},
    }
    first, second = (LocalFederation({"north": north}) for _ in range(2))
    try:
        for federation in (first, second):
            caller = Caller(federation, "north", federation.token["north"])
            _, body = await caller.read("POST", "/functions/total", json={"data": "a1b"})
            assert json.loads(body) == pytest.approx(AIR.sum())
    finally:
        # In this order, so that the second one is the last that has workers in this process.
        first.close()
        second.close()
