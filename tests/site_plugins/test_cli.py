import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import iris_sample_data
import pytest
from click.testing import CliRunner, Result

from federated_dask.errors import ConfigurationError
from site_plugins.certificates import write_certificates
from site_plugins.cli import site, token
from site_plugins.config import SiteConfig, load_config
from site_plugins.tokens import TokenVerifier

SAMPLES = Path(iris_sample_data.path)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    logger = logging.getLogger("site_plugins")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture
def north(tmp_path: Path) -> Path:
    """A folder that `site init` filled."""
    folder = tmp_path / "north"
    assert run(site, "init", folder).exit_code == 0
    return folder


def run(command: Any, *arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result


def add(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(path.read_text() + text)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_writes_a_site_that_works(north: Path) -> None:
    config = load_config(north / "site.toml")
    assert config.name == "north"
    principal = TokenVerifier.from_config(config).verify((north / "token.txt").read_text().strip())
    assert principal.subject
    assert list((north / "data").iterdir()) == []
    result = run(site, "check", north / "site.toml")
    assert result.exit_code == 0
    assert "Nothing is wrong." in result.output


def test_secrets_of_init_are_private(north: Path) -> None:
    for name in ("token.txt", "keys/issuer.pem", "certificates/private_key.pem"):
        assert mode(north / name) == 0o600


def test_init_says_what_to_do_next(tmp_path: Path) -> None:
    folder = tmp_path / "south"
    output = run(site, "init", folder).output
    assert f"federated-dask site serve {folder / 'site.toml'}" in output
    assert 'FederatedClient("https://127.0.0.1:8786"' in output
    assert (folder / "token.txt").read_text().strip() not in output


def test_a_site_for_others_tells_where_it_is(tmp_path: Path, north: Path) -> None:
    folder = tmp_path / "south"
    run(site, "init", folder, "--host", "data.south.example", "--host", "10.0.0.2")
    config = load_config(folder / "site.toml")
    assert config.public_address() == "https://data.south.example:8786"
    assert config.endpoint.host == "0.0.0.0"  # noqa: S104
    alone = run(site, "invite", north / "site.toml", "--name", "south")
    assert "reached from this machine only" in alone.stderr
    invited = run(site, "invite", folder / "site.toml", "--name", "north")
    assert "Warning" not in invited.stderr
    assert "https://data.south.example:8786 fd1_" in invited.stdout


def test_every_comment_of_the_template_can_be_uncommented(north: Path) -> None:
    path = north / "site.toml"
    # Comments that are settings, without those for an existing scheduler: they exclude the others.
    lines = [re.sub(r"^# (?=[a-z_]+ = |\[)", "", line) for line in path.read_text().splitlines()]
    start = next(number for number, line in enumerate(lines) if "existing scheduler" in line)
    text = "\n".join(lines[:start] + lines[start + 5 :])
    (north / "certificates" / "south.pem").touch()
    (north / "keys" / "south.pem").touch()
    path.write_text(text)
    config = load_config(path)
    assert config.peers[0].name == "south"
    assert config.datasets["temperature"].open_options == {"decode_timedelta": False}
    assert config.cluster.n_workers == 4
    # The comments show the defaults.
    assert config.limits == type(config.limits)()
    assert config.tokens.issuer == "urn:federated-dask:site:north"
    cluster = tomllib.loads("\n".join(lines[start + 1 : start + 5]))
    assert set(cluster) == {"address", "ca", "certificate", "private_key"}


def test_init_overwrites_nothing(north: Path) -> None:
    before = {path: path.read_bytes() for path in north.rglob("*") if path.is_file()}
    result = run(site, "init", north)
    assert result.exit_code == 2
    assert "already there" in result.output
    assert {path: path.read_bytes() for path in north.rglob("*") if path.is_file()} == before


def test_init_takes_a_folder_with_data_in_it(tmp_path: Path) -> None:
    (tmp_path / "site" / "data").mkdir(parents=True)
    (tmp_path / "site" / "data" / "sst.nc").touch()
    assert run(site, "init", tmp_path / "site").exit_code == 0
    assert (tmp_path / "site" / "data" / "sst.nc").exists()


def test_init_needs_a_name_that_can_be_one(tmp_path: Path) -> None:
    result = run(site, "init", tmp_path / "my site")
    assert result.exit_code == 2
    assert "--name" in result.output
    assert not (tmp_path / "my site").exists()
    assert run(site, "init", tmp_path / "my site", "--name", "mine").exit_code == 0
    assert load_config(tmp_path / "my site" / "site.toml").name == "mine"


def test_check_tells_what_it_finds(north: Path) -> None:
    shutil.copyfile(SAMPLES / "A1B_north_america.nc", north / "data" / "a1b.nc")
    config = add(
        north,
        """
        [datasets.a1b]
        path = "data/a1b.nc"
        open_options = { decode_timedelta = false }
        egress = "derived"
        """,
    )
    result = run(site, "check", config)
    assert result.exit_code == 0
    line = next(line for line in result.output.splitlines() if "dataset a1b" in line)
    for part in ("✓", "time 240", "longitude 49", "1.7 MiB", "egress derived", "at most 17.1 KiB"):
        assert part in line


def test_check_goes_on_after_a_dataset_that_is_wrong(north: Path) -> None:
    shutil.copyfile(SAMPLES / "ostia_monthly.nc", north / "data" / "sst.nc")
    config = add(
        north,
        """
        [datasets.none]
        path = "data/[none].nc"
        [datasets.sst]
        path = "data/sst.nc"
        """,
    )
    result = run(site, "check", config)
    assert result.exit_code == 1
    assert "✗ dataset none" in result.output
    assert f"{north}/data/[none].nc does not open: FileNotFoundError" in result.output
    assert "✓ dataset sst" in result.output
    assert "1 problem\n" in result.output


def test_check_sees_keys_that_others_can_read_and_that_do_not_fit(north: Path) -> None:
    (north / "keys" / "issuer.pem").chmod(0o644)
    other = write_certificates(north / "other")
    (north / "certificates" / "private_key.pem").write_bytes(other.private_key.read_bytes())
    result = run(site, "check", north / "site.toml")
    assert result.exit_code == 1
    assert f"chmod 600 {north / 'keys' / 'issuer.pem'}" in result.output
    assert "are no certificate and its key" in result.output
    assert "2 problems" in result.output


def test_check_sees_a_key_that_signs_no_tokens(north: Path) -> None:
    (north / "keys" / "issuer.pem").write_text("nothing")
    result = run(site, "check", north / "site.toml")
    assert result.exit_code == 1
    assert "is not an Ed25519 or EC P-256 private key" in result.output


def test_check_sees_a_provider_whose_keys_cannot_be_fetched(north: Path) -> None:
    issuer = '\n[[issuers]]\nname = "idp"\nurl = "https://127.0.0.1:1"\naudience = "north"\n'
    result = run(site, "check", add(north, issuer))
    assert result.exit_code == 1
    assert "keys of issuer idp at https://127.0.0.1:1 cannot be fetched" in result.output


def test_a_wrong_config_is_one_message(north: Path) -> None:
    config = add(north, "\nsurprise = 1\n[[peers]]\nname = 'x'\n")
    for command in ("check", "serve"):
        result = run(site, command, config)
        assert result.exit_code == 2
        assert "has 2 problems" in result.output
        assert "limits.surprise: is not a known key" in result.output
        assert "peers[0].address: is missing" in result.output


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    result = run(site, "serve", tmp_path / "site.toml")
    assert result.exit_code == 2
    assert "site init" in result.output


def test_token_create_prints_just_the_token(north: Path) -> None:
    config = north / "site.toml"
    result = run(
        token, "create", "--site", config, "--subject", "ada", "--lifetime", "12h",
        "--group", "climate", "--group", "ocean",
    )  # fmt: skip
    assert result.exit_code == 0
    principal = TokenVerifier.from_config(load_config(config)).verify(result.output.strip())
    assert principal.subject == "ada"
    assert principal.groups == ("climate", "ocean")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("lifetime", "message"), [("soon", "must be a duration"), ("91d", "at most 90 days")]
)
def test_token_create_refuses_lifetimes(north: Path, lifetime: str, message: str) -> None:
    result = run(
        token, "create", "--site", north / "site.toml", "--subject", "ada", "--lifetime", lifetime
    )
    assert result.exit_code == 2
    assert message in result.output


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SiteConfig, dict[str, Any]]]:
    """What `site_plugins.serve.serve` was called with, while a stand-in takes its place."""
    calls: list[tuple[SiteConfig, dict[str, Any]]] = []
    module = types.ModuleType("site_plugins.serve")
    module.serve = lambda config, **options: calls.append((config, options))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "site_plugins.serve", module)
    return calls


