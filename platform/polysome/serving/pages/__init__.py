"""The web pages: documents that hold no data, and the style sheet and modules that fill them from the API.

A page keeps nothing at the server: whichever gateway answers the next request, it goes on. The key that a person enters
stays in the browser's tab.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import polysome
from polysome.serving.context import Context
from polysome.serving.protocol import ApiError

PAGES = {
    "/": ("predict", "Predict"),
    "/chat": ("chat", "Chat"),
    "/models": ("models", "Models"),
    "/evaluations": ("evaluations", "Evaluations"),
    "/jobs": ("jobs", "Jobs"),
}
"""Path of every page, the name of its template and module, and its title."""

_HERE = Path(__file__).parent
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def router(context: Context) -> APIRouter:
    """The pages and `/static/*`. They are open to anybody: what they show comes from the API, with the key."""
    routes = APIRouter(include_in_schema=False)
    static = {path.name: _file(path.name, path.read_bytes()) for path in (_HERE / "static").iterdir() if path.is_file()}

    for path, (name, title) in PAGES.items():
        routes.get(path)(_page(_file("page.html", _render(name, title, context).encode())))

    @routes.get("/static/{name:path}")
    async def asset(name: str, request: Request) -> Response:
        if name not in static:
            raise ApiError(404, f"no file {name!r}", code="not_found")
        return _answer(static[name], request)

    return routes


def _page(document: _File) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return _answer(document, request)

    return page


def _render(name: str, title: str, context: Context) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html.j2").render(
        name=name,
        title=title,
        pages=PAGES,
        version=polysome.__version__,
        settings=json.dumps(_settings(context)),
    )


def _settings(context: Context) -> dict[str, object]:
    """What the modules need to know before anything is asked: bounds, and which parts this server has."""
    config = context.config
    return {
        "records": config.limits.records,
        "sequenceCharacters": config.limits.sequence_characters,
        "batchBytes": config.limits.batch_bytes,
        "batches": config.batches is not None,
        "messages": config.limits.messages,
        "maxTokens": config.limits.max_tokens,
        "defaultMaxTokens": config.limits.default_max_tokens,
        "jobs": context.jobs is not None,
        "runs": context.runs is not None,
    }


def _file(name: str, content: bytes) -> _File:
    media_type = f"{_MEDIA_TYPES[Path(name).suffix]}; charset=utf-8"
    return _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:24]}"')


def _answer(file: _File, request: Request) -> Response:
    # Kept by the browser and asked for again each time: a new version is seen at once, an old one costs no bytes.
    headers = {"cache-control": "no-cache", "etag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
