"""Our evaluation beside lm-evaluation-harness: the same small model, the same exported tasks, one core.

    python benchmarks/evaluation/harness.py --peer-python PEERS/bin/python [--quick]

Exports generated tasks as `polysome datasets export-harness` does: of each an answer in words, and where the label is a
class the likelihood of every class. Both sides start with the model loaded and end with the metrics in hand; both in
processes of their own, on one core and thread, in turns. Where a definition is equal the results must be: greedy texts
word for word, log-likelihoods relative to the first choice, accuracy and MCC of the choices. `--peer-python` is the
interpreter of the harness's own environment (README.md says how to make it); without it our side runs alone and nothing
is written. Writes `benchmarks/evaluation/results/harness.json`.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import subject
from rich.console import Console
from rich.table import Table

from polysome.evaluation.harness import PREFIX, export_harness
from polysome.storage import write_json

HERE = Path(__file__).parent
RESULT = subject.RESULTS / "harness.json"
TASKS = ("planted_ncrna_family", "planted_promoter", "planted_thermostability")
ROWS, QUICK_ROWS = 100, 6
ROUNDS = 3
MAX_NEW_TOKENS = 24
BATCH_SIZES = (1, 16, 64)
"""Of the harness, which takes one of these for all; the fastest counts."""
OURS = "polysome"
WANTED = 1.0
TOLERANCE = 1e-3
"""Of log-likelihoods: batches of other sizes round otherwise."""
NOTES = {
    "work": "Texts: greedy, with no end of turn but the model's own, which a random model hardly says. Likelihoods: "
    "all classes of a task, each in its first wording.",
    "prompt": "Both render the same conversation with the model's own chat template. The harness moves blanks at the "
    "end of a prompt into the answer, which adds the same to all choices, so likelihoods are compared relative to the "
    "first.",
    "intervals": "Left out on both sides: the harness has none for the metrics of the exported tasks.",
    "parser": "The harness reads answers in words with the exported filters, Polysome with its strict parser, which "
    "differ on what a random model says: texts are compared word for word, their values are told beside each other.",
}


def main() -> int:
    """Measure, check that both found the same, print, write; 1 where ours is the slower."""
    options = parsed()
    rows, rounds = (QUICK_ROWS, 1) if options.quick else (ROWS, ROUNDS)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        model, tokenizer = subject.build(folder / "model")
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        exported = export_harness(list(TASKS), str(folder / "tasks"), limit=rows, max_new_tokens=MAX_NEW_TOKENS)
        sizes = {OURS: 0} | (
            {f"lm-eval, batches of {size}": size for size in BATCH_SIZES} if options.peer_python else {}
        )
        job = {
            "model": str(folder / "model"),
            "tasks": str(folder / "tasks"),
            "names": [item.name for item in exported],
            "core": options.core,
            "max_new_tokens": MAX_NEW_TOKENS,
        }
        runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in sizes}
        for turn in range(rounds):
            for contender in list(sizes) if turn % 2 == 0 else reversed(sizes):
                runs[contender].append(run_apart(contender, {**job, "batch_size": sizes[contender]}, options))
                print(f"round {turn}: {contender}: {runs[contender][-1]['seconds']:.1f} s", flush=True)
    found = {contender: rounds[0] for contender, rounds in runs.items()}
    equal = {contender: agreement(found[OURS], other) for contender, other in found.items() if contender != OURS}
    seconds = {contender: min(run["seconds"] for run in rounds) for contender, rounds in runs.items()}
    peers = {contender: taken for contender, taken in seconds.items() if contender != OURS}
    results = [
        {
            "contender": contender,
            "seconds": round(taken, 2),
            "seconds_of_rounds": [round(run["seconds"], 2) for run in runs[contender]],
            "times_as_long_as_ours": round(taken / seconds[OURS], 2),
            **({} if contender == OURS else {"agreement": equal[contender]}),
        }
        for contender, taken in seconds.items()
    ]
    show(results, found[OURS])
    if options.quick or not peers:
        return 0
    ratio = min(peers.values()) / seconds[OURS]
    content = {
        "benchmark": "evaluation beside lm-evaluation-harness",
        "command": "python benchmarks/evaluation/harness.py --peer-python PEERS/bin/python",
        **subject.described(),
        "task": list(TASKS),
        "seconds_are": "of CPU on one core, from the loaded model to the metrics; the best round of each counts",
        "rows_per_task": rows,
        "max_new_tokens": MAX_NEW_TOKENS,
        "versions_of_the_peer": found[min(peers, key=lambda name: peers[name])]["versions"],
        "wanted": f"the fastest of the harness takes > {WANTED:g} times as long",
        "reached": round(ratio, 2),
        "values": found[OURS]["values"],
        "results": results,
        "notes": NOTES,
    }
    write_json(str(RESULT), content)
    print(f"written: {RESULT}")
    return int(ratio <= WANTED)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter of an environment with lm-eval")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="that all contenders run on")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS} rows a task, one round, no result file")
    return parser.parse_args()


def run_apart(contender: str, job: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One run in a new process; what it wrote."""
    peer = contender != OURS
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        told = Path(scratch) / "told.json"
        program = "lm_eval" if peer else OURS
        asked = json.dumps({**job, "program": program, "told": str(told)})
        python = options.peer_python if peer else sys.executable
        environment = os.environ | {"HOME": scratch, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if peer:
            environment.pop("PYTHONPATH", None)
        command = [str(python), "-W", "ignore", str(HERE / "harness_contenders.py"), asked]
        # The exported tasks name their documents relative to the folder in which the harness is started.
        folder = job["tasks"] if peer else None
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{contender} failed:\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(told.read_text())
        return found


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How far the two are apart where both define the same.

    Raises:
        AssertionError: they do not agree.
    """
    texts = [(ours["texts"][key], theirs["texts"][key]) for key in ours["texts"]]
    apart = [
        abs((one[place] - one[0]) - (other[place] - other[0]))
        for key in ours["likelihoods"]
        for one, other in [(ours["likelihoods"][key], theirs["likelihoods"][key])]
        for place in range(len(one))
    ]
    same = [key for key in ours["values"] if "_choice " in key]
    differ = {
        key: (ours["values"][key], theirs["values"][key])
        for key in same
        if not math.isclose(ours["values"][key], theirs["values"][key], abs_tol=1e-9)
    }
    told = {
        "texts": len(texts),
        "texts_equal": sum(one == other for one, other in texts),
        "likelihoods": len(apart),
        "largest_difference": float(f"{max(apart):.2g}"),
        "values_of_choices": len(same),
        "values_of_choices_that_differ": differ,
        "values_of_texts": {key: value for key, value in theirs["values"].items() if key not in same},
    }
    assert told["texts_equal"] == len(texts), f"they disagree: {told}"
    assert max(apart) <= TOLERANCE, f"they disagree: {told}"
    assert not differ, f"they disagree: {told}"
    return told


def show(results: list[dict[str, Any]], ours: dict[str, Any]) -> None:
    """The results as a table."""
    title = ", ".join(f"{name.removeprefix(PREFIX)} {value:.3f}" for name, value in ours["values"].items())
    table = Table("contender", title=title)
    for column in ("s", "times as long", "texts equal", "largest difference"):
        table.add_column(column, justify="right")
    for item in results:
        found = item.get("agreement")
        table.add_row(
            item["contender"],
            f"{item['seconds']:.2f}",
            f"{item['times_as_long_as_ours']:.2f}",
            f"{found['texts_equal']} of {found['texts']}" if found else "",
            f"{found['largest_difference']:.1e}" if found else "",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    sys.exit(main())
