"""The JavaScript client in Node, and what an endpoint serves to browsers."""

from __future__ import annotations

import json
import os
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from site_plugins import LocalFederation
from site_plugins.endpoint.page_routes import CLIENT, PAGE
from tests.site_plugins.helpers import Caller

ROOT = Path(__file__).parents[2]
JS = ROOT / "federated_dask" / "js"
FOREIGN = re.compile(r"""(?:src|href|url|import|from)\s*[=(]?\s*["']?https?://""")


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parent.glob("*.test.mjs")), ids=lambda p: p.stem
)
def test_in_node(federation: LocalFederation, node: str, path: Path) -> None:
    environment = {
        **os.environ,
        "ADDRESS": federation.addresses["north"],
        "TOKEN": federation.token["north"],
        "NODE_EXTRA_CA_CERTS": federation.verify,
    }
    done = subprocess.run(
        [node, "--test", str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_the_files_of_the_page_and_the_client(federation: LocalFederation) -> None:
    nobody = Caller(federation, "north", None)
    for path in ("/", *(f"/page/{name}" for name in PAGE), *(f"/js/{name}" for name in CLIENT)):
        async with nobody.request("GET", path) as response:
            body = await response.text()
            assert response.status == 200, path
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert not FOREIGN.search(re.sub(r"(?m)^\s*//.*", "", body)), f"{path} needs another host"
        assert "innerHTML" not in body
        async with nobody.request(
            "GET", path, headers={"If-None-Match": response.headers["ETag"]}
        ) as again:
            assert again.status == 304


@pytest.mark.parametrize(
    "path", ["/page/index.html", "/page/..%2fapp.py", "/js/x.js", "/js/..%2ferrors.py"]
)
async def test_no_other_file_is_served(federation: LocalFederation, path: str) -> None:
    status, failure = await Caller(federation, "north", None).refused("GET", path)
    assert (status, failure.reason) == (404, "unknown_route")


async def test_every_file_of_the_page_is_served() -> None:
    folder = ROOT / "site_plugins" / "endpoint" / "page"
    assert {path.name for path in folder.iterdir()} == {"index.html", *PAGE}
    assert {path.name for path in JS.iterdir()} == set(CLIENT)


def test_the_client_is_a_package_for_npm() -> None:
    package = json.loads((JS / "package.json").read_text())
    assert package["version"] == version("federated-dask")
    for name in (package["main"], package["types"], *package["files"]):
        assert (JS / name).is_file()
    exported = set(
        re.findall(
            r"^export (?:async )?(?:class|function) (\w+)",
            (JS / "federated-dask.js").read_text(),
            re.MULTILINE,
        )
    )
    typed = set(
        re.findall(
            r"^export (?:class|function) (\w+)",
            (JS / "federated-dask.d.ts").read_text(),
            re.MULTILINE,
        )
    )
    assert exported == typed


async def test_pages_elsewhere_may_ask_only_where_they_are_named(
    federation: LocalFederation,
) -> None:
    wanted = {
        "Origin": "https://portal.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,prefer",
    }
    south = Caller(federation, "south", None)
    async with south.request("OPTIONS", "/datasets", headers=wanted) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == "https://portal.example"
    async with south.request(
        "GET", "/datasets", headers={"Origin": "https://portal.example"}
    ) as it:
        # A refusal can be read, too.
        assert it.status == 401
        assert it.headers["Access-Control-Allow-Origin"] == "https://portal.example"
    for caller, origin in (
        (south, "https://other.example"),
        (Caller(federation, "north", None), "https://portal.example"),
    ):
        async with caller.request(
            "OPTIONS", "/datasets", headers={**wanted, "Origin": origin}
        ) as it:
            assert "Access-Control-Allow-Origin" not in it.headers
