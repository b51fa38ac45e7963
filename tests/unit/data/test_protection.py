"""Protected splits: what a test holds is found, as a whole example or anywhere in a corpus text (AMB-3)."""

from polysome.data.clean import reverse_complement
from polysome.data.protection import Contained, Equal

TEST = "ACGTTGCAACGGTATTACGAGGCA"


def test_equal_needs_all_molecules():
    protection = Equal({"pairs/test": [["ACGU", "MKV"]]})
    assert protection.holder(["ACGU", "MKV"]) == "pairs/test"
    assert protection.holder(["ACGU", "MKL"]) is None
    assert protection.holder(["MKV", "ACGU"]) is None


def test_contained_finds_either_strand_anywhere():
    protection = Contained({"t/test": [[TEST]], "t/dev": [["GGGGCCCCTTTTAAAAGCGC"], ["TATA"]]})
    assert protection.holder(["CC" + TEST + "G"]) == "t/test"
    assert protection.holder([reverse_complement(TEST)]) == "t/test"
    assert protection.holder(["A" * 30 + "GGGGCCCCTTTTAAAAGCGC"]) == "t/dev"
    assert protection.holder(["CCTATACC"]) == "t/dev"
    assert protection.holder([TEST[:-1]]) is None
    assert protection.holder([TEST[:16] + "T" * 16]) is None


def test_a_protein_has_no_reverse_complement():
    protection = Contained({"p/test": [["MKVLAAGG"]]})
    assert protection.holder(["WWMKVLAAGGWW"]) == "p/test"
    assert protection.holder([reverse_complement("MKVLAAGG")]) is None
