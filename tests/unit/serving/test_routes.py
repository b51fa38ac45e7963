"""Every route of the gateway: in the table with its scope, refused without a key, and refused with a key of another."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake_pool import FakePool
from fastapi import FastAPI

from polysome.serving import keys
from polysome.serving.access import Access, Guard
from polysome.serving.config import Limits, ServeConfig
from polysome.serving.context import Context
from polysome.serving.gateway import create_api
from polysome.serving.routes import ROUTES, routes_at

OPEN = {"/healthz", "/readyz", "/", "/chat", "/models", "/evaluations", "/jobs", "/static/{}"}
SCOPES = ("infer", "batch", "submit")


def shape(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def walked(api: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of every route; whatever is no plain route is not known here and fails."""
    for route in api.routes:
        methods = getattr(route, "methods", None)
        assert methods, f"{route} has no methods"
        yield from ((method, route.path) for method in methods if method != "HEAD")


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def api(pool: FakePool) -> FastAPI:
    return create_api(Context(ServeConfig(model="unused"), pool, "0" * 16))


def test_the_table_opens_nothing_but_health_and_pages():
    assert {shape(route.path) for route in ROUTES if route.scope is None} == OPEN
    assert all(route.method == "GET" for route in ROUTES if route.scope is None)
    assert len({(route.method, shape(route.path)) for route in ROUTES}) == len(ROUTES)
    for route in ROUTES:
        assert routes_at(route.path.replace("{", "").replace("}", ""))[route.method] is route


def test_every_route_is_in_the_table_and_refused_without_its_scope(api: FastAPI, pool: FakePool, tmp_path: Path):
    store = str(tmp_path / "private" / "keys.json")
    texts = {name: keys.create(store, team="lab", scopes=[name], expires=None)[1] for name in SCOPES}
    guard = Guard(api, Access(Limits(), keys.KeyRing(store)))

    async def ask() -> dict[tuple[str, str], list[int]]:
        transport = httpx.ASGITransport(guard, raise_app_exceptions=False)
        answered: dict[tuple[str, str], list[int]] = {}
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            for method, path in walked(api):
                url = re.sub(r"\{[^}]*\}", "x", path)
                found = routes_at(url).get(method)
                assert found is not None, f"{method} {path} is not in polysome.serving.routes"
                assert shape(found.path) == shape(path)
                given = [{}, *({"authorization": f"Bearer {texts[name]}"} for name in SCOPES if name != found.scope)]
                answers = [await client.request(method, url, headers=headers) for headers in given]
                answered[method, shape(path)] = [answer.status_code for answer in answers]
        return answered

    answered = asyncio.run(ask())
    assert ("POST", "/v1/chat/completions") in answered
    assert ("GET", "/openapi.json") in answered
    for (_, path), statuses in answered.items():
        if path in OPEN:
            assert not {401, 403} & set(statuses), path
        else:
            assert statuses == [401, 403, 403], path
    assert {method for method, _ in pool.calls} <= {"ready"}
