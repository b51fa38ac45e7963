"""Measurements of every kind of label: values, intervals, notes, and bad input that is named and never crashes late."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polysome.config import DataError
from polysome.evaluation import metrics
from polysome.evaluation.measure import Measurement, compare, is_error, measure, predictions_of
from polysome.evaluation.official import DENIED, WRONG, Prediction
from polysome.specs import METRICS, MulticlassLabel, MultilabelLabel, MultiRegressionLabel, Task, Value, dataset, names

TASKS = {
    "mcc": "core_promoter",
    "accuracy": "ncrna_family",
    "spearman": "stability",
    "pearson": "enhancer_activity",
    "pearson_r2": "apa_isoform",
    "mean_pearson_r2": "toehold_switches",
    "auc": "rna_modification",
    "fmax": "ec_number",
    "mixed": "sirna_efficacy",
    "rouge_l": "mol_instructions_general_function",
}


def task_of(name: str) -> Task:
    task = dataset(TASKS.get(name, name)).task
    assert task is not None
    return task


def rows_of(task: Task, n: int, seed: int) -> tuple[list[Value | str], list[Prediction], np.ndarray | None]:
    """Labels of the task's kind, predictions that are right in three of four rows, and matching scores."""
    generator = np.random.default_rng(seed)
    label = task.label
    labels: list[Value | str] = []
    if label.kind == "generation":
        words = ["the", "protein", "binds", "atp", "and", "cuts", "sugar", "chains"]
        labels += [" ".join(generator.choice(words, 8)) for _ in range(n)]
    elif isinstance(label, MultilabelLabel):
        labels += [
            tuple(sorted(float(place) for place in generator.choice(len(label.classes), size, replace=False)))
            for size in generator.integers(0 if label.none else 1, 3, n)
        ]
    elif label.kind in ("binary", "multiclass"):
        classes = len(label.classes) if isinstance(label, MulticlassLabel) else 2
        labels += [(float(place),) for place in generator.integers(0, classes, n)]
    else:
        width = len(label.outputs) if isinstance(label, MultiRegressionLabel) else 1
        labels += [tuple(row) for row in generator.random((n, width)).round(2).tolist()]
    wrong = [*labels[1:], labels[0]]
    right = generator.random(n) < 0.75
    predictions = [one if kept else other for one, other, kept in zip(labels, wrong, right, strict=True)]
    return labels, list(predictions), scores_of(task, predictions, generator)


def scores_of(task: Task, predictions: list, generator: np.random.Generator) -> np.ndarray | None:
    label = task.label
    if label.kind == "generation":
        return None
    if label.kind in ("regression", "multi_regression"):
        return np.array(predictions)
    classes = len(label.classes) if isinstance(label, MulticlassLabel | MultilabelLabel) else 2
    scores = generator.normal(size=(len(predictions), classes))
    for row, value in enumerate(predictions):
        scores[row, [int(place) for place in value]] += 4
    return scores


def test_every_metric_that_a_task_may_declare_has_a_task_here() -> None:
    assert set(TASKS) == {metric for kind in METRICS.values() for metric in kind}
    assert all(task_of(metric).metric == metric for metric in TASKS)


@pytest.mark.parametrize("metric", TASKS)
def test_right_answers_reach_the_best_value_and_everything_survives_json(metric: str) -> None:
    task = task_of(metric)
    labels, predictions, scores = rows_of(task, 48, 1)
    perfect = measure(task, labels, list(labels), seed=1, resamples=20)
    assert perfect.value.value == pytest.approx(1, abs=1e-6 if metric != "rouge_l" else 1e-3)
    found = measure(
        task, labels, predictions, seed=1, resamples=50, scores=scores, subsets=["a", "b"] * 24, style="strict"
    )
    assert found.metric == metric
    assert found.value.low <= found.value.value <= found.value.high
    assert found.value.value < perfect.value.value
    assert found.parse_rate is not None
    assert found.parse_rate.value == 1
    assert {name: part.n for name, part in found.subsets.items()} == {"a": 24, "b": 24}
    assert set(found.subsets["a"].extras) == set(found.extras)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["value"] == round(100 * found.value.value, 2)
    assert Measurement.from_json(content).to_json() == found.to_json()
    if scores is not None:
        scored = found.extras[f"{metric}_scored"]
        assert scored == found.value if scores.ndim == 1 or "regression" in task.label.kind else scored.value > 0.4


