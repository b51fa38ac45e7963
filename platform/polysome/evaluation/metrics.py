"""Metrics: labels and predictions in, one number out; nan is an unparsable prediction and costs what A-110..A-118 say.

Fmax, the mixed score and the metrics of generated text stand in modules of their own.
"""

import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def resolved(labels: Floats, predictions: Floats, classes: int) -> NDArray[np.int64]:
    """Predicted classes [n], an unparsable one replaced by a wrong one.

    For two classes that is the opposite of the label (A-110); with more no class is the opposite, so it is one more
    class, number `classes`, that no label has.
    """
    wrong = 1 - labels if classes == 2 else np.full_like(labels, classes)
    return np.where(np.isnan(predictions), wrong, predictions).astype(np.int64)


def confusion_matrix(labels: Floats, predictions: Floats, classes: int) -> NDArray[np.int64]:
    """Counts [label, prediction]: int64 [classes, classes], for more than two classes [classes + 1, classes + 1], where
    the last column is that of unparsable answers."""
    from sklearn.metrics import confusion_matrix

    size = classes if classes == 2 else classes + 1
    if not len(labels):
        return np.zeros((size, size), dtype=np.int64)
    told = resolved(labels, predictions, classes)
    return np.asarray(confusion_matrix(labels.astype(np.int64), told, labels=np.arange(size)), dtype=np.int64)


def mcc(labels: Floats, predictions: Floats, classes: int = 2) -> float:
    """Matthews correlation, -1 to 1, 0 where undefined (A-110).

    (TP·TN - FP·FN) / √((TP+FP)(TP+FN)(TN+FP)(TN+FN)); for more classes Gorodkin's generalisation.
    """
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        # One class everywhere: scikit-learn warns of what is defined as 0 here.
        warnings.simplefilter("ignore", UserWarning)
        return float(matthews_corrcoef(labels.astype(np.int64), resolved(labels, predictions, classes)))


def accuracy(labels: Floats, predictions: Floats) -> float:
    """Correct answers over all, unparsable ones wrong: 0 to 1 (A-111); the micro average of AMB-16."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, np.where(np.isnan(predictions), -1, predictions)))


def precision_recall_f1(
    labels: Floats, predictions: Floats, classes: int, average: Literal["macro", "micro", "binary"]
) -> tuple[float, float, float]:
    """Precision TP/(TP+FP), recall TP/(TP+FN), F1 = 2PR/(P+R), each 0 to 1 and 0 where undefined (AMB-16).

    `macro` is the mean over the classes, absent ones included; `binary` is about class 1 alone.
    """
    from sklearn.metrics import precision_recall_fscore_support

    told = resolved(labels, predictions, classes)
    chosen = [1] if average == "binary" else list(range(classes))
    way = "macro" if average == "binary" else average
    found = precision_recall_fscore_support(labels.astype(np.int64), told, labels=chosen, average=way, zero_division=0)
    return float(found[0]), float(found[1]), float(found[2])


def pearson(labels: Floats, predictions: Floats) -> float:
    """r(V)·|V|/N: Pearson's correlation of the parsed rows V times their share, -1 to 1 (A-112); 0 for a constant."""
    from scipy.stats import pearsonr

    return _pro_rated(pearsonr, labels, predictions, power=1)


def spearman(labels: Floats, predictions: Floats) -> float:
    """rho(V)·|V|/N: Pearson's correlation of average ranks, pro-rated, -1 to 1 (A-113, F-6); 0 for a constant."""
    from scipy.stats import spearmanr

    return _pro_rated(spearmanr, labels, predictions, power=1)


def pearson_r2(labels: Floats, predictions: Floats) -> float:
    """r(V)²·|V|/N: the paper's R², the squared correlation, 0 to 1 (A-114, AMB-21); its sign is lost."""
    from scipy.stats import pearsonr

    return _pro_rated(pearsonr, labels, predictions, power=2)


def r2_score(labels: Floats, predictions: Floats) -> float:
    """1 - SSE/SST, the true coefficient of determination, up to 1 (A-114); nan where all labels are the same.

    An unparsable answer counts as the mean of the labels, which knows nothing.
    """
    from sklearn.metrics import r2_score

    if is_constant(labels):
        return float("nan")
    return float(r2_score(labels, np.where(np.isnan(predictions), labels.mean(), predictions)))


def mae(labels: Floats, predictions: Floats) -> float:
    """Mean |y - ŷ| of the parsed rows, in the label's unit; nan where there are none."""
    from sklearn.metrics import mean_absolute_error

    parsed = ~np.isnan(predictions)
    return float(mean_absolute_error(labels[parsed], predictions[parsed])) if parsed.any() else float("nan")


def rmse(labels: Floats, predictions: Floats) -> float:
    """√(mean (y - ŷ)²) of the parsed rows, in the label's unit; nan where there are none."""
    from sklearn.metrics import root_mean_squared_error

    parsed = ~np.isnan(predictions)
    return float(root_mean_squared_error(labels[parsed], predictions[parsed])) if parsed.any() else float("nan")


def auc_columns(labels: Bools, scores: Floats) -> Floats:
    """Area under the ROC curve of each column of labels and scores [n, columns], 0 to 1 (A-116).

    The scores may be 0/1 predictions; the area is then the balanced accuracy (F-2). A column of one class is nan.
    """
    from sklearn.metrics import roc_auc_score

    return _columns(roc_auc_score, labels, scores)


def average_precision_columns(labels: Bools, scores: Floats) -> Floats:
    """Area under the precision-recall curve, Σ (R_k - R_k-1)·P_k over thresholds, of each column: 0 to 1.

    A column of one class is nan.
    """
    from sklearn.metrics import average_precision_score

    return _columns(average_precision_score, labels, scores)


def set_f1(labels: Bools, told: Bools, average: Literal["micro", "macro"]) -> float:
    """F1 of sets [n, columns], 0 to 1: of all cells pooled (micro), or the mean over the columns (macro) (AMB-16)."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, told, average=average, zero_division=0))


def is_constant(values: Floats) -> bool:
    """Whether fewer than two different values stand among those that are not nan."""
    return len(np.unique(values[~np.isnan(values)])) < 2


def has_both(labels: Bools) -> Bools:
    """Which columns of labels [n, columns] hold both classes."""
    return np.asarray(labels.any(axis=0) & ~labels.all(axis=0), dtype=bool)


def mean_defined(values: Floats) -> float:
    """Mean of the values that are not nan; nan where there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _pro_rated(correlation: object, labels: Floats, predictions: Floats, *, power: int) -> float:
    assert callable(correlation)
    parsed = ~np.isnan(predictions)
    first, second = labels[parsed], predictions[parsed]
    if is_constant(first) or is_constant(second):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float(correlation(first, second).statistic)
    return 0.0 if np.isnan(value) else value**power * len(first) / len(labels)


def _columns(metric: object, labels: Bools, scores: Floats) -> Floats:
    assert callable(metric)
    both = has_both(labels)
    return np.array(
        [metric(labels[:, place], scores[:, place]) if both[place] else np.nan for place in range(labels.shape[1])]
    )
