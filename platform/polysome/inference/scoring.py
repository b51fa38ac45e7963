"""Scoring: log-likelihoods of choices, as tries where the architecture allows, else with the prompt's cache shared."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polysome.config import DataError
from polysome.inference.engine import Scores
from polysome.inference.forward import Forward, batches
from polysome.inference.trie import Trie, score_parts, score_trie, tries

logger = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_LOOSE_TOLERANCE = 5e-2
"""Of the largest log-probability, for fp32 and for less: rounding makes less, a choice that sees another one more."""

_LONGEST_ROW = 4096
"""Positions of a prompt with a trie in one pass: its mask grows with their square."""

_PART = 256
"""Positions of a trie beyond which it is scored in parts, where the prompt's cache can be shared. Measured on one core
with 538 choices of 16 tokens: 128 to 512 are alike, all at once takes 1.5 to 2 times as long."""


class Scorer:
    """Scores choices with one model.

    Args:
        forward: the model.
        context: most tokens of a prompt and a choice together.
        max_batch_tokens: most positions of one forward pass; one conversation with one choice always fits.
    """

    def __init__(self, forward: Forward, context: int, max_batch_tokens: int) -> None:
        self._forward, self._context, self._max_batch_tokens = forward, context, max_batch_tokens

    def score(self, prompts: Sequence[list[int]], choices: Sequence[list[int]]) -> list[Scores]:
        """Scores of every prompt, in their order; prompts and choices are token ids, none empty.

        Raises:
            DataError: a prompt and the longest choice exceed the context.
            ResourceError: one prompt by itself exceeds the device's memory.
        """
        longest = max(map(len, choices))
        for index, prompt in enumerate(prompts):
            if len(prompt) + longest > self._context:
                raise DataError(
                    f"the prompt has {len(prompt)} tokens and the longest choice {longest}, the model's context is "
                    f"{self._context}",
                    where=f"conversation {index}",
                    fix="shorten the sequence, the question or the choices, or use a model with a longer context",
                )
        # In this order choices with the same beginning stand together, and share it where they come in parts.
        order = sorted(range(len(choices)), key=choices.__getitem__)
        room = min(_PART, self._max_batch_tokens) if self._forward.plain_cache else _LONGEST_ROW
        parts = tries([choices[index] for index in order], room)
        most = max(part.extra for part in parts)
        as_trie = [
            index
            for index, prompt in enumerate(prompts)
            if (self._forward.plain_cache or self._at_once(prompt, parts))
            # A mask of ours replaces the model's own, and with it the window beyond which its layers do not see.
            and len(prompt) + longest <= self._trie_reach
        ]
        sums: dict[int, NDArray[np.float64]] = {}
        sizes = [len(prompts[index]) + most for index in as_trie]
        # A batch more is a pass more for the prompts and for every part.
        padding = self._forward.overhead * (1 if len(parts) == 1 else 1 + len(parts))

        def score_batch(batch: list[int]) -> None:
            members = [as_trie[place] for place in batch]
            rows = [prompts[index] for index in members]
            if self._at_once(rows[0], parts):
                scored = score_trie(self._forward, rows, parts[0])
            else:
                scored = score_parts(self._forward, rows, parts)
            sums.update(zip(members, scored[:, np.argsort(order)], strict=True))

        def score_alone(batch: list[int]) -> None:
            (index,) = batch
            sums[index] = self._score_sharing(prompts[index], choices)

        self._forward.run(batches(sizes, budget=self._max_batch_tokens, padding=padding), score_batch)
        self._forward.run([[index] for index in range(len(prompts)) if index not in sums], score_alone)
        lengths = tuple(map(len, choices))
        return [Scores(tuple(map(float, sums[index])), lengths, len(prompt)) for index, prompt in enumerate(prompts)]

    def _at_once(self, prompt: list[int], parts: Sequence[Trie]) -> bool:
        """Whether a prompt is scored in one pass with all choices."""
        return len(parts) == 1 and len(prompt) + parts[0].extra <= min(self._max_batch_tokens, _LONGEST_ROW)

    @cached_property
    def _trie_reach(self) -> float:
        """Most tokens of prompt and choice that may be scored as a trie; 0 where the architecture cannot."""
        obstacle = self._obstacle()
        if obstacle is None:
            return _window(self._forward.model.config.get_text_config())
        logger.warning(
            "%s models cannot score all choices in one forward pass (%s): they are scored from the prompt's cache",
            self._forward.model.config.model_type,
            obstacle,
        )
        return 0

    def _obstacle(self) -> str | None:
        """Why tries cannot be used: a tiny one is held against a forward pass for each of its choices."""
        if not self._forward.takes_positions:
            return "they take no position ids"
        size = self._forward.model.get_input_embeddings().weight.shape[0]
        first, second, third, fourth = (np.arange(4) * 7919 % size).tolist()
        prompts = [[first, second, third, fourth], [second, third]]
        choices = [[second, first, third], [second, fourth, first], [third, first, second]]
        apart = []
        for prompt in prompts:
            apart.append([self._alone(prompt, choice) for choice in choices])
        try:
            together = [score_trie(self._forward, prompts, Trie.of(choices))]
            if self._forward.plain_cache:
                together.append(score_parts(self._forward, prompts, tries(choices, 2)))
        except torch.OutOfMemoryError as error:
            raise self._forward.too_large(error) from error
        except Exception as error:  # An architecture may fail in any way of its own; whatever it is, it cannot.
            return f"a small one fails with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        wanted = np.array(apart)
        difference = np.abs(np.array(together) - wanted).max()
        tolerance = _TOLERANCE.get(self._forward.dtype, _LOOSE_TOLERANCE)
        if not difference <= tolerance * np.abs(wanted).max():
            return f"scores of a small one differ by {difference:.2g} from those of each choice by itself"
        return None

    def _alone(self, prompt: list[int], choice: list[int]) -> float:
        """The plainest way: one forward pass for one choice, without padding, mask or cache of ours."""
        input_ids, mask = self._forward.padded([prompt + choice])
        logits, _ = self._forward.logits(input_ids, mask, keep=len(choice) + 1, use_cache=False)
        return float(_sums(logits[:, :-1], [choice])[0])

    def _score_sharing(self, prompt: list[int], choices: Sequence[list[int]]) -> NDArray[np.float64]:
        """Sums float64 [choices]: the prompt computed once, then batches of choices that continue its cache."""
        input_ids, mask = self._forward.padded([prompt])
        logits, cache = self._forward.logits(input_ids, mask, keep=1)
        longest = max(map(len, choices))
        size = max(1, self._max_batch_tokens // (len(prompt) + longest))
        sums = np.empty(len(choices))

        def score_batch(batch: list[int]) -> None:
            sums[batch] = self._continue(logits, mask, cache, [choices[index] for index in batch])

        numbers = list(range(len(choices)))
        self._forward.run([numbers[start : start + size] for start in range(0, len(choices), size)], score_batch)
        return sums

    def _continue(
        self, logits: torch.Tensor, mask: torch.Tensor, cache: Any, choices: Sequence[list[int]]
    ) -> NDArray[np.float64]:
        longest = max(map(len, choices))
        logits = logits.expand(len(choices), -1, -1)
        if longest > 1:
            # Filled up on the right, where nothing that counts can see it.
            filled = [choice[:-1] + choice[:1] * (longest - len(choice)) for choice in choices]
            grown = copy.deepcopy(cache)
            grown.batch_repeat_interleave(len(choices))
            seen = torch.cat([mask.expand(len(choices), -1), mask.new_ones(len(choices), longest - 1)], dim=1)
            further, _ = self._forward.logits(
                torch.tensor(filled, device=mask.device), seen, keep=longest - 1, cache=grown
            )
            logits = torch.cat([logits, further], dim=1)
        return _sums(logits, choices)


def _sums(logits: torch.Tensor, choices: Sequence[list[int]]) -> NDArray[np.float64]:
    """Log-likelihoods float64 [choices]; logits [choices, longest, vocabulary] predict the choices' tokens in turn."""
    sums = []
    # One by one: a log-softmax of all at once may need more memory than the forward pass.
    for row, choice in zip(logits, choices, strict=True):
        likelihoods = torch.log_softmax(row[: len(choice)].float(), dim=-1)
        targets = torch.tensor(choice, device=row.device)
        sums.append(likelihoods.gather(-1, targets[:, None]).double().sum().item())
    return np.array(sums)


def _window(config: Any) -> float:
    """Tokens that every layer sees back, by its configuration."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    reaches = [reach for reach in (window, getattr(config, "attention_chunk_size", None)) if reach]
    return min(reaches, default=float("inf"))
