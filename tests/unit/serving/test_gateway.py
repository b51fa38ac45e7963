"""The gateway without Ray: how failures are told, whether it lives and is ready, and what it says of itself."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fake_pool import FakePool
from recorded_meters import recorded

from polysome.config import ConfigurationError, DataError, PolysomeError, ResourceError
from polysome.serving import readiness
from polysome.serving.calls import Expired, Overloaded
from polysome.serving.config import ServeConfig
from polysome.serving.context import Context
from polysome.serving.gateway import create_api

CHAT = {"model": "polysome", "messages": [{"role": "user", "content": "Is there a promoter?"}]}
IMPATIENT = ServeConfig(model="unused", request_timeout_seconds=2)


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


def probes(pool: FakePool, *askings: tuple[float, int]) -> list[tuple[int, int]]:
    """At each of the times so many ask at once: how many heard that it is ready, and the pool's calls until then."""

    async def work() -> list[tuple[int, int]]:
        found = []
        asked = readiness.Readiness(Context(IMPATIENT, pool, "0" * 16))
        for at, many in askings:
            clock.monotonic = lambda at=at: at
            told = await asyncio.gather(*(asked.require() for _ in range(many)), return_exceptions=True)
            found.append((told.count(None), len(pool.calls)))
        return found

    clock = SimpleNamespace(monotonic=time.monotonic)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readiness, "time", clock)
        return asyncio.run(work())


def test_a_probe_answers_all_who_ask_within_ten_seconds_and_a_failure_for_one():
    assert probes(FakePool(seconds=0.01), (100, 50), (109.9, 50), (110.1, 1)) == [(50, 1), (50, 1), (1, 2)]
    broken = FakePool(seconds=0.01, error=ResourceError("no token"))
    assert probes(broken, (100, 50), (100.9, 50), (101.1, 1)) == [(0, 1), (0, 1), (0, 2)]
    assert probes(FakePool(error=RuntimeError("unexpected")), (100, 50)) == [(0, 1)]


def test_a_full_queue_is_ready_and_a_probe_without_an_end_is_not():
    assert ask(FakePool(error=Overloaded("full")), "/readyz").status_code == 200
    assert ask(FakePool(seconds=5), "/readyz").status_code == 408


@pytest.mark.parametrize(
    ("where", "param"), [("", None), ("task", "task"), ("sequences[1].rna", "sequences[1].rna"), ("text 3", "text 3")]
)
def test_what_is_wrong_with_a_request_is_told_with_its_place(where, param):
    answer = ask(FakePool(error=DataError("too long", where=where, fix="shorten it")), json=CHAT)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert answer.json()["error"]["message"] == "too long; shorten it"


@pytest.mark.parametrize("where", ["/data/secret/x.json", "s3://secret/x", "--secret", "SECRET_TOKEN, SECRET_PATH"])
@pytest.mark.parametrize(
    ("kind", "status"), [(DataError, 500), (ConfigurationError, 500), (ResourceError, 503)], ids=lambda kind: str(kind)
)
def test_what_is_wrong_with_the_server_is_its_fault_and_its_places_stay_in_the_log(where, kind, status, caplog):
    failure = kind(f"not JSON: {where}", where=where, fix=f"mend {where}")
    answer = ask(FakePool(error=failure), json=CHAT, headers={"x-request-id": "abc-1"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, None)
    assert "secret" not in answer.text.lower()
    assert "abc-1" in caplog.text
    assert where in caplog.text


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (FakePool(seconds=5), "expired"),
        (FakePool(error=Expired("late")), "expired"),
        (FakePool(error=Overloaded("full")), "overloaded"),
    ],
)
def test_a_refusal_is_counted_by_its_reason_the_gateways_own_deadline_too(pool, reason):
    with recorded() as measured:
        ask(pool, json=CHAT)
    assert measured["polysome_rejected_total"] == {(reason,): [1]}


def test_the_document_tells_every_operations_errors_as_they_are():
    document = ask(FakePool(), "/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) >= 8
    for operation in operations:
        assert {"4XX", "5XX"} < set(operation["responses"])
        assert "422" not in operation["responses"]
