"""Running sites for the tests of what runs in them."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from site_plugins import LocalFederation
from tests.site_plugins.helpers import Caller, dataset

_numbers = itertools.count()


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """Two sites with threads as workers; nothing is left on them by a test."""
    folder = tmp_path_factory.mktemp("data")
    missing = folder / "canary-folder" / "missing.zarr"
    north = {
        "a1b": {"path": dataset(), "title": "A1B", "keywords": ["air", "temperature"]},
        # 1200 values of 8 bytes and the latitudes; a tenth of it is 964 bytes.
        "secret": {"path": dataset(), "egress": "derived", "share": 0.1},
        "broken": str(missing),
    }
    sites: dict[str, Any] = {
        "north": {
            "title": "The north",
            "datasets": north,
            "limits": {"tasks": 1000, "header_bytes": "1MiB", "buffer_bytes": "16MiB"},
        },
        "south": {"datasets": {}},
    }
    with LocalFederation(sites, threads_per_worker=2) as running:
        yield running


@pytest.fixture
def north(federation: LocalFederation) -> Iterator[Caller]:
    """The site "north"; after the test nothing may be left on its scheduler."""
    # Somebody else in every test: budgets are for life.
    subject = f"user-{next(_numbers)}"
    caller = Caller(federation, "north", federation.new_token("north", subject))
    caller.owner = f"urn:federated-dask:site:north\n{subject}"
    yield caller
    caller.wait_until_idle()


@pytest.fixture
def nobody(federation: LocalFederation) -> Caller:
    """The site "north", without a token."""
    return Caller(federation, "north", None)


@pytest.fixture
def zarr_path(tmp_path: Path) -> Path:
    path = tmp_path / "canary-folder" / "a1b.zarr"
    dataset().to_zarr(path, zarr_format=2, consolidated=True)
    return path
