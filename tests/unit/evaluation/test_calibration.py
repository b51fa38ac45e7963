"""Calibration: a distortion of known size is measured, fitted away on dev, and told where there is no dev."""

import json
import math

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import brier_score_loss, log_loss

from polysome.evaluation.calibration import Calibration, calibrate, fit_platt, fit_temperature
from polysome.specs import Task, Value, dataset

NO_DEV = "the data set has no dev split"


def task_of(name: str) -> Task:
    task = dataset(name).task
    assert task is not None
    return task


BINARY, MANY, NUMBER = task_of("core_promoter"), task_of("ncrna_family"), task_of("stability")


def binary_rows(n: int, seed: int, *, slope: float = 1.0, offset: float = 0.0) -> tuple[list[Value], np.ndarray]:
    """Labels whose true log-odds are slope·margin + offset, and log-likelihoods with that margin."""
    generator = np.random.default_rng(seed)
    margin = generator.normal(size=n) * 3
    labels = generator.random(n) < expit(slope * margin + offset)
    return [(float(label),) for label in labels], np.stack([np.full(n, -5.0), margin - 5.0], axis=1)


def class_rows(n: int, seed: int, *, temperature: float) -> tuple[list[Value], np.ndarray]:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, 13)) * 3
    shares = softmax(logits / temperature, axis=1)
    return [(float(generator.choice(13, p=share)),) for share in shares], logits - 7


def test_platt_recovers_the_distortion_of_a_binary_task() -> None:
    labels, scores = binary_rows(4000, 1, slope=0.4, offset=0.7)
    slope, offset = fit_platt(np.array([int(label[0]) for label in labels]), scores[:, 1] - scores[:, 0])
    assert (slope, offset) == pytest.approx((0.4, 0.7), abs=0.08)
    found = calibrate(BINARY, *binary_rows(4000, 2, slope=0.4, offset=0.7), (labels, scores))
    assert found is not None
    assert found.method == "platt"
    assert found.parameters == pytest.approx({"slope": slope, "offset": offset})
    assert found.after is not None
    assert found.before.ece > 0.1
    assert found.after.ece < 0.03
    assert found.after.brier < found.before.brier
    assert found.after.log_loss < found.before.log_loss
    assert (found.n, found.dev_n) == (4000, 4000)


def test_temperature_recovers_the_distortion_of_many_classes() -> None:
    labels, scores = class_rows(3000, 1, temperature=2.5)
    assert fit_temperature(np.array([int(label[0]) for label in labels]), scores) == pytest.approx(2.5, rel=0.08)
    found = calibrate(MANY, *class_rows(3000, 2, temperature=2.5), (labels, scores))
    assert found is not None
    assert (found.method, found.after is not None) == ("temperature", True)
    assert found.after is not None
    assert found.before.ece > 0.15 > 0.04 > found.after.ece


def test_reliability_is_that_of_scikit_learn() -> None:
    labels, scores = binary_rows(500, 3)
    found = calibrate(BINARY, labels, scores, NO_DEV)
    assert found is not None
    truth, p = np.array([label[0] for label in labels]), softmax(scores, axis=1)[:, 1]
    assert found.before.brier == pytest.approx(brier_score_loss(truth, p))
    assert found.before.log_loss == pytest.approx(log_loss(truth, p))
    assert sum(part.count for part in found.before.bins) == 500
    assert [part.low for part in found.before.bins[:2]] == pytest.approx([0, 1 / 15])
    many, logits = class_rows(400, 4, temperature=1)
    told = calibrate(MANY, many, logits, NO_DEV)
    assert told is not None
    probabilities, indices = softmax(logits, axis=1), [int(label[0]) for label in many]
    assert told.before.log_loss == pytest.approx(log_loss(indices, probabilities, labels=np.arange(13)))
    assert told.before.brier == pytest.approx(((probabilities - np.eye(13)[indices]) ** 2).sum(axis=1).mean())
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == indices
    ece = sum(
        abs(right[inside].mean() - confidence[inside].mean()) * inside.mean()
        for low in np.arange(15) / 15
        if (inside := (confidence >= low) & (confidence < low + 1 / 15)).any()
    )
    assert told.before.ece == pytest.approx(ece)


def test_a_task_without_dev_is_told_and_not_fitted() -> None:
    found = calibrate(BINARY, *binary_rows(50, 1), NO_DEV)
    assert found is not None
    assert (found.method, found.after, found.dev_n) == (None, None, 0)
    assert found.notes == (f"not calibrated: {NO_DEV}",)


def test_a_dev_split_of_one_class_is_told_and_not_fitted() -> None:
    labels, scores = binary_rows(50, 1)
    found = calibrate(BINARY, labels, scores, ([(1.0,)] * 50, scores))
    assert found is not None
    assert found.method is None
    assert "the 50 dev rows hold fewer than two classes" in found.notes[-1]


def test_rows_without_scores_are_left_out_and_counted() -> None:
    labels, scores = binary_rows(50, 1)
    gaps = scores.copy()
    gaps[:5] = np.nan
    found = calibrate(BINARY, labels, gaps, (labels, gaps))
    assert found is not None
    assert (found.n, found.dev_n) == (45, 45)
    assert found.notes == (
        "5 rows have no scores and are left out of the calibration",
        "5 dev rows have no scores and are left out of the calibration",
    )
    nothing = calibrate(BINARY, labels, np.full_like(scores, np.nan), (labels, scores))
    assert nothing is not None
    assert math.isnan(nothing.before.ece)


def test_separable_classes_keep_a_finite_fit() -> None:
    slope, offset = fit_platt(np.array([0, 0, 0, 1, 1, 1]), np.array([-9.0, -8, -7, 7, 8, 9]))
    assert 0 < slope < 5
    assert math.isfinite(offset)


def test_numbers_have_no_calibration() -> None:
    assert calibrate(NUMBER, [(1.0,)], np.ones((1, 1)), NO_DEV) is None


def test_a_calibration_survives_json() -> None:
    for found in (
        calibrate(BINARY, *binary_rows(80, 1), binary_rows(80, 2)),
        calibrate(MANY, *class_rows(80, 1, temperature=2), NO_DEV),
    ):
        assert found is not None
        content = json.loads(json.dumps(found.to_json(), allow_nan=False))
        again = Calibration.from_json(content)
        assert again.to_json() == found.to_json()
        assert again.parameters == found.parameters
