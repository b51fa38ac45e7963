"""Calibration: log-likelihoods of classes in, how far probabilities are from frequencies out, before and after a fit.

What is fitted is fitted on the dev split alone: Platt's two numbers for a yes-no task, a temperature for more classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polysome.evaluation.measure import without_nan
from polysome.evaluation.metrics import Floats
from polysome.specs import BinaryLabel, MulticlassLabel, Task, Value

Method = Literal["platt", "temperature"]

BINS = 15
_SPREAD = 1e4


@dataclass(frozen=True)
class Bin:
    """The rows whose confidence lies between two bounds of equal width."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean probability; nan for an empty bin."""
    frequency: float
    """How often what was predicted is so; nan for an empty bin."""


@dataclass(frozen=True)
class Reliability:
    """How probabilities and frequencies agree."""

    ece: float
    """Expected calibration error, Σ |bin|/n · |frequency - confidence|, 0 to 1 (Guo et al. 2017)."""
    brier: float
    """Mean squared distance of the probabilities from the outcome: 0 to 1, of several classes (their sum) 0 to 2."""
    log_loss: float
    """Mean negative log-probability of the label, natural logarithm."""
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Calibration:
    """Reliability on the test rows as they are, and after the fit on dev where there is one."""

    method: Method | None
    """None: nothing could be fitted; `notes` says why."""
    parameters: Mapping[str, float]
    """`temperature`, or `slope` and `offset`."""
    n: int
    """Test rows with scores."""
    dev_n: int
    before: Reliability
    after: Reliability | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON-able, nan as null."""
        content: dict[str, Any] = without_nan(asdict(self))
        return content

    def probabilities(self, scores: Floats) -> Floats:
        """[n, classes] class probabilities by the fit, those of the scores themselves where nothing could be fitted.

        Args:
            scores: [n, classes] log-likelihoods (binary: negative, positive).
        """
        return _probabilities(_fitted(scores, self.method, self.parameters))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Calibration":
        """The calibration that `to_json` wrote."""
        before, after = (_reliability(content[key]) if content[key] else None for key in ("before", "after"))
        assert before is not None
        rest = {key: content[key] for key in ("method", "parameters", "n", "dev_n")}
        return cls(**rest, before=before, after=after, notes=tuple(content["notes"]))


def calibrate(
    task: Task,
    labels: Sequence[Value | str],
    scores: Floats,
    dev: tuple[Sequence[Value | str], Floats] | str,
) -> Calibration | None:
    """Measure the calibration of test scores, and again after a fit on dev scores.

    Args:
        labels: of the test rows.
        scores: [n, classes] log-likelihoods (binary: negative, positive); a row that is not finite was not scored.
        dev: labels and scores of the dev rows, or why there are none.

    Returns:
        None where the task is not one of classes. For two classes the probability is that of the positive one, for more
        the largest.
    """
    if not isinstance(task.label, BinaryLabel | MulticlassLabel):
        return None
    binary = isinstance(task.label, BinaryLabel)
    targets, logits, lost = _scored(labels, scores)
    notes = [f"{lost} rows have no scores and are left out of the calibration"] if lost else []
    before = _reliability_of(targets, _probabilities(logits), binary)
    dev_targets, dev_logits, dev_lost = (targets[:0], logits[:0], 0) if isinstance(dev, str) else _scored(*dev)
    if dev_lost:
        notes.append(f"{dev_lost} dev rows have no scores and are left out of the calibration")
    if refusal := _refusal(dev, dev_targets):
        notes.append(f"not calibrated: {refusal}")
        return Calibration(None, {}, len(targets), len(dev_targets), before, None, tuple(notes))
    if binary:
        slope, offset = fit_platt(dev_targets, dev_logits[:, 1] - dev_logits[:, 0])
        parameters = {"slope": slope, "offset": offset}
    else:
        parameters = {"temperature": fit_temperature(dev_targets, dev_logits)}
    method: Method = "platt" if binary else "temperature"
    after = _reliability_of(targets, _probabilities(_fitted(logits, method, parameters)), binary)
    return Calibration(method, parameters, len(targets), len(dev_targets), before, after, tuple(notes))


def fit_temperature(labels: NDArray[np.int64], logits: Floats) -> float:
    """The T > 0 that minimises the log loss of softmax(logits / T) (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(logarithm: float) -> float:
        return _log_loss(labels, logits / math.exp(logarithm))

    bound = math.log(_SPREAD)
    return math.exp(float(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))


def fit_platt(labels: NDArray[np.int64], margins: Floats) -> tuple[float, float]:
    """Slope and offset of p = sigmoid(slope·margin + offset), by maximum likelihood on Platt's softened targets.

    The targets (N₊+1)/(N₊+2) and 1/(N₋+2) keep the fit finite where the classes come apart (Platt 1999).
    """
    from scipy.optimize import minimize

    positives = labels.sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
    centre, scale = margins.mean(), margins.std() or 1.0
    standard = (margins - centre) / scale

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = parameters[0] * standard + parameters[1]
        error = 1 / (1 + np.exp(-np.clip(z, -500, 500))) - target
        gradient = np.array([(error * standard).mean(), error.mean()])
        return float((np.logaddexp(0, z) - target * z).mean()), gradient

    slope, offset = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return float(slope / scale), float(offset - slope * centre / scale)


def _refusal(dev: object, labels: NDArray[np.int64]) -> str | None:
    if isinstance(dev, str):
        return dev
    return f"the {len(labels)} dev rows hold fewer than two classes" if len(np.unique(labels)) < 2 else None


def _scored(labels: Sequence[Value | str], scores: Floats) -> tuple[NDArray[np.int64], Floats, int]:
    """Class indices and scores of the rows that have scores, and how many have none."""
    indices = np.array([int(float(label[0])) for label in labels], dtype=np.int64)
    matrix = np.asarray(scores, dtype=np.float64).reshape(len(indices), -1)
    known = np.isfinite(matrix).all(axis=1)
    return indices[known], matrix[known], int((~known).sum())


def _fitted(logits: Floats, method: Method | None, parameters: Mapping[str, float]) -> Floats:
    """The log-likelihoods as the fit changes them."""
    if method == "platt":
        margin = parameters["slope"] * (logits[:, 1] - logits[:, 0]) + parameters["offset"]
        return np.stack([np.zeros_like(margin), margin], axis=1)
    return logits / parameters["temperature"] if method == "temperature" else logits


def _probabilities(logits: Floats) -> Floats:
    from scipy.special import softmax

    return np.asarray(softmax(logits, axis=1)) if len(logits) else logits


def _log_loss(labels: NDArray[np.int64], logits: Floats) -> float:
    from scipy.special import logsumexp

    return float((logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]).mean())


