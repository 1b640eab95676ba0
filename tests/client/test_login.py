"""Logging in by the device flow, at a real OpenID provider, for a real site."""

import asyncio
import pickle
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from federated_dask import FederatedClient
from federated_dask.client import login as login_module
from federated_dask.client import openid_provider
from federated_dask.client.connection import SiteConnection
from federated_dask.client.login import LoginToken, log_in, stored_token
from federated_dask.client.login_store import StoredLogin, delete_login, load_login, save_login
from federated_dask.client.openid_provider import DeviceCode
from federated_dask.errors import ConfigurationError, NotAuthenticated, NotFound, SiteUnavailable
from site_plugins import LocalFederation, issuer_keys
from tests.openid.provider import OpenIDProvider, run_provider

AUDIENCE = "https://north.example/data"
ADDRESS = "https://north.example:8786"
DEADLINE = 60.0
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without logins, on a machine without keyring."""
    import keyring
    from keyring.backends import fail

    before = keyring.get_keyring()
    keyring.set_keyring(fail.Keyring())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield tmp_path / "config" / "federated-dask" / "logins"
    keyring.set_keyring(before)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may be busy with other things."""
    monkeypatch.setattr(issuer_keys, "FETCH_SECONDS", 60.0)


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenIDProvider]:
    with run_provider(tmp_path_factory.mktemp("openid")) as running:
        yield running


@pytest.fixture(scope="module")
def site(provider: OpenIDProvider) -> Iterator[LocalFederation]:
    """A site that trusts the provider."""
    issuer = {
        "name": "idp",
        "url": provider.issuer,
        "audience": AUDIENCE,
        "ca": str(provider.ca),
        "client_id": "federated-dask",
    }
    data = xr.Dataset({"air": ("time", np.arange(10.0))})
    grants = [
        {"to": "anyone", "may": ["compute"], "on": ["dataset:a1b"]},
        {"to": "group:climate@idp", "may": ["compute"], "on": ["dataset:soil"]},
        {"to": f"user:{provider.issuer} robot", "may": ["compute"], "on": ["dataset:own"]},
    ]
    datasets = {"a1b": data, "soil": data, "own": data}
    north = {"datasets": datasets, "issuers": [issuer], "grants": grants}
    sites = {"north": north, "south": {}}
    with LocalFederation(sites, n_workers=1) as running:
        yield running


@pytest.fixture
def ca(provider: OpenIDProvider, site: LocalFederation, tmp_path: Path) -> Path:
    """Certificate authorities of site and provider in one file."""
    path = tmp_path / "ca.pem"
    path.write_text(Path(site.verify).read_text() + provider.ca.read_text())
    return path


def log_in_as(user: str, provider: OpenIDProvider, site: LocalFederation, ca: Path) -> StoredLogin:
    login, _ = log_in(
        site.addresses["north"],
        show=lambda code: provider.approve(code.address, user),
        verify=ca,
        wait=lambda seconds: None,
    )
    return login


