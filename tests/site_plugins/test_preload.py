import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from site_plugins.scheduler_plugin import unwrapped
from tests.site_plugins.helpers import written_site

DEADLINE = 120.0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return written_site(tmp_path, 'datasets.a1b.path = "a1b.zarr"')


@contextlib.contextmanager
def scheduler(folder: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """Address of a `dask scheduler` in a process of its own."""
    file = folder / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    command += [
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        str(file),
    ]
    with subprocess.Popen(
        [*command, "--preload", "site_plugins.preload", *arguments],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + DEADLINE
            while not file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    assert process.stdout is not None
                    pytest.fail(process.stdout.read())
                time.sleep(0.05)
            yield str(file)
        finally:
            process.terminate()
            process.communicate(timeout=DEADLINE)


@pytest.mark.parametrize("by", ["option", "environment"])
async def test_a_plain_scheduler_becomes_a_sites(config: Path, by: str) -> None:
    arguments = ["--site-config", str(config)] if by == "option" else []
    environment = {"FEDERATED_DASK_SITE_CONFIG": str(config)} if by == "environment" else {}
    with scheduler(config.parent, *arguments, **environment) as file:
        async with Client(scheduler_file=file, asynchronous=True, set_as_default=False) as client:
            state = unwrapped(await client.scheduler.federated_site())
    assert state.name == "north"
    assert state.datasets["a1b"].path == str(config.parent / "a1b.zarr")
