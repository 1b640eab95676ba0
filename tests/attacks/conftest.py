"""A site in processes of its own, as an operator runs it, for attacks from outside."""

import dataclasses
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import xarray as xr

from site_plugins.certificates import write_certificates, write_private_file
from site_plugins.config import load_config
from site_plugins.keys import new_issuer_key
from site_plugins.tokens import create_token
from tests.waiting import until

DEADLINE = 120.0
ROOT = Path(__file__).parents[2]
CANARY = "canary4711"
"""Part of every path of the site, of tokens and of data: nothing that leaves it may hold it."""
SECRET = 8_675_309.0
"""A value in the data."""

SITE = """
site = {name = "north"}
tokens = {private_key = "issuer.pem"}
cluster = {n_workers = 1, threads_per_worker = 2, memory_limit = "1GiB"}
[endpoint]
host = "0.0.0.0"
port = 0
certificate = "certificates/certificate.pem"
private_key = "certificates/private_key.pem"
[datasets.open]
path = "open.zarr"
[datasets.derived]
path = "derived.zarr"
egress = "derived"
[datasets.broken]
path = "broken.nc"
[datasets.missing]
path = "nothing-here.zarr"
[[grants]]
to = "anyone"
may = ["describe", "compute", "export", "call"]
on = ["dataset:*", "function:*", "site:*"]
"""

CODE = """
import resource, sys
from pathlib import Path
from site_plugins.config import load_config
from site_plugins.serve import serve

if __name__ == "__main__":
    # As many systems begin.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, most), most))
    serve(load_config(sys.argv[1]), ready_file=Path(sys.argv[2]), until_stdin_closes=True)
"""


@dataclasses.dataclass
class RunningSite:
    """The site, and how to reach it."""

    process: psutil.Process
    address: str
    folder: Path
    context: ssl.SSLContext
    log: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def memory(self) -> int:
        """Bytes that the process of the endpoint holds."""
        return int(self.process.memory_info().rss)

    def token(self, subject: str = "ada") -> str:
        return create_token(load_config(self.folder / "site.toml"), subject, 3600.0)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSite]:
    folder = tmp_path_factory.mktemp(CANARY)
    write_certificates(folder / "certificates")
    write_private_file(folder / "issuer.pem", new_issuer_key())
    values = np.full((20, 10), SECRET)
    data = xr.Dataset({"air": (("time", "lat"), values)}, attrs={"title": "Air"})
    for name in ("open", "derived"):
        data.to_zarr(folder / f"{name}.zarr", zarr_format=2, consolidated=True)
    (folder / "broken.nc").write_bytes(b"CDF\x01 no such file " + CANARY.encode())
    config = folder / "site.toml"
    config.write_text(SITE)
    (folder / "run.py").write_text(CODE)
    ready, log = folder / "ready.json", folder / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, str(folder / "run.py"), str(config), str(ready)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stderr=output,
        ) as process,
    ):
        try:
            until(
                lambda: ready.exists() or process.poll() is not None,
                lambda: f"the site is ready; its log: {log.read_text()}",
                DEADLINE,
            )
            assert process.poll() is None, log.read_text()
            told: dict[str, Any] = json.loads(ready.read_text())
            context = ssl.create_default_context(cafile=folder / "certificates" / "ca.pem")
            yield RunningSite(psutil.Process(process.pid), told["address"], folder, context, log)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
