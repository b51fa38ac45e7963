"""Micro-batches: packed rows flattened to one sequence without padding, and the loss over their targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from polysome.data.feed import Rows
from polysome.data.schema import IGNORED
from polysome.models.attention import Packing, pack


@dataclass(frozen=True)
class MicroBatch:
    """Documents of one forward pass, one after another.

    Attributes:
        input_ids, position_ids: int64 [1, total].
        predictors: int64 [n], the tokens whose successor is trained on.
        targets: int64 [n], those successors.
        packing: where the documents lie.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    packing: Packing

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on `device`."""
        if self.input_ids.device == device:
            return self
        return MicroBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.predictors.to(device),
            self.targets.to(device),
            self.packing.to(device),
        )


def flatten(rows: Rows) -> MicroBatch:
    """Drop the padding of `rows` and lay their documents end to end.

    No rows give a batch of one token without targets: the last update of a stage can leave a worker without rows, and
    every worker must take part in the reduction of gradients.
    """
    real = rows.segment_ids != 0
    input_ids, position_ids, labels = (
        values[real].astype(np.int64) for values in (rows.input_ids, rows.position_ids, rows.labels)
    )
    if not len(input_ids):
        input_ids, position_ids, labels = np.zeros(1, np.int64), np.zeros(1, np.int64), np.full(1, IGNORED, np.int64)
    starts = np.flatnonzero(position_ids == 0)
    lengths = np.diff(np.append(starts, len(position_ids)))
    # The first label of a document is ignored, so no document predicts into the next.
    successors = np.append(labels[1:], IGNORED)
    predictors = np.flatnonzero(successors != IGNORED)
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids)[None],
        position_ids=torch.from_numpy(position_ids)[None],
        predictors=torch.from_numpy(predictors),
        targets=torch.from_numpy(successors[predictors]),
        packing=pack(lengths.tolist()),
    )


class PackedLanguageModel(torch.nn.Module):
    """A causal language model whose forward pass is the summed loss of a micro-batch."""

    def __init__(self, causal: torch.nn.Module) -> None:
        """Wrap `causal`, a transformers causal language model that was built with packed attention."""
        super().__init__()
        self.causal: torch.nn.Module = causal

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """Cross-entropy summed over the batch's targets, fp32 scalar; logits are computed at those places alone."""
        logits = self.causal(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=batch.predictors,
            packing=batch.packing,
        ).logits
        return torch.nn.functional.cross_entropy(logits[0].float(), batch.targets, reduction="sum")
