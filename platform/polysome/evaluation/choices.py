"""Closed answer sets: a task in; the answers whose likelihood is asked, and how it becomes a score per label, out.

A label is said in several ways, so its score is the log of the summed likelihood of its wordings. A number is read off
as the expectation over a grid of numbers that training labels take.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from polysome.data.render import answer
from polysome.specs import (
    BinaryLabel,
    Dataset,
    GenerationLabel,
    MulticlassLabel,
    MultilabelLabel,
    MultiRegressionLabel,
    RegressionLabel,
    Value,
    placeholders,
)
from polysome.storage import fingerprint

WORDINGS = 4
"""Most answer templates per label."""
MOST_TEXTS = 256
"""Fewer wordings are taken where labels are so many that this would be exceeded."""
MOST_LABELS = 1024
GRID_WORDINGS = 2
"""Answer templates per number of a grid, whose ways to say it differ less than those to say yes."""
GRID = 64
"""Numbers of a regression's grid; labels of a regression with several outputs: twice as many."""
_SAMPLE = 20_000


@dataclass(frozen=True)
class Unscored:
    """Why a task has no closed answer set."""

    reason: str


@dataclass(frozen=True)
class Choices:
    """The answers to score.

    Attributes:
        texts: the wordings of all labels.
        owners: for each text the number of its label.
        values: the labels, as decoded.
        weights: for each label what is added to its score: the log of the share of its templates that is left out,
            and for a grid the log of the stretch of numbers that a point stands for.
        kind: of the task's label.
    """

    texts: tuple[str, ...]
    owners: tuple[int, ...]
    values: tuple[Value, ...]
    weights: tuple[float, ...]
    kind: str

    @property
    def fingerprint(self) -> str:
        """Of all that a score depends on beside model and question."""
        return fingerprint(asdict(self))

    def label_scores(self, sums: Sequence[float]) -> NDArray[np.float64]:
        """float64 [labels]: log of the summed likelihood of each label's wordings; `sums` has one per text."""
        scores = np.full(len(self.values), -np.inf)
        # Sums that are nan, of a broken model, stay nan: whoever keeps the scores tells.
        with np.errstate(invalid="ignore"):
            np.logaddexp.at(scores, np.array(self.owners), np.asarray(sums, dtype=np.float64))
        return scores

    def read(self, sums: Sequence[float], prior: Sequence[float] | None = None) -> tuple[float, ...]:
        """What is kept of one question's log-likelihoods.

        Args:
            sums: log-likelihood of each text, summed over its tokens.
            prior: the same under a question without molecules; label scores are told relative to it.

        Returns:
            Log-likelihood per class (binary: negative, positive); of a multilabel the log-probability that each class
            alone is the answer, and after the last class that none is, where that can be said; of a regression the
            expected number of each output.
        """
        scores = self.label_scores(sums) + np.array(self.weights)
        if prior is not None:
            scores = scores - self.label_scores(prior)
        if self.kind in ("binary", "multiclass"):
            return tuple(scores.tolist())
        shares = scores - np.logaddexp.reduce(scores)
        if self.kind == "multilabel":
            return tuple(shares.tolist())
        return tuple((np.exp(shares) @ np.array(self.values)).tolist())


def choices(spec: Dataset, training: Sequence[Value] | None, *, seed: int) -> Choices | Unscored:
    """The closed answer set of a task.

    Classes: each in up to `WORDINGS` of its answer templates. Numbers, each in up to `GRID_WORDINGS`: the distinct
    training labels where these are few, else the `GRID` quantiles of the training labels; a quantile stands for the
    numbers that are nearest to it, so that the softmax over the grid is a density and its mean an expectation. Several
    numbers are one answer: their grid is the training labels nearest to the centres of `2 * GRID` clusters.

    Args:
        training: decoded labels of training rows; needed for numbers alone.
        seed: of the clusters.
    """
    assert spec.task is not None
    label = spec.task.label
    if isinstance(label, GenerationLabel):
        return Unscored("free text has no closed set of answers")
    if isinstance(label, BinaryLabel):
        return _worded(spec, [(0.0,), (1.0,)])
    if isinstance(label, MulticlassLabel | MultilabelLabel):
        if len(label.classes) > MOST_LABELS:
            return Unscored(f"{len(label.classes)} classes are more than the {MOST_LABELS} that are scored")
        values: list[Value] = [(float(index),) for index in range(len(label.classes))]
        empty: list[Value] = [()] if isinstance(label, MultilabelLabel) and label.none is not None else []
        return _worded(spec, values + empty)
    if not training:
        return Unscored("there are no training labels to make a grid of numbers from")
    if isinstance(label, RegressionLabel):
        return _number_grid(spec, training)
    return _vector_grid(spec, label, training, seed)


