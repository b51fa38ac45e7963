"""JSON answers: what closed models are asked to write, `{"answer": ...}`, in; the answer as plain text out (A-107)."""

import ast
import json
import re
from typing import Any

_OPENING = re.compile(r"\{")
_FLAT = re.compile(r"\{[^{}]{0,2000}\}")
_ANSWER = "answer"


def json_answer(text: str) -> str | None:
    """The answer that the first JSON object with a key `answer` (in any case) gives, in words; None without one.

    A list is written with commas and an empty one as `none`; an object as `name: value, ...` (E-4); true and false as
    yes and no. An object in Python's notation (single quotes) is read too, where no object stands inside it. What
    stands around the object, such as a code fence or an explanation, does not matter. An answer that is null or blank
    is none.
    """
    decoder = json.JSONDecoder()
    for opening in _OPENING.finditer(text):
        try:
            found, _ = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            found = _python_object(text, opening.start())
        if (answer := _answer_in(found)) is not None:
            return answer
    return None


def _python_object(text: str, start: int) -> Any:
    match = _FLAT.match(text, start)
    if match is None or _ANSWER not in match.group().lower():
        return None
    try:
        return ast.literal_eval(match.group())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _answer_in(found: Any) -> str | None:
    if not isinstance(found, dict):
        return None
    for key, value in found.items():
        if isinstance(key, str) and key.strip().lower() == _ANSWER:
            return _words(value).strip() or None
    return None


def _words(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple | set):
        return ", ".join(map(_words, value)) or "none"
    return str(value)
