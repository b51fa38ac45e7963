"""A stage as one plain loop: torch's AdamW, one unpacked document after the other, no DeepSpeed, no workers."""

import math
from pathlib import Path

import numpy as np
import torch

from polysome.data.feed import Rows, open_feed
from polysome.models import trainability
from polysome.models.backbone import ModelSource, build_model
from polysome.training.config import StageConfig


def documents(rows: Rows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(input_ids, labels) of every document."""
    found = []
    for row in range(len(rows)):
        for segment in range(1, rows.segment_ids[row].max() + 1):
            part = rows.segment_ids[row] == segment
            found.append(
                tuple(torch.from_numpy(values[row][part].astype(np.int64)) for values in (rows.input_ids, rows.labels))
            )
    return found


def separate_loss(model: torch.nn.Module, rows: Rows) -> torch.Tensor:
    """Mean cross-entropy over all targets, one document at a time."""
    losses = [
        torch.nn.functional.cross_entropy(
            model(input_ids=input_ids[None], use_cache=False).logits[0, :-1].float(), labels[1:], reduction="sum"
        )
        for input_ids, labels in documents(rows)
    ]
    return torch.stack(losses).sum() / int(rows.targets.sum())


def plain_curve(config: StageConfig, rows: int, updates: int, cache: Path) -> list[dict[str, float]]:
    """Loss and gradient norm of every update over the first `rows` packed rows, `config.rows_per_update` at a time."""
    settings, batch = config.optimizer, config.rows_per_update
    model = build_model(ModelSource(config=config.model.config), f"{config.data}/tokenizer", seed=config.seed)
    trainability.apply(model, config.trainability, seed=config.seed)
    model.set_attn_implementation("sdpa")
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            rate = settings.learning_rate * (settings.lora_plus_ratio if "lora_B" in name else 1)
            groups.setdefault((rate, 0.0 if value.ndim == 1 else settings.weight_decay), []).append(value)
    optimizer = torch.optim.AdamW(
        [{"params": values, "lr": rate, "weight_decay": decay} for (rate, decay), values in groups.items()],
        betas=settings.betas,
        eps=settings.epsilon,
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    feed = open_feed(config.data, seed=config.seed, cache=str(cache))
    curve = []
    for update in range(updates):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * _factor(config, update, updates)
        loss = separate_loss(model, feed.rows(np.arange(batch * update, min(batch * (update + 1), rows))))
        loss.backward()
        trained = [value for values in groups.values() for value in values]
        norm = torch.nn.utils.clip_grad_norm_(trained, settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        curve.append({"loss": loss.item(), "grad_norm": norm.item()})
    return curve


def _factor(config: StageConfig, update: int, updates: int) -> float:
    schedule = config.schedule
    held, warmup = schedule.prewarmup_steps, round(schedule.warmup_fraction * updates)
    low = schedule.prewarmup_factor if held else 0.0
    if update < held:
        return low
    if update < held + warmup:
        return low + (1 - low) * (update - held + 1) / (warmup + 1)
    done = (update - held - warmup) / (updates - held - warmup)
    return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * done))
