"""The command line: light, helpful, and never a traceback for what a user did."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import click
import pytest

import federated_dask
from federated_dask import cli
from federated_dask.errors import SiteUnavailable

ROOT = Path(__file__).parents[1]
HEAVY = ("xarray", "dask", "distributed", "aiohttp", "numpy", "pandas", "rich", "site_plugins")


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "federated_dask", *arguments],
        cwd=options.pop("cwd", ROOT),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Exit code, output and error output of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["federated-dask", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    code = end.value.code
    return (0 if code is None else int(code)), captured.out, captured.err


def test_module_is_the_command() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == f"federated-dask, version {federated_dask.__version__}"


def test_demo_help_is_light() -> None:
    probe = f"""
import sys
sys.argv = ["federated-dask", "demo", "--help"]
from federated_dask import cli
try:
    cli.main()
finally:
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    print("HEAVY", *heavy, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr.split() == ["HEAVY"]
    for option in ("--directory", "--keep", "--json"):
        assert option in done.stdout


def test_help_lists_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--help", "-h"):
        code, out, _ = call(monkeypatch, capsys, option)
        assert code == 0
        for command in ("demo", "site", "token"):
            assert f"\n  {command} " in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["demo", "--nonsense"], "No such option"),
        (["demo", "--json", "/no/such/folder/x.json"], "There is no folder /no/such/folder"),
        (["site", "nonsense"], "No such command 'nonsense'"),
    ],
)
def test_usage_errors(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    code, out, error = call(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert text in error
    assert "Traceback" not in error


def test_no_command_shows_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, error = call(monkeypatch, capsys)
    assert code == 2
    assert "Usage:" in out + error


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (
            SiteUnavailable("No answer.", site="north", hint="Try again."),
            2,
            "Error: [north] No answer. Try again. (unreachable)",
        ),
        (
            PermissionError(13, "Permission denied", "x"),
            2,
            "Error: [Errno 13] Permission denied: 'x'",
        ),
        (KeyboardInterrupt(), 130, "Aborted."),
        (click.exceptions.Abort(), 130, "Aborted."),
        (click.exceptions.Exit(3), 3, ""),
        (SystemExit(4), 4, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_clean_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    line: str,
) -> None:
    @click.command()
    def broken() -> None:
        raise raised

    monkeypatch.setitem(cli.cli.commands, "broken", broken)
    found, out, error = call(monkeypatch, capsys, "broken")
    assert (found, out, error.strip()) == (code, "", line)


def test_a_missing_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = EntryPoint("site", "no_such_package_here.cli:site", cli.GROUP)
    monkeypatch.setattr(cli, "_entries", lambda: [entry])
    code, out, _ = call(monkeypatch, capsys, "--help")
    assert code == 0
    assert "demo" in out
    assert "Not available" in out
    code, out, error = call(monkeypatch, capsys, "site", "serve", "--x", "site.toml")
    assert (code, out) == (1, "")
    assert error.strip() == (
        "Error: `site` needs no_such_package_here: pip install 'federated-dask[site]'"
    )


def test_output_that_nobody_reads() -> None:
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m federated_dask site --help | true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("demo", "--directory", str(tmp_path / "file" / "x"))
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_sites_commands_without_their_extra(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["pydantic"] = None  # as if it were not installed
sys.argv = ["federated-dask", "site", "init", sys.argv[1]]
from federated_dask.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "north")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "Error: This command needs pydantic: pip install 'federated-dask[site]'\n"
    )
    assert not (tmp_path / "north").exists()


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


def test_every_command_and_option_says_what_it_is_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = dict(commands(cli.cli))
    assert ("site", "init") in found
    for path, command in found.items():
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, (path, option.name)
        code, out, _ = call(monkeypatch, capsys, *path, "--help")
        assert code == 0
        assert "\\b" not in out, f"{path}: an escape that click did not get"
        cut = [line for line in out.splitlines() if line.startswith("  ") and line.endswith("...")]
        assert not cut, "these need a shorter summary"
