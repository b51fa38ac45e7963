"""Protected splits: whether an example, or a stretch of a corpus, is held by a split that must stay unseen (AMB-3)."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from polysome.data.clean import reverse_complement

_SEED = 16


class Protection(Protocol):
    """Answers which protected split holds an example."""

    def holder(self, sequences: list[str]) -> str | None:
        """`dataset/split`, or None when the example may be trained on."""


class Equal:
    """An example is held when all its sequences equal those of a protected one."""

    def __init__(self, held: Mapping[str, Sequence[list[str]]]) -> None:
        self._holders = {_digest(sequences): name for name, examples in held.items() for sequences in examples}

    def holder(self, sequences: list[str]) -> str | None:
        """See `Protection`."""
        return self._holders.get(_digest(sequences))


class Contained:
    """A corpus text is held when a protected sequence, or the reverse complement of a DNA one, stands anywhere in it.

    Texts are scanned once; a sequence is found by its first letters. A protected sequence that a window cut in two is
    not found.
    """

    def __init__(self, held: Mapping[str, Sequence[list[str]]]) -> None:
        self._by_start: dict[str, list[tuple[str, str]]] = {}
        for name, examples in held.items():
            for sequence in {sequence for sequences in examples for sequence in sequences}:
                for wording in {sequence, reverse_complement(sequence)} if _is_dna(sequence) else {sequence}:
                    self._by_start.setdefault(wording[:_SEED], []).append((wording, name))
        self._starts = sorted({len(start) for start in self._by_start})

    def holder(self, sequences: list[str]) -> str | None:
        """See `Protection`."""
        for text in sequences:
            for size in self._starts:
                for position in range(len(text) - size + 1):
                    for wording, name in self._by_start.get(text[position : position + size], ()):
                        if text.startswith(wording, position):
                            return name
        return None


def _is_dna(sequence: str) -> bool:
    return not sequence.strip("ACGTN")


def _digest(sequences: list[str]) -> bytes:
    return hashlib.blake2b("\t".join(sequences).encode(), digest_size=16).digest()
