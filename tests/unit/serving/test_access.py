"""The guard before every route: who comes in, how much, and what is said of it; against an application of one line."""

import asyncio
import hashlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from polysome.config import ConfigurationError, DataError
from polysome.serving import checks, keys
from polysome.serving.access import Access, Guard
from polysome.serving.config import Limits, ServeConfig

LIMITS = Limits(body_bytes=2048, batch_bytes=8192)


async def echo(request: Request) -> Response:
    caller = request.state.caller
    body = await request.body()
    return JSONResponse(
        {
            "team": caller.team,
            "scopes": sorted(caller.scopes),
            "length": len(body),
            "request": request.headers.getlist("x-request-id"),
        }
    )


async def page(request: Request) -> Response:
    return PlainTextResponse("page", headers={"content-security-policy": "sandbox"})


async def boom(request: Request) -> Response:
    raise RuntimeError("not expected")


APP = Starlette(
    routes=[
        Route("/v1/score", echo, methods=["POST"]),
        Route("/v1/models", echo),
        Route("/v1/models/{name}", echo),
        Route("/v1/predict/batch", echo, methods=["POST"]),
        Route("/v1/jobs", echo, methods=["GET", "POST"]),
        Route("/v1/evaluations/{id}/report", page),
        Route("/v1/predict", boom, methods=["POST"]),
        Route("/healthz", page),
        # In the application and not in the table.
        Route("/v1/forgotten", echo),
        Route("/debug", page),
    ]
)


class Ring:
    """Keys in a file, by what they are for."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "private" / "keys.json")
        self.texts: dict[str, str] = {}
        for scope in ("infer", "batch", "submit", "admin"):
            _, self.texts[scope] = keys.create(self.path, team=f"{scope}-lab", scopes=[scope], expires=None)

    def header(self, scope: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.texts[scope]}"}


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(tmp_path)


class Client:
    """Asks a guard, one event loop for all of a test's questions."""

    def __init__(self, access: Access, *, client: str = "127.0.0.1", host: str = "localhost:8000") -> None:
        self.rejected: list[str] = []
        self.guard = Guard(APP, access, self.rejected.append)
        self._client, self._host = client, host

    def __call__(self, method: str, path: str, **request: Any) -> httpx.Response:
        return self.all((method, path, request))[0]

    def all(self, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx.Response]:
        async def run() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.guard, client=(self._client, 5))
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{self._host}") as client:
                return await asyncio.gather(*(client.request(method, path, **rest) for method, path, rest in requests))

        return asyncio.run(run())


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture
def ask(ring: Ring) -> Client:
    return Client(Access(LIMITS, keys.KeyRing(ring.path)))


def test_a_key_is_asked_for_and_its_scope(ask, ring):
    assert ask("GET", "/healthz").status_code == 200
    missing = ask("GET", "/v1/models")
    assert code(missing) == (401, "invalid_api_key")
    assert missing.headers["www-authenticate"] == "Bearer"
    good = ring.header("infer")
    assert ask("GET", "/v1/models", headers=good).json()["team"] == "infer-lab"
    for wrong in (
        {"authorization": ring.texts["infer"]},
        {"authorization": f"Basic {ring.texts['infer']}"},
        {"authorization": f"{good['authorization']}x"},
        {"x-api-key": ring.texts["infer"]},
        [("authorization", good["authorization"])] * 2,
    ):
        assert code(ask("GET", "/v1/models", headers=wrong)) == (401, "invalid_api_key"), wrong
    assert ask("GET", f"/v1/models?key={ring.texts['infer']}").status_code == 401
    assert code(ask("POST", "/v1/jobs", headers=good)) == (403, "insufficient_scope")
    assert ask("POST", "/v1/jobs", headers=ring.header("submit")).json()["scopes"] == ["submit"]
    admin = ask("POST", "/v1/jobs", headers=ring.header("admin")).json()
    assert admin["scopes"] == ["admin", "batch", "infer", "submit"]
    assert ask.rejected == ["key"] * 7 + ["scope"]


