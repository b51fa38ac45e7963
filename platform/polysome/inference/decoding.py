"""Decoding: rows of one batch, each on its way from a prompt to an answer, and how a token of it is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from polysome.inference.engine import Sampling
from polysome.inference.forward import Forward, batches
from polysome.inference.places import Places


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
        if self.forward.has_places:
            padding = budget
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
        self._cache: _Together | Places | None = None

    @property
    def open(self) -> list[Row]:
        """Rows that a further step is for."""
        return [row for row in (*self.rows, *self._joining) if not row.done]

    def join(self, rows: list[Row]) -> None:
        """Answer these too from the next step on; while others are open, only where `Forward.has_places`."""
        self._joining += rows

    @torch.inference_mode()
    def step(self) -> None:
        """One token more for every row that is not done; there must be one."""
        self._leave()
        parts = [self._advance()] if self.rows else []
        if self._joining:
            parts.append(self._take_in())
        self._tokens = drawn(torch.cat(parts).float(), self.rows)
        for row, token in zip(self.rows, self._tokens.tolist(), strict=True):
            self._decoder.take(row, token)

    def _leave(self) -> None:
        kept = [index for index, row in enumerate(self.rows) if not row.done]
        if not kept:
            self.rows, self._cache = [], None
        elif len(kept) < len(self.rows):
            assert self._cache is not None
            order = self._cache.keep(kept)
            self.rows = [self.rows[index] for index in order]
            self._tokens = self._tokens[torch.tensor(order, device=self._forward.device)]

    def _advance(self) -> torch.Tensor:
        """Logits [rows, vocabulary] after the tokens of the last step."""
        assert self._cache is not None
        with self._cache.step() as (cache, mask, positions):
            logits, cache = self._forward.logits(
                self._tokens[:, None],
                mask,
                keep=1,
                positions=positions,
                cache=cache,
                adapters=[row.adapter for row in self.rows],
            )
        if isinstance(self._cache, _Together):
            self._cache.cache = cache
        return logits[:, -1]

    def _take_in(self) -> torch.Tensor:
        """Logits [rows, vocabulary] after the prompts of the rows that join, which come behind the others.

        Where rows have places, prompts of like lengths are computed together.
        """
        joining, self._joining = self._joining, []
        groups = [list(range(len(joining)))]
        if self._forward.has_places:
            sizes = [len(row.prompt) for row in joining]
            groups = batches(sizes, budget=len(joining) * max(sizes), padding=self._forward.overhead)
        parts = []
        for group in groups:
            rows = [joining[index] for index in group]
            input_ids, mask = self._forward.padded([row.prompt for row in rows])
            logits, cache = self._forward.logits(input_ids, mask, keep=1, adapters=[row.adapter for row in rows])
            parts.append(logits[:, -1])
            if not self._forward.has_places:
                self._cache = _Together(cache, mask)
            else:
                places = self._cache if isinstance(self._cache, Places) else Places(self._forward.device)
                places.take(cache, [len(row.prompt) for row in rows])
                self._cache = places
            self.rows += rows
        return torch.cat(parts)


class _Together:
    """The cache of rows that began together, padded on the left; for architectures whose rows cannot have `Places`.

    Args:
        cache: what the model made of the prompts.
        mask: int64 [rows, longest].
    """

    def __init__(self, cache: Any, mask: torch.Tensor) -> None:
        self.cache, self._mask = cache, mask

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all other rows where that is half of them, as it copies the rest; the indices of those that are left."""
        if 2 * len(rows) > len(self._mask):
            return list(range(len(self._mask)))
        places = torch.tensor(rows, device=self._mask.device)
        self.cache.batch_select_indices(places)
        self._mask = self._mask[places]
        return list(rows)

    @contextmanager
    def step(self) -> Iterator[tuple[Any, torch.Tensor, None]]:
        """For a pass of one token per row: the cache, its mask, and no positions but those that the mask tells."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        yield self.cache, self._mask, None


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
