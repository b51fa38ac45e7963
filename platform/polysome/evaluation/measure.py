"""Measurement: a task's labels and parsed answers in, its metrics with intervals, n and parse rate out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polysome.evaluation import metrics, statistics
from polysome.evaluation.metrics import Floats
from polysome.evaluation.mixed import LARGEST
from polysome.evaluation.official import WRONG, Prediction
from polysome.evaluation.quantities import SCORED, Quantity, Style, decided, is_error, quantities, scored_quantities
from polysome.evaluation.rows import ClassRows, NumberRows, Rows, SetRows, TextRows, rows_of, says_one
from polysome.specs import BinaryLabel, MulticlassLabel, MultilabelLabel, Task, Value

__all__ = ["SCALE", "Estimate", "Measurement", "Style", "compare", "is_error", "measure", "predictions_of"]

SCALE = 100
"""Reported values are the raw ones times this, with two decimals (XP-4)."""
_SHOWN_NAMES = 20
"""Of the classes that a note names, at most; the others are counted."""


@dataclass(frozen=True)
class Estimate:
    """A raw value with its 95 % confidence interval; nan where undefined."""

    value: float
    low: float
    high: float

    def scaled(self) -> tuple[float, float, float]:
        """Value, low and high times 100, two decimals (XP-4)."""
        value, low, high = (round(SCALE * number, 2) for number in (self.value, self.low, self.high))
        return value, low, high


@dataclass(frozen=True)
class Measurement:
    """What a system reached on the examples of one task."""

    metric: str
    n: int
    """Examples, those with an unparsable answer or an error included."""
    value: Estimate
    parse_rate: Estimate | None
    """Share of answers that say one label; None where nothing is parsed, as in a baseline."""
    notes: tuple[str, ...] = ()
    subsets: Mapping[str, "Measurement"] = field(default_factory=dict)
    style: Style = "strict"
    """How answers were read; numbers of different styles are never compared (E-6)."""
    extras: Mapping[str, Estimate] = field(default_factory=dict)
    """All further metrics of the task, by id; see `quantities`."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able: the value and its interval scaled, and raw beside it; extras raw; nan as null."""
        value, low, high = self.value.scaled()
        content: dict[str, Any] = {
            "metric": self.metric,
            "style": self.style,
            "n": self.n,
            "scale": SCALE,
            "value": value,
            "ci_low": low,
            "ci_high": high,
            "raw": asdict(self.value),
            "parse_rate": asdict(self.parse_rate) if self.parse_rate else None,
            "notes": list(self.notes),
            "extras": {name: asdict(estimate) for name, estimate in self.extras.items()},
        }
        if self.subsets:
            content["subsets"] = {name: subset.to_json() for name, subset in self.subsets.items()}
        return without_nan(content)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Measurement":
        """The measurement that `to_json` wrote, or an earlier version of it, without style and extras."""
        parse_rate = content["parse_rate"]
        return cls(
            content["metric"],
            content["n"],
            _estimate(content["raw"]),
            _estimate(parse_rate) if parse_rate else None,
            tuple(content["notes"]),
            {name: cls.from_json(subset) for name, subset in content.get("subsets", {}).items()},
            content.get("style", "strict"),
            {name: _estimate(estimate) for name, estimate in content.get("extras", {}).items()},
        )