def test_a_login_is_found_by_the_client(
    provider: OpenIDProvider, site: LocalFederation, ca: Path, home: Path
) -> None:
    login_of_ada = log_in_as("ada", provider, site, ca)
    assert login_of_ada.refresh_token
    [path] = home.glob("*.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    # Neither token nor CA file: the login knows both.
    with FederatedClient(site.addresses["north"]) as fed:
        assert float(fed.open_dataset("north/a1b").air.sum().compute()) == 45.0
        # The site vouches for the certificates of its peers; the login holds for this site only.
        assert isinstance(fed.sites["south"].error, NotAuthenticated)
    with FederatedClient(site.addresses["north"], verify=site.verify) as fed:
        assert isinstance(fed.sites["south"].error, NotAuthenticated)
    assert delete_login(site.addresses["north"])
    with pytest.raises(NotAuthenticated):
        FederatedClient(site.addresses["north"], verify=site.verify)
    assert not delete_login(site.addresses["north"])


async def test_a_token_that_ends_is_renewed_once_and_silently(
    provider: OpenIDProvider,
    site: LocalFederation,
    ca: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await asyncio.to_thread(provider.command, lifetime=1)
    try:
        short = await asyncio.to_thread(log_in_as, "ada", provider, site, ca)
    finally:
        await asyncio.to_thread(provider.command, lifetime=600)
    # As if this machine's clock were wrong: only the site's answer tells that the token ended.
    save_login(StoredLogin(**{**as_dict(short), "expires": None}))
    token = stored_token(site.addresses["north"])
    assert token is not None
    plain = SiteConnection("north", site.addresses["north"], short.access_token, str(ca))
    deadline = time.monotonic() + DEADLINE
    while (reason := await reason_of(plain)) is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert reason == "token_expired"
    refreshed: list[StoredLogin] = []
    refresh = login_module._refreshed
    monkeypatch.setattr(
        login_module, "_refreshed", lambda login: refreshed.append(login) or refresh(login)
    )
    connection = SiteConnection("north", site.addresses["north"], token, str(ca))
    catalogues = await asyncio.gather(*(connection.catalogue() for _ in range(8)))
    assert all(catalogue.datasets[0].name == "a1b" for catalogue in catalogues)
    assert len(refreshed) == 1
    stored = load_login(site.addresses["north"])
    assert stored is not None
    assert stored.access_token != short.access_token
    # Another process starts from what is stored: the refresh token was exchanged too.
    assert stored.refresh_token != short.refresh_token
    await asyncio.gather(plain.close(), connection.close())


async def reason_of(connection: SiteConnection) -> str | None:
    """Why the site does not accept the token."""
    try:
        await connection.catalogue()
    except NotAuthenticated as error:
        return str(error.reason)
    return None


def as_dict(login: StoredLogin) -> dict[str, Any]:
    return {name: getattr(login, name) for name in login.__struct_fields__}


async def test_a_token_is_renewed_before_it_ends(
    provider: OpenIDProvider, site: LocalFederation, ca: Path
) -> None:
    login = await asyncio.to_thread(log_in_as, "ada", provider, site, ca)
    soon = StoredLogin(**{**as_dict(login), "expires": time.time() + 1})
    save_login(soon)
    token = LoginToken(soon)
    current = await token.current()
    assert current != login.access_token
    assert await token.current() == current


async def test_without_a_refresh_token_the_site_says_that_it_ended(
    site: LocalFederation, ca: Path
) -> None:
    ended = site.new_token("north", "ada", 0.001)
    await asyncio.sleep(0.01)
    token = LoginToken(StoredLogin(address=site.addresses["north"], access_token=ended))
    connection = SiteConnection("north", site.addresses["north"], token, str(ca))
    with pytest.raises(NotAuthenticated) as caught:
        await connection.catalogue()
    assert caught.value.reason == "token_expired"
    await connection.close()


async def visible(site: LocalFederation, token: str) -> list[str]:
    """Datasets that the site shows to the bearer of a token."""
    connection = SiteConnection("north", site.addresses["north"], token, site.verify)
    try:
        return [dataset.name for dataset in (await connection.catalogue()).datasets]
    finally:
        await connection.close()


async def test_grants_to_groups_and_users_of_a_provider(
    provider: OpenIDProvider, site: LocalFederation
) -> None:
    async def robot(*groups: str) -> str:
        return await asyncio.to_thread(provider.token, AUDIENCE, groups=list(groups))

    assert await visible(site, await robot()) == ["a1b", "own"]
    assert await visible(site, await robot("climate")) == ["a1b", "own", "soil"]
    # Whole names only, and nobody else's group of that name.
    assert await visible(site, await robot("climat", "climates", "@idp")) == ["a1b", "own"]
    own = site.new_token("north", "robot", groups=["climate"])
    assert await visible(site, own) == ["a1b"]


def test_a_user_who_takes_their_time(
    provider: OpenIDProvider, site: LocalFederation, ca: Path
) -> None:
    shown: list[DeviceCode] = []
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            provider.approve(shown[0].address, "ada")

    login, _ = log_in(site.addresses["north"], show=shown.append, verify=ca, wait=wait)
    assert login.access_token
    assert len(waited) == 3
    # As the standard says where the provider names no interval.
    assert min(waited) >= 5.0


def test_a_user_who_aborts(provider: OpenIDProvider, site: LocalFederation, ca: Path) -> None:
    def abort(code: DeviceCode) -> None:
        provider.approve(code.address, "ada", abort=True)

    with pytest.raises(NotAuthenticated, match=r"refused \(access_denied"):
        log_in(site.addresses["north"], show=abort, verify=ca, wait=lambda seconds: None)
    assert load_login(site.addresses["north"]) is None


def test_choosing_a_provider(site: LocalFederation, ca: Path) -> None:
    with pytest.raises(NotFound, match=r"no OpenID provider 'other'\. It has idp"):
        log_in(site.addresses["north"], show=print, verify=ca, issuer="other")
    with pytest.raises(ConfigurationError, match="has no OpenID provider"):
        log_in(site.addresses["south"], show=print, verify=ca)


def test_a_provider_that_is_not_trusted(site: LocalFederation) -> None:
    with pytest.raises(SiteUnavailable, match="certificate of the OpenID provider"):
        log_in(site.addresses["north"], show=print, verify=site.verify)


def test_without_authlib(site: LocalFederation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "authlib.integrations.requests_client", None)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[login\]'"):
        log_in(site.addresses["north"], show=print, verify=site.verify)


def test_importing_the_module_needs_neither_authlib_nor_keyring() -> None:
    probe = (
        "import sys, federated_dask.client.login as login\n"
        "assert not {'authlib', 'keyring', 'requests'} & {m.split('.')[0] for m in sys.modules}\n"
        "assert login.stored_token('https://x') is None"
    )
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, timeout=120)


# Where logins are kept.

LOGIN = StoredLogin(address=ADDRESS, access_token="a.b.c", refresh_token="secret-refresh")


def test_the_keyring_is_preferred(home: Path) -> None:
    import keyring
    import keyring.backend

    class Memory(keyring.backend.KeyringBackend):
        priority = 5  # type: ignore[assignment]

        def __init__(self) -> None:
            self.kept: dict[tuple[str, str], str] = {}

        def get_password(self, service: str, username: str) -> str | None:
            return self.kept.get((service, username))

        def set_password(self, service: str, username: str, password: str) -> None:
            self.kept[service, username] = password

        def delete_password(self, service: str, username: str) -> None:
            del self.kept[service, username]

    memory = Memory()
    keyring.set_keyring(memory)
    assert save_login(LOGIN) == "keyring"
    assert load_login(ADDRESS) == load_login(f"{ADDRESS}/") == LOGIN
    [path] = home.glob("*.json")
    assert b"secret-refresh" not in path.read_bytes()
    assert b"a.b.c" not in path.read_bytes()
    assert delete_login(ADDRESS)
    assert memory.kept == {}
    assert load_login(ADDRESS) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"address": "x"}'])
