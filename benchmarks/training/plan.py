"""The plan beside what is measured: memory and step time of three tiny models on this CPU; and the paper's stages.

    python benchmarks/training/plan.py

Each model is planned as `polysome plan --measure` does: memory is computed, and the time is that of copies with one and
four layers, times its layers. Then the whole model trains for some updates in a worker process of its own, with the
stage's engine. Compared are the peak memory of that process, less that of the same process with a model of a few
thousand parameters, and the CPU seconds of an update, which other work on the machine hardly lengthens. While memory is
measured the C library gives freed tensors back; by default it keeps much of what is freed, and a process can hold up to
four times what it uses, which is written down beside it. Llama-3.1-8B's three stages on 24, 20 and 12 A100-40G are
planned from the tables and set beside what the paper tells (A-93). Writes `benchmarks/training/results/plan.json`.
"""

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

import polysome
from polysome.operations.machine import inspect
from polysome.operations.plan import Options, StagePlan, make_plan
from polysome.operations.plan_measure import Rehearsal, rehearse
from polysome.operations.recipes import load_recipe
from polysome.storage import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "training" / "results" / "plan.json"
PAPER = ROOT / "jobs" / "recipes" / "chatmultiomics" / "pipeline.yaml"
BOUND = 0.15
ROUNDS = 2
RETURNING = "glibc.malloc.mmap_threshold=65536:glibc.malloc.trim_threshold=65536"
"""glibc then maps every larger tensor by itself and unmaps it when it is freed."""

LORA = [{"match": "_proj$", "mode": "lora", "rank": 64, "alpha": 64}, {"match": "norm$", "mode": "full"}]
MIXED = [
    {"match": "(q|k)_proj$", "mode": "full"},
    {"match": "_proj$", "mode": "lora", "rank": 32, "alpha": 32},
    {"match": "norm$", "mode": "full"},
]
FULL = [{"match": ".", "mode": "full"}]


def model(kind: str, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> Any:
    """Fields of a configuration."""
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


CASES: dict[str, dict[str, Any]] = {
    "LoRA, ZeRO-2, fp32": {
        "model": {"config": model("llama", 512, 1376, 8, 8, 8, 2048)},
        "trainability": LORA,
        "precision": "fp32",
        "micro_batch_size": 4,
    },
    "mixed, ZeRO-2 offloaded, bf16, recomputed, accumulated": {
        "model": {"config": model("llama", 384, 1024, 12, 6, 2, 4096)},
        "trainability": MIXED,
        "offload": True,
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 2,
        "micro_batch_size": 8,
    },
    "full, plain, fp32": {
        "model": {"config": model("qwen2", 448, 1216, 6, 7, 7, 3000)},
        "trainability": FULL,
        "precision": "fp32",
        "zero": 0,
        "micro_batch_size": 4,
    },
}
TOKENS_PER_ROW = 256

PUBLISHED_HOURS = {"stage1": 36.0, "stage2": 16.0, "stage3": 2.0}
"""A-93."""
PAPER_ROWS = {"stage1": 3_360_000, "stage2": 3_330_232, "stage3": 11_000}
"""Rows of an epoch as the authors ran them: 140,000 updates of 48 packed rows are two epochs of stage 1; a chat of
stage 2 is a row, padded; stage 3 has 8,002 reasoning and 3,000 other rows (AMB-8, A-82, A-85)."""
PAPER_LENGTHS = {"stage1": 1200, "stage2": 1024, "stage3": 1024}
PAPER_OVERRIDES = ["stages.stage3.train.epochs=6"]
"""The paper's 2,750 updates of stage 3 are six epochs (AMB-8)."""


def main() -> None:
    """Plan, measure, compare, print, write."""
    compared = []
    for name, content in CASES.items():
        compared.append(compare(name, content))
        print({key: compared[-1][key] for key in ("model", "memory", "update")}, flush=True)
    paper = paper_stages()
    show(compared, paper)
    write_json(
        str(RESULT),
        {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"polysome": polysome.__version__, "python": platform.python_version()},
            "cpus": inspect().cpus,
            "bound": BOUND,
            "tiny": compared,
            "paper": paper,
        },
    )
    outside = [case["model"] for case in compared if max(_off(case["memory"]), _off(case["update"])) > BOUND]
    if outside:
        raise SystemExit(f"further off than {BOUND:.0%}: {', '.join(outside)}")


