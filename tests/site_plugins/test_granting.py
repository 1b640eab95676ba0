"""Grants made and taken back at run time: over HTTP, by commands, within one's scope."""

import asyncio
import os
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from federated_dask import grant_commands
from federated_dask.grant_commands import grant
from site_plugins import LocalFederation
from site_plugins.audit import AUDIT_LOG, entries, verify
from site_plugins.cli import site as site_commands
from site_plugins.granting import overlap
from tests.site_plugins.helpers import DEADLINE, Caller, dataset

GRANTS = [
    {"to": "user:root", "may": ["admin"], "on": ["*"]},
    {"to": "user:sam", "may": ["admin"], "on": ["dataset:soil"]},
    {"to": "group:climate", "may": ["compute"], "on": ["dataset:soil", "dataset:secret"]},
    {"to": "anyone", "may": ["call"], "on": ["function:*"]},
]


@pytest.fixture(scope="module")
def site() -> Iterator[LocalFederation]:
    stored = {name: {"path": dataset()} for name in ("soil", "secret")}
    with LocalFederation({"north": {"datasets": stored, "grants": GRANTS}}) as running:
        yield running


def caller(site: LocalFederation, subject: str) -> Caller:
    return Caller(site, "north", site.new_token("north", subject))


async def post(asking: Caller, path: str, message: Any) -> tuple[int, Any]:
    async with asking.request("POST", path, json=message) as reply:
        return reply.status, await reply.json()