@pytest.mark.parametrize(
    "path", ["/v1/forgotten", "/debug", "/v1/models/", "//v1/models", "/V1/models", "/v1/models/a/b", "/healthz%0A"]
)
def test_what_the_table_does_not_name_is_not_there(ask, ring, path):
    url = f"http://localhost:8000{path}"
    assert ask("GET", url).status_code == 401
    assert code(ask("GET", url, headers=ring.header("admin"))) == (404, "not_found")


def test_a_method_that_the_table_does_not_name_is_refused(ask, ring):
    for method in ("DELETE", "OPTIONS", "PUT"):
        answer = ask(method, "/v1/jobs", headers=ring.header("admin"))
        assert code(answer) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, POST"
        assert ask(method, "/v1/jobs").status_code == 401


def test_a_revoked_key_and_an_unreadable_file_end_access_at_once(ask, ring):
    keys.revoke(ring.path, ring.texts["infer"])
    assert ask("GET", "/v1/models", headers=ring.header("infer")).status_code == 401
    os.chmod(ring.path, 0o644)
    assert code(ask("GET", "/v1/models", headers=ring.header("admin"))) == (503, "unavailable")
    assert ask("GET", "/healthz").status_code == 200


def test_every_answer_has_security_headers_and_none_allows_another_origin(ask, ring):
    origin = {"origin": "https://elsewhere.example"}
    for answer in (
        ask("GET", "/v1/models", headers=ring.header("infer") | origin),
        ask("GET", "/v1/models", headers=origin),
        ask("GET", "/nothing"),
    ):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in answer.headers)
    own = ask("GET", "/v1/evaluations/x/report", headers=ring.header("infer"))
    assert own.headers.get_list("content-security-policy") == ["sandbox"]
    assert "cache-control" not in ask("GET", "/healthz").headers


async def pieces(count: int, size: int = 1000) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size


def test_a_body_is_counted_as_it_comes_whatever_it_claims(ask, ring):
    infer, batch = ring.header("infer"), ring.header("batch")
    assert ask("POST", "/v1/score", headers=infer, content=b" " * 2048).json()["length"] == 2048
    assert code(ask("POST", "/v1/score", headers=infer, content=b" " * 2049)) == (413, "body_too_large")
    assert code(ask("POST", "/v1/score", headers=infer, content=pieces(3))) == (413, "body_too_large")
    huge = infer | {"content-length": "9" * 30}
    assert code(ask("POST", "/v1/score", headers=huge, content=b"")) == (413, "body_too_large")
    assert ask("POST", "/v1/predict/batch", headers=batch, content=pieces(8)).json()["length"] == 8000
    assert code(ask("POST", "/v1/predict/batch", headers=batch, content=pieces(9))) == (413, "body_too_large")
    assert ask.rejected == ["body"] * 4


