"""The engine behind a served model: an AsyncEngine of `BatchEngine`'s batches, which requests join at any step."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from polysome.config import PolysomeError, ResourceError
from polysome.inference.asynchronous import Delta, Load, Traced
from polysome.inference.batch import BatchEngine
from polysome.inference.decoding import Row, Running
from polysome.inference.engine import Embeddings, Pool, Prompt, Sampling, Scores
from polysome.inference.text import Pieces

log = logging.getLogger(__name__)

_UNLOAD_AGAIN_SECONDS = 0.05

_PIECE_SECONDS, _BUSY_PIECE_SECONDS = 0.05, 0.2
"""Between two pieces of an answer: where few are given at once, and where many are."""

_PIECES_PER_SECOND = 160
"""Of all answers together, where that does not make the pieces come later than `_BUSY_PIECE_SECONDS`."""


@dataclass
class _Answer:
    """A request for text."""

    prompt: Prompt
    sampling: Sampling
    adapter: str | None
    loop: asyncio.AbstractEventLoop
    pieces: Pieces
    told: asyncio.Queue[Delta | Exception] = field(default_factory=asyncio.Queue)
    row: Row | None = None
    cancelled: bool = False
    due: float = 0.0
    """When a piece may be told again."""
    since: float = field(default_factory=time.monotonic)


@dataclass
class _Work:
    """Anything that is not decoded: done between two steps."""

    run: Callable[[], Any]
    adapter: str | None = None
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


@dataclass
class _Score:
    """Scores of the same choices by the same adapter are computed together."""

    prompt: Prompt
    choices: tuple[str, ...]
    adapter: str | None
    future: Future[Scores] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class StaticEngine:
    """See `AsyncEngine`. One thread owns the model: it takes what waits, runs a step, tells what was said, and again.

    Where rows can have `Places` in the architecture's cache, a request enters the running batch at the next step,
    whatever its sampling and its adapter; elsewhere it waits for the batch to end.

    Args:
        engine: the model; nobody else may use it from now on.
        max_batch_size: most answers at once.
        batch_wait_seconds: how long a first request waits for others to share its prefill.
    """

    def __init__(self, engine: BatchEngine, *, max_batch_size: int, batch_wait_seconds: float) -> None:
        self._engine, self._most, self._wait = engine, max_batch_size, batch_wait_seconds
        self._running = Running(engine.decoder)
        self._answers: list[_Answer] = []
        self._waiting: deque[_Answer | _Score | _Work] = deque()
        self._news = threading.Condition()
        self._begun: list[_Answer | _Score | _Work] = []
        self._failure: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    async def generate(self, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None) -> AsyncIterator[Delta]:
        """See `AsyncEngine.generate`.

        Handing a piece on costs the replica, the gateway and the proxy about as much as a step costs a row: the first
        and the last are told at once, those between in intervals that no reader notices.
        """
        answer = _Answer(prompt, sampling, adapter, asyncio.get_running_loop(), Pieces(sampling.stop))
        self._put(answer)
        try:
            while True:
                event = await answer.told.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.generation is not None:
                    return
        finally:
            answer.cancelled = True

    async def score(self, prompt: Prompt, choices: Sequence[str], *, adapter: str | None = None) -> Scores:
        """See `AsyncEngine.score`."""
        work = _Score(prompt, tuple(choices), adapter)
        self._put(work)
        return await asyncio.wrap_future(work.future)

    async def embed(self, texts: Sequence[Prompt], *, pool: Pool, adapter: str | None = None) -> Embeddings:
        """See `AsyncEngine.embed`."""
        embeddings: Embeddings = await self._do(lambda: self._engine.embed(texts, pool=pool), adapter)
        return embeddings

    async def trace(self, prompt: Prompt, answer: Sequence[int], *, top: int, adapter: str | None = None) -> Traced:
        """See `AsyncEngine.trace`."""
        traced: Traced = await self._do(lambda: self._engine.trace(prompt, answer, top=top), adapter)
        return traced

    async def load_adapter(self, folder: str, *, name: str) -> None:
        """See `AsyncEngine.load_adapter`."""
        await self._do(lambda: self._engine.load_adapter(folder, name=name))

    async def unload_adapter(self, name: str) -> None:
        """See `AsyncEngine.unload_adapter`."""

        def unload() -> bool:
            with self._news:
                using = {request.adapter for request in (*self._answers, *self._waiting)}
            if name not in using:
                self._engine.adapters.unload(name)
            return name not in using

        while not await self._do(unload):
            await asyncio.sleep(_UNLOAD_AGAIN_SECONDS)

    def load(self) -> Load:
        """See `AsyncEngine.load`."""
        with self._news:
            began = [request.since for request in self._waiting]
        waited = time.monotonic() - min(began) if began else 0.0
        return Load(running=len(self._answers), waiting=len(began), waited_seconds=waited)

    async def health(self) -> None:
        """See `AsyncEngine.health`; steps that succeed are health."""
        await self._do(self._engine.health)

    async def close(self) -> None:
        """See `AsyncEngine.close`."""
        with self._news:
            self._closed = True
            self._news.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    async def _do(self, run: Callable[[], Any], adapter: str | None = None) -> Any:
        def inside() -> Any:
            with self._engine.using(adapter):
                return run()

        work = _Work(inside, adapter)
        self._put(work)
        return await asyncio.wrap_future(work.future)

    def _put(self, request: _Answer | _Score | _Work) -> None:
        with self._news:
            if self._closed or self._failure is not None:
                raise _ended(self._failure)
            self._waiting.append(request)
            self._news.notify()

    def _serve(self) -> None:
        """The thread: whatever fails in it for one request is told to that one, anything else ends the engine."""
        try:
            while self._take_in():
                if self._running.open:
                    self._step()
        except BaseException as error:
            log.exception("the engine died")
            self._failure = error
        with self._news:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
        requests: list[_Answer | _Score | _Work] = [*self._answers, *self._begun, *left]
        for request in requests:
            if not isinstance(request, _Answer) and not request.future.done():
                request.future.set_exception(_ended(self._failure))
        self._tell([(one, _ended(self._failure)) for one in requests if isinstance(one, _Answer)])

    def _take_in(self) -> bool:
        """Begin what waits, as far as there is room; False when the engine is closed."""
        with self._news:
            while not (self._waiting or self._running.open or self._closed):
                self._news.wait()
            if self._closed:
                return False
            if not self._running.open:
                self._gather()
            taken = self._taken()
        self._begun = taken
        self._join([request for request in taken if isinstance(request, _Answer)])
        scores: dict[object, list[_Score]] = {}
        for request in taken:
            if isinstance(request, _Score) and not request.future.cancelled():
                scores.setdefault((request.choices, request.adapter), []).append(request)
        for alike in scores.values():
            self._score(alike)
        # Last, so that an adapter is not unloaded before what was taken with it.
        for request in taken:
            if isinstance(request, _Work):
                _settle([request.future], lambda request=request: [request.run()])  # type: ignore[misc]
        self._begun = []
        return True

    def _gather(self) -> None:
        """Wait a moment for others, where a batch begins; not where enough wait, or other work does."""
        until = time.monotonic() + self._wait
        while all(isinstance(request, _Answer) for request in self._waiting) and len(self._waiting) < self._most:
            left = until - time.monotonic()
            if left <= 0 or not self._news.wait(left):
                return

    def _taken(self) -> list[_Answer | _Score | _Work]:
        """Requests to begin now, in the order in which they came; answers without room stay at the front."""
        taken: list[_Answer | _Score | _Work] = []
        stay: list[_Answer | _Score | _Work] = []
        room = self._most - len(self._running.open)
        if self._running.open and not self._engine.decoder.forward.has_places:
            room = 0
        while self._waiting:
            request = self._waiting.popleft()
            if not isinstance(request, _Answer):
                taken.append(request)
            elif request.cancelled:
                continue
            elif room > 0 and not stay:
                taken.append(request)
                room -= 1
            else:
                stay.append(request)
        self._waiting.extend(stay)
        return taken

    def _score(self, alike: list[_Score]) -> None:
        choices, adapter = alike[0].choices, alike[0].adapter

        def run(prompts: list[Prompt]) -> list[Scores]:
            with self._engine.using(adapter):
                return self._engine.score(prompts, choices)

        try:
            found = run([request.prompt for request in alike])
        except Exception:
            # One of them is refused; asked one by one, the others get their answers.
            for request in alike:
                _settle([request.future], functools.partial(run, [request.prompt]))
            return
        _settle([request.future for request in alike], lambda: found)

    def _join(self, answers: list[_Answer]) -> None:
        """Rows of new answers join the batch; those that cannot share it with what runs wait in front."""
        back: list[_Answer] = []
        for answer in answers:
            try:
                if answer.row is None:
                    if answer.adapter is not None:
                        self._engine.adapters.require(answer.adapter)
                    answer.row = self._engine.row(answer.prompt, answer.sampling)
                    answer.row.adapter = answer.adapter
                shares = self._shares(answer)
            except Exception as error:
                self._tell([(answer, error)])
                continue
            if not shares or back:
                back.append(answer)
                continue
            self._running.join([answer.row])
            self._answers.append(answer)
        with self._news:
            self._waiting.extendleft(reversed(back))

    def _shares(self, answer: _Answer) -> bool:
        """Whether an answer fits into the batch: its adapter mixes with the others, its length with the budget."""
        assert answer.row is not None
        rows = self._running.open
        if not rows:
            return True
        for adapter in {answer.adapter, *(row.adapter for row in rows)} - {None}:
            assert adapter is not None
            alone = not self._engine.adapters.mixes(adapter)
            if alone and any(row.adapter != answer.adapter for row in rows):
                return False
        # All have as much room as the longest.
        longest = max(len(row.prompt) + row.limit for row in (answer.row, *rows))
        return (len(rows) + 1) * longest <= self._engine.max_batch_tokens

    def _step(self) -> None:
        import torch

        for answer in self._answers:
            if answer.cancelled and answer.row is not None:
                answer.row.stopped = True
        if self._running.open:
            try:
                self._running.step()
            except torch.OutOfMemoryError as error:
                self._give_up(
                    ResourceError(
                        f"the device has no memory for {len(self._answers)} answers at once: {error}",
                        fix="lower max_batch_tokens or max_batch_size",
                    )
                )
                torch.cuda.empty_cache()
        said: list[tuple[_Answer, Delta | Exception]] = []
        open_answers = []
        now = time.monotonic()
        interval = min(_BUSY_PIECE_SECONDS, max(_PIECE_SECONDS, len(self._answers) / _PIECES_PER_SECOND))
        for answer in self._answers:
            assert answer.row is not None
            if answer.cancelled:
                # Also where the caller left during this step: nobody else would stop the row.
                answer.row.stopped = True
                continue
            if not answer.row.done:
                open_answers.append(answer)
                if now < answer.due:
                    continue
                answer.due = now + interval
            if event := self._news_of(answer, answer.row):
                said.append((answer, event))
        self._answers = open_answers
        self._tell(said)

    def _news_of(self, answer: _Answer, row: Row) -> Delta | Exception | None:
        """What was added to an answer since."""
        text = self._engine.decoder.text(row.answer)
        if not row.done:
            piece = answer.pieces.push(text)
            return Delta(piece) if piece else None
        try:
            return Delta(answer.pieces.finish(text), self._engine.generation(row))
        except PolysomeError as error:
            return error

    def _tell(self, said: Sequence[tuple[_Answer, Delta | Exception]]) -> None:
        """Hand on to the callers, of each loop all at once: every call into another thread's loop wakes it."""
        for loop in {answer.loop for answer, _ in said}:
            news = [(answer.told, event) for answer, event in said if answer.loop is loop]
            try:
                loop.call_soon_threadsafe(_put_all, news)
            except RuntimeError:
                # The callers are gone with their loop.
                if not loop.is_closed():
                    raise

    def _give_up(self, error: PolysomeError) -> None:
        self._tell([(answer, error) for answer in self._answers])
        self._answers = []
        self._running = Running(self._engine.decoder)


def _put_all(news: Sequence[tuple[asyncio.Queue[Delta | Exception], Delta | Exception]]) -> None:
    for told, event in news:
        told.put_nowait(event)


def _settle(futures: Sequence[Future[Any]], work: Callable[[], Sequence[Any]]) -> None:
    """Give futures their results, or all of them the error; those that nobody waits for any longer are left."""
    wanted = [future.set_running_or_notify_cancel() for future in futures]
    if not any(wanted):
        return
    try:
        results = work()
    except Exception as error:
        for future, is_wanted in zip(futures, wanted, strict=True):
            if is_wanted:
                future.set_exception(error)
        return
    for future, is_wanted, result in zip(futures, wanted, results, strict=True):
        if is_wanted:
            future.set_result(result)


def _ended(failure: BaseException | None) -> ResourceError:
    why = f": {type(failure).__name__}: {failure}" if failure is not None else ""
    return ResourceError(f"the engine has ended{why}", fix="ask again; another replica answers")
