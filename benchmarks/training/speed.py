"""Training speed on the stage-2 mix: packed rows beside padded ones, a bare torch loop, TRL, and the HF Trainer.

    python benchmarks/training/speed.py --peer-python PEERS/bin/python [--quick]

Draws documents of all stage-2 tasks in their published shares (see `mix.py`) and trains a small Llama from scratch on
them under the rules of A-93's stage 2, in fp32 on one core: by Polysome's own stage, by a bare loop over the same
micro-batches (`contenders.py`), and by the peers in `peers.py`, which `--peer-python` runs (README.md says how to make
that environment; without it they are left out). Every contender runs in a new process; contenders take turns, and the
best of the rounds counts. Writes `benchmarks/training/results/speed.json`.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import contenders
import mix
import prepared
from rich.console import Console
from rich.table import Table

import polysome
from polysome.operations.machine import inspect
from polysome.storage import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "training" / "results" / "speed.json"
HERE = Path(__file__).parent
DOCUMENTS, QUICK_DOCUMENTS = 160, 16
WARMUP_UPDATES, QUICK_WARMUP_UPDATES = 4, 1
ROUNDS = 2
ROWS_PER_MICRO_BATCH = 2
"""A-93. Contenders that pad take as many documents at once as two packed rows hold in the mean."""
MODEL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
}
NOTES = {
    "logits": "Polysome and the bare loop compute logits where a target is predicted, about one position in twenty; "
    "the Hugging Face Trainer computes them everywhere. TRL computes log-probabilities in chunks and stores no logits.",
    "padded": "Polysome never pads. Here every document itself holds padding before its text, so the platform's own "
    "loop computes padded rows, with a causal kernel and no mask, which favours padding. `longest`: to the longest "
    "document of the micro-batch; `row`: to the row, as the authors' code does.",
    "attention": "Peers use transformers' sdpa. TRL's packing is meant for FlashAttention, which a CPU has not; "
    "isolation_difference says how far logits of packed documents are from those of the same documents by themselves.",
    "accumulation": "One micro-batch is one update (A-93 takes ten), so what an update costs beside its micro-batches "
    "weighs ten times as much here.",
    "core": "One core for a contender and all that it starts; so Ray's processes share it with the worker. Where it "
    "says `Ray apart`, they have another core, as on a cluster; the overhead of a step is told of these.",
}


@dataclass(frozen=True)
class Contender:
    """One way to train on the documents.

    Attributes:
        name: in tables and results.
        program: of `contenders.py` (bare, polysome) or `peers.py` (trl, trainer).
        data: packed, longest or row; peers lay out the documents themselves.
        zero: of a stage of Polysome.
        packing: of TRL.
        apart: Ray's processes run on another core than the worker, as they do on a cluster.
        once: in the first round alone, because its ratio is far from what is wanted.
        quick: with `--quick` as well; of each kind one is enough to see that it works.
    """

    name: str
    program: str
    data: str
    zero: int = 0
    packing: bool = False
    apart: bool = False
    once: bool = False
    quick: bool = True

    @property
    def is_peer(self) -> bool:
        """Whether it runs in the peers' environment."""
        return self.program in ("trl", "trainer")


CONTENDERS = (
    Contender("bare loop", "bare", "packed"),
    Contender("polysome", "polysome", "packed"),
    Contender("polysome, Ray apart", "polysome", "packed", apart=True, quick=False),
    Contender("polysome, ZeRO-2, Ray apart", "polysome", "packed", zero=2, apart=True),
    Contender("polysome, padded to the longest", "polysome", "longest", once=True, quick=False),
    Contender("polysome, padded to the row", "polysome", "row", once=True),
    Contender("TRL, packed", "trl", "packed", packing=True, once=True),
    Contender("TRL, padded", "trl", "longest", once=True, quick=False),
    Contender("HF Trainer, padded", "trainer", "longest", once=True),
)
COMPARED: tuple[tuple[str, str, str, float | None], ...] = (
    ("packed over padded to the row, target tokens/s", "polysome", "polysome, padded to the row", 2.0),
    ("packed over padded to the longest, target tokens/s", "polysome", "polysome, padded to the longest", 2.0),
    ("polysome over TRL with packing, target tokens/s", "polysome", "TRL, packed", 1.0),
    ("polysome over TRL with padding, target tokens/s", "polysome", "TRL, padded", 1.0),
    ("polysome over the HF Trainer, target tokens/s", "polysome", "HF Trainer, padded", 1.0),
)
OVERHEAD, DATA_WAIT = 0.10, 0.02


