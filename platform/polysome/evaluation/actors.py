"""Evaluation actors: batches of questions in, answers out in order of completion; a dead actor is replaced."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.data.meters import Usage, counter
from polysome.data.ray_capacity import can_grow, require_capacity
from polysome.data.ray_errors import cause_of
from polysome.evaluation.choices import Choices
from polysome.inference.endpoint import Endpoint
from polysome.inference.engine import Conversation, Engine, Generation, open_engine

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a batch is tried before the evaluation stops: each try but the first follows the death of an actor."""

AnswerT = TypeVar("AnswerT")
ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Scored:
    """What the likelihood of all choices says of one conversation; see `Choices.read`."""

    scores: tuple[float, ...]


@dataclass(frozen=True)
class Refusal:
    """Why one conversation could not be asked."""

    reason: str
    transient: bool = False
    """The reason is not the conversation's own: it may be answered another time."""


Answer = Generation | Scored | Refusal


@dataclass(frozen=True)
class Batch:
    """What an actor gets at a time.

    Attributes:
        choices: the answers to score; None: each conversation is answered in words.
        blanks: for each conversation the one without molecules that its scores are told relative to, or None.
        seeds: for each conversation that of its answer's draws, or none.
    """

    conversations: list[Conversation]
    choices: Choices | None = None
    blanks: tuple[Conversation | None, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answered:
    """The answers to a batch, in its order, and the seconds that they took."""

    answers: list[Answer]
    seconds: float


@dataclass(frozen=True)
class ActorOptions:
    """What each actor is and holds."""

    model: str | Endpoint
    actors: int
    cpus: int
    gpus: float
    max_batch_tokens: int
    max_new_tokens: int
    start_timeout: float
    adapter: str | None = None
    temperature: float = 0.0

    @property
    def where(self) -> str:
        """The model's address."""
        return self.model.url if isinstance(self.model, Endpoint) else self.model


class Answerer:
    """Runs in a Ray actor: one engine, loaded by `load` rather than on construction, to tell placing from loading."""

    def __init__(self, options: ActorOptions) -> None:
        self._options = options
        self._engine: Engine | None = None
        self._priors: dict[str, tuple[float, ...]] = {}
        self._usage = Usage("evaluation")

    def load(self) -> None:
        """Load the model; PolysomeErrors reach the caller as they are."""
        options = self._options
        self._engine = open_engine(
            options.model,
            adapter=options.adapter,
            max_batch_tokens=options.max_batch_tokens,
            threads=options.cpus,
            device="cuda" if options.gpus else "cpu",
        )

    def placed(self) -> None:
        """Returns as soon as the actor runs somewhere."""

    def answer(self, batch: Batch) -> Answered:
        """Answers in words, or scores; one conversation that cannot be asked does not spoil the others."""
        assert self._engine is not None, "load first"
        started = time.monotonic()
        answers: list[Answer] = []
        if batch.choices is None:
            options = self._options
            answers += ask(
                self._engine,
                batch.conversations,
                options.max_new_tokens,
                temperature=options.temperature,
                seeds=batch.seeds,
            )
        else:
            answers += self._score(self._engine, batch, batch.choices)
        _count("text" if batch.choices is None else "scores", answers)
        self._usage.tell()
        return Answered(answers, time.monotonic() - started)

    def _score(self, engine: Engine, batch: Batch, choices: Choices) -> list[Scored | Refusal]:
        def sums(conversations: Sequence[Conversation]) -> list[tuple[float, ...]]:
            return [scores.sums for scores in engine.score(conversations, choices.texts)]

        def prior_of(blank: Conversation) -> tuple[float, ...] | Refusal:
            name = json.dumps([choices.fingerprint, blank])
            if name not in self._priors:
                (told,) = each(engine, sums, [blank])
                if isinstance(told, Refusal):
                    return replace(told, reason=f"the question without its molecules: {told.reason}")
                self._priors[name] = told
            return self._priors[name]

        found: list[Scored | Refusal] = []
        blanks = batch.blanks or (None,) * len(batch.conversations)
        told = each(engine, sums, batch.conversations)
        for blank, item in zip(blanks, told, strict=True):
            prior = None if blank is None or isinstance(item, Refusal) else prior_of(blank)
            if isinstance(item, Refusal):
                found.append(item)
            elif isinstance(prior, Refusal):
                found.append(prior)
            else:
                found.append(Scored(choices.read(item, prior)))
        return found


def ask(
    engine: Engine,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
) -> list[Generation | Refusal]:
    """Answer all in words, greedily unless a temperature is given; see `each`.

    Args:
        seeds: of the draws, one for each conversation, so that they do not depend on what is asked beside it.
    """

    def answered(part: Sequence[tuple[Conversation, int | None]]) -> list[Generation]:
        asked = [conversation for conversation, _ in part]
        drawn = [seed for _, seed in part if seed is not None]
        return engine.generate(asked, max_new_tokens=max_new_tokens, temperature=temperature, seed=drawn or None)

    own: Sequence[int | None] = seeds or [None] * len(conversations)
    return each(engine, answered, list(zip(conversations, own, strict=True)))


def each(
    engine: Engine, call: Callable[[Sequence[ItemT]], list[AnswerT]], conversations: Sequence[ItemT]
) -> list[AnswerT | Refusal]:
    """`call` for all conversations, each with what goes with it; those at which it fails stand alone as refusals, and
    do not spoil the others.

    Raises:
        ConfigurationError: the engine cannot do this at all.
        ResourceError: the engine failed and is not in health.
    """
    try:
        return list(call(conversations))
    except ConfigurationError:
        raise
    except DataError as error:
        if len(conversations) == 1:
            return [Refusal(error.what)]
    except ResourceError as error:
        engine.health()
        if len(conversations) == 1:
            return [Refusal(error.what, transient=True)]
        # One by one: an endpoint is asked patiently, and what it has answered is not sent again.
        return [answer for item in conversations for answer in each(engine, call, [item])]
    except Exception as error:
        # A row that breaks an engine is told with the row; where every row does, the evaluation stops (see `run`).
        if len(conversations) == 1:
            logger.exception("a question could not be asked")
            return [Refusal(f"{type(error).__name__}: {error}", transient=True)]
    middle = len(conversations) // 2
    return [answer for half in (conversations[:middle], conversations[middle:]) for answer in each(engine, call, half)]


def _count(mode: str, answers: Sequence[Answer]) -> None:
    """Count rows in `evaluation_rows_total{mode,outcome}`."""
    refused = sum(isinstance(answer, Refusal) for answer in answers)
    rows = counter("evaluation_rows_total", "Questions that an evaluation asked", "mode", "outcome")
    for outcome, number in (("answered", len(answers) - refused), ("refused", refused)):
        if number:
            rows.inc(number, {"mode": mode, "outcome": outcome})


def answer_batches(batches: Sequence[Batch], options: ActorOptions) -> Iterator[tuple[int, Answered]]:
    """Yield (index of the batch, its answers) as batches complete, from a pool of actors on the connected cluster.

    The pool is as large as the cluster allows, at most `options.actors` and never larger than the number of batches; an
    endpoint has one actor, which sends several requests at once and keeps the budget. All actors are gone when the
    iterator ends or is closed.

    Raises:
        ResourceError: a cluster that cannot grow has no room for one actor, or a batch killed `ATTEMPTS` actors.
        PolysomeError: the model cannot be loaded.
    """
    if batches:
        most = 1 if isinstance(options.model, Endpoint) else options.actors
        pool = _Pool(options, min(_room(options), most, len(batches)))
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

    def run(self, batches: Sequence[Batch]) -> Iterator[tuple[int, Answered]]:
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
                answered = ray.get(call)
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
                        where=self._options.where,
                        fix="most often memory: lower max_batch_tokens, batch_size or actors; answers so far are kept",
                    ) from error
                logger.warning("an evaluation actor died; another one takes over")
                self._start(1)
                continue
            # The actor goes on while the caller writes down what it said.
            if waiting:
                following = waiting.pop()
                self._running[actor.answer.remote(batches[following])] = (actor, following)
            if index is not None:
                yield index, answered

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
