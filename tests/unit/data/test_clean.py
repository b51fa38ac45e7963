"""Alphabet rules: what is wrong is named with its position, nothing is changed in silence."""

import pickle
from collections import Counter
from itertools import product

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.data.clean import Refused, clean, clean_column, reverse_complement
from polysome.specs import Molecule

RULES = [
    Molecule(type=kind, ambiguous=ambiguous, gaps=gaps, stops=stops, minimum_length=2, maximum_length=9)
    for kind, ambiguous, gaps, stops in product(
        ("dna", "rna", "protein"), ("keep", "refuse"), ("refuse", "remove"), ("final", "remove", "refuse")
    )
]


@pytest.mark.parametrize(
    ("raw", "molecule", "expected"),
    [
        ("acgtN", "dna", "ACGTN"),
        (" ACGT\r\n", "dna", "ACGT"),
        ("ACGT", "rna", "ACGU"),
        ("acguryswkmbdhvn", "rna", "ACGURYSWKMBDHVN"),
        ("mkv*", "protein", "MKV"),
        ("MXUOBZJ", "protein", "MXUOBZJ"),
        ("A-C.g", Molecule(type="dna", gaps="remove"), "ACG"),
        ("M-KV*--", Molecule(type="protein", gaps="remove"), "MKV"),
        ("*MK*V*", Molecule(type="protein", stops="remove"), "MKV"),
        ("MUO", Molecule(type="protein", ambiguous="refuse"), "MUO"),
    ],
)
def test_cleaned(raw, molecule, expected):
    assert clean(raw, molecule) == expected


@pytest.mark.parametrize(
    ("raw", "molecule", "reason"),
    [
        ("", "dna", "empty sequence"),
        (" \n", "dna", "empty sequence"),
        ("*", "protein", "empty sequence"),
        ("ACGU", "dna", "'U' at position 4 is not in the dna alphabet"),
        ("AC-GT", "dna", "'-' at position 3 is not in the dna alphabet"),
        ("AC GT", "dna", "' ' at position 3 is not in the dna alphabet"),
        ("MK*V", "protein", "'*' at position 3 is not in the protein alphabet"),
        ("MK**", "protein", "'*' at position 3 is not in the protein alphabet"),
        ("ACGX", "rna", "'X' at position 4 is not in the rna alphabet"),
        ("ACG*", "dna", "'*' at position 4 is not in the dna alphabet"),
        # These letters have upper-case forms that are amino acids; they are still not sequences.
        ("MKß", "protein", "'ß' at position 3 is not in the protein alphabet"),
        ("MK\u0131", "protein", "'\u0131' at position 3 is not in the protein alphabet"),
        ("acgn", Molecule(type="dna", ambiguous="refuse"), "'N' at position 4 is ambiguous"),
        ("MKX", Molecule(type="protein", ambiguous="refuse"), "'X' at position 3 is ambiguous"),
        ("MK*", Molecule(type="protein", stops="refuse"), "'*' at position 3 is not in the protein alphabet"),
        ("A--C!", Molecule(type="dna", gaps="remove"), "'!' at position 5 is not in the dna alphabet"),
        (
            "ACG",
            Molecule(type="dna", role="probe", minimum_length=4, maximum_length=8),
            "probe length 3 is outside [4, 8]",
        ),
    ],
)
def test_refused_with_position(raw, molecule, reason):
    with pytest.raises(Refused) as refusal:
        clean(raw, molecule)
    assert str(refusal.value) == reason
    assert str(pickle.loads(pickle.dumps(refusal.value))) == reason


@given(
    st.lists(st.none() | st.text("ACGTUacgtuNnXxMk-.* \n\r", max_size=12) | st.text(max_size=4), max_size=12),
    st.sampled_from(RULES),
    st.sampled_from([pa.string(), pa.large_string()]),
)
def test_a_column_is_cleaned_as_its_rows_are(raws, molecule, kind):
    cleaned = clean_column(pa.array(["skipped", *raws], kind)[1:], molecule)
    for row, raw in enumerate(raws):
        try:
            expected = clean(raw or "", molecule)
        except Refused as refusal:
            expected, reason = None, (str(refusal), refusal.kind)
        else:
            reason = None
        assert cleaned.values[row].as_py() == expected
        found = cleaned.refused.get(row)
        assert (found and (str(found), found.kind)) == reason
    assert cleaned.values.type == pa.string()
    cleaned.values.validate(full=True)


def test_changes_are_counted_over_the_rows_that_are_kept():
    molecule = Molecule(type="rna", gaps="remove")
    raws = ["ACGU", "acgu", "aCGT", " ACGU\n", "A-C.GT", "ac" + " " * 20, "acg!", None]
    cleaned = clean_column(pa.chunked_array([raws[:3], raws[3:]], pa.string()), molecule)
    assert cleaned.changed == Counter({"upper-cased": 3, "T read as U": 2, "blanks removed": 2, "gaps removed": 1})
    assert cleaned.values.to_pylist() == ["ACGU", "ACGU", "ACGU", "ACGU", "ACGU", "AC", None, None]
    assert list(cleaned.refused) == [6, 7]
    stops = clean_column(pa.array(["MKV*", "MKV", "M*V"]), Molecule(type="protein"))
    assert stops.changed == Counter({"stops removed": 1})
    assert stops.refused[2].kind == "'*' is not in the protein alphabet"


@given(st.text("ACGTRYSWKMBDHVN", min_size=1))
def test_reverse_complement_is_its_own_inverse(sequence):
    assert reverse_complement(reverse_complement(sequence)) == sequence


def test_reverse_complement_of_known_sequence():
    assert reverse_complement("AACGTTNR") == "YNAACGTT"