def test_a_spoilt_file_is_no_login(home: Path, content: bytes) -> None:
    save_login(LOGIN)
    [path] = home.glob("*.json")
    path.write_bytes(content)
    assert load_login(ADDRESS) is None


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(LOGIN) + repr(LoginToken(LOGIN))


def test_a_login_travels_as_its_token_only() -> None:
    connection = SiteConnection("north", ADDRESS, LoginToken(LOGIN))
    data = pickle.dumps(connection)
    assert b"secret-refresh" not in data
    assert pickle.loads(data).parameters.token == "a.b.c"


def test_the_command_runs_the_device_flow(
    provider: OpenIDProvider, site: LocalFederation, ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from federated_dask import login_commands
    from federated_dask.cli import cli

    show = login_commands._show

    def confirm(code: DeviceCode) -> None:
        show(code)
        provider.approve(code.address, "ada")

    monkeypatch.setattr(login_commands, "_show", confirm)
    monkeypatch.setattr(openid_provider, "POLL_SECONDS", 0.1)
    result = CliRunner().invoke(cli, ["login", site.addresses["north"], "--ca", str(ca)])
    assert result.exit_code == 0, result.output
    assert f"Open {provider.issuer}/device?user_code=" in result.stderr
    login = load_login(site.addresses["north"])
    assert login is not None
    assert login.access_token not in result.output
    with FederatedClient(site.addresses["north"]) as fed:
        assert "north/a1b" in fed.datasets


def test_the_commands(site: LocalFederation, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from federated_dask.cli import cli

    address = site.addresses["north"]
    token = tmp_path / "token.txt"
    token.write_text(site.token["north"] + "\n")
    runner = CliRunner()
    arguments = ["login", address, "--token-file", str(token), "--ca", site.verify]
    result = runner.invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert site.token["north"] not in result.output
    with FederatedClient(address) as fed:
        assert "north/a1b" in fed.datasets
    assert "Logged out" in runner.invoke(cli, ["logout", address]).output
    assert "There was no login" in runner.invoke(cli, ["logout", address]).output
