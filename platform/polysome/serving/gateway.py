"""The gateway: HTTP in OpenAI's shape on one side, a model pool on the other; checks and limits between."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import polysome
from polysome.config import PolysomeError, ResourceError
from polysome.inference.engine import Conversation, Generation, Scores
from polysome.serving.config import ServeConfig
from polysome.serving.prediction import Backend, Sampling, predict, read_record, task_spec
from polysome.serving.protocol import ApiError, ChatRequest, PredictRequest, ScoreRequest, from_validation

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")


class Pool(Backend, Protocol):
    """What the gateway stands in front of."""

    async def ready(self) -> None:
        """Return when a token was generated.

        Raises:
            ResourceError: none could be.
        """
        ...


class _Bounded:
    """The pool for `/v1/predict`: this gateway asks it `at_once` questions at a time, so that requests of many records
    neither overflow the pool's queue nor shut out single questions."""

    def __init__(self, pool: Pool, at_once: int) -> None:
        self._pool, self._places = pool, asyncio.Semaphore(at_once)

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        async with self._places:
            return await self._pool.generate(conversation, sampling)

    async def score(self, conversation: Conversation, choices: Sequence[str]) -> Scores:
        async with self._places:
            return await self._pool.score(conversation, choices)


class Overloaded(PolysomeError):
    """The pool's queue is full."""


def create_api(config: ServeConfig, pool: Pool, *, fingerprint: str) -> FastAPI:
    """The ASGI application for one model.

    Args:
        config: limits and names.
        pool: answers.
        fingerprint: of the model folder, told with every answer.
    """
    api = FastAPI(title="Polysome", version=polysome.__version__, docs_url=None, redoc_url=None)
    api.add_middleware(_BodyLimit, limit=config.limits.body_bytes)
    _map_errors(api)
    created = int(time.time())
    system_fingerprint = f"fp_{fingerprint}"
    of_predictions = _Bounded(pool, max(1, config.max_queued_requests // 2))

    async def within_deadline(work: Awaitable[ResultT]) -> ResultT:
        try:
            return await asyncio.wait_for(work, timeout=config.request_timeout_seconds)
        except TimeoutError as error:
            raise ApiError(
                408,
                f"no answer within {config.request_timeout_seconds:g} s; ask for less at once, or later",
                code="timeout",
                # OpenAI's clients would otherwise ask the same again, twice.
                headers={"x-should-retry": "false"},
            ) from error

    def check_model(name: str | None) -> None:
        if name is not None and name != config.name:
            raise ApiError(404, f"no model {name!r}; this is {config.name!r}", code="model_not_found", param="model")

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The gateway's process lives."""
        return {"status": "ok"}

    @api.get("/readyz")
    async def readyz() -> dict[str, str]:
        """A replica generated a token lately."""
        await within_deadline(pool.ready())
        return {"status": "ready", "model": config.name}

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_card()]}

    @api.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        check_model(name)
        return model_card()

    def model_card() -> dict[str, Any]:
        return {
            "id": config.name,
            "object": "model",
            "created": created,
            "owned_by": "polysome",
            "fingerprint": system_fingerprint,
        }

    @api.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> dict[str, Any]:
        check_model(request.model)
        if request.stream:
            raise ApiError(400, "answers are not streamed; send stream: false", code="unsupported", param="stream")
        _at_most("messages", len(request.messages), config.limits.messages)
        wanted = request.max_tokens or request.max_completion_tokens
        if wanted:
            name = "max_tokens" if request.max_tokens else "max_completion_tokens"
            _at_most(name, wanted, config.limits.max_tokens)
        sampling = Sampling(
            wanted or config.limits.default_max_tokens, request.temperature, request.top_p, request.seed
        )
        conversation = [message.model_dump() for message in request.messages]
        generation = await within_deadline(pool.generate(conversation, sampling))
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": config.name,
            "system_fingerprint": system_fingerprint,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": generation.text},
                    "finish_reason": generation.finish_reason,
                    "logprobs": None,
                }
            ],
            "usage": {
                "prompt_tokens": generation.prompt_tokens,
                "completion_tokens": generation.completion_tokens,
                "total_tokens": generation.prompt_tokens + generation.completion_tokens,
            },
        }

    @api.post("/v1/score")
    async def score(request: ScoreRequest) -> dict[str, Any]:
        check_model(request.model)
        _at_most("messages", len(request.messages), config.limits.messages)
        _at_most("choices", len(request.choices), config.limits.choices)
        conversation = [message.model_dump() for message in request.messages]
        scores = await within_deadline(pool.score(conversation, request.choices))
        return {
            "object": "score",
            "model": config.name,
            "system_fingerprint": system_fingerprint,
            "sums": list(scores.sums),
            "tokens": list(scores.tokens),
        }

    @api.post("/v1/predict")
    async def predict_records(request: PredictRequest) -> dict[str, Any]:
        check_model(request.model)
        _at_most("sequences", len(request.sequences), config.limits.records)
        spec = task_spec(request.task)
        records = [read_record(spec, raw, where=f"sequences[{i}]") for i, raw in enumerate(request.sequences)]
        predictions = await within_deadline(
            predict(
                spec,
                records,
                of_predictions,
                prompt=config.prompt,
                max_new_tokens=config.limits.default_max_tokens,
            )
        )
        return {
            "object": "list",
            "task": spec.name,
            "model": config.name,
            "system_fingerprint": system_fingerprint,
            "calibrated": False,
            "predictions": [prediction.model_dump() for prediction in predictions],
        }

    return api


