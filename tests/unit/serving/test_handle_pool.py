"""The pool behind a Serve handle: refusals as the gateway tells them, a dead replica asked no more than twice."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from polysome.config import ResourceError
from polysome.inference.asynchronous import Delta
from polysome.inference.engine import Generation, Sampling
from polysome.serving.app import HandlePool
from polysome.serving.calls import Overloaded, Target

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

    stream = generate


def ask(handle: Handle, *, stream: bool) -> list[Delta]:
    async def work() -> list[Delta]:
        pool: Any = HandlePool(handle, "tiny")  # type: ignore[arg-type]
        target = Target(time.time() + 10)
        return [piece async for piece in pool.generate("x", Sampling(4), target, stream=stream)]

    return asyncio.run(work())


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
    handle = Handle(ActorDiedError(), ActorDiedError(), good)
    with pytest.raises(ResourceError, match="gone"):
        ask(handle, stream=stream)
    assert handle.asked == 2


def test_a_stream_that_had_begun_is_not_begun_again() -> None:
    handle = Handle([Delta("Y"), ActorDiedError()], WHOLE)
    with pytest.raises(ResourceError, match="gone"):
        ask(handle, stream=True)
    assert handle.asked == 1
