"""Metrics against their definitions; their resampled forms against scikit-learn and scipy on the resample itself."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    r2_score,
    roc_auc_score,
)

from polysome.evaluation import metrics, resampling, text_metrics
from polysome.evaluation.fmax import fmax, resampled_fmax
from polysome.evaluation.mixed import mixed, resampled_mixed

NAN = float("nan")
seeds = st.integers(0, 2**32 - 1)
GENEVERSE = [
    (0.95, 1, 0.349, 0.592), (0.95, 1, 0.425, 0.613), (0.95, 1, 0.387, 0.627), (0.9, 1, 0.374, 0.6),
    (0.9, 1, 0.324, 0.541), (0.85, 1, 0.395, 0.58), (0.9, 0.9, 0.345, 0.546), (0.65, 0.8, 0.155, 0.324),
    (0.6, 1, 0.196, 0.358), (0.65, 0.05, 0.127, 0.269), (0.35, 1, 0.073, 0.183), (0, 0, 0, 0),
    (0.25, 0.4, 0.011, 0.196), (0.9, 1, 0.123, 0.306), (0.85, 1, 0.144, 0.312), (0.85, 1, 0.118, 0.309),
    (0.75, 1, 0.141, 0.304), (0, 0, 0.046, 0.193), (0, 0, 0.041, 0.186), (0, 0, 0, 0),
]  # fmt: skip
"""Factual and structural grade, BLEU and ROUGE-1 of every system of Geneverse's Table 1."""


