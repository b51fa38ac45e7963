"""Duplicates: equal, reverse-complement and contradicting examples, as a plain loop would find them."""

import csv
import gzip
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.data.clean import reverse_complement
from polysome.data.duplicates import find_duplicates, keys, label_keys
from polysome.specs import Molecule

DNA = Molecule(type="dna", role="promoter")
PROTEIN = Molecule(type="protein", role="protein")


@given(st.lists(st.tuples(st.text("AC", min_size=1, max_size=3), st.sampled_from([0.0, -0.0, 1.0])), max_size=20))
def test_as_a_plain_loop_finds_them(rows):
    found = find_duplicates(
        keys(pa.array([[sequence] for sequence, _ in rows], pa.list_(pa.string()))),
        label_keys(pa.array([[label] for _, label in rows], pa.list_(pa.float64()))),
    )
    sequences = [sequence for sequence, _ in rows]
    first = [sequences.index(sequence) for sequence in sequences]
    labels = {sequence: {label for other, label in rows if other == sequence} for sequence in sequences}
    assert found.first_of.tolist() == first
    assert found.duplicate.tolist() == [row != index for index, row in enumerate(first)]
    assert found.conflict.tolist() == [len(labels[sequence]) > 1 for sequence in sequences]
    assert found.conflicting_keys == sum(len(values) > 1 for values in labels.values())


def test_strands_count_only_for_dna_and_when_asked():
    examples = [["AACG", "MK"], [reverse_complement("AACG"), "MK"], ["AACG", "KM"], ["CGTT", "MK"]]
    column = pa.chunked_array([pa.array(examples[:1]), pa.array(examples[1:])])
    plain = keys(column, [DNA, PROTEIN])
    assert len(set(plain.tolist())) == 3
    assert plain[1] == plain[3]
    both = keys(column, [DNA, PROTEIN], both_strands=True)
    assert both[0] == both[1] == both[3] != both[2]
    # Without declarations, and for RNA, a strand is what it is.
    for molecules in ([], [Molecule(type="rna", role="a"), Molecule(type="rna", role="b")]):
        assert (keys(column, molecules, both_strands=True) == plain).all()


def test_the_border_between_molecules_counts():
    found = keys([["AC", "GT"], ["ACG", "T"], ["ACGT"], ["ACGT", ""], ["GT", "AC"], []])
    assert len(set(found.tolist())) == 6


def test_labels_and_answers():
    labels = pa.array([[1.0, 2.0], [2.0, 1.0], [1.0], [], None, [0.0], [-0.0]], pa.list_(pa.float64()))
    found = label_keys(labels)
    assert len(set(found[:4].tolist())) == 4
    assert found[5] == found[6] != found[3]
    nothing = pa.nulls(2, pa.list_(pa.float64()))
    first, second = label_keys(nothing, pa.array(["an enzyme", "a receptor"]))
    assert first != second


def read(path, column, *, split=None):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as handle:
        rows = list(csv.reader(handle, delimiter="," if split is None else split))
    return [row[column] for row in (rows if split else rows[1:])]


@pytest.mark.data
def test_published_duplicates_are_found():
    """Counts stated beside the files; see also F-7 for the sizes."""
    mirror = Path(os.environ["POLYSOME_MIRROR"])
    guides = read(mirror / "rna_crispr_on_target/regression/hek293t.repisgt", 4, split="\t")
    assert np.count_nonzero(find_duplicates(keys([[guide] for guide in guides])).duplicate) == 2_233
    proteins = read(mirror / "protein_stability/stability.train.csv.gz", 0)
    assert len(proteins) == 53_614
    assert np.count_nonzero(find_duplicates(keys([[protein] for protein in proteins])).duplicate) == 43
