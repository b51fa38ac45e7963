"""What HTTP, Ray Serve and the gateway add to an engine: time to the first token, and streamed tokens per second.

    python benchmarks/serving/overhead.py [--quick]

The same clients ask the same questions of an engine in their own process, and of the same engine served: behind Serve's
own proxy, and behind HAProxy. One client at a time shows what a request costs, sixteen what a busy server loses. Texts
must be equal. Writes `benchmarks/serving/results/overhead.json`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import load
import servers
import subject
from rich.console import Console
from rich.table import Table

from polysome.storage import write_json

RESULT = subject.RESULTS / "overhead.json"
ALONE, PROXY, HAPROXY = CONTENDERS = ("engine alone", "served, Serve's proxy", "served, HAProxy")
ENGINES = ("batch", "continuous")
MAX_TOKENS, ROUNDS = 64, 2
QUICK_MAX_TOKENS, QUICK_ROUNDS = 16, 1
LOADS, QUICK_LOADS = {1: 32, 16: 96}, {1: 4, 16: 32}
"""Clients at once, and the questions that they ask in all."""
GOAL = load.Goal(first_seconds=1.0, per_token_seconds=0.05)
WANTED_FIRST, WANTED_SPEED = 0.15, 0.9

Found = dict[tuple[str, int], list[list[load.Answer]]]
"""Rounds of answers, by contender and clients."""


def main() -> int:
    """Measure, print, write; 1 where less is reached than wanted."""
    options = parsed()
    if options.job:
        print(
            json.dumps({clients: list(map(asdict, told)) for clients, told in alone(json.loads(options.job)).items()})
        )
        return 0
    max_tokens, rounds, loads = (
        (QUICK_MAX_TOKENS, QUICK_ROUNDS, QUICK_LOADS) if options.quick else (MAX_TOKENS, ROUNDS, LOADS)
    )
    results, ratios = [], {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = subject.build(Path(folder) / "model")
        for engine in options.engines:
            job = {"config": subject.settings(model, engine=engine), "max_tokens": max_tokens, "loads": loads}
            found: Found = {(contender, clients): [] for contender in CONTENDERS for clients in loads}
            for turn in range(rounds):
                for contender in CONTENDERS if turn % 2 == 0 else reversed(CONTENDERS):
                    for clients, answers in run(contender, job).items():
                        found[contender, clients].append(answers)
                        told = load.summary(answers, GOAL)
                        print(
                            f"round {turn}: {engine}, {contender}, {clients} clients: {told['tokens_per_second']} "
                            f"tokens/s, first token {told['first_token_ms']['p50']} ms",
                            flush=True,
                        )
            require_equal(found)
            rows = [row(engine, contender, clients, items) for (contender, clients), items in found.items()]
            results += rows
            ratios[engine] = compared(rows, loads)
    show(results, ratios)
    if options.quick:
        return 0
    content = {
        "benchmark": "what serving adds to an engine",
        "command": " ".join(["python", "benchmarks/serving/overhead.py", *sys.argv[1:]]),
        **subject.described(),
        "haproxy": servers.haproxy_version(),
        "max_tokens": max_tokens,
        "rounds": rounds,
        "questions": {f"{clients} clients": count for clients, count in loads.items()},
        "equal_texts": "all, by all contenders in all rounds",
        "wanted": {"first_token_more": f"≤ {WANTED_FIRST:g}", "speed": f"≥ {WANTED_SPEED:g}"},
        "ratios": ratios,
        "results": results,
    }
    write_json(str(RESULT), content)
    print(f"written: {RESULT}")
    return int(not all(reached(item) for told in ratios.values() for item in told))


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--quick", action="store_true", help="few questions, one round, no result file")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(contender: str, job: dict[str, Any]) -> dict[int, list[load.Answer]]:
    """The contender's answers, by clients."""
    if contender == ALONE:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-W", "ignore", __file__, "--job", json.dumps(job)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{contender} failed:\n{done.stderr[-4000:]}")
        told = json.loads(done.stdout.splitlines()[-1])
        return {int(clients): [load.Answer(**answer) for answer in answers] for clients, answers in told.items()}

    async def ask(url: str) -> dict[int, list[load.Answer]]:
        async with load.connected() as session:
            return await loaded(load.over_http(session, url, subject.NAME), job)

    with servers.polysome(job["config"], haproxy=contender == HAPROXY) as url:
        return asyncio.run(ask(url))


