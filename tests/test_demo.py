"""``federated-dask demo`` as a user runs it; nothing may be left of it afterwards."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
DEADLINE = 120.0
CHECKED = ("name", "max_abs_error", "ok")
LINKED = ("from", "to", "predicted_bytes", "actual_bytes")


class Demo:
    """A demo in a process group of its own, with temporary files where only it writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.output = folder / "output.txt"
        self.seen: dict[int, psutil.Process] = {}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "federated_dask", "demo", "--directory", "out", *arguments],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self.process

    def family(self) -> dict[int, psutil.Process]:
        """Processes that the demo started, directly or not, so far."""
        try:
            for each in psutil.Process(self.process.pid).children(recursive=True):
                self.seen[each.pid] = each
        except psutil.NoSuchProcess:
            pass
        return self.seen

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, self.text()
            assert self.process.poll() is None, self.text()
            self.family()
            time.sleep(0.05)

    def wait(self) -> int:
        deadline = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text()
            self.family()
            time.sleep(0.05)
        return self.process.returncode

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def left(self) -> list[str]:
        """Whatever still runs: what was seen as a descendant, or names the temporary folder."""
        found = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                mine = process.pid in self.seen and process == self.seen[process.pid]
                if (mine or str(self.temporary) in line) and process.status() != "zombie":
                    found.append(f"{process.pid} {line}")
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def assert_nothing_is_left(self) -> None:
        deadline = time.monotonic() + 30
        while left := self.left():
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        assert list(self.temporary.glob("federated-dask*")) == []


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    yield demo
    for process in [demo.process.pid, *demo.seen]:
        try:
            each = psutil.Process(process)
            if process == demo.process.pid or each == demo.seen[process]:
                each.kill()
        except psutil.NoSuchProcess:
            continue
    demo.process.wait(30)


def check_report(demo: Demo) -> None:
    report = json.loads((demo.folder / "report.json").read_text())
    assert len(report["checks"]) == 4
    for check in report["checks"]:
        assert set(CHECKED) <= check.keys()
        assert check["ok"] is True
        assert 0 <= check["max_abs_error"] < 1e-3
    assert [(call["name"], call["ok"]) for call in report["calls"]] == [
        ("linear_trend", True),
        ("coarser_grid", True),
    ]
    assert {site["name"] for site in report["sites"]} == {"north", "south", "ocean"}
    links = {(link["from"], link["to"]): link for link in report["links"]}
    assert set(links) == {
        pair for site in ("north", "south", "ocean") for pair in ((site, "home"), ("home", site))
    }
    for link in links.values():
        assert set(LINKED) <= link.keys()
        assert link["actual_bytes"] > 0
    assert sum(link["actual_bytes"] for link in links.values()) < report["download_bytes"] / 5

    picture = demo.folder / report["picture"]
    head = picture.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", head[16:24])
    assert width > 600
    assert height > 300
    assert picture.stat().st_size > 20_000

    text = demo.text()
    assert "6 of 6 results agree" in text
    assert "north/linear_trend" in text
    assert "Open Government Licence" in text
    # Three sites, each with two worker processes of its own.
    assert len(demo.seen) >= 9


@pytest.mark.slow
def test_ends_by_itself(demo: Demo) -> None:
    demo.start("--json", "report.json")
    assert demo.wait() == 0, demo.text()
    check_report(demo)
    demo.assert_nothing_is_left()


def test_interrupted_while_the_sites_start(demo: Demo) -> None:
    process = demo.start()
    demo.until(lambda: len(demo.family()) >= 3)
    process.send_signal(signal.SIGINT)
    assert demo.wait() == 130, demo.text()
    assert "Traceback" not in demo.text()
    demo.assert_nothing_is_left()


def test_the_main_job_kept_until_interrupted(demo: Demo) -> None:
    process = demo.start("--keep", "--json", "report.json")
    demo.until(lambda: "Ctrl-C ends them." in demo.text())
    check_report(demo)
    assert demo.text().count("/status") == 3
    snippet = demo.text().partition("Paste this into Python:")[2].partition("Ctrl-C ends")[0]
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=demo.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "north/a1b" in done.stdout
    assert "crossed in" in done.stdout
    process.send_signal(signal.SIGINT)
    assert demo.wait() == 0, demo.text()
    assert "Traceback" not in demo.text()
    demo.assert_nothing_is_left()


@pytest.mark.slow
def test_killed(demo: Demo) -> None:
    process = demo.start("--keep")
    demo.until(lambda: len(demo.family()) >= 6)
    process.kill()
    process.wait(30)
    # The sites see their standard input end. The folder stays: nobody is left to remove it.
    deadline = time.monotonic() + 60
    while left := demo.left():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
