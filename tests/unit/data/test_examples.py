"""Readers: every record is read, set aside with a reason, or the file is refused with what, where and how to mend."""

import gzip
import hashlib
import json
import random

import pyarrow as pa
import pytest

from polysome.config import ConfigurationError, DataError, validate
from polysome.data import shares
from polysome.data.clean import reverse_complement
from polysome.data.duplicates import example_keys
from polysome.data.examples import FileReport, read_examples, read_file
from polysome.data.schema import EXAMPLES
from polysome.specs import Dataset

TASK = {
    "name": "t",
    "title": "t",
    "label": {"kind": "binary"},
    "metric": "mcc",
    "tag": "[t]",
    "hint": "h",
    "templates": {"questions": ["{sequence} ?"], "answers": {"positive": ["Yes."], "negative": ["No."]}},
}


def spec(path, *, file_format="csv", task=True, **changes):
    file = {"uri": str(path), **changes.pop("file", {})}
    content = {
        "name": "d",
        "title": "d",
        "homepage": "h",
        "licence": "l",
        "citation": "c",
        "format": file_format,
        "molecules": [{"type": "dna"}],
        "splits": {"train": [file]},
        "task": TASK if task else None,
        **changes,
    }
    return validate(Dataset, content, where="test")


def write(path, text):
    path.write_text(text)
    return path


def test_csv_rows_become_examples(tmp_path):
    path = write(tmp_path / "a.csv", "label,sequence\n1,acgt\n0,TTTT\n")
    table = read_examples(spec(path, file={"subset": "s", "rows": 2}), "train")
    assert table["sequences"].to_pylist() == [["ACGT"], ["TTTT"]]
    assert table["label"].to_pylist() == [[1.0], [0.0]]
    assert table["id"].to_pylist() == ["d/train/s/0", "d/train/s/1"]


def test_checksum_is_of_the_decompressed_content(tmp_path):
    content = b"sequence,label\nACGT,1\n"
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(content))
    good = {"sha256": hashlib.sha256(content).hexdigest()}
    assert read_examples(spec(path, file=good), "train").num_rows == 1
    with pytest.raises(DataError, match="sha256"):
        read_examples(spec(path, file={"sha256": "0" * 64}), "train")


def test_fasta_is_windowed_without_loss(tmp_path):
    path = write(tmp_path / "a.fa", ">one x\nACGT\nAC\n>two\nGG\n>three\n" + "ACGTACGTAC" * 10 + "\n")
    table = read_examples(spec(path, file_format="fasta", task=False, window=64), "train")
    assert ["".join(s) for s in table["sequences"].to_pylist()][:2] == ["ACGTAC", "GG"]
    assert "".join(s[0] for s in table["sequences"].to_pylist()[2:]) == "ACGTACGTAC" * 10
    assert table["id"].to_pylist()[2:] == ["d/train/-/2/0", "d/train/-/2/1"]


def test_unusable_records_are_set_aside_and_bounded(tmp_path):
    path = write(tmp_path / "a.csv", "sequence,label\n" + "ACGT,1\n" * 9 + "ACXT,0\n")
    loose, report = spec(path, maximum_quarantined=0.2), FileReport("x")
    (batch,) = read_file(loose, "train", loose.files("train")[0], report)
    assert batch.quarantine.to_pylist()[0]["record"] == 9
    assert "'X' at position 3" in batch.quarantine.to_pylist()[0]["reason"]
    assert (report.records, report.quarantined) == (10, 1)
    with pytest.raises(DataError, match="1 of 10 records cannot be used"):
        read_examples(spec(path), "train")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sequence,label\nACGT,2\n", "neither '1' nor '0'"),
        ("seq,label\nACGT,1\n", "no column 'sequence'"),
        ("sequence,label\nACGT\n", "1 cells where there are 2 columns"),
        ("sequence,label\n", "no record"),
        ("", "empty file"),
        ('sequence,label\n"ACGT,1\n', "a quote that is not closed"),
        ("version https://git-lfs.github.com/spec/v1\noid x\n", "git-lfs pointer"),
        ("<!DOCTYPE html><html>404</html>", "HTML"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, problem):
    with pytest.raises(DataError) as error:
        read_examples(spec(write(tmp_path / "a.csv", text)), "train")
    assert problem in str(error.value)
    assert str(tmp_path) in error.value.where
    assert error.value.fix


