"""What an import loads, seen in `sys.modules` of a fresh interpreter.

import-linter reads the source; this sees what really happens, through lazy exports and entry points
too.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PROBE = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*sys.modules, sep="\\n")
"""

RESEARCHER_MODULES = [
    "federated_dask",
    "federated_dask.client.federated_client",
    "federated_dask.planner.plan",
    "federated_dask.protocol.messages",
]
SITE_MODULES = [
    "site_plugins",
    "site_plugins.cli",
    "site_plugins.endpoint.app",
    "site_plugins.scheduler_plugin",
]


def loaded_by(module: str) -> set[str]:
    """Names of all modules that a fresh interpreter holds after importing `module`."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, module],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"`import {module}` failed in a fresh interpreter:\n{done.stderr}")
    return set(done.stdout.splitlines())


def assert_not_loaded(module: str, forbidden: str, rule: str) -> None:
    found = sorted(
        name for name in loaded_by(module) if name == forbidden or name.startswith(forbidden + ".")
    )
    assert not found, f"{rule}, but `import {module}` loads {', '.join(found)}"


def test_probe_sees_a_violation() -> None:
    with pytest.raises(AssertionError, match="json must stay out, but `import json` loads json, "):
        assert_not_loaded("json", "json", "json must stay out")


@pytest.mark.parametrize("module", RESEARCHER_MODULES)
def test_federated_dask_never_loads_site_plugins(module: str) -> None:
    assert_not_loaded(module, "site_plugins", "federated_dask never imports site_plugins")


@pytest.mark.parametrize("forbidden", ["federated_dask.client", "federated_dask.planner"])
@pytest.mark.parametrize("module", SITE_MODULES)
def test_site_plugins_loads_neither_client_nor_planner(module: str, forbidden: str) -> None:
    assert_not_loaded(module, forbidden, f"site_plugins never imports {forbidden}")


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("federated_dask.protocol.messages", "federated_dask.planner"),
        ("federated_dask.protocol.messages", "federated_dask.client"),
        ("federated_dask.planner.plan", "federated_dask.client"),
    ],
)
def test_lower_layer_never_loads_a_higher_one(module: str, forbidden: str) -> None:
    assert_not_loaded(module, forbidden, "imports go client → planner → protocol")


@pytest.mark.parametrize("forbidden", ["xarray", "dask.array", "aiohttp"])
def test_top_level_import_is_light(forbidden: str) -> None:
    assert_not_loaded("federated_dask", forbidden, "federated_dask exports its names lazily")


@pytest.mark.parametrize("module", RESEARCHER_MODULES)
def test_core_works_without_distributed(module: str) -> None:
    assert_not_loaded(module, "distributed", "distributed belongs to the extra `site`")