@pytest.mark.parametrize("metric", TASKS)
def test_a_system_that_answers_nothing_is_measured_and_said_so(metric: str) -> None:
    """What a model that only read raw sequences gives."""
    task = task_of(metric)
    labels, _, _ = rows_of(task, 48, 2)
    for style in ("strict", "official"):
        found = measure(task, labels, [None] * 48, seed=1, resamples=20, style=style)  # type: ignore[arg-type]
        assert found.parse_rate is not None
        assert found.parse_rate.value == 0
        assert "no answer could be parsed" in found.notes
        if (style, metric) == ("official", "auc") and math.isnan(found.value.value):
            continue
        # A set that nobody told ranks nothing; the official Fmax then goes through the classes in their order.
        assert found.value.value <= {"auc": 0.5, "fmax": 0.1}.get(metric, 0)


@pytest.mark.parametrize("metric", TASKS)
def test_no_examples_are_told_and_not_a_zero(metric: str) -> None:
    found = measure(task_of(metric), [], [], seed=1)
    assert math.isnan(found.value.value)
    assert found.notes == ("no examples: nothing was measured",)
    assert found.to_json()["value"] is None


@pytest.mark.parametrize("metric", TASKS)
def test_a_single_example_is_measured(metric: str) -> None:
    task = task_of(metric)
    labels, predictions, scores = rows_of(task, 1, 3)
    assert measure(task, labels, predictions, seed=1, resamples=10, scores=scores).n == 1


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("mcc", (math.nan,)),
        ("mcc", (2.0,)),
        ("mcc", ()),
        ("accuracy", (13.0,)),
        ("spearman", (math.inf,)),
        ("spearman", (1.0, 2.0)),
        ("pearson", (1.0,)),
        ("pearson", (1.0, math.nan)),
        ("auc", (12.0,)),
        ("auc", (1.0, 1.0)),
        ("fmax", (0.5,)),
        ("rouge_l", "  "),
        ("rouge_l", ()),
        ("mixed", "12"),
    ],
)
def test_a_label_that_is_none_is_refused_with_its_row(metric: str, label: Value | str) -> None:
    task = task_of(metric)
    labels, predictions, _ = rows_of(task, 4, 1)
    labels[2] = label
    with pytest.raises(DataError, match="row 2"):
        measure(task, labels, predictions, seed=1)


@pytest.mark.parametrize(
    ("metric", "prediction"),
    [("mcc", (7.0,)), ("spearman", "4.2"), ("pearson", (1.0, 2.0, 3.0)), ("rouge_l", (1.0,)), ("auc", "m6A")],
)
def test_a_prediction_of_another_kind_is_a_mistake_of_the_caller(metric: str, prediction: Prediction) -> None:
    task = task_of(metric)
    labels, predictions, _ = rows_of(task, 4, 1)
    with pytest.raises(ValueError, match="prediction"):
        measure(task, labels, [*predictions[:3], prediction], seed=1)


def test_lengths_and_shapes_must_agree() -> None:
    task = task_of("mcc")
    labels, predictions, scores = rows_of(task, 4, 1)
    with pytest.raises(ValueError, match="4 labels and 3 predictions"):
        measure(task, labels, predictions[:3], seed=1)
    with pytest.raises(ValueError, match="3 groups"):
        measure(task, labels, predictions, seed=1, groups=np.arange(3))
    with pytest.raises(ValueError, match="shape"):
        measure(task, labels, predictions, seed=1, scores=np.zeros((4, 5)))
    with pytest.raises(ValueError, match="no scores"):
        measure(task_of("rouge_l"), ["a b"], ["a b"], seed=1, scores=np.zeros((1, 1)))
    assert scores is not None


