"""The plan of one compute: jobs per site and stage, what crosses each link, and why.

::

    stage 0   north: 42 tasks ──┐                       released: partials
              south: 40 tasks ──┼──► home
    stage 1                     └──  home: 3 tasks ──┐  brought: the mean of both
    stage 2   north: 12 tasks  ◄─────────────────────┘  (uses what stage 0 left held)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

from federated_dask.errors import NotPermitted, Reason, RequestRefused
from federated_dask.planner.digests import task_digests
from federated_dask.planner.encoding import encode_graph
from federated_dask.planner.graph import Key, PlanGraph, PlanTask, lower
from federated_dask.planner.learning import LearntSizes
from federated_dask.planner.links import LinkCosts
from federated_dask.planner.origins import Dataset, derivations
from federated_dask.planner.placement import CHEAPER, Placement, exchange, place
from federated_dask.planner.programs import Program
from federated_dask.planner.reductions import split_reductions
from federated_dask.planner.sizes import estimate_sizes, framed
from federated_dask.planner.sources import HOME, HeldReference, SiteFacts, SourceReference
from federated_dask.planner.stored_reads import brought_bytes, read_bytes
from federated_dask.protocol import graph as wire
from federated_dask.protocol.frames import encode_frame
from federated_dask.protocol.graph import Reference, Template
from federated_dask.protocol.messages import JobSubmission, Output
from federated_dask.protocol.operations import OperationTable

__all__ = ["Job", "KeptAtHome", "Plan", "make_plan"]


EVENT_BYTES = 195
"""What a job's events take beside its results."""
DELEGATION_REQUEST_BYTES, DELEGATION_REPLY_BYTES, DELEGATION_BYTES = 40, 577, 325
"""What a delegation takes: asked for, given, and handed on with the job of its receiver."""


class KeptAtHome(Protocol):
    """Results that crossed before and are still at home."""

    def get(self, digest: bytes, /) -> object | None:
        """Give what is kept under the digest of a task, or None."""


@dataclass
class Job:
    """What one site does in one stage. All lists hold positions in the plan's graph."""

    site: str
    stage: int
    tasks: list[int] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    """Tasks whose results go home."""
    held: list[int] = field(default_factory=list)
    """Tasks whose results stay at the site for a later stage, or for the user."""
    values: list[int] = field(default_factory=list)
    """Tasks whose results are sent along."""
    earlier: list[int] = field(default_factory=list)
    """Tasks of earlier stages whose results the site holds."""
    pulled: dict[int, str] = field(default_factory=dict)
    """Tasks of earlier stages whose results it fetches, with the site that holds them."""
    confirmed: list[int] = field(default_factory=list)
    """Leaves of which results that are at home were made: the site is asked whether they are as
    they were, and whether the user may still have them."""

    @property
    def outputs(self) -> list[int]:
        """Tasks whose results are released or held, in the order of the submission."""
        return list(dict.fromkeys((*self.released, *self.held)))


