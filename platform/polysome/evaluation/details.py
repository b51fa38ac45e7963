"""Details of one task: its answered rows in; confusion, densities, invalid, worst and whole answers out."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polysome.evaluation.answers import Answered, clipped
from polysome.specs import (
    BinaryLabel,
    MulticlassLabel,
    MultilabelLabel,
    MultiRegressionLabel,
    RegressionLabel,
    Task,
    Value,
)

WORST = 10
"""Answers shown of a task."""
INVALID = 5
"""Different unparsable answers shown of a task."""
CLASSES = 20
"""Classes up to which a confusion matrix is drawn; of more, so many of the most frequent are listed."""
CELLS = 24
"""Cells of a density along one side."""
NEAR = 0.5
"""A number off by so many standard deviations of the labels, or a text whose F1 is at least 1 minus this, is right
enough for a case study."""


@dataclass(frozen=True)
class Confusion:
    """Counts [label, answer]: int64 [classes, classes + 1]; the last column is of answers that say no label."""

    classes: tuple[str, ...]
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class ClassRow:
    """How one of many classes was told."""

    name: str
    labelled: int
    told: int
    right: int


@dataclass(frozen=True)
class Density:
    """Counts [label, answer] of numbers in equal cells from low to high, and per tenth of the labels what was said."""

    output: str
    low: float
    high: float
    counts: NDArray[np.int64]
    tenths: tuple[tuple[float, float, float, int], ...]
    """Mean label, mean answer, standard deviation of the answers, rows."""


@dataclass(frozen=True)
class Worst:
    """An answer far from its label."""

    id: str
    asked: str
    told: str
    read: str
    """What the strict parser read in it."""
    label: str
    why: str


@dataclass(frozen=True)
class Told:
    """An answer unabridged, for a case study."""

    asked: str
    told: str
    read: str
    """What the strict parser read in it."""
    label: str
    right: bool
    why: str
    false_claims: tuple[str, ...] | None
    """As of `Answered`."""


@dataclass(frozen=True)
class Reasoned:
    """How the reasoning of answers that hold claims which can be checked (A-84) goes with what they say."""

    checked: int
    """Answers with such a claim."""
    sound: int
    """Of them, those all of whose claims hold."""
    right: int
    """Of the checked, the right ones."""
    right_unsound: int
    """Right answers with a claim that does not hold."""


@dataclass(frozen=True)
class Details:
    """What stands behind one task's numbers; all of the strict parser."""

    confusion: Confusion | None
    classes: tuple[ClassRow, ...]
    densities: tuple[Density, ...]
    unparsable: int
    invalid: tuple[tuple[str, int], ...]
    """The most frequent unparsable answers and how often each stood."""
    worst: tuple[Worst, ...]
    told: Mapping[str, Told] = field(default_factory=dict)
    """Answers that were kept whole, by row."""
    reasoned: Reasoned | None = None
    """None where no answer holds a claim that can be checked."""


def details(task: Task, rows: Sequence[Answered]) -> Details:
    """What the rows of a task tell beyond its numbers."""
    label = task.label
    classes = _class_names(task)
    few = len(classes) <= CLASSES
    invalid = Counter(row.told for row in rows if row.strict is None and row.told is not None)
    deviations = _deviations(task, rows)
    distances = [_distance(task, row, deviations) for row in rows]
    right = [_is_right(task, row, distance) for row, distance in zip(rows, distances, strict=True)]
    return Details(
        confusion=_confusion(classes, rows) if isinstance(label, BinaryLabel | MulticlassLabel) and few else None,
        classes=_class_rows(classes, rows) if isinstance(label, MultilabelLabel) or not few else (),
        densities=_densities(task, rows),
        unparsable=invalid.total(),
        invalid=tuple(invalid.most_common(INVALID)),
        worst=tuple(_worst(task, rows, distances)),
        told={
            row.id: Told(
                row.asked,
                row.whole,
                _read(task, row),
                written(task, row.label),
                held,
                _why(task, distance, row),
                row.false_claims,
            )
            for row, distance, held in zip(rows, distances, right, strict=True)
            if row.whole is not None
        },
        reasoned=_reasoned(rows, right),
    )


def _class_names(task: Task) -> tuple[str, ...]:
    if isinstance(task.label, BinaryLabel):
        return ("no", "yes")
    return tuple(task.label.classes) if isinstance(task.label, MulticlassLabel | MultilabelLabel) else ()


def _confusion(classes: tuple[str, ...], rows: Sequence[Answered]) -> Confusion:
    counts = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    for row in rows:
        told = int(row.strict[0]) if isinstance(row.strict, tuple) else len(classes)
        counts[int(float(row.label[0])), told] += 1
    return Confusion(classes, counts)


def _class_rows(classes: tuple[str, ...], rows: Sequence[Answered]) -> tuple[ClassRow, ...]:
    labelled, told, right = Counter[float](), Counter[float](), Counter[float]()
    for row in rows:
        labels = {float(part) for part in row.label}
        said = {float(part) for part in row.strict or ()}
        labelled.update(labels)
        told.update(said)
        right.update(labels & said)
    return tuple(
        ClassRow(classes[int(place)], count, told[place], right[place])
        for place, count in labelled.most_common(CLASSES)
    )