def test_truncated_archive_is_named(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"sequence,label\n" + b"ACGT,1\n" * 5000)[:-20])
    with pytest.raises(DataError, match="gzip archive is cut short"):
        read_examples(spec(path), "train")


def test_declared_row_count_is_checked(tmp_path):
    path = write(tmp_path / "a.csv", "sequence,label\nACGT,1\n")
    with pytest.raises(DataError, match="1 records read, 2 declared"):
        read_examples(spec(path, file={"rows": 2}), "train")


def test_missing_file_names_the_mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYSOME_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(DataError) as error:
        read_examples(spec("https://example.org/x/a.csv"), "train")
    assert str(tmp_path / "mirror/example.org/x/a.csv") in str(error.value)


def test_shares_part_a_file_by_groups_of_similar_sequences(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYSOME_CACHE", str(tmp_path / "cache"))
    draw = random.Random(0)
    families = ["".join(draw.choices("ACGT", k=80)) for _ in range(40)]
    # Of every family its first member, one with a base changed, and the reverse complement.
    members = [[text, text[:40] + "A" + text[41:], reverse_complement(text)] for text in families]
    rows = "".join(f"{member},1\n" for family in members for member in family)
    path = write(tmp_path / "a.csv", "sequence,label\n" + rows)
    halves = [
        {s for (s,) in read_examples(spec(path, file={"share": share}), "train")["sequences"].to_pylist()}
        for share in ([0, 0.5], [0.5, 1])
    ]
    assert halves[0] | halves[1] == {member for family in members for member in family}
    assert not halves[0] & halves[1]
    for family in members:
        assert set(family) <= halves[0] or set(family) <= halves[1]
    assert 20 < len(halves[0]) < 100


def test_spec_refuses_a_template_without_its_sequence(tmp_path):
    wrong = {**TASK, "templates": {**TASK["templates"], "questions": ["Is there one?"]}}
    with pytest.raises(ConfigurationError, match="needs exactly"):
        validate(Dataset, spec("x").model_dump(exclude={"task"}) | {"task": wrong}, where="test")


def test_a_long_record_is_windowed_in_memory_that_does_not_grow_with_the_windows(tmp_path):
    """A chromosome: a thousand windows of one record must not copy the record a thousand times."""
    path = write(tmp_path / "chromosome.fa", ">1\n" + "ACGTTGCA" * 1_000_000 + "\n>2\n" + "N" * 5000 + "\n")
    whole = spec(path, file_format="fasta", task=False, window=2000, maximum_n=0.5, molecules=[BASES])
    report = FileReport("x")
    before = pa.total_allocated_bytes()
    batches = list(read_file(whole, "train", whole.files("train")[0], report))
    assert pa.total_allocated_bytes() - before < 100_000_000
    assert sum(batch.examples.num_rows for batch in batches) == 4000
    assert report.changed["left out, more than 0.5 of the letters are N"] == 3


BASES = {"type": "dna", "maximum_length": 100_000_000}


def test_a_preview_reads_on_until_it_has_examples_and_judges_no_file_by_its_head(tmp_path):
    rows = ["ACGT,1,a"] * 9000 + ["TTTT,0,b"] * 3
    path = write(tmp_path / "a.csv", "sequence,label,part\n" + "".join(row + "\n" for row in rows))
    late = spec(path, adapter=[{"step": "where", "column": "part", "values": ["b"]}])
    assert read_examples(late, "train", limit=2)["sequences"].to_pylist() == [["TTTT"]] * 2
    path = write(tmp_path / "b.csv", "sequence,label\n" + "AC-T,1\n" * 50 + "ACGT,1\n" * 9000)
    gapped = spec(path)
    head = read_file(gapped, "train", gapped.files("train")[0], FileReport("x"), limit=100, block_bytes=1 << 12)
    assert sum(batch.quarantine.num_rows for batch in head) == 50
    assert read_examples(gapped, "train").num_rows == 9000


def test_shares_follow_the_records_that_are_there_now(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYSOME_CACHE", str(tmp_path / "cache"))
    draw = random.Random(1)
    rows = "".join(f"{''.join(draw.choices('ACGT', k=60))},1,{'ab'[number % 2]}\n" for number in range(80))
    path = write(tmp_path / "a.csv", "sequence,label,part\n" + rows)
    half = {"share": [0, 0.5]}
    assert 10 < read_examples(spec(path, file=half), "train").num_rows < 70
    steps = {"adapter": [{"step": "where", "column": "part", "values": ["b"]}]}
    cached = read_examples(spec(path, file=half | steps), "train")
    monkeypatch.setenv("POLYSOME_CACHE", str(tmp_path / "other"))
    shares._split_places.cache_clear()
    assert cached == read_examples(spec(path, file=half | steps), "train")


@pytest.mark.parametrize(
    ("dev", "problem"),
    [
        ({"uri": "a", "share": [0.4, 1]}, "both take a part"),
        ({"uri": "b", "share": [0.5, 1]}, None),
    ],
)
def test_splits_that_divide_one_file_take_parts_that_do_not_overlap(dev, problem):
    splits = {"train": [{"uri": "a", "share": [0, 0.5]}], "dev": [dev]}
    if problem is None:
        assert spec("x", splits=splits)
        return
    with pytest.raises(ConfigurationError, match=problem):
        spec("x", splits=splits)


def test_files_of_one_split_must_be_divided_alike():
    files = [{"uri": "a", "share": [0, 0.5]}, {"uri": "b", "share": [0, 0.4]}]
    with pytest.raises(ConfigurationError, match="different shares"):
        spec("x", splits={"train": files})
    splits = {
        "train": [{"uri": "a", "share": [0, 0.5]}],
        "dev": [{"uri": "a", "share": [0.5, 1]}, {"uri": "b", "share": [0.5, 1]}],
    }
    with pytest.raises(ConfigurationError, match="both must divide all of them"):
        spec("x", splits=splits)


def test_instruction_rows_bring_their_own_wordings_and_need_both(tmp_path):
    rows = [
        {"input": "<rna>ACGU<rna> Which?", "output": "tRNA.", "label": "tRNA", "task": "NoncodingRNAFamily-x"},
        {"input": "", "output": "Yes.", "label": None, "task": "t"},
        {"input": "<dna>ACGT</dna> Is it?", "output": None, "label": None, "task": "t"},
    ]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    more = {"instructions": {}, "molecules": [], "maximum_quarantined": 1}
    given = spec(path, file_format="jsonl", task=False, **more)
    (batch,) = read_file(given, "train", given.files("train")[0], FileReport("x"))
    (row,) = batch.examples.to_pylist()
    assert (row["question"], row["sequences"], row["answer"]) == ("{rna} Which?", ["ACGU"], "tRNA.")
    assert row["subset"] == "NoncodingRNAFamily-x"
    assert batch.quarantine["reason"].to_pylist() == ["no question", "no answer"]
    # The same sequence asked another question is another example.
    asked = batch.examples.set_column(6, "question", pa.array(["{rna} Is it?"]))
    assert (example_keys(batch.examples, ()) != example_keys(asked.cast(EXAMPLES), ())).all()


def test_a_share_that_holds_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYSOME_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "a.csv", "sequence,label\nACGTACGTACGT,1\n")
    (place,) = {shares.group_shares(pa.array([["ACGTACGTACGT"]]), spec(path).molecules)[0]}
    there, elsewhere = [place - 1e-6, place + 1e-6], [0, place / 2]
    assert read_examples(spec(path, file={"share": there}), "train").num_rows == 1
    with pytest.raises(DataError, match="holds none of its 1 records"):
        read_examples(spec(path, file={"share": elsewhere}), "train")


def test_the_first_record_that_cannot_be_used_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "sequence,label\nACGT,1\nAC-T,1\nACGT,0\n")
    with pytest.raises(DataError) as caught:
        read_examples(spec(path), "train")
    assert "'-' at position 3" in caught.value.what
    assert caught.value.where.endswith("record 1 (counted from 0)")