def compare(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """One tiny model, planned and measured; the fastest of the rounds counts on both sides."""
    rounds = [planned(content) for _ in range(ROUNDS)]
    stage = rounds[0]
    assert all(found.time is not None for found in rounds)
    predicted = min(found.time.update_seconds for found in rounds if found.time)
    measured = [trained(stage, stage.model.fields) for _ in range(ROUNDS)]
    with returning():
        empty = trained(stage, {**stage.model.fields, **_SMALLEST}, layers=1)
        whole = trained(stage, stage.model.fields)
    kept = measured[0][1] - trained(stage, {**stage.model.fields, **_SMALLEST}, layers=1)[1]
    memory = stage.memory.total - stage.memory.parts["process"]
    return {
        "model": name,
        "parameters": stage.model.total,
        "trainable": stage.model.trainable,
        "memory": _beside(memory, whole[1] - empty[1]) | {"kept_by_glibc": kept, "parts": stage.memory.parts},
        "update": _beside(predicted, min(seconds for seconds, _ in measured)),
    }


_SMALLEST: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
}


def planned(content: dict[str, Any]) -> StagePlan:
    """As `polysome plan --measure` plans it."""
    recipe = {
        "job": "train",
        "name": "tiny",
        "data": "declared",
        "optimizer": {"learning_rate": 1.0e-4},
        "max_updates": 100,
        "workers": {"count": 1},
        **content,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        options = Options(rows={"": 1000}, tokens_per_row={"": TOKENS_PER_ROW}, measure=True, runs=folder)
        (stage,) = make_plan(load_recipe(path), options).stages
    return stage


def trained(stage: StagePlan, fields: dict[str, Any], layers: int | None = None) -> tuple[float, int]:
    """Seconds of an update and peak bytes of a worker process that trains."""
    depth = layers or len(stage.model.kept.layers)
    rehearsal = Rehearsal(
        settings=stage.config,
        model=fields,
        documents=stage.config.micro_batch_size,
        document_length=TOKENS_PER_ROW if layers is None else 16,
        target_share=1.0,
        cases=[(depth, stage.config.gradient_accumulation_steps)],
    )
    _, (timing,) = rehearse(rehearsal)
    return timing.seconds, timing.peak_bytes


@contextmanager
def returning() -> Iterator[None]:
    """Worker processes give memory back when it is freed."""
    os.environ["GLIBC_TUNABLES"] = RETURNING
    try:
        yield
    finally:
        del os.environ["GLIBC_TUNABLES"]


def paper_stages() -> list[dict[str, Any]]:
    """Llama-3.1-8B on A100-40G, from the tables."""
    options = Options(gpu="A100-PCIE-40GB", rows=PAPER_ROWS, tokens_per_row=PAPER_LENGTHS)
    made = make_plan(load_recipe(PAPER, PAPER_OVERRIDES), options)
    found = []
    for stage in made.stages:
        name = stage.config.name
        if name not in PUBLISHED_HOURS or stage.time is None:
            continue
        hours = stage.time.seconds / 3600
        found.append(
            {
                "stage": name,
                "gpus": stage.config.workers.maximum,
                "trainable": stage.model.trainable,
                "updates": stage.updates,
                "micro_steps": stage.micro_steps,
                "memory": stage.memory.parts,
                "memory_total": stage.memory.total,
                "capacity": stage.capacity,
                "fits": stage.fits,
                "update_seconds": stage.time.parts,
                "mfu": stage.time.mfu,
                "hours": hours,
                "published_hours": PUBLISHED_HOURS[name],
                "ratio": hours / PUBLISHED_HOURS[name],
                "basis": stage.time.basis,
            }
        )
    return [*found, {"assumptions": list(made.assumptions)}]


def show(compared: list[dict[str, Any]], paper: list[dict[str, Any]]) -> None:
    """Both tables."""
    console = Console(width=160)
    table = Table("model", "MB planned", "measured", "ratio", "kept by glibc", "s/update planned", "measured", "ratio")
    for case in compared:
        memory, update = case["memory"], case["update"]
        table.add_row(
            case["model"],
            f"{memory['planned'] / 1e6:.0f}",
            f"{memory['measured'] / 1e6:.0f}",
            f"{memory['ratio']:.2f}",
            f"{memory['kept_by_glibc'] / 1e6:.0f}",
            f"{update['planned']:.2f}",
            f"{update['measured']:.2f}",
            f"{update['ratio']:.2f}",
        )
    console.print(table)
    table = Table("stage", "A100-40G", "GiB of GPU memory", "of", "hours", "published", "ratio", "MFU")
    for stage in paper[:-1]:
        table.add_row(
            stage["stage"],
            str(stage["gpus"]),
            f"{stage['memory_total'] / 2**30:.1f}",
            f"{stage['capacity'] / 2**30:.1f}",
            f"{stage['hours']:.1f}",
            f"{stage['published_hours']:g}",
            f"{stage['ratio']:.2f}",
            f"{stage['mfu']:.0%}",
        )
    console.print(table)


def _beside(planned: float, measured: float) -> dict[str, float]:
    return {"planned": planned, "measured": measured, "ratio": planned / measured}


def _off(beside: dict[str, float]) -> float:
    return abs(beside["ratio"] - 1)


if __name__ == "__main__":
    main()