def test_a_keys_rate_is_bounded_and_grows_back(ring, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("polysome.serving.access.time.monotonic", lambda: now[0])
    ask = Client(Access(Limits(requests_per_minute=3), keys.KeyRing(ring.path)))

    def statuses(scope: str, count: int) -> list[int]:
        return [ask("GET", "/v1/models", headers=ring.header(scope)).status_code for _ in range(count)]

    assert statuses("infer", 3) == [200] * 3
    refused = ask("GET", "/v1/models", headers=ring.header("infer"))
    assert code(refused) == (429, "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "20"
    # Another key's share is its own.
    assert statuses("admin", 1) == [200]
    now[0] += 20
    assert statuses("infer", 2) == [200, 429]
    now[0] += 3600
    assert statuses("infer", 4) == [200, 200, 200, 429]
    assert ask.rejected == ["rate"] * 3


def test_a_keys_requests_at_once_are_bounded_and_each_gives_its_place_back(ring):
    access = Access(Limits(requests_at_once=2), keys.KeyRing(ring.path))
    ask = Client(access)
    started, free = 0, asyncio.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        nonlocal started
        started += 1
        if started == 3:
            free.set()
        await free.wait()
        await PlainTextResponse("done")(scope, receive, send)

    def refused(reason: str) -> None:
        ask.rejected.append(reason)
        free.set()

    ask.guard = Guard(wait, access, refused)
    request = ("GET", "/v1/models", {"headers": ring.header("infer")})
    answers = ask.all(request, request, request)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
    third = next(answer for answer in answers if answer.status_code == 429)
    assert code(third) == (429, "concurrency_limit_exceeded")
    assert third.headers["retry-after"] == "1"
    assert [answer.status_code for answer in ask.all(request, request)] == [200, 200]
    assert ask.rejected == ["concurrency"]


def test_a_failure_gives_its_place_back_and_is_logged_as_500(ring, caplog):
    ask = Client(Access(Limits(requests_at_once=1), keys.KeyRing(ring.path)))
    with caplog.at_level(logging.INFO, logger="polysome.serving.access"):
        for _ in range(2):
            with pytest.raises(RuntimeError):
                ask("POST", "/v1/predict", headers=ring.header("infer"))
    assert [" 500 " in line for line in caplog.messages] == [True, True]


def test_a_stream_passes_through_piece_by_piece(ring):
    sent: list[Any] = []
    seen: list[int] = []

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
            seen.append(len(sent))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(b"authorization", ring.header("infer")["authorization"].encode())],
    }
    asyncio.run(Guard(stream, Access(LIMITS, keys.KeyRing(ring.path)))(scope, receive, send))
    assert seen == [2, 3, 4]
    assert [message.get("body") for message in sent[1:]] == [b"0", b"1", b"2", b""]


def test_a_request_id_is_kept_if_it_is_plain_and_replaced_if_not(ask, ring):
    def ids(*given: str) -> tuple[list[str], str | None]:
        headers = [*ring.header("infer").items(), *(("x-request-id", value) for value in given)]
        answer = ask("GET", "/v1/models", headers=headers)
        return answer.json()["request"], answer.headers.get("x-request-id")

    assert ids("abc-1.2_3") == (["abc-1.2_3"], None)
    for given in [(), ("<script>",), ("a" * 65,), ("a\tb",), ("one", "two")]:
        seen, told = ids(*given)
        assert seen == [told]
        assert told not in given
        assert len(told) == 32


def test_the_log_tells_a_bodys_length_and_hash_and_never_its_text(ask, ring, caplog):
    body = b'{"sequences": ["ACGTACGTACGT"]}'
    with caplog.at_level(logging.INFO, logger="polysome.serving.access"):
        ask("POST", "/v1/score?note=ACGTTT", headers=ring.header("infer"), content=body)
        ask("GET", "/v1/models/ACGTTT", headers=ring.header("infer"))
        ask("GET", "/ACGTTT")
    first, second, third = caplog.messages
    assert first.startswith("POST /v1/score 200 ")
    assert f"body={len(body)} sha256={hashlib.sha256(body).hexdigest()[:16]}" in first
    assert f"key={ring.texts['infer'][4:16]} team=infer-lab" in first
    assert second.startswith("GET /v1/models/{id} 200 ")
    assert third.startswith("GET - 401 ")
    assert "ACGT" not in caplog.text
    assert ring.texts["infer"][17:] not in caplog.text


@pytest.mark.parametrize(
    ("client", "host", "status"),
    [
        ("127.0.0.1", "localhost:8000", 200),
        ("::1", "[::1]:8000", 200),
        ("::ffff:127.0.0.1", "127.0.0.1", 200),
        ("10.0.0.7", "localhost:8000", 403),
        # A name of the web that its owner lets point to this machine.
        ("127.0.0.1", "rebound.example:8000", 403),
        ("127.0.0.1", "localhost.rebound.example", 403),
    ],
)
def test_without_keys_this_machine_alone_is_answered(client, host, status):
    ask = Client(Access.of(ServeConfig(model="m")), client=client, host=host)
    assert ask("GET", "/v1/models").status_code == status
    assert ask("GET", "/healthz").status_code == 200