@dataclass
class Plan:
    """Where every task runs and what crosses each link.

    Made by `make_plan`; shown by ``FederatedClient.explain``.
    """

    graph: PlanGraph
    placement: Placement
    sizes: list[int]
    facts: Mapping[str, SiteFacts]
    table: OperationTable
    jobs: list[list[Job]]
    """Jobs of every stage."""
    home: list[list[int]]
    """Tasks that run at home, per stage, with what runs anywhere and is needed there."""
    hold: bool
    """True for persist: requested results that lie at a site stay there."""
    at: str | None = None
    """Site at which all requested results end, held."""
    leaving: dict[Dataset, int] = field(default_factory=dict)
    """Bytes predicted to leave of each dataset whose egress has a limit."""
    limited: list[frozenset[Dataset]] = field(default_factory=list)
    """Such datasets from which the result of every task derives."""
    plain_sizes: list[int] = field(default_factory=list)
    """Estimated bytes of every task's result before compression, as sites count them."""
    estimates: list[int] = field(default_factory=list)
    """What `sizes` were before those that earlier runs taught took their place."""
    kept: dict[int, Any] = field(default_factory=dict, repr=False)
    """Results that are at home from an earlier run and are used, by position."""
    digests: list[bytes | None] = field(default_factory=list, repr=False)
    """Of what tasks make, where results are kept at home; else empty."""
    _links: dict[tuple[str, str], int] | None = field(default=None, repr=False)

    @property
    def sites(self) -> list[str]:
        """Sites that take part, in alphabetical order."""
        return sorted({job.site for stage in self.jobs for job in stage})

    def tasks_at(self, place_: str) -> int:
        """Count the tasks that run at a site or at home."""
        if place_ == HOME:
            return sum(not self.graph.tasks[p].finalise for stage in self.home for p in stage)
        return sum(len(job.tasks) for stage in self.jobs for job in stage if job.site == place_)

    def read_bytes(self, site: str) -> int:
        """Bytes, decoded, that are read from storage at one site."""
        jobs = [job for stage in self.jobs for job in stage if job.site == site]
        there = sum(read_bytes(self.graph.tasks[p], self.graph) for job in jobs for p in job.tasks)
        return there + self.read_from_home().get(site, 0)

    def download_bytes(self) -> int:
        """Bytes, decoded, of all stored data that the expression needs."""
        return sum(read_bytes(task, self.graph) for task in self.graph.tasks)

    def read_from_home(self) -> dict[str, int]:
        """Bytes, decoded, of stored variables that tasks at home read from each site."""
        sizes: Counter[str] = Counter()
        for position in (p for stage in self.home for p in stage):
            task = self.graph.tasks[position]
            for source in task.sources[:1]:
                sizes[source.site] += read_bytes(task, self.graph)
        return dict(sizes)

    def predicted_links(self) -> dict[tuple[str, str], int]:
        """Bytes predicted to cross each link: (from, to) to bytes.

        What goes to a site is the message of its job, exactly; what comes home
        is estimated from the shapes that the collections state.
        """
        if self._links is None:
            self._links = self._predict()
        return dict(self._links)

    def _predict(self) -> dict[tuple[str, str], int]:
        links: Counter[tuple[str, str]] = Counter()
        leases = {
            (position, job.site): _placeholder(job)
            for stage in self.jobs
            for job in stage
            for position in job.held
        }
        for stage in self.jobs:
            for job in stage:
                links[HOME, job.site] += self._upload_bytes(job, leases)
                links[job.site, HOME] += EVENT_BYTES
                links[job.site, HOME] += sum(framed(self.sizes[p]) for p in job.released)
                for position, site in job.pulled.items():
                    links[site, job.site] += framed(self.sizes[position])
                for site, _ in {(site, leases[p, site]) for p, site in job.pulled.items()}:
                    links[HOME, site] += DELEGATION_REQUEST_BYTES
                    links[site, HOME] += DELEGATION_REPLY_BYTES
                    links[HOME, job.site] += DELEGATION_BYTES
        for position in (p for stage in self.home for p in stage):
            task = self.graph.tasks[position]
            for source in task.sources[:1]:
                links[source.site, HOME] += brought_bytes(task, self.graph)
        return dict(links)

    def _upload_bytes(self, job: Job, leases: Mapping[tuple[int, str], str]) -> int:
        held = {p: wire.Held(leases[p, job.site], 0) for p in job.earlier}
        held.update({p: wire.Held(leases[p, site], 0, site) for p, site in job.pulled.items()})
        submission, buffers = self.submission(job, dict.fromkeys(job.values), held)
        message = sum(memoryview(piece).nbytes for piece in encode_frame(submission, buffers))
        return message + sum(self.sizes[p] for p in job.values)

    def submission(
        self, job: Job, values: Mapping[int, Any], held: Mapping[int, wire.Held]
    ) -> tuple[JobSubmission, list[Any]]:
        """Encode a job; `values` and `held` stand for what earlier stages made."""
        encoded = encode_graph(self.graph, job.tasks, values, held, self.table, job.confirmed)
        released, kept = set(job.released), set(job.held)
        outputs = tuple(
            Output(task=encoded.numbers[p], release=p in released, hold=p in kept)
            for p in job.outputs
        )
        submission = JobSubmission(graph=encoded.graph, outputs=outputs, reserve=self._reserve(job))
        return submission, encoded.buffers

    def _reserve(self, job: Job) -> dict[str, int]:
        """Bytes that a job is going to release of its site's datasets that have a budget."""
        if not any(dataset.site == job.site for dataset in self.leaving):
            return {}
        sizes: Counter[str] = Counter()
        for position in job.released:
            for dataset in self.limited[position]:
                if dataset in self.leaving and dataset.site == job.site:
                    sizes[dataset.name] += self.sizes[position]
        return dict(sizes)

    def reasons(self) -> list[tuple[str, str, int]]:
        """Say why tasks are not at their data: (task, reason, count), most frequent first."""
        counts: Counter[tuple[str, str]] = Counter()
        for position, reason in self.placement.reasons.items():
            task = self.graph.tasks[position]
            counts[task.label, reason] += 1
        return [(label, reason, count) for (label, reason), count in counts.most_common()]


