"""Mixtures: the examples of an epoch are exactly those that the recipe declares, and a pure function of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.config import ConfigurationError, DataError, validate
from polysome.data.config import PrepareSettings
from polysome.data.mixture import FileSurvey, apportion, select

SIZES = {"a": [50, 30], "b": [7], "c": [1000]}


def settings(sources=None, **changes):
    content = {
        "kind": "instruct",
        "max_length": 64,
        "sources": sources or [{"dataset": name} for name in SIZES],
        **changes,
    }
    return validate(PrepareSettings, content, where="test")


def surveys(sizes=SIZES, *, held=()):
    files = []
    for source, counts in enumerate(sizes.values()):
        for count in counts:
            keys = np.arange(count, dtype=np.uint64) + np.uint64(1000 * len(files))
            marks = np.full(count, -1, np.int32)
            marks[list(held)] = 0
            files.append(FileSurvey(source, "", keys, np.zeros(count, np.uint64), marks))
    return files


def taken(selection, files):
    """Examples per source in an epoch."""
    counts = {}
    for file, passes in zip(files, selection.passes, strict=True):
        counts[file.source] = counts.get(file.source, 0) + sum(int(mask.sum()) for mask in passes)
    return list(counts.values())


def test_natural_takes_all_times_their_repeat():
    files = surveys()
    sources = [{"dataset": "a", "repeat": 2}, {"dataset": "b"}, {"dataset": "c", "limit": 10}]
    selection = select(settings(sources), files)
    assert taken(selection, files) == [160, 7, 10]
    assert selection.beyond_limit == [0, 0, 990]


def test_balanced_brings_every_data_set_down_to_the_smallest():
    files = surveys()
    selection = select(settings(mixture={"by": "balanced"}), files)
    assert taken(selection, files) == [7, 7, 7]
    assert selection.not_drawn == [73, 0, 993]
    # Both files of a data set are drawn from together.
    drawn = [sum(int(mask.sum()) for mask in passes) for passes in selection.passes[:2]]
    assert sum(drawn) == 7
    assert min(drawn) > 0


def test_probabilities_are_exact_and_small_sources_are_repeated_evenly():
    files = surveys()
    sources = [{"dataset": n, "probability": p} for n, p in (("a", 0.5), ("b", 0.25), ("c", 0.25))]
    selection = select(settings(sources, mixture={"by": "probability", "examples": 400}), files)
    assert taken(selection, files) == [200, 100, 100]
    (b,) = [passes for file, passes in zip(files, selection.passes, strict=True) if file.source == 1]
    times = np.sum([mask.astype(int) for mask in b], axis=0)
    assert sorted(set(times.tolist())) == [14, 15]


def test_temperature_one_is_natural_and_a_high_one_even():
    files = surveys()
    assert taken(select(settings(mixture={"by": "temperature", "temperature": 1}), files), files) == [80, 7, 1000]
    even = taken(select(settings(mixture={"by": "temperature", "temperature": 1e9, "examples": 300}), files), files)
    assert even == [100, 100, 100]


def test_protected_examples_are_never_drawn():
    files = surveys(held=(0, 1, 2))
    selection = select(settings(mixture={"by": "balanced"}), files)
    assert taken(selection, files) == [4, 4, 4]
    assert not any(mask[:3].any() for passes in selection.passes for mask in passes)
    sources = [{"dataset": "a", "probability": 0.5}, {"dataset": "b", "probability": 0.5}]
    chosen = settings(sources, mixture={"by": "probability"})
    with pytest.raises(DataError, match="no example left"):
        select(chosen, surveys({"a": [3], "b": [9]}, held=(0, 1, 2)))


def test_duplicates_keep_the_first_and_conflicts_go():
    keys = np.array([1, 2, 1, 3, 3, 4], np.uint64)
    labels = np.array([0, 0, 0, 0, 1, 1], np.uint64)
    files = [FileSurvey(0, "", keys, labels, np.full(6, -1, np.int32))]
    sources = [{"dataset": "a"}]
    exact = select(settings(sources, deduplicate="exact"), files)
    assert exact.passes[0][0].tolist() == [True, True, False, True, True, True]
    both = select(settings(sources, deduplicate="exact", conflicting_labels="drop"), files)
    assert both.passes[0][0].tolist() == [True, True, False, False, False, True]
    assert (both.duplicates, both.conflicts) == ([1], [2])


@given(st.integers(0, 10_000), st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_parts_add_up_and_are_within_one_of_exact(total, weights):
    parts = apportion(total, weights)
    assert sum(parts) == total
    assert all(
        abs(part - total * weight / sum(weights)) < 1 + 1e-6 for part, weight in zip(parts, weights, strict=True)
    )


def test_a_selection_is_a_pure_function_of_recipe_and_survey():
    files = surveys()
    first, second, other = (select(settings(mixture={"by": "balanced"}, seed=seed), files) for seed in (1, 1, 2))
    flat = [np.concatenate([mask for passes in chosen.passes for mask in passes]) for chosen in (first, second, other)]
    assert np.array_equal(flat[0], flat[1])
    assert not np.array_equal(flat[0], flat[2])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sources": [{"dataset": "a", "repeat": "2_1_1"}]}, "2_1_1' is not one number"),
        ({"mixture": {"by": "probability"}}, "has a probability"),
        (
            {"mixture": {"by": "probability"}, "sources": [{"dataset": "a", "probability": 0.6}]},
            "add up to 0.6",
        ),
        ({"mixture": {"by": "balanced"}, "sources": [{"dataset": "a", "repeat": 2}]}, "repeat is for a natural"),
        ({"mixture": {"by": "balanced", "examples": 5}}, "use limit"),
        ({"mixture": {"by": "equal"}}, "mixture.by"),
        ({"exclude": [{"dataset": "a", "split": "train"}]}, "both a source and excluded"),
    ],
)
def test_contradictory_mixtures_are_refused(changes, problem):
    with pytest.raises(ConfigurationError, match=problem):
        settings(**changes)
