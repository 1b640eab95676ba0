"""dask's own array test suite as an outside judge of the protocol and the planner.

`dask.array.tests`, as the dask wheel ships it, runs twice: as it is, and with Dask's
schedulers rerouted through a `FederatedClient` that prefers one site for everything::

    x.compute(scheduler="sync") ──► plan ──► encode ══ HTTPS ══► check ──► run at the site
                       result  ◄──────────── decode ◄═══════════ encode ◄──┘

Each graph that a test computes is planned, sent, checked, run at a site of a
`LocalFederation` and sent back, although nothing in it needs a site.  What has no wire
form runs at home and is noted with the reason.  Two kinds of tasks belong there and are
told apart; every other is a miss:

- what holds something defined by the tests themselves (a function, a class);
- what reads from or writes to a place that the tests opened (a Zarr or HDF5 array, a
  file, an array in memory that is filled by `da.store`): no site can reach it.

The suite counts tests that pass in the plain run and hold nothing of these.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

SITE = "judge"
TESTS = "dask.array.tests"
MODES = ("plain", "federated")
REROUTED = ("sync", "synchronous", "single-threaded", "threads", "threading")
SETTINGS = """\
[pytest]
addopts = -p no:cacheprovider -p no:doctest --strict-markers
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
xfail_strict = true
markers =
    array_expr_incompatible
    gpu
    network
    normal_and_array_expr
    slow
    skip_with_pyarrow_strings
    xfail_with_pyarrow_strings
filterwarnings =
    ignore::pytest.PytestCollectionWarning
timeout = 300
"""
"""dask's pytest settings, which its wheel leaves out, as far as these tests need them."""

USER = "holds what the tests define"
OPENED = "reads from or writes to what the tests opened"
NOT_JUDGED = (USER, OPENED)
ACCESSES = ("load_chunk", "load_store_chunk", "store_chunk")
"""Functions of `dask.array.core` that work on a place which the caller opened."""
STORES = ("h5py", "zarr")
UNWRITABLE = "data of the researcher"


class Outcome(msgspec.Struct, kw_only=True):
    """What became of one test."""

    result: str = "passed"
    """``passed``, ``failed``, or ``skipped`` (also where a failure was expected)."""
    error: str = ""
    graphs: int = 0
    """Graphs that the test computed by the rerouted schedulers."""
    sent: int = 0
    """Tasks that ran at the site."""
    reasons: list[str] = []
    """Why tasks ran at home."""


# In pytest: one run of the suite


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this plugin."""
    group = parser.getgroup("dask-suite")
    group.addoption("--dask-suite", choices=MODES, default="plain")
    group.addoption("--dask-suite-json", type=Path, default=None)
    group.addoption("--dask-suite-chosen", type=Path, default=None)


def pytest_configure(config: pytest.Config) -> None:
    """Start the site, where there is to be one."""
    if config.getoption("--dask-suite-json") is None:
        return
    judge = Judge(federated=config.getoption("--dask-suite") == "federated")
    config.pluginmanager.register(judge, "dask-suite-judge")
    config.add_cleanup(judge.close)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests whose names begin with a line of the file, where one is given."""
    path: Path | None = config.getoption("--dask-suite-chosen")
    if path is not None:
        begins = tuple(path.read_text().split())
        items[:] = [item for item in items if item.nodeid.startswith(begins)]


