"""The chain of the audit log, and what breaks it."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from federated_dask.errors import ConfigurationError
from site_plugins.audit import Audit, entries, verify
from site_plugins.tokens import Principal

ADA = Principal(issuer="urn:north", subject="ada", expires=0.0)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "audit.jsonl"
    audit = Audit(path)
    for number in range(5):
        audit.write("job_admitted", ADA, job=f"job-{number}", datasets={"soil": "v1"})
    audit.close()
    return path


def problems(path: Path, head: str | None = None) -> list[str]:
    return [str(problem) for problem in verify(path, head)]


def test_a_chain_that_nobody_touched(log: Path) -> None:
    assert problems(log) == []
    written = list(entries(log))
    assert [entry["seq"] for entry in written] == [1, 2, 3, 4, 5]
    assert written[0]["who"] == {"issuer": "urn:north", "subject": "ada"}
    assert all(len(entry["hash"]) == 64 for entry in written)
    assert {path.stat().st_mode & 0o777 for path in log.parent.iterdir()} == {0o600}


def edited(lines: list[bytes]) -> list[bytes]:
    lines[2] = lines[2].replace(b"job-2", b"job-9")
    return lines


def rehashed(lines: list[bytes]) -> list[bytes]:
    import hashlib

    body = lines[2].rpartition(b',"hash"')[0].replace(b"job-2", b"job-9") + b"}"
    lines[2] = body[:-1] + b',"hash":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
    return lines


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda lines: lines[:2] + lines[3:], "line 3: does not follow"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2: does not follow"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "line 3: does not follow"),
        (lambda lines: lines[1:], "line 1: does not follow"),
        (lambda lines: lines[:-1], "line 5: lines up to 5 are missing"),
        (lambda lines: [], "line 1: lines up to 5 are missing"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "line 5: is torn"),
        (lambda lines: [*lines[:-1], b"{}\n"], "line 5: is torn, or no line"),
        (edited, "line 3: was changed"),
        (rehashed, "line 4: does not follow"),
    ],
)
def test_what_was_done_to_it_is_found(log: Path, change, expected: str) -> None:  # type: ignore[no-untyped-def]
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(change(lines)))
    assert problems(log)[0].startswith(expected)


@pytest.mark.parametrize("cut", [1, 400, 100_000])
def test_an_end_that_was_cut_off_does_not_heal(log: Path, cut: int) -> None:
    # A whole line, more than one, all of them.
    text = log.read_bytes()
    cut = len(text.splitlines(keepends=True)[-1]) if cut == 1 else cut
    log.write_bytes(text[: max(0, len(text) - cut)])
    audit = Audit(log)
    for _ in range(10):
        audit.write("job_refused", ADA, reason="not_permitted")
    audit.close()
    [problem] = problems(log)
    assert problem.endswith("lines up to 5 were missing when it was written")
    assert [each["event"] for each in entries(log)].count("lines_missing") == 1


def test_one_that_was_made_up_anew_lacks_the_hash_that_was_kept(log: Path) -> None:
    kept = Audit(log).head()[1]
    assert problems(log, kept) == []
    for path in (log, log.with_name("audit.jsonl.head")):
        path.unlink()
    audit = Audit(log)
    audit.write("job_admitted", ADA, job="another")
    audit.close()
    assert problems(log) == []
    assert problems(log, kept) == ["line 1: the hash that you kept is not in the log"]


def test_a_torn_line_is_removed_and_this_is_written_down(log: Path) -> None:
    with log.open("ab") as file:
        file.write(b'{"seq":6,"time":"2026')
    assert problems(log) == ["line 6: is torn, or no line of a log"]
    audit = Audit(log)
    audit.write("job_refused", ADA, reason="not_permitted")
    audit.close()
    assert problems(log) == []
    assert [entry["event"] for entry in entries(log)][-2:] == ["torn_line_removed", "job_refused"]
    assert list(entries(log))[-2]["bytes"] == 21


def test_a_log_that_is_none_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text("something else\n")
    with pytest.raises(ConfigurationError, match="audit log"):
        Audit(path)
    assert path.read_text() == "something else\n"


def test_tokens_and_values_do_not_get_in(tmp_path: Path) -> None:
    class Value:
        def __repr__(self) -> str:
            return "canary"

    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    token = "eyJhbGciOiJFZDI1NTE5In0.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"
    audit.write(
        "odd", ADA, text=f"Bearer {token}", items=[token, Value()], long="x" * 10_000, none=None
    )
    audit.close()
    text = path.read_text()
    assert "eyJ" not in text
    assert "canary" not in text
    assert len(text) < 2_000
    assert problems(path) == []


def test_many_writers_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audits = [Audit(path) for _ in range(3)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: audits[n % 3].write("event", ADA, number=n), range(600)))
    for audit in audits:
        audit.close()
    assert problems(path) == []
    assert sorted(entry["number"] for entry in entries(path)) == list(range(600))


WRITER = """
import sys
from pathlib import Path
from site_plugins.audit import Audit

audit = Audit(Path(sys.argv[1]))
number = 0
while True:
    audit.write("event", None, number=number, text="x" * 400)
    number += 1
    if number == 20:
        print("writing", flush=True)
"""


def test_killed_while_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=env
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    audit = Audit(path)
    audit.write("after", ADA)
    audit.close()
    assert problems(path) == []
    assert list(entries(path))[-1]["event"] == "after"
    assert len(path.read_bytes().splitlines()) >= 41


def test_no_line_is_json_that_reads_otherwise(log: Path) -> None:
    for line in log.read_bytes().splitlines():
        keys = list(msgspec.json.decode(line, type=dict[str, object]))
        assert keys[-2:] == ["prev", "hash"]
