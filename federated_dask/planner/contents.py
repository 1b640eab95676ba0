"""What is expected of the values of results, so far as it decides how they shrink on a link.

A site tells of its variables which share of their bytes is left on the wire and how many
elements are missing.  From there it goes through the programs, by a few rules::

    read     7.7 of 8 bytes, 10 % missing
      │ isnan                            │ where(~…, x, 0)
      ▼                                  ▼
    true for 10 %: 0.06 of 1 byte     7.7 of 8 bytes, 10 % filled in ──► sum: 7.7 of 8 bytes

The rules are in `content_rules`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from federated_dask.planner.content_rules import Rule, rule_of
from federated_dask.planner.expected import CONSTANT, NAN, Expected, joined, unknown
from federated_dask.planner.nodes import keyword, operation_name
from federated_dask.planner.programs import Program
from federated_dask.protocol import graph as wire
from federated_dask.protocol.dtypes import decode_dtype

__all__ = ["Expectations"]

Nested: TypeAlias = "Expected | list[Any] | None"


class Expectations:
    """Carries expectations through programs."""

    def __init__(self) -> None:
        # Tasks of a layer do the same with what is alike.
        self._known: dict[Any, Expected] = {}
        self._calls: dict[int, _Called] = {}

    def of(self, program: Program, operands: Sequence[Expected | None], count: float) -> Expected:
        """Say what is expected of the result of a task.

        Parameters
        ----------
        program : Program
            What it does.
        operands : sequence of Expected or None
            What is expected of what fills the holes; None for what is no array.
        count : float
            Elements of the result.

        Returns
        -------
        Expected
        """
        key = (id(program.template), tuple(operands), count)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._evaluate(program.template, iter(operands), count)
        return found

    def _evaluate(
        self, template: wire.Template, operands: Iterator[Expected | None], count: float
    ) -> Expected:
        steps: list[Nested] = []
        for step in template.steps:
            steps.append(self._value(step, operands, steps, count))
        last = steps[-1]
        return last if isinstance(last, Expected) else joined(_flat(last)) or unknown(count, 8.0)

    def _value(
        self,
        node: wire.Node,
        operands: Iterator[Expected | None],
        steps: Sequence[Nested],
        count: float,
    ) -> Nested:
        match node:
            case wire.Reference():
                return next(operands)
            case wire.Local(step):
                return steps[step]
            case wire.Float(text):
                return NAN if math.isnan(float.fromhex(text)) else CONSTANT
            case wire.Integer() | wire.Number() | wire.Scalar() | bool():
                return CONSTANT
        parts = [self._value(child, operands, steps, count) for child in wire.children(node)]
        if isinstance(node, wire.Partial | wire.Call):
            # Keywords say how something is done, and not with what.
            del parts[1 + len(node.arguments) :]
        if not isinstance(node, wire.Call):
            return parts
        called = self._calls.get(id(node))
        if called is None:
            called = self._calls[id(node)] = _Called.of(node)
        inputs = _flat(parts)
        for rule in called.rules:
            inputs = [rule(inputs, count, called.dtype)]
        return inputs[0]


@dataclasses.dataclass(frozen=True, slots=True)
class _Called:
    """What a call does, read once."""

    rules: tuple[Rule, ...]
    dtype: np.dtype | None

    @classmethod
    def of(cls, call: wire.Call) -> _Called:
        names: list[str] = []
        function = keyword(call, "enforce_dtype_function") or call.function
        stack = [function]
        while stack:
            node = stack.pop()
            if isinstance(node, wire.Compose):
                # The last one is applied first.
                stack.extend(node.functions)
            elif isinstance(node, wire.Partial):
                stack.append(node.function)
            elif (name := operation_name(node)) is not None:
                names.append(name)
        stated = [node for node in wire.walk(call) if isinstance(node, wire.DataType)]
        dtype = decode_dtype(stated[0].dtype) if stated else None
        return cls(tuple(rule_of(name, call) for name in names), dtype)


def _flat(nested: Nested) -> list[Expected]:
    if isinstance(nested, list):
        return [found for part in nested for found in _flat(part)]
    return [] if nested is None else [nested]
