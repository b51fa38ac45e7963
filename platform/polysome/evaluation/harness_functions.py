"""Metrics of the exported tasks for lm-evaluation-harness, beside its YAML files; needs numpy, scipy, scikit-learn.

`process_<metric>` pairs a document's label with the filtered answer, `<metric>` makes one number of all pairs, as the
platform that wrote the tasks does: an answer that says no label counts as wrong, or lowers a correlation by its share.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

INVALID = "[invalid]"
Item = tuple[Any, Any, str]
"""Label, what was read of the answer or None, and the data set."""
_CLASSES_FILE = Path(__file__).with_name("polysome_classes.json")
_CLASSES = json.loads(_CLASSES_FILE.read_text(encoding="utf-8")) if _CLASSES_FILE.exists() else {}
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?")


def _process(metric: str, read: Callable[[str, dict[str, Any]], Any]) -> Callable[..., dict[str, Any]]:
    """A function of a document and its filtered answers: label and what was read, None where nothing was."""

    def process(document: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
        answer = results[0]
        told = None if answer == INVALID else read(answer, document)
        label = document["target"] if read is _text else document["label"]
        return {metric: (label, told, document["dataset"]), "parse_rate": told is not None}

    return process


def _text(answer: str, document: dict[str, Any]) -> str | None:
    return answer if answer.strip() else None


def _class(answer: str, document: dict[str, Any]) -> list[float] | None:
    names = [name.lower() for name in _CLASSES[document["dataset"]]]
    return [float(names.index(answer.lower()))] if answer.lower() in names else None


def _numbers(answer: str, document: dict[str, Any]) -> list[float] | None:
    found = [float(text) for text in _NUMBER.findall(answer)]
    return found if len(found) == len(document["label"]) else None


def _names(answer: str, document: dict[str, Any]) -> list[float] | None:
    """Indices of the names; the last column of a task that has one is `none`, which stands for no name."""
    names = _CLASSES[document["dataset"]]
    # A number may follow a prefix of letters at once, `EC1.1.1.1`; a name may not be a part of another.
    before = [r"(?<![\d.])" if name[0].isdigit() else r"(?<![\w.])" for name in names]
    found = [
        place
        for place, name in enumerate(names)
        if re.search(rf"{before[place]}{re.escape(name)}(?!\w|\.[\w-])", answer)
    ]
    return [float(place) for place in found if names[place] != "none"] if found else None


process_mcc = _process("mcc", _class)
process_accuracy = _process("accuracy", _class)
process_spearman = _process("spearman", _numbers)
process_pearson = _process("pearson", _numbers)
process_pearson_r2 = _process("pearson_r2", _numbers)
process_mean_pearson_r2 = _process("mean_pearson_r2", _numbers)
process_mixed = _process("mixed", _numbers)
process_auc = _process("auc", _names)
process_fmax = _process("fmax", _names)
process_rouge_l = _process("rouge_l", _text)


def parse_rate(items: Sequence[bool]) -> float:
    """Share of answers that say a label."""
    return float(np.mean(items))


def accuracy(items: Sequence[Item]) -> float:
    """Share of right answers."""
    return float(np.mean([told == label for label, told, _ in items]))


def mcc(items: Sequence[Item]) -> float:
    """Matthews correlation; an invalid answer is the opposite of a binary label, else a class that no label has."""
    from sklearn.metrics import matthews_corrcoef

    classes = len(_CLASSES[items[0][2]])
    labels = [label[0] for label, _, _ in items]
    wrong = [1 - label if classes == 2 else classes for label in labels]
    told = [answer[0] if answer else bad for (_, answer, _), bad in zip(items, wrong, strict=True)]
    return float(matthews_corrcoef(labels, told))


def spearman(items: Sequence[Item]) -> float:
    """Spearman's rho of the valid rows times their share."""
    from scipy.stats import rankdata

    return float(np.mean(_pro_rated(items, lambda y, x: _correlation(rankdata(y), rankdata(x)))))


