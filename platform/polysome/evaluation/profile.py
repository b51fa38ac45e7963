"""Profiles: the evaluated rows in; what lengths and composition their molecules have out, to tell what is unlike them.

Composition is the mean surprise of a sequence's k-mers (of 3 bases, or 1 residue), in bits, under their frequencies in
the evaluated rows. It tells gross differences, low complexity or another source, and nothing subtle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from polysome.evaluation.features import ALPHABETS, kmer_counts
from polysome.specs import Dataset, MoleculeType

USUAL = 0.99
"""Share of the evaluated rows whose composition counts as usual."""
_LETTERS: dict[MoleculeType, int] = {"dna": 3, "rna": 3, "protein": 1}
_AT_ONCE = 1024
"""Sequences counted at a time: counting takes many times the memory of their letters."""


@dataclass(frozen=True)
class Profile:
    """One molecule of the evaluated rows."""

    role: str
    type: MoleculeType
    rows: int
    shortest: int
    longest: int
    bits: tuple[float, ...]
    """Surprise of every k-mer: -log2 of its frequency in the rows, in the order of the alphabet."""
    low: float
    high: float
    """Between these lies the mean surprise of the share USUAL of the rows."""
    example: str
    """The sequence of the first row."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "bits": list(self.bits)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Profile":
        """The profile that `to_json` wrote."""
        return cls(**{**content, "bits": tuple(content["bits"])})

    def surprise(self, sequence: str) -> float:
        """Mean surprise of the sequence's k-mers, bits; nan where it has none of plain letters."""
        return float(_surprises(_counts(self.type, [sequence]), np.array(self.bits))[0])


def profiles(spec: Dataset, table: pa.Table) -> tuple[Profile, ...]:
    """A profile of each molecule.

    Args:
        table: schema EXAMPLES, at least one row.
    """
    examples = table["sequences"].to_pylist()
    found = []
    for place, molecule in enumerate(spec.molecules):
        sequences = [sequences[place] for sequences in examples]
        lengths = [len(sequence) for sequence in sequences]
        counts = _counts(molecule.type, sequences)
        # One more of each, so that a k-mer which no row has is rare and not impossible.
        total = counts.sum(axis=0) + 1
        bits = np.round(-np.log2(total / total.sum()), 4)
        surprises = _surprises(counts, bits)
        known = surprises[np.isfinite(surprises)]
        # Of few rows all are usual.
        low = np.quantile(known, (1 - USUAL) / 2, method="lower") if len(known) else 0
        high = np.quantile(known, (1 + USUAL) / 2, method="higher") if len(known) else bits.max()
        found.append(
            Profile(
                role=molecule.role,
                type=molecule.type,
                rows=len(sequences),
                shortest=min(lengths),
                longest=max(lengths),
                bits=tuple(bits.tolist()),
                low=float(low),
                high=float(high),
                example=sequences[0],
            )
        )
    return tuple(found)


def _counts(molecule: MoleculeType, sequences: Sequence[str]) -> NDArray[np.float64]:
    """float64 [sequences, k-mers of the profile's length]."""
    longest = _LETTERS[molecule]
    found = np.zeros((len(sequences), len(ALPHABETS[molecule]) ** longest))
    for start in range(0, len(sequences), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        found[part] = kmer_counts(list(sequences[part]), molecule, longest)[:, -found.shape[1] :].toarray()
    return found


def _surprises(counts: NDArray[np.float64], bits: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.asarray(counts @ bits / counts.sum(axis=1))
