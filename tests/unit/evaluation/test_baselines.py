"""Trivial baselines count what they say and learn what such models can learn."""

from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from polysome.config import DataError
from polysome.data.examples import read_examples
from polysome.evaluation.baselines import Baselines, baselines, read_predictions
from polysome.evaluation.features import LENGTH_BINS, kmer_counts, length_bins, length_edges, log_counts
from polysome.evaluation.measure import measure
from polysome.evaluation.reading import labels_of
from polysome.evaluation.targets import target_of
from polysome.specs import dataset


def of(name: str, *, limit: int | None = None, **settings: object) -> Baselines:
    spec = dataset(name)
    parts = {split: read_examples(spec, split, limit=limit) for split in ("train", "dev", "test")}
    return baselines(spec, parts["train"], parts["test"], dev=parts["dev"], resamples=100, **settings)


def test_counts_are_those_of_a_plain_counter() -> None:
    sequences = ["ACGTACGTTTAC", "NNACNGTACGTACA", "A", "CCCCCCCCCC"]
    kmers = ["".join(letters) for k in range(1, 7) for letters in product("ACGT", repeat=k)]
    counts = kmer_counts(sequences, "dna", 6).toarray()
    assert counts.shape == (4, len(kmers))
    for sequence, row in zip(sequences, counts, strict=True):
        expected = Counter(sequence[i : i + k] for k in range(1, 7) for i in range(len(sequence) - k + 1))
        assert {kmers[i]: int(row[i]) for i in np.flatnonzero(row)} == {
            kmer: count for kmer, count in expected.items() if "N" not in kmer
        }


def test_two_molecules_stand_side_by_side() -> None:
    features = log_counts(dataset("planted_binding"), [["ACGU", "MKV"], ["GGGG", "W"]])
    assert features.shape == (2, sum(4**k for k in range(1, 7)) + sum(20**k for k in range(1, 4)))


def test_lengths_fall_into_bins_of_equal_count() -> None:
    examples = [["A" * length] for length in range(1, 321)]
    edges = length_edges(examples)
    found = length_bins(examples, edges).toarray()
    assert found.shape == (320, LENGTH_BINS)
    assert set(found.sum(axis=0)) <= {9, 10, 11}
    assert length_bins([["A"], ["A" * 9999]], edges).toarray().argmax(axis=1).tolist() == [0, LENGTH_BINS - 1]


@pytest.mark.parametrize(
    ("name", "least"), [("planted_promoter", 0.9), ("planted_ncrna_family", 0.95), ("planted_thermostability", 0.95)]
)
def test_planted_rules_that_are_linear_in_kmers_are_found(name: str, least: float) -> None:
    spec = dataset(name)
    train, test = read_examples(spec, "train", limit=1200), read_examples(spec, "test")
    result = baselines(spec, train, test, chosen=["majority", "mean", "kmer"])
    assert result.measurements["kmer"].value.value > least
    assert result.measurements["kmer"].parse_rate is None
    assert next(iter(result.measurements.values())).value.value < 0.5


def test_labels_that_follow_from_the_length_are_found(declare: Callable[..., str]) -> None:
    draw = np.random.default_rng(4)
    rows = [("".join(draw.choice(list("ACGT"), size=n)), str(int(n > 30))) for n in draw.integers(10, 50, size=300)]
    name = declare("binary", train=rows[:200], dev=rows[200:240], test=rows[240:])
    result = of(name, chosen=["majority", "length"])
    assert result.measurements["length"].value.value > 0.9
    assert result.measurements["majority"].value.value == 0


def test_a_network_finds_a_motif_that_it_must_place() -> None:
    result = of("planted_promoter", limit=600, chosen=["cnn"])
    assert result.measurements["cnn"].value.value > 0.6


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multi_regression", "generation"])
def test_what_is_kept_of_every_row_gives_the_measurements(
    declare: Callable[..., str], kind: str, tmp_path: Path
) -> None:
    name = declare(kind)
    result = of(name, chosen=["majority", "mean", "kmer"])
    result.write_predictions(str(tmp_path))
    table = read_predictions(str(tmp_path), name)
    assert table is not None
    task, rows = dataset(name).task, read_examples(dataset(name), "test")
    assert task is not None
    assert table["id"].to_pylist() == rows["id"].to_pylist()
    assert set(table.column_names) == {"id", *result.measurements}
    labels = labels_of(dataset(name), rows)
    for baseline, measured in result.measurements.items():
        told = [tuple(value) if isinstance(value, list) else value for value in table[baseline].to_pylist()]
        assert measure(task, labels, told, seed=0, resamples=0).value.value == measured.value.value
    assert read_predictions(str(tmp_path), "another") is None