def pearson(items: Sequence[Item]) -> float:
    """Pearson correlation of the valid rows times their share; the mean over the outputs."""
    return float(np.mean(_pro_rated(items, _correlation)))


def pearson_r2(items: Sequence[Item]) -> float:
    """Squared Pearson correlation of the valid rows times their share; the mean over the outputs."""
    return float(np.mean(_pro_rated(items, lambda y, x: _correlation(y, x) ** 2)))


mean_pearson_r2 = pearson_r2


def mixed(items: Sequence[Item]) -> float:
    """Half the scaled error, half F1 of "below 30" times the scaled error where 0 to 30 was said."""
    valid = [(label[0], told[0]) for label, told, _ in items if told and abs(told[0]) <= 1000]
    if not valid:
        return 0.0
    labels, told = np.array(valid).T
    errors = np.abs(labels - told)
    low, said_low = labels < 30, told < 30
    hits = float((low & said_low).sum())
    f1 = 2 * hits / (low.sum() + said_low.sum()) if hits else 0.0
    inside = errors[(told >= 0) & (told <= 30)]
    in_range = min(100.0, inside.mean()) if len(inside) else 100.0
    score = 0.5 * (1 - min(100.0, errors.mean()) / 100) + 0.5 * f1 * (1 - in_range / 100)
    return float(score * len(valid) / len(items))


def auc(items: Sequence[Item]) -> float:
    """Mean over the columns of both classes of the AUC of the hard answers; an invalid answer names nothing."""
    from sklearn.metrics import roc_auc_score

    labels, told = _hot(items, 0), _hot(items, 1)
    columns = [column for column in range(labels.shape[1]) if 0 < labels[:, column].sum() < len(labels)]
    if not columns:
        return math.nan
    return float(np.mean([roc_auc_score(labels[:, column], told[:, column]) for column in columns]))


def fmax(items: Sequence[Item]) -> float:
    """Harmonic mean of precision over the rows that name something and recall over all."""
    labels, told = _hot(items, 0), _hot(items, 1)
    hits, said, there = (labels & told).sum(axis=1), told.sum(axis=1), labels.sum(axis=1)
    if not hits.any():
        return 0.0
    precision = float(np.mean(hits[said > 0] / said[said > 0]))
    recall = float(np.mean(hits / np.maximum(there, 1)))
    return 2 * precision * recall / (precision + recall)


def rouge_l(items: Sequence[Item]) -> float:
    """Mean ROUGE-L F1, with stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return float(np.mean([scorer.score(label, told)["rougeL"].fmeasure if told else 0.0 for label, told, _ in items]))


def _pro_rated(items: Sequence[Item], correlation: Callable[[Any, Any], float]) -> list[float]:
    valid = [(label, told) for label, told, _ in items if told]
    if not valid:
        return [0.0]
    labels, told = (np.array(part, dtype=float) for part in zip(*valid, strict=True))
    share = len(valid) / len(items)
    return [correlation(labels[:, column], told[:, column]) * share for column in range(labels.shape[1])]


def _correlation(labels: Any, told: Any) -> float:
    """Pearson correlation; 0 where one of the two is constant."""
    if np.ptp(labels) == 0 or np.ptp(told) == 0:
        return 0.0
    return float(np.corrcoef(labels, told)[0, 1])


def _hot(items: Sequence[Item], part: int) -> Any:
    """Labels (part 0) or answers (part 1) as bool [rows, columns]; no name is `none` where there is that column."""
    names = _CLASSES[items[0][2]]
    rows = np.zeros((len(items), len(names)), dtype=bool)
    for row, item in enumerate(items):
        if item[part] is None:
            continue
        rows[row, [int(place) for place in item[part]]] = True
        if not item[part] and names[-1] == "none":
            rows[row, -1] = True
    return rows
