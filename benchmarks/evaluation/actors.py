"""Evaluation actors: two beside one, and a whole evaluation with one actor beside the bare engine.

    python benchmarks/evaluation/actors.py [--quick]

A small random Llama answers questions on RNA of real lengths in words, and scores thirteen classes in up to four
wordings each: by `BatchEngine` in one process, by `evaluate` with one actor, and by `evaluate` with two, each engine on
one thread. Seconds are those of the clock. Every contender asks a few questions first, then all; what counts is how
much longer all take, so that starting actors and loading the model do not. What the harness does for each question
does: reading, rendering, leakage groups, writing every answer to disk, parsing, metrics, and their bootstrap. Needs two
idle cores. Writes `benchmarks/evaluation/results/actors.json`.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import subject
import yaml
from rich.console import Console
from rich.table import Table

from polysome.evaluation.choices import Choices, choices
from polysome.evaluation.config import EvaluationConfig, Mode
from polysome.specs import MulticlassLabel, dataset
from polysome.storage import write_json

RESULT = subject.RESULTS / "actors.json"
NAME = "benchmark"
QUESTIONS, FEW, NEW_TOKENS, ROUNDS = 512, 64, 32, 2
QUICK_QUESTIONS, QUICK_FEW, QUICK_NEW_TOKENS, QUICK_ROUNDS = 128, 64, 8, 1
Contender = Literal["bare engine", "one actor", "two actors"]
BARE, ONE, TWO = CONTENDERS = get_args(Contender)
WANTED_SPEED_UP, WANTED_OVERHEAD = 1.7, 0.10


def main() -> int:
    """Measure, print, write; 1 where less is reached than wanted."""
    options = parsed()
    if options.job:
        print(json.dumps(run(json.loads(options.job))))
        return 0
    count, few, new_tokens, rounds = (
        (QUICK_QUESTIONS, QUICK_FEW, QUICK_NEW_TOKENS, QUICK_ROUNDS)
        if options.quick
        else (QUESTIONS, FEW, NEW_TOKENS, ROUNDS)
    )
    modes: tuple[Mode, ...] = get_args(Mode)
    found: dict[tuple[Mode, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model, tokenizer = subject.build(Path(folder) / "model")
        model.save_pretrained(Path(folder) / "model")
        tokenizer.save_pretrained(Path(folder) / "model")
        declare(Path(folder) / "specs", {"few": few, "all": count})
        for turn in range(rounds):
            for mode in modes:
                for contender in CONTENDERS if turn % 2 == 0 else reversed(CONTENDERS):
                    job = {"contender": contender, "mode": mode, "new_tokens": new_tokens, "folder": folder}
                    found.setdefault((mode, contender), []).append(run_apart(job))
                    print(f"round {turn}, {mode}, {contender}: {found[mode, contender][-1]}", flush=True)
    results = [row(mode, contender, items) for (mode, contender), items in found.items()]
    seconds = {(item["mode"], item["contender"]): item["seconds_more"] for item in results}
    ratios = {
        mode: {
            "two_actors_over_one": round(seconds[mode, ONE] / seconds[mode, TWO], 2),
            "harness_overhead": round(seconds[mode, ONE] / seconds[mode, BARE] - 1, 4),
        }
        for mode in modes
    }
    show(results, ratios, f"{count} questions, {few} of them before")
    if options.quick:
        return 0
    content = {
        "benchmark": "evaluation actors",
        "command": " ".join(["python", "benchmarks/evaluation/actors.py", *sys.argv[1:]]),
        **subject.described(),
        "seconds_are": "of the clock; contenders take turns, the best round of each counts",
        "questions": count,
        "few": few,
        "max_new_tokens": new_tokens,
        "wanted": {"two_actors_over_one": f"≥ {WANTED_SPEED_UP:g}", "harness_overhead": f"≤ {WANTED_OVERHEAD:g}"},
        "results": results,
        "ratios": ratios,
    }
    write_json(str(RESULT), content)
    print(f"written: {RESULT}")
    reached = all(
        item["two_actors_over_one"] >= WANTED_SPEED_UP and item["harness_overhead"] <= WANTED_OVERHEAD
        for item in ratios.values()
    )
    return int(not reached)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_QUESTIONS} questions, one round, no result file")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def declare(folder: Path, parts: dict[str, int]) -> None:
    """The task's spec over files of random RNA with its lengths and random classes, one data set for each part."""
    generator = np.random.default_rng(subject.SEED)
    spec = dataset(subject.TASK)
    assert spec.task is not None
    assert isinstance(spec.task.label, MulticlassLabel)
    folder.mkdir()
    for name, count in parts.items():
        lengths = np.interp(generator.random(count), *subject.LENGTHS).astype(int)
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sequence", "label"])
            for length in lengths:
                sequence = "".join(generator.choice(list("ACGU"), length))
                writer.writerow([sequence, generator.choice(spec.task.label.classes)])
        content = spec.model_dump(mode="json", exclude_defaults=True, exclude={"adapter", "splits", "format"})
        content["task"]["label_column"] = "label"
        content["molecules"] = [{"type": "rna"}]
        content |= {"name": name, "format": "csv", "splits": {"test": [{"uri": str(folder / f"{name}.csv")}]}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


def run_apart(job: dict[str, Any]) -> dict[str, float]:
    """One contender in a new process, with its own home and Ray; what it says in its last line."""
    with tempfile.TemporaryDirectory(prefix="pb-", dir="/tmp") as scratch:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"HOME": scratch, "RAY_TMPDIR": scratch, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        environment |= {"POLYSOME_DATASETS": f"{job['folder']}/specs"}
        command = [sys.executable, __file__, "--job", json.dumps({**job, "scratch": scratch})]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{job['contender']} failed:\n{done.stderr[-4000:]}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def run(job: dict[str, Any]) -> dict[str, float]:
    """Seconds of the contender for the few questions and for all."""
    if job["contender"] == BARE:
        return bare(job)
    import ray

    from polysome.evaluation.run import evaluate

    started = time.monotonic()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    found = {"ray": round(time.monotonic() - started, 3)}
    for part in ("few", "all"):
        config = recipe(part, job)
        started = time.monotonic()
        evaluate(config, f"{job['scratch']}/{part}")
        found[part] = round(time.monotonic() - started, 3)
    return found


def bare(job: dict[str, Any]) -> dict[str, float]:
    """The engine by itself, on the same conversations."""
    from polysome.evaluation.questions import plan
    from polysome.inference.batch import BatchEngine

    started = time.monotonic()
    engine = BatchEngine(f"{job['folder']}/model", threads=1)
    found = {"load": round(time.monotonic() - started, 3)}
    for part in ("few", "all"):
        [task] = plan(recipe(part, job), "model", job["scratch"])
        chats = [item.conversation for item in task.asked]
        started = time.monotonic()
        if job["mode"] == "text":
            engine.generate(chats, max_new_tokens=job["new_tokens"])
        else:
            closed = choices(task.spec, None, seed=subject.SEED)
            assert isinstance(closed, Choices)
            engine.score(chats, closed.texts)
        found[part] = round(time.monotonic() - started, 3)
    return found


def recipe(part: str, job: dict[str, Any]) -> EvaluationConfig:
    """The evaluation of a part."""
    return EvaluationConfig(
        name=NAME,
        model=f"{job['folder']}/model",
        tasks=[part],
        modes=[job["mode"]],
        max_new_tokens=job["new_tokens"],
        actors=2 if job["contender"] == TWO else 1,
        batch_size=32,
        calibration_rows=0,
        baselines=[],
    )


def row(mode: Mode, contender: str, items: list[dict[str, float]]) -> dict[str, Any]:
    """One result: the best round, and the seconds of all."""
    more = [item["all"] - item["few"] for item in items]
    return {
        "mode": mode,
        "contender": contender,
        "seconds_more": round(min(more), 3),
        "seconds_more_of_rounds": [round(value, 3) for value in more],
        "seconds_of_few": [item["few"] for item in items],
        "seconds_of_all": [item["all"] for item in items],
    }


def show(results: list[dict[str, Any]], ratios: dict[Mode, dict[str, float]], title: str) -> None:
    """The results as a table."""
    table = Table("mode", "contender", title=title)
    for column in ("few, s", "all, s", "more, s"):
        table.add_column(column, justify="right")
    for item in results:
        numbers = (min(item["seconds_of_few"]), min(item["seconds_of_all"]), item["seconds_more"])
        table.add_row(item["mode"], item["contender"], *(f"{number:.2f}" for number in numbers))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for mode, item in ratios.items():
        console.print(
            f"{mode}: two actors {item['two_actors_over_one']:.2f} times one (≥ {WANTED_SPEED_UP:g} wanted); "
            f"harness over the bare engine {item['harness_overhead']:+.1%} (≤ {WANTED_OVERHEAD:.0%} wanted)"
        )


if __name__ == "__main__":
    sys.exit(main())
