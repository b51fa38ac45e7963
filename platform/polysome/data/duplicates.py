"""Duplicates: one 64-bit key per example in, which examples repeat or contradict an earlier one out (AMB-3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polysome.data.hashing import (
    Hashes,
    ListColumn,
    StringColumn,
    both_strand_hashes,
    combine,
    hash_strings,
    list_text_of,
    mix,
    text_of,
    within,
)
from polysome.specs import Molecule


@dataclass(frozen=True)
class Duplicates:
    """What equal keys say of the examples.

    Attributes:
        first_of: int64 [n], the first row with the same key.
        duplicate: bool [n], an earlier row has the same key.
        conflict: bool [n], some row with the same key has another label.
    """

    first_of: npt.NDArray[np.int64]
    duplicate: npt.NDArray[np.bool_]
    conflict: npt.NDArray[np.bool_]

    @property
    def conflicting_keys(self) -> int:
        """Number of distinct keys whose rows do not agree in their label."""
        return int(np.count_nonzero(self.conflict & ~self.duplicate))


def keys(sequences: ListColumn, molecules: Sequence[Molecule] = (), *, both_strands: bool = False) -> Hashes:
    """uint64 [n]: equal for examples that have the same sequences in the same order.

    Two different examples among 10 million have the same key with a probability of 3e-6.

    Args:
        sequences: list<string> [n], cleaned sequences in the order of the molecules.
        molecules: their declarations; none: what they are is not known, and no other strand is looked at.
        both_strands: each DNA molecule has the same key as its reverse complement.
    """
    text, offsets = list_text_of(sequences)
    if not both_strands:
        return combine(hash_strings(text), offsets)
    dna = np.array([molecule.type == "dna" for molecule in molecules], np.bool_)
    place = within(np.diff(offsets))
    is_dna = np.zeros(text.rows, np.bool_)
    is_dna[place < len(dna)] = dna[place[place < len(dna)]]
    return combine(both_strand_hashes(text, is_dna), offsets)


def example_keys(examples: pa.Table, molecules: Sequence[Molecule], *, both_strands: bool = False) -> Hashes:
    """uint64 [n]: equal for examples (schema EXAMPLES) with the same sequences, and the same question where it came
    with them."""
    found = keys(examples["sequences"], molecules, both_strands=both_strands)
    asked = examples["question"]
    return found if asked.null_count == len(asked) else found ^ mix(hash_strings(text_of(asked)))


def label_keys(labels: ListColumn, answers: StringColumn | None = None) -> Hashes:
    """uint64 [n]: equal for equal labels (list<float64>, null allowed) and equal given answers."""
    chunked = labels if isinstance(labels, pa.ChunkedArray) else pa.chunked_array([pa.array(labels)])
    parts = []
    for chunk in chunked.cast(pa.list_(pa.float64())).chunks:
        counts = chunk.value_lengths().fill_null(0).to_numpy()
        # Adding zero makes one zero of both.
        numbers = chunk.flatten().to_numpy(zero_copy_only=False) + 0.0
        parts.append(combine(numbers.view(np.uint64), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)))
    found = np.concatenate([np.zeros(0, np.uint64), *parts])
    return found if answers is None else found ^ mix(hash_strings(text_of(answers)))


def find_duplicates(keys: Hashes, label_keys: Hashes | None = None) -> Duplicates:
    """Compare all rows by their keys.

    Args:
        keys: uint64 [n], see `keys`.
        label_keys: uint64 [n], see `label_keys`; none: nothing is in conflict.
    """
    rows = len(keys)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.ones(rows, np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(new)
    group = np.cumsum(new) - 1
    first = order[starts]
    first_of = np.empty(rows, np.int64)
    first_of[order] = first[group]
    conflict = np.zeros(rows, np.bool_)
    if label_keys is not None and rows:
        differs = label_keys != label_keys[first_of]
        conflict = np.bincount(first_of[differs], minlength=rows)[first_of] > 0
    return Duplicates(first_of, first_of != np.arange(rows), conflict)
