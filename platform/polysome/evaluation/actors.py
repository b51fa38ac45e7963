"""Evaluation actors: batches of conversations in, answers out in order of completion; a dead actor is replaced."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polysome.config import DataError, ResourceError
from polysome.data.ray_capacity import can_grow, require_capacity
from polysome.data.ray_errors import cause_of
from polysome.inference.engine import Conversation, Engine, Generation

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a batch is tried before the evaluation stops: each try but the first follows the death of an actor."""


@dataclass(frozen=True)
class Refusal:
    """Why one conversation could not be asked."""

    reason: str


Answer = Generation | Refusal


@dataclass(frozen=True)
class ActorOptions:
    """What each actor is and holds."""

    model: str
    actors: int
    cpus: int
    gpus: float
    max_batch_tokens: int
    max_new_tokens: int
    start_timeout: float


class Answerer:
    """Runs in a Ray actor: one engine, loaded by `load` rather than on construction, to tell placing from loading."""

    def __init__(self, options: ActorOptions) -> None:
        self._options = options
        self._engine: Engine | None = None

    def load(self) -> None:
        """Load the model; PolysomeErrors reach the caller as they are."""
        from polysome.inference.batch import BatchEngine

        options = self._options
        self._engine = BatchEngine(
            options.model,
            max_batch_tokens=options.max_batch_tokens,
            threads=options.cpus,
            device="cuda" if options.gpus else "cpu",
        )

    def placed(self) -> None:
        """Returns as soon as the actor runs somewhere."""

    def answer(self, conversations: list[Conversation]) -> list[Answer]:
        """Greedy answers, in order; one conversation that cannot be asked does not spoil the others."""
        assert self._engine is not None, "load first"
        return ask(self._engine, conversations, self._options.max_new_tokens)


def ask(engine: Engine, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Answer]:
    """Answer all; where the engine refuses, halve until the refused conversations stand alone."""
    try:
        return list(engine.generate(conversations, max_new_tokens=max_new_tokens))
    except DataError as error:
        if len(conversations) == 1:
            return [Refusal(error.what)]
        middle = len(conversations) // 2
        return [
            answer
            for half in (conversations[:middle], conversations[middle:])
            for answer in ask(engine, half, max_new_tokens)
        ]


def answer_batches(batches: Sequence[list[Conversation]], options: ActorOptions) -> Iterator[tuple[int, list[Answer]]]:
    """Yield (index of the batch, its answers) as batches complete, from a pool of actors on the connected cluster.

    The pool is as large as the cluster allows, at most `options.actors` and never larger than the number of batches.
    All actors are gone when the iterator ends or is closed.

    Raises:
        ResourceError: a cluster that cannot grow has no room for one actor, or a batch killed `ATTEMPTS` actors.
        PolysomeError: the model cannot be loaded.
    """
    if batches:
        pool = _Pool(options, min(_room(options), len(batches)))
        try:
            yield from pool.run(batches)
        finally:
            pool.close()


def _room(options: ActorOptions) -> int:
    """How many actors to start: as many as a cluster that cannot grow can hold at all."""
    import ray

    require_capacity(
        "an evaluation actor",
        cpus=options.cpus,
        gpus=options.gpus,
        where="Ray cluster",
        fix="lower cpus_per_actor or gpus_per_actor, or add a node",
    )
    if can_grow():
        return options.actors
    total = ray.cluster_resources()
    room = min(options.actors, int(total.get("CPU", 0) // options.cpus))
    if options.gpus:
        room = min(room, int(total.get("GPU", 0) / options.gpus + 1e-9))
    if room < options.actors:
        logger.warning("the cluster has room for %d of %d evaluation actors", room, options.actors)
    return room


class _Pool:
    """Hands waiting batches to idle actors; what each running call is for stands in `_running`."""

    def __init__(self, options: ActorOptions, size: int) -> None:
        self._options = options
        self._size = size
        self._actors: list[Any] = []
        self._running: dict[Any, tuple[Any, int | None]] = {}
        """Call -> (actor, index of the batch; None while it loads)."""

    def run(self, batches: Sequence[list[Conversation]]) -> Iterator[tuple[int, list[Answer]]]:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        waiting = list(range(len(batches)))[::-1]
        attempts = [0] * len(batches)
        failed_loads = 0
        self._start(self._size)
        while waiting or any(index is not None for _, index in self._running.values()):
            [call], _ = ray.wait(list(self._running), num_returns=1)
            actor, index = self._running.pop(call)
            try:
                answers = ray.get(call)
            except RayTaskError as error:
                cause = cause_of(error)
                if cause is not None:
                    raise cause from None
                raise
            except RayActorError as error:
                self._forget(actor)
                if index is None:
                    failed_loads += 1
                else:
                    attempts[index] += 1
                    waiting.append(index)
                if failed_loads == ATTEMPTS or (index is not None and attempts[index] == ATTEMPTS):
                    doing = "loading the model" if index is None else f"batch {index}"
                    raise ResourceError(
                        f"{ATTEMPTS} evaluation actors died at {doing}: {str(error).splitlines()[0]}",
                        where=self._options.model,
                        fix="most often memory: lower max_batch_tokens, batch_size or actors; answers so far are kept",
                    ) from error
                logger.warning("an evaluation actor died; another one takes over")
                self._start(1)
                continue
            if index is not None:
                yield index, answers
            if waiting:
                following = waiting.pop()
                self._running[actor.answer.remote(batches[following])] = (actor, following)

    def close(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def _start(self, count: int) -> None:
        """Start actors and wait until one of them is placed; the others join as soon as they are."""
        import ray

        options = self._options
        remote: Any = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_restarts=0)(Answerer)
        started = [remote.remote(options) for _ in range(count)]
        self._actors += started
        placed = [actor.placed.remote() for actor in started]
        self._running |= {actor.load.remote(): (actor, None) for actor in started}
        others_run = len(self._actors) > count
        if others_run:
            return
        while not ray.wait(placed, num_returns=1, timeout=options.start_timeout)[0]:
            free = ray.available_resources()
            shortage = (
                f"no evaluation actor could be placed within {options.start_timeout:g} s: {free.get('CPU', 0):g} CPUs "
                f"and {free.get('GPU', 0):g} GPUs are free, an actor needs {options.cpus} and {options.gpus:g}"
            )
            if not can_grow():
                raise ResourceError(
                    shortage, where="Ray cluster", fix="wait for other jobs or stop them, or raise start_timeout"
                )
            logger.warning("%s; waiting for the cluster to grow", shortage)

    def _forget(self, actor: Any) -> None:
        self._actors = [other for other in self._actors if other is not actor]
