"""Leakage groups: what is alike stands together, whatever the order, the strand or the partner (AMB-20, AMB-29)."""

import random
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.config import ConfigurationError, ResourceError
from polysome.data import sketches
from polysome.data.alignment import HALF_BAND, Aligner
from polysome.data.clean import reverse_complement
from polysome.data.hashing import text_of
from polysome.data.leakage import divisible_groups, group_shares, groups, share_of
from polysome.specs import Molecule

LETTERS = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}
DNA, RNA, PROTEIN = (Molecule(type=kind, role=kind) for kind in LETTERS)


def sequence(seed, length, kind="dna"):
    return "".join(random.Random(f"{kind}{seed}").choices(LETTERS[kind], k=length))


def mutated(text, share, seed, kind="dna"):
    """`share` of the letters replaced by another one, at evenly drawn places."""
    draw = random.Random(seed)
    letters = list(text)
    for place in draw.sample(range(len(text)), int(share * len(text))):
        letters[place] = draw.choice([letter for letter in LETTERS[kind] if letter != letters[place]])
    return "".join(letters)


def partition(examples, molecules, **options):
    """Sets of the row numbers that stand together."""
    found = groups(pa.array(examples, pa.list_(pa.string())), molecules, **options).groups.tolist()
    return {frozenset(row for row, group in enumerate(found) if group == number) for number in found}


def distance(first, second):
    """The plain table of edit distances."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (letter != other))
    return row[-1]


@given(
    st.lists(st.tuples(st.text("ACG", max_size=80), st.text("ACG", max_size=80)), min_size=1, max_size=6),
    st.integers(0, 90),
)
def test_banded_distances_are_those_of_the_plain_table(pairs, limit):
    text = text_of(pa.array([side for pair in pairs for side in pair]))
    lengths = np.minimum(text.lengths[::2], text.lengths[1::2])
    limits = np.full(len(pairs), limit)
    found = Aligner(text).distances(text.offsets[:-1:2], text.offsets[1:-1:2], lengths, limits)
    for (first, second), length, got in zip(pairs, lengths.tolist(), found.tolist(), strict=True):
        expected = distance(first[:length], second[:length])
        # An alignment that leaves the band costs as many insertions and deletions.
        assert got == min(expected, limit + 1) or (expected > 2 * HALF_BAND and got >= expected)


@pytest.mark.parametrize(
    ("kind", "length", "share"),
    [
        ("dna", 500, 0.15),
        ("dna", 70, 0.1),
        ("dna", 23, 0.05),
        ("rna", 150, 0.15),
        ("protein", 300, 0.4),
        ("protein", 45, 0.25),
    ],
)
def test_mutants_stand_with_their_origin_and_strangers_apart(kind, length, share):
    origins = [sequence(number, length, kind) for number in range(40)]
    examples = origins + [mutated(origin, share, number, kind) for number, origin in enumerate(origins)]
    expected = {frozenset({row, row + 40}) for row in range(40)}
    assert partition([[example] for example in examples], [Molecule(type=kind)], method="own") == expected


def test_insertions_deletions_and_fragments():
    whole = sequence(0, 300)
    shifted = whole[:80] + whole[85:200] + "GATTACA" + whole[200:]
    fragment = whole[60:160]
    # Half of it is not enough, wherever the other half comes from.
    half = whole[150:] + sequence(1, 150)
    stranger = sequence(2, 300)
    examples = [[whole], [shifted], [fragment], [half], [stranger]]
    expected = {frozenset({0, 1, 2}), frozenset({3}), frozenset({4})}
    assert partition(examples, [DNA], method="own") == expected


def test_both_strands_of_dna_but_not_of_rna():
    """Enhancers come with both strands of one locus (AMB-29)."""
    origin = sequence(0, 240)
    other = mutated(reverse_complement(origin), 0.05, 1)
    assert partition([[origin], [other]], [DNA], method="own") == {frozenset({0, 1})}
    rna = [[origin.replace("T", "U")], [other.replace("T", "U")]]
    assert partition(rna, [RNA], method="own") == {frozenset({0}), frozenset({1})}


def test_the_partition_does_not_depend_on_the_order():
    origins = [sequence(number, 120) for number in range(30)]
    examples = [mutated(origin, 0.12, copy) for origin in origins for copy in range(4)]
    examples += [reverse_complement(example) for example in examples[::3]] + examples[:5]
    order = list(range(len(examples)))
    random.Random(0).shuffle(order)
    first = groups([[example] for example in examples], [DNA], method="own")
    second = groups([[examples[row]] for row in order], [DNA], method="own")
    assert (first.keys[order] == second.keys).all()
    assert len(set(first.keys.tolist())) == first.count == second.count
    assert len(set(zip(first.groups[order].tolist(), second.groups.tolist(), strict=True))) == first.count
    assert first.groups[0] == 0


def test_a_sampled_index_finds_the_same(monkeypatch):
    origins = [sequence(number, 400) for number in range(30)]
    examples = [[mutated(origin, 0.05, copy)] for origin in origins for copy in range(3)]
    whole = partition(examples, [DNA], method="own")
    monkeypatch.setattr(sketches, "_MAXIMUM_ENTRIES", 12_000)
    assert partition(examples, [DNA], method="own") == whole == {frozenset(range(n, n + 3)) for n in range(0, 90, 3)}


def test_pairs_are_linked_by_both_or_by_either_molecule():
    rna, protein = (lambda n: sequence(n, 150, "rna")), (lambda n: sequence(n, 120, "protein"))
    near = mutated(protein(0), 0.2, 1, "protein")
    examples = [[rna(0), protein(0)], [rna(0), protein(1)], [rna(1), protein(1)], [rna(0), near], [rna(2), protein(2)]]
    assert partition(examples, [RNA, PROTEIN], method="own") == {frozenset(s) for s in ({0, 3}, {1}, {2}, {4})}
    either = partition(examples, [RNA, PROTEIN], method="own", link="either")
    assert either == {frozenset({0, 1, 2, 3}), frozenset({4})}


def test_partners_of_one_kind_are_alike_in_either_order():
    one, two, three = (sequence(number, 120, "protein") for number in range(3))
    pair = [Molecule(type="protein", role="a"), Molecule(type="protein", role="b")]
    examples = [[one, two], [two, one], [one, three]]
    assert partition(examples, pair, method="own") == {frozenset({0, 1}), frozenset({2})}
    assert partition([*examples, [sequence(3, 120, "protein"), three]], pair, method="own", link="either") == {
        frozenset({0, 1, 2, 3})
    }


def test_shares_are_even_and_equal_within_a_group():
    examples = [[sequence(number // 2, 60)] for number in range(2000)]
    shares = group_shares(examples, [DNA])
    assert (shares[::2] == shares[1::2]).all()
    assert ((shares >= 0) & (shares < 1)).all()
    # Six standard deviations of a binomial.
    assert abs(np.count_nonzero(shares[::2] < 0.3) - 300) < 6 * (1000 * 0.3 * 0.7) ** 0.5
    assert (share_of(np.array([0, 2**64 - 1], np.uint64)) < 1).all()


def test_a_split_of_variants_is_divided_by_a_higher_identity_or_by_equality():
    strangers = [[sequence(number, 100, "protein")] for number in range(20)]
    assert "identity 0.5" in divisible_groups(strangers, [PROTEIN]).method
    origin = sequence(0, 100, "protein")
    homologues = [[mutated(origin, 0.2, number, "protein")] for number in range(40)]
    found = divisible_groups(homologues, [PROTEIN])
    assert "identity 0.7" in found.method
    assert found.count > 30
    variants = [[mutated(origin, 0.01, number % 30, "protein")] for number in range(40)]
    found = divisible_groups(variants, [PROTEIN])
    assert found.method == "protein: equal sequences"
    assert found.count == len({variant for (variant,) in variants}) > 20
    assert (found.keys[:10] == found.keys[30:]).all()


def test_what_the_own_method_cannot_tell_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"0\.3 of protein is below 0\.5"):
        groups([["MKV"]], [PROTEIN], method="own", identity=0.3)
    with pytest.raises(ConfigurationError, match="mmseqs is not on PATH"):
        groups([["MKV"]], [PROTEIN], method="mmseqs2")
    with pytest.raises(ConfigurationError, match="declared molecules"):
        groups([["MKV"]], [])


FAKE = """#!{python}
import sys
from pathlib import Path
arguments = sys.argv[1:]
Path({log!r}).write_text(" ".join(arguments))
{failure}
if arguments[0] == "easy-cluster":
    fasta, result = arguments[1], arguments[2] + "_cluster.tsv"
