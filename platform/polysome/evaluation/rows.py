"""Rows of a task: labels and predictions as a sequence in, checked arrays for the metrics of their kind out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polysome.config import DataError
from polysome.evaluation.metrics import Bools, Floats
from polysome.evaluation.official import DENIED, Prediction
from polysome.specs import MulticlassLabel, MultilabelLabel, MultiRegressionLabel, Task, Value


@dataclass(frozen=True)
class ClassRows:
    """Of a binary or multiclass task: class indices [n], predictions nan where none can be told."""

    labels: Floats
    predictions: Floats
    classes: int


@dataclass(frozen=True)
class NumberRows:
    """Of a regression: [n, outputs]; a prediction that is not whole is nan in all outputs (A-100)."""

    labels: Floats
    predictions: Floats
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class SetRows:
    """Of a multilabel task: [n, columns], the last column that of `none` where the task has it (A-104)."""

    labels: Bools
    predictions: Bools
    columns: tuple[str, ...]


@dataclass(frozen=True)
class TextRows:
    """Of a generation."""

    labels: list[str]
    predictions: list[str | None]


Rows = ClassRows | NumberRows | SetRows | TextRows


def rows_of(task: Task, labels: Sequence[Value | str], predictions: Sequence[Prediction]) -> Rows:
    """The arrays of a task's rows.

    Raises:
        DataError: a label is nan or not one of this task; the message names the row.
        ValueError: the lengths differ, or a prediction is not of the task's kind.
    """
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels and {len(predictions)} predictions")
    label = task.label
    if label.kind == "generation":
        return TextRows([_text(task, row, value) for row, value in enumerate(labels)], [*map(_told_text, predictions)])
    values = [_value(task, row, value) for row, value in enumerate(labels)]
    if isinstance(label, MultilabelLabel):
        columns = (*label.classes, *([label.none] if label.none is not None else []))
        told = [_resolved(value, prediction) for value, prediction in zip(values, predictions, strict=True)]
        return SetRows(_sets(values, columns, label.none), _sets(told, columns, label.none), columns)
    width = len(label.outputs) if isinstance(label, MultiRegressionLabel) else 1
    numbers = np.array(values, dtype=np.float64).reshape(len(values), width)
    told_numbers = np.array([_numbers(prediction, width) for prediction in predictions]).reshape(len(values), width)
    if label.kind in ("binary", "multiclass"):
        classes = len(label.classes) if isinstance(label, MulticlassLabel) else 2
        known = told_numbers[~np.isnan(told_numbers)]
        if not np.isin(known, np.arange(classes)).all():
            raise ValueError(f"a prediction is none of the {classes} classes")
        return ClassRows(numbers[:, 0], told_numbers[:, 0], classes)
    told_numbers[~np.isfinite(told_numbers).all(axis=1)] = np.nan
    outputs = tuple(label.outputs) if isinstance(label, MultiRegressionLabel) else ("",)
    return NumberRows(numbers, told_numbers, outputs)


def says_one(label: Value | str, prediction: Prediction) -> bool:
    """Whether a prediction says one label: not None, and not a marker that only the label can resolve."""
    if isinstance(prediction, tuple) and len(prediction) == 1 and not math.isfinite(prediction[0]):
        return prediction == DENIED and label == ()
    return prediction is not None


def _value(task: Task, row: int, value: Value | str) -> Value:
    label = task.label
    if isinstance(value, str) or not all(map(math.isfinite, value)):
        raise _refused(task, row, value, "is no number")
    if isinstance(label, MultilabelLabel):
        fits = all(number in range(len(label.classes)) for number in value) and len(set(value)) == len(value)
    elif label.kind in ("binary", "multiclass"):
        classes = len(label.classes) if isinstance(label, MulticlassLabel) else 2
        fits = len(value) == 1 and value[0] in range(classes)
    else:
        fits = len(value) == (len(label.outputs) if isinstance(label, MultiRegressionLabel) else 1)
    if not fits:
        raise _refused(task, row, value, f"is none of a {label.kind} task")
    return value


def _text(task: Task, row: int, value: Value | str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _refused(task, row, value, "is no text")
    return value


def _refused(task: Task, row: int, value: Value | str, why: str) -> DataError:
    return DataError(
        f"label {value!r} {why}",
        where=f"task {task.name}, row {row} (counted from 0)",
        fix="mend or leave out that row of the data; a label is never guessed",
    )


def _told_text(prediction: Prediction) -> str | None:
    if prediction is not None and not isinstance(prediction, str):
        raise ValueError(f"prediction {prediction!r} of a generation is no text")
    return prediction


def _numbers(prediction: Prediction, width: int) -> tuple[float, ...]:
    if prediction is None or (len(prediction) == 1 and prediction[0] != prediction[0]):
        return (math.nan,) * width
    if isinstance(prediction, str) or len(prediction) != width:
        raise ValueError(f"prediction {prediction!r} does not hold {width} numbers")
    return prediction


def _resolved(label: Value, prediction: Prediction) -> Value | None:
    if prediction == DENIED:
        return () if label == () else None
    if isinstance(prediction, str):
        raise ValueError(f"prediction {prediction!r} is no set of labels")
    return prediction


def _sets(values: Sequence[Value | None], columns: tuple[str, ...], none: str | None) -> Bools:
    """One row each; nothing told (None) names no column, `()` that of `none`."""
    table = np.zeros((len(values), len(columns)), dtype=bool)
    for row, value in enumerate(values):
        if value == () and none is not None:
            table[row, -1] = True
        elif value:
            table[row, np.array(value, dtype=np.int64)] = True
    return table