def test_unparsable_rows_are_pro_rated_or_wrong() -> None:
    """F-6 and A-110..A-114 through the door that evaluations use."""
    numbers = task_of("spearman")
    labels: list[Value | str] = [(value,) for value in [*np.arange(8.0), 9.0, 4.0]]
    told: list[Prediction] = [(value,) for value in [4.0, 2, 1, 3, 0, 7, 6, 5]]
    found = measure(numbers, labels, [*told, None, (math.inf,)], seed=1, resamples=10)
    assert found.value.value == pytest.approx(0.4)
    assert found.parse_rate is not None
    assert found.parse_rate.value == 0.8
    binary = measure(task_of("mcc"), [(1.0,), (0.0,)] * 2, [(1.0,), (0.0,), None, None], seed=1, resamples=10)
    assert (binary.value.value, binary.extras["accuracy"].value) == (0, 0.5)


def test_markers_of_the_official_parser_are_resolved_by_the_label() -> None:
    found = measure(task_of("mcc"), [(1.0,), (0.0,)], [WRONG, WRONG], seed=1, resamples=10, style="official")
    assert found.value.value == -1
    assert any("2 answers say that they do not know" in note for note in found.notes)
    task = task_of("auc")
    labels: list[Value | str] = [(), (0.0,), (1.0,)]
    told = measure(task, labels, [DENIED, DENIED, (1.0,)], seed=1, resamples=10, style="official")
    plain = measure(task, labels, [(), None, (1.0,)], seed=1, resamples=10, style="official")
    assert told.extras == plain.extras
    assert told.parse_rate == plain.parse_rate


def test_official_answers_that_nothing_judged_are_counted_aloud() -> None:
    found = measure(task_of("mcc"), [(1.0,)] * 3 + [(0.0,)], [None, (1.0,), None, (0.0,)], seed=1, style="official")
    assert any(note.startswith("2 answers hold no keyword") for note in found.notes)


@pytest.mark.parametrize(("metric", "said"), [("mcc", "all labels are the same class"), ("spearman", "all labels are")])
def test_one_class_test_sets_and_constant_answers_are_told(metric: str, said: str) -> None:
    task = task_of(metric)
    same = measure(task, [(1.0,)] * 6, [(1.0,), (0.0,)] * 3, seed=1, resamples=10, scores=None)
    assert any(said in note for note in same.notes)
    assert same.value.value == 0
    constant = measure(task, [(1.0,), (0.0,)] * 3, [(1.0,)] * 6, seed=1, resamples=10)
    assert any("all answers are the same" in note for note in constant.notes)
    assert constant.value.value == 0


def test_a_one_class_test_set_has_no_area_under_the_curve() -> None:
    scores = np.random.default_rng(1).normal(size=(6, 2))
    found = measure(task_of("mcc"), [(1.0,)] * 6, [(1.0,)] * 6, seed=1, resamples=10, scores=scores)
    assert math.isnan(found.extras["auroc_scored"].value)


def test_a_one_class_test_set_is_told_whatever_the_headline() -> None:
    task = task_of("solubility")
    assert task.metric == "accuracy"
    scores = np.random.default_rng(1).normal(size=(6, 2))
    found = measure(task, [(1.0,)] * 6, [(1.0,), (0.0,)] * 3, seed=1, resamples=10, scores=scores)
    assert found.notes == (
        "all labels are the same class: MCC undefined, counted 0",
        "all labels are the same class: AUROC and AUPRC undefined",
    )
    assert measure(task, [(1.0,)] * 6, [(1.0,), (0.0,)] * 3, seed=1, resamples=10).notes == found.notes[:1]


