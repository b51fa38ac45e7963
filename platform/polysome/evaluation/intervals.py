"""Intervals around numbers told in words: dev answers in, how far labels lie from them out (split conformal)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polysome.evaluation.measure import without_nan
from polysome.evaluation.official import Prediction
from polysome.specs import RegressionLabel, Task, Value

LEVEL = 0.9
"""Share of labels that an interval is to hold."""


@dataclass(frozen=True)
class Interval:
    """How wide a stretch around an answered number holds the label, found on dev and tried on the test rows.

    Before a row is seen, its label lies within `half_width` of the answer with a probability of at least `level`, if
    the row is drawn as the dev rows were (Vovk et al. 2005; Lei et al. 2018).
    """

    level: float
    half_width: float
    """In the label's unit."""
    dev_n: int
    """Dev rows whose answer says a number that the label allows."""
    n: int
    """Test rows of which the same is true."""
    coverage: float
    """Share of these whose label lies within the interval; nan where there are none."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able, nan as null."""
        content: dict[str, Any] = without_nan(asdict(self))
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Interval":
        """The interval that `to_json` wrote."""
        coverage = content["coverage"]
        return cls(**{**content, "coverage": math.nan if coverage is None else coverage})

    def __str__(self) -> str:
        return (
            f"{self.level:.0%} interval of numbers in words: ±{self.half_width:g}, from {self.dev_n} dev rows; "
            f"it holds {self.coverage:.1%} of {self.n} test labels"
        )


def number(label: RegressionLabel, told: Prediction) -> float | None:
    """The number that an answer says; None where it says none, or one outside of what the label may be."""
    if not isinstance(told, tuple) or not told or not math.isfinite(told[0]):
        return None
    low, high = label.minimum, label.maximum
    return None if (low is not None and told[0] < low) or (high is not None and told[0] > high) else told[0]


def conformal_interval(
    task: Task,
    labels: Sequence[Value | str],
    told: Sequence[Prediction],
    dev: tuple[Sequence[Value | str], Sequence[Prediction]],
) -> Interval | None:
    """The conformal interval of a regression's answers.

    Its half width is the ⌈(n + 1)·level⌉-th smallest of the n absolute residuals on dev.

    Args:
        labels, told: of the test rows.
        dev: the same of the dev rows.

    Returns:
        None where fewer dev rows say a number than the level asks for.
    """
    assert isinstance(task.label, RegressionLabel)
    residuals = np.sort(_residuals(task.label, *dev))
    rank = math.ceil((len(residuals) + 1) * LEVEL)
    if rank > len(residuals):
        return None
    half_width = float(residuals[rank - 1])
    tried = _residuals(task.label, labels, told)
    coverage = float((tried <= half_width).mean()) if len(tried) else math.nan
    return Interval(LEVEL, half_width, len(residuals), len(tried), coverage)


def _residuals(
    label: RegressionLabel, labels: Sequence[Value | str], told: Sequence[Prediction]
) -> NDArray[np.float64]:
    """|label - answer| of the rows whose answer says a number that the label allows."""
    numbers = [number(label, prediction) for prediction in told]
    return np.array(
        [abs(float(value[0]) - said) for value, said in zip(labels, numbers, strict=True) if said is not None],
        dtype=np.float64,
    )
