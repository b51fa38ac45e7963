"""Evaluation actors: batches of conversations in, answers out in order of completion; a dead actor is replaced."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polysome.config import DataError, PolysomeError, ResourceError
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
        ResourceError: the cluster has no room for one actor, or a batch killed `ATTEMPTS` actors.
        PolysomeError: the model cannot be loaded.
    """
    if batches:
        pool = _Pool(options, min(_room(options), len(batches)))
        try:
            yield from pool.run(batches)
        finally:
            pool.close()


def _room(options: ActorOptions) -> int:
    """How many actors the cluster can hold at all."""
    import ray

    if not ray.is_initialized():
        raise ResourceError("no Ray cluster is connected", where="evaluation", fix="connect one with ray.init() first")
    total = ray.cluster_resources()
    room = min(options.actors, int(total.get("CPU", 0) // options.cpus))
    if options.gpus:
        room = min(room, int(total.get("GPU", 0) / options.gpus + 1e-9))
    if room < 1:
        needs = f"{options.cpus} CPUs" + (f" and {options.gpus:g} GPUs" if options.gpus else "")
        raise ResourceError(
            f"an evaluation actor needs {needs}; the cluster has {total.get('CPU', 0):g} CPUs and "
            f"{total.get('GPU', 0):g} GPUs",
            where="Ray cluster",
            fix="lower cpus_per_actor or gpus_per_actor, or add a node",
        )
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
                if isinstance(error.cause, PolysomeError):
                    raise error.cause from None
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
        ready, _ = ray.wait(placed, num_returns=1, timeout=0 if others_run else options.start_timeout)
        if not ready and not others_run:
            free = ray.available_resources()
            raise ResourceError(
                f"no evaluation actor could be placed within {options.start_timeout:g} s: {free.get('CPU', 0):g} CPUs "
                f"and {free.get('GPU', 0):g} GPUs are free, an actor needs {options.cpus} and {options.gpus:g}",
                where="Ray cluster",
                fix="wait for other jobs or stop them, or raise start_timeout when the cluster grows on demand",
            )

    def _forget(self, actor: Any) -> None:
        self._actors = [other for other in self._actors if other is not actor]
