"""Progress of a preparation: counts, rates and the time left, from what the workers say."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """Where a preparation stands.

    Attributes:
        files, files_total: read to their end, and in all.
        examples: done, those of an interrupted attempt included.
        examples_total: in all; None while the sources do not tell.
        tokens: written.
        shards: committed.
        seconds: since this attempt began.
        examples_before: those of an interrupted attempt.
    """

    files: int
    files_total: int
    examples: int
    examples_total: int | None
    tokens: int
    shards: int
    seconds: float
    examples_before: int = 0

    @property
    def examples_per_second(self) -> float:
        """Rate of this attempt."""
        return (self.examples - self.examples_before) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None while the total or the rate is not known."""
        if self.examples_total is None or self.examples <= self.examples_before:
            return None
        return max(0.0, (self.examples_total - self.examples) / self.examples_per_second)

    def line(self) -> str:
        """One line for a log."""
        of = f" of {self.examples_total:,}" if self.examples_total is not None else ""
        left = "" if self.seconds_left is None else f", {_clock(self.seconds_left)} left"
        return (
            f"{self.examples:,}{of} examples, {self.tokens:,} tokens, {self.shards:,} shards, "
            f"{self.files}/{self.files_total} files, {self.examples_per_second:,.0f} examples/s, "
            f"{_clock(self.seconds)} so far{left}"
        )


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Tells nobody."""


@dataclass
class Tally:
    """Counts up what the workers say, and reports it at most every `interval` seconds."""

    files_total: int
    examples_total: int | None
    report: Report
    interval: float = 1.0
    files: int = 0
    examples: int = 0
    examples_before: int = 0
    tokens: int = 0
    shards: int = 0
    _started: float = field(default_factory=time.monotonic)
    _told: float = 0.0

    def shard(self, examples: int, tokens: int) -> None:
        """A committed shard."""
        self.shards += 1
        self.examples += examples
        self.tokens += tokens
        self.tell()

    def tell(self, *, at_once: bool = False) -> None:
        """Report, if it is time."""
        now = time.monotonic()
        if at_once or now - self._told >= self.interval:
            self._told = now
            self.report(
                Progress(
                    self.files,
                    self.files_total,
                    self.examples,
                    self.examples_total,
                    self.tokens,
                    self.shards,
                    now - self._started,
                    self.examples_before,
                )
            )


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
