"""Trains cases one after another as one of several plain processes, without Ray; run as a program by a test."""

import json
import os
import sys
from typing import Any

import numpy as np
import torch

from polysome.training import native

native.prepare_environment()

from polysome.data.feed import open_feed  # noqa: E402
from polysome.models import trainability  # noqa: E402
from polysome.models.backbone import build_model  # noqa: E402
from polysome.training import checkpoint, optimizer  # noqa: E402
from polysome.training.batch import PackedLanguageModel, flatten  # noqa: E402
from polysome.training.checkpoint import Progress, Writer  # noqa: E402
from polysome.training.config import StageConfig  # noqa: E402
from polysome.training.engine import Engine, Place, open_engine  # noqa: E402
from polysome.training.reading import Batches  # noqa: E402
from polysome.training.schedule import extent, rate_factor  # noqa: E402

FINGERPRINT = "case"


def opened(config: StageConfig, place: Place) -> Engine:
    """The stage's engine with a model drawn from its seed."""
    causal = build_model(config.model, f"{config.data}/tokenizer", seed=config.seed)
    trainability.apply(causal, config.trainability, seed=config.seed)
    if config.gradient_checkpointing:
        causal.activation_checkpointing_enable({"use_reentrant": False})
    plan = optimizer.groups(causal, config.optimizer)
    kind = optimizer.choose_kind(config.optimizer, on_cpu=True)
    return open_engine(PackedLanguageModel(causal), config, plan, kind, place)


def trained(engine: Engine, config: StageConfig, cache: str, start: int, stop: int) -> list[dict[str, float]]:
    """Loss and gradient norm of the updates from `start` to before `stop`."""
    feed = open_feed(config.data, seed=config.seed, cache=cache)
    length = extent(config, feed.length)
    factor = rate_factor(config.schedule, length.updates)
    batches = Batches(feed, config, engine.place, start * config.rows_per_update, length.rows)
    curve = []
    for update in range(start, stop):
        first = update * config.rows_per_update
        _, targets = feed.counts(np.arange(first, min(first + config.rows_per_update, length.rows)))
        engine.set_rates(factor(update))
        norm, sums = engine.update(batches.of_update(), int(targets.sum()))
        if engine.place.world_size > 1:
            torch.distributed.all_reduce(sums)
        curve.append({"loss": (sums[0, 0] / sums[0, 1]).item(), "grad_norm": norm})
    batches.close()
    return curve


def save(engine: Engine, folder: str, update: int) -> None:
    """Write a checkpoint."""
    writer = Writer(folder, fingerprint=FINGERPRINT, keep=1)
    writer.save(engine, Progress(update=update))
    writer.wait()


def load(engine: Engine, folder: str) -> int:
    """Read the newest checkpoint; returns its update."""
    return checkpoint.load(engine, str(checkpoint.newest(folder)), fingerprint=FINGERPRINT).update


def _state(engine: Engine) -> dict[str, torch.Tensor]:
    found = {f"{name} {key}": value.clone() for name, state in engine.states() for key, value in state.items()}
    return found | {name: value.detach().clone() for name, value in engine.parameters.items()}


def skipped(engine: Engine, config: StageConfig, cache: str) -> dict[str, bool]:
    """One update in which the last worker's last micro-batch has a loss that is NaN: what is left unchanged by it."""
    feed = open_feed(config.data, seed=config.seed, cache=cache)
    accumulation = config.accumulation(engine.place.world_size)
    before, steps = _state(engine), engine.steps
    runs = 0

    def spoil(module: torch.nn.Module, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        last = engine.place.rank == engine.place.world_size - 1 and runs == accumulation
        return logits * float("nan") if last else logits

    hook = engine.causal.lm_head.register_forward_hook(spoil)
    norm, _ = engine.update([flatten(*feed.documents(np.arange(2))) for _ in range(accumulation)], 10)
    hook.remove()
    after = _state(engine)
    return {
        "told": norm == float("inf"),
        "steps": engine.steps == steps,
        "state": all(torch.equal(value, after[name]) for name, value in before.items()),
        "trains_on": float(engine.update([flatten(*feed.documents(np.arange(2)))] * accumulation, 10)[0]) < 1e9,
    }


def main(plan: str, cache: str) -> None:
    """Train the cases of the file `plan`; the first process prints what came out, by name, as one line of JSON."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    place = Place(torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.device("cpu"))
    with open(plan, encoding="utf-8") as handle:
        cases = json.load(handle)
    found = {}
    for name, case in cases.items():
        config = StageConfig.model_validate(case["config"])
        engine = opened(config, place)
        start = 0
        if "load" in case:
            start = load(engine, case["load"])
        if "save" in case and start:
            save(engine, case["save"], start)
        found[name] = {"curve": trained(engine, config, cache, start, case["updates"])}
        if "save" in case and not start:
            save(engine, case["save"], case["updates"])
        if case.get("spoil"):
            found[name]["skipped"] = skipped(engine, config, cache)
    if place.rank == 0:
        print(json.dumps(found))
    sys.stdout.flush()
    torch.distributed.barrier()
    # Gloo's threads outlive the group otherwise, and DeepSpeed has groups of its own.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
