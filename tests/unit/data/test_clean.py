"""Alphabet rules: what is wrong is named with its position, nothing is changed in silence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.data.clean import Refused, clean, reverse_complement


@pytest.mark.parametrize(
    ("raw", "molecule", "expected"),
    [
        ("acgtN", "dna", "ACGTN"),
        (" ACGT\r\n", "dna", "ACGT"),
        ("ACGT", "rna", "ACGU"),
        ("acguryswkmbdhvn", "rna", "ACGURYSWKMBDHVN"),
        ("mkv*", "protein", "MKV"),
        ("MXUOBZJ", "protein", "MXUOBZJ"),
    ],
)
def test_cleaned(raw, molecule, expected):
    assert clean(raw, molecule) == expected


@pytest.mark.parametrize(
    ("raw", "molecule", "reason"),
    [
        ("", "dna", "empty"),
        ("ACGU", "dna", "'U' at position 4 is not in the dna alphabet"),
        ("AC-GT", "dna", "'-' at position 3"),
        ("MK*V", "protein", "'*' at position 3"),
        ("ACGX", "rna", "'X' at position 4"),
    ],
)
def test_refused_with_position(raw, molecule, reason):
    with pytest.raises(Refused, match="empty" if reason == "empty" else None) as refusal:
        clean(raw, molecule)
    assert reason in str(refusal.value)


@given(st.text("ACGTRYSWKMBDHVN", min_size=1))
def test_reverse_complement_is_its_own_inverse(sequence):
    assert reverse_complement(reverse_complement(sequence)) == sequence


def test_reverse_complement_of_known_sequence():
    assert reverse_complement("AACGTTNR") == "YNAACGTT"