def make_plan(
    expression: Any,
    keys: Iterable[Key],
    facts: Mapping[str, SiteFacts],
    table: OperationTable,
    *,
    hold: bool = False,
    at: str | None = None,
    prefer: str | None = None,
    learnt: LearntSizes | None = None,
    links: LinkCosts | None = None,
    kept: KeptAtHome | None = None,
) -> Plan:
    """Plan a compute.

    Parameters
    ----------
    expression : dask Expr, HighLevelGraph or mapping
        What Dask passes to a scheduler.
    keys : iterable of keys
        What is to be computed.
    facts : mapping of str to SiteFacts
        The sites, by name.
    table : OperationTable
        Operations of this process.
    hold : bool, default False
        Leave requested results that lie at a site there (``persist``).
    at : str, optional
        A site to which all requested results are brought, to be held there: those
        made elsewhere directly where the two sites exchange values, else by home.
    prefer : str, optional
        A site that runs whatever it can; to test that it can.
    learnt : LearntSizes, optional
        What results took in earlier runs.
    links : LinkCosts, optional
        What a byte costs on each link.
    kept : KeptAtHome, optional
        Results of earlier runs that are at home: what would bring one home does not run,
        and its sites are asked whether what it was made of is still so.

    Returns
    -------
    Plan

    Raises
    ------
    NotPermitted
        If a task would have to bring home more of a dataset than may leave its
        site; names the task and what to do.
    RequestRefused
        If a result that is to be brought to `at` has no wire form.
    """
    graph = split_reductions(lower(expression, keys, table), facts, table)
    estimated = estimate_sizes(graph)
    plain, estimates = estimated.plain, estimated.wire
    sizes = list(estimates) if learnt is None else learnt.applied(graph, estimates)
    _count_released_whole(graph, sizes, plain)
    hold = hold or at is not None
    # What is to be held at a site has to be made there.
    digests = [] if kept is None or hold else task_digests(graph, table)
    at_home = {
        position: found
        for position, digest in enumerate(digests)
        if kept is not None and digest is not None and (found := kept.get(digest)) is not None
    }
    placement = place(
        graph, sizes, facts, prefer=prefer, hold=hold, at=at, links=links, kept=at_home
    )
    if at is not None:
        _bring(graph, placement, (sizes, plain, estimates), at)
    stages = 1 + max(placement.stages, default=0)
    plan = Plan(
        graph,
        placement,
        sizes,
        facts,
        table,
        [[] for _ in range(stages)],
        [[] for _ in range(stages)],
        hold,
        at,
        plain_sizes=plain,
        estimates=estimates,
        kept=at_home,
        digests=digests,
    )
    _assign(plan)
    _confirm(plan)
    _check_egress(plan)
    return plan


def _count_released_whole(graph: PlanGraph, sizes: list[int], plain: list[int]) -> None:
    """Take what derives from data with a budget for no smaller than it is before compression.

    Sites count what is released before it shrinks on the wire.
    """
    for position, datasets in enumerate(derivations(graph, limited=True)):
        if datasets:
            sizes[position] = max(sizes[position], plain[position])


def _placeholder(job: Job) -> str:
    """Make up a name for the lease of a job: names do not shrink on the wire."""
    return blake2b(f"{job.stage} {job.site}".encode(), digest_size=16).hexdigest()


