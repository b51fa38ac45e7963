"""The audit: planted faults are counted where they are, and the published leaks of real data are found."""

import csv
import gzip
import os
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from polysome.data.audit import AuditReport, audit, compare, markdown
from polysome.data.clean import reverse_complement
from polysome.data.schema import EXAMPLES
from polysome.specs import Molecule

DNA = Molecule(type="dna")
PROTEIN = Molecule(type="protein")

ONE = "ACGTTGCAACGGTATTACGAGGCATTCAGGACCTAGTTACCGATGCAAGTCCTTAGGCATACGGTTCAAC"
TWO = "TTGACCGGTATCCGAGTTACAGGCTTAACCGTAGGATCCTTGAACGTACCGGATTTCAGCCATAGGCTAA"
THREE = "GGCATATCCGTTAGACCTGAACTTGGCCATAGTTCAGGATACCGTTTACGGCAATTCCGAGTCTAGACAT"
NEAR_ONE = ONE[:20] + "A" + ONE[21:40] + "C" + ONE[41:]


def table(sequences, subset=None):
    rows = len(sequences)
    columns = {"sequences": [[sequence] for sequence in sequences], "subset": [subset] * rows}
    columns |= {"id": [""] * rows, "dataset": ["d"] * rows, "split": ["s"] * rows}
    return pa.table([columns.get(field.name, [None] * rows) for field in EXAMPLES], schema=EXAMPLES)


def overlaps(splits, molecule=DNA, **options):
    found = compare(splits, [molecule], method="own", **options)
    return {(item.split, item.other): item for item in found.found}, found.near_method


def test_rows_are_equal_on_the_other_strand_or_near():
    test = pa.concat_tables([table([ONE, TWO, ONE], "a"), table([reverse_complement(THREE), NEAR_ONE], "b")])
    found, method = overlaps({"train": table([ONE, THREE, THREE]), "test": test})
    item = found["test", "train"]
    assert (item.exact, item.exact_distinct, item.other_strand, item.near) == (2, 1, 1, 4)
    assert item.exact_by_subset == {"a": 2}
    assert "identity 0.8" in method
    found, method = overlaps({"train": table([ONE, THREE]), "test": test}, near=False)
    assert (found["test", "train"].near, method) == (None, "")


def test_what_only_train_joins_is_near_train_alone():
    """Parts of one split, divided by leakage group, are not near each other because train holds what lies between."""
    middle = ONE[:30] + "".join("CATG"["ACGT".index(letter)] for letter in ONE[30:42]) + ONE[42:]
    far = middle[:50] + "".join("CATG"["ACGT".index(letter)] for letter in middle[50:62]) + middle[62:]
    splits = {"train": table([middle]), "dev": table([ONE]), "stage3_pool": table([far])}
    found, _ = overlaps(splits)
    assert found["dev", "train"].near == found["stage3_pool", "train"].near == 1
    assert found["stage3_pool", "dev"].near == 0


@pytest.fixture
def catalog(tmp_path, monkeypatch):
    """A catalog with the data set `planted_faults` and the corpus `genome`, whose faults are known."""
    monkeypatch.setenv("POLYSOME_DATASETS", str(tmp_path))
    monkeypatch.delenv("POLYSOME_MIRROR", raising=False)
    (tmp_path / "train.csv").write_text(
        f"sequence,label\n{ONE},1\n{ONE.lower()},0\n{reverse_complement(ONE)},1\n{TWO},1\n{TWO[:-1]}N,0\n{TWO[:9]}!,0\n"
    )
    (tmp_path / "other.csv").write_text(f"sequence,label\n{ONE},0\n")
    (tmp_path / "test.csv").write_text(f"sequence,label\n{TWO},1\n{THREE},0\nACGTACGT,0\n")
    (tmp_path / "genome.fa").write_text(f">one\n{'A' * 90}{reverse_complement(THREE)}{'G' * 90}\n>two\n{'C' * 100}\n")
    common = {"version": 1, "homepage": "", "licence": "", "citation": "", "title": ""}
    faults = {
        "name": "planted_faults",
        "format": {"kind": "csv"},
        "molecules": [{"type": "dna"}],
        "maximum_quarantined": 0.5,
        "splits": {
            "train": [
                {"uri": str(tmp_path / "train.csv"), "subset": "a"},
                {"uri": str(tmp_path / "other.csv"), "subset": "b"},
            ],
            "test": [{"uri": str(tmp_path / "test.csv"), "subset": "a"}],
        },
        "task": {
            "name": "faults",
            "title": "",
            "label": {"kind": "binary"},
            "metric": "mcc",
            "tag": "[faults]",
            "hint": "",
            "templates": {"questions": ["{sequence}?"], "answers": {"positive": ["Yes."], "negative": ["No."]}},
        },
    }
    genome = {
        "name": "genome",
        "format": {"kind": "fasta"},
        "molecules": [{"type": "dna"}],
        "window": 100,
        "splits": {"train": [{"uri": str(tmp_path / "genome.fa")}]},
    }
    for spec in (faults, genome):
        (tmp_path / f"{spec['name']}.yaml").write_text(yaml.safe_dump(common | spec))


