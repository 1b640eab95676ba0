"""Who gets no answer, on every route that the endpoint has."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from fastapi.routing import APIRoute

from site_plugins import LocalFederation
from site_plugins.cli import token as token_command
from site_plugins.config import SiteConfig
from site_plugins.endpoint.app import ROUTERS
from site_plugins.issuers import TokenVerifiers
from site_plugins.registry import REGISTRY, Registry
from site_plugins.revocations import Revocations
from site_plugins.tokens import create_token
from tests.site_plugins.forgeries import make_site
from tests.site_plugins.helpers import Caller

OPEN = {"/health", "/login", "/peers"}
"""Routes that need no token; a site that joins shows a code."""

ROUTES = sorted(
    (method, route.path)
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute) and route.path not in OPEN
    for method in route.methods
)


def config_of(federation: LocalFederation, site: str) -> SiteConfig:
    return federation._configs[site]


def of_another_audience(federation: LocalFederation, folder: Path) -> str:
    config = config_of(federation, "north")
    tokens = config.tokens.model_copy(update={"audience": "urn:federated-dask:site:west"})
    return create_token(config.model_copy(update={"tokens": tokens}), "ada", 60.0)


def of_another_key(federation: LocalFederation, folder: Path) -> str:
    return create_token(make_site(folder / "forged").config, "ada", 60.0)


def revoked(federation: LocalFederation, folder: Path) -> str:
    token = federation.new_token("north", "mallory")
    # By the command, that is by another process than the site's as far as the file is concerned.
    (folder / "token.txt").write_text(token)
    registry = Registry(config_of(federation, "north").site.state / REGISTRY)
    try:
        Revocations(registry).add("urn:federated-dask:site:north", "subject", "mallory")
    finally:
        registry.close()
    return token


TOKENS: dict[str, Callable[[LocalFederation, Path], str | None]] = {
    "none": lambda federation, folder: None,
    "of another site": lambda federation, folder: federation.token["south"],
    "of another audience": of_another_audience,
    "of another key": of_another_key,
    "revoked": revoked,
    "no token": lambda federation, folder: "token",
    "too long": lambda federation, folder: "x" * 9000,
}


def test_the_list_of_routes_is_that_of_the_application() -> None:
    assert len(ROUTES) >= 16
    assert ("POST", "/jobs") in ROUTES


@pytest.mark.parametrize("kind", TOKENS)
async def test_no_route_answers_without_a_valid_token(
    federation: LocalFederation, tmp_path: Path, kind: str
) -> None:
    caller = Caller(federation, "north", TOKENS[kind](federation, tmp_path))
    for method, path in ROUTES:
        status, failure = await caller.refused(method, re.sub(r"\{[^}]+\}", "0", path))
        assert status == 401, (method, path)
        assert failure.reason in ("token_missing", "token_invalid"), (method, path)
        assert failure.site == "north"


async def test_a_token_made_after_its_subject_was_revoked_is_valid(
    federation: LocalFederation, tmp_path: Path
) -> None:
    old = revoked(federation, tmp_path)
    status, failure = await Caller(federation, "north", old).refused("GET", "/site")
    assert (status, failure.message) == (401, "The token was revoked.")
    new = federation.new_token("north", "mallory")
    assert await Caller(federation, "north", new).json("/site")
    # Subjects of other issuers, and others of the same, are somebody else.
    assert await Caller(federation, "north", federation.new_token("north", "mallor")).json("/site")


@pytest.mark.parametrize("how", ["--token-file", "--id", "--subject"])
async def test_the_command_revokes(tmp_path: Path, how: str) -> None:
    site = make_site(tmp_path)
    (tmp_path / "site.toml").write_text(
        '[site]\nname = "north"\n[tokens]\nprivate_key = "issuer.pem"\n'
        '[endpoint]\ncertificate = "certificate.pem"\nprivate_key = "certificate.pem"\n'
    )
    registry = Registry(tmp_path / "state" / REGISTRY)
    verifiers = TokenVerifiers.from_config(site.config, registry)
    token = site.token(jti="first")
    (tmp_path / "token.txt").write_text(token + "\n")
    assert (await verifiers.verify(token)).token_id == "first"
    given = {"--token-file": str(tmp_path / "token.txt"), "--id": "first", "--subject": "ada"}
    arguments = ["revoke", "--site", str(tmp_path / "site.toml"), how, given[how]]
    result = CliRunner().invoke(token_command, arguments)
    assert result.exit_code == 0, result.output
    with pytest.raises(Exception, match="was revoked"):
        await verifiers.verify(token)
    other = site.token(jti="second", iat=time.time() + 5, nbf=time.time())
    assert (await verifiers.verify(other)).subject == "ada"
    registry.close()


def test_the_command_needs_to_know_what(tmp_path: Path) -> None:
    make_site(tmp_path)
    (tmp_path / "site.toml").write_text(
        '[site]\nname = "north"\n[tokens]\nprivate_key = "issuer.pem"\n'
        '[endpoint]\ncertificate = "certificate.pem"\nprivate_key = "certificate.pem"\n'
    )
    (tmp_path / "token.txt").write_text("nothing")
    command = ["revoke", "--site", str(tmp_path / "site.toml")]
    for arguments in ([], ["--id", "a", "--subject", "b"]):
        result = CliRunner().invoke(token_command, [*command, *arguments])
        assert "Give one of" in result.output
    result = CliRunner().invoke(
        token_command, [*command, "--token-file", str(tmp_path / "token.txt")]
    )
    assert "holds no token" in result.output
