"""All that is measured of a task: its rows in, every metric of their kind out, by id, each with its resampled form."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from polysome.evaluation import metrics, resampling, text_metrics
from polysome.evaluation.fmax import Ties, fmax, resampled_fmax
from polysome.evaluation.metrics import Bools, Floats
from polysome.evaluation.mixed import mixed, resampled_mixed
from polysome.evaluation.resampling import Resampled
from polysome.evaluation.rows import ClassRows, NumberRows, Rows, SetRows, TextRows
from polysome.specs import RegressionLabel, Task

Style = Literal["strict", "official", "scored"]
SCORED = "_scored"
"""End of the id of a metric that is measured on scores instead of answers."""
_ERRORS = ("mae", "rmse", "mixed_mae", "mixed_range_mae")
_MOST_COLUMNS = 32
"""Most columns of which a mean over columns gets an interval."""


@dataclass(frozen=True)
class Quantity:
    """One metric on fixed rows."""

    value: float
    resampled: Resampled | None = None
    """None: no interval, because it would take minutes."""
    right: int | None = None
    """Of a share of independent rows, how many are right: its interval needs no resampling."""


Quantities = dict[str, Quantity]


def is_error(metric: str) -> bool:
    """Whether a metric is an error: in the unit of the label, less is better. All others are the more the better, and
    reported times 100 (XP-4)."""
    return any(metric.removesuffix(SCORED) == name or metric.startswith(f"{name}_") for name in _ERRORS)


def quantities(task: Task, rows: Rows, style: Style) -> Quantities:
    """Every metric of the rows, that of the task among them."""
    if isinstance(rows, ClassRows):
        return _of_classes(rows)
    if isinstance(rows, NumberRows):
        return _of_numbers(task, rows)
    if isinstance(rows, SetRows):
        return _of_sets(rows, style)
    return _of_texts(rows)


def scored_quantities(task: Task, rows: Rows, scores: Floats) -> Quantities:
    """Every metric of the scores [n, classes or outputs]; ids end in `_scored`. A row with a nan counts as wrong.

    Raises:
        ValueError: the scores have another shape.
    """
    if isinstance(rows, TextRows):
        raise ValueError("generated text has no scores")
    width = rows.classes if isinstance(rows, ClassRows) else rows.labels.shape[1]
    table = np.array(scores, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    # A task's scores may leave out the column of `none`.
    narrow = isinstance(rows, SetRows) and task.label.kind == "multilabel" and table.shape[1] == width - 1
    if table.shape != (len(rows.labels), width) and not narrow:
        raise ValueError(f"scores of shape {table.shape}, needed is {(len(rows.labels), width)}")
    table[np.isnan(table).any(axis=1)] = np.nan
    if isinstance(rows, ClassRows):
        found = _of_class_scores(rows, table)
    elif isinstance(rows, NumberRows):
        found = _of_numbers(task, NumberRows(rows.labels, table, rows.outputs))
    else:
        found = _of_set_scores(rows.labels[:, : table.shape[1]], table)
    return {f"{name}{SCORED}": quantity for name, quantity in found.items()}


def decided(scores: Floats) -> Floats:
    """The place of the highest score [n] in scores [n, classes]; nan where a row has a nan."""
    return np.where(np.isnan(scores).any(axis=1), np.nan, np.nan_to_num(scores, nan=-np.inf).argmax(axis=1))


def _of_classes(rows: ClassRows) -> Quantities:
    labels, predictions, classes = rows.labels, rows.predictions, rows.classes
    told = metrics.resolved(labels, predictions, classes)
    right = (labels == predictions).astype(float)
    found = {
        "mcc": Quantity(metrics.mcc(labels, predictions, classes), resampling.mcc(labels, told, classes)),
        "accuracy": Quantity(metrics.accuracy(labels, predictions), resampling.mean(right), int(right.sum())),
    }
    averages: list[tuple[str, Literal["macro", "binary"], list[int]]] = [("_macro", "macro", list(range(classes)))]
    if classes == 2:
        averages.append(("", "binary", [1]))
    for suffix, average, chosen in averages:
        values = metrics.precision_recall_f1(labels, predictions, classes, average)
        moved = resampling.precision_recall_f1(labels, told, classes, chosen)
        for name, value, resampled in zip(("precision", "recall", "f1"), values, moved, strict=True):
            found[f"{name}{suffix}"] = Quantity(value, resampled)
    return found


def _of_class_scores(rows: ClassRows, scores: Floats) -> Quantities:
    from scipy.special import log_softmax

    found = _of_classes(ClassRows(rows.labels, decided(scores), rows.classes))
    if rows.classes == 2:
        truth, ranked = (rows.labels == 1)[:, None], (scores[:, 1] - scores[:, 0])[:, None]
    else:
        truth, ranked = np.eye(rows.classes, dtype=bool)[rows.labels.astype(int)], log_softmax(scores, axis=1)
    return found | _of_rankings(truth, ranked, auc="auroc")


def _of_rankings(truth: Bools, scores: Floats, *, auc: str) -> Quantities:
    """Areas under the curves, the mean over columns; a row without a score ranks where it does most harm."""
    ranked = np.where(np.isnan(scores), np.where(truth, -np.inf, np.inf), scores)
    finite = ranked[np.isfinite(ranked)]
    low, high = (finite.min() - 1, finite.max() + 1) if len(finite) else (-1.0, 1.0)
    ranked = np.clip(ranked, low, high)
    few = truth.shape[1] <= _MOST_COLUMNS
    kinds = {
        auc: (metrics.auc_columns, resampling.auc),
        "auprc": (metrics.average_precision_columns, resampling.average_precision),
    }
    return {
        name: Quantity(
            metrics.mean_defined(columns(truth, ranked)),
            resampling.average([one(truth[:, place], ranked[:, place]) for place in range(truth.shape[1])])
            if few
            else None,
        )
        for name, (columns, one) in kinds.items()
    }


def _of_numbers(task: Task, rows: NumberRows) -> Quantities:
    kinds: dict[str, tuple[Callable[[Floats, Floats], float], Callable[[Floats, Floats], Resampled]]] = {
        "spearman": (metrics.spearman, resampling.spearman),
        "pearson": (metrics.pearson, resampling.pearson),
        "pearson_r2": (metrics.pearson_r2, partial(resampling.pearson, power=2)),
        "r2_score": (metrics.r2_score, resampling.r2_score),
        "mae": (metrics.mae, _resampled_mae),
        "rmse": (metrics.rmse, _resampled_rmse),
    }
    pairs = list(zip(rows.labels.T, rows.predictions.T, strict=True))
    found: Quantities = {}
    for name, (metric, resampled) in kinds.items():
        each = [Quantity(metric(labels, told), resampled(labels, told)) for labels, told in pairs]
        if len(each) == 1:
            found[name] = each[0]
            continue
        parts = [one.resampled for one in each if one.resampled]
        # Over several outputs R² is the mean of theirs, and so is every other metric.
        mean = Quantity(metrics.mean_defined(np.array([one.value for one in each])), resampling.average(parts))
        found["mean_pearson_r2" if name == "pearson_r2" else name] = mean
        found |= {f"{name}_{output}": one for output, one in zip(rows.outputs, each, strict=True)}
    if len(pairs) == 1 and isinstance(task.label, RegressionLabel):
        found |= _of_one_number(task.metric, task.label, *pairs[0])
    return found


def _of_one_number(metric: str, label: RegressionLabel, labels: Floats, told: Floats) -> Quantities:
    found: Quantities = {}
    if metric == "mixed":
        pieces = mixed(labels, told)
        found["mixed"] = Quantity(float(pieces.score), resampled_mixed(labels, told))
        by_label = mixed(labels, told, range_by="labels").score
        found["mixed_by_label"] = Quantity(float(by_label), resampled_mixed(labels, told, range_by="labels"))
        found |= {f"mixed_{piece}": Quantity(float(getattr(pieces, piece))) for piece in ("mae", "f1", "range_mae")}
    if (label.minimum, label.maximum) == (0, 1):
        # The literature squares the correlation of proportions in log-odds (AMB-21).
        edge = 0.5 * 10.0**-label.decimals
        odds = [
            np.log(clipped / (1 - clipped)) for clipped in (np.clip(part, edge, 1 - edge) for part in (labels, told))
        ]
        found["pearson_r2_logit"] = Quantity(metrics.pearson_r2(*odds), resampling.pearson(*odds, power=2))
    return found


def _of_sets(rows: SetRows, style: Style) -> Quantities:
    labels, told = rows.labels, rows.predictions
    columns = metrics.auc_columns(labels, told.astype(float))
    undefined = bool(np.isnan(columns).any())
    auc = float("nan") if style == "official" and undefined else metrics.mean_defined(columns)
    # The paper's Fmax ranks the 0/1 vectors themselves; told sets have one threshold.
    ties: Ties = "broken" if style == "official" else "together"
    levels = told.astype(float) if style == "official" else np.where(told, 0.0, -np.inf)
    hits = (labels & told).astype(float)
    same = (labels == told).all(axis=1).astype(float)
    micro, macro = (metrics.set_f1(labels, told, average) for average in ("micro", "macro"))
    return {
        "auc": Quantity(auc, resampling.hard_auc(labels, told) if not np.isnan(auc) else None),
        "fmax": Quantity(fmax(labels, levels, ties=ties), resampled_fmax(labels, levels, ties=ties)),
        "f1_micro": Quantity(
            micro, resampling.ratio(2 * hits.sum(axis=1), (labels.sum(axis=1) + told.sum(axis=1)).astype(float))
        ),
        "f1_macro": Quantity(macro, resampling.set_macro_f1(labels, told)),
        "exact_match": Quantity(float(same.mean()), resampling.mean(same), int(same.sum())),
    }


def _of_set_scores(labels: Bools, scores: Floats) -> Quantities:
    reached = np.where(np.isnan(scores), -np.inf, scores)
    return _of_rankings(labels, scores, auc="auc") | {
        "fmax": Quantity(fmax(labels, reached), resampled_fmax(labels, reached))
    }


def _of_texts(rows: TextRows) -> Quantities:
    overlaps = text_metrics.overlaps(rows.labels, rows.predictions)
    counts = text_metrics.bleu_counts(rows.labels, rows.predictions)
    found = {name: Quantity(float(each.mean()), resampling.mean(each)) for name, each in overlaps.items()}
    for order in range(1, text_metrics.ORDERS + 1):
        name = "bleu" if order == text_metrics.ORDERS else f"bleu_{order}"
        value = text_metrics.bleu(rows.labels, rows.predictions, order)
        found[name] = Quantity(value, text_metrics.resampled_bleu(counts, order))
    return found


def _resampled_mae(labels: Floats, told: Floats) -> Resampled:
    return resampling.mean(np.abs(labels - told), (~np.isnan(told)).astype(float))


def _resampled_rmse(labels: Floats, told: Floats) -> Resampled:
    return resampling.root_mean((labels - told) ** 2, (~np.isnan(told)).astype(float))