def _bring(graph: PlanGraph, placement: Placement, sizes: tuple[list[int], ...], at: str) -> None:
    """Add a task at a site for every requested result that is made elsewhere: it hands it on."""
    brought: dict[int, int] = {}
    for key, position in graph.outputs.items():
        task, place_ = graph.tasks[position], placement.places[position]
        if place_ in (None, at):
            continue
        if task.unsendable is not None:
            raise RequestRefused(
                f"{task.label!r} cannot be brought to {at}: {task.unsendable}.",
                reason=Reason.INVALID_ARGUMENT,
                site=at,
                hint="Convert it to numbers, texts or dates first.",
            )
        if position not in brought:
            brought[position] = len(graph.tasks)
            graph.tasks.append(
                PlanTask(
                    key=("brought", key),
                    label=task.label,
                    dependencies=(position,),
                    program=Program(Template((Reference(),)), (position,), ()),
                    blocker=None,
                    node=None,
                    shape=task.shape,
                    dtype=task.dtype,
                )
            )
            placement.places.append(at)
            placement.stages.append(placement.stages[position] + 1)
            for each in sizes:
                each.append(each[position])
        graph.outputs[key] = brought[position]


def _assign(plan: Plan) -> None:
    """Cut the placed graph into jobs and home shares."""
    wanted = set(plan.graph.outputs.values())
    wanted -= plan.kept.keys()
    needed, plan.kept = _needed(plan, wanted)
    shares = _shares(plan, wanted, needed)
    _hand_on(plan, wanted, shares)
    for share in sorted(shares, key=lambda share: (share.stage, share.site)):
        if share.site == HOME:
            plan.home[share.stage] = share.tasks
        else:
            plan.jobs[share.stage].append(share)


def _needed(plan: Plan, wanted: set[int]) -> tuple[set[int], dict[int, Any]]:
    """Tasks that have to run, given what is at home, and what of that is used."""
    places = plan.placement.places
    used = {p for p in plan.graph.outputs.values() if p not in wanted}
    needed = set(wanted)
    stack = list(wanted)
    while stack:
        position = stack.pop()
        for below in plan.graph.tasks[position].dependencies:
            if _is_at_hand(plan, below, places[position]):
                used.add(below)
            elif below not in needed:
                needed.add(below)
                stack.append(below)
    return needed, {position: found for position, found in plan.kept.items() if position in used}


def _shares(plan: Plan, wanted: set[int], needed: set[int]) -> list[Job]:
    """Give each place and stage its tasks, and again those that run anywhere."""
    stages = plan.placement.stages
    shares: dict[tuple[int, str], Job] = {}
    for position, place_ in enumerate(plan.placement.places):
        if position not in needed:
            continue
        if place_ is None and position in wanted:
            place_ = plan.at or HOME
        if place_ is not None:
            share = shares.setdefault((stages[position], place_), Job(place_, stages[position]))
            share.tasks.append(position)
    for share in shares.values():
        share.tasks = _with_free(plan, share.tasks)
    return list(shares.values())


def _hand_on(plan: Plan, wanted: set[int], shares: list[Job]) -> None:
    """Note which results each share has to hold or release, and for whom."""
    makers = {(position, share.site): share for share in shares for position in share.tasks}
    for share in shares:
        _connect(plan, share, makers, set(share.tasks))
    for position in wanted:
        place_ = plan.placement.places[position] or plan.at
        if place_ is not None and place_ != HOME:
            job = makers[position, place_]
            (job.held if plan.hold else job.released).append(position)
    for share in shares:
        share.released = list(dict.fromkeys(share.released))
        share.held = list(dict.fromkeys(share.held))


def _confirm(plan: Plan) -> None:
    """Ask sites about what the results that are at home were made of."""
    graph = plan.graph
    seen = set(plan.kept)
    stack = list(plan.kept)
    leaves: dict[tuple[str, ...], tuple[str, int]] = {}
    while stack:
        task = graph.tasks[stack.pop()]
        new = [below for below in task.dependencies if below not in seen]
        seen.update(new)
        stack.extend(new)
        for reference in () if task.program is None else task.program.references:
            leaf = graph.leaves[-1 - reference] if reference < 0 else None
            # One variable of a dataset stands for all.
            if isinstance(leaf, SourceReference):
                same: tuple[str, ...] = (leaf.site, leaf.dataset, leaf.version)
            elif isinstance(leaf, HeldReference):
                same = (leaf.site, leaf.lease, str(leaf.output), "held")
            else:
                continue
            leaves.setdefault(same, (leaf.site, -1 - reference))
    jobs = {job.site: job for job in plan.jobs[0]}
    for site, position in sorted(leaves.values()):
        if site not in jobs:
            jobs[site] = Job(site, 0)
            plan.jobs[0].append(jobs[site])
        jobs[site].confirmed.append(position)