def test_serve_hands_over_config_and_options(
    north: Path, served: list[tuple[SiteConfig, dict[str, Any]]]
) -> None:
    ready = north / "ready.json"
    arguments = ("--ready-file", ready, "--log-level", "debug", "--until-stdin-closes")
    assert run(site, "serve", north / "site.toml", *arguments).exit_code == 0
    assert run(site, "serve", north / "site.toml").exit_code == 0
    (config, options), (_, defaults) = served
    assert config == load_config(north / "site.toml")
    assert options == {"ready_file": ready, "log_level": "debug", "until_stdin_closes": True}
    assert defaults == {"ready_file": None, "log_level": "info", "until_stdin_closes": False}


def test_errors_of_a_running_site_are_one_message(
    north: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: SiteConfig, **options: object) -> None:
        raise ConfigurationError("The port is taken.", hint="Choose another.")

    module = types.ModuleType("site_plugins.serve")
    module.serve = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "site_plugins.serve", module)
    result = run(site, "serve", north / "site.toml")
    assert result.exit_code == 2
    assert result.output == "Error: The port is taken.\nChoose another.\n"


def test_help_loads_nothing_heavy() -> None:
    probe = (
        "import json, sys; from site_plugins.cli import site\n"
        "site.main(['--help'], standalone_mode=False)\n"
        "print(json.dumps([name for name in ('dask', 'numpy', 'pydantic', 'rich', 'xarray')"
        " if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert "serve" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == []


MODULES = 'modules = ["check_functions_module", "check_no_such_module"]'


def test_check_shows_functions_as_callers_see_them(north: Path) -> None:
    (north / "check_functions_module.py").write_text(
        "from site_plugins import publish\n"
        "@publish(seconds=5)\n"
        "def good(a: int = 3) -> float: ...\n"
        "@publish\n"
        "def bad(a, b: list[object]): ...\n"
    )
    config = north / "site.toml"
    config.write_text(config.read_text().replace("[functions]", f"[functions]\n{MODULES}"))
    shown = run(site, "check", config)
    assert shown.exit_code == 1
    assert "good(a: int = 3) -> float; version 1, at most 5 s" in shown.output
    assert "parameter 'a' has no annotation" in shown.output
    assert "'check_no_such_module' cannot be imported" in shown.output


def test_what_check_says_where_there_are_no_datasets_can_be_written_so(north: Path) -> None:
    shown = run(site, "check", north / "site.toml")
    [section] = re.findall(r"\[+datasets\.<name>\]+", shown.output)
    config = add(north, f'\n{section.replace("<name>", "soil")}\npath = "soil.zarr"\n')
    assert list(load_config(config).datasets) == ["soil"]
