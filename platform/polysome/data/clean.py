"""Alphabet rules per molecule: one raw sequence in, the cleaned sequence or the reason for refusing it out."""

from polysome.specs import MoleculeType

_IUPAC = "RYSWKMBDHVN"
ALPHABETS: dict[MoleculeType, str] = {
    "dna": "ACGT" + _IUPAC,
    "rna": "ACGU" + _IUPAC,
    "protein": "ACDEFGHIKLMNPQRSTVWY" + "BJOUXZ",
}
"""Characters a cleaned sequence may hold: bases with IUPAC codes; the 20 amino acids with B J O U X Z."""

_DELETE = {molecule: str.maketrans("", "", letters) for molecule, letters in ALPHABETS.items()}


class Refused(ValueError):
    """The sequence cannot be used; the message is the reason, `kind` the reason without what varies from record to
    record, for counting."""

    def __init__(self, reason: str, kind: str) -> None:
        super().__init__(reason)
        self.kind = kind


def clean(sequence: str, molecule: MoleculeType) -> str:
    """Upper-case (soft masks are dropped), T read as U in RNA, a protein's final stop removed.

    Raises:
        Refused: the sequence is empty, or holds a character outside the molecule's alphabet.
    """
    sequence = sequence.strip().upper()
    if molecule == "rna":
        sequence = sequence.replace("T", "U")
    elif molecule == "protein":
        sequence = sequence.removesuffix("*")
    if not sequence:
        raise Refused("empty sequence", "empty sequence")
    strange = sequence.translate(_DELETE[molecule])
    if strange:
        position = sequence.index(strange[0])
        raise Refused(
            f"{strange[0]!r} at position {position + 1} is not in the {molecule} alphabet",
            f"{strange[0]!r} is not in the {molecule} alphabet",
        )
    return sequence


_COMPLEMENT = str.maketrans("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN")


def reverse_complement(sequence: str) -> str:
    """The reverse complement of upper-case DNA, IUPAC codes included; U is read as T."""
    return sequence.translate(_COMPLEMENT)[::-1]
