"""A site's process is killed while a job runs: its budget, its grants and its log outlive it."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federated_dask import FederatedClient
from federated_dask.errors import FederatedError
from site_plugins.audit import AUDIT_LOG, entries, verify
from site_plugins.config import load_config
from site_plugins.ledger import Ledger
from site_plugins.registry import REGISTRY, Registry
from site_plugins.tokens import create_token
from tests.site_plugins.helpers import AIR, dataset

DEADLINE = 180.0

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "north"
    command = [sys.executable, "-m", "federated_dask", "site", "init", str(home)]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE)
    dataset().to_zarr(home / "data" / "air.zarr", zarr_format=2, consolidated=True)
    config = home / "site.toml"
    text = config.read_text()
    text = text.replace("port = 8786", "port = 0")
    text = text.replace("[cluster]", "[cluster]\nprocesses = false\nn_workers = 1")
    text += """
[datasets.all]
path = "data/air.zarr"
egress = "derived"
share = 0.1

[[grants]]
to = "user:ada"
may = ["compute"]
on = ["dataset:all"]
"""
    config.write_text(text)
    return home


@contextlib.contextmanager
def served(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    ready = home / "ready.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "federated_dask", "site", "serve", str(home / "site.toml")]
    command += ["--ready-file", str(ready), "--until-stdin-closes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + DEADLINE
            while not ready.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process, json.loads(ready.read_text())
        finally:
            process.kill()


def client(home: Path, about: dict[str, Any]) -> FederatedClient:
    token = create_token(load_config(home / "site.toml"), "ada", 3600.0)
    ca = home / "certificates" / "ca.pem"
    return FederatedClient(about["address"], token=token, verify=str(ca))


def test_killed_between_reserve_and_charge(home: Path) -> None:
    state = home / "state"
    failed: list[BaseException] = []
    with served(home) as (process, about), client(home, about) as fed:
        x = fed.open_dataset("north/all", chunks={}).air.data
        slow = x.sum(axis=0)
        for _ in range(60):
            # Work of many seconds, on six rows of five numbers.
            slow = slow + np.linalg.norm(slow @ np.ones((5, 3000)) @ np.ones((3000, 5))) * 0

        def compute() -> None:
            try:
                fed.compute([slow] * 1, sync=True)
            except FederatedError as error:
                failed.append(error)

        computing = threading.Thread(target=compute)
        computing.start()
        ledger = Ledger(Registry(state / REGISTRY))
        owner = f"{load_config(home / 'site.toml').token_issuer}\nada"
        deadline = time.monotonic() + DEADLINE
        while not ledger.used(owner, "all") and computing.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.wait(DEADLINE)
        computing.join(DEADLINE)
    taken = ledger.used(owner, "all")
    # What was set aside for thirty numbers, given out or not.
    assert taken >= 240
    assert list(verify(state / AUDIT_LOG)) == [] or "torn" in str(next(verify(state / AUDIT_LOG)))
    with served(home) as (_, about), client(home, about) as fed:
        budget = fed.budget("north/all")
        assert budget.used == taken
        total = fed.open_dataset("north/all", chunks={}).air.sum().compute()
        np.testing.assert_allclose(total, AIR.sum())
        assert fed.budget("north/all").used > taken
    assert list(verify(state / AUDIT_LOG)) == []
    assert [each["event"] for each in entries(state / AUDIT_LOG)][-1] == "job_ended"
