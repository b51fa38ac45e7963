"""Answers as text while they grow: where a stop string ends them, and what of them can be told already."""

from collections.abc import Sequence

from polysome.config import DataError


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there was one."""
    places = [place for place in map(text.find, stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


class Pieces:
    """Cuts a growing text into pieces that, joined, are the text that `cut` leaves of it in the end.

    Held back are what may become a stop string, and a character of which not all bytes are there yet.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._told = ""

    def push(self, text: str) -> str:
        """What can be told now that the whole text so far is `text`; may be empty."""
        text, stopped = cut(text, self._stop)
        return self._tell(text if stopped else text[: self._certain(text.rstrip("\ufffd"))])

    def finish(self, text: str) -> str:
        """The rest, once `text` is the whole text.

        Raises:
            DataError: the text does not begin with what was told: the tokenizer changes text when more follows.
        """
        text, _ = cut(text, self._stop)
        if not text.startswith(self._told):
            raise DataError(
                "the tokenizer changes what it decoded when more tokens follow, so that its text has no pieces",
                fix="generate the answer as a whole",
            )
        return self._tell(text)

    def _tell(self, text: str) -> str:
        if len(text) <= len(self._told) or not text.startswith(self._told):
            return ""
        piece = text[len(self._told) :]
        self._told = text
        return piece

    def _certain(self, text: str) -> int:
        """Characters before the longest end of `text` that a stop string begins with."""
        held = (
            size
            for stop in self._stop
            for size in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:size])
        )
        return len(text) - max(held, default=0)
