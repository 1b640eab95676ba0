"""The command ``federated-dask``.

Commands that need more than the core join through the entry-point group
``federated_dask.commands``: ``site``, ``token``, ``audit`` and ``grant``.  Where packages
that they need are missing they say what to install.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import click

from federated_dask import __version__
from federated_dask.commands.call import call
from federated_dask.commands.looking import describe, ls
from federated_dask.commands.stubs import stubs
from federated_dask.errors import FederatedError
from federated_dask.login_commands import login, logout
from federated_dask.project_commands import project

__all__ = ["main"]

GROUP = "federated_dask.commands"


class _Commands(click.Group):
    """Loads a command of another package when it is called, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(entry.name for entry in _entries())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        for entry in _entries():
            if entry.name == cmd_name:
                return _load(entry)
        return None


def _entries() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))


def _load(entry: EntryPoint) -> click.Command:
    try:
        command: click.Command = entry.load()
    except ImportError as error:
        missing = error.name or "a package"
        return _missing(entry.name, missing)
    return command


def _missing(name: str, package: str) -> click.Command:
    hint = f"`{name}` needs {package}: pip install 'federated-dask[site]'"

    @click.command(name, help=f"Not available. {hint}.", add_help_option=False)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        raise click.ClickException(hint)

    command.context_settings = {"ignore_unknown_options": True}
    return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="federated-dask")
def cli() -> None:
    """Compute one xarray expression over several institutes' data, where the data lies."""


@cli.command()
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Where data, certificates, logs and the picture go.",
)
@click.option("--keep", is_flag=True, help="Leave the sites up until Ctrl-C.")
@click.option(
    "--json",
    "report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what was checked and measured to this file.",
)
def demo(directory: Path, keep: bool, report: Path | None) -> None:
    """Run the main job over three sites on this machine.

    Starts three sites, each with its own Dask cluster and TLS endpoint, and
    computes over the data of all of them.
    """
    if report is not None and not report.absolute().parent.is_dir():
        # Better said now than after the work is done.
        raise click.BadParameter(f"There is no folder {report.parent}.", param_hint="--json")
    try:
        from federated_dask.demo.main import run_demo
    except ImportError as error:
        missing = error.name or "a package"
        raise click.ClickException(
            f"The demo needs {missing}: pip install 'federated-dask[demo]'"
        ) from error
    if not run_demo(directory, keep=keep, report=report):
        raise SystemExit(1)


for command in (call, describe, login, logout, ls, project, stubs):
    cli.add_command(command)


def main() -> None:
    """Run the command line; errors of ours are one message, never a traceback."""
    try:
        code = cli(prog_name="federated-dask", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("Aborted.", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except FederatedError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        # The wheel holds the sites' commands too; what they need comes with an extra.
        if (error.name or "").partition(".")[0] in ("federated_dask", "site_plugins"):
            raise
        hint = "pip install 'federated-dask[site]'"
        click.echo(f"Error: This command needs {error.name}: {hint}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        # Whoever reads the output has enough, `| head` for example; nothing may be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    # Without its standalone mode click gives the code of `ctx.exit` back.
    sys.exit(code if isinstance(code, int) else 0)
