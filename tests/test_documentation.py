"""What README, docs and notebooks show runs as it stands, and what they list is all there is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import nbformat
import pytest
from nbclient import NotebookClient
from pydantic import BaseModel, TypeAdapter

from site_plugins import LocalFederation
from site_plugins.config import SiteConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(path.parent))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    warnings = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not warnings, "a newcomer would see these"


def test_notebooks_are_kept_without_outputs() -> None:
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        assert not any(cell.get("outputs") for cell in notebook.cells), path


def test_readme_snippet_runs_as_pasted(tmp_path: Path) -> None:
    [snippet] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = tmp_path / "snippet.py"
    script.write_text(snippet)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # The mean over two scenarios of 14 and 17 degrees.
    [mean] = [float(line) for line in lines if re.fullmatch(r"\d+\.\d+", line)]
    assert abs(mean - 15.5) < 0.05
    assert any(line.startswith("Run") for line in lines)
    assert not done.stderr


def test_files_that_are_linked_to_exist() -> None:
    pages = [*ROOT.glob("*.md"), *DOCS.glob("*.md")]
    assert DOCS / "operators.md" in pages
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def shell(script: str, folder: Path, **environment: str) -> str:
    command = folder / "federated-dask"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m federated_dask "$@"\n')
    command.chmod(0o700)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return run(["sh", "-eu", "-c", script], folder, PATH=path, **environment)


def test_what_researchers_are_shown(tmp_path: Path) -> None:
    script = tmp_path / "researchers.py"
    script.write_text("".join(blocks("researchers.md", "python")))
    shown = run([sys.executable, "-W", "error", script.name], tmp_path)
    assert "would leave" in shown
    assert "export_not_allowed" in shown


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    [module] = blocks("functions.md", 'python title="our_functions.py"')
    (tmp_path / "our_functions.py").write_text(module)
    return tmp_path


def test_functions_from_python(functions: Path) -> None:
    [script] = blocks("functions.md", "python")
    (functions / "script.py").write_text(script)
    shown = run([sys.executable, "-W", "error", "script.py"], functions)
    assert "Linear trend" in shown
    assert "Did you mean 'start'?" in shown


def test_functions_from_elsewhere(functions: Path) -> None:
    [script] = blocks("functions.md", "python")
    # The data are those of the example; only the site is here, so that others can ask it.
    made: dict[str, Any] = {}
    exec(script.partition("with LocalFederation")[0], made)  # noqa: S102
    north = made["north"]
    north["functions"]["path"] = [str(functions)]
    with LocalFederation({"north": north}) as sites:
        environment = {
            "NORTH": sites.addresses["north"],
            "FEDERATED_DASK_TOKEN": sites.token["north"],
            "FEDERATED_DASK_CA": sites.verify,
            "NODE_EXTRA_CA_CERTS": sites.verify,
        }
        commands, curl = blocks("functions.md", "sh")
        assert "trend" in shell(commands, functions, **environment)
        assert (functions / "trend.nc").stat().st_size > 1_000
        if shutil.which("curl") is not None:
            shell(curl, functions, **environment)
            assert (functions / "curl.nc").read_bytes()[:4] in (b"\x89HDF", b"CDF\x01", b"CDF\x02")
        if (node := shutil.which("node")) is not None:
            shutil.copy(ROOT / "federated_dask" / "js" / "federated-dask.js", functions)
            (functions / "package.json").write_text('{"type": "module"}')
            [script] = blocks("functions.md", "js")
            (functions / "script.js").write_text(script)
            assert "[ 18 ]" in run([node, "script.js"], functions, **environment)


def test_what_operators_are_shown(tmp_path: Path) -> None:
    [script] = blocks("operators.md", "sh")
    shown = shell(script, tmp_path, FEDERATED_DASK_TOKEN="", FEDERATED_DASK_CA="")
    assert "Nothing is wrong." in shown
    assert "federated-dask site join SITE.TOML" in shown
    assert "lines, nothing is wrong" in shown


def sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Headings of the sections of a `site.toml`, and what may stand in them."""
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        inner = [each for each in (annotation, *get_args(annotation)) if isinstance(each, type)]
        [section] = [each for each in inner if issubclass(each, BaseModel)]
        origin = getattr(annotation, "__origin__", None)
        heading = {None: f"[{name}]", tuple: f"[[{name}]]", dict: f"[{name}.NAME]"}[origin]
        yield heading, section


def test_every_key_of_site_toml_is_told() -> None:
    text = (DOCS / "operators.md").read_text().partition("## `site.toml`")[2]
    told = {}
    for part in text.split("\n### ")[1:]:
        cells = re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)
        told[part.partition("\n")[0].strip("`")] = {
            key for cell in cells for key in re.findall(r"`(\w+)`", cell)
        }
    assert told == {heading: set(model.model_fields) for heading, model in sections(SiteConfig)}


def test_every_default_of_site_toml_is_as_told() -> None:
    text = (DOCS / "operators.md").read_text()
    checked = 0
    for heading, model in sections(SiteConfig):
        part = text.partition(f"### `{heading}`")[2].partition("\n### ")[0]
        for key, told in re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", part, re.MULTILINE):
            field = model.model_fields[key]
            if key in ("state", "path"):
                continue  # Made absolute when the file is read.
            annotation: Any = Annotated[field.annotation, *field.metadata, key]
            value = tomllib.loads(f"told = {told}")["told"]
            assert TypeAdapter(annotation).validate_python(value) == field.default, (heading, key)
            checked += 1
    assert checked > 20
