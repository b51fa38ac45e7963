"""A pool without a model, for tests of the routers: deterministic answers in pieces, delays and failures as told."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal

from polysome.config import DataError
from polysome.inference.asynchronous import Delta, Traced
from polysome.inference.engine import Conversation, Embeddings, Generation, Prompt, Sampling, Scores
from polysome.inference.engine import Pool as Pooling
from polysome.inference.fake import FakeEngine
from polysome.inference.text import cut
from polysome.serving.calls import Target

END = 0
"""The turn end's id; every other token is a character, its id the code point."""

VOCABULARY = 0xD800


class FakePool:
    """A `Pool`. A token is a character; scores and vectors are those of `FakeEngine`.

    A sampled answer ends with a number that follows from the seed. In a trace the likeliest token of a place has an
    even id and log-probability -0.1, the next ones follow by id, each less likely by 1.

    Args:
        answers: one text for all; a text by the content of the last message; or a function of the conversation. A
            prompt that is a text or ids is asked as the user's message.
        context: tokens of prompt and answer together.
        error: raised by every call; by `generate` after `pieces` pieces.
        pieces: see `error`.
        seconds: every call waits so long before it answers.
        pause: `generate` waits so long before every further piece.
    """

    def __init__(
        self,
        answers: str | Mapping[str, str] | Callable[[Conversation], str] = "Yes.",
        *,
        context: int = 4096,
        error: Exception | None = None,
        pieces: int = 0,
        seconds: float = 0.0,
        pause: float = 0.0,
    ) -> None:
        self.engine, self.context = FakeEngine(answers), context
        self.error, self.pieces, self.seconds, self.pause = error, pieces, seconds, pause
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        """Method and arguments of every call, in order; the target is the last argument."""
        self.running = 0
        """Calls that have neither ended nor been given up."""
        self.most = 0
        """The most that ever ran at once."""

    async def generate(
        self, prompt: Prompt, sampling: Sampling, target: Target, *, stream: bool = True
    ) -> AsyncGenerator[Delta, None]:
        """See `Pool.generate`; one character a piece, whether asked for or not."""
        async with self._call("generate", prompt, sampling, target, fails=self.pieces == 0):
            asked = len(encode(prompt))
            room = min(sampling.max_new_tokens, self.context - asked)
            if room < 1:
                raise DataError(f"a prompt of {asked} tokens leaves no room in the context of {self.context}")
            text = self.engine.generate([_conversation(prompt)], max_new_tokens=self.context)[0].text
            if sampling.temperature > 0:
                entropy = sampling.entropy(0)
                text += f" {(random.Random(str(entropy)) if entropy else random).randrange(10**6)}"
            tokens = (*encode(text), END)[:room]
            for length in range(1, len(tokens) + 1):
                text, said_stop = cut(decode(tokens[:length]), sampling.stop)
                if said_stop:
                    tokens = tokens[:length]
                    break
            finished: Literal["stop", "length"] = "stop" if said_stop or tokens[-1] == END else "length"
            generation = Generation(text, asked, len(tokens), finished, tokens)
            for given, piece in enumerate(text):
                if self.error is not None and given == self.pieces:
                    raise self.error
                if given:
                    await asyncio.sleep(self.pause)
                yield Delta(piece)
            yield Delta("", generation)

    async def score(self, prompt: Prompt, choices: Sequence[str], target: Target) -> Scores:
        """See `Pool.score`."""
        async with self._call("score", prompt, choices, target):
            return self.engine.score([_conversation(prompt)], choices)[0]

    async def embed(self, texts: Sequence[Prompt], pool: Pooling, target: Target) -> Embeddings:
        """See `Pool.embed`."""
        async with self._call("embed", texts, pool, target):
            return self.engine.embed([decode(encode(text)) for text in texts], pool=pool)

    async def trace(self, prompt: Prompt, answer: Sequence[int], top: int, target: Target) -> Traced:
        """See `Pool.trace`."""
        async with self._call("trace", prompt, answer, top, target):
            tokens = (*encode(prompt), *answer)
            return Traced(
                tokens=tokens,
                texts=tuple(decode((token,)) for token in tokens),
                logprobs=tuple(-0.1 - token % 2 if place else None for place, token in enumerate(tokens)),
                top=tuple(
                    tuple((decode((token - token % 2 + rank,)), -0.1 - rank) for rank in range(top if place else 0))
                    for place, token in enumerate(tokens)
                ),
            )

    async def ready(self) -> None:
        """See `Pool.ready`."""
        async with self._call("ready"):
            pass

    @contextlib.asynccontextmanager
    async def _call(self, method: str, *arguments: Any, fails: bool = True) -> AsyncIterator[None]:
        self.calls.append((method, arguments))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if arguments:
                arguments[-1].require_time()
            await asyncio.sleep(self.seconds)
            if self.error is not None and fails:
                raise self.error
            yield
        finally:
            self.running -= 1


def encode(prompt: Prompt) -> tuple[int, ...]:
    """The token ids of a prompt.

    Raises:
        DataError: a token is beyond the vocabulary.
    """
    if isinstance(prompt, list):
        prompt = "".join(f"<{message['role']}>{message['content']}" for message in prompt)
    tokens = tuple(map(ord, prompt)) if isinstance(prompt, str) else tuple(prompt)
    if not all(0 <= token < VOCABULARY for token in tokens):
        raise DataError(f"token ids must be below {VOCABULARY}", fix="use the model's own tokenizer")
    return tokens


def decode(tokens: Sequence[int]) -> str:
    """The text of token ids; the turn end has none."""
    return "".join(chr(token) for token in tokens if token != END)


def _conversation(prompt: Prompt) -> Conversation:
    if isinstance(prompt, list):
        return prompt
    return [{"role": "user", "content": decode(encode(prompt))}]
