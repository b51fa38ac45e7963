"""Metrics of many resamples at once: weights [resamples, n] in, values [resamples] out.

A resample of n rows is how often each was drawn, so every metric is a function of row weights. Each function here takes
the rows and returns that function; with all weights 1 it gives what `metrics` gives.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from polysome.evaluation.metrics import Bools, Floats

Resampled = Callable[[Floats], Floats]
_CONSTANT = 1e-12
"""Relative variance below which rows are all the same: rounding."""


def mean(values: Floats, counted: Floats | None = None) -> Resampled:
    """Mean of values [n] over the rows where `counted` is 1 (by default all); nan where none is drawn."""
    counted = np.ones_like(values) if counted is None else counted
    columns = np.stack([np.where(counted > 0, values, 0), counted], axis=1)

    def value(weights: Floats) -> Floats:
        total, count = (weights @ columns).T
        return _ratio(total, count, np.nan)

    return value


def root_mean(values: Floats, counted: Floats) -> Resampled:
    """Square root of `mean`."""
    inner = mean(values, counted)
    return lambda weights: np.sqrt(inner(weights))


def mcc(labels: Floats, told: NDArray[np.int64], classes: int) -> Resampled:
    """Matthews correlation of classes told (see `metrics.resolved`)."""
    counts = _confusion(labels, told, classes)

    def value(weights: Floats) -> Floats:
        cells = counts(weights)
        n, correct = cells.sum(axis=(1, 2)), np.trace(cells, axis1=1, axis2=2)
        labelled, predicted = cells.sum(axis=2), cells.sum(axis=1)
        covariance = correct * n - (labelled * predicted).sum(axis=1)
        spread = (n**2 - (labelled**2).sum(axis=1)) * (n**2 - (predicted**2).sum(axis=1))
        return _ratio(covariance, np.sqrt(np.maximum(spread, 0)), 0.0)

    return value


def precision_recall_f1(
    labels: Floats, told: NDArray[np.int64], classes: int, chosen: Sequence[int]
) -> tuple[Resampled, Resampled, Resampled]:
    """Precision, recall and F1, the mean over the `chosen` classes."""
    counts = _confusion(labels, told, classes)
    places = list(chosen)

    def parts(weights: Floats) -> tuple[Floats, Floats, Floats]:
        cells = counts(weights)
        hits = np.diagonal(cells, axis1=1, axis2=2)[:, places]
        labelled, predicted = cells.sum(axis=2)[:, places], cells.sum(axis=1)[:, places]
        return (
            _ratio(hits, predicted, 0.0).mean(axis=1),
            _ratio(hits, labelled, 0.0).mean(axis=1),
            _ratio(2 * hits, labelled + predicted, 0.0).mean(axis=1),
        )

    return (lambda weights: parts(weights)[0], lambda weights: parts(weights)[1], lambda weights: parts(weights)[2])


def pearson(labels: Floats, predictions: Floats, *, power: int = 1) -> Resampled:
    """Pearson's correlation of the parsed rows to the `power`, times their share."""
    parsed = ~np.isnan(predictions)
    first, second = (_standard(np.where(parsed, values, 0), parsed) for values in (labels, predictions))
    columns = np.stack([parsed.astype(float), first, second, first**2, second**2, first * second], axis=1)

    def value(weights: Floats) -> Floats:
        n, x, y, xx, yy, xy = (weights @ columns).T
        spread = np.maximum(n * xx - x**2, 0) * np.maximum(n * yy - y**2, 0)
        defined = spread > (_CONSTANT * n**2) ** 2
        r = np.where(defined, _ratio(n * xy - x * y, np.sqrt(spread), 0.0), 0.0)
        return r**power * _ratio(n, weights.sum(axis=1), 0.0)

    return value


def spearman(labels: Floats, predictions: Floats) -> Resampled:
    """Correlation of average ranks of the parsed rows, times their share; ranks are those within each resample."""
    parsed = ~np.isnan(predictions)
    first, second = (_centred_ranks(values[parsed]) for values in (labels, predictions))

    def value(weights: Floats) -> Floats:
        drawn = np.ascontiguousarray(weights[:, parsed])
        x, y = first(drawn), second(drawn)
        spread = np.einsum("ij,ij,ij->i", drawn, x, x) * np.einsum("ij,ij,ij->i", drawn, y, y)
        rho = _ratio(np.einsum("ij,ij,ij->i", drawn, x, y), np.sqrt(spread), 0.0)
        return rho * _ratio(drawn.sum(axis=1), weights.sum(axis=1), 0.0)

    return value


