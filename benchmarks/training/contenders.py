"""What trains with Polysome's model: the platform's own stage on one Ray worker, and a bare torch loop beside it.

Run by `speed.py`, each in a process of its own: `python benchmarks/training/contenders.py '{"program": "bare", ...}'`.
Prints one line of JSON.
"""

import json
import os
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

STAGE2_RULES: list[dict[str, Any]] = [
    {"match": "(q|k)_proj$", "mode": "full"},
    {"match": "(v|o|gate|up|down)_proj$", "mode": "lora", "rank": 64, "alpha": 32},
    {"match": "norm$", "mode": "full"},
]
"""A-93."""
SEED = 42
CLIP, WEIGHT_DECAY, LEARNING_RATE, LORA_PLUS_RATIO = 1.0, 5e-4, 1e-4, 16
SCHEDULE = {"warmup_fraction": 0.03, "floor": 0.1}


def main(job: dict[str, Any]) -> None:
    """Pin this process and all that it starts, train, and tell what was measured."""
    os.sched_setaffinity(0, [job["core"]] if job["ray_core"] is None else [job["ray_core"]])
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    print(json.dumps({"bare": bare, "polysome": polysome}[job["program"]](job)))


def stage_config(job: dict[str, Any]) -> Any:
    """The stage: A-93's second, in fp32 on one CPU."""
    from polysome.training.config import StageConfig

    return StageConfig.model_validate(
        {
            "name": "speed",
            "seed": SEED,
            "data": job["data"],
            "model": {"config": job["model"]},
            "trainability": STAGE2_RULES,
            "optimizer": {
                "learning_rate": LEARNING_RATE,
                "lora_plus_ratio": LORA_PLUS_RATIO,
                "weight_decay": WEIGHT_DECAY,
                "clip": CLIP,
                # torch's fused one, as everyone's here.
                "kind": "adamw",
            },
            "schedule": SCHEDULE,
            "epochs": 1,
            "micro_batch_size": job["micro_batch_size"],
            "workers": {"count": 1},
            "precision": "fp32",
            "zero": job["zero"],
            "log_every_updates": job["warmup_updates"],
            "checkpoint": {"every_updates": 1_000_000},
            "max_failures": 0,
        }
    )


def schedule() -> Any:
    """The schedule of the stage, for the peers' factors."""
    from polysome.training.config import Schedule

    return Schedule.model_validate(SCHEDULE)


def polysome(job: dict[str, Any]) -> dict[str, Any]:
    """The stage as users run it; times are those at which rows of metrics.jsonl were written, the first is warm-up."""
    from polysome.data.feed import open_feed
    from polysome.operations.cluster import connect
    from polysome.storage.local import cache_folder
    from polysome.training.launch import train_stage

    config, folder = stage_config(job), f"{job['scratch']}/run"
    pinned = threading.Event()
    if job["ray_core"] is not None:
        threading.Thread(target=pin_worker, args=(job["core"], pinned), daemon=True).start()
    with connect(cpus=1):
        result = train_stage(config, folder)
    assert job["ray_core"] is None or pinned.is_set(), "the training worker was not found among Ray's processes"
    rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    first, last = rows[0], rows[-1]
    feed = open_feed(config.data, seed=config.seed, cache=cache_folder("rows"))
    import numpy as np

    tokens, targets = feed.counts(np.arange(first["position"], last["position"]))
    spans = np.diff([row["time"] for row in rows])
    return {
        "seconds": last["time"] - first["time"],
        "updates": last["update"] - first["update"],
        "positions": int(tokens.sum()),
        "targets": int(targets.sum()),
        "data_wait_share": float(np.average([row["data_wait_share"] for row in rows[1:]], weights=spans)),
        "trainable": result.trainable_parameters,
        "final_loss": result.final_loss,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "deepspeed", "ray")},
    }


def pin_worker(core: int, pinned: threading.Event) -> None:
    """Wait for Ray's training worker among the processes below this one, and pin it with all its threads."""
    import psutil

    while True:
        for process in psutil.Process().children(recursive=True):
            try:
                if "RayTrainWorker" in process.name() + " ".join(process.cmdline()):
                    for thread in process.threads():
                        os.sched_setaffinity(thread.id, [core])
                    pinned.set()
                    return
            except (psutil.Error, ProcessLookupError):
                continue  # It ended meanwhile.
        time.sleep(0.1)


def bare(job: dict[str, Any]) -> dict[str, Any]:
    """The same model, rules and micro-batches, made beforehand, in the shortest loop there is."""
    import numpy as np
    import torch

    from polysome.data.feed import open_feed
    from polysome.models import trainability
    from polysome.models.backbone import build_model
    from polysome.storage.local import cache_folder
    from polysome.training import optimizer
    from polysome.training.batch import flatten
    from polysome.training.schedule import extent, rate_factor

    torch.set_num_threads(1)
    config = stage_config(job)
    feed = open_feed(config.data, seed=config.seed, cache=cache_folder("rows"))
    length = extent(config, feed.length)
    model = build_model(config.model, f"{config.data}/tokenizer", seed=config.seed)
    choices = trainability.apply(model, config.trainability, seed=config.seed)
    parameters = [value for value in model.parameters() if value.requires_grad]
    named = dict(model.named_parameters())
    groups = [
        {
            "params": [named[name] for name in group.names],
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
        }
        for group in optimizer.groups(model, config.optimizer)
    ]
    adam = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, rate_factor(config.schedule, length.updates))
    size = config.micro_batch_size
    rows = [np.arange(start, min(start + size, length.rows)) for start in range(0, length.rows, size)]
    batches = [flatten(*feed.documents(part)) for part in rows]
    model.train()
    times = []
    for batch in batches:
        logits = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            logits_to_keep=batch.predictors,
            packing=batch.packing,
        ).logits
        loss = torch.nn.functional.cross_entropy(logits[0].float(), batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        adam.step()
        schedule.step()
        adam.zero_grad()
        times.append(time.perf_counter())
    timed = batches[job["warmup_updates"] :]
    return {
        "seconds": times[-1] - times[job["warmup_updates"] - 1],
        "updates": len(timed),
        "positions": sum(batch.input_ids.numel() for batch in timed),
        "targets": sum(batch.targets.numel() for batch in timed),
        "trainable": sum(choice.trainable for choice in choices),
        "final_loss": float(loss),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


if __name__ == "__main__" and len(sys.argv) > 1:
    main(json.loads(sys.argv[1]))