def measure(
    task: Task,
    labels: Sequence[Value | str],
    predictions: Sequence[Prediction],
    *,
    style: Style = "strict",
    scores: Floats | None = None,
    groups: NDArray[np.int64] | None = None,
    seed: int,
    resamples: int = 1000,
    parsed: bool = True,
    subsets: Sequence[str | None] | None = None,
) -> Measurement:
    """Measure predictions against labels by the task's metric, and by all others of its kind of label.

    A row that could not be parsed counts as A-110..A-118 say: wrong, pro-rated, or naming no label.

    Args:
        task: says the metric and the label's kind.
        labels: one decoded label per row; of a generation the text.
        predictions: the same, or None (or a marker of the official parser) where the answer says none.
        style: how the answers were read; the value of a multilabel task that is `scored` is that of the scores
            themselves, since a set is more than the likeliest class.
        scores: [n, classes] log-likelihoods (binary: negative, positive), or [n] or [n, outputs] expected numbers; a
            row with a nan was not scored and counts as wrong. They give the metrics whose id ends in `_scored`.
        groups: [n], the leakage group of each row; intervals then come from resampling whole groups.
        seed: of the bootstrap.
        resamples: of the bootstrap; 0: no intervals but of shares.
        parsed: whether predictions were parsed from text, so that a parse rate is meant.
        subsets: name of each example's subset; where there are several, each is measured as well.

    Raises:
        DataError: a label is nan or not one of this task; the message names the row.
        ValueError: lengths or shapes differ, or a prediction is not of the task's kind.
    """
    n = len(labels)
    for name, given in (("scores", scores), ("groups", groups), ("subsets", subsets)):
        if given is not None and len(given) != n:
            raise ValueError(f"{n} labels and {len(given)} {name}")
    rows = rows_of(task, labels, predictions)
    said = sum(map(says_one, labels, predictions))
    found: dict[str, Quantity] = {}
    if n:
        found = quantities(task, rows, style) | (scored_quantities(task, rows, scores) if scores is not None else {})
    estimates = _estimates(found, n, groups, resamples, seed)
    headline = _headline(task, style, scores)
    value = estimates.get(headline, Estimate(math.nan, math.nan, math.nan))
    if headline == task.metric:
        estimates.pop(headline, None)
    names = sorted({name for name in subsets or [] if name is not None})

    def part(name: str) -> Measurement:
        chosen = np.array([subset == name for subset in subsets or []])
        places = np.flatnonzero(chosen).tolist()
        return measure(
            task,
            [labels[place] for place in places],
            [predictions[place] for place in places],
            style=style,
            scores=None if scores is None else scores[chosen],
            groups=None if groups is None else groups[chosen],
            seed=seed,
            resamples=resamples,
            parsed=parsed,
        )

    return Measurement(
        task.metric,
        n,
        value,
        Estimate(said / n if n else math.nan, *statistics.share_interval(said, n)) if parsed else None,
        tuple(_notes(task, rows, predictions, scores, style, said)) if n else ("no examples: nothing was measured",),
        {name: part(name) for name in (names if len(names) > 1 else [])},
        style,
        estimates,
    )


def compare(
    task: Task,
    labels: Sequence[Value | str],
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    *,
    style: Style = "strict",
    scores: tuple[Floats | None, Floats | None] = (None, None),
    groups: NDArray[np.int64] | None = None,
    seed: int,
    resamples: int = 1000,
) -> statistics.Difference:
    """How far two systems are apart by the task's metric on the same rows, by the paired bootstrap.

    Arguments and errors as of `measure`; `scores` are those of the first and of the second.
    """
    if not len(labels):
        return statistics.Difference(*(math.nan,) * 5)
    one, other = (
        _headline_quantity(task, labels, told, style, own) for told, own in zip((first, second), scores, strict=True)
    )
    if one.resampled is None or other.resampled is None:
        return statistics.Difference(one.value - other.value, *(math.nan,) * 4)
    return statistics.difference(
        one.value - other.value,
        one.resampled,
        other.resampled,
        len(labels),
        resamples=resamples,
        seed=seed,
        groups=groups,
    )


def predictions_of(task: Task, scores: Floats) -> list[Prediction]:
    """What scores say (shapes as in `measure`): the most likely class or label, or the numbers; None for a nan row."""
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    label = task.label
    if isinstance(label, BinaryLabel | MulticlassLabel | MultilabelLabel):
        best = decided(table)
        # The column after the last class is that of `none`.
        none = float(len(label.classes)) if isinstance(label, MultilabelLabel) else math.inf
        return [None if math.isnan(place) else () if place == none else (place,) for place in best.tolist()]
    return [None if any(map(math.isnan, row)) else tuple(row) for row in table.tolist()]


def _headline(task: Task, style: Style, scores: Floats | None) -> str:
    """Id of the metric that is the task's value."""
    ranked = style == "scored" and scores is not None and isinstance(task.label, MultilabelLabel)
    return f"{task.metric}{SCORED}" if ranked else task.metric


def _headline_quantity(
    task: Task, labels: Sequence[Value | str], told: Sequence[Prediction], style: Style, scores: Floats | None
) -> Quantity:
    rows, headline = rows_of(task, labels, told), _headline(task, style, scores)
    if headline == task.metric or scores is None:
        return quantities(task, rows, style)[task.metric]
    return scored_quantities(task, rows, scores)[headline]


