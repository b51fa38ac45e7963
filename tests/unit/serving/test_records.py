"""Files of records in, rows of answers out: FASTA, tables of any separator, damage told, formulas disarmed."""

import csv
import gzip
import io

import pytest

from polysome.config import DataError
from polysome.serving.prediction import Answered, Prediction, task_spec
from polysome.serving.records import Entry, answer_row, error_row, header, read_entries, written

ONE, TWO = task_spec("planted_promoter"), task_spec("planted_binding")
TOLD = Answered(task="planted_promoter", model="tiny", adapter="a@2", system_fingerprint="fp_0", calibration="")


def entries(tmp_path, content, spec=ONE):
    path = tmp_path / "in"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_entries(str(path), spec))


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_tables_are_read_by_role_whatever_separates_them(tmp_path, separator):
    content = "Protein,note,ID,rna\nMKV,x,first,ACGU\nMKL,y,,GGCC\n".replace(",", separator)
    assert entries(tmp_path, content, TWO) == [
        Entry("first", {"rna": "ACGU", "protein": "MKV"}),
        Entry("2", {"rna": "GGCC", "protein": "MKL"}),
    ]


def test_a_task_with_one_molecule_takes_fasta_and_a_column_named_sequence(tmp_path):
    assert entries(tmp_path, ">a b\nAC\nGT\n>\nGG\n") == [Entry("a", "ACGT"), Entry("2", "GG")]
    assert entries(tmp_path, "name,Sequence\na,ACGT\n") == [Entry("a", {"sequence": "ACGT"})]
    assert entries(tmp_path, gzip.compress(b"sequence\nACGT\n")) == [Entry("1", {"sequence": "ACGT"})]


def test_a_record_that_cannot_be_read_stands_in_its_place(tmp_path):
    found = entries(tmp_path, b"id,sequence\na,ACGT\nb,AC,GT\nc,\xff\nd,GGGG\n")
    assert [entry.id for entry in found] == ["a", "2", "3", "d"]
    assert [entry.raw is None for entry in found] == [False, True, True, False]
    assert "3 cells where there are 2 columns" in found[1].problem


@pytest.mark.parametrize(
    ("content", "spec", "told"),
    [
        ("id,seq\na,ACGT\n", ONE, "no column 'sequence'"),
        (">a\nACGT\n", TWO, "one sequence per record"),
        ("id,sequence\n", None, "not FASTA"),
    ],
)
def test_what_cannot_be_the_tasks_records_is_refused(tmp_path, content, spec, told):
    with pytest.raises(DataError, match=told):
        entries(tmp_path, content, spec)


def test_a_row_tells_everything_and_computes_nothing():
    prediction = Prediction(
        index=0,
        id="=HYPERLINK(1)",
        label="yes",
        probability=0.75,
        probabilities={"no": 0.25, "yes": 0.75},
        calibrated=True,
        text='@SUM(1+1), "yes"\n',
    )
    number = Prediction(index=1, id="-5", value=-2.5, interval=(-4.0, -1.0), text="+1")
    rows = [header(ONE), answer_row(ONE, TOLD, prediction), error_row(ONE, TOLD, "x", "-1 is no base")]
    text = written([*rows, answer_row(ONE, TOLD, number)])
    first, failed, second = csv.DictReader(io.StringIO(text))
    assert first["id"] == "'=HYPERLINK(1)"
    assert first["text"] == '\'@SUM(1+1), "yes"\n'
    assert (first["p_yes"], first["p_no"], first["calibrated"]) == ("0.75", "0.25", "true")
    assert (first["model"], first["adapter"], first["system_fingerprint"]) == ("tiny", "a@2", "fp_0")
    assert (second["id"], second["value"], second["interval_low"]) == ("'-5", "-2.5", "-4")
    assert (failed["label"], failed["error"], failed["task"]) == ("", "'-1 is no base", "planted_promoter")
