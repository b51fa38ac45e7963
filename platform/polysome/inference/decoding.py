"""Decoding: rows of one batch, each on its way from a prompt to an answer, and how a token of it is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from polysome.inference.engine import Sampling
from polysome.inference.forward import Forward, batches, join_caches

_CACHED_PADDING = 4096
"""Most padding in the cache of a batch. A step reads it all, which at some point takes longer than a step more."""


@dataclass
class Row:
    """One conversation on its way through a batch."""

    prompt: list[int]
    limit: int
    """Most tokens to generate."""
    draws: np.random.Generator | None
    answer: list[int] = field(default_factory=list)
    stopped: bool = False

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
        self._forward, self._tokenizer, self._stop_tokens = forward, tokenizer, stop_tokens

    def batches(self, rows: list[Row], budget: int) -> list[list[int]]:
        """Indices of rows to decode together, each batch within `budget` positions of prompts, answers and padding."""
        sizes = [len(row.prompt) + row.limit for row in rows]
        if self._forward.joins_caches:
            padding = _CACHED_PADDING
        else:
            # The prefill has all of the padding, and a further batch would cost a pass for each token.
            padding = self._forward.overhead * max((row.limit for row in rows), default=0)
        return batches(sizes, budget=budget, padding=padding)

    @torch.inference_mode()
    def steps(self, rows: list[Row], sampling: Sampling) -> Iterator[None]:
        """Prefill once, then one token per row and step until every row is done; yields after every step."""
        rows, logits, mask, cache = self._prefill(rows)
        device = self._forward.device
        while True:
            last = logits.float()
            if sampling.temperature == 0:
                tokens = last.argmax(dim=-1)
            else:
                uniform = np.array([row.draws.random() if row.draws else 0.0 for row in rows])
                tokens = sample(last / sampling.temperature, sampling.top_p, torch.from_numpy(uniform).to(device))
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if not row.done:
                    row.answer.append(token)
                    row.stopped = token in self._stop_tokens or self._says(sampling.stop, row.answer)
            yield
            open_rows = [index for index, row in enumerate(rows) if not row.done]
            if not open_rows:
                return
            if 2 * len(open_rows) <= len(rows):
                kept = torch.tensor(open_rows, device=device)
                cache.batch_select_indices(kept)
                tokens, mask = tokens[kept], mask[kept]
                rows = [rows[index] for index in open_rows]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            step, cache = self._forward.logits(tokens[:, None], mask, keep=1, cache=cache)
            logits = step[:, -1]

    def _prefill(self, rows: list[Row]) -> tuple[list[Row], torch.Tensor, torch.Tensor, Any]:
        """The rows in another order, their next token's logits [rows, vocabulary], their mask, and their cache.

        Prompts of like lengths are computed together, and padded to the longest only in the cache.
        """
        if not self._forward.joins_caches:
            input_ids, mask = self._forward.padded([row.prompt for row in rows])
            logits, cache = self._forward.logits(input_ids, mask, keep=1)
            return rows, logits[:, -1], mask, cache
        sizes = [len(row.prompt) for row in rows]
        groups = batches(sizes, budget=len(rows) * max(sizes), padding=self._forward.overhead)
        parts, masks, caches = [], [], []
        for group in groups:
            input_ids, mask = self._forward.padded([rows[index].prompt for index in group])
            logits, cache = self._forward.logits(input_ids, mask, keep=1)
            parts.append(logits[:, -1])
            masks.append(torch.nn.functional.pad(mask, (max(sizes) - mask.shape[1], 0)))
            caches.append(cache)
        ordered = [rows[index] for group in groups for index in group]
        return ordered, torch.cat(parts), torch.cat(masks), join_caches(caches)

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


def sample(logits: torch.Tensor, top_p: float, uniform: torch.Tensor) -> torch.Tensor:
    """One token per row by inversion: logits [rows, vocabulary], float64 uniform [rows] in [0, 1) -> int64 [rows]."""
    probabilities, order = torch.softmax(logits.double(), dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    chosen = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    # Rounding may carry a draw just below 1 past the last token that is allowed.
    last_allowed = (probabilities > 0).sum(dim=-1, keepdim=True) - 1
    return order.gather(-1, chosen.minimum(last_allowed))[:, 0]
