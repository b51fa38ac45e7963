"""The k-mer baseline counts what it says and learns what a linear model can learn."""

from collections import Counter
from itertools import product

import numpy as np
import pyarrow as pa
import pytest

from polysome.config import DataError
from polysome.data.examples import read_examples
from polysome.evaluation.baselines import _kmer_counts, baselines, log_counts
from polysome.specs import dataset


def test_counts_are_those_of_a_plain_counter() -> None:
    sequences = ["ACGTACGTTTAC", "NNACNGTACGTACA", "A", "CCCCCCCCCC"]
    kmers = ["".join(letters) for k in range(1, 7) for letters in product("ACGT", repeat=k)]
    counts = _kmer_counts(sequences, "dna").toarray()
    assert counts.shape == (4, len(kmers))
    for sequence, row in zip(sequences, counts, strict=True):
        expected = Counter(sequence[i : i + k] for k in range(1, 7) for i in range(len(sequence) - k + 1))
        assert {kmers[i]: int(row[i]) for i in np.flatnonzero(row)} == {
            kmer: count for kmer, count in expected.items() if "N" not in kmer
        }


def test_two_molecules_stand_side_by_side() -> None:
    features = log_counts(dataset("planted_binding"), [["ACGU", "MKV"], ["GGGG", "W"]])
    assert features.shape == (2, sum(4**k for k in range(1, 7)) + sum(20**k for k in range(1, 4)))


@pytest.mark.parametrize(
    ("name", "least"), [("planted_promoter", 0.9), ("planted_ncrna_family", 0.95), ("planted_thermostability", 0.95)]
)
def test_planted_rules_that_are_linear_in_kmers_are_found(name: str, least: float) -> None:
    spec = dataset(name)
    result = baselines(spec, read_examples(spec, "train", limit=1200), read_examples(spec, "test"))
    assert result.kmer.value.value > least
    assert result.majority.value.value < 0.5
    assert result.kmer.parse_rate is None


def test_training_rows_that_stand_in_the_test_are_left_out() -> None:
    spec = dataset("planted_promoter")
    train, test = read_examples(spec, "train", limit=300), read_examples(spec, "test")
    result = baselines(spec, pa.concat_tables([train, test]), test)
    assert result.removed_rows == test.num_rows
    assert result.train_rows == 300
    with pytest.raises(DataError, match="0 training rows"):
        baselines(spec, test, test)


def test_one_class_alone_leaves_the_constant() -> None:
    spec = dataset("planted_promoter")
    train = read_examples(spec, "train", limit=50)
    positive = train.filter(pa.array([label == [1.0] for label in train["label"].to_pylist()]))
    result = baselines(spec, positive, read_examples(spec, "test"))
    assert result.kmer == result.majority


@pytest.mark.data
@pytest.mark.slow
def test_core_promoter_reaches_what_is_known_of_kmers() -> None:
    """A plain 6-mer logistic regression reaches about 56 on these rows."""
    spec = dataset("core_promoter")
    parts = {split: read_examples(spec, split) for split in ("train", "test", "dev")}
    result = baselines(spec, parts["train"], parts["test"], dev=parts["dev"])
    assert result.kmer.n == 5920
    assert 0.55 < result.kmer.value.value < 0.65
    assert set(result.kmer.subsets) == {"prom_core_notata", "prom_core_tata"}
