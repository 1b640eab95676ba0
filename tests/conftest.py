"""For all tests.

How thoroughly hypothesis looks: `HYPOTHESIS_PROFILE=nightly ci/test` looks longer.
"""

import os
from collections.abc import Iterator

import dask
import pytest
from hypothesis import settings

# No deadlines: a machine may be busy with other things.
settings.register_profile("ci", deadline=None)
settings.register_profile("nightly", deadline=None, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="module", autouse=True)
def no_scheduler_left() -> Iterator[None]:
    """Dask computes after the tests of a module as it did before them."""
    before = dask.config.get("scheduler", None)
    yield
    after = dask.config.get("scheduler", None)
    if after is not before:
        # The next module is not to suffer for it.
        dask.config.config.pop("scheduler", None)
    assert after is before
