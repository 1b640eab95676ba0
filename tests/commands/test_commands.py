"""`ls`, `describe`, `call` and `stubs`, as they are typed."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from federated_dask import cli
from federated_dask.client.functions import Function
from federated_dask.client.stubs import stubs_of
from federated_dask.protocol.call_messages import FunctionDescription, ResultDescription
from tests.client.conftest import TOKEN, StubSite
from tests.client.test_calling import TREND, described, field, parameter

MANY = FunctionDescription(
    name="many",
    title="Options of all kinds",
    parameters=(
        parameter("count", {"type": "integer", "minimum": 1}, annotation="int"),
        parameter("factor", {"type": "number"}, required=False, default=1.0),
        parameter("deep", {"type": "boolean"}, required=False, default=False),
        parameter("levels", {"type": "array", "items": {"type": "integer"}}, required=False),
        parameter("season", {"enum": ["DJF", "JJA"]}, required=False, default="DJF"),
        parameter("since", {"type": "string", "format": "date"}, required=False),
        parameter("point", {"type": "object"}, required=False),
        parameter("out", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, required=False),
    ),
)


class Shell:
    """Types commands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *arguments: str) -> str:
        code, out, err = self.all(*arguments)
        assert code == 0, err
        return out

    def all(self, *arguments: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["federated-dask", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = self.capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err


@pytest.fixture
def shell(
    stub: StubSite,
    address: str,
    ca: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Shell:
    (tmp_path / "ca.pem").write_text(ca)
    monkeypatch.setenv("FEDERATED_DASK_ADDRESS", address)
    monkeypatch.setenv("FEDERATED_DASK_TOKEN", TOKEN)
    monkeypatch.setenv("FEDERATED_DASK_CA", str(tmp_path / "ca.pem"))
    monkeypatch.chdir(tmp_path)
    stub.functions = (
        TREND,
        MANY,
        described("double", parameter("values", kind="ndarray")),
        described("rows", parameter("table", kind="dataframe")),
        described("broken"),
    )

    def broken() -> None:
        raise ValueError("negative depth")

    stub.bodies = {
        "trend": lambda data, start=2070: field() * start,
        "many": lambda **arguments: arguments,
        "double": lambda values: values * 2,
        "rows": lambda table: table * 2,
        "broken": broken,
    }
    return Shell(monkeypatch, capsys)


def test_ls(shell: Shell, address: str) -> None:
    assert shell("ls").splitlines()[1].split() == ["north", "ok", "2", "5"]
    assert shell("ls", address) == shell("ls")
    assert json.loads(shell("ls", "--json")) == [
        {"site": "north", "status": "ok", "datasets": 2, "functions": 5, "title": ""}
    ]
    lines = shell("ls", "north").splitlines()
    assert ["north/a1b", "dataset", "open", "A1B"] in [line.split() for line in lines]
    assert any(line.startswith("north/trend") and "Linear trend" in line for line in lines)
    variables = shell("ls", "north/a1b")
    assert "time:240" in variables
    code, _, err = shell.all("ls", "south")
    assert (code, "no site 'south'" in err) == (2, True)


def test_describe(shell: Shell) -> None:
    assert "functions  5" in shell("describe", "north")
    assert json.loads(shell("describe", "north", "--json"))["name"] == "north"
    assert "First year." in shell("describe", "north/trend")
    assert json.loads(shell("describe", "north/trend", "--json"))["version"] == "2"
    assert "air_temperature" in shell("describe", "north/a1b")
    described_ = json.loads(shell("describe", "north/a1b", "--json"))
    assert described_["dims"]["time"] == 240
    code, _, err = shell.all("describe", "north/nothing")
    assert (code, "ls north" in err) == (2, True)


def test_without_an_address(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDERATED_DASK_ADDRESS")
    code, _, err = shell.all("ls")
    assert code == 2
    assert "--at https://" in err


def test_a_token_in_a_file(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDERATED_DASK_TOKEN", "wrong")
    code, _, err = shell.all("ls")
    assert (code, "token_invalid" in err) == (2, True)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert "north" in shell("ls", "--token-file", "token")


class TestCall:
    def test_arguments_and_options(self, shell: Shell) -> None:
        typed = ["--deep", "--levels", "1", "--levels=2", "--factor", "-0.5", "--season", "JJA"]
        more = ["--since", "2070-01-01", "--point", '{"lat": 1}', "--argument-out", "3"]
        assert json.loads(shell("call", "north/many", "3", *typed, *more)) == {
            "count": 3,
            "deep": True,
            "levels": [1, 2],
            "factor": -0.5,
            "season": "JJA",
            "since": "2070-01-01",
            "point": {"lat": 1},
            "out": 3,
        }
        assert json.loads(shell("call", "north/many", "--no-deep", "3")) == {
            "count": 3,
            "deep": False,
        }

    def test_a_negative_number_is_no_option(self, shell: Shell) -> None:
        assert "'count' must be at least 1, not -3" in shell.all("call", "north/many", "-3")[2]

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ((), "Missing argument"),
            (("x",), "'x' is not a valid integer"),
            (("0",), "'count' must be at least 1, not 0"),
            (("1", "--season", "MAM"), "'MAM' is not one of 'DJF', 'JJA'"),
            (("1", "--depth", "2"), "No such option"),
        ],
    )
    def test_what_does_not_fit(
        self, stub: StubSite, shell: Shell, arguments: tuple[str, ...], told: str
    ) -> None:
        code, _, err = shell.all("call", "north/many", *arguments)
        assert code == 2
        assert told in err
        assert stub.calls == []

    def test_help(self, shell: Shell) -> None:
        assert "--out" in shell("call", "--help")
        assert shell("call") == shell("call", "--help")
        told = shell("call", "north/trend", "--help")
        assert "Linear trend per grid cell" in told
        assert "--start" in told
        assert "First year. [default: 2070]" in told

    def test_result_in_files(self, shell: Shell, stub: StubSite, tmp_path: Path) -> None:
        expected = (field() * 2000).compute()
        for name in ("trend.nc", "trend.zarr"):
            out = shell("call", "north/trend", "north/a1b", "--start", "2000", "--out", name)
            assert out == ""
            engine = "zarr" if name.endswith("zarr") else None
            with xr.open_dataset(tmp_path / name, engine=engine) as written:
                xr.testing.assert_equal(written.slope.load(), expected)
        shell("call", "north/trend", "north/a1b", "--start", "2000", "--out", "trend.json")
        assert json.loads((tmp_path / "trend.json").read_text())["data"] == expected.values.tolist()
        shell("call", "north/trend", "north/a1b", "--start", "2000", "--out", "trend.csv")
        assert (
            pd.read_csv(tmp_path / "trend.csv").slope.tolist() == expected.values.ravel().tolist()
        )
        assert "slope" in shell("call", "north/trend", "north/a1b")

    @pytest.mark.parametrize("name", ["trend.txt", "nowhere/trend.nc"])
    def test_what_cannot_be_written_is_not_computed(
        self, stub: StubSite, shell: Shell, name: str
    ) -> None:
        code, _, err = shell.all("call", "north/trend", "north/a1b", "--out", name)
        assert code == 2
        assert "no suffix" in err or "no folder" in err
        assert stub.calls == []

    def test_own_files_are_sent_along(self, stub: StubSite, shell: Shell, tmp_path: Path) -> None:
        np.save(tmp_path / "values.npy", np.arange(3))
        assert json.loads(shell("call", "north/double", "values.npy", "--json")) == [0, 2, 4]
        assert json.loads(shell("call", "north/double", "[1, 2]", "--json")) == [2, 4]
        pd.DataFrame({"a": [1, 2]}).to_csv(tmp_path / "table.csv", index=False)
        assert json.loads(shell("call", "north/rows", "table.csv", "--json"))["a"] == [2, 4]
        own = xr.Dataset({"x": ("time", np.arange(3.0))})
        own.to_netcdf(tmp_path / "own.nc")
        shell("call", "north/trend", "own.nc")
        xr.testing.assert_equal(stub.calls[-1][1]["data"], own)
        code, _, err = shell.all("call", "north/trend", "missing.nc")
        assert (code, "no file missing.nc" in err) == (2, True)

    def test_what_the_function_raises(self, shell: Shell) -> None:
        code, out, err = shell.all("call", "north/broken")
        assert (code, out) == (2, "")
        assert "[north] " in err
        assert "negative depth" in err
        assert "Traceback" not in err


USE = """
from typing import TYPE_CHECKING, cast

from federated_dask import FederatedClient

if TYPE_CHECKING:
    from north import North

def use(fed: FederatedClient) -> None:
    north = cast("North", fed.sites["north"])
    slope = north.trend("north/a1b", start=2070)
    reveal_type(slope.result())
    north.trend(slope.to_dataarray().to_dataset(name="x"), start=north.years(count=2))
    reveal_type(north.years(1).result())
    north.trend("north/a1b", start="2070")
    north.trend()
    north.years(1, season="MAM")
"""


def test_stubs_are_those_of_the_functions(shell: Shell, address: str) -> None:
    text = shell("stubs", address)
    assert "class North(Site):" in text
    assert "def trend(self, data: str | xr.Dataset | FederatedFuture[Any], start: int" in text
    compile(text, "north.pyi", "exec")


def test_stubs_are_nothing_but_types() -> None:
    """What a site says cannot become code in a file that the researcher imports."""
    evil = FunctionDescription(
        name="evil",
        title='"""\nimport os; os.system("id")\n"""',
        parameters=(parameter("x", {"type": "__import__('os')"}, annotation="int); import os"),),
        returns=ResultDescription(annotation="__import__('os').system('id')"),
    )
    odd = FunctionDescription(
        name="class", returns=ResultDescription(annotation="list[int | None]")
    )
    fine = FunctionDescription(name="fine", returns=odd.returns)
    functions = [Function(None, "north", each) for each in (evil, odd, fine)]
    text = stubs_of("north", functions)
    [_, *imports, stub_class] = ast.parse(text).body
    assert {type(each) for each in imports} == {ast.Import, ast.ImportFrom}
    assert len(imports) == 7
    assert [each.name for each in stub_class.body] == ["evil", "fine"]
    assert ast.unparse(stub_class.body[0].args) == "self, x: Any"
    assert ast.unparse(stub_class.body[0].returns) == "FederatedFuture[Any]"
    assert ast.unparse(stub_class.body[1].returns) == "FederatedFuture[list[int | None]]"
    assert all(len(each.body) == 1 for each in stub_class.body)


@pytest.mark.slow
def test_stubs_check(tmp_path: Path) -> None:
    years = FunctionDescription(
        name="years",
        parameters=(
            parameter("count", {"type": "integer"}),
            parameter("season", {"enum": ["DJF", "JJA"]}, required=False),
        ),
        returns=ResultDescription(annotation="list[int] | None"),
    )
    functions = [Function(None, "north", each) for each in (TREND, years)]
    (tmp_path / "north.pyi").write_text(stubs_of("north", functions))
    (tmp_path / "use.py").write_text(USE)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental", "--follow-imports=silent", "use.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if "error:" in line or "Revealed" in line]
    told = "\n".join(lines)
    assert len(lines) == 5, done.stdout + done.stderr
    assert 'Revealed type is "xarray.core.dataarray.DataArray"' in told
    assert 'int] | None"' in told
    assert 'Argument "start" to "trend" of "North" has incompatible type "str"' in told
    assert 'Missing positional argument "data"' in told
    assert 'Argument "season" to "years" of "North" has incompatible type' in told
