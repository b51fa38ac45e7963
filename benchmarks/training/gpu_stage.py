"""One stage on one device, built, checked and timed; run by `gpu.py`, every variant in a process of its own.

    python benchmarks/training/gpu_stage.py '{"case": "stage1", "variant": "8:compile", ...}'

Prints one line of JSON.
"""

import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpu_cases import CASES, TINY, Case

SEED = 42
ROUNDING = 0.03
"""Largest difference of logits, root mean square over that of the logits, which bf16 explains."""


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Build, check and time one variant; for a process of its own."""
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"})
    os.environ.setdefault("MASTER_PORT", "29571")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    import torch

    from polysome.models import trainability
    from polysome.models.backbone import parameter_count
    from polysome.training import optimizer
    from polysome.training.batch import PackedLanguageModel
    from polysome.training.engine import Place, open_engine

    case, (rows, *flags) = CASES[job["case"]], job["variant"].split(":")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fields = case.model | TINY if job["tiny"] else case.model
    with TemporaryDirectory(prefix="bench-") as scratch:
        data = job["data"] or generated(job, case, fields["vocab_size"], int(rows), scratch)
        config, notes = settings(job, case, fields, int(rows), flags, data, on_gpu=device.type == "cuda")
        feed = opened(config, scratch)
        causal = build(fields, device)
        total = parameter_count(causal)
        isolation = check_isolation(causal, feed, device)
        choices = trainability.apply(causal, config.trainability, seed=SEED)
        if config.gradient_checkpointing:
            causal.activation_checkpointing_enable({"use_reentrant": False})
        plan = optimizer.groups(causal, config.optimizer)
        kind = optimizer.choose_kind(config.optimizer, on_cpu=device.type == "cpu" or config.offload)
        engine = open_engine(PackedLanguageModel(causal), config, plan, kind, Place(0, 1, device))
        measured = timed(engine, feed, config, job)
    documents = measured.pop("documents")
    speed = utilisation(causal, documents, measured["tokens_per_second"], job["peak_tflops"])
    return {
        "case": job["case"],
        "variant": job["variant"],
        "model": {key: fields[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size")},
        "parameters": total,
        "trainable": sum(choice.trainable for choice in choices),
        "max_length": feed.manifest.max_length,
        "rows_per_micro_batch": config.micro_batch_size,
        "micro_batches_per_update": config.gradient_accumulation_steps,
        "gradient_checkpointing": config.gradient_checkpointing,
        "compile": config.compile,
        "zero": config.zero,
        "offload": config.offload,
        "optimizer": kind,
        "notes": notes,
        "isolation": isolation,
        **measured,
        **speed,
        "documents": asdict(documents),
        "memory": memory(config, fields, documents, device),
    }


def settings(
    job: dict[str, Any], case: Case, fields: dict[str, Any], rows: int, flags: list[str], data: str, *, on_gpu: bool
) -> tuple[Any, list[str]]:
    """The stage's configuration, and what was changed of what was asked."""
    from polysome.training.config import StageConfig

    notes = []
    zero = 2 if {"zero2", "offload"} & set(flags) else 0
    offload = "offload" in flags
    if zero:
        try:
            import deepspeed  # noqa: F401
        except Exception as error:  # an installation can be broken in any way; the result says that it is
            notes.append(f"DeepSpeed does not work here ({type(error).__name__}: {error}): zero: 0, no offload")
            zero, offload = 0, False
    config = StageConfig.model_validate(
        {
            "name": job["case"],
            "seed": SEED,
            "data": data,
            "model": {"config": fields},
            "trainability": case.rules,
            "optimizer": {**case.optimizer, "kind": "auto" if offload else "adamw"},
            "max_updates": job["warmup_updates"] + job["updates"],
            "micro_batch_size": rows,
            "gradient_accumulation_steps": job["accumulation"],
            "workers": {"count": 1, "gpus_per_worker": int(on_gpu)},
            "precision": "bf16",
            "zero": zero,
            "offload": offload,
            "gradient_checkpointing": "checkpointing" in flags,
            "compile": "compile" in flags,
        }
    )
    return config, notes