@pytest.mark.usefixtures("catalog")
def test_planted_faults_are_counted():
    report = audit("planted_faults", ["genome"], method="own")
    (found,) = report.datasets
    train = found.splits[0]
    assert (train.records, train.rows, train.quarantined) == (7, 6, 1)
    assert train.reasons == {"'!' is not in the dna alphabet": 1}
    assert train.changed == {"upper-cased": 1}
    # Another subset may ask something else of the same sequence, so its label is no conflict.
    assert (train.duplicates, train.duplicates_across_subsets, train.reverse_complement_duplicates) == (1, 1, 1)
    assert (train.conflicting, train.conflicting_rows) == (1, 2)
    assert train.classes == {"0": 3, "1": 3}
    assert train.unusual_letters == {"sequence": {"N": 1}}
    assert (train.lengths["sequence"].minimum, train.lengths["sequence"].maximum) == (70, 70)
    (overlap,) = found.overlaps
    assert (overlap.split, overlap.other, overlap.exact, overlap.other_strand, overlap.near) == (
        "test",
        "train",
        1,
        0,
        1,
    )
    (corpus,) = found.corpora
    # The sequence lies across the border of two windows.
    assert (corpus.corpus, corpus.split, corpus.texts, corpus.whole) == ("genome", "test", 2, True)
    assert (corpus.contained, corpus.not_searched) == (1, 1)


@pytest.mark.usefixtures("catalog")
def test_the_report_is_json_and_prints_as_tables():
    report = audit("planted_faults", ["genome"], method="own", corpus_limit=1)
    assert AuditReport.model_validate_json(report.model_dump_json()) == report
    assert not report.datasets[0].corpora[0].whole
    text = markdown(report)
    assert "| test | train | 1 of 3 | 1 | 0 | 1 | a 1 |" in text
    tables = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(set(tables)) == 3
    assert len(tables) == 4 + 3 + 3


def read(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as handle:
        return [row[0] for row in csv.reader(handle)][1:]


@pytest.mark.data
def test_published_leaks_are_found():
    """As stated beside the files: distinct test sequences that stand in train, and in dev (AMB-3)."""
    mirror = Path(os.environ["POLYSOME_MIRROR"])
    folder = mirror / "dna_core_promoter"
    parts = {"train": {}, "dev": {}, "test": {}}
    for name, ending in (("all", ".gz"), ("notata", ".gz"), ("tata", "")):
        files = {"train": f"train.csv{ending}", "dev": "dev.csv", "test": "test.csv"}
        for split, file in files.items():
            parts[split][name] = table(read(folder / f"prom_core_{name}" / file), name)
    for name, rows, in_train, in_dev in (("all", 5_920, 42, 8), ("notata", 5_307, 29, 3), ("tata", 613, 16, 2)):
        found, _ = overlaps({split: tables[name] for split, tables in parts.items()}, near=False)
        assert parts["test"][name].num_rows == rows
        assert (found["test", "train"].exact_distinct, found["test", "dev"].exact_distinct) == (in_train, in_dev)
    both = {split: pa.concat_tables([tables["notata"], tables["tata"]]) for split, tables in parts.items()}
    found, _ = overlaps(both, near=False)
    assert (found["test", "train"].exact_distinct, found["test", "train"].exact) == (45, 46)
    # One of them stands in the test of notata twice.
    assert found["test", "train"].exact_by_subset == {"notata": 30, "tata": 16}
    stability = mirror / "protein_stability"
    files = {"train": "stability.train.csv.gz", "test": "stability.test.csv"}
    proteins = {split: table(read(stability / file)) for split, file in files.items()}
    found, _ = overlaps(proteins, PROTEIN, near=False)
    assert found["test", "train"].exact == 26
