"""Protected splits: what a test holds is found, as a whole example or anywhere in a corpus text (AMB-3)."""

import pickle

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.data.clean import reverse_complement
from polysome.data.protection import Contained, Equal

TEST = "ACGTTGCAACGGTATTACGAGGCA"


def names(protection, examples):
    holders = protection.holders(pa.array(examples, pa.list_(pa.string())))
    return [None if holder < 0 else protection.names[holder] for holder in holders.tolist()]


def test_equal_needs_all_molecules_in_order():
    protection = Equal({"pairs/test": [["ACGU", "MKV"], []]})
    asked = [["ACGU", "MKV"], ["ACGU", "MKL"], ["MKV", "ACGU"], ["ACGUMKV"], ["ACGU"], ["ACGU", "MKV", ""], []]
    assert names(protection, asked) == ["pairs/test", *[None] * 6]


def test_equal_tells_strands_apart_unless_asked():
    held = {"a/test": [[TEST]], "b/test": [["MKV"], [reverse_complement(TEST)]]}
    asked = [[TEST], [reverse_complement(TEST)], ["MKV"], ["VKM"]]
    assert names(Equal(held), asked) == ["a/test", "b/test", "b/test", None]
    assert names(Equal(held, both_strands=True), asked) == ["a/test", "a/test", "b/test", None]


@given(st.lists(st.lists(st.text("ACGN", max_size=20), max_size=2), max_size=8), st.data())
def test_equal_holds_what_a_set_holds(examples, data):
    cut = data.draw(st.integers(0, len(examples)))
    held = [example for example in examples[:cut] if example]
    expected = [None if example not in held else "x/test" for example in examples]
    assert names(Equal({"x/test": held}), examples) == expected


def test_no_protected_split_holds_nothing():
    assert names(Equal({}), [[TEST]]) == names(Contained({}), [[TEST]]) == [None]
    assert names(Equal({"a/test": []}), [[TEST]]) == names(Contained({"a/test": []}), [[TEST]]) == [None]


def test_contained_finds_either_strand_anywhere():
    protection = Contained({"t/test": [[TEST]], "t/dev": [["GGGGCCCCTTTTAAAAGCGC"]]})
    texts = {
        "CC" + TEST + "G": "t/test",
        reverse_complement(TEST): "t/test",
        TEST.replace("T", "U"): "t/test",
        "A" * 30 + "GGGGCCCCTTTTAAAAGCGC": "t/dev",
        "GGGGCCCCTTTTAAAAGCGC" + TEST: "t/test",
        TEST[:-1]: None,
        TEST[1:]: None,
        TEST[:16] + "T" * 16: None,
        "": None,
    }
    assert names(protection, [[text] for text in texts]) == list(texts.values())
    # Two texts side by side do not hold what stands across their border.
    assert names(protection, [[TEST[:12]], [TEST[12:]], [TEST[:12], TEST[12:]]]) == [None] * 3


def test_a_protein_has_no_reverse_complement():
    protection = Contained({"p/test": [["MKVLAAGG"], ["MKVLAAGGMKVLAAGGMKVLAAGG"]]})
    assert names(protection, [["WWMKVLAAGGWW"], [reverse_complement("MKVLAAGG")]]) == ["p/test", None]


def test_short_sequences_are_not_searched_for_and_counted():
    protection = Contained({"t/test": [["TATA"], [TEST]], "p/test": [["MKV"]]})
    assert names(protection, [["CCTATACC"], ["AMKVA"], [TEST]]) == [None, None, "t/test"]
    assert protection.too_short == {"t/test": 1, "p/test": 1}
    assert names(Contained({"t/test": [["TATA"]]}, minimum_nucleotides=4), [["CCTATACC"]]) == ["t/test"]


def test_found_names_the_protected_sequences():
    protection = Contained({"t/test": [[TEST], ["A" * 8], [TEST[::-1]]], "t/dev": [[TEST]]})
    first, short, second, again = protection.sequence_numbers.tolist()
    assert short == -1
    assert first == again != second
    assert protection.found([["G" + TEST], [TEST]]).tolist() == [first]


@pytest.mark.parametrize("alphabet", ["AC", "ACGTN", "MKVLAX"])
@given(data=st.data())
def test_contained_finds_what_a_plain_search_finds(alphabet, data):
    held = data.draw(st.lists(st.text(alphabet, min_size=3, max_size=24), min_size=1, max_size=5))
    texts = data.draw(st.lists(st.text(alphabet, max_size=40), min_size=1, max_size=5))
    place = data.draw(st.integers(0, len(held) - 1))
    texts.append(data.draw(st.text(alphabet, max_size=9)) + held[place] + data.draw(st.text(alphabet, max_size=9)))
    protection = Contained(
        {str(index): [[sequence]] for index, sequence in enumerate(held)}, minimum_nucleotides=3, minimum_residues=3
    )
    bases = "ACGTN" if set(alphabet) <= set("ACGTN") else "ACGT"

    def wordings(sequence):
        return {sequence, reverse_complement(sequence)} if not set(sequence) - set(bases) else {sequence}

    expected = [
        next((str(i) for i, sequence in enumerate(held) if any(word in text for word in wordings(sequence))), None)
        for text in texts
    ]
    assert names(pickle.loads(pickle.dumps(protection)), [[text] for text in texts]) == expected
