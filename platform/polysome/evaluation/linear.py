"""Linear models: sparse features and labels in, a logistic or ridge regression with chosen regularisation out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polysome.evaluation.targets import THRESHOLDS, Target
from polysome.specs import Value

LOGISTIC_C = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.1)
"""Inverse regularisation strengths to choose from."""
RIDGE_ALPHA = (10000.0, 1000.0, 100.0, 10.0, 1.0)
MANY_OUTPUTS = 64
"""With more outputs each fit takes minutes, so the middle alpha is taken."""
_FOLDS = 3

Quality = Callable[[Sequence[Value], Sequence[Value]], float]
"""Labels and predictions to the number to be raised."""


@dataclass(frozen=True)
class Told:
    """What a fitted model says of rows.

    Attributes:
        outputs: float64 [rows, width]: shares per class, or numbers.
        regularisation: the chosen C or alpha.
        threshold: the chosen share from which on one class of several holds.
    """

    outputs: NDArray[np.float64]
    regularisation: float
    threshold: float


def fit(
    target: Target,
    features: Any,
    labels: Sequence[Value],
    asked: Any,
    quality: Quality,
    *,
    held_out: tuple[Any, Sequence[Value]] | None,
    seed: int,
) -> Told:
    """Fit a logistic regression (one class of several) or a ridge regression, and ask it.

    Args:
        features: CSR [training rows, features]; `asked` the same of the rows to predict.
        labels: of the training rows, of at least two kinds.
        quality: what regularisation and threshold are chosen by.
        held_out: features and labels to choose on; None: 3-fold cross-validation on the training rows.
    """
    folds = [(features, labels, *held_out)] if held_out is not None else list(_folds(features, labels, seed))
    folds = folds or [(features, labels, features, labels)]
    grid: tuple[float, ...] = LOGISTIC_C if target.kind == "class" else RIDGE_ALPHA
    if target.width > MANY_OUTPUTS:
        grid = grid[len(grid) // 2 :][:1]
    thresholds = THRESHOLDS if target.kind == "classes" else (0.5,)
    best, best_quality = (grid[0], thresholds[0]), -np.inf
    for candidate in grid if len(grid) * len(thresholds) > 1 else ():
        outputs = [
            (held, _outputs(target, _fitted(target, candidate, part, known), asking))
            for part, known, asking, held in folds
        ]
        for threshold in thresholds:
            reached = np.mean([quality(held, target.decode(told, threshold)) for held, told in outputs])
            # The strongest regularisation of equals; a quality that is undefined is never the best.
            if reached > best_quality + 1e-9:
                best, best_quality = (candidate, threshold), float(reached)
    model = _fitted(target, best[0], features, labels)
    return Told(_outputs(target, model, asked), *best)


def _fitted(target: Target, regularisation: float, features: Any, labels: Sequence[Value]) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    wanted = target.encode(labels)
    if target.kind == "class":
        return LogisticRegression(C=regularisation, max_iter=200, tol=1e-3).fit(features, wanted)
    return Ridge(alpha=regularisation, solver="sparse_cg", tol=1e-4).fit(features, wanted)


def _outputs(target: Target, model: Any, features: Any) -> NDArray[np.float64]:
    if target.kind != "class":
        return np.asarray(model.predict(features), dtype=np.float64).reshape(features.shape[0], target.width)
    shares = np.zeros((features.shape[0], target.width))
    shares[:, model.classes_.astype(np.int64)] = model.predict_proba(features)
    return shares


def _folds(features: Any, labels: Sequence[Value], seed: int) -> Any:
    """Those of three folds whose training part has labels of two kinds."""
    order = np.random.default_rng(seed).permutation(len(labels))
    for start in range(_FOLDS):
        held, rest = order[start::_FOLDS], np.setdiff1d(order, order[start::_FOLDS])
        known = [labels[row] for row in rest]
        if len(held) and len(set(known)) > 1:
            yield features[rest], known, features[held], [labels[row] for row in held]