def alone(job: dict[str, Any]) -> dict[int, list[load.Answer]]:
    """The engine in this process, asked as the servers are."""
    from polysome.inference.engine import Sampling
    from polysome.serving.config import ServeConfig
    from polysome.serving.pool import open_async_engine

    async def measure() -> dict[int, list[load.Answer]]:
        engine = open_async_engine(ServeConfig.model_validate(job["config"]))

        async def ask(question: load.Question) -> AsyncIterator[load.Piece]:
            async for delta in engine.generate(question.messages, Sampling(question.max_tokens)):
                whole = delta.generation
                yield load.Piece(delta.text, None if whole is None else whole.completion_tokens)

        try:
            return await loaded(ask, job)
        finally:
            await engine.close()

    return asyncio.run(measure())


async def loaded(ask: load.Ask, job: dict[str, Any]) -> dict[int, list[load.Answer]]:
    """Answers to every load, after a few others.

    Raises:
        RuntimeError: a question got no answer.
    """
    loads = {int(clients): count for clients, count in job["loads"].items()}
    before = load.questions(max(loads), job["max_tokens"], seed=subject.SEED + 1)
    await load.closed(ask, before, clients=max(loads))
    found = {}
    for clients, count in loads.items():
        found[clients] = await load.closed(ask, load.questions(count, job["max_tokens"]), clients=clients)
        for answer in found[clients]:
            if answer.problem:
                raise RuntimeError(f"no answer: {answer.problem}")
    return found


def require_equal(found: Found) -> None:
    """Raise AssertionError unless all contenders said the same in all rounds."""
    for clients in {clients for _, clients in found}:
        texts = {
            tuple(answer.text for answer in answers)
            for contender in CONTENDERS
            for answers in found[contender, clients]
        }
        assert len(texts) == 1, f"with {clients} clients the contenders said {len(texts)} different things"


def row(engine: str, contender: str, clients: int, items: list[list[load.Answer]]) -> dict[str, Any]:
    """One result: of each measure the best round, and those of all rounds."""
    rounds = [load.summary(answers, GOAL) for answers in items]
    best = max(rounds, key=lambda told: told["tokens_per_second"])
    firsts = [told["first_token_ms"]["p50"] for told in rounds]
    return {
        "engine": engine,
        "contender": contender,
        "clients": clients,
        **best,
        "first_token_ms_p50": min(firsts),
        "first_token_ms_p50_of_rounds": firsts,
        "tokens_per_second_of_rounds": [told["tokens_per_second"] for told in rounds],
    }


def compared(rows: list[dict[str, Any]], loads: dict[int, int]) -> list[dict[str, Any]]:
    """What each served contender adds to the engine alone, under each load."""
    by = {(item["contender"], item["clients"]): item for item in rows}
    return [
        {
            "contender": contender,
            "clients": clients,
            "first_token_ms_more": round(served["first_token_ms_p50"] - bare["first_token_ms_p50"], 2),
            "first_token_more": round(served["first_token_ms_p50"] / bare["first_token_ms_p50"] - 1, 3),
            "speed": round(served["tokens_per_second"] / bare["tokens_per_second"], 3),
        }
        for clients in loads
        for contender in (PROXY, HAPROXY)
        for bare, served in [(by[ALONE, clients], by[contender, clients])]
    ]


def reached(item: dict[str, Any]) -> bool:
    """Whether a comparison is as wanted."""
    return bool(item["first_token_more"] <= WANTED_FIRST and item["speed"] >= WANTED_SPEED)


def show(results: list[dict[str, Any]], ratios: dict[str, list[dict[str, Any]]]) -> None:
    """The results as tables."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("engine", "contender")
    for column in ("clients", "tokens/s", "first token p50", "p95", "p99, ms", "per token p50, ms", "pieces/token"):
        table.add_column(column, justify="right")
    for item in results:
        first = item["first_token_ms"]
        table.add_row(
            item["engine"],
            item["contender"],
            str(item["clients"]),
            f"{item['tokens_per_second']:.0f}",
            *(f"{value:.1f}" for value in (item["first_token_ms_p50"], first["p95"], first["p99"])),
            f"{item['per_token_ms']['p50']:.2f}",
            f"{item['pieces_per_token']:.2f}",
        )
    console.print(table)
    for engine, told in ratios.items():
        for item in told:
            console.print(
                f"{engine}, {item['contender']}, {item['clients']} clients: first token "
                f"{item['first_token_more']:+.1%}, {item['first_token_ms_more']:+.1f} ms (≤ {WANTED_FIRST:.0%} "
                f"wanted); speed {item['speed']:.2f} (≥ {WANTED_SPEED:g} wanted)"
            )


if __name__ == "__main__":
    sys.exit(main())
