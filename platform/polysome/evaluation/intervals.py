"""95 % confidence intervals: Wilson for shares, percentile bootstrap over examples for everything else (E-5)."""

import math

import numpy as np
from numpy.typing import NDArray

from polysome.evaluation.metrics import matthews, pro_rated_spearman

LEVEL = 0.95
_Z = 1.959963984540054
_CELLS_AT_ONCE = 4_000_000

Interval = tuple[float, float]


def wilson(successes: int, n: int) -> Interval:
    """Wilson score interval of a share; (nan, nan) for n = 0."""
    if n == 0:
        return math.nan, math.nan
    share = successes / n
    centre = share + _Z**2 / (2 * n)
    spread = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def bootstrap_matthews(confusion: NDArray[np.int64], *, resamples: int, seed: int) -> Interval:
    """Interval of the MCC of a confusion matrix [classes, classes].

    Resampling n examples with replacement is one multinomial draw over the cells, so no example is touched.
    """
    n = int(confusion.sum())
    if n == 0:
        return math.nan, math.nan
    draws = np.random.default_rng(seed).multinomial(n, confusion.ravel() / n, size=resamples)
    return _percentiles(matthews(draws.reshape(resamples, *confusion.shape)))


def bootstrap_spearman(
    labels: NDArray[np.float64], predictions: NDArray[np.float64], *, resamples: int, seed: int
) -> Interval:
    """Interval of the pro-rated Spearman correlation of labels and predictions [n] (nan: unparsable)."""
    n = len(labels)
    if n == 0:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, _CELLS_AT_ONCE // n)
    values = []
    for start in range(0, resamples, rows_at_once):
        chosen = generator.integers(0, n, size=(min(rows_at_once, resamples - start), n))
        values.append(pro_rated_spearman(labels[chosen], predictions[chosen]))
    return _percentiles(np.concatenate(values))


def _percentiles(values: NDArray[np.float64]) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
