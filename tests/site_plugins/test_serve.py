import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.site_plugins.helpers import written_site

DEADLINE = 120.0
ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return written_site(
        tmp_path, "cluster = {n_workers = 1, threads_per_worker = 1}", "endpoint.port = 0"
    )


CODE = """
import sys
from pathlib import Path
from site_plugins.config import load_config
from site_plugins.serve import serve

if __name__ == "__main__":
    serve(load_config(sys.argv[1]), ready_file=Path(sys.argv[2]), until_stdin_closes=True)
"""


@contextlib.contextmanager
def served(config: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    ready = config.with_name("ready.json")
    script = config.with_name("run.py")
    script.write_text(CODE)
    with subprocess.Popen(
        [sys.executable, str(script), str(config), str(ready)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + DEADLINE
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    assert process.stderr is not None
                    pytest.fail(process.stderr.read())
                time.sleep(0.05)
            yield process, json.loads(ready.read_text())
        finally:
            process.kill()


def ask(config: Path, address: str) -> dict[str, Any]:
    import ssl
    import urllib.request

    context = ssl.create_default_context(cafile=config.parent / "certificates" / "ca.pem")
    with urllib.request.urlopen(f"{address}/health", context=context) as response:  # noqa: S310
        return dict(json.load(response))


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stdin"])
def test_a_site_comes_up_and_leaves_no_process_behind(config: Path, how: str) -> None:
    with served(config) as (process, told):
        assert told["name"] == "north"
        assert told["pid"] == process.pid
        assert told["dashboard_link"].startswith("http://127.0.0.1:")
        assert ask(config, told["address"]) == {"status": "ok", "site": "north"}
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        if how == "stdin":
            assert process.stdin is not None
            process.stdin.close()
        else:
            process.send_signal(signal.Signals[how])
        assert process.wait(DEADLINE) == 0
        _, alive = psutil.wait_procs(children, DEADLINE)
        assert alive == []
        assert process.stderr is not None
        log = process.stderr.read()
        assert "Traceback" not in log, log
