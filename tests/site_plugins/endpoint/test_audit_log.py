"""What a running site writes into its audit log."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from federated_dask.protocol.frames import FrameDecoder
from federated_dask.protocol.messages import Failure, Finished, Output
from site_plugins import LocalFederation
from site_plugins.audit import AUDIT_LOG, Audit, entries, verify
from site_plugins.audit_commands import audit
from site_plugins.cli import site
from tests.site_plugins import graphs
from tests.site_plugins.helpers import Caller, as_message, submission


def written(federation: LocalFederation, north: Caller) -> list[dict[str, Any]]:
    """Lines about the user of this test; the log as a whole is whole."""
    path = federation._configs["north"].site.state / AUDIT_LOG
    assert list(verify(path)) == []
    subject = north.owner.partition("\n")[2]
    return [each for each in entries(path) if each.get("who", {}).get("subject") == subject]


async def test_a_job_from_its_admission_to_its_end(
    federation: LocalFederation, north: Caller
) -> None:
    version = await north.version("secret")
    graph = graphs.chunk_sums(version, "secret")
    _, last = await north.run(graph, graph.tasks - 1, Output(task=5, release=False, hold=True))
    assert isinstance(last, Finished)
    assert (await north.read("GET", f"/leases/{last.lease}/1"))[0] == 200
    assert (await north.read("DELETE", f"/leases/{last.lease}"))[0] == 204
    admitted, released, ended, _, held = written(federation, north)
    assert admitted["event"] == "job_admitted"
    assert admitted["datasets"] == {"secret": version}
    assert admitted["grants"] == {"secret": ["site.toml:1"]}
    assert len(admitted["submission"]) == 64
    assert (released["event"], released["datasets"]) == ("released", ["secret"])
    assert released["bytes"] > 240
    assert ended["event"] == "job_ended"
    assert ended["outcome"] == "finished"
    assert ended["released"] == {"secret": released["bytes"]}
    assert held["event"] == "held_result_released"
    assert held["derives"] == ["secret"]
    assert len({each["job"] for each in (admitted, released, ended)}) == 1


async def test_reads_refusals_and_failures(federation: LocalFederation, north: Caller) -> None:
    version = await north.version("secret")
    path = "/datasets/secret/variables/air"
    await north.read("GET", path, params={"version": version, "index": "[0, 0, 0]"})
    await north.refused("GET", path, params={"version": version, "index": "[[0, 9, null], [], 0]"})
    await north.refused("GET", "/datasets/absent")
    graph = graphs.chunk_sums(version, "secret")
    _, last = await north.run(graph, 0)
    assert isinstance(last, Failure)
    lines = written(federation, north)
    told = [(line["event"], line.get("reason", line.get("outcome"))) for line in lines]
    assert told == [
        ("released", None),
        ("read", None),
        ("refused", "malformed"),
        ("refused", "unknown_dataset"),
        ("job_admitted", None),
        ("job_ended", "budget_exhausted"),
    ]
    assert lines[3]["route"] == "GET /datasets/{name}"
    assert lines[3]["dataset"] == "absent"


async def test_what_never_stands_in_the_log(
    federation: LocalFederation, north: Caller, nobody: Caller
) -> None:
    version = await north.version("a1b")
    await north.run(graphs.chunk_sums(version, "a1b"), 0)
    await nobody.refused("GET", "/datasets")
    config = federation._configs["north"]
    text = (config.site.state / AUDIT_LOG).read_text()
    assert "eyJ" not in text
    assert str(config.site.state.parent) not in text
    assert str(config.datasets["a1b"].path) not in text
    assert "not_authenticated" in text


def test_the_commands(tmp_path: Path) -> None:
    run = CliRunner().invoke
    home = tmp_path / "north"
    assert run(site, ["init", str(home)]).exit_code == 0
    config = str(home / "site.toml")
    shown = run(audit, ["verify", config])
    assert (shown.exit_code, shown.output) == (0, "0 lines, nothing is wrong. Last hash: -\n")
    log = Audit(home / "state" / AUDIT_LOG)
    for number in range(3):
        log.write("read", None, datasets={"soil": "v1"}, bytes=number)
    log.close()
    shown = run(audit, ["verify", config])
    assert shown.exit_code == 0
    head = shown.output.split()[-1]
    assert run(audit, ["verify", config, "--head", head]).exit_code == 0
    shown = run(audit, ["tail", config, "-n", "2"])
    assert shown.output.count("read") == 2
    shown = run(audit, ["report", config])
    assert "soil: read 3, bytes 3" in shown.output
    shown = run(audit, ["report", config, "--json", "--since", "1h"])
    assert '"soil"' in shown.output
    assert run(audit, ["report", config, "--since", "long"]).exit_code == 2
    path = home / "state" / AUDIT_LOG
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    shown = run(audit, ["verify", config])
    assert shown.exit_code == 1
    assert "audit.jsonl, line 1: does not follow" in shown.output


async def test_what_cannot_be_written_down_is_not_done(
    north: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    version = await north.version("a1b")
    graph = graphs.chunk_sums(version)
    write = Audit.write

    def full(self: Audit, event: str, *arguments: Any, **facts: Any) -> None:
        if event == refused:
            raise OSError("no space left on device")
        write(self, event, *arguments, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(Audit, "write", full)
        for refused in ("job_ended", "job_admitted"):
            body = submission(graph, graph.tasks - 1)
            async with north.request("POST", "/jobs", data=body) as reply:
                received = await reply.read()
            if refused == "job_admitted":
                assert reply.status == 500
                continue
            last = as_message(FrameDecoder().feed(received)[-1])
            assert isinstance(last, Failure)
            assert last.reason == "internal"
    assert "no space left" in caplog.text
    _, last = await north.run(graph, graph.tasks - 1)
    assert isinstance(last, Finished)


async def test_who_shows_no_token_cannot_fill_the_log(
    federation: LocalFederation, nobody: Caller
) -> None:
    path = federation._configs["north"].site.state / AUDIT_LOG
    before = len(list(entries(path)))
    for number in range(30):
        await nobody.refused("GET", f"/page/absent-{number}.js")
        await nobody.refused("GET", f"/delegated/absent-{number}/0")
    # One line in ten seconds tells how many they were.
    told = list(entries(path))[before:]
    assert {line["event"] for line in told} <= {"not_authenticated"}
    assert len(told) < 30