else:
    fasta, result = arguments[arguments.index("-i") + 1], arguments[arguments.index("-o") + 1] + ".clstr"
records = [entry.split() for entry in Path(fasta).read_text().split(">")[1:]]
clusters = {{}}
for name, letters in records[{skipped}:]:
    clusters.setdefault(letters[:3], []).append(name)
with open(result, "w") as out:
    for number, members in enumerate(clusters.values()):
        if arguments[0] != "easy-cluster":
            out.write(f">Cluster {{number}}\\n")
        for place, name in enumerate(members):
            out.write(f"{{members[0]}}\\t{{name}}\\n" if arguments[0] == "easy-cluster" else
                      f"{{place}}\\t{{40}}aa, >{{name}}... *\\n")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts a program on PATH that clusters by the first three letters."""

    def put(name, *, failure="", skipped=0):
        program = tmp_path / name
        log = str(tmp_path / "arguments")
        program.write_text(FAKE.format(python=sys.executable, log=log, failure=failure, skipped=skipped))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return Path(log)

    return put


@pytest.mark.parametrize(("name", "method"), [("mmseqs", "mmseqs2"), ("cd-hit", "cd-hit")])
def test_a_program_on_path_is_used_and_named(fake, name, method):
    examples = [["MKV" + sequence(0, 40, "protein")], ["MKV" + sequence(1, 40, "protein")], ["AAA" + "MKVW" * 10]]
    log = fake(name)
    found = groups([*examples, examples[0]], [PROTEIN], identity=0.6)
    assert found.groups.tolist() == [0, 0, 1, 0]
    assert found.method.startswith(f"protein: {method}, identity 0.6")
    assert ("--min-seq-id 0.6 -c 0.8" if name == "mmseqs" else "-c 0.6 -G 0 -aS 0.8") in log.read_text()
    # Too short for its seeds.
    assert "own" in groups([["MKV"]], [PROTEIN]).method


def test_a_program_that_fails_says_why(fake):
    fake("mmseqs", failure="sys.exit('no space left')")
    with pytest.raises(ResourceError, match="no space left"):
        groups([["M" * 40]], [PROTEIN])
    fake("mmseqs", skipped=1)
    with pytest.raises(ResourceError, match="1 of 2 sequences are in no cluster"):
        groups([["M" * 40], ["K" * 40]], [PROTEIN])
