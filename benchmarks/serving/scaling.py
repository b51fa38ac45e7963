"""How replicas follow the load: none to one at the first question, one to four and back as clients come and leave.

    python benchmarks/serving/scaling.py [--quick]

Clients ask one question after another; how many there are changes in steps. What is told: when replicas were there
after a step, what the first question after a rest waited, latencies under each step, and that no question was lost. On
fewer cores than replicas they share them, so more replicas are not more tokens per second. Writes `scaling.json`,
`scaling.csv` (a row for every second) and `scaling.svg` below `benchmarks/serving/results/`.
"""

import argparse
import asyncio
import csv
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import load
import servers
import subject
from plot import Panel, Series, plotted
from rich.console import Console
from rich.table import Table

from polysome.storage import write_json

RESULT = subject.RESULTS / "scaling.json"
MAX_TOKENS = 32
PER_REPLICA = 4
UPSCALE_SECONDS, DOWNSCALE_SECONDS = 2, 10
REST_SECONDS = 240.0
"""Longest wait for the last replica to go."""
GOAL = load.Goal(first_seconds=2.0, per_token_seconds=0.1)


@dataclass(frozen=True)
class Phase:
    """A step of the load, and the replicas that it shall have at its end."""

    seconds: float
    clients: int
    replicas: int


PHASES = (Phase(40, 1, 1), Phase(100, 4 * PER_REPLICA, 4), Phase(100, 1, 1))
QUICK_PHASES = (Phase(15, 1, 1), Phase(60, 2 * PER_REPLICA, 2))


@dataclass(frozen=True)
class Second:
    """A second of the load."""

    second: int
    clients: int
    running: int
    starting: int
    answered: int
    errors: int
    tokens: int
    first_token_ms: float | None
    """Median of the questions whose first token came in this second."""


def main() -> int:
    """Measure, plot, print, write; 1 where replicas did not follow, or a question was lost."""
    options = parsed()
    phases = QUICK_PHASES if options.quick else PHASES
    most = max(phase.replicas for phase in phases)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model, watch = subject.build(Path(folder) / "model"), Path(folder) / "replicas.jsonl"
        scaling = {
            "min_replicas": 0,
            "max_replicas": most,
            "target_ongoing_requests": PER_REPLICA,
            "upscale_delay_s": UPSCALE_SECONDS,
            "downscale_delay_s": DOWNSCALE_SECONDS,
        }
        config = subject.settings(model, engine=options.engine, autoscaling=scaling)
        with servers.polysome(config, cpus=most + 2, watch=watch) as url:
            print("waiting for no replica", flush=True)
            rest(watch)
            began = time.time()
            answers = asyncio.run(ask(url, phases))
            ended = time.time()
            rested = rest(watch) - ended
        states = [json.loads(line) for line in watch.read_text().splitlines()]
    told = found(answers, states, phases, began)
    seconds = by_second(answers, states, phases, began)
    picture = drawn(seconds)
    show(told, rested)
    lost = sum(item["load"]["errors"] for item in told)
    followed = all(item["seconds_until_replicas"] is not None for item in told)
    if options.quick:
        return int(lost > 0 or not followed)
    content = {
        "benchmark": "replicas under a step load",
        "command": " ".join(["python", "benchmarks/serving/scaling.py", *sys.argv[1:]]),
        **subject.described(),
        "seconds_are": "of the clock; one run",
        "engine": options.engine,
        "autoscaling": scaling,
        "max_tokens": MAX_TOKENS,
        "wanted": "0 → 1 → 4 → 1 → 0 replicas, no error",
        "reached": {"followed": followed, "errors": lost},
        "first_question_after_a_rest_ms": round(1000 * (answers[0].ended - answers[0].began)),
        "seconds_from_the_last_answer_to_no_replica": round(rested, 1),
        "steps": told,
    }
    write_json(str(RESULT), content)
    RESULT.with_suffix(".csv").write_text(as_csv(seconds))
    RESULT.with_suffix(".svg").write_text(picture)
    print(f"written: {RESULT}, .csv, .svg")
    return int(lost > 0 or not followed)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("batch", "continuous"), default="batch")
    parser.add_argument("--quick", action="store_true", help="up to two replicas, no result file")
    return parser.parse_args()