def test_classes_that_no_row_is_of_are_named_where_scores_are_given() -> None:
    task = task_of("accuracy")
    assert isinstance(task.label, MulticlassLabel)
    classes = task.label.classes
    labels: list[Value | str] = [(0.0,), (1.0,), (3.0,)]
    scores = np.random.default_rng(1).normal(size=(3, len(classes)))
    assert measure(task, labels, list(labels), seed=1, resamples=10).notes == ()
    (note,) = measure(task, labels, list(labels), seed=1, resamples=10, scores=scores).notes
    assert note == f"no label is {', '.join([classes[2], *classes[4:]])}: left out of the means of AUROC and AUPRC"


def test_of_many_columns_of_one_class_the_first_are_named_and_the_others_counted() -> None:
    task = task_of("fmax")
    assert isinstance(task.label, MultilabelLabel)
    labels: list[Value | str] = [(0.0,), (1.0,)]
    scores = np.random.default_rng(1).normal(size=(2, len(task.label.classes)))
    (note,) = measure(task, labels, list(labels), seed=1, resamples=10, scores=scores, style="scored").notes
    assert note.startswith(f"one class alone in {task.label.classes[2]}, ")
    assert note.endswith(" and 516 others: AUC and AUPRC undefined, left out of the mean (A-116)")


@pytest.mark.parametrize("metric", ["auc", "fmax"])
def test_sets_that_are_scored_are_measured_and_compared_by_their_scores(metric: str) -> None:
    task = task_of(metric)
    labels, _, scores = rows_of(task, 40, 3)
    assert scores is not None
    told = predictions_of(task, scores)
    found = measure(task, labels, told, scores=scores, style="scored", seed=1, resamples=50)
    hard = measure(task, labels, told, seed=1, resamples=50)
    assert found.value == found.extras[f"{metric}_scored"]
    assert found.extras[metric].value == hard.value.value < found.value.value
    apart = compare(task, labels, told, told, scores=(scores, None), style="scored", seed=1, resamples=50)
    assert apart.value == pytest.approx(found.value.value - hard.value.value)


def test_columns_of_one_class_are_left_out_strictly_and_undo_the_official_auc() -> None:
    """A-116."""
    task = task_of("auc")
    labels: list[Value | str] = [(0.0,), (1.0,), (0.0, 1.0), ()]
    predictions: list[Prediction] = [(0.0,), (1.0,), (1.0,), ()]
    strict = measure(task, labels, predictions, seed=1, resamples=10)
    # Am: 1 of 2 found, none wrongly; Cm and none: perfect.
    assert strict.value.value == pytest.approx((0.75 + 1 + 1) / 3)
    assert any("Gm, Um" in note and "left out of the mean" in note for note in strict.notes)
    official = measure(task, labels, predictions, seed=1, resamples=10, style="official")
    assert math.isnan(official.value.value)
    assert any("official AUC is undefined" in note for note in official.notes)


def test_none_has_a_column_of_its_own() -> None:
    """A-104: the answer `none` is right where the label is, an unparsable one names nothing, not even that."""
    task = task_of("auc")
    labels: list[Value | str] = [(), (0.0,)] * 4
    assert measure(task, labels, list(labels), seed=1, resamples=10).value.value == 1
    silent = measure(task, labels, [None] * 8, seed=1, resamples=10)
    assert silent.value.value == 0.5


def test_r2_is_the_squared_correlation_and_the_true_one_stands_beside() -> None:
    """A-114, A-115, AMB-21."""
    task = task_of("mean_pearson_r2")
    generator = np.random.default_rng(1)
    truth = generator.random((60, 3))
    told = np.stack([1 - truth[:, 0], truth[:, 1] * 2, generator.random(60)], axis=1)
    found = measure(task, [*map(tuple, truth)], [*map(tuple, told)], seed=1, resamples=50)
    assert found.extras["pearson_r2_ON"].value == pytest.approx(1)
    assert found.extras["pearson_ON"].value == pytest.approx(-1)
    assert found.extras["r2_score_ON"].value < 0
    third = np.corrcoef(truth[:, 2], told[:, 2])[0, 1] ** 2
    assert found.value.value == pytest.approx((2 + third) / 3)
    assert found.value.low < found.value.value < found.value.high


