"""Fmax: sets of labels and scored (or told) sets in, the best protein-centric F1 over all thresholds out (A-117)."""

from typing import Literal

import numpy as np

from polysome.evaluation.metrics import Bools, Floats
from polysome.evaluation.resampling import Resampled

Ties = Literal["together", "broken"]
_CUTS = 200


def fmax(labels: Bools, scores: Floats, *, ties: Ties = "together") -> float:
    """max_t 2·P·R / (P + R), 0 to 1; labels and scores [proteins, classes] (A-117, Radivojac et al. 2013).

    At threshold t the precision is averaged over the proteins with a class of score t or more, the recall over all.
    A score of -inf is below every threshold, so that sets told without scores are 0 (told) and -inf (not told).

    Args:
        ties: `broken`: each class is a threshold of its own, equal scores in their order, as the paper's evaluator has
            it; with 0/1 scores this is an artefact.
    """
    value, _ = _best(_Curve(labels, scores), ties)
    return value


def resampled_fmax(labels: Bools, scores: Floats, *, ties: Ties = "together") -> Resampled:
    """Fmax of many resamples: the best of at most 200 thresholds spread over all, the best of all rows among them."""
    curve = _Curve(labels, scores)
    _, best = _best(curve, ties)
    ends = curve.ends(ties)
    if not len(ends):
        return lambda weights: np.zeros(len(weights))
    spread = ends[np.linspace(0, len(ends) - 1, min(_CUTS, len(ends))).astype(int)]
    cuts = np.unique(np.append(spread, best))
    precision, recall, told = (curve.by_row(steps, cuts) for steps in (curve.precision, curve.recall, curve.told))

    def value(weights: Floats) -> Floats:
        count = weights.sum(axis=1, keepdims=True)
        return np.asarray(_f1(weights @ precision, weights @ recall, weights @ told, count).max(axis=1))

    return value


class _Curve:
    """What each class, from the highest score down, adds to the precision and recall of its protein."""

    def __init__(self, labels: Bools, scores: Floats) -> None:
        order = np.argsort(-scores, axis=1, kind="stable")
        hits = np.take_along_axis(labels, order, axis=1).astype(float).cumsum(axis=1)
        places = np.arange(1, labels.shape[1] + 1)
        precision = np.diff(hits / places, axis=1, prepend=0)
        recall = np.diff(hits / np.maximum(labels.sum(axis=1, keepdims=True), 1), axis=1, prepend=0)
        first = np.broadcast_to(places == 1, hits.shape).astype(float)
        sorted_scores = np.take_along_axis(scores, order, axis=1)
        # By score over all proteins; equal scores by protein, then in the order of the classes.
        sequence = np.argsort(-sorted_scores.ravel(), kind="stable")
        sequence = sequence[sorted_scores.ravel()[sequence] > -np.inf]
        self.rows, self.proteins = sequence // max(labels.shape[1], 1), len(labels)
        self.scores = sorted_scores.ravel()[sequence]
        self.precision, self.recall, self.told = (part.ravel()[sequence] for part in (precision, recall, first))

    def ends(self, ties: Ties) -> np.ndarray:
        """Places after which a threshold may stand."""
        if ties == "broken":
            return np.arange(len(self.scores))
        return np.flatnonzero(np.append(self.scores[1:] != self.scores[:-1], True)[: len(self.scores)])

    def by_row(self, steps: Floats, cuts: np.ndarray) -> Floats:
        """Per protein the sum of the steps up to each cut: [proteins, cuts]."""
        until = np.searchsorted(cuts, np.arange(len(steps)))
        inside = until < len(cuts)
        places = self.rows[inside] * len(cuts) + until[inside]
        sums = np.bincount(places, steps[inside], minlength=self.proteins * len(cuts))
        return sums.reshape(self.proteins, len(cuts)).cumsum(axis=1)


def _best(curve: _Curve, ties: Ties) -> tuple[float, int]:
    """The best F1 and the place after which its threshold stands."""
    ends = curve.ends(ties)
    if not len(ends):
        return 0.0, 0
    precision, recall, told = (np.cumsum(steps)[ends] for steps in (curve.precision, curve.recall, curve.told))
    values = _f1(precision, recall, told, np.array(float(curve.proteins)))
    return float(values.max()), int(ends[values.argmax()])


def _f1(precision: Floats, recall: Floats, told: Floats, count: Floats) -> Floats:
    """From sums over the proteins: of precision, recall, of those that are told anything, and of all."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p, r = np.where(told > 0, precision / told, 0), np.where(count > 0, recall / count, 0)
        return np.where(p + r > 0, 2 * p * r / (p + r), 0.0)
