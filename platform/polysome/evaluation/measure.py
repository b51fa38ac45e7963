"""Measurement: a task's labels and parsed answers in, its metric with interval, n and parse rate out."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polysome.config import ConfigurationError
from polysome.evaluation import intervals, metrics
from polysome.specs import Dataset, Metric, MulticlassLabel, Task

MEASURED: tuple[Metric, ...] = ("mcc", "accuracy", "spearman")
"""Metrics that can be measured."""
SCALE = 100
"""Reported values are the raw ones times this, with two decimals (XP-4)."""


@dataclass(frozen=True)
class Estimate:
    """A raw value with its 95 % confidence interval."""

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

    def to_json(self) -> dict[str, Any]:
        """JSON-able: the value and its interval scaled, and raw beside it; nan as null."""
        value, low, high = self.value.scaled()
        content: dict[str, Any] = {
            "metric": self.metric,
            "n": self.n,
            "scale": SCALE,
            "value": value,
            "ci_low": low,
            "ci_high": high,
            "raw": asdict(self.value),
            "parse_rate": asdict(self.parse_rate) if self.parse_rate else None,
            "notes": list(self.notes),
        }
        if self.subsets:
            content["subsets"] = {name: subset.to_json() for name, subset in self.subsets.items()}
        return _without_nan(content)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Measurement":
        """The measurement that `to_json` wrote."""
        parse_rate = content["parse_rate"]
        return cls(
            content["metric"],
            content["n"],
            _estimate(content["raw"]),
            _estimate(parse_rate) if parse_rate else None,
            tuple(content["notes"]),
            {name: cls.from_json(subset) for name, subset in content.get("subsets", {}).items()},
        )


def require_measured(spec: Dataset, *, where: str) -> None:
    """Check that the task's metric can be measured.

    Raises:
        ConfigurationError: the task's label is not one number or class.
    """
    assert spec.task is not None
    if spec.task.metric not in MEASURED:
        raise ConfigurationError(
            f"{spec.name!r} is measured by {spec.task.metric}, which is not built yet",
            where=where,
            fix=f"name tasks that are measured by one of {', '.join(MEASURED)}; `polysome datasets ls` shows them",
        )


def measure(
    task: Task,
    labels: NDArray[np.float64],
    predictions: NDArray[np.float64],
    *,
    seed: int,
    resamples: int = 1000,
    parsed: bool = True,
    subsets: list[str | None] | None = None,
) -> Measurement:
    """Measure predictions [n] (nan: unparsable) against labels [n] by the task's metric.

    Args:
        task: says the metric and the label's kind.
        labels: 1/0, class indices or numbers.
        predictions: the same, nan where the answer was unparsable.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        parsed: whether predictions were parsed from text, so that a parse rate is meant.
        subsets: name of each example's subset; where there are several, each is measured as well.
    """
    n = len(labels)
    parsed_rows = int((~np.isnan(predictions)).sum())
    notes = []
    if task.metric == "spearman":
        raw = float(metrics.pro_rated_spearman(labels, predictions)) if n else math.nan
        interval = intervals.bootstrap_spearman(labels, predictions, resamples=resamples, seed=seed)
        for name, values in (("labels", labels), ("answers", predictions)):
            if parsed_rows and metrics.is_constant(values):
                notes.append(f"all {name} are the same: correlation undefined, counted 0")
    elif task.metric == "mcc":
        classes = len(task.label.classes) if isinstance(task.label, MulticlassLabel) else 2
        confusion = metrics.confusion_matrix(labels, predictions, classes)
        raw = float(metrics.matthews(confusion)) if n else math.nan
        interval = intervals.bootstrap_matthews(confusion, resamples=resamples, seed=seed)
    else:
        raw = metrics.accuracy(labels, predictions)
        interval = intervals.wilson(int((labels == predictions).sum()), n)
    if n and not parsed_rows:
        notes.append("no answer could be parsed")
    names = sorted({name for name in subsets or [] if name is not None})
    membership = np.array(subsets or [], dtype=object)
    return Measurement(
        task.metric,
        n,
        Estimate(raw, *interval),
        Estimate(parsed_rows / n if n else math.nan, *intervals.wilson(parsed_rows, n)) if parsed else None,
        tuple(notes),
        {
            name: measure(
                task,
                labels[membership == name],
                predictions[membership == name],
                seed=seed,
                resamples=resamples,
                parsed=parsed,
            )
            for name in (names if len(names) > 1 else [])
        },
    )


def _estimate(content: Mapping[str, Any]) -> Estimate:
    return Estimate(*(math.nan if content[key] is None else content[key] for key in ("value", "low", "high")))


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    return None if isinstance(content, float) and math.isnan(content) else content
