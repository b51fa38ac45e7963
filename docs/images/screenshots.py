"""Takes the pictures of the pages that the documentation shows, from a server that runs.

python docs/images/screenshots.py http://127.0.0.1:8000 [--key omk_…] [--task core_promoter]
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

FOLDER = Path(__file__).parent
WIDTH = 1280


def main() -> None:
    """Write one PNG for each page beside this file."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("url")
    arguments.add_argument("--key", default="")
    arguments.add_argument("--task", help="asked on the first page; the first task of the list by default")
    given = arguments.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, take in {
            "predict": lambda page: predict(page, given.task),
            "chat": chat,
            "models": models,
            "evaluations": evaluations,
            "jobs": jobs,
        }.items():
            page = opened(browser, given.url.rstrip("/"), "/" if name == "predict" else f"/{name}", given.key)
            take(page)
            page.wait_for_load_state("networkidle")
            page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
            page.screenshot(path=FOLDER / f"{name}.png", full_page=name != "chat")
            print(FOLDER / f"{name}.png")
        browser.close()


def opened(browser: Browser, url: str, path: str, key: str) -> Page:
    """A page of the server, with the key entered."""
    context = browser.new_context(viewport={"width": WIDTH, "height": 800}, locale="en-GB", reduced_motion="reduce")
    page = context.new_page()
    if key:
        page.goto(f"{url}/static/mark.svg")
        page.evaluate("key => sessionStorage.setItem('polysome.key', key)", key)
    page.goto(url + path)
    expect(page.locator("#serving")).not_to_be_empty()
    return page


def predict(page: Page, task: str | None) -> None:
    """The example of a task and two variants of it."""
    page.locator("#inputs textarea").first.wait_for()
    if task:
        page.get_by_label("Task", exact=True).select_option(task)
    page.locator("#example").click()
    for area in page.locator("#inputs textarea").all():
        example = area.input_value().split("\n")[1]
        half = len(example) // 2
        records = {
            "locus_1": example,
            "locus_1_reversed": example[::-1],
            "locus_1_swapped": example[half:] + example[:half],
        }
        area.fill("".join(f">{name}\n{sequence}\n" for name, sequence in records.items()))
    page.get_by_role("button", name="Predict", exact=True).click()
    expect(page.locator("#table tbody tr")).to_have_count(3, timeout=60_000)
    page.get_by_text("Show", exact=True).first.click()


def chat(page: Page) -> None:
    """One question."""
    page.get_by_label("Your message").fill(
        "GCGCGGAGCCTATAAAAGGCAGCGGCTCAGTCGGCACTCAGTT Is there a core promoter in this sequence?"
    )
    page.keyboard.press("Enter")
    expect(page.locator(".turn.assistant .facts")).not_to_be_empty(timeout=60_000)


def models(page: Page) -> None:
    """As it opens."""
    expect(page.locator("#models section")).not_to_have_count(0)


def evaluations(page: Page) -> None:
    """The newest evaluation that can be read."""
    expect(page.locator("#list tbody tr")).not_to_have_count(0)
    page.locator("#list tbody tr").first.get_by_role("link").click()


def jobs(page: Page) -> None:
    """The newest job's log, where there is one."""
    expect(page.locator("#runs").locator("tr, .empty")).not_to_have_count(0)
    log = page.locator('[data-action="log"]')
    if log.count():
        log.first.click()


if __name__ == "__main__":
    main()