def drawn(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A resample: the rows drawn, and how often each was, [1, n]."""
    rows = np.random.default_rng(seed).integers(0, n, n)
    return rows, np.bincount(rows, minlength=n)[None, :].astype(float)


def classes_of(seed: int, n: int = 60, classes: int = 3, unparsable: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n).astype(float)
    told = np.where(generator.random(n) < 0.6, labels, generator.integers(0, classes, n)).astype(float)
    return labels, np.where(generator.random(n) < unparsable, NAN, told)


def numbers_of(seed: int, n: int = 50, unparsable: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """With ties."""
    generator = np.random.default_rng(seed)
    labels = generator.normal(size=n).round(1) * 20 + 40
    told = (labels + generator.normal(size=n) * 15).round(0)
    return labels, np.where(generator.random(n) < unparsable, NAN, told)


def sets_of(seed: int, n: int = 30, columns: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.random((n, columns)) < 0.3
    return labels, generator.random((n, columns)).round(1) * 0.6 + labels * 0.4


@given(seeds, st.sampled_from([2, 3, 5]))
@settings(max_examples=40, deadline=None)
def test_class_metrics_of_a_resample_are_those_of_its_rows(seed: int, classes: int) -> None:
    labels, predictions = classes_of(seed, classes=classes)
    told = metrics.resolved(labels, predictions, classes)
    rows, weights = drawn(seed, len(labels))
    assert resampling.mcc(labels, told, classes)(weights)[0] == pytest.approx(
        matthews_corrcoef(labels[rows], told[rows]), abs=1e-12
    )
    for average, chosen in (("macro", list(range(classes))), ("binary", [1])):
        expected = precision_recall_fscore_support(
            labels[rows], told[rows], labels=chosen, average="macro", zero_division=0
        )[:3]
        found = [part(weights)[0] for part in resampling.precision_recall_f1(labels, told, classes, chosen)]
        assert found == pytest.approx(expected)
        if average == "macro" or classes == 2:
            whole = metrics.precision_recall_f1(labels[rows], predictions[rows], classes, average)
            assert found == pytest.approx(whole)
    assert -1 <= metrics.mcc(labels, predictions, classes) <= 1


@given(seeds, st.sampled_from(["pearson", "spearman", "pearson_r2", "r2_score", "mae", "rmse"]))
@settings(max_examples=60, deadline=None)
def test_number_metrics_of_a_resample_are_those_of_its_rows(seed: int, name: str) -> None:
    labels, told = numbers_of(seed)
    rows, weights = drawn(seed, len(labels))
    error = np.abs(labels - told)
    parsed = (~np.isnan(told)).astype(float)
    resampled = {
        "pearson": resampling.pearson(labels, told),
        "spearman": resampling.spearman(labels, told),
        "pearson_r2": resampling.pearson(labels, told, power=2),
        "r2_score": resampling.r2_score(labels, told),
        "mae": resampling.mean(error, parsed),
        "rmse": resampling.root_mean(error**2, parsed),
    }[name]
    metric: Callable[[np.ndarray, np.ndarray], float] = getattr(metrics, name)
    assert resampled(weights)[0] == pytest.approx(metric(labels[rows], told[rows]), abs=1e-9)
    assert resampled(np.ones((2, len(labels)))) == pytest.approx([metric(labels, told)] * 2)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_correlations_are_those_of_scipy_times_the_parsed_share(seed: int) -> None:
    labels, told = numbers_of(seed)
    parsed = ~np.isnan(told)
    share = parsed.mean()
    r = pearsonr(labels[parsed], told[parsed]).statistic
    assert metrics.pearson(labels, told) == pytest.approx(r * share)
    assert metrics.pearson_r2(labels, told) == pytest.approx(r**2 * share)
    rho = spearmanr(labels[parsed], told[parsed]).statistic
    assert metrics.spearman(labels, told) == pytest.approx(rho * share)
    assert metrics.spearman(labels, np.exp(told / 50)) == pytest.approx(metrics.spearman(labels, told))
    whole = np.nan_to_num(told, nan=labels.mean())
    assert metrics.r2_score(labels, told) == pytest.approx(r2_score(labels, whole))


def test_correlations_are_pro_rated_by_the_parsed_share() -> None:
    # F-6: rho = 0.5 on eight of ten rows gives 0.40.
    labels = np.append(np.arange(8.0), [9.0, 4.0])
    told = np.array([4.0, 2, 1, 3, 0, 7, 6, 5, NAN, NAN])
    assert metrics.spearman(labels, told) == pytest.approx(0.4)


def test_correlations_of_a_printed_table_are_those_that_it_prints() -> None:
    """F-12: how far BLEU and ROUGE-1 of 20 systems go with the mean of two grades (B-52)."""
    factual, structural, bleu, rouge = np.array(GENEVERSE).T
    grades, each = (factual + structural) / 2, np.ones((1, len(factual)))
    for overlap, printed in ((bleu, 0.7616), (rouge, 0.8089)):
        assert metrics.pearson(grades, overlap) == pytest.approx(printed, abs=5e-5)
        assert resampling.pearson(grades, overlap)(each)[0] == pytest.approx(printed, abs=5e-5)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "pearson_r2"])
def test_correlations_with_a_constant_are_zero(metric: str) -> None:
    labels, constant = np.arange(6.0), np.full(6, 3.3)
    resampled = {
        "pearson": resampling.pearson,
        "spearman": resampling.spearman,
        "pearson_r2": lambda *rows: resampling.pearson(*rows, power=2),
    }[metric]
    for pair in ((labels, constant), (constant, labels), (labels, np.full(6, NAN)), (labels, constant * 1e9)):
        assert getattr(metrics, metric)(*pair) == 0
        assert resampled(*pair)(np.ones((1, 6)))[0] == 0


def test_an_unparsable_binary_answer_counts_as_the_opposite_label() -> None:
    labels, told = np.array([1.0, 1, 0, 0, 1]), np.array([1.0, NAN, NAN, 0, 1])
    assert metrics.mcc(labels, told) == pytest.approx(matthews_corrcoef(labels, [1, 0, 1, 0, 1]))
    assert metrics.accuracy(labels, told) == pytest.approx(3 / 5)
    assert metrics.confusion_matrix(labels, told, 2).tolist() == [[1, 1], [1, 2]]


def test_an_unparsable_answer_of_many_classes_is_one_more_class() -> None:
    labels, told = np.array([0.0, 1, 2, 2]), np.array([0.0, 1, NAN, 2])
    assert metrics.confusion_matrix(labels, told, 3).tolist() == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 0, 0],
    ]
    assert metrics.precision_recall_f1(labels, told, 3, "micro")[0] == 1


def test_matthews_is_zero_where_it_is_undefined() -> None:
    assert metrics.mcc(np.array([1.0, 0, 1]), np.ones(3)) == 0
    assert metrics.mcc(np.ones(3), np.ones(3)) == 0


def test_hard_auc_is_balanced_accuracy() -> None:
    # F-2
    labels, told = np.array([1, 1, 0, 0, 0], dtype=bool), np.array([1, 0, 0, 0, 1.0])
    assert metrics.auc_columns(labels[:, None], told[:, None])[0] == pytest.approx(0.58333, abs=1e-5)
    assert balanced_accuracy_score(labels, told) == pytest.approx(0.58333, abs=1e-5)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_set_metrics_of_a_resample_are_those_of_its_rows(seed: int) -> None:
    labels, scores = sets_of(seed)
    told = scores > 0.5
    rows, weights = drawn(seed, len(labels))
    hard = metrics.mean_defined(metrics.auc_columns(labels[rows], told[rows].astype(float)))
    assert resampling.hard_auc(labels, told)(weights)[0] == pytest.approx(hard)
    macro = f1_score(labels[rows], told[rows], average="macro", zero_division=0)
    assert resampling.set_macro_f1(labels, told)(weights)[0] == pytest.approx(macro)
    counts = (2 * (labels & told).sum(axis=1), labels.sum(axis=1) + told.sum(axis=1))
    micro = f1_score(labels[rows], told[rows], average="micro", zero_division=0)
    assert resampling.ratio(*(part.astype(float) for part in counts))(weights)[0] == pytest.approx(micro)
    truth, ranked = labels[:, 0], scores[:, 0]
    if truth[rows].any() and not truth[rows].all():
        expected = roc_auc_score(truth[rows], ranked[rows])
        assert resampling.auc(truth, ranked)(weights)[0] == pytest.approx(expected)
        expected = average_precision_score(truth[rows], ranked[rows])
        assert resampling.average_precision(truth, ranked)(weights)[0] == pytest.approx(expected)


def test_a_column_of_one_class_has_no_area() -> None:
    labels = np.array([[1, 1], [0, 1]], dtype=bool)
    assert np.isnan(metrics.auc_columns(labels, np.ones((2, 2)))).tolist() == [False, True]
    assert math.isnan(resampling.auc(labels[:, 1], np.ones(2))(np.ones((1, 2)))[0])
    assert resampling.average([resampling.auc(column, np.ones(2)) for column in labels.T])(np.ones((1, 2)))[0] == 0.5


def brute_fmax(labels: np.ndarray, scores: np.ndarray) -> float:
    """A-117 word for word."""
    best = 0.0
    for threshold in np.unique(scores[scores > -np.inf]):
        told = scores >= threshold
        some = told.any(axis=1)
        precision = np.mean([(labels[i] & told[i]).sum() / told[i].sum() for i in np.flatnonzero(some)])
        recall = np.mean([(labels[i] & told[i]).sum() / max(labels[i].sum(), 1) for i in range(len(labels))])
        if precision + recall > 0:
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_fmax_is_the_best_of_all_thresholds(seed: int) -> None:
    labels, scores = sets_of(seed, n=12, columns=4)
    scores[scores < 0.2] = -np.inf
    value = fmax(labels, scores)
    assert value == pytest.approx(brute_fmax(labels, scores))
    assert 0 <= value <= 1
    order = np.random.default_rng(seed).permutation(len(labels))
    assert fmax(labels[order], scores[order]) == pytest.approx(value)
    rows, weights = drawn(seed, len(labels))
    # Fewer thresholds than may be held are all held.
    assert resampled_fmax(labels, scores)(weights)[0] == pytest.approx(brute_fmax(labels[rows], scores[rows]))


def test_fmax_of_told_sets_has_one_threshold_and_the_official_one_ranks_equal_scores() -> None:
    labels = np.array([[1, 1, 0], [0, 1, 0]], dtype=bool)
    told = np.array([[1, 0, 0], [0, 0, 1]], dtype=bool)
    # Precision (1 + 0) / 2, recall (1/2 + 0) / 2.
    assert fmax(labels, np.where(told, 0.0, -np.inf)) == pytest.approx(2 * 0.5 * 0.25 / 0.75)
    # After the first class told: precision 1 of one protein, recall (1/2) / 2; going on through classes that nobody
    # told, all labels are found: precision (2/3 + 1/3) / 2, recall 1.
    assert fmax(labels, told.astype(float), ties="broken") == pytest.approx(2 * 0.5 / 1.5)
    assert fmax(labels, np.full((2, 3), -np.inf)) == 0
    assert resampled_fmax(labels, np.full((2, 3), -np.inf))(np.ones((3, 2))).tolist() == [0, 0, 0]
    assert fmax(labels, labels.astype(float), ties="broken") == 1


def test_a_bootstrap_of_fmax_on_few_of_many_thresholds_stays_close() -> None:
    generator = np.random.default_rng(4)
    labels = generator.random((200, 40)) < 0.1
    scores = generator.normal(size=labels.shape) + 2 * labels
    rows, weights = drawn(1, 200)
    assert resampled_fmax(labels, scores)(weights)[0] == pytest.approx(fmax(labels[rows], scores[rows]), abs=2e-3)
    assert resampled_fmax(labels, scores)(np.ones((1, 200)))[0] == pytest.approx(fmax(labels, scores))


def test_mixed_score() -> None:
    # F-1
    found = mixed(np.array([10.0, 20, 50, 80]), np.array([12.0, 40, 25, 70]))
    assert (found.score, found.mae, found.f1, found.range_mae) == pytest.approx((0.645, 14.25, 0.5, 13.5))


def test_mixed_score_of_invalid_answers_and_empty_ranges() -> None:
    labels = np.array([10.0, 20, 50, 80])
    # beyond 1,000 and unparsable are treated alike, and pro-rated.
    half = mixed(labels[:2], np.array([12.0, 25])).score / 2
    assert mixed(labels, np.array([12.0, 25, 2000, NAN])).score == pytest.approx(half)
    nothing_low = mixed(labels, np.array([90.0, 90, 90, 90]))
    assert (nothing_low.f1, nothing_low.range_mae) == (0, 100)
    assert mixed(labels, np.full(4, NAN)).score == 0
    # AMB-30: the range by labels takes the rows labelled 10 and 20.
    assert mixed(labels, np.array([12.0, 40, 25, 70]), range_by="labels").range_mae == pytest.approx(11)


@given(seeds, st.sampled_from(["predictions", "labels"]))
@settings(max_examples=40, deadline=None)
def test_mixed_score_of_a_resample_is_that_of_its_rows(seed: int, range_by: str) -> None:
    labels, told = numbers_of(seed)
    rows, weights = drawn(seed, len(labels))
    expected = mixed(labels[rows], told[rows], range_by=range_by).score
    assert resampled_mixed(labels, told, range_by=range_by)(weights)[0] == pytest.approx(expected)
    assert 0 <= expected <= 1


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_metrics_do_not_depend_on_the_order_of_the_rows(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(50)
    labels, told = numbers_of(seed)
    for name in ("pearson", "spearman", "pearson_r2", "r2_score", "mae", "rmse"):
        metric = getattr(metrics, name)
        assert metric(labels[order], told[order]) == pytest.approx(metric(labels, told))
    assert mixed(labels[order], told[order]).score == pytest.approx(mixed(labels, told).score)
    classes, answers = classes_of(seed, n=50)
    assert metrics.mcc(classes[order], answers[order], 3) == pytest.approx(metrics.mcc(classes, answers, 3))


WORDS = ["the", "protein", "binds", "atp", "and", "cuts", "a", "chain", "of", "sugars", "near", "its", "heme"]
texts = st.lists(st.sampled_from(WORDS), min_size=5, max_size=14).map(" ".join)


def test_bleu_has_the_brevity_penalty_of_its_definition() -> None:
    # F-13: c <= r: exp(1 - r/c); all n-grams of the shorter text stand in the reference.
    reference, text = "a b c d e f g h", "a b c d e f"
    assert text_metrics.bleu([reference], [text]) == pytest.approx(math.exp(1 - 8 / 6))
    assert text_metrics.bleu([text], [text]) == pytest.approx(1)


@given(texts)
@settings(max_examples=20, deadline=None)
def test_identical_texts_score_as_defined(text: str) -> None:
    # F-13: METEOR of m words in one chunk is 1 - 0.5/m³.
    scores = {name: values[0] for name, values in text_metrics.overlaps([text], [text]).items()}
    words = len(text.split())
    assert scores.pop("meteor_nosyn") == pytest.approx(1 - 0.5 / words**3)
    assert list(scores.values()) == pytest.approx([1] * 5)


@given(st.lists(st.tuples(texts, st.one_of(st.none(), texts)), min_size=1, max_size=5), seeds)
@settings(max_examples=20, deadline=None)
def test_text_scores_lie_in_their_range_and_resample_as_their_rows(
    rows: list[tuple[str, str | None]], seed: int
) -> None:
    references, told = [row[0] for row in rows], [row[1] for row in rows]
    for values in text_metrics.overlaps(references, told).values():
        assert ((values >= 0) & (values <= 1 + 1e-9)).all()
    chosen, weights = drawn(seed, len(rows))
    counts = text_metrics.bleu_counts(references, told)
    for order in (1, 4):
        expected = text_metrics.bleu([references[i] for i in chosen], [told[i] for i in chosen], order)
        assert text_metrics.resampled_bleu(counts, order)(weights)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [("Binds  ATP", "it binds atp.", 1), ("abcd", "xxbcx", 0.5), ("abcd", "", 0), (" ", "a", 0)],
)
def test_longest_common_stretch(reference: str, text: str, expected: float) -> None:
    """AMB-24: contiguous, case-folded, spaces made single, over the reference's length."""
    assert text_metrics.longest_common(reference, text) == pytest.approx(expected)


def test_longest_common_stretch_is_that_of_all_pairs() -> None:
    generator = np.random.default_rng(5)
    first, second = ("".join(generator.choice(list("abc"), 300)) for _ in range(2))
    pieces = {first[i:j] for i, j in itertools.combinations(range(301), 2)}
    longest = max(len(piece) for piece in pieces if piece in second)
    assert text_metrics.longest_common(first, second) == longest / 300
