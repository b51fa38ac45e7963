"""The planted rules hold for every generated record, and records depend on nothing but address and split."""

import pytest

from polysome.config import DataError
from polysome.data import planted


def records(rule, split="train", rows=300, seed=3):
    return list(planted.generate(f"planted://{rule}?rows={rows}&seed={seed}", split))


@pytest.mark.parametrize(
    "rule", ["promoter", "ncrna_family", "thermostability", "binding", "description", "dna", "rna", "protein"]
)
def test_same_address_same_records_and_splits_differ(rule):
    assert records(rule) == records(rule)
    assert not {sequences for sequences, _ in records(rule)} & {sequences for sequences, _ in records(rule, "test")}


def test_promoter_is_a_tata_box():
    labels = [label for _, label in records("promoter")]
    assert all((planted.TATA_BOX in dna) == (label == "1") for (dna,), label in records("promoter"))
    assert 0.4 < labels.count("1") / len(labels) < 0.6


def test_family_is_the_only_motif():
    for (rna,), label in records("ncrna_family"):
        assert [name for name, motif in planted.FAMILY_MOTIFS.items() if motif in rna] == [label]


def test_thermostability_counts_charged_residues():
    for (protein,), label in records("thermostability"):
        assert float(label) == round(30 + 50 * sum(residue in "DEKR" for residue in protein) / 30)


def test_binding_needs_both_molecules():
    found = {}
    for (rna, protein), label in records("binding", rows=2000):
        site, domain = planted.BINDING_SITES[0] in rna, planted.BINDING_DOMAINS[0] in protein
        assert (site == domain) == (label == "1")
        found.setdefault(site, []).append(label)
    # Neither molecule alone tells the label.
    for labels in found.values():
        assert 0.45 < labels.count("1") / len(labels) < 0.55


def test_a_description_names_the_domains_that_are_there():
    told = set()
    for (protein,), label in records("description"):
        carried = [domain in protein for domain in planted.BINDING_DOMAINS]
        assert [name in label for name in planted.DOMAIN_NAMES] == carried
        assert len(protein) == 30
        told.add(label)
    assert len(told) == 3


@pytest.mark.parametrize("address", ["planted://nothing?rows=3", "planted://promoter", "planted://promoter?rows=x"])
def test_wrong_address_is_named(address):
    with pytest.raises(DataError, match="no planted data"):
        list(planted.generate(address, "train"))
