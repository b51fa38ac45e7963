"""One stage on one worker, top to bottom: model, what trains, optimizer, DeepSpeed, loop, checkpoint, export."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from polysome.config import PolysomeError
from polysome.data.feed import Feed, open_feed
from polysome.storage import join
from polysome.storage.local import cache_folder, local_folder
from polysome.training import native
from polysome.training.config import StageConfig
from polysome.training.schedule import Extent, extent, rate_factor

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

    from polysome.training.batch import PackedLanguageModel
    from polysome.training.checkpoint import Progress
    from polysome.training.metrics import MetricsLog
    from polysome.training.optimizer import ChosenOptimizer, Group

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
PROBE_TOKENS = 64


class NonFiniteLossError(PolysomeError):
    """The loss or the gradient became NaN or infinite."""


@dataclass(frozen=True)
class Outcome:
    """What worker 0 hands back. `error` is set where every worker stopped for the same reason, so that starting the
    workers again would only repeat it."""

    export: str = ""
    updates: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    final_loss: float = math.nan
    trainable_parameters: int = 0
    total_parameters: int = 0
    optimizer: str = ""
    error: PolysomeError | None = None


@dataclass(frozen=True)
class Place:
    """A worker among workers."""

    rank: int
    world_size: int
    device: torch.device


def run_stage(arguments: dict[str, Any]) -> Outcome:
    """Ray Train's function: train one stage, resuming from the newest committed checkpoint of the run folder.

    Args:
        arguments: `config` (StageConfig as plain values), `folder` (run folder) and `fingerprint` (of the stage).
    """
    config = StageConfig.model_validate(arguments["config"])
    folder, fingerprint = arguments["folder"], arguments["fingerprint"]
    place = _prepare_process(config)

    from polysome.models import trainability
    from polysome.models.backbone import ModelSource, build_model, parameter_count
    from polysome.training import checkpoint, optimizer
    from polysome.training.batch import PackedLanguageModel
    from polysome.training.export import export
    from polysome.training.metrics import MetricsLog

    tokenizer_folder = local_folder(join(config.data, "tokenizer"))
    feed = open_feed(config.data, seed=config.seed, cache=cache_folder("rows"))
    length = extent(config, feed.length)

    source = config.model if config.model.path is None else ModelSource(path=local_folder(config.model.path))
    causal = build_model(source, tokenizer_folder, seed=config.seed)
    total_parameters = parameter_count(causal)
    choices = trainability.apply(causal, config.trainability, seed=config.seed)
    if config.gradient_checkpointing:
        causal.activation_checkpointing_enable({"use_reentrant": False})
    plan = optimizer.groups(causal, config.optimizer)
    kind = optimizer.choose_kind(config.optimizer, on_cpu=place.device.type == "cpu" or config.offload)
    engine = _initialize(PackedLanguageModel(causal), config, length, plan, kind, place)

    start = checkpoint.Progress()
    checkpoints = join(folder, CHECKPOINTS)
    newest = checkpoint.newest(checkpoints)
    if newest is not None:
        start = checkpoint.load(engine, newest, fingerprint=fingerprint)
    optimizer.check_ratios(engine.optimizer, plan)
    if place.rank == 0:
        logger.info(
            "%s: %s from update %d of %d, %d workers x %d rows x %d accumulations, %s, optimizer %s",
            config.name,
            "resumed" if newest else "training",
            start.update,
            length.updates,
            place.world_size,
            config.micro_batch_size,
            config.gradient_accumulation_steps,
            config.precision,
            kind,
        )
    metrics = MetricsLog(folder, after_update=start.update) if place.rank == 0 else None

    def save(progress: checkpoint.Progress) -> None:
        checkpoint.save(engine, checkpoints, progress, fingerprint=fingerprint, keep=config.checkpoint.keep)
        if metrics is not None:
            metrics.sync()

    try:
        progress = _loop(engine, feed, config, length, plan, start, place, metrics, save)
    except NonFiniteLossError as error:
        return Outcome(error=error)

    masters = checkpoint.masters(engine, keep=place.rank == 0)
    if place.rank != 0:
        return Outcome()
    import torch

    exported = export(
        causal,
        masters,
        tokenizer_folder=tokenizer_folder,
        folder=folder,
        dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[config.export_dtype or config.precision],
        probe=torch.from_numpy(feed.rows(np.zeros(1, np.int64)).input_ids[:, :PROBE_TOKENS].astype(np.int64)),
    )
    logger.info("%s: exported to %s", config.name, exported)
    assert progress.loss is not None, "the last update is always logged"
    return Outcome(
        export=exported,
        updates=progress.update,
        rows=progress.position,
        tokens=progress.tokens,
        seconds=progress.seconds,
        final_loss=progress.loss,
        trainable_parameters=sum(choice.trainable for choice in choices),
        total_parameters=total_parameters,
        optimizer=kind,
    )


def _loop(
    engine: DeepSpeedEngine,
    feed: Feed,
    config: StageConfig,
    length: Extent,
    plan: list[Group],
    start: Progress,
    place: Place,
    metrics: MetricsLog | None,
    save: Callable[[Progress], None],
) -> Progress:
    """Update after update; returns the progress at the end.

    The loss of an update is the sum over its targets divided by their number over all workers and accumulation steps.
    DeepSpeed divides gradients by the accumulation steps and averages them over workers; both are undone here.
    """
    import torch

    from polysome.training.batch import flatten

    undo_averaging = place.world_size * config.gradient_accumulation_steps
    progress = start
    window = _Window(place.device)
    while progress.update < length.updates:
        began = time.perf_counter()
        stop = min(progress.position + config.rows_per_update, length.rows)
        positions = np.arange(progress.position, stop)
        tokens, targets = (int(counts.sum()) for counts in feed.counts(positions))
        waited = time.perf_counter() - began
        rates = {
            group.role: float(actual["lr"]) for group, actual in zip(plan, engine.optimizer.param_groups, strict=True)
        }

        for accumulation in range(config.gradient_accumulation_steps):
            reading = time.perf_counter()
            first = (accumulation * place.world_size + place.rank) * config.micro_batch_size
            batch = flatten(feed.rows(positions[first : first + config.micro_batch_size])).to(place.device)
            waited += time.perf_counter() - reading
            loss_sum = engine(batch)
            engine.backward(loss_sum * (undo_averaging / max(targets, 1)))
            window.loss_sum += loss_sum.detach()
            engine.step()

        gradient_norm = float(engine.get_global_grad_norm())
        # DeepSpeed reports a norm that is not finite as -1 or as infinity; all workers see the same value.
        if not math.isfinite(gradient_norm) or gradient_norm < 0:
            raise NonFiniteLossError(
                f"the gradient of update {progress.update + 1} is not finite",
                where=f"packed rows at positions {positions[0]} to {positions[-1]}",
                fix="lower optimizer.learning_rate or optimizer.lora_plus_ratio, or set precision: fp32; training goes "
                "on from the newest checkpoint when it is started again with the same configuration",
            )
        seconds = time.perf_counter() - began
        progress = replace(
            progress,
            update=progress.update + 1,
            position=stop,
            tokens=progress.tokens + tokens,
            seconds=progress.seconds + seconds,
        )
        window.add(tokens, targets, seconds, waited)

        last = progress.update == length.updates
        if last or progress.update % config.log_every_updates == 0:
            torch.distributed.all_reduce(window.loss_sum)
            loss = window.loss_sum.item() / max(window.targets, 1)
            progress = replace(progress, loss=loss)
            if metrics is not None:
                row: dict[str, Any] = {
                    "update": progress.update,
                    "updates": length.updates,
                    "epoch": progress.position / feed.length,
                    "position": progress.position,
                    "loss": loss,
                    "grad_norm": gradient_norm,
                    "learning_rate": rates,
                    "tokens": progress.tokens,
                    "tokens_per_second": window.tokens / window.seconds,
                    "data_wait_share": window.waited / window.seconds,
                    "eta_seconds": window.seconds / window.updates * (length.updates - progress.update),
                    "time": time.time(),
                }
                metrics.write(row)
                logger.info(
                    "%s %d/%d  loss %.4f  grad %.3g  lr %.3g  %.0f tokens/s  wait %.0f %%  left %.0f s",
                    config.name,
                    progress.update,
                    length.updates,
                    loss,
                    gradient_norm,
                    max(rates.values()),
                    row["tokens_per_second"],
                    100 * row["data_wait_share"],
                    row["eta_seconds"],
                )
            window = _Window(place.device)
        if last or progress.update % config.checkpoint.every_updates == 0:
            save(progress)
    return progress


class _Window:
    """Sums since the last logged row; `loss_sum` is this worker's own until it is reduced."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.updates = self.tokens = self.targets = 0
        self.seconds = self.waited = 0.0

    def add(self, tokens: int, targets: int, seconds: float, waited: float) -> None:
        self.updates += 1
        self.tokens += tokens
        self.targets += targets
        self.seconds += seconds
        self.waited += waited


