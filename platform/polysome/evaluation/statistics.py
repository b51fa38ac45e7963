"""Uncertainty of metrics: counts or resamples in, 95 % confidence intervals, p-values and detectable differences out.

Shares get Wilson's interval, or the exact one where n is at most 40 (E-5); all else, and whatever has leakage groups,
the percentiles of a bootstrap, which draws whole groups where they are given: their rows are not independent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polysome.evaluation.metrics import Floats
from polysome.evaluation.resampling import Resampled

LEVEL = 0.95
POWER = 0.8
EXACT_UP_TO = 40
"""Largest n of which a share gets the exact interval."""
_CELLS_AT_ONCE = 2_000_000
"""Weights held at a time: 16 MB, and some ten arrays like it."""

Interval = tuple[float, float]
UNKNOWN: Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class Difference:
    """How far two systems are apart on the same rows: first minus second, in the raw scale of the metric."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided, of no difference: twice the smaller share of resamples at or beyond 0. At least 2/(resamples + 1)."""
    minimum_detectable: float
    """The true difference that rows like these would show (p < 0.05) in four of five tests."""


def wilson(successes: int, n: int) -> Interval:
    """Wilson score interval of a share; (nan, nan) for n = 0."""
    from scipy.stats import binomtest

    return _binomial(binomtest, successes, n, "wilson")


def exact(successes: int, n: int) -> Interval:
    """Clopper and Pearson's exact binomial interval of a share; (nan, nan) for n = 0."""
    from scipy.stats import binomtest

    return _binomial(binomtest, successes, n, "exact")


def share_interval(successes: int, n: int) -> Interval:
    """Interval of a share of independent rows: exact up to n = 40, Wilson's beyond (E-5)."""
    return exact(successes, n) if n <= EXACT_UP_TO else wilson(successes, n)


def bootstrap(
    metrics: Mapping[str, Resampled],
    n: int,
    *,
    resamples: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> dict[str, Floats]:
    """Values [resamples] of every metric, all of them on the same resamples of n rows.

    Memory stays bounded: a few weights at a time are held, however many rows and resamples there are.

    Args:
        groups: [n], the leakage group of each row: whole groups are drawn, as many as there are.
    """
    generator = np.random.default_rng(seed)
    values = {name: np.full(resamples, np.nan) for name in metrics}
    if n == 0:
        return values
    units = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    count, at_once = int(units.max()) + 1, max(1, _CELLS_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = generator.integers(0, count, size=(size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)
        if groups is not None:
            weights = weights[:, units]
        for name, metric in metrics.items():
            values[name][start : start + size] = metric(weights)
    return values


def percentiles(values: Floats) -> Interval:
    """The middle 95 % of the values that are defined; (nan, nan) where none is."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return UNKNOWN
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def difference(
    value: float,
    first: Resampled,
    second: Resampled,
    n: int,
    *,
    resamples: int,
    seed: int,
    groups: NDArray[np.int64] | None = None,
) -> Difference:
    """The paired bootstrap of two systems: both are measured on the same resamples of the same n rows.

    Args:
        value: the difference on all rows.
    """
    values = bootstrap({"first": first, "second": second}, n, resamples=resamples, seed=seed, groups=groups)
    apart = values["first"] - values["second"]
    apart = apart[~np.isnan(apart)]
    if len(apart) < 2:
        return Difference(value, *UNKNOWN, math.nan, math.nan)
    beyond = min(int((apart <= 0).sum()), int((apart >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(apart) + 1))
    return Difference(value, *percentiles(apart), p, minimum_detectable(float(apart.std(ddof=1))))


def minimum_detectable(standard_error: float, *, level: float = 1 - LEVEL, power: float = POWER) -> float:
    """(z(1 - level/2) + z(power))·SE: the true difference that is found significant with probability `power`."""
    from scipy.stats import norm

    return float((norm.ppf(1 - level / 2) + norm.ppf(power)) * standard_error)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are (Holm 1979), in the same order; nan ones stay and do not count."""
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[place] = largest
    return adjusted


def _binomial(test: object, successes: int, n: int, method: str) -> Interval:
    assert callable(test)
    if n == 0:
        return UNKNOWN
    interval = test(successes, n).proportion_ci(confidence_level=LEVEL, method=method)
    return float(interval.low), float(interval.high)
