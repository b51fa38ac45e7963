"""Strict parsers: an answer's text in, a label or None (unparsable) out (AMB-9).

What is parsed is the final answer: the text after `</think>`, and within it first a JSON answer (A-107), then a boxed
one (E-4), then what follows the last "answer is", "Answer:" or "Final answer:" (A-106). Where one is marked, nothing
else is read, even if it says nothing. Words count whole, negation turns a word around, and what does not say clearly
one thing is unparsable, which measures as wrong and lowers the parse rate.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from polysome.evaluation.json_answers import json_answer
from polysome.evaluation.official import (
    DENIED,
    WRONG,
    Parser,
    Prediction,
    Sentiment,
    are_ec_numbers,
    official_parser,
)
from polysome.evaluation.written_numbers import HYPHENS, assign, numbers, numbers_at
from polysome.specs import (
    BinaryLabel,
    MulticlassLabel,
    MultilabelLabel,
    MultiRegressionLabel,
    RegressionLabel,
    Task,
    Value,
)

__all__ = [
    "DENIED",
    "WRONG",
    "Parser",
    "Prediction",
    "Segment",
    "Sentiment",
    "final_answer",
    "numbers",
    "parse_binary",
    "parse_class",
    "parse_ec_numbers",
    "parse_labels",
    "parse_number",
    "parse_numbers",
    "parse_text",
    "parser",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MARKER = re.compile(
    r"(?:\bfinal answer|\banswer)\s*(?:\*\*)?\s*"
    r"(?:is\b(?!\s+(?:based|derived|supported|limited|consistent|helpful)\b)\s*:?|:)",
    re.IGNORECASE,
)
"""Not where a sentence is about the answer ("my answer is based on the motif") instead of giving it."""
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX = re.compile(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}")
_LEADING = re.compile(r"\W*(yes|no)(?=\s*(?:[^\w\s]|$))", re.IGNORECASE)
_CLAUSE = re.compile(r"[.,;:!?\n()]+|\b(?:but|however|although|though|whereas|while)\b")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_UNCERTAIN = re.compile(
    r"\b(?:(?:do not|don't|cannot|can't|can not|could not|couldn't|unable to|impossible to) (?:know|say|tell|determine|"
    r"be (?:determined|said|told))|unknown|unsure|not sure|uncertain|unclear|not clear|not applicable|n/a|inconclusive|"
    r"undetermined|ambiguous)\b"
)
_POSITIVE = _words(
    "yes true positive present presence evidence contains contain exists exist detected found identified "
    "confirmed associated linked interact interacts bind binds soluble"
)
_NEGATIVE = _words(
    "no not never none without cannot neither non absent absence negative false lack lacks lacking fails "
    "insoluble unlikely unmodified"
)
_CODING = re.compile(r"\bnon[- ]coding\b")
"""A kind of RNA, not a negation."""
_EC_NUMBER = re.compile(r"(?:(?<![\w.])|(?<=\bec))(\d+\.(?:\d+|-)\.(?:\d+|-)\.(?:n?\d+|-))(?!\w|\.\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Segment:
    """A stretch of an answer to parse."""

    text: str
    final: bool
    """Whether the model marked it as its final answer."""


def final_answer(answer: str) -> Segment | None:
    """What to parse: the first final answer (in JSON, boxed, marked by words) that is not blank; where none is marked,
    all that follows the thinking.

    None for a blank, or an answer that is still thinking at its end.
    """
    text, thought = _said(answer)
    boxed, markers = _BOXED.findall(text), list(_MARKER.finditer(text))
    marked = (
        json_answer(text),
        _LATEX.sub(r"\1", boxed[-1]) if boxed else None,
        text[markers[-1].end() :] if markers else None,
    )
    for told in marked:
        if told is not None and told.strip():
            return Segment(told, True)
    return Segment(text, thought) if text.strip() else None


def parse_binary(answer: str, *, positive: tuple[str, ...] = (), negative: tuple[str, ...] = ()) -> float | None:
    """1.0 or 0.0, or None (A-101, F-4).

    In order: an answer that is word for word one of the task's own answer wordings (`positive`, `negative`) speaks for
    its pool; a leading "yes" or "no" that stands alone (`Yes, …`, `No.`; not `Yes/no`, where the other word stands in
    the same clause) decides; else every clause that takes a side must take the same. A clause with an odd number of
    negations is negative, otherwise positive if it holds a positive word. An expression of doubt makes the answer
    unparsable.
    """
    segment = final_answer(answer)
    if segment is None:
        return None
    wordings = {_plain(text): 1.0 for text in positive} | {_plain(text): 0.0 for text in negative}
    if (known := wordings.get(_plain(segment.text))) is not None:
        return known
    text = segment.text.lower().replace("\u2019", "'").replace("no doubt", "surely")
    leading = _LEADING.match(text)
    if leading and not {"yes", "no"}.issubset(_WORD.findall(_CLAUSE.split(text[leading.start(1) :])[0])):
        return float(leading.group(1) == "yes")
    if _UNCERTAIN.search(text):
        return None
    sides = _sides(text)
    return sides.pop() if len(sides) == 1 else None


def parse_class(answer: str, classes: list[str]) -> float | None:
    """Index of the class that the answer names, or None (A-103, F-5).

    Names count whole, longest first, so that `Intron_gpII` never names `Intron_gpI`; in any case, and with a space for
    an underscore, unless only these tell two names apart; and not after a negation in the same clause. Where several
    different names stand, the last one counts if the model marked a final answer, else none.
    """
    fold = frozenset(classes if len({_spaced(name) for name in classes}) == len(classes) else ())
    segment = final_answer(answer)
    if segment is None:
        return None
    named = [index for index, negated in _names_in(segment.text, classes, fold) if not negated]
    return float(named[-1]) if len(set(named)) == 1 or (named and segment.final) else None


def parse_number(answer: str) -> float | None:
    """The first number of the marked final answer, or of the answer where none is marked (A-100)."""
    segment = final_answer(answer)
    found = numbers(segment.text) if segment else []
    return found[0] if found else None


def parse_numbers(answer: str, outputs: list[str]) -> Value | None:
    """One number for each output, in the order of `outputs`; None unless exactly so many stand there (A-100).

    Names beside the numbers say which is whose; see `assign`.
    """
    segment = final_answer(answer)
    if segment is None:
        return None
    found = numbers_at(segment.text)
    return assign(segment.text, found, outputs) if len(found) == len(outputs) else None


def parse_labels(answer: str, label: MultilabelLabel) -> Value | None:
    """Indices of the names that the answer affirms, `()` where it says that there are none; None otherwise (F-5).

    Names count whole, longest first, so that `m6Am` names neither `m6A` nor `Am`; a name of letters alone only as it is
    written, since `am` is a word. Doubt, or names beside "none", make the answer unparsable.
    """
    segment = final_answer(answer)
    if segment is None or _UNCERTAIN.search(segment.text.lower()):
        return None
    distinct = len({name.lower() for name in label.classes}) == len(label.classes)
    fold = frozenset(name for name in label.classes if distinct and not name.isalpha())
    places = list(_names_in(segment.text, label.classes, fold))
    named = sorted({index for index, negated in places if not negated})
    none = re.search(rf"\b{re.escape(label.none)}\b", segment.text, re.IGNORECASE) if label.none else None
    if named:
        return None if none else tuple(map(float, named))
    return () if none or (label.none and not places and _sides(segment.text) == {0.0}) else None


def parse_ec_numbers(answer: str, classes: list[str], *, parents: bool = False) -> Value | None:
    """Indices of the Enzyme Commission numbers that the answer affirms, `n1` and the like among them (AMB-15, F-14).

    A number that is not listed is no class, as is one after a negation; None where the answer holds no number at all.

    Args:
        parents: a number also names the listed partial ones above it: 2.7.7.7 names 2.7.7.- as well.
    """
    segment = final_answer(answer)
    if segment is None:
        return None
    text = segment.text.translate(HYPHENS)
    found = {match.group(1).lower() for match in _EC_NUMBER.finditer(text) if not _negated(text, match.start())}
    if parents:
        found |= {parent for number in found for parent in _parents(number)}
    places = {name: index for index, name in enumerate(classes)}
    return tuple(sorted(float(places[number]) for number in found if number in places)) if found else None


def parse_text(answer: str) -> str | None:
    """What follows the thinking; None for a blank, or an answer that is still thinking at its end."""
    return _said(answer)[0].strip() or None


def parser(
    task: Task,
    *,
    style: Literal["strict", "official"] = "strict",
    sentiment: Sentiment | None = None,
    parents: bool = False,
) -> Parser:
    """The parser of a task.

    Args:
        style: `official` is the paper's, mistakes included; the two never share a column (E-6).
        sentiment: for the official one; see `official_parser`.
        parents: for the strict one of Enzyme Commission numbers; see `parse_ec_numbers`.
    """
    if style == "official":
        return official_parser(task, sentiment)
    label = task.label
    if isinstance(label, BinaryLabel):
        positive, negative = (tuple(task.templates.answers[pool]) for pool in ("positive", "negative"))
        return lambda answer: _value(parse_binary(answer, positive=positive, negative=negative))
    if isinstance(label, MulticlassLabel):
        return lambda answer: _value(parse_class(answer, label.classes))
    if isinstance(label, MultilabelLabel):
        if are_ec_numbers(label.classes):
            return lambda answer: parse_ec_numbers(answer, label.classes, parents=parents)
        return lambda answer: parse_labels(answer, label)
    if isinstance(label, RegressionLabel):
        return lambda answer: _value(parse_number(answer))
    if isinstance(label, MultiRegressionLabel):
        return lambda answer: parse_numbers(answer, label.outputs)
    return parse_text


def _said(answer: str) -> tuple[str, bool]:
    """What follows the thinking, blank where an answer is still thinking at its end, and whether it thought at all."""
    _, closed, after = answer.rpartition("</think>")
    return ("" if not closed and "<think>" in answer else after), bool(closed)


def _value(number: float | None) -> Value | None:
    return None if number is None else (number,)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _sides(text: str) -> set[float]:
    return {side for clause in _CLAUSE.split(text.lower()) if (side := _side(clause)) is not None}


def _side(clause: str) -> float | None:
    words = _WORD.findall(clause)
    negations = sum(word in _NEGATIVE or word.endswith("n't") for word in words)
    if "yes" in words and negations:
        return None
    if negations:
        return float(negations % 2 == 0)
    return 1.0 if not _POSITIVE.isdisjoint(words) else None


def _negated(text: str, place: int) -> bool:
    """Whether a negation stands before `place` in the same clause."""
    clause_so_far = _CODING.sub("", _CLAUSE.split(text[:place].lower())[-1])
    return not _NEGATIVE.isdisjoint(_WORD.findall(clause_so_far))


def _names_in(text: str, names: list[str], folded: frozenset[str]) -> Iterator[tuple[int, bool]]:
    """Index of each name in the text, in its order, and whether it is negated; a name that is `folded` stands for
    itself in any case and with a space for an underscore."""
    places = {_spaced(name) if name in folded else name: index for index, name in enumerate(names)}
    alternatives = "|".join(
        f"(?i:{re.escape(name).replace('_', '[_ ]')})" if name in folded else re.escape(name)
        for name in sorted(names, key=len, reverse=True)
    )
    for match in re.finditer(rf"(?<![A-Za-z0-9_])(?:{alternatives})(?![A-Za-z0-9_])", text):
        found = match.group()
        yield places[found] if found in places else places[_spaced(found)], _negated(text, match.start())


def _spaced(name: str) -> str:
    return name.lower().replace("_", " ")


def _parents(number: str) -> list[str]:
    """Partial numbers above an Enzyme Commission number: 2.7.7.-, 2.7.-.- and 2.-.-.- of 2.7.7.7."""
    fields = number.split(".")
    return [".".join([*fields[:kept], *["-"] * (4 - kept)]) for kept in (3, 2, 1) if fields[kept - 1] != "-"]