def test_a_websocket_is_closed_and_a_lifespan_passes(ring):
    sent: list[Any] = []
    passed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["type"])

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    guard = Guard(app, Access(LIMITS))
    asyncio.run(guard({"type": "websocket", "path": "/", "headers": []}, receive, send))
    asyncio.run(guard({"type": "lifespan"}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert passed == ["lifespan"]


def test_without_keys_only_a_loopback_host_is_served(ring, tmp_path):
    for host in ("0.0.0.0", "::", "10.0.0.7", "models.example"):
        config = ServeConfig(model=str(tmp_path), host=host)
        with pytest.raises(ConfigurationError, match="without keys"):
            checks.resolved(config)
        # With keys the next question is the model's.
        with pytest.raises(DataError, match=r"no config\.json"):
            checks.resolved(config.model_copy(update={"keys": ring.path}))
    for host in ("127.0.0.1", "localhost", "::1"):
        with pytest.raises(DataError, match=r"no config\.json"):
            checks.resolved(ServeConfig(model=str(tmp_path), host=host))
    os.chmod(ring.path, 0o644)
    with pytest.raises(ConfigurationError, match="mode 0644"):
        checks.resolved(ServeConfig(model=str(tmp_path), keys=ring.path))


def test_an_expired_key_is_refused_in_words_that_tell_nothing(ask, ring):
    _, text = keys.create(ring.path, team="lab", scopes=["infer"], expires=datetime.now(UTC) - timedelta(seconds=1))
    late = ask("GET", "/v1/models", headers={"authorization": f"Bearer {text}"})
    never = ask("GET", "/v1/models", headers={"authorization": f"Bearer {text[:-1]}A"})
    assert json.loads(late.content) == json.loads(never.content)
    assert late.status_code == never.status_code == 401


def test_a_body_that_comes_too_slowly_is_refused_and_its_place_is_free(ring):
    ask = Client(Access(Limits(requests_at_once=1), keys.KeyRing(ring.path), body_seconds=1.0))

    async def slow(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b" "
            await asyncio.sleep(0.05)

    infer = ring.header("infer")
    began = time.monotonic()
    late = ask("POST", "/v1/score", headers=infer, content=slow(200))
    assert code(late) == (408, "timeout")
    assert "did not come within 1 s" in late.json()["error"]["message"]
    assert late.headers["x-should-retry"] == "false"
    assert time.monotonic() - began < 8
    assert ask.rejected == ["expired"]
    assert ask("POST", "/v1/score", headers=infer, content=slow(2)).json()["length"] == 2


def test_the_time_of_a_body_is_not_that_of_its_answer(ring):
    async def thinks(scope: Any, receive: Any, send: Any) -> None:
        body = await Request(scope, receive).body()
        gone = asyncio.create_task(receive())
        await asyncio.sleep(0.3)
        assert not gone.done()
        gone.cancel()
        await PlainTextResponse(body)(scope, receive, send)

    async def receive() -> dict[str, Any]:
        if sent:
            await asyncio.sleep(60)
        sent.append(1)
        return {"type": "http.request", "body": b"ACGT", "more_body": False}

    async def send(message: Any) -> None:
        told.append(message)

    sent: list[int] = []
    told: list[Any] = []
    authorization = ring.header("infer")["authorization"].encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": [(b"authorization", authorization)]}
    access = Access(LIMITS, keys.KeyRing(ring.path), body_seconds=0.1)
    asyncio.run(Guard(thinks, access)(scope, receive, send))
    assert (told[0]["status"], told[1]["body"]) == (200, b"ACGT")
