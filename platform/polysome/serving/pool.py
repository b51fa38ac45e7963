"""The model pool: one engine per replica, many callers' requests answered together, none harming another."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ray import serve

from polysome.config import PolysomeError, ResourceError
from polysome.inference.engine import Conversation, Engine, Generation, Scores
from polysome.serving.config import ServeConfig
from polysome.serving.prediction import Sampling

_HEALTHY_SECONDS = 20.0


@dataclass(frozen=True)
class GenerateCall:
    """One conversation to answer before `deadline` (seconds of `time.time`)."""

    conversation: Conversation
    sampling: Sampling
    deadline: float


@dataclass(frozen=True)
class Outcome:
    """What became of one call of a batch: exactly one of the two is set."""

    generation: Generation | None = None
    error: PolysomeError | None = None


class Expired(PolysomeError):
    """The caller's deadline passed before the work began."""


def load_engine(config: ServeConfig) -> Engine:
    """The engine for the configured folder, on the GPU where replicas have one."""
    from polysome.inference.batch import BatchEngine

    return BatchEngine(
        config.model,
        max_batch_tokens=config.max_batch_tokens,
        threads=config.cpus_per_replica,
        device="cuda" if config.gpus_per_replica else "cpu",
    )


def answer_batch(engine: Engine, calls: Sequence[GenerateCall]) -> list[Outcome]:
    """Answer calls together where they sample alike; a call that the engine refuses is answered with its own error.

    A seeded sample depends on its place in the engine's batch, so a call with a seed has a batch of its own.
    """
    outcomes: list[Outcome | None] = [None] * len(calls)
    groups: dict[object, list[int]] = {}
    now = time.time()
    for index, call in enumerate(calls):
        if call.deadline < now:
            outcomes[index] = Outcome(error=Expired("the request waited longer than its time limit"))
            continue
        alone = call.sampling.temperature > 0 and call.sampling.seed is not None
        groups.setdefault((call.sampling, index if alone else None), []).append(index)
    for members in groups.values():
        for index, outcome in zip(members, _answer_alike(engine, [calls[i] for i in members]), strict=True):
            outcomes[index] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def _answer_alike(engine: Engine, calls: Sequence[GenerateCall]) -> list[Outcome]:
    sampling = calls[0].sampling
    try:
        generations = engine.generate(
            [call.conversation for call in calls],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )
    except PolysomeError as error:
        if len(calls) == 1:
            return [Outcome(error=error)]
        # One of them is refused; asked one by one, the others get their answers.
        return [outcome for call in calls for outcome in _answer_alike(engine, [call])]
    return [Outcome(generation=generation) for generation in generations]


class ModelPool:
    """A replica: the Serve deployment that holds one engine, whose calls run in one thread, one after another."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = ServeConfig.model_validate(config)
        self._engine = load_engine(self._config)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._busy_since: float | None = None
        self._healthy_until = 0.0
        batching: Any = self._answer
        batching.set_max_batch_size(self._config.max_batch_size)
        batching.set_batch_wait_timeout_s(self._config.batch_wait_seconds)

    async def generate(self, call: GenerateCall) -> Generation:
        """Answer one call, batched with those that wait at the same time.

        Raises:
            PolysomeError: the engine refuses the call, or its deadline passed while it waited.
        """
        outcome: Outcome = await self._answer(call)
        if outcome.error is not None:
            raise outcome.error
        assert outcome.generation is not None
        return outcome.generation

    async def score(self, conversation: Conversation, choices: Sequence[str], deadline: float) -> Scores:
        """Log-likelihood of each choice, all in as few forward passes as fit.

        Raises:
            PolysomeError: the engine refuses the conversation, or the deadline passed while it waited.
        """

        def work() -> Scores:
            if deadline < time.time():
                raise Expired("the request waited longer than its time limit")
            return self._engine.score([conversation], choices)[0]

        return await self._run(work)

    async def ready(self) -> None:
        """Return once a token was generated lately, if need be now.

        Raises:
            ResourceError: the engine gives no usable token, or has not answered for longer than a request may take.
        """
        await self.check_health()

    async def check_health(self) -> None:
        """Called by Serve; a replica that raises is replaced. Work in progress is health until it takes too long."""
        now = time.monotonic()
        if self._busy_since is not None:
            patience = self._config.request_timeout_seconds * 2
            if now - self._busy_since > patience:
                raise ResourceError(f"the engine has been silent for {patience:.0f} s", where=self._config.name)
        elif now > self._healthy_until:
            await self._run(self._engine.health)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01)
    async def _answer(self, calls: list[GenerateCall]) -> list[Outcome]:
        return await self._run(lambda: answer_batch(self._engine, calls))

    async def _run(self, work: Any) -> Any:
        def timed() -> Any:
            self._busy_since = time.monotonic()
            try:
                result = work()
                self._healthy_until = time.monotonic() + _HEALTHY_SECONDS
                return result
            finally:
                self._busy_since = None

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)
