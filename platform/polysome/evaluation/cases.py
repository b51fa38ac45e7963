"""Case studies: answers to the same questions, with and without reasoning, in; telling ones beside each other out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polysome.evaluation.details import Details, Told


@dataclass(frozen=True)
class Answerer:
    """A system under its name, and what its answers to one task tell."""

    name: str
    reasons: bool
    """Whether its prompt asks for reasoning."""
    details: Details


@dataclass(frozen=True)
class Case:
    """One question and every system's answer to it."""

    kind: str
    """What it is an example of."""
    id: str
    answers: tuple[tuple[str, Told], ...]
    """By the system's name."""


def case_studies(systems: Sequence[Answerer]) -> list[Case]:
    """One question (A-148) of each kind among those whose answers were kept whole; none where no system reasons.

    Kinds go by the first system that reasons and the first that does not. A right answer from wrong reasoning is one
    with a claim that does not hold.
    """
    reasoning = next((item for item in systems if item.reasons), None)
    plain = next((item for item in systems if not item.reasons), None)
    if reasoning is None:
        return []
    found: dict[str, Case] = {}
    for row, told in reasoning.details.told.items():
        if all(row in item.details.told for item in systems):
            answers = tuple((item.name, item.details.told[row]) for item in systems)
            kind = _kind(told, plain.details.told[row] if plain else None)
            found.setdefault(kind, Case(kind, row, answers))
    return [found[kind] for kind in _KINDS if kind in found]


def soundness(systems: Sequence[Answerer]) -> Iterator[str]:
    """For each system whose answers hold claims that can be checked, how reasoning and answer go together."""
    for item in systems:
        if (found := item.details.reasoned) is not None:
            yield (
                f"{item.name}: {found.checked:,} answers make claims that can be checked against the molecules; in "
                f"{found.sound:,} all of them hold. {found.right_unsound:,} of the {found.right:,} right ones among "
                "them come from wrong reasoning."
            )


_UNSOUND = "Right answer, wrong reasoning"
_ALONE, _LOST = "Right with reasoning, wrong without", "Wrong with reasoning, right without"
_RIGHT, _WRONG = "Right", "Wrong"
_KINDS = (_UNSOUND, _ALONE, _LOST, _RIGHT, _WRONG)


def _kind(reasoning: Told, plain: Told | None) -> str:
    if reasoning.right and reasoning.false_claims:
        return _UNSOUND
    if plain is not None and plain.right != reasoning.right:
        return _ALONE if reasoning.right else _LOST
    return _RIGHT if reasoning.right else _WRONG
