"""The page of a site and the JavaScript client in a real browser."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr

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
    playwright.expect(image).to_have_js_property("naturalWidth", 792, timeout=DEADLINE)
    assert page.screenshot(path=tmp_path / "dataset.png", full_page=True)
    # What was entered is kept for this tab, and forgotten when asked to.
    page.reload()
    page.get_by_role("heading", name="a1b").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").wait_for()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_licence_is_accepted_before_a_preview(
    page: playwright.Page, federation: LocalFederation
) -> None:
    # Who never accepted it, however often this test runs.
    sign_in(page, federation.new_token("north", f"reader-{uuid.uuid4().hex}"))
    page.get_by_role("link", name="soil").click()
    page.get_by_role("button", name="Show preview").click()
    page.get_by_role("alert").get_by_text("license not accepted").wait_for()
    page.get_by_role("button", name="Accept the licence").click()
    page.get_by_role("button", name="Accept the licence").wait_for(state="hidden")
    page.get_by_role("button", name="Show preview").click()
    page.get_by_role("img", name="Preview of air of soil").wait_for()
    page.get_by_text(re.compile(r"^[1-9].* that may leave are used")).wait_for()


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


def open_function(page: playwright.Page, name: str) -> None:
    page.get_by_role("link", name="Functions").click()
    page.get_by_role("link", name=name).click()
    page.get_by_role("heading", name=name, exact=True).wait_for()


def test_a_function_is_run_by_its_form(
    page: playwright.Page, federation: LocalFederation, tmp_path: Path
) -> None:
    sign_in(page, federation.token["north"])
    open_function(page, "trend")
    start = page.get_by_label("start")
    assert start.get_attribute("min") == "1850"
    assert page.get_by_label("method").evaluate("it => it.tagName") == "SELECT"
    assert page.get_by_label("until").get_attribute("type") == "date"
    assert page.get_by_label("per_decade").is_checked()
    page.get_by_label("data", exact=True).select_option("d:a1b")
    page.get_by_label("Variable for data").wait_for()
    start.fill("2071")
    start.press("Enter")
    image = page.get_by_role("img", name="Result of trend")
    image.wait_for()
    playwright.expect(image).to_have_js_property("naturalWidth", 792, timeout=DEADLINE)
    assert page.get_by_text("dataarray, ").is_visible()
    assert page.screenshot(path=tmp_path / "function.png", full_page=True)
    page.emulate_media(color_scheme="dark")
    assert page.screenshot(path=tmp_path / "dark.png", full_page=True)
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download NetCDF").click()
    downloading.value.save_as(tmp_path / downloading.value.suggested_filename)
    with xr.open_dataset(tmp_path / "trend.nc", engine="h5netcdf") as found:
        assert found["trend"].dims == ("lat", "lon")
    # What was returned is an argument of the next call.
    open_function(page, "both")
    labels = page.get_by_label("data", exact=True).locator("option").all_text_contents()
    assert any(label.startswith("trend,") for label in labels)


def test_arguments_that_do_not_fit_are_marked(
    page: playwright.Page, federation: LocalFederation
) -> None:
    sign_in(page, federation.token["north"])
    open_function(page, "told")
    values = page.get_by_label("values")
    values.fill("[1, 2]")
    page.get_by_role("button", name="Run").click()
    page.get_by_role("alert").wait_for()
    assert values.get_attribute("aria-invalid") == "true"
    values.fill('{"a": 1}')
    page.get_by_role("button", name="Run").click()
    page.locator("pre").get_by_text('"a": 1').wait_for()
    assert values.get_attribute("aria-invalid") is None


def test_a_run_is_followed_and_cancelled(
    page: playwright.Page, federation: LocalFederation
) -> None:
    sign_in(page, federation.token["north"])
    open_function(page, "steps")
    page.get_by_label("count").fill("100000")
    page.get_by_role("button", name="Run").click()
    page.get_by_text("% step").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled.", exact=True).wait_for()
    page.get_by_role("link", name="Calls").click()
    page.get_by_role("heading", name="Your calls").wait_for()
    assert page.get_by_role("cell", name="running").count() == 0
