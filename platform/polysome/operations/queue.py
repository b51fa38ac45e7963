"""The queue of a cluster: a submitted job waits here for its turn before it asks Ray for places (decision 0016).

One small actor per cluster knows the jobs that hold a turn and those that wait. It keeps no files: every job repeats
its ticket every few seconds, so a killed job's turn ends by itself, and a restarted actor learns again who is there.
"""

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from polysome.operations.submission import PRIORITIES, Priority

log = logging.getLogger(__name__)

ASK_SECONDS = 2.0
LEASE_SECONDS = 30.0
"""A job that has not asked for so long is gone."""


@dataclass(frozen=True)
class Ticket:
    """What a job waits with: what it needs at once, and what decides about its turn."""

    job: str
    cpus: float
    gpus: float
    priority: Priority = "normal"
    team: str = ""
    since: float = 0.0
    """Seconds of `time.time` at which it began to wait."""


def turns(
    waiting: Sequence[Ticket], holding: Sequence[Ticket], *, cpus: float, gpus: float
) -> list[tuple[Ticket, bool]]:
    """All of `waiting` in their order, each with whether it may go now, on a cluster of so many CPUs and GPUs of which
    `holding` have their part.

    Higher priority goes first; within one, the team that holds the smallest share of the cluster; within that, who came
    first. What does not fit yet keeps its place: nobody behind it gets what it waits for. What is larger than the
    cluster goes at once and holds nothing back, since Ray tells it best.
    """
    holding = [ticket for ticket in holding if ticket.cpus <= cpus and ticket.gpus <= gpus]
    left = [cpus - sum(ticket.cpus for ticket in holding), gpus - sum(ticket.gpus for ticket in holding)]
    shares: dict[str, float] = {}

    def count(ticket: Ticket) -> None:
        share = max((need / size for need, size in ((ticket.cpus, cpus), (ticket.gpus, gpus)) if size), default=0.0)
        shares[ticket.team] = shares.get(ticket.team, 0.0) + share

    for ticket in holding:
        count(ticket)
    found: list[tuple[Ticket, bool]] = []
    rest = list(waiting)
    while rest:
        first = min(rest, key=lambda t: (-PRIORITIES.index(t.priority), shares.get(t.team, 0.0), t.since, t.job))
        rest.remove(first)
        if first.cpus > cpus or first.gpus > gpus:
            found.append((first, True))
            continue
        fits = all(not need or need <= free for need, free in zip((first.cpus, first.gpus), left, strict=True))
        found.append((first, fits))
        left = [left[0] - first.cpus, left[1] - first.gpus]
        count(first)
    return found


class Queue:
    """The state behind `turns`. Runs as an actor; `size` gives the cluster's CPUs and GPUs."""

    def __init__(
        self,
        size: Callable[[], tuple[float, float]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        restarted: bool | None = None,
    ) -> None:
        self._size, self._clock = size or _cluster_size, clock
        self._tickets: dict[str, Ticket] = {}
        self._holding: set[str] = set()
        self._seen: dict[str, float] = {}
        # After a restart those that hold a turn say so first.
        self._opens = clock() + (LEASE_SECONDS if (_was_restarted() if restarted is None else restarted) else 0.0)

    def ask(self, ticket: Ticket, holds: bool) -> int:
        """How many jobs are before this one; 0: it has its turn. `holds`: it has had it before."""
        now = self._clock()
        self._tickets[ticket.job], self._seen[ticket.job] = ticket, now
        for gone in [job for job, seen in self._seen.items() if now - seen > LEASE_SECONDS]:
            self.leave(gone)
        if holds:
            self._holding.add(ticket.job)
        if ticket.job in self._holding:
            return 0
        waiting = [other for other in self._tickets.values() if other.job not in self._holding]
        cpus, gpus = self._size()
        line = turns(waiting, [self._tickets[job] for job in self._holding], cpus=cpus, gpus=gpus)
        place, may_go = next((at, may_go) for at, (other, may_go) in enumerate(line) if other == ticket)
        if may_go and now >= self._opens:
            self._holding.add(ticket.job)
            return 0
        return max(1, len(self._holding) + place)

    def leave(self, job: str) -> None:
        """Forget a job."""
        self._tickets.pop(job, None)
        self._seen.pop(job, None)
        self._holding.discard(job)


@contextmanager
def turn(ticket: Ticket, waits: Callable[[int], None]) -> Iterator[None]:
    """Wait for a turn on the connected Ray cluster and hold it for as long as the block runs.

    Args:
        ticket: the job's.
        waits: called with the number of jobs before this one, when it must wait and whenever that changes.
    """
    before = 0
    ended = threading.Event()
    holder = threading.Thread(target=_hold, args=(ticket, ended), name=f"turn of {ticket.job}", daemon=True)
    try:
        while ahead := _ask(ticket, holds=False):
            if ahead != before:
                waits(ahead)
            before = ahead
            time.sleep(ASK_SECONDS)
        holder.start()
        yield
    finally:
        ended.set()
        if holder.is_alive():
            holder.join()
        _leave(ticket)


def _hold(ticket: Ticket, ended: threading.Event) -> None:
    while not ended.wait(ASK_SECONDS):
        _ask(ticket, holds=True)


def _ask(ticket: Ticket, *, holds: bool) -> int:
    import ray
    from ray.exceptions import RayError

    try:
        return int(ray.get(_actor().ask.remote(ticket, holds)))
    except RayError as error:
        # Its node is gone; the next call makes or finds another.
        log.warning("the queue does not answer: %s", str(error).splitlines()[0])
        return 1


def _leave(ticket: Ticket) -> None:
    import ray
    from ray.exceptions import RayError

    try:
        ray.get(_actor().leave.remote(ticket.job))
    except RayError as error:
        log.warning("the turn ends in %.0f s, since the queue does not answer: %s", LEASE_SECONDS, error)


def _actor() -> Any:
    import ray

    return (
        ray.remote(Queue)
        .options(
            name="queue",
            namespace="polysome",
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=3,
        )
        .remote()
    )


def _cluster_size() -> tuple[float, float]:
    """CPUs and GPUs that the cluster has, or may grow to."""
    import ray
    from ray._private.state import state

    now, most = ray.cluster_resources(), state.get_max_resources_from_cluster_config() or {}
    return max(now.get("CPU", 0.0), most.get("CPU", 0)), max(now.get("GPU", 0.0), most.get("GPU", 0))


def _was_restarted() -> bool:
    import ray

    with warnings.catch_warnings():
        # Ray's own property asks another one that it calls deprecated.
        warnings.simplefilter("ignore")
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)