def main() -> None:
    """Measure, print the tables, write the result file."""
    options = parsed()
    chosen = [item for item in CONTENDERS if options.only is None or item.name in options.only]
    if options.peer_python:
        # Better now than after the others have run.
        subprocess.run([options.peer_python, "-W", "ignore", "-c", "import datasets, peft, trl"], check=True)
    lacking = {item.name: lack for item in chosen if (lack := what_lacks(item, options))}
    running = [item for item in chosen if item.name not in lacking]
    for name, lack in lacking.items():
        print(f"left out: {name} ({lack})")
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        drawn, layouts = mix.lay_out(folder, options.documents, ROWS_PER_MICRO_BATCH, seed=contenders.SEED)
        runs: dict[str, list[dict[str, Any]]] = {item.name: [] for item in running}
        for turn in range(options.rounds):
            turns = [item for item in running if turn == 0 or not item.once]
            # The other way round in every other round, so that a machine that slows down slows all alike.
            for item in turns if turn % 2 == 0 else reversed(turns):
                runs[item.name].append(run_apart(item, folder, layouts, options))
                print(f"round {turn}: {item.name}: {runs[item.name][-1]['seconds']:.1f} s timed", flush=True)
    check_same_work(runs, mix.described(drawn))
    results = [row(item, runs[item.name]) for item in running]
    ratios = compared(results)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(result_table(results))
    console.print(ratio_table(ratios))
    content = {
        "benchmark": "training speed",
        "command": "python benchmarks/training/speed.py --peer-python PEERS/bin/python",
        "options": {key: value for key, value in vars(options).items() if key not in ("peer_python", "output")},
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "python": platform.python_version(),
        "polysome": polysome.__version__,
        **{package: version(package) for package in ("torch", "transformers", "peft", "deepspeed", "ray", "numpy")},
        "cpus": inspect(ROOT).cpus,
        "seed": prepared.SEED,
        "model": MODEL,
        "precision": "fp32",
        "mix": mix.described(drawn),
        "layouts": {layout: asdict(found) for layout, found in layouts.items()},
        "positions_that_hold_tokens_when_padded_by_micro_batch": mix.padding_table(drawn),
        "notes": NOTES,
        "left_out": lacking,
        "results": results,
        "ratios": ratios,
    }
    write_json(str(options.output), content)
    print(f"written: {options.output}")


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter of an environment with trl, peft and datasets")
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--warmup-updates", type=int, default=WARMUP_UPDATES, help="not timed")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="that all contenders run on")
    parser.add_argument("--ray-core", type=int, default=min(os.sched_getaffinity(0)), help="of Ray where it runs apart")
    parser.add_argument("--only", action="append", help="name of a contender; may be repeated")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_DOCUMENTS} documents, one round: does it run?")
    parser.add_argument("--output", type=Path, help="result file; by default beside this program, nowhere with --quick")
    options = parser.parse_args()
    if options.quick:
        options.documents, options.rounds, options.warmup_updates = QUICK_DOCUMENTS, 1, QUICK_WARMUP_UPDATES
    options.output = options.output or (Path(os.devnull) if options.quick else RESULT)
    return options


def what_lacks(contender: Contender, options: argparse.Namespace) -> str | None:
    """Why a contender cannot run here."""
    if contender.is_peer and not options.peer_python:
        return "--peer-python is not given"
    if options.quick and not contender.quick:
        return "--quick"
    return "there is one core" if contender.apart and options.ray_core == options.core else None


def run_apart(
    contender: Contender, folder: Path, layouts: dict[str, mix.Layout], options: argparse.Namespace
) -> dict[str, Any]:
    """One run in a new process; what it says in its last line."""
    from polysome.training.schedule import rate_factor

    with TemporaryDirectory(prefix="ps-", dir=folder) as scratch, TemporaryDirectory(prefix="ps-") as ray:
        layout = layouts[contender.data]
        job = {
            **asdict(contender),
            "core": options.core,
            "ray_core": options.ray_core if contender.apart else None,
            "scratch": scratch,
            "model": MODEL,
            "micro_batch_size": layout.micro_batch_size,
            "warmup_updates": options.warmup_updates,
        }
        if contender.is_peer:
            updates = math.ceil(layout.rows / layout.micro_batch_size)
            factor = rate_factor(contenders.schedule(), updates)
            job |= {
                "documents": str(folder / "documents.npz"),
                "tokenizer": str(folder / "tokenizer"),
                "vocabulary_size": vocabulary_size(folder / "tokenizer"),
                "max_length": mix.MAX_LENGTH,
                "seed": contenders.SEED,
                "clip": contenders.CLIP,
                "weight_decay": contenders.WEIGHT_DECAY,
                "learning_rate": contenders.LEARNING_RATE,
                "ratio": contenders.LORA_PLUS_RATIO,
                "factors": [factor(done) for done in range(updates + 1)],
            }
        else:
            job["data"] = str(folder / contender.data)
        program, python = ("peers.py", options.peer_python) if contender.is_peer else ("contenders.py", sys.executable)
        command = [str(python), "-W", "ignore", str(HERE / program), json.dumps(job)]
        environment = os.environ | {"HOME": scratch, "RAY_TMPDIR": ray, "POLYSOME_CACHE": f"{scratch}/cache"}
        environment |= {"POLYSOME_CPUS": "2", "OMP_NUM_THREADS": "1"}
        if contender.is_peer:
            environment.pop("PYTHONPATH", None)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{contender.name} failed:\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def vocabulary_size(tokenizer_folder: Path) -> int:
    """Rows of the embedding, as the platform gives a model from scratch."""
    from polysome.data.tokenizer_files import load_tokenizer

    return len(load_tokenizer(tokenizer_folder))


