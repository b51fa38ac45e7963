"""A real browser for tests of the pages; they are skipped where there is none."""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    # Of a module, since an event loop runs for as long as it is open.
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Any]]:
    """Opens a page. At the end nothing may have been asked of another host, and no module or policy have failed."""
    contexts, problems, asked = [], [], []

    def open_page(url: str, path: str = "/", **settings: object) -> Any:
        context = browser.new_context(accept_downloads=True, locale="en-GB", **settings)
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type in ("error", "warning") else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # The browser itself notes every answer that is no success, which the page tells, and every script that a frame's
    # sandbox held back.
    noted = ("Failed to load resource", "Blocked script execution in 'about:srcdoc'")
    assert [line for line in problems if not line.startswith(noted)] == []
    assert [
        url for url in asked if not re.match(r"(http://127\.0\.0\.1:\d+/|blob:http://127\.0\.0\.1|about:)", url)
    ] == []
