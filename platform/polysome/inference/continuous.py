"""The continuous engine: answers join and leave a packed batch at every token, on transformers' continuous batching."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from polysome.config import ConfigurationError, DataError, PolysomeError, ResourceError
from polysome.inference.asynchronous import Delta, Load, Traced
from polysome.inference.batch import BatchEngine
from polysome.inference.engine import Embeddings, Pool, Prompt, Sampling, Scores
from polysome.inference.manager import PAGE, Steps, Turn, open_manager
from polysome.inference.packed import Seats, adapter_obstacle, twin
from polysome.inference.text import Pieces

ResultT = TypeVar("ResultT")

_STEP_SECONDS = 30.0
"""A pass that takes longer is taken for one that never ends."""

_LOOK_AGAIN_SECONDS = 0.02

_TRIED = ((3, 1, 4, 1, 5), (2, 7, 1, 8, 2, 8, 1, 8, 2))
_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
_LOOSE_TOLERANCE = 0.5
"""Of log-likelihoods, for fp32 and for less: rounding makes less, a token that sees another answer's makes more."""


@dataclass(eq=False)
class _Answer:
    """One prompt on its way; all but its turn belongs to the event loop."""

    id: str
    turn: Turn
    blocks: int
    """Of the cache, for prompt and answer at its longest."""
    began: float = field(default_factory=time.monotonic)
    said: list[int] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    finished: bool = False
    """The generating thread has freed its place."""
    error: PolysomeError | None = None

    async def heard(self) -> None:
        """Return once more is said; raise if nothing will be."""
        await self.news.wait()
        self.news.clear()
        if self.error is not None:
            raise self.error


