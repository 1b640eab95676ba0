"""``federated-dask call``: a published function as a command of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated_dask.commands.connecting import connect, connection_options, json_option
from federated_dask.commands.writing import as_plain, check_target, write_result
from federated_dask.errors import ConfigurationError, FederatedError

if TYPE_CHECKING:
    from federated_dask.client.functions import Function
    from federated_dask.protocol.call_messages import ParameterDescription

__all__ = ["call"]

OWN = {"at", "token-file", "ca", "json", "out", "help"}
HELP = {"-h", "--help"}

NEGATIVE = re.compile(r"-\.?\d")


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("function", metavar="[SITE/FUNCTION]", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the result to this file: .nc, .zarr, .json or .csv.",
)
@connection_options
@json_option
@click.pass_context
def call(
    context: click.Context,
    function: str | None,
    arguments: tuple[str, ...],
    out: Path | None,
    addresses: tuple[str, ...],
    token_file: Path | None,
    ca: Path | None,
    as_json: bool,
) -> None:
    """Call a function that a site publishes.

    Its required parameters are arguments, the others options; `federated-dask call
    SITE/FUNCTION --help` tells of them.  Datasets are given by name (north/a1b), or as a
    file of your own (.nc, .zarr; .csv for a table, .npy for an array), which is sent along.
    Progress goes to the error output.

    \b
    federated-dask call north/trend north/a1b --start 2070 --out trend.nc
    """  # noqa: D301  # click wants the character itself
    if function is None or function in HELP:
        click.echo(context.get_help())
        return
    if out is not None:
        check_target(out)
    with connect(addresses, token_file, ca) as fed:
        published = fed.functions[function.partition("@")[0]]
        given = _parsed(published, list(arguments))
        future = fed.submit(function, **given)
        value = _result(future)
    if out is not None:
        write_result(value, out)
        click.echo(f"Wrote {out}.", err=True)
    if as_json:
        click.echo(json.dumps(as_plain(value), ensure_ascii=False))
    elif out is None:
        click.echo(_text(value))


def _result(future: Any) -> Any:
    import sys

    from federated_dask.client.waiting import progress

    try:
        if sys.stderr.isatty():
            progress(future, notebook=False)
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise
    except FederatedError:
        raise
    except Exception as error:
        # What a function raises can be any of the types known here; it came from the site.
        if isinstance(error.__cause__, FederatedError):
            raise error.__cause__ from None
        raise


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str | list | dict):
        return value if isinstance(value, str) else json.dumps(as_plain(value), ensure_ascii=False)
    return str(value)


def _parsed(function: Function, arguments: list[str]) -> dict[str, Any]:
    """Read what was typed as the function's parameters want it."""
    command = click.Command(
        function.name,
        params=_parameters(function),
        help=_help(function),
        context_settings={
            "help_option_names": ["-h", "--help"],
            "max_content_width": 100,
            # A negative number looks like an option that is not known.
            "ignore_unknown_options": any(NEGATIVE.match(each) for each in arguments),
        },
    )
    context = command.make_context(f"federated-dask call {function.name}", arguments)
    typed = {name: value for name, value in context.params.items() if value not in (None, ())}
    return {name: _value(function.parameters[name], value) for name, value in typed.items()}


def _help(function: Function) -> str:
    about = function.description
    lines = [about.title, about.description.removeprefix(about.title)]
    lines += [
        f"\b\n{each.name.upper()}: {each.annotation} {each.description}".rstrip()
        for each in about.parameters
        if _is_argument(function, each)
    ]
    return "\n\n".join(line.strip() for line in lines if line.strip())


def _is_argument(function: Function, parameter: ParameterDescription) -> bool:
    kind = function.signature.parameters[parameter.name].kind
    return parameter.required and kind.name == "POSITIONAL_OR_KEYWORD"


def _parameters(function: Function) -> list[click.Parameter]:
    made: list[click.Parameter] = []
    for each in function.description.parameters:
        if _is_argument(function, each):
            made.append(click.Argument([each.name], type=_type(each)))
            continue
        option = each.name.replace("_", "-")
        option = f"argument-{option}" if option in OWN else option
        flag = each.json_schema.get("type") == "boolean" and each.kind == "value"
        text = each.description.replace("\n", " ")
        if not each.required:
            text = f"{text} [default: {each.default}]".strip()
        made.append(
            click.Option(
                [f"--{option}/--no-{option}" if flag else f"--{option}", each.name],
                type=None if flag else _type(each),
                is_flag=flag,
                default=None,
                required=each.required,
                multiple=_is_list(each),
                help=text,
            )
        )
    return made


def _is_list(parameter: ParameterDescription) -> bool:
    return (
        parameter.kind == "value"
        and not parameter.required
        and parameter.json_schema.get("type") == "array"
    )


def _type(parameter: ParameterDescription) -> Any:
    schema = parameter.json_schema
    if parameter.kind != "value":
        return click.STRING
    choices = schema.get("enum")
    if isinstance(choices, list) and choices and all(isinstance(each, str) for each in choices):
        return click.Choice(choices)
    types = {"integer": click.INT, "number": click.FLOAT, "boolean": click.BOOL}
    return types.get(str(schema.get("type")), click.STRING)


def _value(parameter: ParameterDescription, typed: Any) -> Any:
    if parameter.kind != "value":
        return _data(parameter.kind, typed)
    if isinstance(typed, tuple):
        return [_json_or_text(parameter, each) for each in typed]
    return _json_or_text(parameter, typed)


def _json_or_text(parameter: ParameterDescription, typed: Any) -> Any:
    """Read lists, mappings and what may be several things as JSON; texts stay texts."""
    if not isinstance(typed, str) or parameter.json_schema.get("type") == "string":
        return typed
    if "enum" in parameter.json_schema:
        return typed
    try:
        return json.loads(typed)
    except json.JSONDecodeError:
        return typed


def _data(kind: str, typed: str) -> Any:
    """Take a file of the researcher's, or leave the name for the site."""
    import numpy as np
    import pandas as pd
    import xarray as xr

    path = Path(typed)
    if kind == "ndarray" and not path.exists():
        try:
            return np.asarray(json.loads(typed))
        except json.JSONDecodeError:
            raise ConfigurationError(
                f"{typed!r} is neither a file nor a list of numbers.",
                hint="Give a .npy file, or a list: '[1.5, 2.0]'.",
            ) from None
    if path.suffix not in (".nc", ".zarr", ".csv", ".npy"):
        return typed
    if not path.exists():
        raise ConfigurationError(f"There is no file {typed}.", hint="Check the path.")
    if kind == "dataframe":
        return pd.read_csv(path)
    if kind == "ndarray":
        return np.load(path, allow_pickle=False)
    is_zarr = path.suffix == ".zarr"
    with xr.open_zarr(path, chunks=None) if is_zarr else xr.open_dataset(path) as opened:
        loaded = opened.load()
    if kind == "dataset":
        return loaded
    [name, *others] = loaded.data_vars
    if others:
        raise ConfigurationError(
            f"{typed} has several variables.", hint="Give a file with the one that is meant."
        )
    return loaded[name]
