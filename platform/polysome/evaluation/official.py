"""The paper's evaluator: an answer's text in, what its parsers make of it out, their mistakes included (A-100..A-105).

Its numbers stand beside those of the strict parsers and are never compared with them (E-6). What goes beyond it: the
text before `</think>` is cut off (A-106), and a JSON answer is read first (A-107).
"""

import math
import re
from collections.abc import Callable

from polysome.evaluation.json_answers import json_answer
from polysome.specs import (
    BinaryLabel,
    MulticlassLabel,
    MultilabelLabel,
    MultiRegressionLabel,
    RegressionLabel,
    Task,
    Value,
)

Prediction = Value | str | None
"""An answer as the task's label, text for a generation alone; None where it says none, or not clearly one."""
Parser = Callable[[str], Prediction]
Sentiment = Callable[[str], tuple[float, float]]
"""A text's probabilities of being negative and positive, neutral left out (A-101)."""

WRONG: Value = (math.nan,)
"""A "don't know" to a yes-no question: counted as the opposite of the label, whatever that is (A-101)."""
DENIED: Value = (-math.inf,)
"""An answer that names no label and says no: counted as `none` where that is the label, else as naming none (A-104)."""
SIGNIFICANT_DIGITS = 6

_NEGATIVE = (
    "no",
    "absence",
    "not found",
    "not detected",
    "not associated",
    "not inferred",
    "not linked",
    "does not indicate",
    "no evidence",
    "not predicted",
    "absent",
)
_DOUBT = ("don't know", "unknown", "unsure", "uncertain", "not applicable")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_EC_NUMBER = re.compile(r"\d+\.\d+\.\d+\.(?:-|\d*)")
_EC_CLASS = re.compile(r"\d+(?:\.(?:n?\d+|-)){3}")


def after_thinking(answer: str) -> str:
    """What follows the last `</think>`; all of it where there is none (A-106)."""
    return answer.rpartition("</think>")[2]


def six_digits(number: str) -> float:
    """A written number rounded to six significant digits (A-100)."""
    return float(f"{float(number):.{SIGNIFICANT_DIGITS}g}")


def are_ec_numbers(classes: list[str]) -> bool:
    """Whether all of a task's classes are Enzyme Commission numbers, whole or partial."""
    return all(_EC_CLASS.fullmatch(name) for name in classes)


def official_parser(task: Task, sentiment: Sentiment | None = None) -> Parser:
    """The paper's parser of a task.

    Args:
        sentiment: judges a yes-no answer without a keyword; the authors use twitter-roberta-base-sentiment-latest
            on at most 512 tokens. Without one such an answer is None.
    """
    read = _reader(task, sentiment)

    def parse(answer: str) -> Prediction:
        text = after_thinking(answer)
        told = json_answer(text)
        found = read(told) if told is not None else None
        return read(text) if found is None else found

    return parse


def read_numbers(text: str) -> list[float]:
    """All numbers, a hyphen right before a digit taken for a minus, exponents unknown (A-100, F-3 official)."""
    return [value for found in _NUMBER.findall(text) if math.isfinite(value := six_digits(found))]


def read_binary(text: str, sentiment: Sentiment | None = None) -> Value | None:
    """By keywords anywhere, even inside words: yes, then no, then doubt (`WRONG`), then sentiment (A-101, F-4)."""
    lowered = text.lower()
    if "yes" in lowered:
        return (1.0,)
    if any(keyword in lowered for keyword in _NEGATIVE):
        return (0.0,)
    if any(keyword in lowered for keyword in _DOUBT):
        return WRONG
    if sentiment is None or not text.strip():
        return None
    negative, positive = sentiment(text)
    return (float(positive > negative),)


def read_class(text: str, classes: list[str]) -> Value | None:
    """The first class, tested longest first, that stands in the text as it is written (A-103)."""
    for name in sorted(classes, key=len, reverse=True):
        if name in text:
            return (float(classes.index(name)),)
    return None


def read_names(text: str, label: MultilabelLabel, sentiment: Sentiment | None = None) -> Value | None:
    """Indices of the names between word boundaries (A-104, F-5); `none` beside a name has the index after the last.

    Where no name stands, a text that the yes-no rules call negative is `DENIED`.
    """
    names = label.classes if label.none is None else [*label.classes, label.none]
    found = tuple(float(place) for place, name in enumerate(names) if re.search(rf"\b{re.escape(name)}\b", text))
    if found == (float(len(label.classes)),):
        return ()
    if found:
        return found
    return DENIED if label.none is not None and read_binary(text, sentiment) == (0.0,) else None


def read_ec_numbers(text: str, classes: list[str]) -> Value | None:
    """Indices of the listed numbers of four fields, the last digits or `-`; never `2.7.7.n1` (A-105, AMB-15)."""
    found = set(_EC_NUMBER.findall(text))
    return tuple(float(place) for place, name in enumerate(classes) if name in found) or None


def _reader(task: Task, sentiment: Sentiment | None) -> Callable[[str], Prediction]:
    label = task.label
    if isinstance(label, BinaryLabel):
        return lambda text: read_binary(text, sentiment)
    if isinstance(label, MulticlassLabel):
        return lambda text: read_class(text, label.classes)
    if isinstance(label, MultilabelLabel):
        if are_ec_numbers(label.classes):
            return lambda text: read_ec_numbers(text, label.classes)
        return lambda text: read_names(text, label, sentiment)
    if isinstance(label, RegressionLabel):
        return lambda text: tuple(read_numbers(text)[:1]) or None
    if isinstance(label, MultiRegressionLabel):
        return lambda text: _exactly(len(label.outputs), read_numbers(text))
    return lambda text: text.strip() or None


def _exactly(count: int, values: list[float]) -> Value | None:
    return tuple(values) if len(values) == count else None
