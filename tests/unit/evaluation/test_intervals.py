"""Conformal intervals: the rank that finite samples need, coverage as promised, and nothing from too few rows."""

import json
import math

import numpy as np
import pytest

from polysome.evaluation.intervals import LEVEL, Interval, conformal_interval, number
from polysome.specs import RegressionLabel, Task, dataset


def task_of(name: str) -> Task:
    task = dataset(name).task
    assert task is not None
    return task


TASK = task_of("planted_thermostability")


def rows(n: int, seed: int) -> tuple[list[tuple[float]], list[tuple[float]]]:
    """Labels, and answers that miss them by a skewed error."""
    generator = np.random.default_rng(seed)
    labels = generator.uniform(45, 65, n)
    return [(float(label),) for label in labels], [
        (float(label),) for label in labels + generator.exponential(3, n) - 2
    ]


def test_the_half_width_is_the_residual_of_the_rank_that_finite_samples_need() -> None:
    labels, told = [(50.0,)] * 19, [(50.0 + error,) for error in range(19)]
    found = conformal_interval(TASK, labels, told, (labels, told))
    assert found is not None
    # ⌈20 · 0.9⌉ = 18: one more than the plain 90 % quantile of 19.
    assert found.half_width == 17.0
    assert (found.dev_n, found.n, found.coverage) == (19, 19, 18 / 19)


def test_coverage_over_many_draws_is_at_least_the_level_and_not_much_more() -> None:
    shares = []
    for seed in range(200):
        found = conformal_interval(TASK, *rows(100, 1000 + seed), rows(60, seed))
        assert found is not None
        shares.append(found.coverage)
    assert LEVEL - 0.01 <= np.mean(shares) <= LEVEL + 0.03


def test_answers_without_a_number_take_no_part_and_too_few_rows_give_nothing() -> None:
    labels, told = rows(30, 1)
    gaps = [None if place % 2 else answer for place, answer in enumerate(told)]
    found = conformal_interval(TASK, labels, gaps, (labels, gaps))
    assert found is not None
    assert (found.dev_n, found.n) == (15, 15)
    assert conformal_interval(TASK, labels, told, (labels[:8], told[:8])) is None
    untold = conformal_interval(TASK, labels, [None] * 30, (labels, told))
    assert untold is not None
    assert math.isnan(untold.coverage)
    assert Interval.from_json(json.loads(json.dumps(untold.to_json(), allow_nan=False))).to_json() == untold.to_json()


@pytest.mark.parametrize(("told", "expected"), [((43.5,), 43.5), ((81.0,), None), ((29.9,), None), (None, None)])
def test_a_number_is_one_that_the_label_allows(told, expected) -> None:
    assert isinstance(TASK.label, RegressionLabel)
    assert number(TASK.label, told) == expected
