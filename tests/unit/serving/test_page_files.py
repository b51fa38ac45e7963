"""The pages as files: no inline code, no data, nothing from elsewhere; and how they are handed out."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.testclient import TestClient

from polysome.serving import pages
from polysome.serving.config import Limits, ServeConfig
from polysome.serving.context import Context
from polysome.serving.protocol import ApiError

FOLDER = Path(pages.__file__).parent
MODULES = sorted((FOLDER / "static").glob("*.js"))


def client(**settings: object) -> TestClient:
    config = ServeConfig(model="unused", limits=Limits(records=7), **settings)
    app = FastAPI()
    app.include_router(pages.router(Context(config, pool=None, fingerprint="0" * 16)))

    @app.exception_handler(ApiError)
    async def told(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status)

    return TestClient(app)


class Elements(HTMLParser):
    """Tags with their attributes, and what stands between `script` or `style` tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.found and self.found[-1][0] in ("script", "style") and data.strip():
            self.inline.append(data)

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag in tags]


@pytest.fixture(scope="module")
def documents() -> dict[str, Elements]:
    answers = {path: client().get(path) for path in pages.PAGES}
    assert all(answer.status_code == 200 for answer in answers.values())
    assert all(answer.headers["content-type"] == "text/html; charset=utf-8" for answer in answers.values())
    return {path: Elements(answer.text) for path, answer in answers.items()}


@pytest.mark.parametrize("path", pages.PAGES)
def test_a_page_holds_nothing_that_its_policy_would_block(documents, path):
    document = documents[path]
    assert not document.inline
    for tag, attributes in document.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        addresses = [attributes[name] or "" for name in ("src", "href", "action") if name in attributes]
        assert all(re.match(r"(/(?!/)|#)", address) for address in addresses), (tag, addresses)


@pytest.mark.parametrize("path", pages.PAGES)
def test_everything_that_a_person_fills_in_has_a_label_and_every_reference_a_target(documents, path):
    document = documents[path]
    ids = [attributes["id"] for _, attributes in document.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes["for"] for attributes in document.all("label")}
    assert labelled <= set(ids)
    for attributes in document.all("input", "select", "textarea"):
        assert attributes["id"] in labelled or attributes.get("aria-label")
    for name in ("aria-labelledby", "aria-describedby"):
        assert {attributes[name] for _, attributes in document.found if name in attributes} <= set(ids)
    assert len(document.all("h1")) == len(document.all("main")) == 1
    assert any(attributes.get("role") == "alert" for _, attributes in document.found)
    assert [attributes.get("href") for attributes in document.all("a") if "aria-current" in attributes] == [path]


def test_what_the_pages_ask_for_is_there_and_is_kept_by_the_browser_until_it_changes(documents):
    asked = {
        attributes[name]
        for document in documents.values()
        for tag, name in (("script", "src"), ("link", "href"))
        for attributes in document.all(tag)
    }
    web = client()
    for address in asked:
        first = web.get(address)
        assert first.status_code == 200, address
        assert first.headers["cache-control"] == "no-cache"
        again = web.get(address, headers={"if-none-match": f'W/{first.headers["etag"]}, "other"'})
        assert (again.status_code, again.content) == (304, b"")
    assert web.get("/static/shell.js").headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize("name", ["nothing.js", "..%2f__init__.py", "%2e%2e/__init__.py", "..\\__init__.py", "."])
def test_only_the_named_files_are_handed_out(name):
    web = client()
    answer = web.get(f"/static/{name}")
    assert answer.status_code == 404
    assert "polysome" not in answer.text


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_reads_no_text_as_code_or_markup_and_imports_from_here_alone(path):
    text = path.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"localStorage|document\.cookie", text)
    imported = re.findall(r"""(?:from|import\()\s*["']([^"']+)""", text)
    assert {f"./{other.name}" for other in MODULES} >= set(imported)


def test_the_pages_know_the_bounds_and_the_parts_of_this_server():
    def settings(web: TestClient) -> str:
        return str(Elements(web.get("/").text).all("body")[0]["data-settings"])

    assert '"records": 7' in settings(client())
    assert '"batches": false' in settings(client())
    assert '"batches": true' in settings(client(batches="somewhere"))


def colours(block: str) -> dict[str, tuple[float, ...]]:
    found = re.findall(r"--([a-z-]+): #([0-9a-f]{3,6})\b", block)
    whole = {name: code if len(code) == 6 else "".join(2 * digit for digit in code) for name, code in found}
    return {name: tuple(int(code[place : place + 2], 16) / 255 for place in (0, 2, 4)) for name, code in whole.items()}


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Of two colours by WCAG 2.2."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_against_what_it_stands_on(scheme):
    blocks = re.findall(r":root \{(.*?)\}", (FOLDER / "static" / "style.css").read_text(), re.S)
    palette = colours(blocks[0]) | (colours(blocks[1]) if scheme == "dark" else {})
    pairs = [(ink, ground) for ink in ("ink", "dim", "accent") for ground in ("paper", "sheet", "soft")]
    pairs += [("accent", "tint"), ("ink", "tint"), ("on-accent", "accent")]
    pairs += [("warn", "warn-soft"), ("bad", "bad-soft"), ("warn", "sheet")]
    low = {pair: contrast(palette[pair[0]], palette[pair[1]]) for pair in pairs}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}
    # Edges of fields and bars: 3 is asked of what is no text.
    assert contrast(palette["edge"], palette["sheet"]) >= 2.9
    assert contrast(palette["bar"], palette["soft"]) >= 3
