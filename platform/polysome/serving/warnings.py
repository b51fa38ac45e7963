"""Warnings: what stands against believing an answer, from its record and from its words, in sentences."""

from collections.abc import Sequence

from polysome.config import Config
from polysome.data.clean import PLAIN
from polysome.evaluation.parsers import parser
from polysome.evaluation.profile import USUAL, Profile
from polysome.specs import Dataset, RegressionLabel

AMBIGUOUS = 0.05
"""Share of ambiguity codes from which on they are warned of."""
_NUCLEOTIDES = frozenset("ACGTUN")
_LONG_ENOUGH = 20
"""Letters from which on a protein of A, C, G, T, U and N alone is not one by chance."""


class Caution(Config):
    """One warning."""

    code: str
    """`ambiguous`, `mixed_alphabet`, `other_molecule`, `length`, `composition`, `unparsable`, `out_of_range` or
    `contradiction`."""
    message: str


def of_record(
    spec: Dataset, raw: str | dict[str, str], sequences: Sequence[str], profiles: Sequence[Profile]
) -> list[Caution]:
    """What is odd about a record.

    Args:
        raw: the record as it came.
        sequences: cleaned, in the order of the spec's molecules.
        profiles: of the rows that the model was evaluated on, in the same order; empty where they are not known.
    """
    found = []
    for place, (molecule, sequence) in enumerate(zip(spec.molecules, sequences, strict=True)):
        given = (raw if isinstance(raw, str) else raw[molecule.role]).upper()
        name = "" if len(spec.molecules) == 1 else f"{molecule.role}: "
        share = sum(letter not in PLAIN[molecule.type] for letter in sequence) / len(sequence)
        if share >= AMBIGUOUS:
            found.append(Caution(code="ambiguous", message=f"{name}{share:.0%} of the letters are ambiguity codes"))
        if molecule.type == "rna" and "T" in given and "U" in given:
            found.append(Caution(code="mixed_alphabet", message=f"{name}both T and U stand in it; T was read as U"))
        if molecule.type == "protein" and len(sequence) >= _LONG_ENOUGH and _NUCLEOTIDES.issuperset(sequence):
            told = f"{name}it has no letters but those of nucleotides; the task is about proteins"
            found.append(Caution(code="other_molecule", message=told))
        if profiles:
            found += _unlike(sequence, profiles[place], name)
    return found


def _unlike(sequence: str, profile: Profile, name: str) -> list[Caution]:
    found = []
    if not profile.shortest <= len(sequence) <= profile.longest:
        seen = f"{profile.shortest} to {profile.longest}" if profile.shortest < profile.longest else profile.longest
        told = f"{name}{len(sequence)} letters; the {profile.rows} evaluated rows have {seen}"
        found.append(Caution(code="length", message=told))
    surprise = profile.surprise(sequence)
    # Not of plain letters at all where it is nan, which is told by their share.
    if surprise < profile.low or surprise > profile.high:
        told = (
            f"{name}its composition is unlike that of {USUAL:.0%} of the {profile.rows} evaluated rows: mean surprise "
            f"{surprise:.2f} bits, theirs is {profile.low:.2f} to {profile.high:.2f}"
        )
        found.append(Caution(code="composition", message=told))
    return found


def of_answer(spec: Dataset, text: str, label: str | None, value: float | None) -> list[Caution]:
    """What is odd about an answer in words.

    Args:
        label: the most probable one by the scores; None for a regression.
        value: of a regression, as it was read in the words.
    """
    assert spec.task is not None
    told = parser(spec.task)(text)
    regression = isinstance(spec.task.label, RegressionLabel)
    if not isinstance(told, tuple) or not told:
        what = "number" if regression else "label"
        return [Caution(code="unparsable", message=f"the answer in words says no {what}")]
    if regression:
        said = f"the answer in words says {told[0]:g}, which is outside of what the label may be"
        return [Caution(code="out_of_range", message=said)] if value is None else []
    said = spec.task.label.encode(told)
    if said == label:
        return []
    return [Caution(code="contradiction", message=f"the answer in words says {said}, the scores say {label}")]
