"""Decoding: rows of one batch, each on its way from a prompt to an answer, and how a token of it is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from polysome.inference.engine import Sampling
from polysome.inference.forward import Forward, batches, crop_cache, join_caches

_CACHED_PADDING = 4096
"""Most padding in the cache of a batch. A step reads it all, which at some point takes longer than a step more."""


@dataclass
class Row:
    """One prompt on its way through a batch."""

    prompt: list[int]
    limit: int
    """Most tokens to generate."""
    sampling: Sampling
    draws: np.random.Generator | None
    adapter: str | None = None
    answer: list[int] = field(default_factory=list)
    stopped: bool = False
    """Nothing more is to be said: the turn ended, or nobody waits for it any longer."""

    @property
    def done(self) -> bool:
        """Whether nothing is to be added."""
        return self.stopped or len(self.answer) >= self.limit


class Decoder:
    """Fills rows' answers.

    Args:
        forward: the model.
        tokenizer: says what a stop string's tokens mean.
        stop_tokens: tokens that end a turn.
    """

    def __init__(self, forward: Forward, tokenizer: Any, stop_tokens: frozenset[int]) -> None:
        self.forward, self._tokenizer, self.stop_tokens = forward, tokenizer, stop_tokens

    def batches(self, rows: list[Row], budget: int) -> list[list[int]]:
        """Indices of rows to decode together, each batch within `budget` positions of prompts, answers and padding."""
        sizes = [len(row.prompt) + row.limit for row in rows]
        if self.forward.joins_caches:
            padding = _CACHED_PADDING
        else:
            # The prefill has all of the padding, and a further batch would cost a pass for each token.
            padding = self.forward.overhead * max((row.limit for row in rows), default=0)
        return batches(sizes, budget=budget, padding=padding)

    def steps(self, rows: list[Row]) -> Iterator[None]:
        """Prefill once, then one token per row and step until every row is done; yields after every step."""
        running = Running(self)
        running.join(rows)
        while not all(row.done for row in rows):
            running.step()
            yield

    def take(self, row: Row, token: int) -> None:
        """Add a token to a row that is not done, and see whether it was the last."""
        if not row.done:
            row.answer.append(token)
            row.stopped = token in self.stop_tokens or self._says(row.sampling.stop, row.answer)

    def text(self, answer: list[int]) -> str:
        """An answer without special tokens."""
        return str(self._tokenizer.decode(answer, skip_special_tokens=True))

    def _says(self, stop: tuple[str, ...], answer: list[int]) -> bool:
        """Whether the newest token completed a stop string; only the end of the answer is decoded, as it grows long."""
        if not stop:
            return False
        # A token has at least one byte; the others are for special tokens and a blank that the first one may lose.
        reach = max(len(one.encode()) for one in stop) + 8
        end = self.text(answer[-reach:])
        return any(one in end for one in stop)


class Running:
    """Rows that are answered together; others may join them between two steps.

    Args:
        decoder: of the model.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._forward = decoder, decoder.forward
        self.rows: list[Row] = []
        """In the batch, those that are done and have not left yet included."""
        self._joining: list[Row] = []
        self._tokens: torch.Tensor
        self._mask: torch.Tensor
        self._cache: Any = None

    @property
    def open(self) -> list[Row]:
        """Rows that a further step is for."""
        return [row for row in (*self.rows, *self._joining) if not row.done]

    @property
    def width(self) -> int:
        """Positions of every row in the cache, padding included."""
        return self._mask.shape[1] if self.rows else 0

    def join(self, rows: list[Row]) -> None:
        """Answer these too from the next step on; while others are open, only where `Forward.joins_caches`."""
        self._joining += rows

    @torch.inference_mode()
    def step(self) -> None:
        """One token more for every row that is not done; there must be one."""
        self._leave()
        logits = self._advance() if self.rows else None
        if self._joining:
            logits = self._take_in(logits)
        assert logits is not None
        self._tokens = drawn(logits.float(), self.rows)
        for row, token in zip(self.rows, self._tokens.tolist(), strict=True):
            self._decoder.take(row, token)

    def _leave(self) -> None:
        """Take done rows out: where at least half are, or others come in."""
        kept = [index for index, row in enumerate(self.rows) if not row.done]
        if len(kept) == len(self.rows) or (2 * len(kept) > len(self.rows) and not self._joining):
            return
        self.rows = [self.rows[index] for index in kept]
        if not kept:
            self._cache = None
            return
        places = torch.tensor(kept, device=self._forward.device)
        self._cache.batch_select_indices(places)
        self._tokens, self._mask = self._tokens[places], self._mask[places]
        leading = int((self._mask.cumsum(dim=1) == 0).sum(dim=1).min())
        if leading and self._forward.joins_caches:
            crop_cache(self._cache, leading)
            self._mask = self._mask[:, leading:]

    def _advance(self) -> torch.Tensor:
        """Logits [rows, vocabulary] after the tokens of the last step."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], dim=1)
        logits, self._cache = self._forward.logits(
            self._tokens[:, None], self._mask, keep=1, cache=self._cache, adapters=[row.adapter for row in self.rows]
        )
        return logits[:, -1]

    def _take_in(self, logits: torch.Tensor | None) -> torch.Tensor:
        """Logits of all rows, those that join last."""
        rows, first, mask, cache = self._prefill(self._joining)
        self._joining = []
        if logits is None:
            self.rows, self._mask, self._cache = rows, mask, cache
            return first
        width = max(self._mask.shape[1], mask.shape[1])
        self._mask = torch.cat([_left_padded(self._mask, width), _left_padded(mask, width)])
        self._cache = join_caches([self._cache, cache])
        self.rows = [*self.rows, *rows]
        return torch.cat([logits, first])

    def _prefill(self, rows: list[Row]) -> tuple[list[Row], torch.Tensor, torch.Tensor, Any]:
        """The rows in another order, their next token's logits [rows, vocabulary], their mask, and their cache.

        Prompts of like lengths are computed together, and padded to the longest only in the cache.
        """
        sizes = [len(row.prompt) for row in rows]
        if self._forward.joins_caches:
            groups = batches(sizes, budget=len(rows) * max(sizes), padding=self._forward.overhead)
        else:
            groups = [list(range(len(rows)))]
        parts, masks, caches = [], [], []
        for group in groups:
            input_ids, mask = self._forward.padded([rows[index].prompt for index in group])
            adapters = [rows[index].adapter for index in group]
            logits, cache = self._forward.logits(input_ids, mask, keep=1, adapters=adapters)
            parts.append(logits[:, -1])
            masks.append(_left_padded(mask, max(sizes)))
            caches.append(cache)
        ordered = [rows[index] for group in groups for index in group]
        return ordered, torch.cat(parts), torch.cat(masks), caches[0] if len(caches) == 1 else join_caches(caches)


def _left_padded(mask: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))


def drawn(logits: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    """The next token of every row, int64 [rows]: the likeliest, or drawn where the row has a temperature."""
    tokens = logits.argmax(dim=-1)
    warm = [index for index, row in enumerate(rows) if row.sampling.temperature > 0]
    if warm:
        warmed = [rows[index] for index in warm]

        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64, device=logits.device)

        temperature = column([row.sampling.temperature for row in warmed])[:, None]
        top_p = column([row.sampling.top_p for row in warmed])[:, None]
        uniform = column([row.draws.random() if row.draws else 0.0 for row in warmed])
        # From the likeliest down: however low the temperature is, that one stays a number.
        chosen = logits[warm].double()
        tokens[warm] = sample((chosen - chosen.amax(dim=-1, keepdim=True)) / temperature, top_p, uniform)
    return tokens


def sample(logits: torch.Tensor, top_p: float | torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One token per row by inversion: logits [rows, vocabulary], float64 uniform [rows] in [0, 1) -> int64 [rows].

    `top_p` is one for all, or float64 [rows, 1].
    """
    probabilities, order = torch.softmax(logits.double(), dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    chosen = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    # Rounding may carry a draw just below 1 past the last token that is allowed.
    last_allowed = (probabilities > 0).sum(dim=-1, keepdim=True).clamp(min=1) - 1
    return order.gather(-1, chosen.minimum(last_allowed))[:, 0]
