"""What the gateway's routers share: the configuration, the pool behind it, and how a call gets its model and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from polysome.serving.calls import Pool, Target
from polysome.serving.concurrently import Bounded
from polysome.serving.config import ServeConfig
from polysome.serving.metrics import name_target
from polysome.serving.protocol import ApiError

if TYPE_CHECKING:
    from polysome.serving.adapters import Published, Registry
    from polysome.serving.jobs_api import Jobs
    from polysome.serving.reports_api import Runs

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Context:
    """One gateway. Every router is made from it: `router(context)`."""

    config: ServeConfig
    pool: Pool
    fingerprint: str
    """Of the base model's folder."""
    registry: Registry | None = None
    """Published adapters; None serves the base alone."""
    jobs: Jobs | None = None
    """What `/v1/jobs` submits to; None takes no jobs."""
    runs: Runs | None = None
    """What `/v1/runs` and `/v1/evaluations` tell of; None shows none."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together; None where the model's folder does not tell."""
    created: int = field(default_factory=lambda: int(time.time()))
    _finding: dict[str, asyncio.Future[Published | None]] = field(default_factory=dict)

    @cached_property
    def bulk(self) -> Pool:
        """The pool for requests of many questions, which together take at most half of its queue."""
        return Bounded(self.pool, max(1, self.config.max_queued_requests // 2))

    async def target(self, model: str | None) -> Target:
        """The model of a name, and the time that a request has from now.

        Args:
            model: the base's name, `ADAPTER` (its current version) or `ADAPTER@VERSION`; None is the base.

        Raises:
            ApiError: 404, no such model; 408, the registry does not answer.
        """
        deadline = time.time() + self.config.request_timeout_seconds
        if model is None or model == self.config.name:
            name_target(self.config.name)
            return Target(deadline)
        adapter = None
        if self.registry is not None:
            adapter = await self.within(Target(deadline), asyncio.shield(self._find(self.registry, model)))
        if adapter is None:
            raise ApiError(404, f"no model {model!r}; GET /v1/models lists them", code="model_not_found", param="model")
        name_target(self.config.name, adapter.id)
        return Target(deadline, adapter)

    def _find(self, registry: Registry, model: str) -> asyncio.Future[Published | None]:
        """What a registry finds, in a thread as it reads files; requests for the same at once share one reading."""
        if model not in self._finding:
            finding = asyncio.ensure_future(asyncio.to_thread(registry.find, model))
            self._finding[model] = finding
            finding.add_done_callback(lambda _: self._finding.pop(model, None))
        return self._finding[model]

    def model_id(self, target: Target) -> str:
        """Of what answers, as `/v1/models` lists it: the base's name, or `ADAPTER@VERSION`."""
        return target.adapter.id if target.adapter else self.config.name

    def system_fingerprint(self, target: Target) -> str:
        """Of the weights that answer: base, and adapter where there is one."""
        return f"fp_{self.fingerprint}" + (f"-{target.adapter.fingerprint}" if target.adapter else "")

    async def within(self, target: Target, work: Awaitable[ResultT]) -> ResultT:
        """The result of `work`, ended at the target's deadline with 408."""
        try:
            return await asyncio.wait_for(work, timeout=max(0.0, target.deadline - time.time()))
        except TimeoutError as error:
            raise ApiError(
                408,
                f"no answer within {self.config.request_timeout_seconds:g} s; ask for less at once, or later",
                code="timeout",
                # OpenAI's clients would otherwise ask the same again, twice.
                headers={"x-should-retry": "false"},
            ) from error