def check_same_work(runs: dict[str, list[dict[str, Any]]], described: dict[str, Any]) -> None:
    """Whether all contenders trained as many parameters on as many targets, and the loss stayed a number."""
    found = [run for rounds in runs.values() for run in rounds]
    assert len({run["trainable"] for run in found}) <= 1, {
        name: rounds[0]["trainable"] for name, rounds in runs.items()
    }
    assert all(run.get("all_targets", described["targets"]) == described["targets"] for run in found)
    assert all(math.isfinite(run["final_loss"]) for run in found)


def row(contender: Contender, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One result: the best round, and the rates of all."""
    rates = [run["targets"] / run["seconds"] for run in rounds]
    best = rounds[rates.index(max(rates))]
    told = {
        "contender": contender.name,
        "program": contender.program,
        "zero": contender.zero if contender.program == "polysome" else None,
        "updates_timed": best["updates"],
        "targets_timed": best["targets"],
        "positions_computed": best["positions"],
        "seconds": round(best["seconds"], 2),
        "seconds_per_update": round(best["seconds"] / best["updates"], 4),
        "target_tokens_per_second": round(max(rates), 1),
        "target_tokens_per_second_of_rounds": [round(rate, 1) for rate in rates],
        "trainable_parameters": best["trainable"],
        "final_loss": round(best["final_loss"], 4),
        "versions": best["versions"],
    }
    for name in ("data_wait_share", "isolation_difference"):
        if name in best:
            told[name] = float(f"{best[name]:.3g}")
    return told


def compared(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was wanted and what was reached."""
    named = {item["contender"]: item for item in results}
    ratios: list[dict[str, Any]] = [
        {
            "what": what,
            "wanted": f"≥ {wanted:g}" if wanted else None,
            "reached": round(1 / times_as_long(named[ours], named[theirs]), 2),
        }
        for what, ours, theirs, wanted in COMPARED
        if ours in named and theirs in named
    ]
    for name, wanted in (
        ("polysome, Ray apart", f"≤ {OVERHEAD:.0%}"),
        ("polysome, ZeRO-2, Ray apart", f"≤ {OVERHEAD:.0%}"),
        ("polysome", None),
    ):
        if name not in named:
            continue
        if "bare loop" in named:
            over = times_as_long(named[name], named["bare loop"]) - 1
            ratios.append({"what": f"{name}: time over the bare loop's", "wanted": wanted, "reached": f"{over:.1%}"})
        share = named[name]["data_wait_share"]
        ratios.append({"what": f"{name}: waiting for data", "wanted": f"< {DATA_WAIT:.0%}", "reached": f"{share:.2%}"})
    return ratios


def times_as_long(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Seconds per target of one over those of the other, the best of the rounds that both took part in."""
    rates = [item["target_tokens_per_second_of_rounds"] for item in (first, second)]
    rounds = min(map(len, rates))
    return float(max(rates[1][:rounds]) / max(rates[0][:rounds]))


def result_table(results: list[dict[str, Any]]) -> Table:
    """The results as a table."""
    found = Table("contender", title="stage-2 mix, one core, fp32")
    for column in ("updates", "s/update", "positions", "targets", "targets/s", "data wait"):
        found.add_column(column, justify="right")
    for item in results:
        wait = item.get("data_wait_share")
        found.add_row(
            item["contender"],
            str(item["updates_timed"]),
            f"{item['seconds_per_update']:.3f}",
            f"{item['positions_computed']:,}",
            f"{item['targets_timed']:,}",
            f"{item['target_tokens_per_second']:,.1f}",
            "" if wait is None else f"{wait:.2%}",
        )
    return found


def ratio_table(ratios: list[dict[str, Any]]) -> Table:
    """The ratios as a table."""
    found = Table("", "wanted", "reached", title="ratios of this run")
    for item in ratios:
        found.add_row(item["what"], str(item["wanted"] or ""), str(item["reached"]))
    return found


if __name__ == "__main__":
    main()
