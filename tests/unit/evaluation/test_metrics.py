"""Metrics and intervals against sklearn, scipy and what the requirements say (A-110..A-113, F-6, XP-4, E-5)."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr
from sklearn.metrics import matthews_corrcoef

from polysome.evaluation import intervals, metrics
from polysome.evaluation.measure import Measurement, measure
from polysome.specs import dataset

NAN = float("nan")


@pytest.mark.parametrize("classes", [2, 4])
def test_matthews_is_that_of_sklearn(classes: int) -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, classes, 300).astype(float)
    told = np.where(generator.random(300) < 0.6, labels, generator.integers(0, classes, 300))
    confusion = metrics.confusion_matrix(labels, told, classes)
    assert metrics.matthews(confusion) == pytest.approx(matthews_corrcoef(labels, told))


def test_an_unparsable_binary_answer_counts_as_the_opposite_label() -> None:
    labels, told = np.array([1.0, 1, 0, 0, 1]), np.array([1.0, NAN, NAN, 0, 1])
    assert metrics.matthews(metrics.confusion_matrix(labels, told, 2)) == pytest.approx(
        matthews_corrcoef(labels, [1, 0, 1, 0, 1])
    )
    assert metrics.accuracy(labels, told) == pytest.approx(3 / 5)


def test_matthews_is_zero_where_it_is_undefined() -> None:
    assert metrics.matthews(metrics.confusion_matrix(np.array([1.0, 0, 1]), np.ones(3), 2)) == 0


def test_spearman_is_pro_rated_by_the_parsed_share() -> None:
    # F-6: rho = 0.5 on eight of ten rows gives 0.40.
    labels = np.append(np.arange(8.0), [9.0, 4.0])
    told = np.array([4.0, 2, 1, 3, 0, 7, 6, 5, NAN, NAN])
    assert metrics.pro_rated_spearman(labels, told) == pytest.approx(0.4)


def test_spearman_ranks_ties_on_average_and_is_zero_for_a_constant() -> None:
    labels, told = np.array([1.0, 2, 2, 3, 5, 5]), np.array([2.0, 2, 1, 4, 4, 9])
    assert metrics.pro_rated_spearman(labels, told) == pytest.approx(spearmanr(labels, told).statistic)
    assert metrics.pro_rated_spearman(labels, np.full(6, 3.3)) == 0
    assert metrics.pro_rated_spearman(labels, np.full(6, NAN)) == 0


def test_wilson_is_that_of_scipy() -> None:
    for successes, n in ((0, 20), (7, 20), (40, 40)):
        expected = binomtest(successes, n).proportion_ci(method="wilson")
        assert intervals.wilson(successes, n) == pytest.approx((expected.low, expected.high))


def test_the_cell_bootstrap_agrees_with_resampling_the_examples() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, 400).astype(float)
    told = np.where(generator.random(400) < 0.75, labels, 1 - labels)
    values = []
    for _ in range(1000):
        chosen = generator.integers(0, 400, 400)
        values.append(matthews_corrcoef(labels[chosen], told[chosen]))
    confusion = metrics.confusion_matrix(labels, told, 2)
    interval = intervals.bootstrap_matthews(confusion, resamples=4000, seed=1)
    assert interval == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.02)


def test_the_spearman_bootstrap_is_seeded_and_holds_the_value() -> None:
    generator = np.random.default_rng(3)
    labels = generator.normal(size=200)
    told = labels + generator.normal(size=200)
    told[::10] = NAN
    low, high = intervals.bootstrap_spearman(labels, told, resamples=500, seed=1)
    assert low < metrics.pro_rated_spearman(labels, told) < high
    assert (low, high) == intervals.bootstrap_spearman(labels, told, resamples=500, seed=1)


def test_measure_reports_n_parse_rate_subsets_and_survives_json() -> None:
    task = dataset("planted_promoter").task
    assert task is not None
    labels, told = np.array([1.0, 0, 1, 0, 1, 0]), np.array([1.0, 0, NAN, 0, 1, 1])
    measurement = measure(task, labels, told, seed=1, subsets=["a", "a", "a", "b", "b", "b"])
    assert measurement.n == 6
    assert measurement.parse_rate is not None
    assert measurement.parse_rate.value == pytest.approx(5 / 6)
    assert {name: part.n for name, part in measurement.subsets.items()} == {"a": 3, "b": 3}
    content = json.loads(json.dumps(measurement.to_json(), allow_nan=False))
    assert content["value"] == round(100 * measurement.value.value, 2)
    assert content["raw"]["value"] == measurement.value.value
    assert Measurement.from_json(content) == measurement


def test_a_system_that_answers_nothing_is_measured_and_said_so() -> None:
    """What a model that only read raw sequences gives."""
    for name in ("planted_promoter", "planted_ncrna_family", "planted_thermostability"):
        task = dataset(name).task
        assert task is not None
        measurement = measure(task, np.array([1.0, 0, 1, 0]), np.full(4, NAN), seed=1)
        assert measurement.parse_rate is not None
        assert measurement.parse_rate.value == 0
        assert measurement.value.value == {"mcc": -1, "accuracy": 0, "spearman": 0}[task.metric]
        assert "no answer could be parsed" in measurement.notes


def test_a_constant_answer_to_a_regression_is_flagged() -> None:
    task = dataset("planted_thermostability").task
    assert task is not None
    measurement = measure(task, np.arange(10.0), np.full(10, 3.0), seed=1)
    assert measurement.value.value == 0
    assert any("all answers are the same" in note for note in measurement.notes)
