"""Scores of answers become scores of labels as the docstrings say: sums over wordings, expectations over grids."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from tiny_tasks import CLASSES, MARKS

from polysome.evaluation.choices import GRID, GRID_WORDINGS, WORDINGS, Choices, Unscored, choices
from polysome.specs import dataset


def of(name: str, training: list[tuple[float, ...]] | None = None) -> Choices:
    found = choices(dataset(name), training, seed=1)
    assert isinstance(found, Choices)
    return found


def test_a_label_is_as_likely_as_all_its_wordings_together(declare: Callable[..., str]) -> None:
    found = of(declare("binary"))
    assert found.texts == ("No, it is not.", "Yes, it is.", "Yes.")
    negative, positive = found.read([math.log(0.2), math.log(0.3), math.log(0.1)])
    assert negative == pytest.approx(math.log(0.2))
    assert positive == pytest.approx(math.log(0.4))


def test_wordings_that_are_left_out_count_as_much_as_the_others() -> None:
    """A model that has learned a pool of ten spreads a label's probability over all ten."""
    spec = dataset("core_promoter")
    assert spec.task is not None
    found = of("core_promoter")
    pools = [len(spec.task.templates.answers[name]) for name in ("negative", "positive")]
    sums = [math.log(0.5 / pools[owner]) for owner in found.owners]
    assert max(found.owners.count(0), found.owners.count(1)) <= WORDINGS
    assert found.read(sums) == pytest.approx([math.log(0.5)] * 2)


def test_answers_that_go_on_after_the_name_come_first(declare: Callable[..., str]) -> None:
    found = of(declare("multiclass"))
    assert found.texts[0] == f"It is {CLASSES[0]}."
    assert len(found.texts) == 2 * len(CLASSES)


def test_a_prior_is_what_the_question_without_molecules_says(declare: Callable[..., str]) -> None:
    found = of(declare("multiclass"))
    prior = np.log(np.linspace(0.1, 0.3, len(found.texts)))
    assert found.read(prior.tolist(), prior.tolist()) == pytest.approx([0.0] * 3)


def test_sets_are_ranked_by_each_name_alone_and_by_none(declare: Callable[..., str]) -> None:
    found = of(declare("multilabel"))
    assert found.texts == (*(f"The marks are {mark}." for mark in MARKS), "The marks are none.")
    shares = found.read([-1.0, -2.0, -3.0, -4.0])
    assert np.exp(shares).sum() == pytest.approx(1)
    assert list(shares) == sorted(shares, reverse=True)


def test_few_numbers_are_a_grid_of_themselves(declare: Callable[..., str]) -> None:
    found = of(declare("regression"), [(number,) for number in (1.0, 2.0, 2.04, 5.0)])
    assert found.texts == ("It is 1.0.", "It is 2.0.", "It is 5.0.")
    assert found.read([math.log(0.5), math.log(0.25), math.log(0.25)]) == pytest.approx([2.25])


@pytest.mark.parametrize(("mean", "deviation"), [(20.0, 4.0), (60.0, 10.0), (75.0, 6.0)])
def test_many_numbers_are_quantiles_that_stand_for_stretches(
    declare: Callable[..., str],
    mean: float,
    deviation: float,
) -> None:
    """Training labels crowd at one end; a model that says a normal density is still read without pull towards it."""
    training = 100 * np.random.default_rng(2).beta(1.2, 2.5, size=20_000)
    found = of(declare("regression"), [(number,) for number in training.tolist()])
    assert len(found.texts) <= GRID
    numbers = np.array([value[0] for value in found.values])
    density = -((numbers - mean) ** 2) / (2 * deviation**2)
    assert found.read(density.tolist())[0] == pytest.approx(mean, abs=0.6)


def test_a_number_is_said_in_the_wordings_that_end_soonest_after_it() -> None:
    """What follows a number is computed once for each number of the grid, so long endings would cost the most."""
    found = of("stability", [(number,) for number in np.random.default_rng(4).normal(size=500).tolist()])
    assert len(found.texts) == GRID_WORDINGS * len(found.values)
    said = [found.values[owner][0] for owner in found.owners]
    assert all(text.endswith(f"{number:.2f}.") for text, number in zip(found.texts, said, strict=True))


def test_several_numbers_are_one_answer(declare: Callable[..., str]) -> None:
    training = np.random.default_rng(3).normal(size=(3000, 2)) * [1, 5]
    found = of(declare("multi_regression"), [tuple(row) for row in training.tolist()])
    assert GRID < len(found.texts) <= 2 * GRID
    assert all(text.startswith("up ") and ", down " in text for text in found.texts)
    wanted = np.array(found.values)[7]
    sums = [0.0 if index == 7 else -50.0 for index in range(len(found.texts))]
    assert found.read(sums) == pytest.approx(wanted.tolist())


def test_what_cannot_be_scored_says_why(declare: Callable[..., str]) -> None:
    text = choices(dataset(declare("generation")), None, seed=1)
    assert isinstance(text, Unscored)
    assert "free text" in text.reason
    number = choices(dataset(declare("regression")), [], seed=1)
    assert isinstance(number, Unscored)
    assert "no training labels" in number.reason
