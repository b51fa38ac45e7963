"""The number-token loss against its definition written out as a loop, and on tokenizers of several kinds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from polysome.config import ConfigurationError
from polysome.training.numbers import NumberTokens, number_token_loss, number_tokens


def vocabulary(*tokens: str) -> NumberTokens:
    """The number tokens of a vocabulary that holds these."""
    words = {token: number for number, token in enumerate(tokens)}
    return number_tokens(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, tokens[0]))))


DIGITS = [str(digit) for digit in range(10)]
SINGLE = vocabulary("a", *DIGITS, ".", "-")
WIDE_TEXTS = ["a", *DIGITS, ".", *(f"{number:02}" for number in range(100)), "\u01205", "007", "530", "1a", "m6"]
WIDE = vocabulary(*WIDE_TEXTS)


def by_hand(logits: list[list[float]], targets: list[int], texts: list[str]) -> float:
    """Expected distance to the target's value among the tokens with as many digits, per target that is a number."""
    total = 0.0
    bare = [text.removeprefix("\u0120") for text in texts]
    for row, target in zip(logits, targets, strict=True):
        if not bare[target].isdigit():
            continue
        size = len(bare[target])
        alike = [token for token, text in enumerate(bare) if text.isdigit() and len(text) == size]
        norm = sum(math.exp(row[token]) for token in alike)
        for token in alike:
            distance = abs(int(bare[token]) - int(bare[target])) / 10 ** (size - 1)
            total += math.exp(row[token]) / norm * distance
    return total


@given(st.lists(st.integers(0, len(WIDE_TEXTS) - 1), max_size=8), st.integers(0, 2**31))
def test_it_is_the_expected_distance_written_out(targets: list[int], seed: int) -> None:
    logits = 3 * torch.randn(len(targets), len(WIDE_TEXTS) + 5, generator=torch.Generator().manual_seed(seed))
    loss = number_token_loss(logits, torch.tensor(targets, dtype=torch.int64), WIDE)
    assert loss.item() == pytest.approx(by_hand(logits.tolist(), targets, WIDE_TEXTS), rel=1e-4, abs=1e-5)


def test_certain_and_right_costs_nothing_and_certain_and_wrong_its_distance() -> None:
    targets = torch.tensor([1 + 3, 0, 1 + 9])
    right = torch.full((3, 13), -200.0).scatter(1, targets[:, None], 200.0)
    assert number_token_loss(right, targets, SINGLE).item() == 0.0
    wrong = torch.full((3, 13), -200.0).scatter(1, torch.tensor([[1 + 5], [1], [1 + 2]]), 200.0)
    assert number_token_loss(wrong, targets, SINGLE).item() == 2 + 7


def test_a_step_against_the_gradient_moves_the_likely_digits_to_the_target() -> None:
    logits = torch.zeros(1, 13, requires_grad=True)
    number_token_loss(logits, torch.tensor([1 + 8]), SINGLE).backward()
    assert logits.grad is not None
    gradient = logits.grad[0]
    assert not gradient[[0, 11, 12]].any(), "what is no number is left to the cross-entropy"
    away = gradient[1:11][[8, 7, 4, 0]].tolist()
    assert away == sorted(away), "the further off a digit, the more it is pushed down"
    assert away[0] < 0 < away[-1]


def test_in_bf16_it_is_computed_in_fp32() -> None:
    logits = torch.randn(4, 13, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.tensor([1, 4, 7, 10])
    loss = number_token_loss(logits, targets, SINGLE)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(number_token_loss(logits.double(), targets, SINGLE).item(), rel=1e-5)


def test_no_number_among_the_targets_is_no_loss() -> None:
    assert number_token_loss(torch.randn(2, 13), torch.tensor([0, 11]), SINGLE).item() == 0.0
    assert number_token_loss(torch.randn(0, 13), torch.empty(0, dtype=torch.int64), SINGLE).item() == 0.0


def test_the_per_base_tokenizer_spells_numbers_in_digits(tiny_tokenizer: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    numbers = number_tokens(tokenizer)
    ids = tokenizer.encode("The value is 0.43", add_special_tokens=False)
    values = [value for value in numbers.values[ids].tolist() if not math.isnan(value)]
    assert values == [0, 4, 3]


def test_a_tokenizer_without_digits_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="just the digit 7"):
        vocabulary("a", *(digit for digit in DIGITS if digit != "7"), "77")
