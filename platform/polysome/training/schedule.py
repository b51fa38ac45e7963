"""The learning-rate schedule as a pure function of the update, and the extent of a stage in rows and updates."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from polysome.config import ConfigurationError
from polysome.models.trainability import Role
from polysome.training.config import Schedule, StageConfig


@dataclass(frozen=True)
class Extent:
    """How long a stage is.

    Attributes:
        rows: packed rows to train on, repeats counted.
        updates: optimizer updates; the last may hold fewer rows than the others.
    """

    rows: int
    updates: int


def extent(config: StageConfig, rows_per_epoch: int) -> Extent:
    """Rows and updates of a stage over `rows_per_epoch` packed rows (AMB-8: both are said, never confused).

    Raises:
        ConfigurationError: the warm-up takes as many updates as there are.
    """
    batch = config.rows_per_update
    rows = math.ceil(config.epochs * rows_per_epoch) if config.epochs is not None else None
    if config.max_updates is not None and (rows is None or rows > config.max_updates * batch):
        rows = config.max_updates * batch
    assert rows is not None  # StageConfig has an end
    result = Extent(rows, math.ceil(rows / batch))
    schedule = config.schedule
    before_peak = schedule.embedding_warmup_steps + schedule.prewarmup_steps + warmup_updates(schedule, result.updates)
    if before_peak >= result.updates and before_peak > 0:
        raise ConfigurationError(
            f"warm-up takes {before_peak} of the stage's {result.updates} updates",
            where="schedule.embedding_warmup_steps, schedule.prewarmup_steps, schedule.warmup_fraction",
            fix="lower them, raise epochs or max_updates, or make the batch smaller",
        )
    return result


def warmup_updates(schedule: Schedule, updates: int) -> int:
    """Updates of the linear warm-up."""
    return round(schedule.warmup_fraction * updates)


def learns(schedule: Schedule, role: Role, done: int) -> bool:
    """Whether parameters of a role learn in the update after `done` updates."""
    return role == "embedding" or done >= schedule.embedding_warmup_steps


def rate_factor(schedule: Schedule, updates: int) -> Callable[[int], float]:
    """The factor on every group's learning rate, by the number of updates already done.

    Constant at `prewarmup_factor`, then linear up to 1, then `floor + (1 - floor) (1 + cos(pi t)) / 2` with t running
    from 0 to 1 at the end of the stage (A-93). Before all this stands the embedding warm-up, in which it is 1, and
    only the groups that `learns` names have a rate.
    """
    alone, prewarmup, warmup = (
        schedule.embedding_warmup_steps,
        schedule.prewarmup_steps,
        warmup_updates(schedule, updates),
    )
    start = schedule.prewarmup_factor if prewarmup else 0.0
    decay = max(1, updates - alone - prewarmup - warmup)

    def factor(done: int) -> float:
        if done < alone:
            return 1.0
        done -= alone
        if done < prewarmup:
            return schedule.prewarmup_factor
        if done < prewarmup + warmup:
            return start + (1.0 - start) * (done - prewarmup + 1) / (warmup + 1)
        progress = min(1.0, (done - prewarmup - warmup) / decay)
        return schedule.floor + (1.0 - schedule.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor
