"""What of a graph is known to hold objects of Python with which sites do not compute.

Sites refuse to compute with texts and integers of any length where these would grow (see
`federated_dask.protocol.bounded`).  Where the researcher's own data shows it, the planner
knows beforehand.  It follows such objects from task to task as far as it is sure of them:
through what selects and arranges elements, and through what makes more objects of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from federated_dask.planner.nodes import uses
from federated_dask.planner.programs import Program
from federated_dask.protocol import graph as wire
from federated_dask.protocol import operation_names as names
from federated_dask.protocol.bound_rules import VIEWS
from federated_dask.protocol.bounded import grows_objects
from federated_dask.protocol.call_arguments import are_harmless, objects_refused

__all__ = ["OBJECTS", "KnownObjects"]

OBJECTS = objects_refused().message
"""Why a task that computes with objects cannot be sent."""
KEEPING = (
    names.READS
    | VIEWS
    | names.FORWARDING.keys()
    | {
        "array.reshape",
        "dask.array.core.concatenate3",
        "dask.array.core._concatenate2",
        "dask.array.core.concatenate_axes",
        "numpy.concatenate",
        "numpy.reshape",
        "numpy.stack",
        "numpy.take",
    }
)
"""Operations whose results hold the elements that they are given."""


class KnownObjects:
    """Operands that are known to hold objects.

    Parameters
    ----------
    leaves : list
        Operands that are no tasks; more may be appended later.
    """

    def __init__(self, leaves: Sequence[Any]) -> None:
        self._leaves = leaves
        self._seen = 0
        self._known: set[int] = set()

    def add(self, operand: int) -> None:
        """Note that an operand holds objects."""
        self._known.add(operand)

    def add_value(self, operand: int, value: Any) -> None:
        """Note what an operand is, if it is an array of objects that may grow."""
        if type(value) is np.ndarray and value.dtype.hasobject and not are_harmless(value):
            self.add(operand)

    def followed(self, program: Program) -> tuple[bool, bool]:
        """Follow objects through a program.

        Returns
        -------
        grow, result : bool
            Whether they are given to an operation by which they grow; whether its result
            holds such.
        """
        while self._seen < len(self._leaves):
            self._seen += 1
            self.add_value(-self._seen, self._leaves[self._seen - 1])
        if not self._known or self._known.isdisjoint(program.references):
            return False, False
        following = _Following(reference in self._known for reference in program.references)
        for step in program.template.steps:
            following.results.append(following.visit(step))
        return following.grow, following.results[-1]


class _Following:
    """Visits nodes in the order in which holes are filled."""

    def __init__(self, references: Iterator[bool]) -> None:
        self.references = references
        self.results: list[bool] = []
        self.grow = False

    def visit(self, node: wire.Node) -> bool:
        """Say whether a node holds objects."""
        if isinstance(node, wire.Reference):
            return next(self.references)
        if isinstance(node, wire.Local):
            return self.results[node.step]
        # All of them are visited, for the sake of the holes.
        parts = [self.visit(child) for child in wire.children(node)]
        given = any(parts)
        if not given or not isinstance(node, wire.Call):
            return given
        name = _first_operation(node.function)
        if name in names.FORWARDING:
            called = frozenset[str]().union(*map(uses, wire.children(node)))
            grow = any(map(grows_objects, called))
        else:
            grow = grows_objects(name)
        self.grow = self.grow or grow
        return grow or name in KEEPING


def _first_operation(function: wire.Node) -> str:
    """Name of the operation that is given the arguments."""
    while not isinstance(function, wire.Operation):
        if isinstance(function, wire.Partial):
            function = function.function
        elif isinstance(function, wire.Compose) and function.functions:
            function = function.functions[-1]
        else:
            return ""
    return function.name