def test_proportions_are_also_correlated_in_log_odds() -> None:
    task = task_of("pearson_r2")
    labels = [(value,) for value in (0.0, 0.2, 0.5, 0.7, 1.0)]
    found = measure(task, labels, [(0.01,), (0.3,), (0.4,), (0.8,), (0.99,)], seed=1, resamples=50)
    assert 0.9 < found.extras["pearson_r2_logit"].value < 1


def test_the_mixed_score_stands_with_its_pieces() -> None:
    """F-1."""
    labels = [(value,) for value in (10.0, 20.0, 50.0, 80.0)]
    found = measure(task_of("mixed"), labels, [(12.0,), (40.0,), (25.0,), (70.0,)], seed=1, resamples=50)
    assert found.value.value == pytest.approx(0.645)
    pieces = {piece: found.extras[f"mixed_{piece}"].value for piece in ("mae", "f1", "range_mae")}
    assert pieces == pytest.approx({"mae": 14.25, "f1": 0.5, "range_mae": 13.5})
    beyond = measure(task_of("mixed"), labels, [(12.0,), (40.0,), (25.0,), (7e4,)], seed=1, resamples=50)
    assert any("1 answers are beyond" in note for note in beyond.notes)


def test_rows_without_scores_count_as_wrong_and_are_told() -> None:
    task = task_of("mcc")
    labels: list[Value | str] = [(1.0,), (0.0,)] * 4
    scores = np.array([[-2.0, -1.0], [-1.0, -2.0]] * 4)
    whole = measure(task, labels, list(labels), seed=1, resamples=10, scores=scores)
    assert whole.extras["auroc_scored"].value == whole.extras["mcc_scored"].value == 1
    scores[:2] = np.nan
    gaps = measure(task, labels, list(labels), seed=1, resamples=10, scores=scores)
    assert gaps.extras["auroc_scored"].value < 0.8
    assert gaps.extras["accuracy_scored"].value == 0.75
    assert any("2 rows have no scores" in note for note in gaps.notes)


def test_scores_alone_give_predictions() -> None:
    assert predictions_of(task_of("mcc"), np.array([[-1.0, -2], [-3, -1], [np.nan, -1]])) == [(0.0,), (1.0,), None]
    assert predictions_of(task_of("spearman"), np.array([1.5, np.nan])) == [(1.5,), None]
    assert predictions_of(task_of("pearson"), np.array([[1.5, 2], [np.nan, 1]])) == [(1.5, 2.0), None]
    with_none = np.eye(13)[[0, 12]]
    assert predictions_of(task_of("auc"), with_none) == [(0.0,), ()]


def test_leakage_groups_widen_the_interval() -> None:
    """E-5: forty groups of ten equal rows are forty observations."""
    generator = np.random.default_rng(1)
    task = task_of("accuracy")
    labels = [(float(place),) for place in np.repeat(generator.integers(0, 13, 40), 10)]
    right = np.repeat(generator.random(40) < 0.6, 10)
    told: list[Prediction] = [
        label if kept else ((label[0] + 1) % 13,) for label, kept in zip(labels, right, strict=True)
    ]
    alone = measure(task, labels, told, seed=1)
    grouped = measure(task, labels, told, seed=1, groups=np.repeat(np.arange(40), 10))
    single = measure(task, labels, told, seed=1, groups=np.arange(400))
    assert single.value == alone.value
    ratio = (grouped.value.high - grouped.value.low) / (alone.value.high - alone.value.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.2)


def test_no_resamples_give_no_interval_but_of_shares() -> None:
    labels, predictions, _ = rows_of(task_of("spearman"), 50, 1)
    found = measure(task_of("spearman"), labels, predictions, seed=1, resamples=0)
    assert not math.isnan(found.value.value)
    assert math.isnan(found.value.low)
    labels, predictions, _ = rows_of(task_of("accuracy"), 50, 1)
    assert measure(task_of("accuracy"), labels, predictions, seed=1, resamples=0).value.low > 0


