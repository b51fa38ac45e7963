"""The Engine protocol: conversations in; generations, log-likelihoods or vectors out, whatever runs behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from polysome.config import ConfigurationError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from polysome.inference.endpoint import Endpoint

Conversation = list[dict[str, str]]
"""Chat messages, each with `role` (system, user or assistant) and `content`; the last one is the user's."""

Prompt = Conversation | str | tuple[int, ...]
"""What is answered: a conversation; a plain text that the answer goes on with; or token ids that it goes on with."""

Pool = Literal["mean", "last"]
"""How hidden states become one vector: their mean over the tokens, or that of the last token."""


@dataclass(frozen=True)
class Generation:
    """What a model answered to one conversation."""

    text: str
    """The answer without the turn end and other special tokens, and without the stop string that ended it."""
    prompt_tokens: int
    """0 where an endpoint does not tell."""
    completion_tokens: int
    """Tokens generated, the turn end and a stop string included; 0 where an endpoint does not tell."""
    finish_reason: Literal["stop", "length"]
    """`stop`: the model ended its turn or said a stop string; `length`: `max_new_tokens` or the context ran out."""
    tokens: tuple[int, ...] = ()
    """The generated ids, turn end and stop string included; empty where an endpoint does not tell."""


@dataclass(frozen=True)
class Scores:
    """How likely a model finds each of the choices as the answer to one conversation."""

    sums: tuple[float, ...]
    """Log-likelihood of each choice: the sum over its tokens, natural logarithm, no turn end."""
    tokens: tuple[int, ...]
    """Tokens of each choice, at least 1."""
    prompt_tokens: int = 0
    """0 where an endpoint does not tell."""

    @property
    def normalised(self) -> tuple[float, ...]:
        """Mean log-likelihood per token, which does not prefer short choices."""
        return tuple(total / count for total, count in zip(self.sums, self.tokens, strict=True))


@dataclass(frozen=True)
class Embeddings:
    """One vector per text."""

    vectors: NDArray[np.float32]
    """[texts, hidden size]."""
    tokens: tuple[int, ...]
    """Tokens of each text."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn, checked on construction: see `Engine.generate`.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ConfigurationError(
                f"cannot generate with max_new_tokens={self.max_new_tokens}, temperature={self.temperature}, "
                f"top_p={self.top_p}",
                fix="max_new_tokens is at least 1, temperature at least 0, top_p above 0 and at most 1",
            )
        if not all(self.stop):
            raise ConfigurationError("a stop string is empty", fix="leave it out")

    @classmethod
    def of(
        cls,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | Sequence[int] | None,
        stop: Sequence[str],
    ) -> Sampling:
        """The arguments of `Engine.generate`."""
        own = seed if seed is None or isinstance(seed, int) else tuple(seed)
        return cls(max_new_tokens, temperature, top_p, own, tuple(stop))

    def entropy(self, index: int) -> list[int] | None:
        """What the draws of a conversation follow from; None: from nothing that is given."""
        if self.seed is None:
            return None
        return [self.seed[index]] if isinstance(self.seed, tuple) else [self.seed, index]


class Engine(Protocol):
    """One model. Not safe for calls from several threads at once."""

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] | None = None,
        stop: Sequence[str] = (),
    ) -> list[Generation]:
        """Answer each conversation; results stand in the order of the conversations.

        Args:
            conversations: may be empty.
            max_new_tokens: at least 1; clipped per conversation to what the context leaves.
            temperature: 0 is greedy; above 0 samples.
            top_p: sample from the smallest set of tokens whose probabilities reach it; in (0, 1].
            seed: of sampling. The draws of conversation i depend on (seed, i) alone, or on seed[i] where each has its
                own, not on what shares its batch. None draws a fresh seed.
            stop: an answer ends before the first of these strings that it would say.

        Raises:
            DataError: a conversation cannot be rendered, its prompt leaves no room for a token in the context, or
                an endpoint refuses it or answers with what is no answer. It names the first such conversation.
            ConfigurationError: a setting is out of its range, or an endpoint does not know it.
            ResourceError: an endpoint is gone, or its budget is spent.
        """
        ...

    def stream(
        self,
        conversation: Conversation,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """The answer in pieces as they are generated; joined they are the text that `generate` gives for it alone.

        Arguments and errors are those of `generate`; settings are checked before the first piece is asked for.
        """
        ...

    def score(self, conversations: Sequence[Conversation], choices: Sequence[str]) -> list[Scores]:
        """Log-likelihood of each choice as the answer to each conversation.

        Args:
            conversations: may be empty.
            choices: the same for all conversations; one or more, none empty. Equal ones are scored alike.

        Raises:
            DataError: no choice, an empty choice, a conversation that cannot be rendered, or one that exceeds the
                context together with a choice.
            ConfigurationError: the engine cannot score.
        """
        ...

    def embed(self, texts: Sequence[Conversation | str], *, pool: Pool) -> Embeddings:
        """One vector per text: the hidden states after the last layer and its norm, pooled over the tokens.

        Args:
            texts: conversations, read as prompts up to where the answer would begin, or plain texts, read as the
                tokenizer encodes a document.
            pool: how the states of one text become one vector; padding never takes part.

        Raises:
            DataError: a text has no token or exceeds the context.
            ConfigurationError: the engine has no hidden states.
        """
        ...

    def health(self) -> None:
        """Return if the model can answer now: generate one token, or reach the endpoint.

        Raises:
            ResourceError: it cannot.
            ConfigurationError: an endpoint does not accept the key.
        """
        ...


def check_choices(choices: Sequence[str]) -> None:
    """Raise DataError unless there are choices and none is empty."""
    if not choices or not all(choices):
        raise DataError(f"choices must be one or more texts that are not empty, got {list(choices)}", fix="fill them")


def open_engine(
    source: str | Endpoint,
    *,
    adapter: str | None = None,
    max_batch_tokens: int = 16384,
    threads: int = 1,
    device: str = "cpu",
) -> Engine:
    """The engine for a model, wherever it is.

    Args:
        source: a model folder (path or fsspec URL); an Endpoint or an http(s) address, which is one with default
            settings; `fake:TEXT`, which answers TEXT to everything and is for rehearsals.
        adapter: folder of a PEFT adapter for the model folder.
        max_batch_tokens, threads, device: of a model folder; see `BatchEngine`.

    Raises:
        DataError, ConfigurationError: what `source` names cannot be opened.
    """
    from polysome.inference.endpoint import as_endpoint

    endpoint = as_endpoint(source)
    fake = isinstance(source, str) and source.startswith("fake:")
    if adapter is not None and (endpoint or fake):
        raise ConfigurationError(
            f"an adapter was given for {source if fake else 'an endpoint'}, which takes none",
            where="adapter",
            fix="name a model folder, or serve the adapter's merged export",
        )
    if endpoint:
        from polysome.inference.openai import OpenAIEngine

        return OpenAIEngine(endpoint)
    assert isinstance(source, str)
    if fake:
        from polysome.inference.fake import FakeEngine

        return FakeEngine(source.removeprefix("fake:"))
    from polysome.inference.batch import BatchEngine

    return BatchEngine(source, adapter=adapter, max_batch_tokens=max_batch_tokens, threads=threads, device=device)
