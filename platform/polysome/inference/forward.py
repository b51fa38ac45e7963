"""Forward passes: token ids in, logits or hidden states out, for any causal language model of transformers."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from inspect import signature
from typing import Any

import numpy as np
import torch

from polysome.config import DataError
from polysome.inference.adapters import Adapters
from polysome.inference.places import obstacle, read_by_length

logger = logging.getLogger(__name__)

_POSITIONS_PER_PASS = {"cpu": 64, "cuda": 256}
"""Measured on one core with a model of 5 million parameters; on a GPU an estimate."""


class Forward:
    """A model where and as it is, called with left-padded batches.

    Args:
        model: a transformers causal language model.
        pad: token id that fills rows up; it is never seen.
        adapters: of the model.
    """

    def __init__(self, model: Any, pad: int, adapters: Adapters) -> None:
        self.model, self._pad, self._adapters = model, pad, adapters
        weight = model.get_input_embeddings().weight
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        self.overhead = _POSITIONS_PER_PASS.get(self.device.type, 256)
        """Filled up positions that cost about as much as one more forward pass."""
        accepted = signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self._takes_logits_to_keep = "logits_to_keep" in accepted
        self._told_of_halving = False

    @cached_property
    def plain_cache(self) -> bool:
        """Whether a cache is plain keys and values of all positions in every layer."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        _, cache = self.logits(*self.padded([[0]]), keep=1)
        return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)

    @cached_property
    def has_places(self) -> bool:
        """Whether each row of a batch can have a place of its own in the cache, see `Places`."""
        if not self.plain_cache:
            return False
        read_by_length(self.model)
        why = obstacle(self)
        if why is not None:
            kind = self.model.config.model_type
            logger.warning("answers of %s models wait for a batch to end, or are batched by length: %s", kind, why)
        return why is None

    def padded(self, sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and attention mask, int64 [rows, longest], padded on the left."""
        longest = max(len(sequence) for sequence in sequences)
        input_ids = np.full((len(sequences), longest), self._pad, dtype=np.int64)
        mask = np.zeros((len(sequences), longest), dtype=np.int64)
        for index, sequence in enumerate(sequences):
            input_ids[index, longest - len(sequence) :] = sequence
            mask[index, longest - len(sequence) :] = 1
        return torch.from_numpy(input_ids).to(self.device), torch.from_numpy(mask).to(self.device)

    @torch.inference_mode()
    def logits(
        self,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        *,
        keep: int,
        positions: torch.Tensor | None = None,
        cache: Any = None,
        use_cache: bool = True,
        adapters: Sequence[str | None] | None = None,
    ) -> tuple[torch.Tensor, Any]:
        """Logits [rows, keep, vocabulary] of the last `keep` positions, and the cache grown by `input_ids`.

        Args:
            input_ids: int64 [rows, length].
            mask: int64 [rows, cached + length], 0 for padding; or additive [rows, 1, length, cached + length], which
                needs `positions`.
            positions: int64 [rows, length]; without, those that `mask` tells.
            adapters: name of each row's adapter, None for the base; without, the active one has all rows.
        """
        options: dict[str, Any] = {"use_cache": use_cache}
        if cache is not None:
            options["past_key_values"] = cache
        if self.takes_positions:
            options["position_ids"] = positions_of(mask)[:, -input_ids.shape[1] :] if positions is None else positions
        if self._takes_logits_to_keep:
            options["logits_to_keep"] = keep
        output = self._adapters.call(adapters, {"input_ids": input_ids, "attention_mask": mask, **options})
        return output.logits[:, -keep:], output.past_key_values if use_cache else None

    @torch.inference_mode()
    def hidden(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Hidden states [rows, length, hidden] after the last layer and its norm."""
        options = {"position_ids": positions_of(mask)} if self.takes_positions else {}
        self._adapters.activate(self._adapters.active)
        output = self.model.base_model(input_ids=input_ids, attention_mask=mask, use_cache=False, **options)
        states: torch.Tensor = output.last_hidden_state
        return states

    def run(self, batches: Sequence[list[int]], work: Callable[[list[int]], None]) -> None:
        """Do the work of each batch. Where the device's memory runs out, all that is left is halved and tried again.

        Args:
            batches: indices of rows, see `batches`.
            work: may fail half-way, and then gets its rows again, in two batches.

        Raises:
            DataError: one row by itself does not fit.
        """
        pending = list(batches)
        while pending:
            shortage = _shortage(work, pending[0])
            if shortage is None:
                pending = pending[1:]
                continue
            if len(pending[0]) == 1:
                raise self.too_large(shortage)
            if not self._told_of_halving:
                self._told_of_halving = True
                logger.warning(
                    "%s has no memory for a batch of %d: batches are halved where that is so; a lower max_batch_tokens "
                    "spares the trials",
                    self.device,
                    len(pending[0]),
                )
            pending = [half for batch in pending for half in _halves(batch)]

    def too_large(self, shortage: object) -> DataError:
        """What is told where one question by itself exceeds the device's memory."""
        reason = str(shortage).partition("\n")[0]
        return DataError(
            f"one question by itself exceeds the device's memory: {reason}",
            where=str(self.device),
            fix="shorten it, end what else uses the device, or use a device with more memory or a smaller model",
        )


def _shortage(work: Callable[[list[int]], None], batch: list[int]) -> str | None:
    """Why memory did not do for a batch; with the error goes what the attempt had allocated."""
    try:
        work(batch)
    except torch.OutOfMemoryError as error:
        found = str(error)
    else:
        return None
    torch.cuda.empty_cache()
    return found


def _halves(batch: list[int]) -> list[list[int]]:
    middle = (len(batch) + 1) // 2
    return [half for half in (batch[:middle], batch[middle:]) if half]


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """`position_ids`, int64 [rows, length], of left-padded rows: 0 at their first token, and in the padding."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def batches(sizes: Sequence[int], *, budget: int, padding: int) -> list[list[int]]:
    """Indices of rows that share a batch; longest rows first, so that memory peaks at the start.

    Args:
        sizes: positions that each row takes.
        budget: most positions of a batch, filled up ones included; one row always fits.
        padding: most filled up positions of a batch.
    """
    found: list[list[int]] = []
    longest = filled = 0
    for index in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        filled += longest - sizes[index]
        if found and filled <= padding and (len(found[-1]) + 1) * longest <= budget:
            found[-1].append(index)
        else:
            found.append([index])
            longest, filled = sizes[index], 0
    return found
