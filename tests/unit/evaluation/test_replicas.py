"""Several draws of an answer: what they say together, and how far they agree."""

from collections.abc import Callable

import pytest

from polysome.evaluation.official import WRONG
from polysome.evaluation.replicas import agreement, vote
from polysome.specs import Task, dataset


@pytest.fixture
def task(declare: Callable[..., str]) -> Callable[[str], Task]:
    def declared(kind: str) -> Task:
        found = dataset(declare(kind)).task
        assert found is not None
        return found

    return declared


def test_of_classes_the_majority_counts_and_what_cannot_be_read_has_no_vote(task) -> None:
    yes, no = (1.0,), (0.0,)
    binary = task("binary")
    assert vote(binary, [no, yes, yes]) == yes
    assert vote(binary, [None, None, no]) == no
    assert vote(binary, [yes, no]) == yes
    assert vote(binary, [None, None]) is None
    # The official parser counts a doubt by its identity.
    assert vote(binary, [WRONG, WRONG, yes]) is WRONG
    assert vote(task("multilabel"), [(0.0, 2.0), (), (0.0, 2.0)]) == (0.0, 2.0)


def test_of_numbers_the_median_of_each_output_counts(task) -> None:
    assert vote(task("regression"), [(1.0,), None, (100.0,), (3.0,)]) == (3.0,)
    assert vote(task("multi_regression"), [(1.0, 9.0), (2.0, 7.0), (3.0, 8.0)]) == (2.0, 8.0)


def test_of_free_text_the_first_counts_though_it_be_empty(task) -> None:
    assert vote(task("generation"), [None, "binds"]) is None
    assert agreement(task("generation"), [["binds", "cuts"]]) == "the first answer to each question is measured"


def test_agreement_is_told_in_the_terms_of_the_label(task) -> None:
    yes, no = (1.0,), (0.0,)
    assert "75.0 % agree" in agreement(task("binary"), [[yes, yes, no, None], [no, no, no, no], [None] * 4])
    told = agreement(task("regression"), [[(1.0,), (3.0,)], [(1.0,), (5.0,)], [None] * 2])
    assert "a standard deviation of 1.5 on average" in told
    assert "none agree" in agreement(task("binary"), [[None, None]])
