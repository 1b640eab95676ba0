"""The page of a site and the JavaScript client in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from site_plugins import LocalFederation

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

DEADLINE = 90_000


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as running:
        # The sandbox of a browser needs what containers do not give; it sees this site only.
        started = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: playwright.Browser, federation: LocalFederation) -> Iterator[playwright.Page]:
    context = browser.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(DEADLINE)
    opened = context.new_page()
    problems: list[str] = []
    elsewhere: list[str] = []
    address = federation.addresses["north"]
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "console",
        lambda told: problems.append(told.text) if "Content Security" in told.text else None,
    )
    opened.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((address, "blob:", "data:"))
            else elsewhere.append(asked.url)
        ),
    )
    opened.goto(address + "/")
    yield opened
    context.close()
    assert not problems
    assert not elsewhere, "a page works without any outside host"


def sign_in(page: playwright.Page, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Datasets").wait_for()


def test_a_wrong_token_is_told(page: playwright.Page) -> None:
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Connect").click()
    page.get_by_role("alert").get_by_text("not valid here").wait_for()
    assert page.evaluate("sessionStorage.length") == 0


def test_datasets_and_their_previews(
    page: playwright.Page, federation: LocalFederation, tmp_path: Path
) -> None:
    sign_in(page, federation.token["north"])
    assert page.title().startswith("The north")
    page.get_by_role("link", name="a1b").press("Enter")
    page.get_by_role("heading", name="a1b").wait_for()
    assert page.get_by_text("CC-BY-4.0").is_visible()
    assert page.get_by_role("cell", name="Air temperature [degC]").is_visible()
    page.get_by_role("button", name="Show preview").press("Enter")
    image = page.get_by_role("img", name="Preview of air of a1b")
    image.wait_for()
    page.wait_for_function("document.querySelector('figure img').complete")
    assert image.evaluate("image => image.naturalWidth") == 792
    assert page.screenshot(path=tmp_path / "dataset.png", full_page=True)
    # What was entered is kept for this tab, and forgotten when asked to.
    page.reload()
    page.get_by_role("heading", name="a1b").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").wait_for()
    assert page.evaluate("sessionStorage.length") == 0


def test_sites_and_search(page: playwright.Page, federation: LocalFederation) -> None:
    sign_in(page, federation.token["north"])
    page.get_by_label("Search datasets").fill("nothing like it")
    page.get_by_text("None of these.").wait_for()
    page.get_by_label("Search datasets").fill("TEMPERATURE")
    page.get_by_role("link", name="a1b").wait_for()
    page.get_by_role("link", name="Sites").click()
    peer = page.get_by_role("link", name="south")
    peer.wait_for()
    assert peer.get_attribute("href") == federation.addresses["south"] + "/"


def test_the_client_in_a_browser(page: playwright.Page, federation: LocalFederation) -> None:
    found = page.evaluate(
        """async ([address, token]) => {
            const { connect } = await import(`${address}/js/federated-dask.js`);
            const site = await connect(address, { token });
            const air = await site.read("a1b", "air", [0, 0, [0, 3, null]]);
            const refused = await site.read("a1b", "nothing").catch((error) => error.reason);
            return [site.name, air.data.constructor.name, air.shape, refused];
        }""",
        [federation.addresses["north"], federation.token["north"]],
    )
    assert found == ["north", "Float32Array", [3], "unknown_variable"]


def test_the_documentation(page: playwright.Page) -> None:
    page.goto(page.url.partition("#")[0] + "docs")
    assert page.get_by_role("heading", name="POST /jobs").is_visible()
    # Its style is applied, whatever the policy of its contents says.
    assert page.evaluate("getComputedStyle(document.body).maxWidth") == "960px"