def _estimates(
    found: Mapping[str, Quantity], n: int, groups: NDArray[np.int64] | None, resamples: int, seed: int
) -> dict[str, Estimate]:
    clustered = groups is not None and len(np.unique(groups)) < n
    resampled = {
        name: quantity.resampled
        for name, quantity in found.items()
        if quantity.resampled is not None and (clustered or quantity.right is None)
    }
    values = statistics.bootstrap(resampled, n, resamples=resamples, seed=seed, groups=groups if clustered else None)
    estimates = {}
    for name, quantity in found.items():
        if name in values:
            interval = statistics.percentiles(values[name])
        elif quantity.right is not None:
            interval = statistics.share_interval(quantity.right, n)
        else:
            interval = statistics.UNKNOWN
        estimates[name] = Estimate(quantity.value, *interval)
    return estimates


def _notes(
    task: Task, rows: Rows, predictions: Sequence[Prediction], scores: Floats | None, style: Style, said: int
) -> list[str]:
    notes = ["no answer could be parsed"] if said == 0 else []
    if isinstance(rows, ClassRows):
        notes += _class_notes(task, rows, scores, said)
    elif isinstance(rows, NumberRows):
        notes += _number_notes(task, rows) if said else []
    elif isinstance(rows, SetRows):
        notes += _column_notes(rows, scores, style)
    elif isinstance(rows, TextRows) and said < len(predictions):
        notes.append(f"{len(predictions) - said} answers are empty and score 0")
    notes += _official_notes(task, predictions, style)
    if scores is not None and (lost := int(np.isnan(scores.reshape(len(scores), -1)).any(axis=1).sum())):
        notes.append(f"{lost} rows have no scores and count as wrong in the score-based metrics")
    return notes


def _class_notes(task: Task, rows: ClassRows, scores: Floats | None, said: int) -> Iterator[str]:
    told = metrics.resolved(rows.labels, rows.predictions, rows.classes).astype(float)
    for name, values in (("labels", rows.labels), *([("answers", told)] if said else [])):
        if metrics.is_constant(values):
            yield f"all {name} are the same class: MCC undefined, counted 0"
    if scores is None:
        return
    if metrics.is_constant(rows.labels):
        yield "all labels are the same class: AUROC and AUPRC undefined"
    elif isinstance(task.label, MulticlassLabel):
        lost = [name for place, name in enumerate(task.label.classes) if place not in rows.labels]
        if lost:
            yield f"no label is {_listed(lost)}: left out of the means of AUROC and AUPRC"


def _number_notes(task: Task, rows: NumberRows) -> list[str]:
    notes = [
        f"all {name}{f' of {output}' if output else ''} are the same: correlation undefined, counted 0"
        for name, table in (("labels", rows.labels), ("answers", rows.predictions))
        for output, values in zip(rows.outputs, table.T, strict=True)
        if metrics.is_constant(values)
    ]
    beyond = int((np.abs(np.nan_to_num(rows.predictions)) > LARGEST).sum())
    if task.metric == "mixed" and beyond:
        notes.append(f"{beyond} answers are beyond ±{LARGEST:g} and count as invalid (A-118)")
    return notes


def _column_notes(rows: SetRows, scores: Floats | None, style: Style) -> list[str]:
    both = metrics.has_both(rows.labels)
    lost = [name for name, defined in zip(rows.columns, both, strict=True) if not defined]
    if not lost:
        return []
    undefined = "AUC" if scores is None else "AUC and AUPRC"
    outcome = "left out of the mean" if both.any() else "and so the mean"
    if style == "official":
        outcome = "the official AUC is undefined"
    return [f"one class alone in {_listed(lost)}: {undefined} undefined, {outcome} (A-116)"]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} others" if more > 0 else "")


def _official_notes(task: Task, predictions: Sequence[Prediction], style: Style) -> list[str]:
    if style != "official" or not isinstance(task.label, BinaryLabel):
        return []
    unjudged = sum(prediction is None for prediction in predictions)
    doubtful = sum(prediction is WRONG for prediction in predictions)
    notes = [f"{doubtful} answers say that they do not know and count as wrong (A-101)"] if doubtful else []
    if unjudged:
        notes.append(f"{unjudged} answers hold no keyword and no sentiment model judged them: counted wrong (A-101)")
    return notes


def _estimate(content: Mapping[str, Any]) -> Estimate:
    return Estimate(*(math.nan if content[key] is None else content[key] for key in ("value", "low", "high")))


def without_nan(content: Any) -> Any:
    """The content with None for every nan, which JSON has no word for."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