def _worded(spec: Dataset, values: Sequence[Value], weights: Sequence[float] | None = None) -> Choices:
    assert spec.task is not None
    numbers = isinstance(spec.task.label, RegressionLabel | MultiRegressionLabel)
    order = _closing_soon if numbers else _closing_first
    most = min(GRID_WORDINGS if numbers else WORDINGS, max(1, MOST_TEXTS // len(values)))
    texts: list[str] = []
    owners: list[int] = []
    shares = []
    for number, value in enumerate(values):
        pool = spec.task.templates.answers[spec.task.label.pool(value)]
        chosen = order(pool)[:most]
        worded = dict.fromkeys(answer(spec, value, template) for template in chosen)
        texts += worded
        owners += [number] * len(worded)
        shares.append(math.log(len(pool) / len(chosen)))
    added = np.add(shares, weights if weights is not None else 0.0)
    return Choices(tuple(texts), tuple(owners), tuple(values), tuple(added.tolist()), spec.task.label.kind)


def _closing_first(pool: Sequence[str]) -> list[int]:
    """Templates, those first that go on after the label: in these the answer of a name that begins another one
    (`Intron_gpI`, `Intron_gpII`) is not the beginning of the other's answer."""
    return sorted(range(len(pool)), key=lambda index: bool(placeholders(pool[index])) and pool[index].endswith("}"))


def _closing_soon(pool: Sequence[str]) -> list[int]:
    """Templates, those first that say little after the last number, as what follows it is computed for each; but last
    those that end with it, where 5 would be the beginning of 50."""
    return sorted(
        range(len(pool)), key=lambda index: (pool[index].endswith("}"), len(pool[index]) - pool[index].rindex("}"))
    )


def _number_grid(spec: Dataset, training: Sequence[Value]) -> Choices:
    assert spec.task is not None
    label = spec.task.label
    assert isinstance(label, RegressionLabel)
    numbers = np.array([value[0] for value in training], dtype=np.float64)
    written = np.unique([float(label.encode((number,))) for number in np.unique(numbers)])
    if len(written) <= GRID:
        return _worded(spec, [(number,) for number in written.tolist()])
    quantiles = np.quantile(numbers, (np.arange(GRID) + 0.5) / GRID)
    grid = np.unique([float(label.encode((number,))) for number in quantiles])
    if len(grid) == 1:
        return _worded(spec, [(float(grid[0]),)])
    gaps = np.diff(grid)
    widths = (np.concatenate([gaps[:1], gaps]) + np.concatenate([gaps, gaps[-1:]])) / 2
    return _worded(spec, [(number,) for number in grid.tolist()], np.log(widths / widths.mean()).tolist())


def _vector_grid(spec: Dataset, label: MultiRegressionLabel, training: Sequence[Value], seed: int) -> Choices:
    """Joint answers; clusters lie where labels are, so a point stands for about as many labels as any other."""
    from scipy.cluster.vq import kmeans2

    generator = np.random.default_rng(seed)
    vectors = np.array(training, dtype=np.float64)
    if len(vectors) > _SAMPLE:
        vectors = vectors[np.sort(generator.choice(len(vectors), _SAMPLE, replace=False))]
    distinct = np.unique([[float(part) for part in label.encode_each(tuple(row)).values()] for row in vectors], axis=0)
    if len(distinct) > 2 * GRID:
        deviation = distinct.std(axis=0)
        scaled = distinct / np.where(deviation > 0, deviation, 1)
        centres, _ = kmeans2(scaled, 2 * GRID, minit="++", seed=generator, missing="warn")
        nearest = ((scaled[:, None] - centres[None]) ** 2).sum(axis=-1).argmin(axis=0)
        distinct = distinct[np.unique(nearest)]
    return _worded(spec, [tuple(row) for row in distinct.tolist()])