async def status_of(asking: Caller, path: str, expected: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while (await asking.read("GET", path))[0] != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("*", "dataset:x", True),
        ("dataset:x", "dataset:x", True),
        ("dataset:x", "dataset:xy", False),
        ("dataset:*x", "dataset:y*", True),
        ("dataset:*", "function:*", False),
        ("dataset:a*b*c", "dataset:a1c2b3c", True),
        ("dataset:a*b*c", "dataset:acb", False),
    ],
)
def test_overlap(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is expected


def test_overlap_of_many_wildcards_takes_no_time() -> None:
    assert not overlap("dataset:" + "*a" * 100, "dataset:" + "*b" * 100 + "c")


async def test_an_administrator_grants_and_revokes(site: LocalFederation) -> None:
    sam, eve = caller(site, "sam"), caller(site, "eve")
    assert (await eve.read("GET", "/datasets/soil"))[0] == 404
    new = {"to": "user:eve", "may": ["compute"], "on": ["dataset:soil"]}
    status, made = await post(sam, "/grants", new)
    assert status == 200
    assert made["by"] == "sam (urn:federated-dask:site:north)"
    await status_of(eve, "/datasets/soil", 200)
    question = {"subject": "eve", "action": "compute", "resource": "dataset:soil"}
    _, answer = await post(sam, "/grants/explain", question)
    assert answer["allowed"]
    assert [each["id"] for each in answer["grants"]] == [made["id"]]
    assert (await sam.read("DELETE", f"/grants/{made['id']}"))[0] == 200
    await status_of(eve, "/datasets/soil", 404)
    _, answer = await post(sam, "/grants/explain", question)
    assert not answer["allowed"]
    path = site._configs["north"].site.state / AUDIT_LOG
    assert list(verify(path)) == []
    changes = [each for each in entries(path) if each.get("id") == made["id"]]
    assert [each["event"] for each in changes] == ["grant_added", "grant_revoked"]
    assert changes[0]["who"]["subject"] == "sam"


async def test_one_sees_what_touches_what_one_administers(site: LocalFederation) -> None:
    listed = (await caller(site, "sam").json("/grants"))["grants"]
    assert [(each["id"], each["on"]) for each in listed] == [
        ("site.toml:1", ["*"]),
        ("site.toml:2", ["dataset:soil"]),
        ("site.toml:3", ["dataset:soil"]),
    ]
    assert len((await caller(site, "root").json("/grants"))["grants"]) == 4
    status, failure = await caller(site, "eve").refused("GET", "/grants")
    assert (status, failure.reason) == (403, "not_permitted")


@pytest.mark.parametrize(
    ("who", "message", "status", "reason"),
    [
        ("eve", {"to": "user:eve", "may": ["admin"], "on": ["dataset:soil"]}, 403, "not_permitted"),
        ("sam", {"to": "user:eve", "may": ["call"], "on": ["dataset:*"]}, 403, "not_permitted"),
        ("sam", {"to": "user:eve", "may": ["call"], "on": ["dataset:soil*"]}, 403, "not_permitted"),
        (
            "sam",
            {"to": "user:e", "may": ["call"], "on": ["dataset:soil", "site:north"]},
            403,
            "not_permitted",
        ),
        ("sam", {"to": "sam", "may": ["call"], "on": ["dataset:soil"]}, 422, "invalid_argument"),
        ("root", {"to": "anyone", "may": ["call"], "on": ["soil"]}, 422, "invalid_argument"),
        ("root", {"to": "anyone", "may": ["fly"], "on": ["*"]}, 400, "malformed"),
        ("root", {"to": "anyone", "may": [], "on": ["*"]}, 400, "malformed"),
        ("root", [], 400, "malformed"),
    ],
)
async def test_what_one_may_not_grant(
    site: LocalFederation, who: str, message: Any, status: int, reason: str
) -> None:
    before = await caller(site, "root").json("/grants")
    found, failure = await caller(site, who).refused("POST", "/grants", json=message)
    assert (found, failure.reason) == (status, reason)
    assert await caller(site, "root").json("/grants") == before


@pytest.mark.parametrize(
    ("who", "id_", "status", "reason"),
    [
        ("eve", "site.toml:3", 403, "not_permitted"),
        ("sam", "site.toml:4", 404, "unknown_grant"),
        ("sam", "site.toml:3", 403, "not_permitted"),
        ("root", "site.toml:3", 403, "not_permitted"),
        ("root", "absent", 404, "unknown_grant"),
    ],
)
async def test_what_one_may_not_revoke(
    site: LocalFederation, who: str, id_: str, status: int, reason: str
) -> None:
    found, failure = await caller(site, who).refused("DELETE", f"/grants/{id_}")
    assert (found, failure.reason) == (status, reason)


async def test_nobody_is_explained_what_they_do_not_administer(site: LocalFederation) -> None:
    question = {"subject": "ada", "action": "compute", "resource": "dataset:secret"}
    found, failure = await caller(site, "sam").refused("POST", "/grants/explain", json=question)
    assert (found, failure.reason) == (403, "not_permitted")


# Commands


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    def found(*, group: str) -> list[EntryPoint]:
        # As pyproject.toml has it, whatever is installed here.
        return [EntryPoint("local", "site_plugins.local_grants:LocalGrants", group)]

    monkeypatch.setattr(grant_commands, "entry_points", found)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(grant, list(arguments), catch_exceptions=False)

    return run


def test_commands_on_a_site_of_this_machine(command: Callable[..., Result], tmp_path: Path) -> None:
    home = tmp_path / "north"
    assert CliRunner().invoke(site_commands, ["init", str(home)]).exit_code == 0
    here = ("--site", str(home / "site.toml"))
    assert "site.toml:1" in command("list", *here).output
    asked = ("explain", "ada", "compute", "dataset:soil-1", "--group", "climate", *here)
    assert command(*asked).exit_code == 1
    added = command("add", "group:climate", "compute,call", "dataset:soil-*", *here)
    assert added.exit_code == 0, added.output
    assert "group:climate may compute,call on dataset:soil-*  (by the operator)" in added.output
    id_ = added.output.split()[0]
    explained = command(*asked)
    assert explained.exit_code == 0
    assert id_ in explained.output
    assert id_ in command("revoke", id_, *here).output
    assert command(*asked).exit_code == 1
    assert [each["event"] for each in entries(home / "state" / AUDIT_LOG)] == [
        "grant_added",
        "grant_revoked",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("list", "--at", "https://x", "--site", __file__),
        ("add", "anyone", "fly", "dataset:x", "--at", "https://x"),
        ("explain", "ada", "fly", "dataset:x", "--at", "https://x"),
    ],
)
def test_what_the_commands_do_not_take(
    command: Callable[..., Result], arguments: tuple[str, ...]
) -> None:
    assert command(*arguments).exit_code == 2


def test_commands_on_a_site_elsewhere(
    site: LocalFederation,
    command: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = tmp_path / "token.txt"
    token.write_text(site.new_token("north", "root") + "\n")
    there = ("--at", site.addresses["north"], "--ca", site.verify)
    added = command("add", "user:bo", "compute", "dataset:soil", "--token-file", str(token), *there)
    assert added.exit_code == 0, added.output
    id_ = added.output.split()[0]
    monkeypatch.setitem(os.environ, "FEDERATED_DASK_TOKEN", token.read_text().strip())
    assert id_ in command("list", *there).output
    assert command("explain", "bo", "compute", "dataset:soil", *there).exit_code == 0
    assert command("revoke", id_, *there).exit_code == 0
    assert command("explain", "bo", "compute", "dataset:soil", *there).exit_code == 1
