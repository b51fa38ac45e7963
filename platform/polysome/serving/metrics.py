"""What serving measures: requests, first tokens, tokens, queues and adapters, as meters that Ray exports to Prometheus.

Labels are few and bounded: `model` and `adapter` (`name@version`, empty for the base) as resolved, never as a client
wrote them; `endpoint`, the route's template; `code`; `reason`. No key, no request id.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from polysome.data.meters import Usage, counter, gauge, histogram

if TYPE_CHECKING:
    from polysome.inference.asynchronous import Delta, Load

Reason = Literal["overloaded", "expired", "unavailable", "rate", "concurrency", "body", "key", "scope"]
"""Why a request was refused: a full queue, its deadline, no replica; a key's bounds; the body's size; no valid key, or
one without the scope."""

_REQUEST_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)
_LOAD_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass
class _Asked:
    model: str = ""
    adapter: str = ""
    broke: int | None = None


_asked: ContextVar[_Asked | None] = ContextVar("asked", default=None)


class Requests:
    """ASGI middleware, the outermost: `requests_total{model,adapter,endpoint,code}` and `e2e_seconds` of the same.

    A request that is refused before it is routed counts as endpoint `other`; one whose client left before anything was
    answered as code 499; a stream that broke as the code of its error event.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        asked = _Asked()
        outer = _asked.set(asked)
        code = 499

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            # It becomes an answer further out.
            code = 500
            raise
        finally:
            _asked.reset(outer)
            endpoint = getattr(scope.get("route"), "path", "other")
            _count_request(asked, endpoint, asked.broke or code, time.monotonic() - began)


def name_target(model: str, adapter: str = "") -> None:
    """Say which model answers the request that is being served, for its labels; elsewhere nothing happens."""
    asked = _asked.get()
    if asked is not None:
        asked.model, asked.adapter = model, adapter


def name_break(code: int) -> None:
    """Say with what code the stream that is being sent ended after it had begun with 200."""
    asked = _asked.get()
    if asked is not None:
        asked.broke = code


async def observed(pieces: AsyncIterator[Delta], *, model: str, adapter: str = "") -> AsyncGenerator[Delta, None]:
    """Pass an answer's pieces on and measure them: `ttft_seconds`, `tpot_seconds`, and at the end
    `prompt_tokens_total` and `generation_tokens_total`.

    Time runs from the first look at the answer. Of an answer that came in one piece there is no time per token. Closing
    closes `pieces`.
    """
    tags = {"model": model, "adapter": adapter}
    began = time.monotonic()
    first: float | None = None
    try:
        async for piece in pieces:
            now = time.monotonic()
            if first is None and (piece.text or piece.generation):
                first = now
                _first_token().observe(now - began, tags)
            if piece.generation is not None:
                made = piece.generation.completion_tokens
                if first is not None and now > first and made > 1:
                    _per_token().observe((now - first) / (made - 1), tags)
                count_tokens(piece.generation.prompt_tokens, made, model=model, adapter=adapter)
            yield piece
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()


def count_tokens(prompt: int, generated: int = 0, *, model: str, adapter: str = "") -> None:
    """Count tokens read and made: for scores, traces and embeddings, which have no pieces to observe."""
    tags = {"model": model, "adapter": adapter}
    if prompt:
        counter("prompt_tokens_total", "Tokens of prompts that were read", "model", "adapter").inc(prompt, tags)
    if generated:
        counter("generation_tokens_total", "Tokens that were generated", "model", "adapter").inc(generated, tags)


def rejected(reason: Reason) -> None:
    """Count a refused request in `rejected_total{reason}`."""
    counter("rejected_total", "Requests refused, by reason", "reason").inc(1, {"reason": reason})


class Replica:
    """One replica of a model: its queue, its cache, its adapters, and what it costs."""

    def __init__(self, model: str) -> None:
        """Begin to count what the replica holds of the cluster."""
        self._model = model
        self._usage = Usage("serving")

    def tell(self, load: Load) -> None:
        """Set `running`, `queue_depth` and, for an engine with blocks, `kv_blocks_used_ratio`; every ten seconds or
        so, which is how often Ray exports."""
        tags = {"model": self._model}
        gauge("running", "Answers that are being generated", "model").set(load.running, tags)
        gauge("queue_depth", "Answers that wait in a replica", "model").set(load.waiting, tags)
        if load.cache_used is not None:
            name = "kv_blocks_used_ratio"
            gauge(name, "Share of the key-value cache's blocks in use", "model").set(load.cache_used, tags)
        self._usage.tell()

    @contextmanager
    def loading_adapter(self, adapter: str) -> Iterator[None]:
        """Count and time the load in the block, unless it raises."""
        began = time.monotonic()
        yield
        tags = {"model": self._model, "adapter": adapter}
        counter("adapter_loads_total", "Adapters loaded into a replica", "model", "adapter").inc(1, tags)
        times = histogram("adapter_load_seconds", "Time to load an adapter", _LOAD_SECONDS, "model")
        times.observe(time.monotonic() - began, {"model": self._model})

    def restarted(self) -> None:
        """Count an engine that died and is replaced in `engine_restarts_total`."""
        counter("engine_restarts_total", "Engines that died and were replaced", "model").inc(1, {"model": self._model})


def _count_request(asked: _Asked, endpoint: str, code: int, seconds: float) -> None:
    tags = {"model": asked.model, "adapter": asked.adapter, "endpoint": endpoint, "code": str(code)}
    counter("requests_total", "HTTP requests", *tags).inc(1, tags)
    times = histogram("e2e_seconds", "Time from a request to the end of its answer", _REQUEST_SECONDS, *tags)
    times.observe(seconds, tags)


def _first_token() -> Any:
    return histogram("ttft_seconds", "Time to the first token", _REQUEST_SECONDS, "model", "adapter")


def _per_token() -> Any:
    return histogram("tpot_seconds", "Time per token after the first", _TOKEN_SECONDS, "model", "adapter")
