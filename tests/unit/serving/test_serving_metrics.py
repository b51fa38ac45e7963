"""What the gateway and a replica measure, and that nothing a client chooses becomes a label."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress
from types import SimpleNamespace

import httpx
import pytest
from fake_pool import FakePool
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from recorded_meters import Measured, recorded

from polysome.config import ResourceError
from polysome.inference.asynchronous import Delta, Load
from polysome.inference.engine import Generation
from polysome.serving import metrics
from polysome.serving.config import ServeConfig
from polysome.serving.context import Context
from polysome.serving.gateway import create_api


@pytest.fixture
def measured() -> Iterator[Measured]:
    with recorded() as found:
        yield found


def api() -> FastAPI:
    router = APIRouter()

    @router.get("/v1/things/{thing}")
    async def thing(thing: str) -> dict[str, str]:
        if thing == "broken":
            raise RuntimeError("broken")
        metrics.name_target("base", "kinase@2")
        return {}

    @router.get("/v1/blocking")
    def blocking() -> dict[str, str]:
        metrics.name_target("base")
        return {}

    @router.get("/v1/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"1"
            await asyncio.sleep(0.05)
            yield b"2"

        return StreamingResponse(pieces())

    made = FastAPI()
    made.include_router(router)

    @made.middleware("http")
    async def keys(request: Request, call_next):  # type: ignore[no-untyped-def]
        if "refused" in request.url.path:
            return JSONResponse({}, status_code=401)
        return await call_next(request)

    made.add_middleware(metrics.Requests)
    return made


async def get(*paths: str) -> None:
    transport = httpx.ASGITransport(api(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in paths:
            await client.get(path)


def test_requests_count_by_route_model_and_code(measured: Measured) -> None:
    asyncio.run(get("/v1/things/1", "/v1/things/2", "/v1/things/broken", "/v1/blocking", "/nowhere/4f2", "/refused/9a"))
    requests = {labels: len(told) for labels, told in measured["polysome_requests_total"].items()}
    assert requests == {
        ("base", "kinase@2", "/v1/things/{thing}", "200"): 2,
        ("", "", "/v1/things/{thing}", "500"): 1,
        ("base", "", "/v1/blocking", "200"): 1,
        ("", "", "other", "404"): 1,
        ("", "", "other", "401"): 1,
    }
    assert measured["polysome_e2e_seconds"].keys() == requests.keys()


def test_a_streams_time_ends_with_its_last_byte(measured: Measured) -> None:
    asyncio.run(get("/v1/stream"))
    [[seconds]] = measured["polysome_e2e_seconds"].values()
    assert seconds >= 0.05


def test_a_client_that_leaves_is_told_apart(measured: Measured) -> None:
    async def leave() -> None:
        async def slow(scope: object, receive: object, send: object) -> None:
            await asyncio.sleep(60)

        task = asyncio.create_task(metrics.Requests(slow)({"type": "http"}, None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert list(measured["polysome_requests_total"]) == [("", "", "other", "499")]


def test_naming_a_target_outside_a_request_does_nothing(measured: Measured) -> None:
    metrics.name_target("base")
    assert not measured


class Answer:
    """Pieces, each after some seconds of the test's clock; remembers that it was closed."""

    def __init__(self, *pieces: tuple[float, Delta]) -> None:
        self.closed, self.clock = False, 100.0
        self._pieces = pieces

    async def stream(self) -> AsyncGenerator[Delta, None]:
        try:
            for seconds, piece in self._pieces:
                self.clock += seconds
                yield piece
        finally:
            self.closed = True


WHOLE = Generation("ACGT", prompt_tokens=7, completion_tokens=5, finish_reason="stop")


async def joined(answer: Answer) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: answer.clock))
        found = [piece.text async for piece in metrics.observed(answer.stream(), model="base", adapter="kinase@2")]
    return "".join(found)


def test_an_answer_is_measured_and_passed_on_as_it_is(measured: Measured) -> None:
    answer = Answer((3.0, Delta("AC")), (1.0, Delta("GT")), (1.0, Delta("", WHOLE)))
    assert asyncio.run(joined(answer)) == "ACGT"
    label = ("base", "kinase@2")
    assert measured == {
        "polysome_ttft_seconds": {label: [3.0]},
        # Two seconds over the four tokens after the first.
        "polysome_tpot_seconds": {label: [0.5]},
        "polysome_prompt_tokens_total": {label: [7]},
        "polysome_generation_tokens_total": {label: [5]},
    }


def test_an_answer_in_one_piece_has_no_time_per_token(measured: Measured) -> None:
    asyncio.run(joined(Answer((2.0, Delta("ACGT", WHOLE)))))
    assert measured["polysome_ttft_seconds"] == {("base", "kinase@2"): [2.0]}
    assert "polysome_tpot_seconds" not in measured


def test_giving_up_an_answer_closes_it(measured: Measured) -> None:
    answer = Answer((0.0, Delta("A")), (1.0, Delta("C")))

    async def give_up() -> None:
        pieces = metrics.observed(answer.stream(), model="base")
        await anext(pieces)
        await pieces.aclose()

    asyncio.run(give_up())
    assert answer.closed
    assert "polysome_generation_tokens_total" not in measured


def test_a_replica_tells_its_load_and_its_adapters(measured: Measured) -> None:
    replica = metrics.Replica("base")
    replica.tell(Load(running=3, waiting=2))
    replica.tell(Load(running=0, waiting=0, cache_used=0.25))
    with replica.loading_adapter("kinase@2"):
        pass
    with pytest.raises(OSError, match="gone"), replica.loading_adapter("kinase@3"):
        raise OSError("gone")
    replica.restarted()
    assert measured["polysome_running"] == {("base",): [3, 0]}
    assert measured["polysome_queue_depth"] == {("base",): [2, 0]}
    assert measured["polysome_kv_blocks_used_ratio"] == {("base",): [0.25]}
    assert measured["polysome_adapter_loads_total"] == {("base", "kinase@2"): [1]}
    assert len(measured["polysome_adapter_load_seconds"][("base",)]) == 1
    assert measured["polysome_engine_restarts_total"] == {("base",): [1]}


def test_refusals_count_by_reason(measured: Measured) -> None:
    for _ in range(2):
        metrics.rejected("rate")
    assert measured["polysome_rejected_total"] == {("rate",): [1, 1]}


@pytest.mark.parametrize(
    ("failure", "code"), [(ResourceError("gone"), "503"), (RuntimeError("broken"), "500"), (None, "200")]
)
def test_a_stream_that_broke_counts_as_its_error_says(measured: Measured, failure: Exception | None, code: str) -> None:
    context = Context(ServeConfig(model="unused"), FakePool("Yes.", error=failure, pieces=2), "0" * 16)

    async def call() -> None:
        transport = httpx.ASGITransport(metrics.Requests(create_api(context)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asked = {"model": "polysome", "prompt": "ACGT", "stream": True}
            assert (await client.post("/v1/completions", json=asked)).status_code == 200

    asyncio.run(call())
    assert list(measured["polysome_requests_total"]) == [("polysome", "", "/v1/completions", code)]
