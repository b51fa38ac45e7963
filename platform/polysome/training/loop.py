"""The loop: update after update, with what is logged, measured and saved between them."""

from __future__ import annotations

import hashlib
import logging
import math
import time
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from polysome.config import PolysomeError
from polysome.data.feed import Feed
from polysome.data.meters import Usage
from polysome.storage import exists, join
from polysome.training.config import StageConfig
from polysome.training.reading import Batches
from polysome.training.schedule import Extent, learns, rate_factor

if TYPE_CHECKING:
    from polysome.training.checkpoint import Progress, Writer
    from polysome.training.dev import Dev
    from polysome.training.engine import Engine, Place
    from polysome.training.health import Window
    from polysome.training.metrics import MetricsLog
    from polysome.training.trackers import Trackers

logger = logging.getLogger(__name__)

STOP = "STOP"
"""A file of this name in the run folder stops training after the update that is under way."""
_LOOK_SECONDS = 5.0
"""How often a remote run folder is asked for the file STOP, and Ray whether this node is about to be taken away."""


class NonFiniteLossError(PolysomeError):
    """The loss or the gradient stayed NaN or infinite."""


@dataclass
class Loop:
    """Update after update; what it needs beside the engine."""

    engine: Engine
    feed: Feed
    config: StageConfig
    length: Extent
    folder: str
    writer: Writer
    metrics: MetricsLog | None
    trackers: Trackers | None
    sources: list[str]
    dev: Dev | None
    watched: bool
    flops: dict[str, Any]
    usage: Usage

    def run(self, start: Progress) -> tuple[Progress, bool]:
        """Train from `start` to the end of the stage; returns the progress there, and whether it was asked to stop
        before.

        Raises:
            NonFiniteLossError: more gradients in a row than allowed were not finite; on every worker alike.
        """
        with ExitStack() as opened:
            # However it ends, the checkpoint that is being written is committed, and what was logged can be read.
            opened.callback(self._close)
            return self._run(start, opened)

    def _run(self, start: Progress, opened: ExitStack) -> tuple[Progress, bool]:
        from polysome.training.health import Window

        config, engine, length = self.config, self.engine, self.length
        factor = rate_factor(config.schedule, length.updates)
        window = Window(self.sources, engine.place.device, **self.flops)
        rows = 0
        signals = Signals(self.folder, engine.place, self.watched)
        progress, in_a_row = start, 0
        batches = Batches(self.feed, config, engine.place, start.position, length.rows)
        opened.callback(batches.close)
        while progress.update < length.updates:
            began, waited = time.perf_counter(), batches.waited
            stop = min(progress.position + config.rows_per_update, length.rows)
            positions = np.arange(progress.position, stop)
            tokens, targets = (int(counts.sum()) for counts in self.feed.counts(positions))
            rates = engine.set_rates(factor(progress.update), partial(learns, config.schedule, done=progress.update))
            seed_update(config.seed, progress.update, engine.place.rank)
            norm, sums = engine.update(batches.of_update(), targets)
            finite = math.isfinite(norm)
            seconds = time.perf_counter() - began
            in_a_row = 0 if finite else in_a_row + 1
            if in_a_row > config.max_skipped_updates:
                raise NonFiniteLossError(
                    f"the gradient of update {progress.update + 1} is not finite, as were the {in_a_row - 1} before it",
                    where=f"packed rows at positions {positions[0]} to {positions[-1]}",
                    fix="lower optimizer.learning_rate or optimizer.lora_plus_ratio, or set precision: fp32, and give "
                    "the changed stage a run folder of its own",
                )
            if not finite and engine.place.rank == 0:
                logger.warning("update %d: the gradient is not finite, skipped", progress.update + 1)
            progress = replace(
                progress,
                update=progress.update + 1,
                skipped=progress.skipped + (not finite),
                position=stop,
                tokens=progress.tokens + tokens,
                seconds=progress.seconds + seconds,
            )
            rows = zlib.crc32(self.feed.order(positions).tobytes(), rows)
            window.add_losses(sums)
            window.add(
                tokens=tokens, targets=targets, seconds=seconds, waited=batches.waited - waited, skipped=not finite
            )

            last = progress.update == length.updates
            asked_to_stop, leaving = signals.agree()
            measured = self.dev(engine) if self.dev and self.dev.due(progress.update, last=last) else None
            if measured:
                loss = measured.get("loss")
                usable = loss if loss is not None and math.isfinite(loss) else None
                progress = replace(progress, dev_loss=usable, dev_update=progress.update)
            ends = last or asked_to_stop
            saves = ends or leaving or progress.update % config.checkpoint.every_updates == 0
            # Whoever resumes begins a new window, so this one is told before the checkpoint is.
            if saves or measured or progress.update % config.log_every_updates == 0:
                progress = self._log(window, progress, norm, rates, rows, measured)
                rows = 0
            if saves:
                self._sync()
                self.writer.save(engine, progress)
            if leaving:
                self.writer.wait()
            if ends:
                break
        return progress, progress.update < length.updates

    def _sync(self) -> None:
        for log in (self.metrics, self.trackers):
            if log is not None:
                log.sync()

    def _close(self) -> None:
        self._sync()
        if self.trackers is not None:
            self.trackers.close()
        self.writer.wait()

    def _log(
        self,
        window: Window,
        progress: Progress,
        norm: float,
        rates: dict[str, float],
        rows: int,
        dev: dict[str, Any] | None,
    ) -> Progress:
        """Write the window's row; all workers take part in its sums, the first one writes."""
        row: dict[str, Any] = {
            "update": progress.update,
            "updates": self.length.updates,
            "epoch": progress.position / self.feed.length,
            "position": progress.position,
            "grad_norm": norm if math.isfinite(norm) else None,
            "learning_rate": rates,
            "tokens": progress.tokens,
            # Which rows the window has trained on, in their order: equal in a resumed run and an undisturbed one.
            "rows_crc32": rows,
            **window.row(updates_left=self.length.updates - progress.update),
            "skipped": progress.skipped,
            **({"dev": dev} if dev else {}),
            "time": time.time(),
        }
        self.usage.tell()
        if self.metrics is not None:
            self.metrics.write(row)
            if self.trackers is not None:
                self.trackers.log(row)
            logger.info(
                "%s %d/%d  loss %.4f  grad %.3g  lr %.3g  %.0f tokens/s  wait %.1f %%  left %.0f s",
                self.config.name,
                progress.update,
                self.length.updates,
                math.nan if row["loss"] is None else row["loss"],
                norm,
                max(rates.values()),
                row["tokens_per_second"],
                100 * row["data_wait_share"],
                row["eta_seconds"],
            )
        return replace(progress, loss=progress.loss if row["loss"] is None else row["loss"])


