"""What may be written in a template: the rules on arguments.

The operation table says *what* may be called.  These rules keep a graph from making
more of an operation than it is:

- A callable is structure.  It stands where it is called, or as an argument that the
  called operation is known to call (`CALLS`); never in a list, never as the result
  of a task.  So whatever is called was looked up here, under its own rules.
- Nothing writes into its arguments.  Results are shared between the tasks of all
  users of a site, and `np.add(x, 1, out=x)` would change them under everyone's hands.
- Operations that reach functions by name (`TEXTS`) get these names, and everything
  else that steers them, as constants of the message, where they can be read.
- No objects of Python are asked for (``dtype=object``): they have no bounded size.
- A stored variable is read by slicing and nothing else.

The planner applies the same rules, so that what a site would refuse runs at home.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from federated_dask.errors import FederatedError, NotPermitted, Reason, RequestRefused
from federated_dask.protocol import operation_names as names
from federated_dask.protocol.call_arguments import dtype_keyword, dtype_place, item_bytes
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.nodes import (
    Call,
    Compose,
    DataType,
    Dictionary,
    Float,
    Integer,
    List,
    Local,
    Node,
    Number,
    Operation,
    Partial,
    Reference,
    Scalar,
    Template,
    Tuple,
    applied_first,
    children,
)
from federated_dask.protocol.operations import OperationTable
from federated_dask.protocol.trees import (
    BytesValue,
    DictValue,
    InstanceValue,
    ListValue,
    ObjectArrayValue,
    OperationValue,
    PartialValue,
    TupleValue,
    Value,
)
from federated_dask.protocol.values import HASH_MODULUS, MOST_TUPLE_KEYS

__all__ = ["TemplateFacts", "check_bound_value", "check_template", "check_value"]

MAX_STEPS = 10_000
MAX_TEXT = 65_536
MAX_NESTING = 64
"""Bounds the recursion of whoever builds tasks from a template."""

STEERING = names.WRITING | {"copy", "where"}
"""What a callable inside of a value may not have bound to it."""

FORWARDED = frozenset(map(repr, names.FORWARDED))


class TemplateFacts(msgspec.Struct):
    """What a template needs of the blocks that use it."""

    references: int = 0
    integers: int = 0
    nodes: int = 0
    reads: list[int] = []
    """Positions of the reference holes in which a source may stand."""
    bound: list[int] = []
    """Positions of the reference holes in which only a value may stand."""


def check_template(
    template: Template, table: OperationTable, operations: set[str], most_nodes: int
) -> TemplateFacts:
    """Check a template; names of the operations it uses are added to `operations`.

    Raises
    ------
    RequestRefused
        If the template is malformed, or has more than `most_nodes` nodes.
    NotPermitted
        If an operation is not in the table or an argument breaks its rule.
    """
    if not 1 <= len(template.steps) <= MAX_STEPS:
        raise _malformed("A template has no steps, or too many.")
    names = [name for name, _ in template.resources]
    if names != sorted(set(names)):
        raise _malformed("The resources of a template are not in order.")
    checker = _Checker(table, operations, most_nodes)
    for position, step in enumerate(template.steps):
        checker.step = position
        checker.visit(step, 0)
    return checker.facts


class _Checker:
    """Visits nodes in the order of `walk`, in which holes are filled."""

    def __init__(self, table: OperationTable, operations: set[str], most_nodes: int) -> None:
        self.table = table
        self.operations = operations
        self.most_nodes = most_nodes
        self.facts = TemplateFacts(reads=[], bound=[])
        self.step = 0

    def enter(self, depth: int) -> None:
        self.facts.nodes += 1
        if self.facts.nodes > self.most_nodes:
            raise RequestRefused(
                f"The graph has more than {self.most_nodes} argument nodes.",
                reason=Reason.LIMIT_EXCEEDED,
                hint="Use larger chunks, or compute the expression in parts.",
            )
        if depth > MAX_NESTING:
            raise RequestRefused(
                f"An argument is nested deeper than {MAX_NESTING} levels.",
                reason=Reason.LIMIT_EXCEEDED,
                hint="Compute the expression in parts.",
            )

    def visit(self, node: Node, depth: int, rule: str | None = None, bound: bool = False) -> None:
        """Check a node; `rule` names the operation whose rule on texts it stands under."""
        if node is None or node is True or node is False:
            self.enter(depth)
            return
        if isinstance(node, Call):
            if bound:
                raise _not_permitted(f"{rule} may not be given what is computed there.")
            self.call(node, depth)
            return
        if isinstance(node, Operation | Partial | Compose):
            if rule is None:
                self.type_argument(node, depth)
            else:
                # Such operations take functions instead of their names, too.
                self.callee(node, depth, rule, 0)
            return
        self.enter(depth)
        if isinstance(node, Reference):
            if bound:
                self.facts.bound.append(self.facts.references)
            self.facts.references += 1
        elif isinstance(node, Integer):
            self.facts.integers += 1
        elif isinstance(node, Local):
            if bound:
                raise _not_permitted(f"{rule} may not be given what is computed there.")
            if node.step >= self.step:
                raise _malformed("A step uses the result of a later one.")
        elif isinstance(node, str):
            _check_text(node, rule)
        else:
            _check_plain(node)
        for child in children(node):
            self.visit(child, depth + 1, rule, bound)

    def type_argument(self, node: Node, depth: int) -> None:
        """Check a callable where nothing is known to call it: types only (as dtypes)."""
        self.enter(depth)
        name = node.name if isinstance(node, Operation) else None
        if name is None or not isinstance(self.table.lookup(name), type):
            raise _not_permitted("A callable stands where nothing calls it.")
        self.operations.add(name)

    def call(self, node: Call, depth: int) -> None:
        self.enter(depth)
        count = len(node.arguments)
        self.function(node.function, depth + 1, count)
        name, before = applied_first(node.function)
        if name in names.READS and isinstance(node.function, Operation) and count:
            self.first_of_read(node.arguments[0])
        self.arguments(name, before, node.arguments, depth, is_call=True, total=before + count)
        self.keywords(name, node.keywords, depth, total=before + count)

    def first_of_read(self, node: Node) -> None:
        if isinstance(node, Reference):
            self.facts.reads.append(self.facts.references)

    def function(self, node: Node, depth: int, count: int, after: Node = None) -> None:
        """Check what is called with `count` positional arguments.

        `after` is the function whose result it gets, in a composition.
        """
        self.enter(depth)
        if isinstance(node, Operation):
            self.operation(node.name, count, after)
        elif isinstance(node, Partial):
            self.function(node.function, depth + 1, count + len(node.arguments), after)
            name, before = applied_first(node.function)
            total = before + len(node.arguments) + count
            self.arguments(name, before, node.arguments, depth, is_call=False, total=total)
            self.keywords(name, node.keywords, depth, total=total)
        elif isinstance(node, Compose) and node.functions:
            *later, first = node.functions
            for function, below in zip(later, node.functions[1:], strict=True):
                self.function(function, depth + 1, 1, after=below)
            self.function(first, depth + 1, count)
        else:
            raise _malformed("Something is called that is not an operation.")

    def operation(self, name: str, count: int, after: Node) -> None:
        self.table.lookup(name)
        self.operations.add(name)
        if count > self.table.most_positional(name):
            raise _not_permitted(f"{name} may not be given {count} positional arguments.")
        if name in names.IN_PLACE and applied_first(after)[0] not in names.IN_PLACE[name]:
            raise _not_permitted(f"{name} writes into its argument.")

    def arguments(
        self,
        name: str | None,
        before: int,
        arguments: Sequence[Node],
        depth: int,
        *,
        is_call: bool,
        total: int,
    ) -> None:
        rule = name if name in names.TEXTS else None
        called = names.CALLS.get(name or "", {})
        place = dtype_place(self.table.lookup(name)) if name is not None and not called else None
        for position, node in enumerate(arguments, before):
            if position == place:
                self.data_type(node)
            if position in called.values():
                self.callee(node, depth + 1, str(name), total)
            elif name == "dask.array.core._pass_extra_kwargs" and position == 1:
                self.forwarded_names(node, depth + 1)
            else:
                self.visit(node, depth + 1, rule, bound=rule is not None and not is_call)

    def keywords(
        self, name: str | None, keywords: Sequence[tuple[str, Node]], depth: int, *, total: int
    ) -> None:
        rule = name if name in names.TEXTS else None
        called = names.CALLS.get(name or "", {})
        if len({keyword for keyword, _ in keywords}) != len(keywords):
            raise _malformed("A keyword is given twice.")
        for keyword, node in keywords:
            if keyword in names.WRITING and node is not None and node is not False:
                raise _not_permitted(f"The keyword {keyword!r} would write into an argument.")
            self.effect(name, keyword, node)
            if name is not None and not called and keyword == dtype_keyword(name):
                self.data_type(node)
            if keyword in called:
                self.callee(node, depth + 1, str(name), total)
            else:
                self.visit(node, depth + 1, rule, bound=rule is not None)

    def data_type(self, node: Node) -> None:
        """Check the data type that is asked for.

        What only calls another operation leaves its result as it is where that is of objects.
        """
        try:
            item_bytes(self.written_data_type(node))
        except TypeError:
            # No data type; the operation will say so.
            return

    def written_data_type(self, node: Node) -> Any:
        """Give what is written for a data type; None where it is not written."""
        if isinstance(node, DataType):
            return decode_dtype(node.dtype)
        if isinstance(node, Operation):
            return self.table.lookup(node.name)
        if isinstance(node, List | Tuple):
            return [self.written_data_type(item) for item in node.items]
        return node if isinstance(node, str) else None

    def effect(self, name: str | None, keyword: str, node: Node) -> None:
        """Check a keyword that could make an operation write, or give what was never written."""
        forwarded = name in names.FORWARDING
        if keyword == "copy" and node is not True and (forwarded or name in names.COPYING):
            raise _not_permitted(f"{name} may not write into its argument.")
        if (
            keyword == "where"
            and node is not True
            and name not in (None, names.WHERE)
            and (forwarded or not _has_parameter(self.table.lookup(str(name)), "where"))
        ):
            # Elsewhere the result would be memory that nobody wrote, of whoever had it before:
            # for reductions `where` has another meaning, and they have a parameter of that name.
            # Others hand it on, as `numpy.clip` does, and as `mean_chunk` to what it calls.
            raise _not_permitted(f"{name} may not leave a part of its result unwritten.")

    def callee(self, node: Node, depth: int, caller: str, total: int) -> None:
        """Check an argument that `caller` calls."""
        if not isinstance(node, Operation | Partial | Compose):
            raise _not_permitted(f"{caller} may only be given an operation to call.")
        inner = set(_operations_called(node))
        nested = {names.ENFORCE} if caller == names.PASS else set()
        allowed = names.CALLED_BY.get(caller, frozenset()) | nested
        if (inner & (names.CALLS.keys() | names.TEXTS.keys() | names.IN_PLACE.keys())) - allowed:
            raise _not_permitted(f"{caller} may not call {', '.join(sorted(inner))}.")
        if caller not in names.FORWARDING and _binds_positional(node):
            raise _not_permitted(f"{caller} may not call a function with arguments bound by place.")
        # The others pass two at most by place, and know what they pass.
        given = names.GIVEN.get(caller, 2 - bool(allowed))
        if caller in names.FORWARDING:
            given = max(total - names.FORWARDING[caller], 0)
        self.function(node, depth, given)

    def forwarded_names(self, node: Node, depth: int) -> None:
        """Check the names under which arguments are forwarded as keywords."""
        if not isinstance(node, List | Tuple) or not set(map(repr, node.items)) <= FORWARDED:
            raise _not_permitted("Arguments may not be forwarded under these names.")
        self.visit(node, depth)


def _has_parameter(function: Any, parameter: str) -> bool:
    if isinstance(function, np.ufunc) or isinstance(getattr(function, "__self__", None), np.ufunc):
        return False
    try:
        return parameter in inspect.signature(function).parameters
    except ValueError:
        return False


def _operations_called(function: Node) -> Iterator[str]:
    stack = [function]
    while stack:
        node = stack.pop()
        if isinstance(node, Operation):
            yield node.name
        elif isinstance(node, Partial):
            stack.append(node.function)
        elif isinstance(node, Compose):
            stack.extend(node.functions)


def _binds_positional(function: Node) -> bool:
    if isinstance(function, Partial):
        return bool(function.arguments) or _binds_positional(function.function)
    if isinstance(function, Compose):
        return any(_binds_positional(part) for part in function.functions)
    return False


def _check_text(text: str, rule: str | None) -> None:
    if len(text) > MAX_TEXT:
        raise RequestRefused(
            f"A text has {len(text)} characters; at most {MAX_TEXT} are accepted.",
            reason=Reason.LIMIT_EXCEEDED,
        )
    if rule is not None and text not in names.TEXTS[rule]:
        raise _not_permitted(f"{rule} may not be given the text {text[:64]!r}.")


def _check_plain(node: Any) -> None:
    if isinstance(node, Scalar):
        dtype = decode_dtype(node.dtype)
        if dtype.hasobject or not dtype.itemsize or dtype.itemsize != len(node.data):
            raise _malformed("A scalar does not have the size of its dtype.")
    elif isinstance(node, DataType):
        decode_dtype(node.dtype)
    elif isinstance(node, Float):
        try:
            float.fromhex(node.text)
        except (ValueError, OverflowError) as error:
            raise _malformed("A float does not parse.") from error
    elif isinstance(node, Dictionary):
        keys = [key for key, _ in node.items]
        if not all(map(_is_key, keys)):
            raise _malformed("A key of a dict is not plain data.")
        if sum(isinstance(key, Tuple) for key in keys) > MOST_TUPLE_KEYS:
            raise _malformed("A dict has too many keys that are tuples.")


def _is_key(node: Node) -> bool:
    if isinstance(node, Tuple):
        return all(_is_key(item) for item in node.items)
    if isinstance(node, Number):
        return abs(node.value) < HASH_MODULUS
    return node is None or isinstance(node, bool | str | Float | Integer)


def check_value(value: Value, table: OperationTable) -> None:
    """Check a value that is sent along: callables stand in instances only.

    Raises
    ------
    NotPermitted
        If the value holds an operation that is not in the table, or where it might
        be called under other rules than its own.
    """
    stack: list[tuple[Any, bool]] = [(value, False)]
    while stack:
        part, inside = stack.pop()
        if isinstance(part, OperationValue):
            function = table.lookup(part.name)
            ruled = (
                part.name in names.CALLS or part.name in names.TEXTS or part.name in names.IN_PLACE
            )
            if ruled or not (inside or isinstance(function, type)):
                raise _not_permitted(f"{part.name} stands where nothing calls it.")
        elif isinstance(part, PartialValue):
            if not inside or part.arguments or not STEERING.isdisjoint(part.keywords):
                raise _not_permitted("A callable stands where nothing calls it.")
            stack.append((part.function, True))
            stack.extend((item, False) for item in part.keywords.values())
        elif isinstance(part, InstanceValue):
            stack.extend((item, True) for item in part.fields.values())
        elif isinstance(part, msgspec.Struct):
            stack.extend((item, inside) for item in msgspec.structs.astuple(part))
        elif isinstance(part, tuple):
            stack.extend((item, inside) for item in part)


def check_bound_value(value: Value) -> None:
    """Check a value that steers an operation which reaches functions by name.

    Texts in it must be such names; texts inside of arrays (group labels) and of
    instances (whose codec has its own check) are data.

    Raises
    ------
    NotPermitted
        If the value holds another text.
    """
    stack: list[Any] = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, InstanceValue):
            continue
        if isinstance(part, BytesValue | ObjectArrayValue):
            raise _not_permitted("An operation may not be steered by this value.")
        if isinstance(part, str):
            if part not in names.FLOX_TEXTS:
                raise _not_permitted(f"An operation may not be given the text {part[:64]!r}.")
        elif isinstance(part, ListValue | TupleValue | DictValue):
            stack.extend(msgspec.structs.astuple(part))
        elif isinstance(part, tuple):
            stack.extend(part)


def _malformed(message: str) -> FederatedError:
    return RequestRefused(message, reason=Reason.MALFORMED)


def _not_permitted(message: str) -> FederatedError:
    return NotPermitted(
        message,
        reason=Reason.OPERATION_NOT_ALLOWED,
        hint="Ask the institute to publish a function that does it.",
    )
