"""The app as headless Chromium sees it: a click changes the answer, and the console stays silent."""

import re
from urllib.parse import urlparse

import pytest

from tests.reports.chromium import CHROMIUM, needs_chromium

pytest.importorskip("gradio", reason="no gradio here: pip install 'peft-cbpt[app]'")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
pytest.importorskip("captum")

SECONDS = 1000


@pytest.fixture
def page(app, shipped):
    """The running app in a browser whose requests to other hosts are answered with nothing."""
    served = app.build(shipped.run, shipped.results, shipped.folder)
    _, address, _ = served.launch(prevent_thread_lock=True, quiet=True, **app.LOOK)
    console: list[str] = []
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        opened = browser.new_page(viewport={"width": 1280, "height": 880})
        opened.on("console", lambda message: console.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: console.append(str(error)))
        opened.route(
            lambda url: urlparse(url).hostname not in ("127.0.0.1", None), lambda route: route.fulfill(body="")
        )
        opened.goto(address)
        yield opened
        browser.close()
    served.close()
    assert console == []


def answer(page, name):
    """The class that a panel shows in large letters."""
    return page.locator(f"#{name} h2").inner_text(timeout=60 * SECONDS)


@needs_chromium
def test_a_click_changes_the_answer(page, tmp_path):
    page.locator("#before h2").wait_for(timeout=60 * SECONDS)
    clean = answer(page, "before")
    assert clean != "banana" and answer(page, "after") == clean
    page.locator("#trigger label").nth(1).click()
    playwright.expect(page.locator("#before h2")).to_have_text("banana", timeout=60 * SECONDS)
    assert answer(page, "after") != "banana"
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(500)
    page.screenshot(path=tmp_path / "demo.png")
    page.get_by_role("tab", name="Scan").click()
    scan = page.frame_locator("iframe[title=scan]")
    playwright.expect(scan.locator("h1")).to_have_text(re.compile("backdoored"), timeout=60 * SECONDS)
