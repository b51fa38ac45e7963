"""The worker of a gateway: batches that nobody works on in, their answers written chunk by chunk."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from uuid import uuid4

from polysome.config import ConfigurationError, DataError, PolysomeError
from polysome.serving.batches import LEASE, Batch, Batches, chunks
from polysome.serving.calibrations import Calibrations
from polysome.serving.calls import Overloaded
from polysome.serving.context import Context
from polysome.serving.predict_api import answered
from polysome.serving.prediction import Answered, Prediction, Predictor, Record, read_record, task_spec
from polysome.serving.protocol import ApiError, of_server
from polysome.serving.records import Entry, answer_row, error_row

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Batches of one gateway at a time; further ones wait for any gateway."""
SWEEP = 10.0
"""Seconds between two looks for batches that nobody works on."""
ATTEMPTS = 4
"""How often a record is asked that the pool cannot answer though it is ready, before its row is an error."""
_LONGEST_PAUSE = 30.0


class _LostError(Exception):
    """The batch was removed, or another gateway has it."""


@dataclass
class Worker:
    """Works on batches while its gateway lives; what it has not written when that dies, another one asks again."""

    context: Context
    store: Batches
    calibrations: Calibrations
    owner: str = field(default_factory=lambda: uuid4().hex)
    sweep: float = SWEEP
    lease: float = LEASE
    pause: float = 1.0
    """Seconds before a question that was refused for want of room is asked again; about so long, that all do not come
    back at once."""

    def __post_init__(self) -> None:
        # A record is two questions: all batches of a gateway have at most a quarter of its queue.
        self._places = asyncio.Semaphore(max(1, self.context.config.max_queued_requests // 8))
        self._running: dict[str, asyncio.Task[None]] = {}
        self._messages: dict[str, str] = {}
        self._woken = asyncio.Event()
        self._taking: tuple[str, asyncio.Future[bool]] | None = None
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Look for batches now, and from now on."""
        self._woken.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Stop, and leave what is not finished to others at once."""
        tasks = [task for task in (self._task, *self._running.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._taking is not None:
            # It was taken, or will be in a moment, for work that does not begin any more.
            batch_id, taking = self._taking
            if await taking:
                await asyncio.to_thread(self.store.release, batch_id, self.owner)

    async def _look(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self._take_up()
            except Exception:
                # The storage may be away for a while; batches wait for it.
                log.exception("cannot look for batches")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), self.sweep)

    async def _take_up(self) -> None:
        for batch_id in await asyncio.to_thread(self.store.unfinished):
            if len(self._running) >= AT_ONCE:
                return
            if batch_id in self._running:
                continue
            taking = asyncio.ensure_future(asyncio.to_thread(self.store.take, batch_id, self.owner))
            self._taking = (batch_id, taking)
            if await asyncio.shield(taking):
                task = asyncio.create_task(self._work(batch_id))
                self._running[batch_id] = task
                task.add_done_callback(partial(self._left, batch_id))
                # Its first step, from which on it releases what it took.
                await asyncio.sleep(0)
            self._taking = None

    def _left(self, batch_id: str, task: asyncio.Task[None]) -> None:
        self._running.pop(batch_id, None)
        self._messages.pop(batch_id, None)
        self._woken.set()

    async def _work(self, batch_id: str) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self._keep(batch_id))
                if (batch := await asyncio.to_thread(self.store.read, batch_id)) is not None:
                    await self._answer(batch)
                keeping.cancel()
        except* _LostError:
            log.info("batch %s is no longer this gateway's", batch_id)
        except* (ConfigurationError, DataError, ApiError) as failed:
            # Its task or adapter is gone, or its input cannot be read: so it is at every gateway.
            message = "; ".join(map(_what, failed.exceptions))
            log.error("batch %s failed: %s", batch_id, "; ".join(map(str, failed.exceptions)))
            await asyncio.to_thread(self.store.finish, batch_id, "failed", message=message)
        except* Exception:
            # Another gateway, or this one later, takes it up where it is.
            log.exception("batch %s was left", batch_id)
            # Still leased: neither this gateway nor another asks the same again at once.
            await asyncio.sleep(self.sweep)
        finally:
            await asyncio.shield(asyncio.to_thread(self._leave, batch_id))

    def _leave(self, batch_id: str) -> None:
        self.store.release(batch_id, self.owner)
        try:
            removed = self.store.read(batch_id) is None
        except (DataError, ConfigurationError) as error:
            log.warning("batch %s was left, its record is damaged: %s", batch_id, error)
            return
        if removed:
            # Removed while an answer was being written.
            self.store.delete(batch_id)

    async def _keep(self, batch_id: str) -> None:
        while True:
            await asyncio.sleep(self.lease / 3)
            lease = await asyncio.to_thread(self.store.lease, batch_id)
            if lease is None or lease.owner != self.owner:
                raise _LostError
            await asyncio.to_thread(self.store.renew, batch_id, self.owner, self._messages.get(batch_id, ""))

    async def _answer(self, batch: Batch) -> None:
        spec = task_spec(batch.task)
        target = await self.context.target(batch.model)
        evidence = self.calibrations.of(spec, target)
        config = self.context.config
        predictor = Predictor(
            spec,
            self.context.pool,
            prompt=config.prompt,
            max_new_tokens=config.limits.default_max_tokens,
            evidence=evidence,
        )
        told = answered(self.context, spec, target, evidence.note)
        known = await asyncio.to_thread(self.store.answered, batch.id)
        with closing(self.store.entries(batch.id, spec)) as entries:
            parts = chunks(entries, batch.chunk)
            while (part := await asyncio.to_thread(next, parts, None)) is not None:
                number, records = part
                if number in known:
                    continue
                async with asyncio.TaskGroup() as group:
                    rows = [group.create_task(self._row(batch, predictor, told, record)) for record in records]
                await asyncio.to_thread(self.store.write_answers, batch.id, number, [row.result() for row in rows])
        errors = await asyncio.to_thread(self.store.count_errors, batch, spec)
        await asyncio.to_thread(self.store.finish, batch.id, "finished", errors=errors)

    async def _row(self, batch: Batch, predictor: Predictor, told: Answered, entry: Entry) -> list[str]:
        """The row of a record: its answer, or why there is none."""
        outcome = await self._outcome(batch, predictor, entry)
        if isinstance(outcome, Prediction):
            return answer_row(predictor.spec, told, outcome)
        return error_row(predictor.spec, told, entry.id, outcome)

    async def _outcome(self, batch: Batch, predictor: Predictor, entry: Entry) -> Prediction | str:
        if entry.raw is None:
            return entry.problem
        longest = self.context.config.limits.sequence_characters
        try:
            sequences = read_record(predictor.spec, entry.raw, where="", longest=longest)
        except DataError as error:
            return f"{error.where.removeprefix('.')}: {error.what}" if error.where else error.what
        record = Record(0, entry.id, entry.raw, tuple(sequences))
        failed = 0
        while True:
            try:
                async with self._places:
                    target = await self.context.target(batch.model)
                    return await self.context.within(target, predictor.predict_one(record, target))
            except Overloaded:
                await asyncio.sleep(self.pause * (0.5 + random.random()))
            except Exception as error:
                if isinstance(error, DataError | ConfigurationError) and not of_server(error):
                    return error.what
                # A replica died, or took too long: perhaps of this record, perhaps of another.
                failed += 1
                kind, where = type(error).__name__, getattr(error, "where", "")
                log.warning("a record of batch %s failed %d times: %s %s", batch.id, failed, kind, where)
                if failed == ATTEMPTS:
                    told = isinstance(error, PolysomeError | ApiError)
                    return f"no answer in {ATTEMPTS} attempts" + (f": {_what(error)}" if told else "")
                await self._until_ready(batch.id)

    async def _until_ready(self, batch_id: str) -> None:
        """Wait for as long as the pool cannot answer anybody."""
        pause = self.pause
        while True:
            await asyncio.sleep(pause * (0.5 + random.random()))
            try:
                await self.context.within(await self.context.target(None), self.context.pool.ready())
            except (PolysomeError, ApiError) as error:
                self._messages[batch_id] = f"waits for the model: {_what(error)}"
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._messages.pop(batch_id, None)
                return


def _what(error: Exception) -> str:
    """As it is told to the batch's owner."""
    if not isinstance(error, PolysomeError):
        return str(error)
    return "the server's own files or settings are wrong; tell the operators" if of_server(error) else error.what
