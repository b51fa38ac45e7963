"""Metrics: labels and predictions in, one number out; a prediction that is nan was unparsable and counts as wrong."""

import numpy as np
from numpy.typing import NDArray


def confusion_matrix(labels: NDArray[np.float64], predictions: NDArray[np.float64], classes: int) -> NDArray[np.int64]:
    """Counts [label, prediction]: int64 [classes, classes], for more than two classes [classes + 1, classes + 1].

    An unparsable answer to a binary task counts as the opposite label (A-110). With more classes no class is the
    opposite, so it counts as one more class that no label has.
    """
    unparsable = np.isnan(predictions)
    replacement = 1 - labels if classes == 2 else np.full_like(labels, classes)
    told = np.where(unparsable, replacement, predictions).astype(np.int64)
    size = classes if classes == 2 else classes + 1
    cells = np.bincount(labels.astype(np.int64) * size + told, minlength=size * size)
    return cells.reshape(size, size)


def matthews(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Matthews correlation of confusion matrices [..., classes, classes], 0 where undefined (A-110).

    For two classes (TP·TN - FP·FN) / √((TP+FP)(TP+FN)(TN+FP)(TN+FN)); for more Gorodkin's generalisation.
    """
    counts = confusion.astype(np.float64)
    n = counts.sum(axis=(-2, -1))
    correct = np.trace(counts, axis1=-2, axis2=-1)
    labelled, told = counts.sum(axis=-1), counts.sum(axis=-2)
    covariance = correct * n - (labelled * told).sum(axis=-1)
    spread = (n**2 - (labelled**2).sum(axis=-1)) * (n**2 - (told**2).sum(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, covariance / np.sqrt(spread), 0.0)


def accuracy(labels: NDArray[np.float64], predictions: NDArray[np.float64]) -> float:
    """Share of correct answers among all, unparsable ones counted wrong (A-111); nan when there are none."""
    return float(np.mean(labels == predictions)) if len(labels) else float("nan")


def pro_rated_spearman(labels: NDArray[np.float64], predictions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rho of the parsed rows times their share, along the last axis: rho(V)·|V|/N (A-113, F-6).

    Rho is the Pearson correlation of average ranks; 0 where labels or predictions are constant.
    """
    from scipy.stats import rankdata

    parsed = ~np.isnan(predictions)
    # Unparsable rows are ranked above all others, where they cannot shift a rank, and then weigh nothing.
    ranks = [rankdata(np.where(parsed, values, np.inf), axis=-1) for values in (labels, predictions)]
    count = parsed.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        centred = []
        for rank in ranks:
            mean = np.where(parsed, rank, 0).sum(axis=-1) / count
            centred.append(np.where(parsed, rank - mean[..., None], 0))
        first, second = centred
        spread = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
        rho = np.where(spread > 0, (first * second).sum(axis=-1) / spread, 0.0)
    return rho * count / labels.shape[-1]


def is_constant(values: NDArray[np.float64]) -> bool:
    """Whether fewer than two different values stand among those that are not nan."""
    return len(np.unique(values[~np.isnan(values)])) < 2