@pytest.mark.parametrize("kind", ["multilabel", "multi_regression"])
def test_sets_and_several_numbers_have_baselines_too(declare: Callable[..., str], kind: str) -> None:
    result = of(declare(kind), chosen=["majority", "mean", "median", "length", "kmer", "cnn"])
    trivial = {"multilabel": {"majority"}, "multi_regression": {"mean", "median"}}[kind]
    assert set(result.measurements) == {*trivial, "length", "kmer", "cnn"}
    kmer = result.measurements["kmer"].value.value
    assert kmer > max(result.measurements[name].value.value for name in trivial) + 0.2
    assert any(name.endswith("_scored") for name in result.measurements["kmer"].extras)


def test_the_best_constant_is_chosen_on_the_training_rows(declare: Callable[..., str]) -> None:
    """A-119: on uniform labels a constant near 25 scores about one half by the mixed score."""
    draw = np.random.default_rng(6)
    rows = [
        ("ACGT" + "".join(draw.choice(list("ACGT"), size=12)), f"{value:.1f}") for value in draw.uniform(0, 100, 900)
    ]
    name = declare("regression", train=rows[:600], dev=rows[600:650], test=rows[650:])
    result = of(name, chosen=["mean", "median", "constant"])
    assert 0.45 < result.measurements["constant"].value.value < 0.6
    assert result.measurements["constant"].value.value > result.measurements["mean"].value.value + 0.05
    spec = dataset(name)
    assert spec.task is not None
    truth = [tuple(label) for label in read_examples(spec, "test")["label"].to_pylist()]
    best = max(
        measure(spec.task, truth, [(float(value),)] * len(truth), seed=0, resamples=1).value.value
        for value in range(101)
    )
    assert result.measurements["constant"].value.value <= best + 0.001


def test_training_rows_that_stand_in_the_test_are_left_out() -> None:
    spec = dataset("planted_promoter")
    train, test = read_examples(spec, "train", limit=300), read_examples(spec, "test")
    result = baselines(spec, pa.concat_tables([train, test]), test, chosen=["majority"])
    assert result.removed_rows == test.num_rows
    assert result.train_rows == 300
    with pytest.raises(DataError, match="0 training rows"):
        baselines(spec, test, test)


def test_one_class_alone_leaves_the_constant() -> None:
    spec = dataset("planted_promoter")
    train = read_examples(spec, "train", limit=50)
    positive = train.filter(pa.array([label == [1.0] for label in train["label"].to_pylist()]))
    result = baselines(spec, positive, read_examples(spec, "test"))
    assert set(result.measurements) == {"majority"}
    assert "nothing was fitted" in result.notes[0]
    assert Baselines.from_json(result.to_json()).to_json() == result.to_json()


def test_targets_return_to_labels(declare: Callable[..., str]) -> None:
    for kind, labels in {
        "multiclass": [(0.0,), (2.0,)],
        "multilabel": [(), (0.0, 2.0)],
        "multi_regression": [(1.0, -2.0), (0.5, 3.0)],
    }.items():
        task = dataset(declare(kind)).task
        assert task is not None
        target = target_of(task)
        assert target is not None
        encoded = target.encode(labels)
        outputs = np.eye(target.width)[encoded.astype(int)] if target.kind == "class" else encoded
        assert target.decode(outputs, 0.5) == labels


@pytest.mark.data
@pytest.mark.slow
def test_core_promoter_reaches_what_is_known_of_kmers() -> None:
    """A plain 6-mer logistic regression reaches about 56 on these rows."""
    result = of("core_promoter", chosen=["kmer"])
    assert result.measurements["kmer"].n == 5920
    assert 0.55 < result.measurements["kmer"].value.value < 0.65
    assert set(result.measurements["kmer"].subsets) == {"prom_core_notata", "prom_core_tata"}
