"""Sites without processes: fake stored variables, and a plain interpreter of what crosses.

`Federation.run` takes a plan the way a client does.  Every job really becomes bytes, is
decoded and checked as an endpoint does it, and is then evaluated task by task by
`evaluate`, the shortest reading of the wire format there is; results become bytes again.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dask
import numpy as np
from dask.local import get_sync
from toolz import compose

from federated_dask.planner.graph import PlanGraph, home_graph
from federated_dask.planner.learning import LearntSizes
from federated_dask.planner.links import LinkCosts
from federated_dask.planner.plan import Job, Plan, make_plan
from federated_dask.planner.sources import HOME, SiteFacts, SourceReference
from federated_dask.protocol import graph as wire
from federated_dask.protocol.dtypes import decode_dtype
from federated_dask.protocol.frames import FrameDecoder, decode_message, encode_frame
from federated_dask.protocol.graph import check_graph
from federated_dask.protocol.limits import Limits
from federated_dask.protocol.messages import Content, JobSubmission, Result
from federated_dask.protocol.operations import operation_table
from federated_dask.protocol.values import decode_value, encode_value

TABLE = operation_table()


class FakeVariable:
    """A stored variable as the client shows it to Dask."""

    def __init__(
        self,
        federation: "Federation",
        source: SourceReference,
        egress_limit: int | None = None,
        content: Content | None = None,
    ) -> None:
        values = federation.stored[source]
        self.federation = federation
        self.source = source
        self.egress_limit = egress_limit
        self.content = content
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim

    def __getitem__(self, index: Any) -> np.ndarray:
        values = self.federation.stored[self.source][index]
        self.federation.read_from_home += values.nbytes
        return values


@dataclass
class Federation:
    """Sites' data, and what happened."""

    operations: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Operations of sites that do not have all."""
    task_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes that one operation may make at sites that say so."""
    exchanging: bool = False
    """Whether sites fetch values from one another."""
    stored: dict[SourceReference, np.ndarray] = field(default_factory=dict)
    read_from_home: int = 0
    crossed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Bytes on every link."""
    messages: list[tuple[JobSubmission, list[bytearray]]] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    prefer: str | None = None

    def forget(self) -> None:
        """Forget what happened, and what sites lack."""
        self.operations, self.read_from_home, self.prefer = {}, 0, None
        self.task_bytes = {}
        self.exchanging = False
        for log in (self.crossed, self.messages, self.plans):
            log.clear()

    def variable(
        self,
        site: str,
        values: np.ndarray,
        name: str = "v",
        egress_limit: int | None = None,
        content: Content | None = None,
    ) -> FakeVariable:
        source = SourceReference(site, "data", "1", name)
        self.stored[source] = values
        return FakeVariable(self, source, egress_limit, content)

    @property
    def facts(self) -> dict[str, SiteFacts]:
        names = {source.site for source in self.stored}
        return {
            name: SiteFacts(
                name,
                self.operations.get(name, frozenset(TABLE.names)),
                frozenset(names - {name} if self.exchanging else ()),
                task_bytes=self.task_bytes.get(name),
            )
            for name in sorted(names)
        }

    def plan(
        self,
        *collections: Any,
        hold: bool = False,
        learnt: LearntSizes | None = None,
        links: LinkCosts | None = None,
    ) -> Plan:
        """Plan a compute the way Dask would ask for it."""
        found: list[Plan] = []

        def scheduler(expression: Any, keys: Any, **_: Any) -> None:
            found.append(
                make_plan(
                    expression,
                    keys,
                    self.facts,
                    TABLE,
                    hold=hold,
                    prefer=self.prefer,
                    learnt=learnt,
                    links=links,
                )
            )
            raise _Planned

        with dask.config.set(scheduler=scheduler):
            try:
                dask.compute(*collections)
            except _Planned:
                return found[0]
        raise AssertionError("nothing was to be computed")

    def compute(self, *collections: Any) -> Any:
        """Compute through plans; give back what `dask.compute` would."""

        def scheduler(expression: Any, keys: Any, **_: Any) -> Any:
            plan = make_plan(expression, keys, self.facts, TABLE, prefer=self.prefer)
            self.plans.append(plan)
            made = self.run(plan)
            return _shaped(keys, made)

        with dask.config.set(scheduler=scheduler):
            return dask.compute(*collections)

    def run(self, plan: Plan) -> dict[Any, Any]:
        """Run a plan; give the requested keys' results."""
        values: dict[int, Any] = {}
        held: dict[int, wire.Held] = {}
        leases: dict[wire.Held, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for stage, (jobs, home) in enumerate(zip(plan.jobs, plan.home, strict=True)):
                for job in jobs:
                    self._run_job(plan, job, values, held, leases, f"{job.site}-{stage}")
                self._run_home(plan, home, values)
        return {
            key: values[position] if position in values else leases[held[position]]
            for key, position in plan.graph.outputs.items()
        }

    def _run_job(
        self,
        plan: Plan,
        job: Job,
        values: dict[int, Any],
        held: dict[int, wire.Held],
        leases: dict[wire.Held, Any],
        lease: str,
    ) -> None:
        submission, buffers = plan.submission(
            job,
            {position: values[position] for position in job.values},
            {position: held[position] for position in job.earlier}
            | {p: wire.Held(held[p].lease, held[p].output, s) for p, s in job.pulled.items()},
        )
        sent = b"".join(bytes(piece) for piece in encode_frame(submission, buffers))
        self.crossed[HOME, job.site] += len(sent)
        results = self.serve(job.site, sent, leases)
        outputs = job.outputs
        for number, (output, result) in enumerate(results):
            if output.hold:
                held[outputs[number]] = wire.Held(lease, number)
                leases[wire.Held(lease, number)] = result
            if output.release:
                reply = bytes_of(number, result)
                self.crossed[job.site, HOME] += len(reply)
                [frame] = FrameDecoder().feed(reply)
                event = decode_message(frame, Result)
                values[outputs[event.output]] = decode_value(event.value, frame.buffers, TABLE)

    def serve(self, site: str, sent: bytes, leases: Mapping[wire.Held, Any]) -> list[Any]:
        """Do what an endpoint and its workers do."""
        [frame] = FrameDecoder().feed(sent)
        submission = decode_message(frame, JobSubmission)
        self.messages.append((submission, frame.buffers))
        graph = submission.graph
        table = TABLE.only(self.facts[site].operations)
        checked = check_graph(graph, table, Limits())
        operands: list[Any] = [
            self.stored[SourceReference(site, each.dataset, each.version, each.variable)]
            for each in graph.sources
        ]
        operands += [decode_value(value, frame.buffers, table) for value in graph.values]
        for each in graph.held:
            assert each.lease.startswith(f"{each.peer or site}-")
            if each.peer is not None:
                assert {each.peer, site} <= set(self.facts)
                assert self.exchanging
                self.crossed[each.peer, site] += getattr(
                    leases[wire.Held(each.lease, each.output)], "nbytes", 0
                )
            operands.append(leases[wire.Held(each.lease, each.output)])
        for block in checked.blocks:
            template = graph.templates[block.template]
            for references, integers in zip(block.references, block.integers, strict=True):
                arguments = [operands[number] for number in references]
                operands.append(evaluate(template, arguments, integers.tolist()))
        return [(output, operands[graph.first_task + output.task]) for output in submission.outputs]

    def _run_home(self, plan: Plan, tasks: Sequence[int], values: dict[int, Any]) -> None:
        own = set(tasks)
        needed = {below for p in tasks for below in plan.graph.tasks[p].dependencies} - own
        nodes = home_graph(plan.graph, tasks, {p: values[p] for p in needed})
        keys = [plan.graph.tasks[p].key for p in tasks]
        values.update(zip(tasks, get_sync(nodes, keys), strict=True))


class _Planned(Exception):
    pass


def _shaped(keys: Any, made: Mapping[Any, Any]) -> Any:
    return [_shaped(key, made) for key in keys] if isinstance(keys, list) else made[keys]


def bytes_of(number: int, result: Any) -> bytes:
    buffers: list[Any] = []
    message = Result(output=number, value=encode_value(result, buffers, TABLE))
    return b"".join(bytes(piece) for piece in encode_frame(message, buffers))


def evaluate(template: wire.Template, references: Sequence[Any], integers: Sequence[int]) -> Any:
    """Evaluate one task."""
    holes = _Holes(iter(references), iter(integers), [])
    for step in template.steps:
        holes.steps.append(_value(step, holes))
    return holes.steps[-1]


def true_values(graph: PlanGraph, federation: Federation) -> list[Any]:
    """Compute every task of a graph, once."""
    values: list[Any] = []
    leaves = [
        federation.stored[leaf] if isinstance(leaf, SourceReference) else leaf
        for leaf in graph.leaves
    ]
    for position, task in enumerate(graph.tasks):
        program = task.program
        if program is None:
            below = {d: values[d] for d in task.dependencies}
            [value] = get_sync(home_graph(graph, [position], below), [task.key])
        else:
            operands = [values[r] if r >= 0 else leaves[-1 - r] for r in program.references]
            value = evaluate(program.template, operands, program.integers)
        values.append(value)
    return values


@dataclass
class _Holes:
    references: Iterator[Any]
    integers: Iterator[int]
    steps: list[Any]


def _value(node: Any, holes: _Holes) -> Any:
    match node:
        case wire.Reference():
            return next(holes.references)
        case wire.Integer():
            return next(holes.integers)
        case wire.Local(step):
            return holes.steps[step]
        case wire.Number(value):
            return value
        case wire.Float(text):
            return float.fromhex(text)
        case wire.Bytes(data):
            return data
        case wire.Scalar(dtype, data):
            return np.frombuffer(data, decode_dtype(dtype), 1)[0]
        case wire.DataType(dtype):
            return decode_dtype(dtype)
        case wire.EllipsisNode():
            return ...
        case wire.Operation(name):
            return TABLE.lookup(name)
    parts = [_value(child, holes) for child in wire.children(node)]
    match node:
        case wire.Slice():
            return slice(*parts)
        case wire.List():
            return parts
        case wire.Tuple():
            return tuple(parts)
        case wire.Dictionary():
            return dict(zip(parts[::2], parts[1::2], strict=True))
        case wire.Compose():
            return compose(*parts)
        case wire.Partial() | wire.Call():
            function, *rest = parts
            count = len(node.arguments)
            names = [name for name, _ in node.keywords]
            bound = partial(function, *rest[:count], **dict(zip(names, rest[count:], strict=True)))
            return bound() if isinstance(node, wire.Call) else bound
    return node
