"""The mixed score of siRNA efficacy: remaining percentages in, one number of error and classification out (A-118)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from polysome.evaluation.metrics import Floats
from polysome.evaluation.resampling import Resampled

LOW = 30.0
"""Percent: below it a target counts as silenced; from 0 to it the range of interest reaches."""
LARGEST = 1000.0
"""A prediction beyond it is invalid."""

RangeBy = Literal["predictions", "labels"]


@dataclass(frozen=True)
class Mixed:
    """The mixed score and what it is made of; each may be an array over resamples."""

    score: Floats
    """(0.5·(1 - MAE/100) + 0.5·F1·(1 - RangeMAE/100))·|V|/N, 0 to 1."""
    mae: Floats
    """Percentage points over the valid rows, at most 100."""
    f1: Floats
    """Of "less than 30 % remains"; 0 where undefined."""
    range_mae: Floats
    """Percentage points over the rows in the range of interest, at most 100; 100 where there are none."""


def mixed(labels: Floats, predictions: Floats, *, range_by: RangeBy = "predictions") -> Mixed:
    """The score of labels and predictions [n]; V are the rows whose prediction is a number of at most ±1000 (F-1).

    Args:
        range_by: whether a row is in the range of interest, [0, 30], by its prediction, as the published code has it,
            or by its label (AMB-30).
    """
    return _pieces(labels, predictions, range_by)(np.ones((1, len(labels))), squeeze=True)


def resampled_mixed(labels: Floats, predictions: Floats, *, range_by: RangeBy = "predictions") -> Resampled:
    """The score of many resamples."""
    pieces = _pieces(labels, predictions, range_by)
    return lambda weights: pieces(weights).score


def _pieces(labels: Floats, predictions: Floats, range_by: RangeBy) -> Callable[..., Mixed]:
    valid = np.isfinite(predictions) & (np.abs(np.nan_to_num(predictions)) <= LARGEST)
    told = np.where(valid, predictions, 0)
    errors = np.where(valid, np.abs(labels - told), 0)
    low, told_low = valid & (labels < LOW), valid & (told < LOW)
    looked_at = told if range_by == "predictions" else labels
    inside = valid & (looked_at >= 0) & (looked_at <= LOW)
    columns = np.stack(
        [np.ones_like(labels), valid, errors, low & told_low, low, told_low, inside, errors * inside], axis=1
    ).astype(float)

    def pieces(weights: Floats, *, squeeze: bool = False) -> Mixed:
        n, count, error, hits, lows, told_lows, range_count, range_error = (weights @ columns).T
        with np.errstate(divide="ignore", invalid="ignore"):
            mae = np.where(count > 0, np.minimum(error / count, 100), 100)
            f1 = np.where(lows + told_lows > 0, 2 * hits / (lows + told_lows), 0)
            range_mae = np.where(range_count > 0, np.minimum(range_error / range_count, 100), 100)
            share = np.where(n > 0, count / n, 0)
        score = (0.5 * (1 - mae / 100) + 0.5 * f1 * (1 - range_mae / 100)) * share
        found = (score, mae, f1, range_mae)
        return Mixed(*(part[0] for part in found)) if squeeze else Mixed(*found)

    return pieces
