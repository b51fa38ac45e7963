"""Warnings: each for what it is about, and none for a plain record with a plain answer."""

import pyarrow as pa
import pytest

from polysome.evaluation.profile import profiles
from polysome.serving.prediction import read_record, task_spec
from polysome.serving.warnings import of_answer, of_record

RNA, PAIR, PROTEIN = (
    task_spec(name) for name in ("planted_ncrna_family", "planted_binding", "planted_thermostability")
)


def codes(spec, raw, rows=()):
    known = profiles(spec, pa.table({"sequences": list(rows)})) if rows else ()
    found = of_record(spec, raw, read_record(spec, raw, where="x"), known)
    return {caution.code: caution.message for caution in found}


def test_letters_are_warned_of():
    assert codes(RNA, "ACGUACGUACGUACGUACGU") == {}
    assert codes(RNA, "acgtacgtacgtacgtacgt") == {}
    assert "T was read as U" in codes(RNA, "ACGUACGTACGUACGUACGU")["mixed_alphabet"]
    assert codes(RNA, "ACGUNACGUACGUACGUACGU") == {}
    assert codes(RNA, "ACGUNNACGUACGUACGUACG")["ambiguous"].startswith("10%")
    assert list(codes(PROTEIN, "ACGTACGTACGTACGTACGTACGT")) == ["other_molecule"]
    assert codes(PAIR, {"rna": "NNNU", "protein": "MKV"})["ambiguous"].startswith("rna: 75%")


def test_rows_unlike_the_evaluated_ones_are_warned_of():
    rows = [["ACGUGCUAAGCUUAGCCGAU"], ["GGCUAACGUUAGCAUCGAUC"], ["AUCGGCUAUCGAUUCGAGCU"]]
    assert codes(RNA, rows[0][0], rows) == {}
    found = codes(RNA, "A" * 24, rows)
    assert found["length"] == "24 letters; the 3 evaluated rows have 20"
    assert "unlike that of 99% of the 3 evaluated rows" in found["composition"]


@pytest.mark.parametrize(
    ("spec", "text", "label", "value", "code"),
    [
        (PAIR, "No, it does not.", "no", None, None),
        (PAIR, "No, it does not.", "yes", None, "contradiction"),
        (PAIR, "Perhaps.", "yes", None, "unparsable"),
        (PROTEIN, "It melts at 50 degrees.", None, 50.0, None),
        (PROTEIN, "It melts at 500 degrees.", None, None, "out_of_range"),
        (PROTEIN, "", None, None, "unparsable"),
    ],
)
def test_words_are_held_against_the_label(spec, text, label, value, code):
    assert [caution.code for caution in of_answer(spec, text, label, value)] == ([code] if code else [])