def _densities(task: Task, rows: Sequence[Answered]) -> tuple[Density, ...]:
    if not isinstance(task.label, RegressionLabel | MultiRegressionLabel):
        return ()
    parsed = [row for row in rows if isinstance(row.strict, tuple)]
    if not parsed:
        return ()
    labels = np.array([row.label for row in parsed], dtype=np.float64)
    told = np.array([row.strict for row in parsed], dtype=np.float64)
    outputs = task.label.outputs if isinstance(task.label, MultiRegressionLabel) else [task.title]
    return tuple(_density(name, labels[:, place], told[:, place]) for place, name in enumerate(outputs))


def _density(output: str, labels: NDArray[np.float64], told: NDArray[np.float64]) -> Density:
    low, high = float(labels.min()), float(labels.max())
    high = high if high > low else low + 1
    # What lies outside the labels' range is counted in the outermost cell.
    upwards, across = (
        (np.clip((values - low) / (high - low), 0, 1 - 1e-9) * CELLS).astype(int) for values in (labels, told)
    )
    counts = np.zeros((CELLS, CELLS), dtype=np.int64)
    np.add.at(counts, (upwards, across), 1)
    tenths = [part for part in np.array_split(np.argsort(labels, kind="stable"), 10) if len(part)]
    summary = [
        (float(labels[part].mean()), float(told[part].mean()), float(told[part].std()), len(part)) for part in tenths
    ]
    return Density(output, low, high, counts, tuple(summary))


def _reasoned(rows: Sequence[Answered], right: Sequence[bool]) -> Reasoned | None:
    checked = [
        (not row.false_claims, held) for row, held in zip(rows, right, strict=True) if row.false_claims is not None
    ]
    if not checked:
        return None
    return Reasoned(
        checked=len(checked),
        sound=sum(sound for sound, _ in checked),
        right=sum(held for _, held in checked),
        right_unsound=sum(held and not sound for sound, held in checked),
    )


def _worst(task: Task, rows: Sequence[Answered], distances: Sequence[float]) -> Iterator[Worst]:
    """The answers farthest from their labels; of equally wrong ones those that come first."""
    ranked = sorted(range(len(rows)), key=lambda place: (-distances[place], place))
    for place in ranked[:WORST]:
        if distances[place] <= 0:
            return
        row = rows[place]
        yield Worst(
            id=row.id,
            asked=row.asked,
            told=row.told if row.told is not None else f"could not be asked: {row.error}",
            read=_read(task, row),
            label=written(task, row.label),
            why=_why(task, distances[place], row),
        )


def _read(task: Task, row: Answered) -> str:
    return "no label" if row.strict is None else written(task, row.strict)


def _is_right(task: Task, row: Answered, distance: float) -> bool:
    graded = task.label.kind in ("regression", "multi_regression", "generation")
    return row.strict is not None and distance <= (NEAR if graded else 0)


def _distance(task: Task, row: Answered, deviations: NDArray[np.float64]) -> float:
    """How wrong an answer is, 0 for right.

    A class: 1, and with scores up to 1 more, the probability that the wrong class has more than the label. Numbers:
    mean error in standard deviations of the labels. Sets and texts: 1 minus their F1. Answers that say no label are
    listed on their own, but for a class, where they are wrong.
    """
    kind = task.label.kind
    if kind in ("binary", "multiclass"):
        return 0.0 if row.strict == row.label else 1.0 + _surplus(row)
    if row.strict is None:
        return 0.0
    if kind in ("regression", "multi_regression"):
        errors = np.abs(np.array(row.label, dtype=float) - np.array(row.strict, dtype=float)) / deviations
        return float(errors.mean())
    if kind == "generation":
        return 1 - _overlap(Counter(str(row.label).lower().split()), Counter(str(row.strict).lower().split()))
    return 1 - _overlap(Counter(row.label), Counter(row.strict))


def _surplus(row: Answered) -> float:
    if row.scores is None or not isinstance(row.strict, tuple):
        return 0.0
    scores = np.array(row.scores)
    shares = np.exp(scores - np.logaddexp.reduce(scores))
    return max(0.0, float(shares[int(row.strict[0])] - shares[int(float(row.label[0]))]))


def _why(task: Task, distance: float, row: Answered) -> str:
    if row.strict is None:
        return "says no label"
    if distance <= 0:
        return "as the label"
    if task.label.kind in ("binary", "multiclass"):
        return "wrong class" + (f", by {distance - 1:.2f} more probable" if distance > 1 else "")
    if task.label.kind in ("regression", "multi_regression"):
        return f"off by {distance:.1f} standard deviations of the labels"
    return f"F1 of what both hold {1 - distance:.2f}"


def _deviations(task: Task, rows: Sequence[Answered]) -> NDArray[np.float64]:
    if task.label.kind not in ("regression", "multi_regression"):
        return np.ones(1)
    deviations = np.array([row.label for row in rows], dtype=np.float64).std(axis=0)
    return np.where(deviations > 0, deviations, 1.0)


def _overlap(first: Counter[Any], second: Counter[Any]) -> float:
    if not first and not second:
        return 1.0
    return 2 * (first & second).total() / (first.total() + second.total())


def written(task: Task, value: Value | str) -> str:
    """A label as a reader sees it."""
    if isinstance(value, str):
        return clipped(value)
    if isinstance(task.label, MultiRegressionLabel):
        return ", ".join(f"{name} {number:g}" for name, number in zip(task.label.outputs, value, strict=True))
    if isinstance(task.label, RegressionLabel) or not all(map(math.isfinite, value)):
        return ", ".join(f"{number:g}" for number in value)
    names = [*_class_names(task), getattr(task.label, "none", None) or "none"]
    return ", ".join(names[int(place)] for place in value) or names[-1]