def r2_score(labels: Floats, predictions: Floats) -> Resampled:
    """1 - SSE/SST with unparsable rows at the mean of the resample's labels."""
    parsed = ~np.isnan(predictions)
    y = labels - labels.mean() if len(labels) else labels
    errors = np.where(parsed, labels - np.where(parsed, predictions, 0), 0) ** 2
    lost = (~parsed).astype(float)
    columns = np.stack([np.ones_like(y), y, y**2, errors, lost, lost * y, lost * y**2], axis=1)

    def value(weights: Floats) -> Floats:
        n, total, squares, error, count, lost_total, lost_squares = (weights @ columns).T
        centre = _ratio(total, n, 0.0)
        explained = error + lost_squares - 2 * centre * lost_total + centre**2 * count
        varied = squares - n * centre**2
        return 1 - np.where(varied > _CONSTANT * n, _ratio(explained, varied, np.nan), np.nan)

    return value


def auc(labels: Bools, scores: Floats) -> Resampled:
    """Area under the ROC curve of labels and scores [n]: the chance that a positive outranks a negative."""
    held, positive = _sums_by(scores), labels.astype(float)

    def value(weights: Floats) -> Floats:
        above, below = held(weights * positive), held(weights * (1 - positive))
        outranked = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
        return _ratio(outranked, above.sum(axis=1) * below.sum(axis=1), np.nan)

    return value


def average_precision(labels: Bools, scores: Floats) -> Resampled:
    """Area under the precision-recall curve of labels and scores [n]."""
    held, positive = _sums_by(-scores), labels.astype(float)

    def value(weights: Floats) -> Floats:
        hits, drawn = held(weights * positive), held(weights)
        precision = _ratio(np.cumsum(hits, axis=1), np.cumsum(drawn, axis=1), 0.0)
        return _ratio((hits * precision).sum(axis=1), hits.sum(axis=1), np.nan)

    return value


def ratio(above: Floats, below: Floats) -> Resampled:
    """Sum of `above` [n] over the sum of `below` [n]; 0 for 0 over 0."""
    columns = np.stack([above, below], axis=1)

    def value(weights: Floats) -> Floats:
        total, count = (weights @ columns).T
        return _ratio(total, count, 0.0)

    return value


def hard_auc(labels: Bools, told: Bools) -> Resampled:
    """Area under the ROC curve of told sets [n, columns]: the mean balanced accuracy of the columns that have one."""
    parts = [part.astype(float) for part in (labels & told, labels, ~labels & ~told, ~labels)]

    def value(weights: Floats) -> Floats:
        hits, positives, rejected, negatives = (weights @ part for part in parts)
        areas = (_ratio(hits, positives, np.nan) + _ratio(rejected, negatives, np.nan)) / 2
        defined = ~np.isnan(areas)
        return _ratio(np.where(defined, areas, 0).sum(axis=1), defined.sum(axis=1), np.nan)

    return value


def set_macro_f1(labels: Bools, told: Bools) -> Resampled:
    """Mean over the columns of 2TP/(2TP + FP + FN), 0 where nothing is labelled or told."""
    hits, total = (labels & told).astype(float), labels.astype(float) + told
    return lambda weights: _ratio(2 * (weights @ hits), weights @ total, 0.0).mean(axis=1)


def average(parts: Sequence[Resampled]) -> Resampled:
    """Mean of several metrics, those left out that a resample leaves undefined."""

    def value(weights: Floats) -> Floats:
        values = np.stack([part(weights) for part in parts])
        defined = ~np.isnan(values)
        return _ratio(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0), np.nan)

    return value


def _confusion(labels: Floats, told: NDArray[np.int64], classes: int) -> Resampled:
    size = classes if classes == 2 else classes + 1
    counts = _sums(labels.astype(np.int64) * size + told, size * size)
    return lambda weights: counts(weights).reshape(-1, size, size)


def _sums(places: NDArray[np.int64], size: int) -> Resampled:
    """Weights [resamples, n] summed by the place of each row: [resamples, size]."""
    from scipy.sparse import csr_array

    one_hot = csr_array((np.ones(len(places)), places, np.arange(len(places) + 1)), shape=(len(places), size))
    return lambda weights: np.asarray(weights @ one_hot)


def _sums_by(values: Floats) -> Resampled:
    """Weights summed by value, in rising order of the values."""
    unique, places = np.unique(values, return_inverse=True)
    return _sums(places, len(unique))


def _centred_ranks(values: Floats) -> Resampled:
    """Average ranks [resamples, n] minus their mean."""
    unique, places = np.unique(values, return_inverse=True)
    held = _sums(places, len(unique))

    def ranks(weights: Floats) -> Floats:
        counts = held(weights)
        last = np.cumsum(counts, axis=1)
        middle = last - counts / 2 - counts.sum(axis=1, keepdims=True) / 2
        return middle[:, places]

    return ranks


def _standard(values: Floats, parsed: Bools) -> Floats:
    """Zero mean and unit variance over the parsed rows, 0 elsewhere."""
    if not parsed.any():
        return np.zeros_like(values)
    deviation = values[parsed].std()
    return np.where(parsed, (values - values[parsed].mean()) / (deviation or 1.0), 0)


def _ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, otherwise)
