"""The AsyncEngine protocol: one model that many callers ask at once; answers come in pieces and can be given up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from polysome.inference.engine import Embeddings, Generation, Pool, Prompt, Sampling, Scores


@dataclass(frozen=True)
class Delta:
    """A piece of an answer; the joined pieces are the text of `Generation`."""

    text: str
    """May be empty in the last one."""
    generation: Generation | None = None
    """Of the last piece alone: the whole answer."""


@dataclass(frozen=True)
class Traced:
    """The log-likelihood of every token of a text under a model (natural logarithm)."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    """What each token adds to the text of those before it."""
    logprobs: tuple[float | None, ...]
    """None for the first token of all, which nothing stands before."""
    top: tuple[tuple[tuple[str, float], ...], ...]
    """For each token the most likely ones in its place, best first, with their log-likelihoods; empty where none were
    asked for and for the first token."""


@dataclass(frozen=True)
class Load:
    """What an engine has to do at this moment."""

    running: int
    """Answers that are being generated."""
    waiting: int
    waited_seconds: float = 0.0
    """How long the request that waits longest has waited."""
    cache_used: float | None = None
    """Share of the key-value cache's blocks in use, 0 to 1; None for an engine without blocks."""


class AsyncEngine(Protocol):
    """One model. Safe for any number of calls at once on one event loop; a refused call harms no other.

    `adapter` names an adapter that `load_adapter` loaded; None asks the base alone.
    """

    def generate(self, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None) -> AsyncIterator[Delta]:
        """The answer, piece by piece; the last piece holds the whole. Closing the iterator frees the answer's place at
        the next step. Greedy answers are those of `BatchEngine.generate` for the prompt alone.

        Raises:
            DataError: the prompt cannot be rendered, or leaves no room for a token in the context or the cache.
            ConfigurationError: the adapter is not loaded.
            ResourceError: the engine died.
        """
        ...

    async def score(self, prompt: Prompt, choices: Sequence[str], *, adapter: str | None = None) -> Scores:
        """See `Engine.score`."""
        ...

    async def embed(self, texts: Sequence[Prompt], *, pool: Pool, adapter: str | None = None) -> Embeddings:
        """See `Engine.embed`."""
        ...

    async def trace(self, prompt: Prompt, answer: Sequence[int], *, top: int, adapter: str | None = None) -> Traced:
        """Log-likelihoods of the prompt's tokens followed by those of an answer, in one forward pass.

        Args:
            prompt: as in `generate`.
            answer: token ids that follow the prompt; may be empty.
            top: how many of the most likely tokens to tell for each place; may be 0.
        """
        ...

    async def load_adapter(self, folder: str, *, name: str) -> None:
        """See `BatchEngine.load_adapter`; waits for no answer that is being generated."""
        ...

    async def unload_adapter(self, name: str) -> None:
        """Free an adapter's memory once the answers that use it have ended; unknown names are a ConfigurationError."""
        ...

    def load(self) -> Load:
        """What is running and waiting now."""
        ...

    async def health(self) -> None:
        """Return if a token can be generated now.

        Raises:
            ResourceError: it cannot; the process is to be replaced.
        """
        ...

    async def close(self) -> None:
        """End what runs with ResourceError and free the model."""
        ...