def _reliability_of(labels: NDArray[np.int64], probabilities: Floats, binary: bool) -> Reliability:
    if not len(labels):
        return Reliability(math.nan, math.nan, math.nan, ())
    truth = np.eye(probabilities.shape[1])[labels]
    confidence = probabilities[:, 1] if binary else probabilities.max(axis=1)
    right = truth[:, 1] if binary else (probabilities.argmax(axis=1) == labels).astype(float)
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(places, values, minlength=BINS) / counts for values in (confidence, right)]
    bins = tuple(
        Bin(place / BINS, (place + 1) / BINS, int(counts[place]), float(means[0][place]), float(means[1][place]))
        for place in range(BINS)
    )
    ece = float(np.nansum(counts * np.abs(means[1] - means[0])) / len(labels))
    squared = ((probabilities - truth) ** 2).sum(axis=1).mean() / (2 if binary else 1)
    likelihood = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(float).tiny)
    return Reliability(ece, float(squared), float(-np.log(likelihood).mean()), bins)


def _reliability(content: Mapping[str, Any]) -> Reliability:
    ece, brier, log_loss = (_number(content[key]) for key in ("ece", "brier", "log_loss"))
    bins = tuple(
        Bin(item["low"], item["high"], item["count"], _number(item["confidence"]), _number(item["frequency"]))
        for item in content["bins"]
    )
    return Reliability(ece, brier, log_loss, bins)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
