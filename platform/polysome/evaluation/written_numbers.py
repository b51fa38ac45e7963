"""Numbers in text: found where they start, and put in the order of a task's outputs by the names beside them."""

import math
import re

from polysome.evaluation.official import six_digits
from polysome.specs import Value

_NUMBER = re.compile(
    r"(?<![\w.])(?<![A-Za-z_]-)"
    r"((?:(?<!\d)-)?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?)"
    r"(?![\w'\u2019\u2032]|\.\d)",
    re.IGNORECASE,
)
HYPHENS = str.maketrans({"\u2212": "-", "\u2013": "-"})
"""Minus sign and en dash."""
_LABELLING = re.compile(r"[\s:=*\"'-]*")
_ALIASES = {"hk": "housekeeping", "dev": "developmental", "gain": "ON minus OFF"}
"""What outputs are called in hints and answers (A-11, A-133)."""


def numbers(text: str) -> list[float]:
    """All numbers in a text, each to six significant digits (A-100, F-3 strict).

    Exponents and thousands commas are read; a hyphen after a digit is a range, not a minus; digits that belong to a
    name or a primed position (`H3K4`, `m6A`, `IL-2`, `5'`) are none.
    """
    return [value for _, value in numbers_at(text)]


def numbers_at(text: str) -> list[tuple[int, float]]:
    """The numbers of a text and where they start."""
    found = ((match.start(), match.group(1)) for match in _NUMBER.finditer(text.translate(HYPHENS)))
    values = ((start, six_digits(written.replace(",", ""))) for start, written in found)
    return [(start, value) for start, value in values if math.isfinite(value)]


def assign(text: str, found: list[tuple[int, float]], outputs: list[str]) -> Value | None:
    """The numbers `found` in a text, one for each output, put in the order of `outputs`.

    Where a name stands before (or after) every number, and all outputs are named, the names say which number is whose.
    In any other text the numbers count in their order; but `HK: 0.5, HK: 0.7`, names right before the numbers that are
    not those of all outputs, is None.
    """
    count = len(outputs)
    wordings = sorted(((word, place) for place, name in enumerate(outputs) for word in _wordings(name)), reverse=True)
    alternatives = "|".join(f"({word})" for word, _ in wordings)
    names = [
        (match, wordings[match.lastindex - 1][1])
        for match in re.finditer(rf"(?<![A-Za-z0-9_])(?:{alternatives})(?![A-Za-z0-9_])", text)
        if match.lastindex
    ]
    places = [(match.start(), "n") for match, _ in names] + [(start, "v") for start, _ in found]
    pattern = "".join(kind for _, kind in sorted(places))
    order = [place for _, place in names]
    if pattern in ("nv" * count, "vn" * count, "n" * count + "v" * count) and sorted(order) == list(range(count)):
        return tuple(found[order.index(place)][1] for place in range(count))
    between = [text[match.end() : start] for (match, _), (start, _) in zip(names, found, strict=False)]
    labelled = pattern == "nv" * count and all(_LABELLING.fullmatch(gap) for gap in between)
    return None if labelled else tuple(value for _, value in found)


def _wordings(output: str) -> list[str]:
    """Patterns of an output's names: `ON_OFF` also as `ON/OFF`; one in small letters in any case."""
    written = re.escape(output).replace("_", "[_/ -]")
    if output != output.lower():
        return [written]
    return [f"(?i:{word})" for word in (written, _ALIASES.get(output)) if word]