def _is_at_hand(plan: Plan, position: int, user: str | None) -> bool:
    """Whether the user of a result takes it from home, where it is, or has it made anew."""
    # Where it would be made, it need not be brought.
    return position in plan.kept and (user == HOME or user != plan.placement.places[position])


def _with_free(plan: Plan, tasks: list[int]) -> list[int]:
    """Add the tasks that run anywhere and that these need."""
    needed = set(tasks)
    stack = list(tasks)
    while stack:
        for below in plan.graph.tasks[stack.pop()].dependencies:
            if plan.placement.places[below] is None and below not in needed:
                needed.add(below)
                stack.append(below)
    return sorted(needed)


def _connect(plan: Plan, share: Job, makers: Mapping[tuple[int, str], Job], own: set[int]) -> None:
    """Note what a share needs from other shares, here and there."""
    needed = {below for p in share.tasks for below in plan.graph.tasks[p].dependencies} - own
    for below in sorted(needed):
        if _is_at_hand(plan, below, share.site):
            if share.site != HOME:
                share.values.append(below)
            continue
        place_ = plan.placement.places[below]
        assert place_ is not None  # noqa: S101
        maker = makers[below, place_]
        if place_ == share.site:
            if place_ != HOME:
                maker.held.append(below)
                share.earlier.append(below)
        elif HOME not in (place_, share.site) and exchange(plan.facts, place_, share.site):
            maker.held.append(below)
            share.pulled[below] = place_
        else:
            if place_ != HOME:
                maker.released.append(below)
            if share.site != HOME:
                share.values.append(below)


def _check_egress(plan: Plan) -> None:
    plan.limited = derivations(plan.graph, limited=True)
    # Added up by set first: of tasks that derive from the same thousand datasets there are many.
    crossing: Counter[frozenset[Dataset]] = Counter()
    for position in _crossing(plan):
        # Sites count what is released before it shrinks on the wire.
        crossing[plan.limited[position]] += plan.plain_sizes[position]
    for position in _reading_at_home(plan):
        crossing[plan.limited[position]] += read_bytes(plan.graph.tasks[position], plan.graph)
    leaving: Counter[Dataset] = Counter()
    for datasets, size in crossing.items():
        for dataset in datasets:
            leaving[dataset] += size
    plan.leaving = dict(leaving)
    for dataset, size in leaving.items():
        if dataset.egress_limit is not None and size > dataset.egress_limit:
            raise _export_error(plan, dataset, size)


def _crossing(plan: Plan) -> list[int]:
    """List the tasks whose results leave their site, as often as they do."""
    return [p for stage in plan.jobs for job in stage for p in (*job.released, *job.pulled)]


def _reading_at_home(plan: Plan) -> list[int]:
    return [p for stage in plan.home for p in stage if plan.graph.tasks[p].sources]


def _export_error(plan: Plan, dataset: Dataset, size: int) -> NotPermitted:
    site, name, limit = dataset
    # What is read at home says most; else the largest of what crosses, the last of equals.
    read = [p for p in _reading_at_home(plan) if dataset in plan.limited[p]]
    crossing = [p for p in _crossing(plan) if dataset in plan.limited[p]]
    position = read[-1] if read else max(reversed(crossing), key=lambda p: plan.sizes[p])
    needing = {position}
    why = []
    for other in range(position, len(plan.graph.tasks)):
        dependencies = plan.graph.tasks[other].dependencies
        is_home = plan.placement.places[other] == HOME
        if is_home and (other == position or not needing.isdisjoint(dependencies)):
            needing.add(other)
            why.append(plan.placement.reasons.get(other))
    # What had to run at home, before what followed it there.
    why.sort(key=lambda reason: reason in (None, CHEAPER))
    because = f" They would be needed at home because {why[0]}." if why and why[0] else ""
    return NotPermitted(
        f"About {size:,} bytes derived from {site}/{name} would leave the site; "
        f"{limit:,} of its budget were left when it was opened.{because}",
        reason=Reason.EXPORT_NOT_ALLOWED,
        site=site,
        hint="Reduce more before the result leaves, use operations that the site has, "
        "or ask the institute to publish your function at the site, to grant you `code`, or to "
        "open the dataset.",
    )
