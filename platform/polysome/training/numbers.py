"""Number-token loss: how far the digits that a model finds likely lie from the digit that stands in the answer.

Cross-entropy calls every wrong digit equally wrong: to it 0.59 and 0.51 are both one token off 0.58. The loss here is
the Wasserstein-1 distance between the predicted distribution over number tokens and the target (NTL-WAS of Zausinger et
al. 2025, "Regress, Don't Guess", arXiv 2411.02083); it is added to the cross-entropy of regression answers (§8.2-3).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polysome.config import ConfigurationError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

# Byte-level vocabularies write a leading blank as U+0120, SentencePiece as U+2581.
_NUMBER = re.compile("[\u0120\u2581 ]?([0-9]+)")


@dataclass(frozen=True)
class NumberTokens:
    """The tokens of a vocabulary that are nothing but digits.

    Attributes:
        lengths: int64 [tokens], digits of each token, 0 where it is no number.
        values: float32 [tokens], the number in units of its first digit's place (`53` is 5.3, `05` is 0.5); nan where
            it is no number.
        groups: for every count of digits the ids, int64 [k], of the tokens that have it, in the order of their values.
    """

    lengths: torch.Tensor
    values: torch.Tensor
    groups: dict[int, torch.Tensor]

    def to(self, device: torch.device) -> NumberTokens:
        """The same on `device`."""
        groups = {length: ids.to(device) for length, ids in self.groups.items()}
        return NumberTokens(self.lengths.to(device), self.values.to(device), groups)


def number_tokens(tokenizer: PreTrainedTokenizerBase) -> NumberTokens:
    """The number tokens of a tokenizer, on the CPU.

    Raises:
        ConfigurationError: a digit has no token of its own.
    """
    import torch

    texts = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    digits = [found[1] if (found := _NUMBER.fullmatch(text or "")) else "" for text in texts]
    missing = sorted(set("0123456789") - set(digits))
    if missing:
        raise ConfigurationError(
            f"the tokenizer has no token that is just the digit {missing[0]}, so numbers have no digits to compare",
            where="number_loss",
            fix="take number_loss out, or use a tokenizer that spells numbers in digits",
        )
    lengths = torch.tensor([len(text) for text in digits])
    values = torch.tensor([int(text) / 10 ** (len(text) - 1) if text else float("nan") for text in digits])
    counts = sorted(set(lengths.tolist()) - {0})
    groups = {count: (lengths == count).nonzero()[:, 0] for count in counts}
    return NumberTokens(lengths, values, {count: ids[values[ids].argsort()] for count, ids in groups.items()})


def number_token_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    numbers: NumberTokens,
    weights: torch.Tensor | None = None,
    power: int = 1,
) -> torch.Tensor:
    """Sum over the targets that are numbers of the expected distance between predicted and true token, fp32 scalar.

    The softmax is over the tokens with as many digits as the target, and the distance is in units of the first digit's
    place: 0 to 9 for single digits, which is NTL-WAS as published, and 0 to 9.9 or 9.99 for tokens of two or three
    digits, whose neighbours then are a tenth or a hundredth apart. That a number has too many digits, that a sign is
    wrong, or that no number stands there, is left to the cross-entropy.

    Args:
        logits: [n, vocabulary], any floating dtype; the vocabulary may be padded beyond the tokenizer's.
        targets: int64 [n].
        numbers: of the tokenizer, on the logits' device.
        weights: [n], bool or float; each target's part in the sum. None: 1 for all.
        power: of the difference between the two cumulative distributions. 1: Wasserstein-1, the expected distance; 2:
            the ranked probability score, which like the cross-entropy is least at the true distribution.

    Returns:
        0 exactly where the model is certain and right, and without a gradient when no target is a number.
    """
    import torch

    lengths = numbers.lengths[targets]
    if weights is not None:
        lengths = torch.where(weights != 0, lengths, 0)
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    for length, ids in numbers.groups.items():
        rows = (lengths == length).nonzero()[:, 0]
        if not len(rows):
            continue
        values = numbers.values[ids]
        below = torch.softmax(logits[rows[:, None], ids].float(), dim=-1).cumsum(dim=-1)[:, :-1]
        wrong = below - (values[:-1] >= numbers.values[targets[rows]][:, None]).float()
        expected = (wrong.abs() ** power * values.diff()).sum(dim=-1)
        total = total + (expected if weights is None else expected * weights[rows]).sum()
    return total