def seed_update(seed: int, update: int, rank: int) -> None:
    """Seed torch's generators with a function of the update and the worker alone, so that dropout resumes as it was."""
    import torch

    digest = hashlib.sha256(f"{seed}/{update}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Signals:
    """What the workers must agree on after every update: to stop, and that a node is about to be taken away."""

    def __init__(self, folder: str, place: Place, watched: bool) -> None:
        self._stop, self._place, self._watched = join(folder, STOP), place, watched
        self._patience = 0.0 if "://" not in folder else _LOOK_SECONDS
        self._asked_stop = self._asked_ray = time.monotonic()
        self._told = False

    def agree(self) -> tuple[bool, bool]:
        """(stop now, save now because a node leaves), the same on every worker."""
        import torch

        flags = torch.zeros(2, dtype=torch.int32)
        now = time.monotonic()
        if self._place.rank == 0:
            if now - self._asked_stop >= self._patience:
                self._asked_stop = now
                flags[0] = exists(self._stop)
            if self._watched and now - self._asked_ray >= _LOOK_SECONDS:
                self._asked_ray = now
                flags[1] = 1
        if self._place.world_size > 1:
            flags = flags.to(self._place.device)
            torch.distributed.broadcast(flags, 0)
        stop, look = (bool(flag) for flag in flags.tolist())
        if not look or self._told:
            return stop, False
        import ray.train

        self._told = ray.train.get_preemption_info() is not None
        return stop, self._told
