"""DASF, set up the way its documentation says and with everything tuned that can be.

Lives in an environment of its own in the folder for temporary files, which is made the
first time (some minutes); the broker, the backend and the caller are processes of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from federated_dask.free_ports import free_ports

PROJECT = Path(__file__).parent / "dasf_project"
ENVIRONMENT = Path(tempfile.gettempdir()) / "federated-dask-dasf"
PACKAGES = (
    "demessaging[backend]==0.6.4",
    "dasf-broker-django==0.0.1.dev1",
    "daphne",
    "wsaccel",
    "numpy",
    "pandas",
    "scipy",
    "xarray",
)
START_SECONDS = 60.0
MEASURE_SECONDS = 240.0


def measure(calls: int, seconds: float, callers: tuple[int, ...], sizes: dict[int, int]) -> Any:
    """Measure in a process of the other environment; see `dasf_project/measure.py`."""
    python = environment()
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "project"
        shutil.copytree(PROJECT, place)
        backend = ["backend.py", "-t", "bench", "--websocket-url", f"ws://127.0.0.1:{port}/ws"]
        stub = run(python, place, *backend, "generate").stdout
        (place / "client.py").write_text(stub)
        with running(python, place, "broker.py", str(port)):
            wait_for(port)
            with running(python, place, *backend, "listen"):
                wanted = json.dumps([calls, seconds, callers, list(sizes.items())])
                done = run(python, place, "measure.py", wanted)
    return json.loads(done.stdout.splitlines()[-1])


def environment() -> Path:
    """Give the interpreter of the environment; make that where there is none yet."""
    python, ready = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        ready.touch()
    return python


def run(python: Path, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments],
        cwd=place,
        env=variables(place),
        capture_output=True,
        text=True,
        timeout=MEASURE_SECONDS,
        check=True,
    )


@contextlib.contextmanager
def running(python: Path, place: Path, *arguments: str) -> Iterator[None]:
    process = subprocess.Popen(
        [python, *arguments],
        cwd=place,
        env=variables(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def variables(place: Path) -> dict[str, str]:
    # Ours would be found there instead of the modules of the other environment.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**inherited, "PYTHONPATH": str(place)}


def wait_for(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
