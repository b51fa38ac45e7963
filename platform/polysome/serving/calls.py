"""What the gateway asks of a pool: calls that travel to a replica, and the Pool protocol that takes them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from polysome.config import PolysomeError
from polysome.inference.asynchronous import Delta, Traced
from polysome.inference.engine import Embeddings, Prompt, Sampling, Scores
from polysome.inference.engine import Pool as Pooling

if TYPE_CHECKING:
    from polysome.serving.adapters import Published


class Overloaded(PolysomeError):
    """The queue is full; the same call may succeed in a moment."""


class Expired(PolysomeError):
    """The caller's deadline passed before the work was done."""


@dataclass(frozen=True)
class Target:
    """Which model answers, and until when."""

    deadline: float
    """Seconds of `time.time`; work that has not begun by then is refused with Expired, and a running answer ends."""
    adapter: Published | None = None
    """A published adapter, resolved by the gateway; None asks the base."""

    def require_time(self) -> None:
        """Raise Expired when the deadline has passed."""
        if self.deadline < time.time():
            raise Expired("the request waited longer than its time limit")


class Pool(Protocol):
    """The replicas of one base model, as the gateway sees them; errors are Polysome's.

    Each of the methods may raise Overloaded, Expired, DataError (the input does not fit), ConfigurationError (the
    adapter is not usable) and ResourceError (no replica, or the one that answered is gone).
    """

    def generate(
        self, prompt: Prompt, sampling: Sampling, target: Target, *, stream: bool = True
    ) -> AsyncGenerator[Delta, None]:
        """See `AsyncEngine.generate`; a call is retried once on another replica if its own died before a piece came.

        Args:
            prompt: what is answered.
            sampling: how.
            target: by which model, and until when.
            stream: False: one piece, the whole answer, which is cheaper.
        """
        ...

    async def score(self, prompt: Prompt, choices: Sequence[str], target: Target) -> Scores:
        """See `AsyncEngine.score`; retried once where a replica dies."""
        ...

    async def embed(self, texts: Sequence[Prompt], pool: Pooling, target: Target) -> Embeddings:
        """See `AsyncEngine.embed`; retried once where a replica dies."""
        ...

    async def trace(self, prompt: Prompt, answer: Sequence[int], top: int, target: Target) -> Traced:
        """See `AsyncEngine.trace`; retried once where a replica dies."""
        ...

    async def ready(self) -> None:
        """Return when a replica generated a token lately.

        Raises:
            ResourceError: none could.
        """
        ...
