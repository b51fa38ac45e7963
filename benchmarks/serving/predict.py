"""`POST /v1/predict`: many records in one request, and as many requests of one record, one after another.

    python benchmarks/serving/predict.py [--quick]

Two tasks: a class, for which the engine scores all labels and answers in words, and a number, for which it answers in
words. A replica answers records together that wait together. Both ways must tell equal labels, texts and probabilities.
Writes `benchmarks/serving/results/predict.json`.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import servers
import subject
from rich.console import Console
from rich.table import Table

from polysome.storage import write_json

RESULT = subject.RESULTS / "predict.json"
RECORDS, MAX_TOKENS, ROUNDS = 32, 128, 2
QUICK_RECORDS, QUICK_MAX_TOKENS, QUICK_ROUNDS = 16, 16, 1
ENGINES = ("batch", "continuous")
WANTED = 4.0
TOLERANCE = 1e-4
"""Of probabilities: batches of other sizes round otherwise."""


def main() -> int:
    """Measure, check that both found the same, print, write; 1 where less is reached than wanted."""
    options = parsed()
    records, max_tokens, rounds = (
        (QUICK_RECORDS, QUICK_MAX_TOKENS, QUICK_ROUNDS) if options.quick else (RECORDS, MAX_TOKENS, ROUNDS)
    )
    results = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = subject.build(Path(folder) / "model")
        for engine in options.engines:
            config = subject.settings(model, engine=engine, limits={"default_max_tokens": max_tokens})
            with servers.polysome(config) as url:
                for task in subject.LENGTHS:
                    results.append({"engine": engine, "task": task, **measured(url, task, records, rounds)})
    show(results, records)
    if options.quick:
        return 0
    content = {
        "benchmark": "records of one prediction request",
        "command": " ".join(["python", "benchmarks/serving/predict.py", *sys.argv[1:]]),
        **subject.described(),
        "task": list(subject.LENGTHS),
        "records": records,
        "max_tokens": max_tokens,
        "rounds": rounds,
        "wanted": f"one request ≥ {WANTED:g} times as fast",
        "reached": {f"{item['task']}, {item['engine']}": item["times_as_fast"] for item in results},
        "results": results,
    }
    write_json(str(RESULT), content)
    print(f"written: {RESULT}")
    return int(min(item["times_as_fast"] for item in results) < WANTED)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RECORDS} records, one round, no result file")
    return parser.parse_args()


def measured(url: str, task: str, records: int, rounds: int) -> dict[str, Any]:
    """Seconds of both ways, in turns, after a few other records."""
    sequences = subject.sequences(records, task=task)
    together, apart = [], []
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:

        def ask(asked: list[str]) -> list[dict[str, Any]]:
            response = client.post("/v1/predict", json={"task": task, "sequences": asked})
            if response.status_code != 200:
                raise RuntimeError(f"{response.status_code}: {response.text[:500]}")
            told: list[dict[str, Any]] = response.json()["predictions"]
            return told

        ask(subject.sequences(2, task=task, seed=subject.SEED + 1))
        for turn in range(rounds):
            started = time.perf_counter()
            whole = ask(sequences)
            together.append(time.perf_counter() - started)
            started = time.perf_counter()
            single = [ask([sequence])[0] for sequence in sequences]
            apart.append(time.perf_counter() - started)
            print(f"round {turn}: {task}: one request {together[-1]:.2f} s, one by one {apart[-1]:.2f} s", flush=True)
            difference = agreement(whole, single)
    return {
        "seconds_in_one_request": round(min(together), 3),
        "seconds_one_by_one": round(min(apart), 3),
        "seconds_in_one_request_of_rounds": [round(value, 3) for value in together],
        "seconds_one_by_one_of_rounds": [round(value, 3) for value in apart],
        "records_per_second": round(len(sequences) / min(together), 1),
        "times_as_fast": round(min(apart) / min(together), 2),
        "largest_difference_of_a_probability": float(f"{difference:.2g}"),
    }


def agreement(whole: list[dict[str, Any]], single: list[dict[str, Any]]) -> float:
    """The largest difference of a probability.

    Raises:
        AssertionError: the two do not agree.
    """
    largest = 0.0
    for one, other in zip(whole, single, strict=True):
        assert (one["label"], one["text"]) == (other["label"], other["text"]), f"they disagree: {one} and {other}"
        for label, probability in (one["probabilities"] or {}).items():
            largest = max(largest, math.fabs(probability - other["probabilities"][label]))
    assert largest <= TOLERANCE, f"probabilities differ by {largest}"
    return largest


def show(results: list[dict[str, Any]], records: int) -> None:
    """The results as a table."""
    table = Table("task", "engine", title=f"{records} records")
    for column in ("one request, s", "one by one, s", "times as fast"):
        table.add_column(column, justify="right")
    for item in results:
        table.add_row(
            item["task"],
            item["engine"],
            f"{item['seconds_in_one_request']:.2f}",
            f"{item['seconds_one_by_one']:.2f}",
            f"{item['times_as_fast']:.2f} (≥ {WANTED:g} wanted)",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    sys.exit(main())
