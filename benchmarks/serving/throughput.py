"""Tokens per second of a served model: Polysome with either engine, and `transformers serve` with either of its own.

    python benchmarks/serving/throughput.py --peer-python PEERS/bin/python [--quick]

Sixteen clients ask the same questions of every server, streamed and greedy, one after another each; all must get equal
texts but for one in a hundred, as what shares a batch decides how it rounds, and two tokens may be as likely. Every
server has the machine for itself, computes on one thread, and starts anew in every round. `--peer-python` is the
interpreter of an environment with `transformers serve` (README.md says how to make it); without it Polysome's engines
are compared with each other and nothing is written. Writes `benchmarks/serving/results/throughput.json`.
"""

import argparse
import asyncio
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import load
import servers
import subject
from rich.console import Console
from rich.table import Table

from polysome.storage import write_json

RESULT = subject.RESULTS / "throughput.json"
CLIENTS, QUESTIONS, MAX_TOKENS, ROUNDS = 16, 128, 64, 2
QUICK_QUESTIONS, QUICK_MAX_TOKENS, QUICK_ROUNDS = 24, 16, 1
GOAL = load.Goal(first_seconds=1.0, per_token_seconds=0.05)
BATCH, CONTINUOUS = "polysome, batch", "polysome, continuous"
ENGINES = {BATCH: "batch", CONTINUOUS: "continuous"}
PEER, PEER_CONTINUOUS = "transformers serve", "transformers serve --continuous-batching"
WANTED = 2.0
TIES = 0.01
"""Share of answers that may differ by rounding."""
NOTES = {
    "wanted": f"The ratio that is wanted is that of the faster of Polysome's engines over `{PEER}` as it starts by "
    "default. The one over its continuous batching stands beside it.",
    "threads": "Every server computes on one thread; what else it does, and the clients, share the other core.",
    "cache": f"Continuous batching has {servers.CACHE_POSITIONS} positions on either side. The default of "
    f"`{PEER_CONTINUOUS}` is most of the machine's memory.",
    "first_token": "The first text that the model said: an event without text does not count.",
}


def main() -> int:
    """Measure, check that all said the same, print, write; 1 where less is reached than wanted."""
    options = parsed()
    count, max_tokens, rounds = (
        (QUICK_QUESTIONS, QUICK_MAX_TOKENS, QUICK_ROUNDS) if options.quick else (QUESTIONS, MAX_TOKENS, ROUNDS)
    )
    asked = load.questions(count, max_tokens)
    # Others than those that are measured, so that no cache has seen them.
    before = load.questions(CLIENTS, max_tokens, seed=subject.SEED + 1)
    ours = [name for name, engine in ENGINES.items() if engine in options.engines]
    contenders = [*ours, *((PEER, PEER_CONTINUOUS) if options.peer_python else ())]
    found: dict[str, list[list[load.Answer]]] = {contender: [] for contender in contenders}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = subject.build(Path(folder) / "model")
        for turn in range(rounds):
            for contender in contenders if turn % 2 == 0 else reversed(contenders):
                with server(contender, model, options.peer_python) as url:
                    name = subject.NAME if contender in ENGINES else model
                    answers = asyncio.run(ask(url, name, before, asked))
                found[contender].append(answers)
                told = load.summary(answers, GOAL)["tokens_per_second"]
                print(f"round {turn}: {contender}: {told} tokens/s", flush=True)
    differing = require_equal(found)
    results = [row(contender, items) for contender, items in found.items()]
    speed = {item["contender"]: item["tokens_per_second"] for item in results}
    best = max(ours, key=lambda name: speed[name])
    ratios = {f"{best} over {peer}": round(speed[best] / speed[peer], 2) for peer in contenders if peer not in ENGINES}
    show(results, ratios)
    if options.quick or not options.peer_python:
        return 0
    content = {
        "benchmark": "tokens per second of a served model",
        "command": f"python benchmarks/serving/throughput.py --engines {' '.join(options.engines)} "
        "--peer-python PEERS/bin/python",
        **subject.described(),
        "versions_of_the_peer": servers.peer_versions(options.peer_python),
        "clients": CLIENTS,
        "questions": count,
        "max_tokens": max_tokens,
        "rounds": rounds,
        "answers_that_differ_from_the_peers": differing,
        "wanted": f"{best} over {PEER} ≥ {WANTED:g}",
        "reached": ratios[f"{best} over {PEER}"],
        "ratios": ratios,
        "results": results,
        "notes": NOTES,
    }
    write_json(str(RESULT), content)
    print(f"written: {RESULT}")
    return int(ratios[f"{best} over {PEER}"] < WANTED)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter of an environment with transformers serve")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES.values()), default=list(ENGINES.values()))
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_QUESTIONS} questions, one round, no result file")
    return parser.parse_args()


