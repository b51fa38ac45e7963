"""The declared protein tasks (A-30 to A-34), their stand-ins, and the real files they are read from."""

import csv
import gzip
import os
from pathlib import Path

import pytest
from declared_checks import check_answers, check_shares, check_wordings
from declared_reading import mirrored, official_binary, read_whole

from polysome import specs
from polysome.data.examples import read_examples

NAMES = [
    "ec_number",
    "ec_clean",
    "stability",
    "fluorescence",
    "solubility",
    "solubility_sample",
    "solubility_esol",
    "thermostability",
]
RELEASED = {
    "FunctionEC-FunctionEC": 15551,
    "Stability-Stability": 53614,
    "Fluorescence-Fluorescence": 21446,
    "Solubility-Solubility": 62478,
    "Thermostability-Thermostability": 5056,
}
"""Rows per sub-task of the released stage-2 file (A-2, A-30 to A-34)."""


@pytest.mark.parametrize(
    ("name", "task"),
    list(zip(["ec_number", "stability", "fluorescence", "solubility", "thermostability"], RELEASED, strict=True)),
)
def test_subsets_give_the_released_sub_task_names_and_sizes(name, task):
    spec = specs.dataset(name)
    assert {f"{spec.task.name}-{file.subset}" for files in spec.splits.values() for file in files} == {task}
    assert spec.task.paper_rows["train"] == RELEASED[task]
    assert task in spec.task.aliases


def test_the_classes_are_the_538_of_deepfri():
    label = specs.dataset("ec_number").task.label
    assert len(label.classes) == 538
    assert sum(name.endswith(".-") for name in label.classes) == 161
    assert "2.7.7.n1" in label.classes  # F-14
    found = label.decode("EC3.2.2.9,3.2.2.-")
    assert sorted(label.encode(found).split(",")) == ["EC3.2.2.-", "EC3.2.2.9"]


@pytest.mark.parametrize("name", NAMES)
def test_wordings_are_many_distinct_and_say_what_the_label_holds(name):
    spec = specs.dataset(name)
    check_wordings(spec)
    check_answers(spec.task)
    check_shares(spec)


@pytest.mark.parametrize("name", ["solubility", "solubility_sample"])
def test_the_authors_rule_decides_every_answer_too(name):
    for pool, side in (("positive", True), ("negative", False)):
        for text in specs.dataset(name).task.templates.answers[pool]:
            assert official_binary(text) == side, text


def test_melting_temperatures_are_divided_as_flip_has_them(tmp_path):
    """Columns of FLIP: sequence, target, set, validation, the last empty outside of validation."""
    path = tmp_path / "human_cell.csv"
    rows = [
        ("MA", 40.5, "train", ""),
        ("MC", 41, "train", "True"),
        ("MD", 42, "test", ""),
        ("ME", 43, "train", "False"),
    ]
    lines = [f"{start * 15},{target},{part},{validation}" for start, target, part, validation in rows]
    path.write_text("\n".join(["sequence,target,set,validation", *lines]) + "\n")
    spec = specs.dataset("thermostability")
    found = {}
    for split in ("train", "dev", "test"):
        file = spec.splits[split][0].model_copy(update={"uri": str(path), "share": None})
        labels = read_examples(spec.model_copy(update={"splits": {split: [file]}}), split)["label"].to_pylist()
        found[split] = [label[0] for label in labels]
    assert found == {"train": [40.5, 43.0], "dev": [41.0], "test": [42.0]}


@pytest.mark.data
@pytest.mark.parametrize(("name", "split", "number"), mirrored(NAMES))
def test_a_file_in_the_mirror_reads_whole(name, split, number):
    examples, report = read_whole(name, split, number)
    declared = specs.dataset(name).splits[split][number]
    assert report.records == declared.rows
    assert examples.num_rows == report.records - report.quarantined
    assert not report.quarantined, report.reasons


@pytest.mark.data
def test_enzyme_chains_have_the_numbers_of_the_annotation_file():
    folder = Path(os.environ["POLYSOME_MIRROR"], "protein_ec", "deepfri")
    annotated = dict(
        line.split("\t") for line in (folder / "nrPDB-EC_2020.04_annot.tsv").read_text().splitlines()[3:] if line
    )
    wanted = (folder / "nrPDB-EC_2020.04_test.txt").read_text().split()
    records = (folder / "nrPDB-EC_2020.04_test_sequences.fasta").read_text()[1:].split("\n>")
    expected = {}
    for record in records:
        header, _, lines = record.partition("\n")
        if (chain := header.split()[0]) in wanted:
            expected["".join(lines.split())] = set(annotated[chain].split(","))
    classes = specs.dataset("ec_number").task.label.classes
    examples, _ = read_whole("ec_number", "test")
    for row in examples.select(["sequences", "label"]).to_pylist():
        assert {classes[int(index)] for index in row["label"]} == expected[row["sequences"][0]]


@pytest.mark.data
@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("test", "test")])
def test_the_fluorescence_split_is_remade_as_tape_has_it(split, part):
    folder = Path(os.environ["POLYSOME_MIRROR"], "protein_fluorescence", "derived")
    with gzip.open(folder / f"tape_fluorescence_{part}.csv.gz", "rt") as file:
        expected = {row["seq"]: float(row["label"]) for row in csv.DictReader(file)}
    examples, _ = read_whole("fluorescence", split)
    found = {row["sequences"][0]: row["label"][0] for row in examples.select(["sequences", "label"]).to_pylist()}
    assert found.keys() == expected.keys()
    assert all(abs(found[sequence] - expected[sequence]) < 1e-6 for sequence in found)


@pytest.mark.data
def test_solubility_labels_lie_beside_their_sequences():
    for split, ones in (("dev", 2897), ("test", 1000)):
        examples, _ = read_whole("solubility", split)
        assert sum(row[0] for row in examples["label"].to_pylist()) == ones
