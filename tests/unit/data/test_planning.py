"""Plans: best-fit-decreasing as the textbook has it, and rows that are searched for where it leaves gaps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polysome.data.planning import plan, plan_closest, plan_minimum_slack

lengths_strategy = st.lists(st.integers(1, 64), max_size=200)


def reference_best_fit_decreasing(lengths, capacity):
    """The textbook algorithm, with a linear search for the fullest row that fits; contents of the rows."""
    rows = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


def split(planned):
    return np.split(planned.order, planned.row_starts[1:-1]) if len(planned) else []


@given(lengths_strategy, st.sampled_from([64, 65, 100, 1000]))
@settings(max_examples=200)
def test_plan_is_best_fit_decreasing(lengths, capacity):
    rows = split(plan(np.array(lengths, np.int64), capacity))
    assert sorted(document for row in rows for document in row.tolist()) == list(range(len(lengths)))
    filled = sorted(sum(lengths[document] for document in row) for row in rows)
    assert filled == sorted(map(sum, reference_best_fit_decreasing(lengths, capacity)))


@pytest.mark.parametrize(("capacity", "longest"), [(1024, 1024), (8192, 3000), (70_000, 70_000), (131_072, 66_000)])
def test_plan_is_best_fit_decreasing_for_long_rows(capacity, longest):
    # Above 65,535 the lengths do not fit the two bytes that they are sorted by first.
    lengths = np.random.default_rng(1).integers(1, longest + 1, 300)
    planned = plan(lengths, capacity)
    rows = split(planned)
    filled = sorted(int(lengths[row].sum()) for row in rows)
    assert filled == sorted(map(sum, reference_best_fit_decreasing(lengths.tolist(), capacity)))
    assert all((np.diff(lengths[row]) <= 0).all() for row in rows)
    assert np.array_equal(np.sort(planned.order), np.arange(300))


def test_documents_of_one_length_keep_their_order():
    assert [row.tolist() for row in split(plan(np.full(5, 4), 8))] == [[0, 1], [2, 3], [4]]


@given(st.lists(st.integers(1, 40), max_size=60), st.sampled_from([40, 41, 90]))
@settings(max_examples=100)
def test_minimum_slack_rows_are_as_full_as_the_documents_allow(lengths, capacity):
    rows = split(plan_minimum_slack(np.array(lengths, np.int64), capacity))
    assert sorted(document for row in rows for document in row.tolist()) == list(range(len(lengths)))
    remaining = sorted(lengths)
    for row in rows:
        held = sorted(lengths[document] for document in row)
        assert held[-1] == remaining[-1]
        sums = {0}
        for length in remaining[:-1]:
            sums |= {total + length for total in sums if total + length <= capacity - held[-1]}
        assert sum(held) == held[-1] + max(sums)
        for length in held:
            remaining.remove(length)


def test_molecules_of_a_few_sizes_are_packed_without_gaps():
    """Chats about promoters, marks and enhancers: a few sizes, and some tokens more or less by the wording."""
    generator = np.random.default_rng(3)
    molecules = generator.choice([43, 50, 70, 237, 300, 500], 8000, p=[0.15, 0.1, 0.4, 0.05, 0.1, 0.2])
    lengths = molecules + generator.integers(40, 81, len(molecules))
    for capacity in (1024, 1200):
        best_fit, closest = plan(lengths, capacity), plan_closest(lengths, capacity)
        assert lengths.sum() < 0.985 * capacity * len(best_fit)
        assert lengths.sum() > 0.995 * capacity * len(closest)


@given(lengths_strategy, st.sampled_from([64, 100, 1000]))
@settings(max_examples=50)
def test_the_closest_plan_is_never_worse_than_best_fit(lengths, capacity):
    lengths = np.array(lengths, np.int64)
    assert len(plan_closest(lengths, capacity)) <= len(plan(lengths, capacity))
