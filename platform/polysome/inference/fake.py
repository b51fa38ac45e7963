"""The fake engine: answers that are given, for tests and for rehearsing a run without a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from polysome.config import DataError
from polysome.inference.engine import Conversation, Embeddings, Generation, Pool, Sampling, Scores, check_choices
from polysome.inference.text import cut

HIDDEN = 8
"""Length of the vectors of `embed`."""

_TOKEN = re.compile(r"\s*\S+|\s+")
_EXPECTED, _OTHER = -0.1, -3.0
"""Log-probability of a token that the answer holds at its place, and of another one."""


class FakeEngine:
    """An Engine without a model. A token is a word with the blanks before it; sampling changes nothing.

    A choice's tokens have log-probability -0.1 where the answer has the same word at the same place, and -3 elsewhere,
    so that the choice that is the answer is the likeliest of its length.

    Args:
        answers: one text for all; a text by the content of the last message; or a function of the conversation.
    """

    def __init__(self, answers: str | Mapping[str, str] | Callable[[Conversation], str]) -> None:
        self._answers = answers

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
        """See `Engine.generate`.

        Raises:
            DataError: no answer is given for a conversation.
        """
        sampling = Sampling.of(max_new_tokens, temperature, top_p, seed, stop)
        return [self._generation(conversation, sampling) for conversation in conversations]

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
        """See `Engine.stream`."""
        sampling = Sampling.of(max_new_tokens, temperature, top_p, seed, stop)
        return iter(_tokens(self._generation(conversation, sampling).text))

    def score(self, conversations: Sequence[Conversation], choices: Sequence[str]) -> list[Scores]:
        """See `Engine.score`."""
        check_choices(choices)
        return [_scores(self._text(conversation), choices, _asked(conversation)) for conversation in conversations]

    def embed(self, texts: Sequence[Conversation | str], *, pool: Pool) -> Embeddings:
        """See `Engine.embed`: numbers from -1 to 1 that follow from the text alone."""
        vectors = np.empty((len(texts), HIDDEN), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            digest = hashlib.sha256(f"{pool}/{text}".encode()).digest()
            vector[:] = np.frombuffer(digest[:HIDDEN], dtype=np.uint8) / 127.5 - 1
        return Embeddings(vectors, tuple(len(_tokens(str(text))) for text in texts))

    def health(self) -> None:
        """See `Engine.health`."""

    def _text(self, conversation: Conversation) -> str:
        if not conversation:
            raise DataError("the conversation is empty", fix="give it a message of the user")
        if callable(self._answers):
            return self._answers(conversation)
        if isinstance(self._answers, str):
            return self._answers
        question = conversation[-1]["content"]
        if question not in self._answers:
            raise DataError(f"no answer is given to {question[:200]!r}", fix="add one")
        return self._answers[question]

    def _generation(self, conversation: Conversation, sampling: Sampling) -> Generation:
        tokens = _tokens(self._text(conversation))
        text, said_stop = cut("".join(tokens[: sampling.max_new_tokens]), sampling.stop)
        # The turn end is a token too.
        whole = said_stop or len(tokens) < sampling.max_new_tokens
        used = min(len(tokens) + 1, sampling.max_new_tokens)
        return Generation(text, _asked(conversation), used, "stop" if whole else "length")


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


def _asked(conversation: Conversation) -> int:
    return sum(len(_tokens(message["content"])) for message in conversation)


def _scores(answer: str, choices: Sequence[str], asked: int) -> Scores:
    expected = _tokens(answer)
    sums, counts = [], []
    for choice in choices:
        tokens = _tokens(choice)
        hits = sum(token == place for token, place in zip(tokens, expected, strict=False))
        sums.append(hits * _EXPECTED + (len(tokens) - hits) * _OTHER)
        counts.append(len(tokens))
    return Scores(tuple(sums), tuple(counts), asked)