def generated(job: dict[str, Any], case: Case, vocabulary: int, rows: int, scratch: str) -> str:
    """A prepared folder of documents of random tokens with the lengths of the stage, more than will be read."""
    import numpy as np
    import pyarrow as pa
    from lengths import document_lengths
    from prepared import write_prepared

    from polysome.data.schema import TOKENS

    generator = np.random.default_rng(SEED)
    wanted = rows * job["accumulation"] * (job["warmup_updates"] + job["updates"])
    # The shortest mean of the stages is above an eighth of a row.
    lengths, starts = document_lengths(job["case"], 8 * wanted, case.max_length, generator)
    ids = generator.integers(0, vocabulary, lengths.sum(), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    columns = [
        pa.array([str(number) for number in range(len(lengths))]),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)),
        pa.array(starts.astype(np.int32)),
    ]
    documents = pa.Table.from_arrays(columns, schema=TOKENS)
    folder = Path(scratch) / "data"
    write_prepared(folder, documents, case.max_length, packed=True, vocabulary_size=vocabulary)
    return str(folder)


def opened(config: Any, scratch: str) -> Any:
    """The feed of the rows."""
    from polysome.data.feed import open_feed

    feed = open_feed(config.data, seed=config.seed, cache=f"{scratch}/rows")
    if feed.manifest.vocabulary_size > config.model.config["vocab_size"]:
        raise SystemExit(f"{config.data} has {feed.manifest.vocabulary_size} tokens, more than the model's embedding")
    return feed


def build(fields: dict[str, Any], device: Any) -> Any:
    """The model with random weights, in bf16 on the device at once: drawn in fp32 on the host it would take minutes."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from polysome.models.attention import ATTENTION, register

    register()
    content = dict(fields)
    config = CONFIG_MAPPING[content.pop("model_type")](**content)
    torch.manual_seed(SEED)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=ATTENTION)
    model.config.use_cache = False
    return model


def check_isolation(causal: Any, feed: Any, device: Any) -> dict[str, float]:
    """Compare logits at the last tokens of packed documents with those of the documents by themselves.

    Returns:
        Differences, root mean square over that of the logits: `packed`, and, as a measure of what would be noticed,
        `joined`, the same tokens laid out as one document.

    Raises:
        AssertionError: packed documents differ by more than rounding, or joined ones by as little.
    """
    import numpy as np
    import torch

    from polysome.data.rows import Documents
    from polysome.training.batch import flatten

    documents, sources = feed.documents(np.arange(min(4, feed.length)))
    lengths = documents.lengths[:6].astype(np.int64)
    ids, ends = documents.input_ids[: lengths.sum()], np.cumsum(lengths)
    pieces = np.split(ids, ends[:-1])

    def logits(parts: list[Any], places: Any) -> torch.Tensor:
        counts = np.array([len(part) for part in parts], np.int32)
        batch = flatten(Documents(np.concatenate(parts), counts, counts - 1), sources[: len(parts)]).to(device)
        output = causal(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=torch.from_numpy(places).to(device),
            packing=batch.packing,
        )
        return output.logits[0].float()

    causal.eval()
    with torch.no_grad():
        apart = torch.cat([logits([piece], np.array([len(piece) - 1])) for piece in pieces])
        differences = {
            name: float((logits(parts, ends - 1) - apart).square().mean().sqrt() / apart.square().mean().sqrt())
            for name, parts in (("packed", pieces), ("joined", [ids]))
        }
    causal.train()
    assert math.isfinite(differences["packed"]), "logits are not finite"
    assert differences["packed"] <= ROUNDING, differences
    assert len(pieces) == 1 or differences["joined"] > 3 * differences["packed"], differences
    return {name: round(value, 5) for name, value in differences.items()}


@dataclass(frozen=True)
class Seen:
    """What the timed micro-batches held, in the mean.

    Attributes:
        documents, tokens: of a micro-batch.
        seen_length: mean length of the document that a token stands in, sum(n^2) / sum(n).
        target_share: of the tokens.
    """

    documents: float
    tokens: float
    seen_length: float
    target_share: float


def timed(engine: Any, feed: Any, config: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Run the updates; those after the warm-up are timed from end to end, reading and transfers included."""
    import numpy as np
    import torch

    from polysome.training.reading import Batches

    device, updates = engine.place.device, job["warmup_updates"] + job["updates"]
    per_update = config.rows_per_update
    # Epochs follow one another, where a folder of --data is small.
    batches = Batches(feed, config, engine.place, 0, updates * per_update)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    losses, seconds = [], []
    before = waited = 0.0
    for number in range(updates):
        positions = np.arange(number * per_update, (number + 1) * per_update)
        targets = int(feed.counts(positions)[1].sum())
        if number == job["warmup_updates"]:
            synchronize()
            waited, before = batches.waited, time.perf_counter()
        began = time.perf_counter()
        engine.set_rates(1.0)
        norm, sums = engine.update(batches.of_update(), targets)
        seconds.append(time.perf_counter() - began)
        losses.append(float(sums[:, 0].sum() / sums[:, 1].sum()))
        assert math.isfinite(norm + losses[-1]), f"update {number + 1}: loss {losses[-1]}, norm {norm}"
    synchronize()
    total = time.perf_counter() - before
    batches.close()
    positions = np.arange(job["warmup_updates"] * per_update, updates * per_update)
    tokens, targets = (int(counts.sum()) for counts in feed.counts(positions))
    lengths = feed.documents(positions)[0].lengths.astype(np.float64)
    micro_batches = job["updates"] * config.gradient_accumulation_steps
    return {
        "updates_timed": job["updates"],
        "seconds": round(total, 4),
        "seconds_per_update": round(total / job["updates"], 5),
        "seconds_of_updates": [round(value, 4) for value in seconds],
        "tokens_per_second": round(tokens / total, 1),
        "target_tokens_per_second": round(targets / total, 1),
        "data_wait_share": round((batches.waited - waited) / total, 5),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
        "documents": Seen(
            documents=round(len(lengths) / micro_batches, 1),
            tokens=round(tokens / micro_batches, 1),
            seen_length=round(float((lengths**2).sum() / lengths.sum()), 1),
            target_share=round(targets / tokens, 4),
        ),
    }


