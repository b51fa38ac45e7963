"""Many questions of one request at once: results together, streams merged, and no more than a share of the pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import TypeVar, cast

from polysome.inference.asynchronous import Delta, Traced
from polysome.inference.engine import Embeddings, Generation, Prompt, Sampling, Scores
from polysome.inference.engine import Pool as Pooling
from polysome.serving.calls import Expired, Pool, Target

T = TypeVar("T")


def closing(items: AsyncIterator[T]) -> aclosing[AsyncGenerator[T, None]]:
    """`async with closing(pool.generate(…)) as pieces`: on the way out the iterator is closed, and its place free."""
    return aclosing(cast("AsyncGenerator[T, None]", items))


async def together(work: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """The results of all, in order. The first failure cancels the others, so that nobody works for nothing."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def merged(
    streams: Sequence[AsyncIterator[T]], *, deadline: float, silence: float
) -> AsyncGenerator[tuple[int, T] | None, None]:
    """The items of all streams as they come, each with its stream's place; closing it closes them all.

    Args:
        deadline: seconds of `time.time`.
        silence: seconds; None is given whenever so long nothing came.

    Raises:
        Expired: the deadline passed.
        Exception: what the first stream that fails raises.
    """
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def pump(place: int, stream: AsyncIterator[T]) -> None:
        try:
            async with closing(stream) as items:
                async for item in items:
                    queue.put_nowait((place, item))
        except Exception as error:
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(place, stream)) for place, stream in enumerate(streams)]
    running = len(tasks)
    try:
        while running:
            try:
                async with asyncio.timeout(max(0.0, min(silence, deadline - time.time()))):
                    item = await queue.get()
            except TimeoutError:
                if deadline <= time.time():
                    raise Expired("the answer took longer than the time limit") from None
                yield None
                continue
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def whole(pieces: AsyncIterator[Delta]) -> Generation:
    """The answer of which these are the pieces."""
    async with closing(pieces) as opened:
        async for piece in opened:
            if piece.generation is not None:
                return piece.generation
    raise RuntimeError("a pool's answer ended without its last piece")


class Bounded:
    """A pool that is asked `at_once` questions at a time, so that requests of many questions neither overflow the
    pool's queue nor shut out single ones."""

    def __init__(self, pool: Pool, at_once: int) -> None:
        self._pool, self._places = pool, asyncio.Semaphore(at_once)

    async def generate(
        self, prompt: Prompt, sampling: Sampling, target: Target, *, stream: bool = True
    ) -> AsyncGenerator[Delta, None]:
        """See `Pool.generate`."""
        async with self._places, closing(self._pool.generate(prompt, sampling, target, stream=stream)) as pieces:
            async for piece in pieces:
                yield piece

    async def score(self, prompt: Prompt, choices: Sequence[str], target: Target) -> Scores:
        """See `Pool.score`."""
        async with self._places:
            return await self._pool.score(prompt, choices, target)

    async def embed(self, texts: Sequence[Prompt], pool: Pooling, target: Target) -> Embeddings:
        """See `Pool.embed`."""
        async with self._places:
            return await self._pool.embed(texts, pool, target)

    async def trace(self, prompt: Prompt, answer: Sequence[int], top: int, target: Target) -> Traced:
        """See `Pool.trace`."""
        async with self._places:
            return await self._pool.trace(prompt, answer, top, target)

    async def ready(self) -> None:
        """See `Pool.ready`."""
        await self._pool.ready()