def _at_most(param: str, given: int, bound: int) -> None:
    if given > bound:
        raise ApiError(400, f"{param}: {given} is above the limit of {bound}", code="limit_exceeded", param=param)


def _map_errors(api: FastAPI) -> None:
    def respond(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers)

    @api.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return respond(error)

    @api.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return respond(from_validation(list(error.errors())))

    @api.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> JSONResponse:
        message = {404: f"no route {request.url.path}", 405: f"{request.method} is not allowed here"}
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return respond(ApiError(error.status_code, message.get(error.status_code, str(error.detail)), code=code))

    @api.exception_handler(PolysomeError)
    async def expected(request: Request, error: PolysomeError) -> JSONResponse:
        message = f"{error.what}; {error.fix}" if error.fix else error.what
        if isinstance(error, Overloaded):
            return respond(ApiError(429, message, code="overloaded", headers={"retry-after": "2"}))
        if isinstance(error, ResourceError):
            return respond(ApiError(503, message, code="unavailable", headers={"retry-after": "5"}))
        if error.exit_code == 2:
            return respond(ApiError(400, message, code="invalid_value", param=error.where or None))
        return respond(ApiError(408, message, code="timeout", headers={"x-should-retry": "false"}))

    @api.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        request_id = _request_id(request)
        log.error("request %s failed", request_id, exc_info=error)
        return respond(
            ApiError(500, f"internal error; tell the operators the request id {request_id}", code="internal_error")
        )


def _request_id(request: Request) -> str:
    """The id that Serve's proxy gave the request or took from the caller; one of our own where that is not plain."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.match(given) else uuid.uuid4().hex


class _BodyLimit:
    """Reads the body up to a limit before anything is parsed; counted as it comes, whatever its length header says."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        pieces: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            more = message.get("more_body", False)
            if size > self._limit:
                error = ApiError(413, f"the body is larger than {self._limit} bytes", code="body_too_large")
                await JSONResponse(error.body(), status_code=413)(scope, receive, send)
                return
        body: bytes | None = b"".join(pieces)

        async def replay() -> MutableMapping[str, Any]:
            nonlocal body
            if body is None:
                return await receive()
            whole, body = body, None
            return {"type": "http.request", "body": whole, "more_body": False}

        await self._app(scope, replay, send)
