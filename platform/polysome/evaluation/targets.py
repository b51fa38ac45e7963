"""Targets: a task's labels as numbers that a model is fitted to, and a model's outputs as labels again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polysome.specs import BinaryLabel, MulticlassLabel, MultilabelLabel, MultiRegressionLabel, Task, Value

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Of a multilabel's outputs, to choose from."""
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Target:
    """What a model of a task learns.

    Attributes:
        kind: one class of several; a share per class, of which several may hold; or numbers.
        width: classes or numbers.
        may_be_empty: where several classes may hold, also none may.
    """

    kind: Literal["class", "classes", "numbers"]
    width: int
    may_be_empty: bool = False

    def encode(self, labels: Sequence[Value]) -> NDArray[np.float64]:
        """float64 [rows], class indices; else [rows, width], 0 or 1 per class, or numbers."""
        if self.kind == "class":
            return np.array([label[0] for label in labels], dtype=np.float64)
        if self.kind == "numbers":
            return np.array(labels, dtype=np.float64).reshape(len(labels), self.width)
        encoded = np.zeros((len(labels), self.width))
        for row, label in enumerate(labels):
            encoded[row, np.array(label, dtype=np.int64)] = 1
        return encoded

    def decode(self, outputs: NDArray[np.float64], threshold: float) -> list[Value]:
        """Labels from outputs [rows, width]: shares per class, or numbers; `threshold` is of shares that may all hold.

        Where none of a row's shares reaches the threshold, it gets none if it may, else the class with the greatest.
        """
        if self.kind == "numbers":
            return [tuple(row) for row in outputs.tolist()]
        best = outputs.argmax(axis=1)
        if self.kind == "class":
            return [(float(index),) for index in best]
        return [
            tuple(np.flatnonzero(row >= threshold).astype(float).tolist())
            or (() if self.may_be_empty else (float(index),))
            for row, index in zip(outputs, best, strict=True)
        ]

    def scores(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64 [rows, width]: logs of shares, or numbers, as `measure` takes them."""
        return outputs if self.kind == "numbers" else np.log(np.clip(outputs, _SMALLEST, None))


def target_of(task: Task) -> Target | None:
    """The target of a task; None for generated text."""
    label = task.label
    if isinstance(label, BinaryLabel):
        return Target("class", 2)
    if isinstance(label, MulticlassLabel):
        return Target("class", len(label.classes))
    if isinstance(label, MultilabelLabel):
        return Target("classes", len(label.classes), may_be_empty=label.none is not None)
    if label.kind == "generation":
        return None
    return Target("numbers", len(label.outputs) if isinstance(label, MultiRegressionLabel) else 1)
