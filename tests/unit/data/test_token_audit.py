"""The token audit: its figures follow from how the vocabulary is built."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rendering import write_bpe_tokenizer, write_extended_tokenizer

from polysome.data.token_audit import audit_tokens, edit_distance
from polysome.models.tokenizer import build_per_base_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    for kmer in (1, 4):
        build_per_base_tokenizer(root / f"k{kmer}", ["Is it? Yes."], vocabulary_size=300, kmer=kmer)
    words = ["".join(letters) for letters in itertools.product("ACGT", repeat=4)]
    write_bpe_tokenizer(root / "bpe", ["".join(words) * 3])
    return root


def by_molecule(audit):
    return {found.molecule: found for found in audit.molecules}


def test_a_base_is_a_token_and_a_substitution_changes_one(folders):
    for molecule, found in by_molecule(audit_tokens(str(folders / "k1"), sequences=10)).items():
        assert found.characters_per_token == 1
        assert (found.changed_mean, found.changed_max) == (1, 1)
        assert (found.lower_case_same, found.round_trip, found.unknown) == (0, 1, 0)
        assert (found.other_base_tokens, found.other_base_same) == ((None, None) if molecule == "protein" else (1, 0))


def test_a_substitution_changes_k_overlapping_words(folders):
    found = by_molecule(audit_tokens(str(folders / "k4"), sequences=10))
    assert found["dna"].changed_max == 4
    assert 3.5 < found["dna"].changed_mean <= 4
    assert found["protein"].changed_max == 1


def test_an_extended_tokenizer_has_a_token_a_letter(folders, tmp_path):
    folder = write_extended_tokenizer(tmp_path, ["ACGT" * 100])
    for found in by_molecule(audit_tokens(str(folder), sequences=10)).values():
        assert (found.characters_per_token, found.changed_max, found.round_trip) == (1, 1, 1)


def test_pairs_of_letters_cost_fewer_tokens(folders):
    audit = audit_tokens(str(folders / "bpe"), sequences=10)
    found = by_molecule(audit)["dna"]
    assert found.characters_per_token > 2
    assert found.changed_mean > 1
    assert found.round_trip == 1
    assert json.loads(json.dumps(audit.content()))["molecules"][0]["molecule"] == "dna"
    header, *lines = audit.table()
    assert header == ("", "dna", "rna", "protein")
    assert len({len(line) for line in lines}) == 1


def test_declared_data_are_audited(folders):
    found = audit_tokens(str(folders / "k1"), ["planted_binding"], sequences=5).molecules
    assert [(item.molecule, item.sequences, item.source) for item in found] == [
        ("rna", 5, "planted_binding"),
        ("protein", 5, "planted_binding"),
    ]


def plain_distance(left, right):
    if not left or not right:
        return len(left) + len(right)
    return min(
        plain_distance(left[1:], right) + 1,
        plain_distance(left, right[1:]) + 1,
        plain_distance(left[1:], right[1:]) + (left[0] != right[0]),
    )


@given(left=st.lists(st.integers(0, 2), max_size=5), right=st.lists(st.integers(0, 2), max_size=5))
def test_edit_distance_is_the_plain_one(left, right):
    assert edit_distance(left, right) == plain_distance(left, right)
