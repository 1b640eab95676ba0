"""The ledger under races, several processes and kills."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from site_plugins.ledger import Account, Exhausted, Ledger
from site_plugins.registry import Registry

PROJECT = "project:drought@north"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "site.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    registry = Registry(path)
    yield Ledger(registry)
    registry.close()


def test_all_budgets_or_none(ledger: Ledger) -> None:
    accounts = {"soil": Account(PROJECT, 100), "rain": Account(PROJECT, 10)}
    ledger.take(accounts, 5)
    with pytest.raises(Exhausted) as refused:
        ledger.take(accounts, {"soil": 1, "rain": 6})
    assert (refused.value.dataset, refused.value.left) == ("rain", 5)
    assert [ledger.used(PROJECT, name) for name in accounts] == [5, 5]
    ledger.take(accounts, 5)
    ledger.give_back(accounts, {"rain": 3})
    assert [ledger.used(PROJECT, name) for name in accounts] == [10, 7]


def test_accounts_are_apart(ledger: Ledger) -> None:
    ledger.take({"soil": Account(PROJECT, 10)}, 10)
    ledger.take({"soil": Account("urn:x\nada", 10)}, 10)
    ledger.take({"rain": Account(PROJECT, 10)}, 10)
    with pytest.raises(Exhausted):
        ledger.take({"soil": Account(PROJECT, 10)}, 1)


def test_a_smaller_budget_than_what_has_left(ledger: Ledger) -> None:
    ledger.take({"soil": Account(PROJECT, 100)}, 90)
    with pytest.raises(Exhausted) as refused:
        ledger.take({"soil": Account(PROJECT, 50)}, 1)
    assert refused.value.left == 0


def test_nothing_is_taken_back_by_negative_numbers(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="negative"):
        ledger.take({"soil": Account(PROJECT, 100)}, -1)
    ledger.give_back({"soil": Account(PROJECT, 100)}, {"soil": 50})
    assert ledger.used(PROJECT, "soil") == 0


def test_1000_at_once_never_exceed(path: Path) -> None:
    # Two connections, as two endpoint processes have.
    ledgers = [Ledger(Registry(path)) for _ in range(2)]
    budget = {"soil": Account(PROJECT, 2_500)}

    def attempt(number: int) -> int:
        try:
            ledgers[number % 2].take(budget, 7)
        except Exhausted:
            return 0
        return 7

    with ThreadPoolExecutor(16) as pool:
        taken = sum(pool.map(attempt, range(1000)))
    assert taken == 2_499
    assert ledgers[0].used(PROJECT, "soil") == 2_499


TAKER = """
import sys
from pathlib import Path
from site_plugins.ledger import Account, Exhausted, Ledger
from site_plugins.registry import Registry

ledger = Ledger(Registry(Path(sys.argv[1])))
budget = {"soil": Account("project:drought@north", 1000)}
taken = 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(250):
    try:
        ledger.take(budget, 3)
    except Exhausted:
        break
    taken += 3
print(taken)
"""


def start(path: Path, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_never_exceed_together(path: Path) -> None:
    processes = [start(path, TAKER) for _ in range(3)]
    taken = 0
    for process in processes:
        assert line_of(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=120)
        taken += int(out)
    assert taken == 999


KILLED = """
import sys
from pathlib import Path
from site_plugins.ledger import Account, Ledger
from site_plugins.registry import Registry

ledger = Ledger(Registry(Path(sys.argv[1])))
budget = {"soil": Account("project:drought@north", 1000)}
ledger.take(budget, 800)
print("reserved", flush=True)
sys.stdin.readline()
ledger.give_back(budget, {"soil": 800})
"""


def test_what_a_killed_process_had_set_aside_stays_charged(path: Path) -> None:
    process = start(path, KILLED)
    assert line_of(process) == "reserved"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    ledger = Ledger(Registry(path))
    assert ledger.used(PROJECT, "soil") == 800
    with pytest.raises(Exhausted):
        ledger.take({"soil": Account(PROJECT, 1000)}, 201)
