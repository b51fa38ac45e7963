"""Whose turn it is: priorities, fair shares, nobody starved, and turns that end with their jobs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.operations.queue import LEASE_SECONDS, Queue, Ticket, turns


def ticket(job: str, cpus: float = 1, gpus: float = 0, since: float = 0, **fields: str) -> Ticket:
    return Ticket(job, cpus, gpus, since=since, **fields)


def names(waiting: list[Ticket], holding: list[Ticket] = (), *, cpus: float = 4, gpus: float = 0) -> list[str]:  # type: ignore[assignment]
    return [found.job for found, may_go in turns(waiting, holding, cpus=cpus, gpus=gpus) if may_go]


def test_who_came_first_goes_first_as_far_as_there_is_room():
    assert names([ticket("b", 2, since=2), ticket("a", 2, since=1), ticket("c", 2, since=3)]) == ["a", "b"]


def test_priority_goes_before_time():
    waiting = [ticket("a", 4, since=1, priority="low"), ticket("b", 4, since=2), ticket("c", 4, priority="high")]
    assert names(waiting) == ["c"]


def test_the_team_that_holds_less_of_the_cluster_goes_first():
    waiting = [ticket("a", 1, since=1, team="big"), ticket("b", 1, since=2, team="small")]
    assert names(waiting, [ticket("x", 2, team="big"), ticket("y", 1, team="small")]) == ["b"]
    # Teams alternate also among those that go at once.
    many = [
        *(ticket(f"a{n}", since=n, team="a") for n in range(4)),
        *(ticket(f"b{n}", since=9, team="b") for n in "01"),
    ]
    assert names(many) == ["a0", "b0", "a1", "b1"]


def test_a_share_is_of_what_is_scarcest():
    waiting = [ticket("a", 1, 1, since=1, team="gpus"), ticket("b", 1, 1, since=2, team="cpus")]
    holding = [ticket("x", 1, 4, team="gpus"), ticket("y", 20, 0, team="cpus")]
    assert names(waiting, holding, cpus=100, gpus=5) == ["b"]


def test_nothing_passes_a_job_that_would_take_what_it_waits_for():
    large, small = ticket("large", 4, since=1), ticket("small", 1, since=2)
    assert names([large, small], [ticket("x", 1)]) == []
    # What it does not wait for is free to others.
    on_gpus = ticket("large", 1, 4, since=1)
    assert names([on_gpus, small], [ticket("x", 1, 1)], gpus=4) == ["small"]
    assert names([on_gpus, ticket("small", 1, 1, since=2)], [ticket("x", 1, 1)], gpus=4) == []


def test_what_is_larger_than_the_cluster_is_left_to_ray_and_holds_nobody_back():
    assert names([ticket("huge", 400), ticket("a", 4, since=1)]) == ["huge", "a"]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.sampled_from(["low", "normal", "high"])), max_size=12)
)
def test_never_more_than_there_is_and_the_first_goes_as_soon_as_it_fits(needs):
    waiting = [ticket(str(n), c, g, since=n, priority=p) for n, (c, g, p) in enumerate(needs)]
    line = turns(waiting, [], cpus=6, gpus=3)
    assert sorted(found.job for found, _ in line) == sorted(found.job for found in waiting)
    fitting = [found for found, may_go in line if may_go]
    assert sum(found.cpus for found in fitting) <= 6
    assert sum(found.gpus for found in fitting) <= 3
    if waiting:
        assert fitting
        best = max(waiting, key=lambda t: (["low", "normal", "high"].index(t.priority), -t.since))
        assert best in fitting


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def queue(clock: Clock, *, restarted: bool = False) -> Queue:
    return Queue(lambda: (2.0, 0.0), clock, restarted=restarted)


def test_a_job_waits_until_the_one_before_it_leaves(clock):
    line = queue(clock)
    first, second, third = ticket("1", 2, since=1), ticket("2", 2, since=2), ticket("3", 2, since=3)
    assert line.ask(first, holds=False) == 0
    assert (line.ask(second, holds=False), line.ask(third, holds=False)) == (1, 2)
    line.leave("1")
    assert (line.ask(third, holds=False), line.ask(second, holds=False)) == (1, 0)


def test_equal_jobs_go_as_they_came_whoever_asks_first(clock):
    line = queue(clock)
    first, *rest = [ticket(name, 2, since=at) for at, name in enumerate(("zebra", "apple", "mango", "kiwi"))]
    assert line.ask(first, holds=False) == 0
    while rest:
        assert [asking for asking in reversed(rest) if line.ask(asking, holds=False) == 0] == []
        line.leave(first.job)
        assert [asking for asking in reversed(rest) if line.ask(asking, holds=False) == 0] == rest[:1]
        first = rest.pop(0)


def test_the_number_before_a_job_is_of_those_that_go_before_it(clock):
    line = queue(clock)
    line.ask(ticket("holds", 2, since=1), holds=False)
    early, late = ticket("early", 2, since=2), ticket("late", 2, since=9, priority="high")
    assert line.ask(early, holds=False) == 1
    assert line.ask(late, holds=False) == 1
    assert line.ask(early, holds=False) == 2


def test_the_turn_of_a_job_that_was_killed_ends(clock):
    line = queue(clock)
    assert line.ask(ticket("killed", 2), holds=False) == 0
    clock.now += LEASE_SECONDS - 1
    assert line.ask(ticket("next", 2, since=1), holds=False) == 1
    clock.now += 2
    assert line.ask(ticket("next", 2, since=1), holds=False) == 0


def test_a_restarted_queue_learns_who_holds_a_turn_before_it_gives_one(clock):
    line = queue(clock, restarted=True)
    assert line.ask(ticket("waits", 2, since=2), holds=False) == 1
    assert line.ask(ticket("holds", 2, since=1), holds=True) == 0
    clock.now += LEASE_SECONDS / 2
    assert line.ask(ticket("holds", 2, since=1), holds=True) == 0
    clock.now += LEASE_SECONDS / 2 + 1
    assert line.ask(ticket("waits", 2, since=2), holds=False) == 1
