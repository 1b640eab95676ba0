"""Projects and their members: at their own site, and by the commands."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from federated_dask import FederatedClient
from federated_dask.cli import cli
from federated_dask.client.projects import RemoteProjects, parse_link
from federated_dask.errors import (
    ConfigurationError,
    FederatedError,
    NotFound,
    NotPermitted,
    Reason,
)
from federated_dask.protocol.project_messages import MembershipQuestion
from site_plugins import LocalFederation, memberships
from site_plugins.grants import Grant
from site_plugins.registry import Registry
from tests.site_plugins.helpers import Caller
from tests.site_plugins.members import ADA, BOB, DEADLINE, EVE, person, store, with_bob

# At home


def test_members_come_by_a_code_from_any_issuer() -> None:
    projects = store()
    with_bob(projects)
    assert projects.of(BOB.issuer, BOB.subject) == ("drought",)
    [project] = projects.seen_by(BOB)
    assert project.name == "drought@north"
    assert [(m.subject, m.owner) for m in project.members] == [("ada", True), ("bob", False)]
    # The same subject of another issuer is somebody else.
    assert projects.of(ADA.issuer, BOB.subject) == ()


def test_a_code_is_good_for_as_many_as_were_said() -> None:
    projects = store()
    code = with_bob(projects, uses=2)
    # Who is a member already uses nothing up.
    projects.join(BOB.issuer, BOB.subject, "drought", code)
    projects.join(EVE.issuer, EVE.subject, "drought", code)
    with pytest.raises(NotFound, match="does not hold"):
        projects.join("urn:x", "third", "drought", code)
    assert projects.of("urn:x", "third") == ()


@pytest.mark.parametrize("how", ["unknown", "another project", "ended"])
def test_codes_that_do_not_hold(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    projects = store()
    projects.create(ADA, "drought")
    projects.create(ADA, "flood")
    code = projects.invite(ADA, "drought", 1, 1e-6 if how == "ended" else 60.0).code

    def fail(self: Registry) -> None:
        raise AssertionError("a transaction was begun")

    monkeypatch.setattr(Registry, "transaction", fail)
    with pytest.raises(NotFound, match="does not hold"):
        projects.join(
            EVE.issuer,
            EVE.subject,
            "flood" if how == "another project" else "drought",
            "x" * 24 if how == "unknown" else code,
        )


def test_who_may_make_projects() -> None:
    admin = Grant(id="1", to="user:ada", may=("admin",), on=("project:*",))
    projects = store("group:climate", grants=(admin,))
    assert projects.create(ADA, "drought").members[0].subject == "ada"
    assert projects.create(person("carol", groups=("climate",)), "flood").members[0].owner
    with pytest.raises(NotPermitted, match="may not make projects"):
        projects.create(EVE, "storm")
    with pytest.raises(NotPermitted, match="is taken"):
        projects.create(ADA, "drought")


def test_others_do_not_learn_that_there_is_a_project() -> None:
    projects = store()
    with_bob(projects)
    told = []
    for name in ("drought", "nothing"):
        for ask in (
            lambda name: projects.members(EVE, name),
            lambda name: projects.invite(EVE, name, 1, 60.0),
            lambda name: projects.remove(EVE, name, BOB.issuer, BOB.subject),
            lambda name: projects.remove(EVE, name, EVE.issuer, EVE.subject),
        ):
            with pytest.raises(NotFound) as caught:
                ask(name)
            assert caught.value.reason == Reason.UNKNOWN_PROJECT
            told.append(str(caught.value).replace(name, "?"))
    assert len(set(told)) == 1


def test_members_do_not_lead() -> None:
    projects = store()
    with_bob(projects)
    with pytest.raises(NotPermitted, match="do not lead"):
        projects.invite(BOB, "drought", 1, 60.0)
    with pytest.raises(NotPermitted, match="do not lead"):
        projects.remove(BOB, "drought", ADA.issuer, ADA.subject)
    with pytest.raises(NotPermitted, match="Nobody would lead"):
        projects.remove(ADA, "drought", ADA.issuer, ADA.subject)
    with pytest.raises(NotFound, match="no such member"):
        projects.remove(ADA, "drought", EVE.issuer, EVE.subject)
    projects.remove(BOB, "drought", BOB.issuer, BOB.subject)
    assert projects.of(BOB.issuer, BOB.subject) == ()


def test_the_name_of_a_project_that_ended_is_not_used_again() -> None:
    projects = store()
    projects.create(ADA, "drought")
    code = projects.invite(ADA, "drought", 1, 60.0).code
    projects.remove(ADA, "drought", ADA.issuer, ADA.subject)
    with pytest.raises(NotPermitted, match="is taken"):
        projects.create(EVE, "drought")
    with pytest.raises(NotFound):
        projects.join(EVE.issuer, EVE.subject, "drought", code)


def test_administrators_may_remove_members() -> None:
    admin = Grant(id="1", to="user:eve", may=("admin",), on=("project:drought",))
    projects = store("anyone", grants=(admin,))
    with_bob(projects)
    projects.remove(EVE, "drought", BOB.issuer, BOB.subject)
    assert [m.subject for m in projects.members(EVE, "drought").members] == ["ada"]


# Running sites, by the commands


@pytest.fixture(scope="module")
def federation() -> Iterator[LocalFederation]:
    data = xr.Dataset({"moisture": ("time", np.arange(8.0))})
    grants = [{"to": "user:boss", "may": ["admin", "compute"], "on": ["dataset:*"]}]
    sites: dict[str, Any] = {
        "north": {},
        "south": {"datasets": {"soil": data, "other": data}, "grants": grants},
    }
    with LocalFederation(sites, n_workers=1) as running:
        yield running


class Person:
    """Runs the commands as one person."""

    def __init__(self, federation: LocalFederation, folder: Path, site: str, subject: str) -> None:
        self.federation = federation
        self.site = site
        self.token = federation.new_token(site, subject)
        self.file = folder / f"{subject}.txt"
        self.file.write_text(self.token)

    def run(self, *arguments: str, at: str | None = None) -> str:
        options = ["--at", at or self.federation.addresses[self.site]]
        options += ["--ca", self.federation.verify, "--token-file", str(self.file)]
        result = CliRunner().invoke(cli, ["project", *arguments, *options])
        if isinstance(result.exception, FederatedError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    def status(self, path: str) -> int:
        caller = Caller(self.federation, self.site, self.token)
        return asyncio.run(caller.read("GET", path))[0]

    def sees(self, path: str, expected: int) -> None:
        """Wait until a path has a status: on a busy machine a site may not answer its peer."""
        deadline = time.monotonic() + DEADLINE
        while (status := self.status(path)) != expected:
            assert time.monotonic() < deadline, status
            time.sleep(0.05)


def test_a_project_over_two_sites(
    federation: LocalFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memberships, "ASK_SECONDS", DEADLINE)
    ada = Person(federation, tmp_path, "north", "ada")
    ben, eve, boss = (Person(federation, tmp_path, "south", x) for x in ("ben", "eve", "boss"))
    assert "drought@north is made" in ada.run("create", "drought")
    link = ada.run("invite", "drought", "--uses", "2").strip()
    assert link.startswith(federation.addresses["north"] + "/projects/drought@north#")
    assert "drought@north" in boss.run("share", "drought@north", "dataset:soil")
    assert ben.status("/datasets/soil") == 404
    assert "You are a member of drought@north" in ben.run("join", link)
    # What was granted to the project at south is now open to its member, and nothing else.
    ben.sees("/datasets/soil", 200)
    assert ben.status("/datasets/other") == 404
    assert eve.status("/datasets/soil") == 404
    members = ada.run("members", "drought")
    assert "ada" in members
    assert "ben  (urn:federated-dask:site:south)" in members
    assert "drought@north  2 members" in ada.run("list")
    with pytest.raises(NotFound):
        eve.run("members", "drought", at=federation.addresses["south"])
    with pytest.raises(NotPermitted):
        ben.run("share", "drought@north", "dataset:other")
    monkeypatch.setattr(memberships, "KEPT_SECONDS", 0.5)
    assert "ben" not in ada.run("remove", "drought", "ben")
    ben.sees("/datasets/soil", 404)
    assert "You left drought@north" in ada.run("leave", "drought")
    with pytest.raises(NotFound):
        ada.run("members", "drought")


def test_a_client_for_a_project_of_others(federation: LocalFederation) -> None:
    token = federation.new_token("north", "who-is-in-none")
    options: dict[str, Any] = {"token": {"north": token}, "verify": federation.verify}
    addresses = {"north": federation.addresses["north"]}
    with pytest.raises(NotFound, match="no member of project 'nobodys'") as error:
        FederatedClient(addresses, project="nobodys@north", **options)
    assert (error.value.site, error.value.reason) == ("north", "unknown_project")
    site = RemoteProjects(addresses["north"], token, Path(federation.verify))
    site.create("own")
    FederatedClient(addresses, project="own@north", **options).close()
    site.close()


def test_the_client_of_projects(federation: LocalFederation) -> None:
    token = federation.new_token("north", "ida")
    site = RemoteProjects(federation.addresses["north"], token, Path(federation.verify))
    assert site.projects().projects == ()
    assert site.create("flood").name == "flood@north"
    address, code = parse_link(site.invite("flood@north"))
    assert (address, code.project) == (federation.addresses["north"], "flood@north")
    assert [project.name for project in site.projects().projects] == ["flood@north"]
    with pytest.raises(NotPermitted):
        site.share("flood", ("compute",), ("dataset:*",))
    site.leave("flood")
    site.close()


@pytest.mark.parametrize(
    "link",
    [
        "",
        "https://x",
        "https://x/projects/a@b",
        "https://x/projects/a#b",
        "http://x/projects/a@b#c",
    ],
)
def test_no_link(link: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_link(link)


async def test_strangers_are_told_nothing_of_memberships(federation: LocalFederation) -> None:
    nobody = Caller(federation, "north", None)
    question = MembershipQuestion(issuer="urn:x", subject="x", projects=("drought",))
    body = msgspec.json.encode(question)
    status, failure = await nobody.refused("POST", "/memberships", data=body)
    assert (status, failure.reason) == (401, "token_invalid")
    owner = Caller(federation, "north", federation.token["north"])
    status, failure = await owner.refused("POST", "/memberships", data=body)
    assert (status, failure.reason) == (401, "token_invalid")