def server(contender: str, model: str, peer_python: str | None) -> AbstractContextManager[str]:
    """The contender, started."""
    if contender in ENGINES:
        return servers.polysome(subject.settings(model, engine=ENGINES[contender]))
    assert peer_python is not None
    return servers.transformers_serve(peer_python, model, continuous=contender == PEER_CONTINUOUS)


async def ask(url: str, model: str, before: list[load.Question], asked: list[load.Question]) -> list[load.Answer]:
    """The answers, after others that warm the server up.

    Raises:
        RuntimeError: a question got no answer.
    """
    async with load.connected() as session:
        client = load.over_http(session, url, model)
        await load.closed(client, before, clients=CLIENTS)
        answers = await load.closed(client, asked, clients=CLIENTS)
    for answer in answers:
        if answer.problem:
            raise RuntimeError(f"{url} did not answer: {answer.problem}")
    return answers


def require_equal(found: dict[str, list[list[load.Answer]]]) -> dict[str, list[int]]:
    """How many answers of each round differ from those of the peer's first, by contender.

    Raises:
        AssertionError: more than one in a hundred.
    """
    reference = found.get(PEER, next(iter(found.values())))[0]
    differing: dict[str, list[int]] = {}
    for contender, rounds in found.items():
        differing[contender] = [
            sum(
                (one.text, one.tokens) != (other.text, other.tokens)
                for one, other in zip(reference, answers, strict=True)
            )
            for answers in rounds
        ]
        if max(differing[contender]) > len(reference) * TIES:
            raise AssertionError(f"{contender} says other answers: {differing[contender]} of {len(reference)}")
    return differing


def row(contender: str, items: list[list[load.Answer]]) -> dict[str, Any]:
    """One result: the best round, and the speed of all."""
    rounds = [load.summary(answers, GOAL) for answers in items]
    fastest = max(rounds, key=lambda told: told["tokens_per_second"])
    speeds = [told["tokens_per_second"] for told in rounds]
    return {"contender": contender, **fastest, "tokens_per_second_of_rounds": speeds}


def show(results: list[dict[str, Any]], ratios: dict[str, float]) -> None:
    """The results as a table."""
    table = Table("contender", title=f"{CLIENTS} clients")
    columns = ("tokens/s", "first token p50", "p95", "p99, ms", "per token p50, ms", "goodput", "errors")
    for column in columns:
        table.add_column(column, justify="right")
    for item in results:
        first = item["first_token_ms"]
        table.add_row(
            item["contender"],
            f"{item['tokens_per_second']:.0f}",
            *(f"{first[name]:.0f}" for name in ("p50", "p95", "p99")),
            f"{item['per_token_ms']['p50']:.1f}",
            f"{item['goodput']['share']:.0%}",
            str(item["errors"]),
        )
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for name, ratio in ratios.items():
        wanted = f" (≥ {WANTED:g} wanted)" if name.endswith(PEER) else ""
        console.print(f"{name}: {ratio:.2f} times{wanted}")


if __name__ == "__main__":
    sys.exit(main())
