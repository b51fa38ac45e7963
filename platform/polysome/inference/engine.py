"""The Engine protocol: conversations in, generations or log-likelihoods out, whatever runs behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Conversation = list[dict[str, str]]
"""Chat messages, each with `role` (system, user or assistant) and `content`; the last one is the user's."""


@dataclass(frozen=True)
class Generation:
    """What a model answered to one conversation."""

    text: str
    """The answer without the turn end and other special tokens."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens generated, the turn end included."""
    finish_reason: Literal["stop", "length"]
    """`stop`: the model ended its turn; `length`: `max_new_tokens` or the context ran out."""


class Engine(Protocol):
    """A loaded model. Not safe for calls from several threads at once."""

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> list[Generation]:
        """Answer each conversation; results stand in the order of the conversations.

        Args:
            conversations: may be empty.
            max_new_tokens: at least 1; clipped per conversation to what the context leaves.
            temperature: 0 is greedy; above 0 samples.
            top_p: sample from the smallest set of tokens whose probabilities reach it; in (0, 1].
            seed: of sampling. The draws of conversation i depend on (seed, i) alone, not on what shares its batch.
                None draws a fresh seed.

        Raises:
            DataError: a conversation cannot be rendered, or its prompt leaves no room for a token in the context.
            ConfigurationError: a setting is out of its range.
        """
        ...

    def score(self, conversation: Conversation, choices: Sequence[str]) -> list[float]:
        """Log-likelihood of each choice as the answer: the sum over its tokens, natural logarithm, no turn end.

        Raises:
            DataError: no choice, an empty choice, or prompt and choice together exceed the context.
        """
        ...

    def health(self) -> None:
        """Generate one token.

        Raises:
            ResourceError: the model gives no usable token.
        """
        ...