def test_files_of_before_are_read() -> None:
    labels, predictions, _ = rows_of(task_of("mcc"), 20, 1)
    content = measure(task_of("mcc"), labels, predictions, seed=1, resamples=10).to_json()
    old = {key: value for key, value in content.items() if key not in ("style", "extras")}
    read = Measurement.from_json(old)
    assert (read.style, dict(read.extras)) == ("strict", {})
    assert read.value == Measurement.from_json(content).value


@pytest.mark.parametrize("metric", TASKS)
def test_systems_are_compared_on_the_same_rows(metric: str) -> None:
    task = task_of(metric)
    labels, predictions, _ = rows_of(task, 80, 1)
    found = compare(task, labels, list(labels), predictions, seed=1, resamples=100)
    worse = measure(task, labels, predictions, seed=1, resamples=0).value.value
    assert found.value == pytest.approx(1 - worse, abs=2e-3)
    assert 0 < found.low <= found.value <= found.high
    assert found.p < 0.05
    assert found.minimum_detectable > 0
    assert compare(task, labels, predictions, predictions, seed=1, resamples=20).p == 1


def test_comparing_nothing_gives_nothing() -> None:
    assert math.isnan(compare(task_of("mcc"), [], [], [], seed=1).p)


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(TASKS)))
@settings(max_examples=40, deadline=None)
def test_values_lie_in_their_range_and_do_not_depend_on_the_order(seed: int, metric: str) -> None:
    task = task_of(metric)
    labels, predictions, scores = rows_of(task, 20, seed)
    lost = np.random.default_rng(seed).random(20) < 0.2
    predictions = [None if gone else told for told, gone in zip(predictions, lost, strict=True)]
    found = measure(task, labels, predictions, seed=1, resamples=0, scores=scores)
    signed = ("mcc", "spearman", "pearson")
    for name, estimate in {metric: found.value, **found.extras}.items():
        if not math.isnan(estimate.value) and not name.startswith("r2_score") and not is_error(name):
            assert (-1 if name.startswith(signed) else 0) - 1e-9 <= estimate.value <= 1 + 1e-9, name
    order = np.random.default_rng(seed).permutation(20)
    moved = measure(
        task,
        [labels[place] for place in order],
        [predictions[place] for place in order],
        seed=1,
        resamples=0,
        scores=None if scores is None else scores[order],
    )
    for name, estimate in found.extras.items():
        assert moved.extras[name].value == pytest.approx(estimate.value, nan_ok=True, abs=1e-9), name
    assert moved.value.value == pytest.approx(found.value.value, nan_ok=True, abs=1e-9)


def test_every_declared_task_can_be_measured() -> None:
    for name in names():
        task = dataset(name).task
        if task is None or (isinstance(task.label, MultilabelLabel) and len(task.label.classes) > 1000):
            continue
        labels, predictions, _ = rows_of(task, 6, 1)
        found = measure(task, labels, predictions, seed=1, resamples=0)
        assert found.metric == task.metric
        assert not math.isnan(found.value.value), name


def test_errors_are_told_from_scores() -> None:
    assert [
        name for name in ("mae", "rmse_hk", "mixed_mae", "mae_scored", "mixed", "mcc", "accuracy") if is_error(name)
    ] == [
        "mae",
        "rmse_hk",
        "mixed_mae",
        "mae_scored",
    ]


def test_the_majority_of_a_large_class_is_an_accuracy_but_no_correlation() -> None:
    labels: list[Value | str] = [(1.0,)] * 90 + [(0.0,)] * 10
    found = measure(task_of("mcc"), labels, [(1.0,)] * 100, seed=1, parsed=False, resamples=50)
    assert (found.value.value, found.extras["accuracy"].value, found.parse_rate) == (0, 0.9, None)
    assert found.extras["f1_macro"].value == pytest.approx(
        metrics.precision_recall_f1(np.array([1.0] * 90 + [0.0] * 10), np.ones(100), 2, "macro")[2]
    )