class ContinuousEngine:
    """See `AsyncEngine`. One thread generates, packed rows in one pass; another scores, embeds, traces and loads.

    The threads have modules of their own over the same weights. What `transformers.ContinuousBatchingManager` leaves to
    its caller is done here: an answer is let in only when the cache has room for it at its longest, so that none has to
    make room again; its end is told also where the thread dies; and one that nobody waits for is taken out. A seed
    draws what `BatchEngine` draws with it.

    A pass holds every token against the cache of all answers, behind a mask. On a CPU that costs more than padding
    does: with 16 answers of a model of 6 layers, `StaticEngine` was 2.6 to 3.4 times as fast on one busy core.

    Args:
        engine: the model; nobody else may use it from now on. Its `max_batch_tokens` are the positions of the cache,
            which is allocated at once.
        max_batch_size: most answers at once.

    Raises:
        ConfigurationError: the architecture cannot be batched so, by a trial against the engine's own view.
        ResourceError: the memory does not do for the cache.
    """

    def __init__(self, engine: BatchEngine, *, max_batch_size: int) -> None:
        self._engine, self._most = engine, max_batch_size
        self._blocks = self._free = max(1, engine.max_batch_tokens // PAGE)
        self._running: dict[str, _Answer] = {}
        self._waiting: deque[_Answer] = deque()
        self._ids = itertools.count()
        self._adapters = set(engine.adapters.names)
        self._failure: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scores")
        self._steps = Steps(Seats(engine.decoder.forward.device))
        try:
            obstacle = self._start()
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise ResourceError(f"no memory for the cache: {error}", fix="lower max_batch_tokens") from error
        except Exception as error:  # An architecture may fail in any way of its own; whatever it is, it cannot.
            obstacle = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if obstacle is not None:
            kind = engine.decoder.forward.model.config.model_type
            raise ConfigurationError(
                f"this {kind} model cannot be batched continuously: {obstacle}", fix="serve it with `engine: batch`"
            )

    async def generate(self, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None) -> AsyncIterator[Delta]:
        """See `AsyncEngine.generate`."""
        answer = await self._begin(prompt, sampling, adapter)
        row, told, decoder = answer.turn.row, Pieces(sampling.stop), self._engine.decoder
        try:
            while not row.done:
                await answer.heard()
                for token in answer.said[len(row.answer) :]:
                    decoder.take(row, token)
                if not row.done and (piece := told.push(decoder.text(row.answer))):
                    yield Delta(piece)
        finally:
            self._leave(answer)
        yield Delta(told.finish(decoder.text(row.answer)), self._engine.generation(row))

    async def score(self, prompt: Prompt, choices: Sequence[str], *, adapter: str | None = None) -> Scores:
        """See `AsyncEngine.score`."""
        return (await self._do(lambda: self._engine.score([prompt], choices), adapter))[0]

    async def embed(self, texts: Sequence[Prompt], *, pool: Pool, adapter: str | None = None) -> Embeddings:
        """See `AsyncEngine.embed`."""
        return await self._do(lambda: self._engine.embed(texts, pool=pool), adapter)

    async def trace(self, prompt: Prompt, answer: Sequence[int], *, top: int, adapter: str | None = None) -> Traced:
        """See `AsyncEngine.trace`."""
        return await self._do(lambda: self._engine.trace(prompt, answer, top=top), adapter)

    async def load_adapter(self, folder: str, *, name: str) -> None:
        """See `AsyncEngine.load_adapter`. The adapter is tried before it answers with others in one pass.

        Raises:
            ConfigurationError: also where an adapter of its kind cannot share a pass.
        """

        def load() -> None:
            self._engine.load_adapter(folder, name=name)
            obstacle = adapter_obstacle(self._engine.decoder.forward, name)
            if obstacle is not None:
                self._engine.adapters.unload(name)
                raise ConfigurationError(
                    f"the adapter cannot share a pass with others: {obstacle}",
                    where=folder,
                    fix="serve it with `engine: batch`, or its merged export",
                )
            self._renew()
            self._adapters.add(name)

        await self._do(load)

    async def unload_adapter(self, name: str) -> None:
        """See `AsyncEngine.unload_adapter`."""
        self._require_adapter(name)
        self._adapters.remove(name)

        def unload() -> None:
            self._engine.adapters.unload(name)
            self._renew()

        try:
            while any(answer.turn.row.adapter == name for answer in (*self._running.values(), *self._waiting)):
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            await self._do(unload)
        except BaseException:
            if name in self._engine.adapters.names:
                self._adapters.add(name)
            raise

    def load(self) -> Load:
        """See `AsyncEngine.load`. A block that an answer has reserved is in use."""
        waited = time.monotonic() - self._waiting[0].began if self._waiting else 0.0
        return Load(
            running=len(self._running),
            waiting=len(self._waiting),
            waited_seconds=waited,
            cache_used=1 - self._free / self._blocks,
        )

    async def health(self) -> None:
        """See `AsyncEngine.health`. A step that begins while answers are generated is health; else a token is."""
        self._require_open()
        before = self._steps.count
        try:
            async with asyncio.timeout(_STEP_SECONDS):
                while self._running and self._steps.count == before:
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)
                if self._steps.count == before:
                    async for _ in self.generate(_TRIED[0], Sampling(1)):
                        pass
        except TimeoutError as error:
            raise _ended(f"no token within {_STEP_SECONDS:g} s") from error
        self._require_open()

    async def close(self) -> None:
        """See `AsyncEngine.close`."""
        self._end("it was closed")
        await asyncio.to_thread(self._stop)

    async def _begin(self, prompt: Prompt, sampling: Sampling, adapter: str | None) -> _Answer:
        """An answer that waits for its place or has it."""
        self._require_open()
        row = await asyncio.to_thread(self._engine.row, prompt, sampling)
        room = self._blocks * PAGE - len(row.prompt)
        if room < 1:
            raise DataError(
                f"the prompt has {len(row.prompt)} tokens, the cache holds {self._blocks * PAGE} and must hold at "
                "least one token of an answer",
                fix="shorten the sequence or the question, or raise max_batch_tokens",
            )
        row.limit, row.adapter = min(row.limit, room), adapter
        self._require_open()
        if adapter is not None:
            self._require_adapter(adapter)
        self._loop = asyncio.get_running_loop()
        answer = _Answer(str(next(self._ids)), Turn(row), -(-(len(row.prompt) + row.limit) // PAGE))
        self._waiting.append(answer)
        self._fill()
        return answer

    def _fill(self) -> None:
        """Let in what waits, in its order, while there is room."""
        while self._waiting and len(self._running) < self._most and self._waiting[0].blocks <= self._free:
            answer = self._waiting.popleft()
            self._running[answer.id] = answer
            self._free -= answer.blocks
            self._manager.add_request(
                answer.turn.row.prompt,
                request_id=answer.id,
                max_new_tokens=answer.turn.row.limit,
                streaming=True,
                eos_token_id=[*self._engine.decoder.stop_tokens] or -1,
                turn=answer.turn,
            )
            # It says nothing of a request that its thread will never see, as it ended a moment ago.
            if self._manager.background_thread_status.can_accept_new_requests() is not None:
                self._died()

    def _leave(self, answer: _Answer) -> None:
        """Free the place of an answer that is complete, or that nobody waits for any longer."""
        if self._running.pop(answer.id, None) is not None:
            if not answer.finished:
                self._manager.cancel_request(answer.id)
            self._free += answer.blocks
        elif answer in self._waiting:
            self._waiting.remove(answer)
        self._fill()

    def _hear(self, outputs: Sequence[Any]) -> None:
        """What answers say after a step."""
        for output in outputs:
            answer = self._running.get(output.request_id)
            if answer is None:
                # Taken out before the thread had seen it, which then took no notice.
                if not output.is_finished():
                    self._manager.cancel_request(output.request_id)
                continue
            answer.said, answer.finished = output.generated_tokens, output.is_finished()
            if output.error is not None:
                answer.error = _ended(output.error)
            elif answer.turn.broken:
                answer.error = ResourceError("the model's output is not finite", fix="check the weights")
            answer.news.set()
            if answer.finished:
                self._leave(answer)

    def _tell(self, event: Callable[..., None], *args: Any) -> None:
        """From the generating thread: call something on the event loop. Where that is closed nobody waits."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(event, *args)
        except RuntimeError:
            if not loop.is_closed():
                raise

    def _died(self) -> None:
        self._end(str(self._manager.background_thread_status.fatal_error))

    def _end(self, why: str) -> None:
        self._failure = self._failure or why
        for answer in (*self._running.values(), *self._waiting):
            answer.error = answer.error or _ended(self._failure)
            answer.news.set()
        self._running.clear()
        self._waiting.clear()
        self._free = self._blocks

    def _require_open(self) -> None:
        if self._failure is None and not self._manager.is_running():
            self._died()
        if self._failure is not None:
            raise _ended(self._failure)

    def _require_adapter(self, name: str) -> None:
        if name not in self._adapters:
            raise ConfigurationError(
                f"no adapter {name!r} is loaded",
                where="adapter",
                fix=f"load it, or choose of: {', '.join(sorted(self._adapters))}",
            )

    async def _do(self, work: Callable[[], ResultT], adapter: str | None = None) -> ResultT:
        """The result of work with the engine, in its thread."""

        def inside() -> ResultT:
            self._require_open()
            with self._engine.using(adapter):
                return work()

        self._require_open()
        return await asyncio.get_running_loop().run_in_executor(self._thread, inside)

    def _start(self) -> str | None:
        """Begin to generate; why that cannot be done, if so."""
        self._manager = open_manager(
            twin(self._engine.decoder.forward.model, self._steps.seats),
            self._steps,
            blocks=self._blocks,
            most=self._most,
            said=lambda outputs: self._tell(self._hear, outputs),
            ended=lambda: self._tell(self._died),
        )
        # A thread is a daemon if the one that starts it is: one that is not would keep the process from ending.
        starter = threading.Thread(target=self._manager.start, daemon=True)
        starter.start()
        starter.join()
        try:
            obstacle = self._thread.submit(self._obstacle).result()
        except BaseException:
            self._stop()
            raise
        if obstacle is not None:
            self._stop()
        return obstacle

    def _stop(self) -> None:
        if self._manager.is_running():
            self._manager.stop(hard_stop=True)
        self._thread.shutdown(wait=False)

    def _renew(self) -> None:
        """Generate with the adapters that the engine has now, from the next step on."""
        model = twin(self._engine.decoder.forward.model, self._steps.seats)
        model.set_attn_implementation(self._manager.model.config._attn_implementation)
        self._manager.model = model

    def _obstacle(self) -> str | None:
        """Why the architecture cannot be batched so: two answers of one batch are held against the engine's view."""

        async def both() -> list[_Answer]:
            with self._manager.pause():
                answers = [await self._begin(prompt, Sampling(4), None) for prompt in _TRIED]
            for answer in answers:
                while not answer.finished:
                    await answer.heard()
            return answers

        tolerance = _TOLERANCE.get(self._engine.decoder.forward.dtype, _LOOSE_TOLERANCE)
        for prompt, answer in zip(_TRIED, asyncio.run(both()), strict=True):
            with self._engine.using(None):
                traced = self._engine.trace(prompt, answer.said, top=1)
            for likelihood, ((_, best),) in zip(traced.logprobs[len(prompt) :], traced.top[len(prompt) :], strict=True):
                if likelihood is None or not best - likelihood <= tolerance:
                    return f"a token of a trial has log-likelihood {likelihood}, the likeliest one {best:.3g}"
        return None


def _ended(why: str) -> ResourceError:
    return ResourceError(f"the engine has ended: {why}", fix="ask again; another replica answers")
