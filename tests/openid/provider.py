"""A real OpenID provider for the tests: the npm package `oidc-provider`."""

import contextlib
import fcntl
import html
import json
import re
import shutil
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from site_plugins.certificates import write_certificates

PACKAGE = "oidc-provider@9.13.3"
CACHE = Path.home() / ".cache" / "federated-dask-tests" / PACKAGE.replace("@", "-")
SCRIPT = Path(__file__).with_name("provider.mjs")
INSTALL_SECONDS = 240
START_SECONDS = 60


class OpenIDProvider:
    """The running provider."""

    def __init__(self, process: subprocess.Popen[str], issuer: str, ca: Path) -> None:
        self.process = process
        self.issuer = issuer
        self.ca = ca

    def command(self, **what: Any) -> dict[str, Any]:
        """Change something, and wait until it is so."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        told: dict[str, Any] = json.loads(self.process.stdout.readline())
        return told

    def token(self, audience: str, **claims: Any) -> str:
        """An access token of the provider for its client "robot"."""
        import requests

        self.command(claims=claims)
        try:
            reply = requests.post(
                f"{self.issuer}/token",
                auth=("robot", "secret"),
                data={"grant_type": "client_credentials", "resource": audience},
                verify=str(self.ca),
                timeout=START_SECONDS,
            )
        finally:
            self.command(claims={})
        assert reply.status_code == 200, reply.text
        return str(reply.json()["access_token"])

    def approve(self, address: str, user: str, *, abort: bool = False) -> None:
        """Do what a user does in a browser: confirm the code, log in, consent; or abort."""
        import requests

        with requests.Session() as browser:
            # Else certificates of the environment would take the place of ours.
            browser.trust_env = False
            browser.verify = str(self.ca)
            reply = browser.get(address, timeout=START_SECONDS)
            for _ in range(8):
                if "Sign-in Success" in reply.text or "interrupted" in reply.text:
                    return
                action, fields = _form(reply.text)
                fields = {
                    **fields,
                    **({"login": user, "password": "x"} if "login" in fields else {}),
                }
                if abort and "login" not in fields:
                    fields["abort"] = "yes"
                target = requests.compat.urljoin(reply.url, action)
                reply = browser.post(target, data=fields, timeout=START_SECONDS)
            raise AssertionError(reply.text)


def _form(page: str) -> tuple[str, dict[str, str]]:
    form = re.search(r'<form[^>]*action="([^"]*)"[^>]*>(.*?)</form>', page, re.DOTALL)
    assert form is not None, page
    fields = {}
    for field in re.findall(r"<input[^>]*>", form[2]):
        name = re.search(r'name="([^"]*)"', field)
        value = re.search(r'value="([^"]*)"', field)
        if name is not None and name[1] != "abort":
            fields[name[1]] = html.unescape(value[1]) if value is not None else ""
    return html.unescape(form[1]), fields


def _installed() -> Path:
    """Folder with the package; installed once, outside of the repository."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are needed to run a real OpenID provider")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (CACHE / "node_modules" / "oidc-provider" / "lib" / "index.js").is_file():
            command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
            try:
                done = subprocess.run(
                    command, cwd=CACHE, capture_output=True, timeout=INSTALL_SECONDS, check=False
                )
            except subprocess.TimeoutExpired:
                pytest.skip(f"npm did not install {PACKAGE} in {INSTALL_SECONDS} s")
            if done.returncode:
                pytest.skip(f"npm could not install {PACKAGE}")
    return CACHE


@contextlib.contextmanager
def run_provider(folder: Path) -> Iterator[OpenIDProvider]:
    """Run the provider until the block ends; skips the test where it cannot be had."""
    modules = _installed()
    files = write_certificates(folder)
    arguments = ["node", SCRIPT, modules, files.certificate, files.private_key]
    with (folder / "provider.log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, arguments)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        first = process.stdout.readline()
        assert first, (folder / "provider.log").read_text()
        provider = OpenIDProvider(process, json.loads(first)["issuer"], files.ca)
        trust = ssl.create_default_context(cafile=files.ca)
        with urllib.request.urlopen(  # noqa: S310
            f"{provider.issuer}/jwks", context=trust, timeout=START_SECONDS
        ) as reply:
            assert reply.status == 200
        yield provider
    finally:
        # The end of its standard input is the end of the process.
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
