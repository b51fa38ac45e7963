"""The declared tasks of two molecules (A-40 to A-43), their stand-ins, and the real files they are read from."""

import csv
import gzip
import os
from collections import Counter
from pathlib import Path

import pytest
from declared_checks import check_answers, check_shares, check_wordings
from declared_reading import mirrored, official_binary, read_whole

from polysome import specs
from polysome.data.crop import window

BINARY = [
    "antibody_antigen",
    "antibody_antigen_cov",
    "rna_protein_interaction",
    "rpi_benchmarks",
    "enhancer_promoter_interaction",
    "promoter_promoter_demo",
]
NUMBERS = ["sirna_efficacy", "sirna_oligoformer", "antibody_antigen_ic50"]
CELL_LINES = {"GM12878": 3051, "K562": 2833, "HeLa-S3": 2513, "HUVEC": 2164, "NHEK": 1892, "IMR90": 1835}
CLASSES = {
    ("antibody_antigen", "train"): (12228, 12615),
    ("antibody_antigen", "test"): (2564, 1987),
    ("antibody_antigen_cov", "train"): (43200, 77430),
    ("antibody_antigen_cov", "test"): (1920, 2010),
    ("rpi_benchmarks", "RPI488"): (245, 243),
    ("rpi_benchmarks", "RPI1807"): (1436, 1801),
    ("promoter_promoter_demo", "test"): (98, 2),
}
"""Negative and positive records of the files as published."""


def test_subsets_give_the_released_sub_task_names():
    assert specs.dataset("antibody_antigen").task.name == "antibody_antigen"
    assert specs.dataset("rna_protein_interaction").task.name == "rna_protein_interaction"
    for name, subsets in (
        ("antibody_antigen", {None}),
        ("rna_protein_interaction", {None}),
        ("sirna_efficacy", {"sirnaEfficiency"}),
        ("enhancer_promoter_interaction", set(CELL_LINES)),
    ):
        spec = specs.dataset(name)
        for files in spec.splits.values():
            assert {file.subset for file in files} == subsets
    # the six cell lines of the released file add up to the paper's row.
    assert sum(CELL_LINES.values()) == specs.dataset("enhancer_promoter_interaction").task.paper_rows["train"]
    # F-7: all pairs of NPInter10412.
    assert sum(specs.dataset("rna_protein_interaction").task.paper_rows.values()) == 20824


def test_two_tasks_have_no_reasoning():
    """A-82: reasoning is to be transferred to them."""
    for name in ("antibody_antigen", "rna_protein_interaction"):
        assert not specs.dataset(name).task.reasoning
    for name in ("enhancer_promoter_interaction", "sirna_efficacy"):
        assert specs.dataset(name).task.reasoning


@pytest.mark.parametrize("name", BINARY + NUMBERS)
def test_wordings_are_many_distinct_and_say_what_the_label_holds(name):
    spec = specs.dataset(name)
    check_wordings(spec)
    check_answers(spec.task)
    if name != "enhancer_promoter_interaction":
        check_shares(spec)


@pytest.mark.parametrize("name", BINARY)
def test_the_authors_rule_decides_every_answer_too(name):
    for pool, side in (("positive", True), ("negative", False)):
        for text in specs.dataset(name).task.templates.answers[pool]:
            assert official_binary(text) == side, text


def test_one_twentieth_of_the_pairs_that_do_not_interact_is_divided():
    """In step with the pairs that do, of which there are a twentieth as many (A-42)."""
    spec = specs.dataset("enhancer_promoter_interaction")
    for split, files in spec.splits.items():
        for file in files:
            pairs = [step.values[0] for step in file.adapter if step.step == "where"]
            thinned = [step.fraction for step in file.adapter if step.step == "sample"]
            assert (pairs, thinned) in ((["1"], []), (["0"], [0.05]))
            assert (file.share is None) == (split == "test")
    assert len(spec.task.templates.conditioned) >= 10  # AMB-12


def test_what_is_kept_of_a_long_pair():
    """AMB-14: the head of a protein, the centre of DNA, of a target the place that the siRNA pairs with."""
    spec = specs.dataset("antibody_antigen")
    assert window(["ACDEF", "GHIKL"], spec, 1, 2) == "GH"
    spec = specs.dataset("enhancer_promoter_interaction")
    assert window(["ACGTA", "TTACC"], spec, 1, 3) == "TAC"
    spec = specs.dataset("sirna_efficacy")
    assert window(["UUGGC", "ACACAC" + "GCCAA" + "TTTTTTTTTTTTTT"], spec, 1, 5) == "GCCAA"


@pytest.mark.data
@pytest.mark.parametrize(("name", "split", "number"), mirrored(BINARY + NUMBERS))
def test_a_file_in_the_mirror_reads_whole(name, split, number):
    examples, report = read_whole(name, split, number)
    declared = specs.dataset(name).splits[split][number]
    assert report.records == declared.rows
    # Ten pairs of RPI369 and 25 of RPI2241 have a tRNA with letters that are no nucleotide.
    assert report.quarantined == {"RPI369": 10, "RPI2241": 25}.get(declared.subset, 0), report.reasons
    assert examples.num_rows == report.records - report.quarantined
    if name in BINARY and not report.quarantined:
        negative, positive = CLASSES[name, declared.subset or split]
        assert Counter(label[0] for label in examples["label"].to_pylist()) == {0.0: negative, 1.0: positive}


@pytest.mark.data
@pytest.mark.parametrize(("split", "number", "subset"), [("train", 0, "Hu"), ("test", 0, "Taka"), ("test", 1, "Mix")])
def test_a_good_sirna_leaves_little_mrna(split, number, subset):
    """The assays' own class (y = 1: inhibition of 0.7 or more) tells the direction; the guide pairs with the target,
    which is written as DNA without padding."""
    folder = Path(os.environ["POLYSOME_MIRROR"], "sirna_efficacy", "unnorm")
    with open(folder / f"{subset}.csv") as file:
        efficient = [row["y"] == "1" for row in csv.DictReader(file)]
    examples, _ = read_whole("sirna_oligoformer", split, number)
    remaining = [label[0] for label in examples["label"].to_pylist()]
    best = [value for value, good in zip(remaining, efficient, strict=True) if good]
    others = [value for value, good in zip(remaining, efficient, strict=True) if not good]
    assert max(best) <= min(others) + 1e-9 or sum(best) / len(best) < 0.6 * sum(others) / len(others)
    pairs = str.maketrans("ACGU", "TGCA")
    for guide, target in examples["sequences"].to_pylist():
        assert guide[::-1].translate(pairs) in target


@pytest.mark.data
def test_one_hot_pairs_are_decoded_in_the_order_of_their_channels():
    path = Path(os.environ["POLYSOME_MIRROR"], "enhancer_promoter", "derived", "deeptact_demo_PP_pairs.csv.gz")
    with gzip.open(path, "rt") as file:
        expected = [[row["promoter1"], row["promoter2"]] for row in csv.DictReader(file)]
    examples, _ = read_whole("promoter_promoter_demo", "test")
    assert examples["sequences"].to_pylist() == expected
