"""The gateway without Ray: how failures are told, whether it lives and is ready, and what it says of itself."""

import asyncio
from typing import Any

import httpx
import pytest
from fake_pool import FakePool

from polysome.config import ConfigurationError, DataError, PolysomeError, ResourceError
from polysome.serving.calls import Expired, Overloaded
from polysome.serving.config import ServeConfig
from polysome.serving.context import Context
from polysome.serving.gateway import create_api

CHAT = {"model": "polysome", "messages": [{"role": "user", "content": "Is there a promoter?"}]}
IMPATIENT = ServeConfig(model="unused", request_timeout_seconds=0.2)


def ask(pool: FakePool, path: str = "/v1/chat/completions", *, method: str = "", **request: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        # As Serve does: what the application raises has been answered with a 500 by its own handler.
        transport = httpx.ASGITransport(create_api(Context(IMPATIENT, pool, "0" * 16)), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method or ("POST" if request else "GET"), path, **request)

    return asyncio.run(call())


@pytest.mark.parametrize(
    ("pool", "status", "code", "kind", "header"),
    [
        (FakePool(seconds=5), 408, "timeout", "server_error", ("x-should-retry", "false")),
        (FakePool(error=Expired("late")), 408, "timeout", "server_error", ("x-should-retry", "false")),
        (FakePool(error=Overloaded("full")), 429, "overloaded", "rate_limit_error", ("retry-after", "2")),
        (FakePool(error=ResourceError("gone")), 503, "unavailable", "server_error", ("retry-after", "5")),
        (FakePool(error=DataError("too long")), 400, "invalid_value", "invalid_request_error", None),
        (FakePool(error=ConfigurationError("bad adapter")), 400, "invalid_value", "invalid_request_error", None),
        (FakePool(error=DataError("half a character: \ud800")), 400, "invalid_value", "invalid_request_error", None),
        (FakePool(error=PolysomeError("else")), 500, "internal_error", "server_error", None),
    ],
)
def test_what_goes_wrong_in_the_pool_is_told_in_openais_shape(pool, status, code, kind, header):
    answer = ask(pool, json=CHAT)
    assert answer.status_code == status
    told = answer.json()["error"]
    assert (told["code"], told["type"]) == (code, kind)
    assert set(told) == {"message", "type", "param", "code"}
    if header:
        assert answer.headers[header[0]] == header[1]
    assert pool.running == 0


def test_an_unexpected_error_tells_an_id_and_nothing_else():
    answer = ask(FakePool(error=RuntimeError("secret path /home/x")), json=CHAT, headers={"x-request-id": "abc-1"})
    assert answer.status_code == 500
    assert "abc-1" in answer.text
    assert "secret" not in answer.text


def test_not_ready_is_a_503_while_the_process_is_alive():
    broken = FakePool(error=ResourceError("no token"))
    assert ask(broken, "/readyz").status_code == 503
    assert ask(broken, "/healthz").status_code == 200
    assert ask(FakePool(), "/readyz").json() == {"status": "ready", "model": "polysome"}


def test_the_document_tells_every_operations_errors_as_they_are():
    document = ask(FakePool(), "/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) >= 8
    for operation in operations:
        assert {"4XX", "5XX"} < set(operation["responses"])
        assert "422" not in operation["responses"]