def _prepare_process(config: StageConfig) -> Place:
    """Environment, logging and threads of this worker; nothing of DeepSpeed is imported before."""
    native.prepare_environment()
    if not config.workers.gpus_per_worker:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import ray.train
    import ray.train.torch
    import torch

    context = ray.train.get_context()
    torch.set_num_threads(config.workers.cpus_per_worker)
    root = logging.getLogger("polysome")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    root.setLevel(logging.INFO if context.get_world_rank() == 0 else logging.WARNING)
    return Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())


def _initialize(
    model: PackedLanguageModel,
    config: StageConfig,
    length: Extent,
    plan: list[Group],
    kind: ChosenOptimizer,
    place: Place,
) -> DeepSpeedEngine:
    import deepspeed
    import torch

    from polysome.training import checkpoint, optimizer

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    native.skip_shared_memory_operation()
    trainable = {name: value for name, value in model.causal.named_parameters() if value.requires_grad}
    exact = {name: value.detach().clone() for name, value in trainable.items()} if config.precision == "bf16" else {}
    buffers = {name: value.clone() for name, value in model.named_buffers() if value.is_floating_point()}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer.build(model.causal, plan, config.optimizer, kind),
        lr_scheduler=lambda inner: torch.optim.lr_scheduler.LambdaLR(
            inner, rate_factor(config.schedule, length.updates)
        ),
        config=deepspeed_configuration(config, sum(value.numel() for value in trainable.values())),
    )
    optimizer.check_ratios(engine.optimizer, plan)
    for name, value in buffers.items():
        # DeepSpeed casts buffers along with the weights, and rotary frequencies in bf16 turn distant positions wrong.
        owner, _, buffer = name.rpartition(".")
        setattr(model.get_submodule(owner), buffer, value.to(place.device))
    if exact:
        checkpoint.set_masters(engine, exact)
    return engine


def deepspeed_configuration(config: StageConfig, trainable_parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a stage; the optimizer and the scheduler are given to it as objects."""
    zero: dict[str, Any] = {
        "stage": config.zero,
        # DeepSpeed allocates a buffer of this many elements, whatever the model's size.
        "reduce_bucket_size": min(500_000_000, max(trainable_parameters, 1_000_000)),
    }
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.workers.gpus_per_worker > 0}
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.optimizer.clip,
        "bf16": {"enabled": config.precision == "bf16"},
        # bf16 accumulation loses 0.8 % of the gradient over 64 steps.
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,
    }