def utilisation(causal: Any, seen: Seen, tokens_per_second: float, peak_tflops: float | None) -> dict[str, Any]:
    """Model FLOPs per token and per second, and their share of the device's peak where that is known."""
    import torch

    from polysome.training import devices
    from polysome.training.flops import flops_per_token

    flops = flops_per_token(causal, document_length=seen.seen_length, target_share=seen.target_share).model
    known = devices.find(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    peak = peak_tflops or (known.peak_tflops("bf16") if known else None)
    tflops = flops * tokens_per_second / 1e12
    return {
        "model_gflops_per_token": round(flops / 1e9, 3),
        "model_tflops_per_second": round(tflops, 2),
        "peak_tflops": peak,
        "mfu": round(tflops / peak, 4) if peak else None,
    }


def memory(config: Any, fields: dict[str, Any], seen: Seen, device: Any) -> dict[str, Any]:
    """Peak memory beside what `polysome plan` reckons for the same micro-batch; its CUDA context is not in torch's."""
    import torch

    from polysome.operations.plan_memory import worker_memory
    from polysome.operations.plan_model import Batch, examine

    documents = max(1, round(seen.documents))
    batch = Batch(documents, max(1, round(seen.tokens / documents)), seen.target_share)
    on_gpu = device.type == "cuda"
    planned_model = examine(config.model, config.trainability, batch, config.precision, on_cpu=not on_gpu)
    planned = worker_memory(config, planned_model, 1, cuda=on_gpu)
    parts = {name: size for name, size in planned.parts.items() if name not in ("CUDA context", "process")}
    gib = 1 << 30
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    total = sum(parts.values())
    return {
        "peak_gib": round(peak / gib, 3),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / gib, 3) if on_gpu else 0.0,
        "planned_gib": round(total / gib, 3),
        "planned_moment": planned.moment,
        "planned_parts_gib": {name: round(size / gib, 3) for name, size in parts.items()},
        "peak_over_planned": round(peak / total, 3) if on_gpu else None,
    }


if __name__ == "__main__" and len(sys.argv) > 1:
    # What libraries print goes to standard error; standard output holds the answer alone.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer.write(json.dumps(run(json.loads(sys.argv[1]))) + "\n")
    answer.flush()
