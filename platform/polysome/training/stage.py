"""One stage on one worker, top to bottom: model, what trains, optimizer, engine, loop, checkpoint, export."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polysome.config import PolysomeError, ResourceError
from polysome.data.feed import Feed, open_feed
from polysome.data.meters import Usage
from polysome.data.tokenizer_files import load_tokenizer
from polysome.storage import exists, join
from polysome.storage.local import cache_folder, local_folder
from polysome.training import native
from polysome.training.config import StageConfig
from polysome.training.dev import Dev
from polysome.training.loop import Loop, NonFiniteLossError
from polysome.training.schedule import extent

if TYPE_CHECKING:
    import torch

    from polysome.training.batch import Objective
    from polysome.training.engine import Place

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
PROBE_TOKENS = 64


@dataclass(frozen=True)
class Outcome:
    """What worker 0 hands back. `error` is set where every worker stopped for the same reason, so that starting the
    workers again would only repeat it; `stopped` where training was asked to stop, after a checkpoint."""

    export: str = ""
    updates: int = 0
    skipped: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    final_loss: float | None = None
    dev_loss: float | None = None
    trainable_parameters: int = 0
    total_parameters: int = 0
    optimizer: str = ""
    stopped: bool = False
    error: PolysomeError | None = None


def run_stage(arguments: dict[str, Any]) -> Outcome:
    """Ray Train's function: train one stage, resuming from the newest committed checkpoint of the run folder.

    Args:
        arguments: `config` (StageConfig as plain values), `folder` (run folder), `fingerprint` (of the stage),
            `sources` (their names, in the manifest's order), `numeric` (whether each one's answers are numbers),
            `questions` (of the dev tasks; None without tasks) and `watched` (whether Ray tells when a node is about to
            be taken away).
    """
    usage = Usage("training")
    config = StageConfig.model_validate(arguments["config"])
    folder, fingerprint = arguments["folder"], arguments["fingerprint"]
    place = _prepare_process(config)

    from polysome.models import trainability
    from polysome.models.backbone import ModelSource, build_model, parameter_count
    from polysome.training import checkpoint, optimizer
    from polysome.training.batch import PackedLanguageModel
    from polysome.training.engine import open_engine
    from polysome.training.export import export
    from polysome.training.metrics import MetricsLog
    from polysome.training.model_card import Card, origin
    from polysome.training.trackers import Run, open_trackers

    if not exists(folder):
        raise ResourceError(
            "the run folder is not seen from this node",
            where=folder,
            fix="give --runs a URL, or a path that every node of the cluster sees",
        )
    tokenizer_folder = local_folder(join(config.data, "tokenizer"))
    feed = open_feed(config.data, seed=config.seed, cache=cache_folder("rows"))
    length = extent(config, feed.length)

    source = config.model if config.model.path is None else ModelSource(path=local_folder(config.model.path))
    came_from = origin(config.model, source.path)
    causal = build_model(source, tokenizer_folder, seed=config.seed)
    total_parameters = parameter_count(causal)
    choices = trainability.apply(causal, config.trainability, seed=config.seed)
    trainable_parameters = sum(choice.trainable for choice in choices)
    if config.gradient_checkpointing:
        causal.activation_checkpointing_enable({"use_reentrant": False})
    plan = optimizer.groups(causal, config.optimizer)
    kind = optimizer.choose_kind(config.optimizer, on_cpu=place.device.type == "cpu" or config.offload)
    model = PackedLanguageModel(causal, _objective(config, arguments, tokenizer_folder))
    engine = open_engine(model, config, plan, kind, place)

    start = checkpoint.Progress()
    newest = _agreed(checkpoint.newest(join(folder, CHECKPOINTS)) if place.rank == 0 else None, place)
    if newest is not None:
        start = checkpoint.load(engine, newest, fingerprint=fingerprint)
        optimizer.check_ratios(engine.optimizer, plan)
    leads = place.rank == 0
    if leads:
        logger.info(
            "%s: %s from update %d of %d (micro-step %d of %d), %d workers x %d rows x %d accumulations, %s, "
            "optimizer %s, %s",
            config.name,
            "resumed" if newest else "training",
            start.update,
            length.updates,
            start.update * config.accumulation(place.world_size),
            length.updates * config.accumulation(place.world_size),
            place.world_size,
            config.micro_batch_size,
            config.accumulation(place.world_size),
            config.precision,
            kind,
            f"ZeRO-{config.zero}" if config.zero else "plain data parallelism",
        )
    loop = Loop(
        engine=engine,
        feed=feed,
        config=config,
        length=length,
        folder=folder,
        writer=checkpoint.Writer(
            join(folder, CHECKPOINTS),
            fingerprint=fingerprint,
            keep=config.checkpoint.keep,
            keep_best=config.checkpoint.keep_best,
            background=config.checkpoint.background,
        ),
        metrics=MetricsLog(folder, after_update=start.update) if leads else None,
        trackers=open_trackers(
            config.trackers, folder, Run("/".join(folder.rstrip("/").split("/")[-2:]), config.name, start.update)
        )
        if leads
        else None,
        sources=arguments["sources"],
        dev=Dev.of(config, arguments["questions"], tokenizer_folder),
        watched=arguments["watched"],
        flops=_flops(config, causal, feed, place),
        usage=usage,
    )
    try:
        progress, stopped = loop.run(start)
    except NonFiniteLossError as error:
        return Outcome(error=error)
    if stopped:
        return Outcome(stopped=True, updates=progress.update)

    masters = engine.masters(keep=leads)
    if not leads:
        return Outcome()
    import torch

    exported = export(
        causal,
        masters,
        tokenizer_folder=tokenizer_folder,
        folder=folder,
        dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[config.export_dtype or config.precision],
        probe=torch.from_numpy(feed.rows(np.zeros(1, np.int64)).input_ids[:, :PROBE_TOKENS].astype(np.int64)),
        card=Card(
            config=config,
            fingerprint=fingerprint,
            manifest=feed.manifest,
            origin=came_from,
            progress=progress,
            rules=[asdict(row) for row in optimizer.table(choices, config.optimizer)],
            optimizer=kind,
            workers=place.world_size,
            total_parameters=total_parameters,
            trainable_parameters=trainable_parameters,
        ),
    )
    logger.info("%s: exported to %s", config.name, exported)
    return Outcome(
        export=exported,
        updates=progress.update,
        skipped=progress.skipped,
        rows=progress.position,
        tokens=progress.tokens,
        seconds=progress.seconds,
        final_loss=progress.loss,
        dev_loss=progress.dev_loss,
        trainable_parameters=trainable_parameters,
        total_parameters=total_parameters,
        optimizer=kind,
    )


def _agreed(found: str | None, place: Place) -> str | None:
    """What worker 0 has found: storage may show workers different things, and all must go on from one checkpoint."""
    import torch

    holder = [found]
    if place.world_size > 1:
        torch.distributed.broadcast_object_list(holder, 0, device=place.device)
    return holder[0]


def _flops(config: StageConfig, model: torch.nn.Module, feed: Feed, place: Place) -> dict[str, float]:
    """What a window needs for the model FLOPs utilisation; nothing where the device's peak is not known."""
    import torch

    from polysome.training.devices import find
    from polysome.training.flops import flops_per_token

    device = find(torch.cuda.get_device_name(place.device)) if place.device.type == "cuda" else None
    peak = config.peak_tflops or (device.peak_tflops(config.precision) if device else None)
    if peak is None:
        return {}
    share = feed.manifest.targets / feed.manifest.tokens
    per_token = flops_per_token(model, document_length=feed.attended_length, target_share=share)
    return {"flops_per_token": per_token.model, "peak_tflops": peak}


def _objective(config: StageConfig, arguments: dict[str, Any], tokenizer_folder: str) -> Objective:
    """The cross-entropy by source, and the number loss where the stage asks for it."""
    from polysome.training.batch import Objective

    if config.number_loss is None:
        return Objective(sources=len(arguments["sources"]))
    import torch

    from polysome.training.numbers import number_token_loss, number_tokens

    numbers = number_tokens(load_tokenizer(tokenizer_folder))
    return Objective(
        sources=len(arguments["sources"]),
        number_loss=lambda logits, targets, weights: number_token_loss(
            logits, targets, numbers.to(logits.device), weights
        ),
        number_weights=config.number_loss.weight * torch.tensor(arguments["numeric"], dtype=torch.float32),
    )


def _prepare_process(config: StageConfig) -> Place:
    """Environment, logging and threads of this worker; nothing of DeepSpeed is imported before."""
    native.prepare_environment()
    on_cpu = not config.workers.gpus_per_worker or config.workers.device == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import ray.train
    import ray.train.torch
    import torch

    from polysome.training.engine import Place

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
    device = torch.device("cpu") if on_cpu else ray.train.torch.get_device()
    return Place(context.get_world_rank(), context.get_world_size(), device)
