"""Intervals, paired comparisons and corrections against scipy, plain resampling and hand-made cases."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import binomtest, norm, spearmanr
from sklearn.metrics import matthews_corrcoef

from polysome.evaluation import metrics, resampling, statistics

NAN = float("nan")


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (7, 20), (40, 40), (7, 41), (900, 1000)])
def test_shares_get_the_exact_interval_up_to_40_rows_and_wilsons_beyond(successes: int, n: int) -> None:
    """E-5."""
    test = binomtest(successes, n)
    exact, wilson = test.proportion_ci(method="exact"), test.proportion_ci(method="wilson")
    assert statistics.exact(successes, n) == pytest.approx((exact.low, exact.high))
    assert statistics.wilson(successes, n) == pytest.approx((wilson.low, wilson.high))
    chosen = exact if n <= 40 else wilson
    assert statistics.share_interval(successes, n) == pytest.approx((chosen.low, chosen.high))


def test_nothing_has_no_interval() -> None:
    assert np.isnan(statistics.share_interval(0, 0)).all()
    values = statistics.bootstrap({"mean": resampling.mean(np.zeros(0))}, 0, resamples=5, seed=1)
    assert np.isnan(statistics.percentiles(values["mean"])).all()
    assert statistics.percentiles(np.array([NAN, 1.0, 3.0])) == pytest.approx((1.05, 2.95))


def test_the_bootstrap_agrees_with_resampling_the_rows_by_hand() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, 400).astype(float)
    told = np.where(generator.random(400) < 0.75, labels, 1 - labels)
    numbers = generator.normal(size=400)
    noisy = numbers + generator.normal(size=400)
    rows = generator.integers(0, 400, (1000, 400))
    by_hand = {
        "mcc": [matthews_corrcoef(labels[chosen], told[chosen]) for chosen in rows],
        "spearman": [spearmanr(numbers[chosen], noisy[chosen]).statistic for chosen in rows],
    }
    values = statistics.bootstrap(
        {
            "mcc": resampling.mcc(labels, told.astype(np.int64), 2),
            "spearman": resampling.spearman(numbers, noisy),
        },
        400,
        resamples=4000,
        seed=1,
    )
    for name, expected in by_hand.items():
        interval = statistics.percentiles(values[name])
        assert interval == pytest.approx(np.percentile(expected, [2.5, 97.5]), abs=0.02)


def test_the_bootstrap_is_seeded() -> None:
    mean = {"mean": resampling.mean(np.arange(30.0))}
    first, again, other = (
        statistics.bootstrap(mean, 30, resamples=50, seed=seed)["mean"].tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_rows_of_a_leakage_group_are_drawn_together() -> None:
    """Copies of rows add nothing: the interval of 50 groups of 20 equal rows is that of the 50 rows."""
    values = np.random.default_rng(3).normal(size=50)
    copied, groups = np.repeat(values, 20), np.repeat(np.arange(50) + 7, 20)

    def width(rows: np.ndarray, groups: np.ndarray | None) -> float:
        drawn = statistics.bootstrap({"mean": resampling.mean(rows)}, len(rows), resamples=2000, seed=1, groups=groups)
        low, high = statistics.percentiles(drawn["mean"])
        return high - low

    alone = width(values, None)
    assert width(copied, groups) == pytest.approx(alone, rel=0.1)
    assert width(copied, None) == pytest.approx(alone / math.sqrt(20), rel=0.1)


def test_groups_of_unequal_size_weigh_by_their_rows() -> None:
    weights = []

    def record(drawn: np.ndarray) -> np.ndarray:
        weights.append(drawn.copy())
        return np.zeros(len(drawn))

    statistics.bootstrap({"x": record}, 5, resamples=20, seed=1, groups=np.array([9, 9, 2, 2, 2]))
    drawn = np.concatenate(weights)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 2:] == drawn[:, 2:3]).all()
    assert (drawn[:, 0] + drawn[:, 2] == 2).all()


def test_paired_difference_is_narrower_than_the_systems_own_intervals_and_finds_it() -> None:
    generator = np.random.default_rng(4)
    labels = generator.normal(size=600)
    shared = generator.normal(size=600)
    good, poor = (labels + shared + generator.normal(size=600) * noise for noise in (0.2, 1.2))
    value = metrics.spearman(labels, good) - metrics.spearman(labels, poor)
    pair = (resampling.spearman(labels, good), resampling.spearman(labels, poor))
    found = statistics.difference(value, *pair, 600, resamples=1000, seed=1)
    assert 0 < found.low < value < found.high
    assert found.p == pytest.approx(2 / 1001)
    alone = statistics.bootstrap({"good": pair[0]}, 600, resamples=1000, seed=1)["good"]
    low, high = statistics.percentiles(alone)
    assert found.high - found.low < high - low
    assert found.minimum_detectable == pytest.approx(2.8 * (found.high - found.low) / 3.92, rel=0.1)


def test_a_system_does_not_differ_from_itself() -> None:
    mean = resampling.mean(np.arange(20.0))
    assert statistics.difference(0.0, mean, mean, 20, resamples=100, seed=1) == statistics.Difference(0, 0, 0, 1, 0)


def test_p_values_are_uniform_where_there_is_no_difference() -> None:
    generator = np.random.default_rng(5)
    p_values = []
    for seed in range(200):
        first, second = generator.normal(size=(2, 100))
        found = statistics.difference(
            first.mean() - second.mean(),
            resampling.mean(first),
            resampling.mean(second),
            100,
            resamples=200,
            seed=seed,
        )
        p_values.append(found.p)
    assert np.mean(np.array(p_values) < 0.05) < 0.11
    assert 0.4 < np.mean(p_values) < 0.6


def test_minimum_detectable_difference_is_found_with_the_stated_power() -> None:
    detectable = statistics.minimum_detectable(0.01)
    assert detectable == pytest.approx(0.02802, abs=1e-5)
    assert norm.sf(norm.ppf(0.975) - detectable / 0.01) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.01, NAN, 0.02], [0.02, NAN, 0.02]),
        ([], []),
    ],
)
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    assert statistics.holm(p_values) == pytest.approx(adjusted, nan_ok=True)


def test_resamples_of_a_large_test_set_take_little_memory() -> None:
    """27,217 rows is the largest test set of one number (A-32); 200 resamples at once would take gigabytes."""
    generator = np.random.default_rng(6)
    labels = generator.normal(size=27_217).round(2)
    spearman = resampling.spearman(labels, (labels + generator.normal(size=27_217)).round(1))
    tracemalloc.start()
    statistics.bootstrap({"spearman": spearman}, 27_217, resamples=200, seed=1)
    assert tracemalloc.get_traced_memory()[1] < 400e6
    tracemalloc.stop()