def rest(watch: Path) -> float:
    """Wait until there is no replica; the `time.time()` of it."""
    until = time.monotonic() + REST_SECONDS
    while time.monotonic() < until:
        lines = watch.read_text().splitlines() if watch.exists() else []
        if lines and set(state := json.loads(lines[-1])) == {"time"}:
            return float(state["time"])
        time.sleep(servers.WATCH_SECONDS)
    raise RuntimeError(f"replicas are left after {REST_SECONDS:.0f} s without a question")


async def ask(url: str, phases: Sequence[Phase]) -> list[load.Answer]:
    """The answers to the whole load, in the order in which they ended."""
    async with load.connected() as session:
        client = load.over_http(session, url, subject.NAME)
        questions = load.endless(load.questions(64, MAX_TOKENS))
        return await load.stepped(client, questions, [load.Step(phase.seconds, phase.clients) for phase in phases])


def found(
    answers: Sequence[load.Answer], states: Sequence[dict[str, Any]], phases: Sequence[Phase], began: float
) -> list[dict[str, Any]]:
    """For every step: how long until its replicas ran and no other, and what its questions waited."""
    told, start = [], 0.0
    for phase in phases:
        end = start + phase.seconds
        within = [state for state in states if start <= state["time"] - began < end]
        there = [state["time"] - began - start for state in within if state.get("RUNNING", 0) == phase.replicas]
        stays = bool(within) and within[-1].get("RUNNING", 0) == phase.replicas
        asked = [answer for answer in answers if start <= answer.began < end]
        told.append(
            {
                "clients": phase.clients,
                "replicas": phase.replicas,
                "seconds": phase.seconds,
                "seconds_until_replicas": round(there[0], 1) if there and stays else None,
                "load": load.summary(asked, GOAL),
            }
        )
        start = end
    return told


def by_second(
    answers: Sequence[load.Answer], states: Sequence[dict[str, Any]], phases: Sequence[Phase], began: float
) -> list[Second]:
    """The load second by second."""
    rows = []
    clients = [phase.clients for phase in phases for _ in range(int(phase.seconds))]
    for second, count in enumerate(clients):
        state = max((one for one in states if one["time"] - began < second + 1), key=lambda one: one["time"])
        ended = [answer for answer in answers if second <= answer.ended < second + 1]
        firsts = sorted(
            answer.first - answer.began
            for answer in answers
            if answer.first is not None and second <= answer.first < second + 1
        )
        rows.append(
            Second(
                second=second,
                clients=count,
                running=state.get("RUNNING", 0),
                starting=state.get("STARTING", 0),
                answered=sum(not answer.problem for answer in ended),
                errors=sum(bool(answer.problem) for answer in ended),
                tokens=sum(answer.tokens for answer in ended),
                first_token_ms=round(1000 * firsts[len(firsts) // 2], 1) if firsts else None,
            )
        )
    return rows


def as_csv(seconds: Sequence[Second]) -> str:
    """A row for every second."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = list(Second.__dataclass_fields__)
    writer.writerow(names)
    writer.writerows([getattr(second, name) for name in names] for second in seconds)
    return file.getvalue()


def drawn(seconds: Sequence[Second]) -> str:
    """Clients, replicas and waits over time, as SVG."""
    return plotted(
        "Replicas under a step load",
        [second.second for second in seconds],
        [
            Panel("clients", [Series("clients", [second.clients for second in seconds])]),
            Panel(
                "replicas",
                [
                    Series("running", [second.running for second in seconds]),
                    Series("starting", [second.starting for second in seconds], dashed=True),
                ],
            ),
            Panel("first token, ms", [Series("median", [second.first_token_ms for second in seconds])], dots=True),
            Panel("answers per second", [Series("answers", [second.answered for second in seconds])]),
        ],
    )


def show(told: Sequence[dict[str, Any]], rested: float) -> None:
    """The results as a table."""
    table = Table("clients", "replicas", title=f"{rested:.0f} s after the last answer no replica is left")
    for column in ("after, s", "answers", "errors", "first token p50", "p95", "p99, ms", "tokens/s"):
        table.add_column(column, justify="right")
    for item in told:
        after, load_ = item["seconds_until_replicas"], item["load"]
        table.add_row(
            str(item["clients"]),
            str(item["replicas"]),
            "never" if after is None else f"{after:.1f}",
            str(load_["questions"]),
            str(load_["errors"]),
            *(f"{load_['first_token_ms'][name]:.0f}" for name in ("p50", "p95", "p99")),
            f"{load_['tokens_per_second']:.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    sys.exit(main())
