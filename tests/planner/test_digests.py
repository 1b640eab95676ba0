"""Digests of tasks: equal ones for what is equal, others for anything else."""

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest

from federated_dask.planner.digests import task_digests
from federated_dask.planner.sources import SourceReference
from tests.planner.federation import TABLE, FakeVariable, Federation

Expression = Callable[[da.Array], Any]


def digests_of(expression: Expression, version: str = "1", name: str = "x") -> list[bytes | None]:
    """Digests of the results that are asked for."""
    federation = Federation()
    source = SourceReference("north", "data", version, "v")
    federation.stored[source] = np.zeros((4, 6))
    array = da.from_array(FakeVariable(federation, source), chunks=(2, 6), name=name)
    # What is asked of Dask, without its last step.
    graph = federation.plan(expression(array)).graph
    digests = task_digests(graph, TABLE)
    (last,) = (task for task in graph.tasks if task.finalise)
    return [digests[below] for below in last.dependencies]


def test_equal_expressions_have_equal_digests_whatever_dask_calls_them() -> None:
    first = digests_of(lambda x: (x + 1).sum(axis=0), name="one")
    assert first == digests_of(lambda x: (x + 1).sum(axis=0), name="other")
    assert None not in first


@pytest.mark.parametrize(
    "other",
    [
        lambda x: (x + 2).sum(axis=0),
        lambda x: (x + 1.0).sum(axis=0),
        lambda x: (x - 1).sum(axis=0),
        lambda x: (x + 1).sum(axis=0, dtype="f4"),
        lambda x: (x[::-1] + 1).sum(axis=0),
        lambda x: (x + np.ones(6)).sum(axis=0),
        lambda x: (x + np.full(6, 2.0)).sum(axis=0),
    ],
    ids=["number", "type", "operation", "dtype", "slice", "array", "another array"],
)
def test_what_differs_has_another_digest(other: Expression) -> None:
    plain: Expression = lambda x: (x + 1).sum(axis=0)  # noqa: E731
    assert not set(digests_of(plain)) & set(digests_of(other))


def test_another_version_has_another_digest() -> None:
    plain: Expression = lambda x: x.sum(axis=0)  # noqa: E731
    assert not set(digests_of(plain)) & set(digests_of(plain, version="2"))


def test_what_functions_of_the_researcher_make_has_none() -> None:
    found = digests_of(lambda x: x.map_blocks(lambda block: block * 2, dtype="f8"))
    assert set(found) == {None}


def test_dask_s_names_do_not_count() -> None:
    # Somebody may give the same name to other data.
    def with_data(number: float) -> list[bytes | None]:
        return digests_of(
            lambda x: x + da.from_array(np.full((4, 6), number), chunks=(2, 6), name="mine")
        )

    assert not set(with_data(1.0)) & set(with_data(2.0))
