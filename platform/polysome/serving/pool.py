"""The model pool: replicas of one base model, each with an engine that many callers ask at once, adapters on top."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ray import serve

from polysome.config import ResourceError
from polysome.inference.asynchronous import AsyncEngine, Delta, Traced
from polysome.inference.engine import Embeddings, Generation, Prompt, Sampling, Scores
from polysome.inference.engine import Pool as Pooling
from polysome.serving.autoscaling import QUEUE_SECONDS
from polysome.serving.calls import Expired, Target
from polysome.serving.config import ServeConfig
from polysome.serving.metrics import Replica

if TYPE_CHECKING:
    from polysome.serving.adapters import Published

ResultT = TypeVar("ResultT")

_HEALTHY_SECONDS = 20.0
_UNLOAD_SECONDS = 120.0


def open_async_engine(config: ServeConfig) -> AsyncEngine:
    """The engine that the configuration names, on the GPU where replicas have one.

    Raises:
        DataError, ConfigurationError: the model cannot be opened.
    """
    from polysome.inference.batch import BatchEngine

    engine = BatchEngine(
        config.model,
        max_batch_tokens=config.max_batch_tokens,
        threads=config.cpus_per_replica,
        device="cuda" if config.gpus_per_replica else "cpu",
    )
    if config.engine == "continuous":
        from polysome.inference.continuous import ContinuousEngine

        return ContinuousEngine(engine, max_batch_size=config.max_batch_size)
    from polysome.inference.static import StaticEngine

    return StaticEngine(engine, max_batch_size=config.max_batch_size, batch_wait_seconds=config.batch_wait_seconds)


class ModelPool:
    """A replica: the Serve deployment that holds one engine."""

    def __init__(self, config: dict[str, Any], engine: AsyncEngine | None = None) -> None:
        self._config = ServeConfig.model_validate(config)
        self._engine = engine or open_async_engine(self._config)
        self._published: dict[str, Published] = {}
        self._adapter = self._multiplexed()
        self._healthy_until = 0.0
        self._meter = Replica(self._config.name)

    async def stream(self, prompt: Prompt, sampling: Sampling, target: Target) -> AsyncIterator[Delta]:
        """See `calls.Pool.generate`."""
        adapter = await self._in_time(target, lambda: self._ready_adapter(target))
        answer = self._engine.generate(prompt, sampling, adapter=adapter)
        try:
            async with asyncio.timeout(target.deadline - time.time()):
                async for delta in answer:
                    yield delta
        except TimeoutError as error:
            raise Expired("the answer took longer than the request's time limit") from error
        finally:
            await answer.aclose()  # type: ignore[attr-defined]
        self._answered()

    async def generate(self, prompt: Prompt, sampling: Sampling, target: Target) -> Generation:
        """The whole answer at once."""
        last = None
        async for delta in self.stream(prompt, sampling, target):
            last = delta.generation
        assert last is not None
        return last

    async def score(self, prompt: Prompt, choices: Sequence[str], target: Target) -> Scores:
        """See `AsyncEngine.score`."""
        return await self._asked(target, lambda adapter: self._engine.score(prompt, choices, adapter=adapter))

    async def embed(self, texts: Sequence[Prompt], pool: Pooling, target: Target) -> Embeddings:
        """See `AsyncEngine.embed`."""
        return await self._asked(target, lambda adapter: self._engine.embed(texts, pool=pool, adapter=adapter))

    async def trace(self, prompt: Prompt, answer: Sequence[int], top: int, target: Target) -> Traced:
        """See `AsyncEngine.trace`."""
        return await self._asked(target, lambda adapter: self._engine.trace(prompt, answer, top=top, adapter=adapter))

    async def ready(self) -> None:
        """Return once the model computed something lately, if need be now.

        Raises:
            ResourceError: the engine gives no usable token.
        """
        if time.monotonic() > self._healthy_until:
            await self._engine.health()
            self._answered()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve where it scales by queue time."""
        return {QUEUE_SECONDS: self._engine.load().waited_seconds}

    async def check_health(self) -> None:
        """Called by Serve; a replica that raises, or does not answer in time, is replaced."""
        self._meter.tell(self._engine.load())
        try:
            await self.ready()
        except ResourceError:
            self._meter.restarted()
            raise

    def _answered(self) -> None:
        self._healthy_until = time.monotonic() + _HEALTHY_SECONDS

    async def _asked(self, target: Target, ask: Callable[[str | None], Awaitable[ResultT]]) -> ResultT:
        async def work() -> ResultT:
            return await ask(await self._ready_adapter(target))

        result = await self._in_time(target, work)
        self._answered()
        return result

    async def _in_time(self, target: Target, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        target.require_time()
        try:
            async with asyncio.timeout(target.deadline - time.time()):
                return await work()
        except TimeoutError as error:
            raise Expired("the request waited longer than its time limit") from error

    async def _ready_adapter(self, target: Target) -> str | None:
        """Name of the target's adapter, loaded if need be."""
        if target.adapter is None:
            return None
        self._published[target.adapter.id] = target.adapter
        loaded: _Loaded = await self._adapter(target.adapter.id)
        return loaded.name

    def _multiplexed(self) -> Callable[[str], Awaitable[_Loaded]]:
        """Loads an adapter by id; Serve keeps the latest few, and routes requests to replicas that have theirs."""

        async def load_published_adapter(adapter: str) -> _Loaded:
            from polysome.serving.adapters import Registry

            assert self._config.adapters is not None
            registry = Registry(self._config.adapters)
            with self._meter.loading_adapter(adapter):
                folder = await asyncio.to_thread(registry.fetch, self._published[adapter])
                await self._loaded(folder, adapter)
            return _Loaded(adapter, self._engine)

        decorate: Any = serve.multiplexed(max_num_models_per_replica=self._config.adapters_per_replica)
        loader: Callable[[str], Awaitable[_Loaded]] = decorate(load_published_adapter)
        return loader

    async def _loaded(self, folder: str, adapter: str) -> None:
        """Load an adapter. Where the caller leaves meanwhile, Serve does not come to know of it: it must not stay."""
        loading = asyncio.ensure_future(self._engine.load_adapter(folder, name=adapter))
        try:
            await asyncio.shield(loading)
        except asyncio.CancelledError:
            # What the engine has begun it ends; under Serve's lock nobody loads the same meanwhile.
            await asyncio.wait([loading])
            if not loading.cancelled() and loading.exception() is None:
                await self._engine.unload_adapter(adapter)
            raise


class _Loaded:
    """An adapter in memory. Serve calls `__del__` when another one needs the room, outside of the event loop."""

    def __init__(self, name: str, engine: AsyncEngine) -> None:
        self.name, self._engine = name, engine
        self._loop, self._home = asyncio.get_running_loop(), threading.get_ident()
        self._gone = False

    def __del__(self) -> None:
        # At the replica's own end the loop itself drops the last ones; then there is nothing to free.
        if self._gone or threading.get_ident() == self._home or self._loop.is_closed():
            return
        self._gone = True
        unloading = asyncio.run_coroutine_threadsafe(self._engine.unload_adapter(self.name), self._loop)
        unloading.result(timeout=_UNLOAD_SECONDS)
