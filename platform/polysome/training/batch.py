"""Micro-batches: the documents of packed rows as one sequence without padding, and the loss over their targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from polysome.data.rows import Documents
from polysome.models.attention import Packing, pack

NumberLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits, fp32 [n, vocabulary], targets, int64 [n], and each one's weight, fp32 [n], to a summed loss."""


@dataclass(frozen=True)
class MicroBatch:
    """Documents of one forward pass, one after another.

    Attributes:
        input_ids, position_ids: int64 [1, total].
        predictors: int64 [n], the tokens whose successor is trained on.
        targets: int64 [n], those successors.
        sources: int64 [n], the source of each one's document.
        packing: where the documents lie.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    sources: torch.Tensor
    packing: Packing

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on `device`."""
        if self.input_ids.device == device:
            return self
        return MicroBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def flatten(documents: Documents, sources: np.ndarray) -> MicroBatch:
    """Lay documents end to end.

    No documents give a batch of one token without targets: the last update of a stage can leave a worker without rows,
    and every worker must take part in the reduction of gradients.

    Args:
        sources: int64 [documents].
    """
    lengths = documents.lengths.astype(np.int64)
    if not len(lengths):
        documents = Documents(np.zeros(1, np.int32), np.ones(1, np.int32), np.ones(1, np.int32))
        lengths, sources = np.ones(1, np.int64), np.zeros(1, np.int64)
    before = np.cumsum(lengths) - lengths
    position_ids = np.arange(lengths.sum()) - np.repeat(before, lengths)
    # The first token of a document is never a target, so no document predicts into the next.
    targets = np.flatnonzero(position_ids >= np.repeat(np.maximum(1, documents.target_starts), lengths))
    input_ids = torch.from_numpy(documents.input_ids.astype(np.int64))
    return MicroBatch(
        input_ids=input_ids[None],
        position_ids=torch.from_numpy(position_ids)[None],
        predictors=torch.from_numpy(targets - 1),
        targets=input_ids[targets],
        sources=torch.from_numpy(np.repeat(sources, lengths)[targets]),
        packing=pack(lengths.tolist()),
    )


@dataclass(frozen=True)
class Objective:
    """What is minimised beside the cross-entropy, and what is counted.

    Attributes:
        sources: number of sources, at least 1.
        number_loss: of targets that are numbers.
        number_weights: fp32 [sources], its factor by source; 0 where answers are no numbers.
    """

    sources: int = 1
    number_loss: NumberLoss | None = None
    number_weights: torch.Tensor | None = None


class PackedLanguageModel(torch.nn.Module):
    """A causal language model whose forward pass is the summed loss of a micro-batch."""

    def __init__(self, causal: torch.nn.Module, objective: Objective | None = None) -> None:
        """Wrap `causal`, a transformers causal language model that was built with packed attention."""
        super().__init__()
        self.causal: torch.nn.Module = causal
        self.objective = objective or Objective()

    def forward(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over the batch's targets, and what it is made of; logits are computed at those places alone.

        Returns:
            loss: fp32 scalar, the cross-entropy and, weighted, the number loss.
            sums: float64 [sources, 3] without gradient: cross-entropy, targets, and targets that were the most likely
                token, summed by source.
        """
        outputs: Any = self.causal(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=batch.predictors,
            packing=batch.packing,
        )
        logits = outputs.logits[0].float()
        losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        loss = losses.sum()
        with torch.no_grad():
            right = logits.argmax(-1) == batch.targets
            counted = torch.stack([losses.detach(), torch.ones_like(losses), right.to(losses.dtype)], dim=1)
            sums = torch.zeros((self.objective.sources, 3), dtype=torch.float64, device=losses.device)
            sums.index_add_(0, batch.sources, counted.double())
        if self.objective.number_loss is not None and self.objective.number_weights is not None:
            weights = self.objective.number_weights.to(batch.sources.device)[batch.sources]
            loss = loss + self.objective.number_loss(logits, batch.targets, weights)
        return loss, sums