class Judge:
    """Runs graphs at a site, and notes what became of each test."""

    def __init__(self, *, federated: bool) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.current = Outcome()
        self.undo: list[Any] = []
        if federated:
            self._reroute()

    def _reroute(self) -> None:
        import dask.array as da
        import dask.base

        from federated_dask import FederatedClient
        from federated_dask.client import loop
        from federated_dask.client.execution import execute
        from federated_dask.planner.plan import make_plan
        from federated_dask.protocol.operations import operation_table
        from site_plugins import LocalFederation

        federation = LocalFederation({SITE: {}})
        self.undo.append(federation.close)
        judge = self

        # Not Dask's scheduler: what asks for none in particular is to come here as well.
        client = FederatedClient(federation, set_as_default=False)
        self.undo.append(client.close)
        connections = {SITE: client.connection_of(SITE)}

        # No bound method: Dask would look for `persist` beside it.
        def get(dsk: Any, keys: Any, **_: Any) -> Any:
            """Send whatever can be sent to the one site."""
            wanted = keys if isinstance(keys, list) else [keys]
            plan = make_plan(dsk, wanted, client.facts, operation_table(), prefer=SITE)
            judge.note(plan)
            results, _record = loop.sync(execute(plan, connections))
            return _shaped(keys, results)

        dask.base.named_schedulers.update(dict.fromkeys(REROUTED, get))
        da.Array.__dask_scheduler__ = staticmethod(get)
        dask.config.set({"array.rechunk.method": "tasks"})

    def close(self) -> None:
        """Stop what was started."""
        while self.undo:
            self.undo.pop()()

    def note(self, plan: Any) -> None:
        """Note what runs where, and why not at the site."""
        self.current.graphs += 1
        self.current.sent += plan.tasks_at(SITE)
        for position in (position for stage in plan.home for position in stage):
            task = plan.graph.tasks[position]
            if task.finalise or task.node is None:
                continue
            why = self._why(plan, position)
            if why is not None and why not in self.current.reasons:
                self.current.reasons.append(why)

    def _why(self, plan: Any, position: int) -> str | None:
        task = plan.graph.tasks[position]
        if task.program is None and task.blocker == UNWRITABLE:
            return None
        given = [plan.graph.tasks[below] for below in task.dependencies]
        held = [task.node, *(below.node for below in given if below.unsendable is not None)]
        if any(holds(node, _is_of_tests) for node in held):
            return USER
        if any(holds(node, _is_opened) for node in held):
            return OPENED
        if task.program is not None:
            lacking = plan.placement.reasons.get(position)
            return None if lacking is None else f"{task.label}: {lacking}"
        return str(task.blocker)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Note the outcome of one test."""
        self.current = self.outcomes[item.nodeid] = Outcome()
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of one phase of a test."""
        if report.failed:
            self.current.result = "failed"
            self.current.error = str(report.longreprtext)[-2000:]
        elif report.skipped:
            self.current.result = "skipped"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write what was noted."""
        path: Path = session.config.getoption("--dask-suite-json")
        path.write_bytes(msgspec.json.encode(self.outcomes))


def _shaped(keys: Any, results: Mapping[Any, Any]) -> Any:
    if isinstance(keys, list):
        # Tuples, as the schedulers of this name give them.
        return tuple(_shaped(key, results) for key in keys)
    return results[keys]


def holds(node: Any, is_wanted: Callable[[Any], bool]) -> bool:
    """Say whether a task holds a part, in its arguments or what is bound to its callable."""
    from dask._task_spec import DataNode, GraphNode
    from toolz.functoolz import Compose, curry

    stack, seen = [node], set[int]()
    while stack:
        part = stack.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, DataNode):
            stack.append(part.value)
        elif isinstance(part, GraphNode):
            stack.extend(getattr(part, name, ()) for name in ("func", "args", "kwargs"))
        elif isinstance(part, functools.partial | curry):
            stack.extend((part.func, part.args, part.keywords))
        elif isinstance(part, Compose):
            stack.extend((part.first, part.funcs))
        elif isinstance(part, dict):
            stack.extend(part.values())
        elif isinstance(part, list | tuple | set | frozenset):
            stack.extend(part)
        elif is_wanted(part):
            return True
        elif callable(part):
            stack.extend(vars(part).values() if hasattr(part, "__dict__") else ())
    return False


def _is_of_tests(part: Any) -> bool:
    """Say whether the tests define a callable, or the class of an instance."""
    modules = (str(getattr(each, "__module__", "")) for each in (part, type(part)))
    return any(module.startswith((TESTS, "dask.utils_test")) for module in modules)


def _is_opened(part: Any) -> bool:
    """Say whether something is an array of a file, or accesses a place that was opened."""
    module, name = getattr(part, "__module__", ""), getattr(part, "__name__", "")
    if (module == "dask.array.core" and name in ACCESSES) or part is np.load or part is np.save:
        return True
    return type(part).__module__.partition(".")[0] in STORES


# The script: both runs, and the comparison


def run(mode: str, arguments: list[str], folder: Path) -> dict[str, Outcome]:
    """Run the suite in a process of its own."""
    (folder / "pytest.ini").write_text(SETTINGS)
    report = folder / f"{mode}.json"
    ci = str(Path(__file__).resolve().parent)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([ci, os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "-c", str(folder / "pytest.ini"), "-p", "dask_suite"]
    command += ["--dask-suite", mode, "--dask-suite-json", str(report), "-q", "--no-header"]
    command += ["--tb=short", "--rootdir", str(folder), *arguments]
    output = folder / f"{mode}.log"
    with output.open("w") as log:
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    if not report.exists():
        sys.exit(f"The {mode} run ended early:\n{output.read_text()[-3000:]}")
    return msgspec.json.decode(report.read_bytes(), type=dict[str, Outcome])


def compare(plain: Mapping[str, Outcome], federated: Mapping[str, Outcome]) -> dict[str, Any]:
    """Sort the tests that pass in the plain run by what became of them."""
    sorted_: dict[str, list[str]] = {
        kind: [] for kind in ("passed", "failed", "refused", "user", "opened")
    }
    reasons: Counter[str] = Counter()
    for name, before in plain.items():
        if before.result != "passed":
            continue
        after = federated.get(name, Outcome(result="failed", error="did not run"))
        missed = [reason for reason in after.reasons if reason not in NOT_JUDGED]
        if missed:
            sorted_["refused"].append(name)
            reasons.update(missed)
        elif USER in after.reasons:
            sorted_["user"].append(name)
        elif OPENED in after.reasons:
            sorted_["opened"].append(name)
        elif after.result != "passed":
            sorted_["failed"].append(name)
        else:
            sorted_["passed"].append(name)
    failed_unjudged = [
        name
        for name in (*sorted_["user"], *sorted_["opened"])
        if federated[name].result != "passed"
    ]
    judged = sum(len(sorted_[kind]) for kind in ("passed", "failed", "refused"))
    return {
        "plain": dict(Counter(outcome.result for outcome in plain.values())),
        "judged": judged,
        "percentage": 100 * len(sorted_["passed"]) / max(judged, 1),
        "crossed": sum(federated[name].sent > 0 for name in sorted_["passed"]),
        "tasks_sent": sum(outcome.sent for outcome in federated.values()),
        "graphs": sum(outcome.graphs for outcome in federated.values()),
        "failed_unjudged": failed_unjudged,
        "reasons": dict(reasons.most_common()),
        **sorted_,
    }


def table(found: Mapping[str, Any]) -> str:
    """Write the comparison as text."""
    plain = found["plain"]
    lines = [
        f"{'tests that pass in the plain run':<58}{plain.get('passed', 0):>7,}",
        f"{'  hold what the tests define (not judged)':<58}{len(found['user']):>7,}",
        f"{'  read or write what the tests opened (not judged)':<58}{len(found['opened']):>7,}",
        f"{'    of these two failed':<58}{len(found['failed_unjudged']):>7,}",
        f"{'  judged':<58}{found['judged']:>7,}",
        f"{'    passed':<58}{len(found['passed']):>7,}",
        f"{'      with tasks that ran at the site':<58}{found['crossed']:>7,}",
        f"{'    failed':<58}{len(found['failed']):>7,}",
        f"{'    ran at home in part':<58}{len(found['refused']):>7,}",
        f"{'graphs':<58}{found['graphs']:>7,}",
        f"{'tasks at the site':<58}{found['tasks_sent']:>7,}",
        f"{'percentage passed':<58}{found['percentage']:>7.2f}",
        "",
        "tests   why a task ran at home",
        *(f"{count:>5}   {reason}" for reason, count in found["reasons"].items()),
    ]
    lines += ["", "failed", *(f"  {name}" for name in found["failed"] + found["failed_unjudged"])]
    return "\n".join(lines)


def main() -> None:
    """Run the suite plainly and federated, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the details to this file")
    parser.add_argument("--plain", type=Path, help="keep the plain run here, and take it from here")
    parser.add_argument("--at-least", type=float, default=0.0, help="percentage that must pass")
    parser.add_argument("--chosen", type=Path, help="run tests whose names begin with its lines")
    options, arguments = parser.parse_known_args()
    if options.chosen is not None:
        arguments += ["--dask-suite-chosen", str(options.chosen.resolve())]
    if not any(TESTS in argument for argument in arguments):
        arguments = ["--pyargs", TESTS, *arguments]
    if "-m" not in arguments:
        arguments += ["-m", "not slow"]
    with tempfile.TemporaryDirectory(prefix="dask-suite-") as name:
        folder = Path(name)
        if options.plain is not None and options.plain.exists():
            plain = msgspec.json.decode(options.plain.read_bytes(), type=dict[str, Outcome])
        else:
            plain = run("plain", arguments, folder)
            if options.plain is not None:
                options.plain.write_bytes(msgspec.json.encode(plain))
        federated = run("federated", arguments, folder)
        found = compare({name: plain[name] for name in plain if name in federated}, federated)
    print(table(found))
    if options.json is not None:
        details = {name: msgspec.to_builtins(outcome) for name, outcome in federated.items()}
        options.json.write_text(json.dumps({**found, "tests": details}, indent=1))
    if found["percentage"] < options.at_least:
        sys.exit(f"At least {options.at_least} % were to pass.")


if __name__ == "__main__":
    main()
