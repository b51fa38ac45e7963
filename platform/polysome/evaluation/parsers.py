"""Strict parsers: an answer's text in, a label or None (unparsable) out (AMB-9).

What is parsed is the final answer: the text after `</think>`, and within it first what follows the last "answer is",
"Answer:" or "Final answer:" (A-106). Words count whole, negation turns a word around, and what does not say clearly one
thing is unparsable, which measures as wrong and lowers the parse rate.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from polysome.specs import BinaryLabel, MulticlassLabel, Task

Parser = Callable[[str], float | None]
"""An answer as the task's label (1.0 or 0.0, class index, or number); None when it says none, or not clearly one."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MARKER = re.compile(r"(?:\bfinal answer|\banswer)\s*(?:\*\*)?\s*(?:is\b\s*:?|:)", re.IGNORECASE)
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
    "insoluble unlikely"
)
_CODING = re.compile(r"\bnon[- ]coding\b")
"""A kind of RNA, not a negation."""
_NUMBER = re.compile(
    r"(?<![\w.])(?<![A-Za-z_]-)"
    r"((?:(?<!\d)-)?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?)"
    r"(?![\w'\u2019\u2032]|\.\d)",
    re.IGNORECASE,
)
_HYPHENS = str.maketrans({"\u2212": "-", "\u2013": "-"})
"""Minus sign and en dash."""
SIGNIFICANT_DIGITS = 6


@dataclass(frozen=True)
class Segment:
    """A stretch of an answer to parse."""

    text: str
    final: bool
    """Whether the model marked it as its final answer."""


def segments(answer: str) -> list[Segment]:
    """What to parse, in order: the marked final answer if there is one, then all that follows the thinking.

    An answer that is still thinking at its end has no segment.
    """
    _, closed, after = answer.rpartition("</think>")
    if not closed and "<think>" in answer:
        return []
    text = after if closed else answer
    found = [Segment(text, bool(closed))] if text.strip() else []
    markers = list(_MARKER.finditer(text))
    if markers and (marked := text[markers[-1].end() :]).strip():
        found.insert(0, Segment(marked, True))
    return found


def parse_binary(answer: str, *, positive: tuple[str, ...] = (), negative: tuple[str, ...] = ()) -> float | None:
    """1.0 or 0.0, or None (A-101, F-4).

    In order: an answer that is word for word one of the task's own answer wordings (`positive`, `negative`) speaks for
    its pool; a leading "yes" or "no" that stands alone (`Yes, …`, `No.`) decides; else every clause that takes a side
    must take the same. A clause with an odd number of negations is negative, otherwise positive if it holds a
    positive word. An expression of doubt makes the answer unparsable.
    """
    wordings = {_plain(text): 1.0 for text in positive} | {_plain(text): 0.0 for text in negative}
    for segment in segments(answer):
        if (known := wordings.get(_plain(segment.text))) is not None:
            return known
        text = segment.text.lower().replace("\u2019", "'").replace("no doubt", "surely")
        leading = _LEADING.match(text)
        if leading:
            return float(leading.group(1) == "yes")
        if _UNCERTAIN.search(text):
            return None
        sides = {side for clause in _CLAUSE.split(text) if (side := _side(clause)) is not None}
        if len(sides) == 1:
            return sides.pop()
        if sides:
            return None
    return None


def parse_class(answer: str, classes: list[str]) -> float | None:
    """Index of the class that the answer names, or None (A-103, F-5).

    Names count whole, longest first, so that `Intron_gpII` never names `Intron_gpI`; in any case, and with a space for
    an underscore, unless only these tell two names apart; and not after a negation in the same clause. Where several
    different names stand, the last one counts if the model marked a final answer, else none.
    """
    for segment in segments(answer):
        named = _classes_in(segment.text, classes)
        if len(set(named)) == 1 or (named and segment.final):
            return float(named[-1])
        if named:
            return None
    return None


def numbers(text: str) -> list[float]:
    """All numbers in a text, each to six significant digits (A-100, F-3 strict).

    Exponents and thousands commas are read; a hyphen after a digit is a range, not a minus; digits that belong to a
    name or a primed position (`H3K4`, `m6A`, `IL-2`, `5'`) are none.
    """
    text = text.translate(_HYPHENS)
    return [float(f"{float(found.replace(',', '')):.{SIGNIFICANT_DIGITS}g}") for found in _NUMBER.findall(text)]


def parse_number(answer: str) -> float | None:
    """The first number of the marked final answer, or of the answer where none is marked (A-100)."""
    for segment in segments(answer):
        if found := numbers(segment.text):
            return found[0]
    return None


def parser(task: Task) -> Parser:
    """The strict parser of a task."""
    label = task.label
    if isinstance(label, BinaryLabel):
        positive, negative = (tuple(task.templates.answers[pool]) for pool in ("positive", "negative"))
        return lambda answer: parse_binary(answer, positive=positive, negative=negative)
    if isinstance(label, MulticlassLabel):
        return lambda answer: parse_class(answer, label.classes)
    return parse_number


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _side(clause: str) -> float | None:
    words = _WORD.findall(clause)
    negations = sum(word in _NEGATIVE or word.endswith("n't") for word in words)
    if "yes" in words and negations:
        return None
    if negations:
        return float(negations % 2 == 0)
    return 1.0 if not _POSITIVE.isdisjoint(words) else None


def _classes_in(text: str, classes: list[str]) -> list[int]:
    """Indices of the classes that the text names and does not negate, in its order."""
    distinct = len({_spaced(name) for name in classes}) == len(classes)
    fold = _spaced if distinct else str
    indices = {fold(name): index for index, name in enumerate(classes)}
    longest_first = sorted(classes, key=len, reverse=True)
    alternatives = "|".join(re.escape(name).replace("_", "[_ ]" if distinct else "_") for name in longest_first)
    flags = re.IGNORECASE if distinct else 0
    found = []
    for match in re.finditer(rf"(?<![A-Za-z0-9_])(?:{alternatives})(?![A-Za-z0-9_])", text, flags):
        clause_so_far = _CODING.sub("", _CLAUSE.split(text[: match.start()].lower())[-1])
        if _NEGATIVE.isdisjoint(_WORD.findall(clause_so_far)):
            found.append(indices[fold(match.group())])
    return found


def _spaced(name: str) -> str:
    return name.lower().replace("_", " ")
