"""The pool behind a Serve handle: refusals as the gateway tells them, a dead replica asked no more than twice."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from recorded_meters import recorded

from polysome.config import ConfigurationError, ResourceError
from polysome.inference.asynchronous import Delta, Traced
from polysome.inference.engine import Embeddings, Generation, Sampling, Scores
from polysome.serving import app
from polysome.serving.app import HandlePool
from polysome.serving.calls import Overloaded, Target
from polysome.serving.config import ServeConfig

WHOLE = Generation("Yes.", 3, 2, "stop", (1, 2))


class Response:
    """One answer of a handle: an error, or what it gives."""

    def __init__(self, outcome: Any) -> None:
        self.outcome, self.cancelled = outcome, False

    def __await__(self) -> Any:
        async def wait() -> Any:
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return self.outcome

        return wait().__await__()

    async def __aiter__(self) -> Any:
        for item in self.outcome if isinstance(self.outcome, list) else [self.outcome]:
            if isinstance(item, Exception):
                raise item
            yield item

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Gives one outcome after the other."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes, self.asked = list(outcomes), 0

    def options(self, **options: Any) -> "Handle":
        return self

    def remote(self, *arguments: Any) -> Response:
        self.asked += 1
        return Response(self.outcomes.pop(0))

    @property
    def generate(self) -> Any:
        return SimpleNamespace(remote=self.remote)

    stream = trace = score = embed = generate


def ask(handle: Handle, *, stream: bool) -> list[Delta]:
    async def work() -> list[Delta]:
        pool: Any = HandlePool(handle, "tiny")  # type: ignore[arg-type]
        target = Target(time.time() + 10)
        return [piece async for piece in pool.generate("x", Sampling(4), target, stream=stream)]

    return asyncio.run(work())


BROKEN = AioRpcError(StatusCode.INTERNAL, Metadata(), Metadata(), "the connection broke")
FULL = BackPressureError(num_queued_requests=1, max_queued_requests=1)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("error", "told"), [(FULL, Overloaded), (DeploymentUnavailableError("gone"), ResourceError)])
def test_what_serve_refuses_is_told_in_our_words(stream: bool, error: Exception, told: type) -> None:
    handle = Handle(error)
    with pytest.raises(told):
        ask(handle, stream=stream)
    assert handle.asked == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_replica_that_died_before_it_answered_is_asked_once_more(stream: bool) -> None:
    good = [Delta("Yes."), Delta("", WHOLE)] if stream else WHOLE
    handle = Handle(ActorDiedError(), good)
    assert ask(handle, stream=stream)[-1].generation == WHOLE
    for died in (ActorDiedError(), BROKEN):
        handle = Handle(died, died, good)
        with pytest.raises(ResourceError, match="gone"):
            ask(handle, stream=stream)
        assert handle.asked == 2


def test_a_stream_that_had_begun_is_not_begun_again() -> None:
    handle = Handle([Delta("Y"), ActorDiedError()], WHOLE)
    with pytest.raises(ResourceError, match="gone"):
        ask(handle, stream=True)
    assert handle.asked == 1


def test_a_text_that_is_only_traced_counts_its_tokens() -> None:
    async def trace(answer: tuple[int, ...]) -> None:
        pool: Any = HandlePool(Handle(Traced((1, 2, 3), ("a", "b", "c"), (None, -1.0, -1.0), ((),) * 3)), "tiny")  # type: ignore[arg-type]
        await pool.trace("abc", answer, 0, Target(time.time() + 10))

    with recorded() as measured:
        asyncio.run(trace(()))
    assert measured == {"polysome_prompt_tokens_total": {("tiny", ""): [3]}}
    with recorded() as measured:
        # Its prompt was counted when the answer was generated.
        asyncio.run(trace((3,)))
    assert not measured


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 8001), ("0.0.0.0", 8000), (None, 8000)])
def test_a_second_address_is_refused_before_anything_is_deployed(monkeypatch, host, port) -> None:
    """Serve keeps the address of its first start, and `start` would wait at the other one for nothing."""
    running = SimpleNamespace(http_config=SimpleNamespace(host=host, port=port))
    monkeypatch.setattr(app, "check", lambda config: config)
    monkeypatch.setattr(app.serve, "start", lambda **options: None)
    monkeypatch.setattr(app.serve, "run", lambda *given, **options: pytest.fail("it was deployed"))
    monkeypatch.setattr("ray.serve.context._get_global_client", lambda: running)
    with pytest.raises(ConfigurationError, match=f"listens on {host}:{port} already, not on 127.0.0.1:8000"):
        app.start(ServeConfig(model="unused"))


def test_scores_and_vectors_count_what_was_read() -> None:
    async def ask_for(outcome: Any) -> None:
        pool: Any = HandlePool(Handle(outcome), "tiny")  # type: ignore[arg-type]
        target = Target(time.time() + 10)
        if isinstance(outcome, Scores):
            assert await pool.score("abc", ["a", "bc"], target) == outcome
        else:
            assert await pool.embed(["a", "bc"], "mean", target) == outcome

    for outcome, read in ((Scores((-1.0, -2.0), (1, 2), 5), 8), (Embeddings(np.zeros((2, 4), np.float32), (1, 2)), 3)):
        with recorded() as measured:
            asyncio.run(ask_for(outcome))
        assert measured == {"polysome_prompt_tokens_total": {("tiny", ""): [read]}}


def test_a_caller_that_leaves_cancels_what_it_asked() -> None:
    class Endless(Response):
        def __await__(self) -> Any:
            return asyncio.sleep(60).__await__()

    answer = Endless(None)
    handle = Handle()
    handle.remote = lambda *arguments: answer  # type: ignore[method-assign]

    async def leave() -> None:
        pool: Any = HandlePool(handle, "tiny")  # type: ignore[arg-type]
        asked = asyncio.ensure_future(pool.score("abc", ["a"], Target(time.time() + 10)))
        await asyncio.sleep(0.05)
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()

    asyncio.run(leave())
    assert answer.cancelled
