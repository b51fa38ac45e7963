"""What a plan says in words: whether a stage fits, the fewest changes after which it does, and what is assumed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from polysome.operations.plan_memory import Memory, worker_memory
from polysome.operations.plan_model import Kept, Model
from polysome.operations.plan_runs import Present
from polysome.operations.plan_time import CPU_ADAM_PER_SECOND
from polysome.training.config import StageConfig
from polysome.training.devices import Device

if TYPE_CHECKING:
    from polysome.operations.plan import Options, StagePlan

TIGHT = 0.92
"""Share of a GPU's memory above which fragmentation alone can overflow it."""
_GIB = 1 << 30


def verdict(config: StageConfig, model: Model, memory: Memory, capacity: int, *, on_gpu: bool) -> tuple[bool, str]:
    """Whether `memory` fits into `capacity` bytes, and a sentence that says so, or what would mend it."""
    need, have = memory.total / _GIB, capacity / _GIB
    if memory.total <= capacity:
        tight = on_gpu and memory.total > TIGHT * capacity
        return True, f"fits: {need:.1f} of {have:.1f} GiB" + (", tightly" if tight else "")
    part = max(memory.parts, key=lambda name: memory.parts[name])
    mended = _mend(config, model, capacity, on_gpu)
    return False, f"does not fit: {need:.1f} GiB where there are {have:.1f}, most of it {part}; {mended}"


def assumptions(stages: tuple[StagePlan, ...], device: Device | None, here: Present, options: Options) -> Iterator[str]:
    """What the figures rest on, sentence by sentence."""
    yield "memory is computed from the engine's buffers and from what autograd saves, not measured"
    if any(not stage.host for stage in stages):
        yield "on CPUs glibc keeps much of what is freed: a worker's process can hold up to four times its memory"
    for stage in stages:
        yield f"{stage.config.name}: data {stage.data.known}: {stage.data.basis}"
    if device is not None:
        said = options.gpu or here.gpu
        if said is None:
            yield f"no GPU is here and none is named: planned for {device.name} (A-93); --gpu names another"
        if not device.native_bf16 and any(stage.config.precision == "bf16" for stage in stages):
            yield f"{device.name} has no bf16 units: bf16 will be much slower than its tabled fp16 peak"
    bases = dict.fromkeys(stage.time.basis for stage in stages if stage.time is not None)
    yield from bases
    if not bases:
        yield "no time: CPUs are in no table; --measure times shallow copies of the model here"
    if any(basis.startswith("tabled") for basis in bases) and device is not None:
        assumed = options.assumed
        yield (
            f"links at {assumed.link_share:.0%} of {device.peer_gb_per_second:g} GB/s between GPUs, the network "
            f"between nodes no slower, and of {device.host_gb_per_second:g} GB/s to the host; "
            f"{assumed.workers_per_node} GPUs a node; communication does not overlap with computing"
        )
        if any(stage.config.offload for stage in stages):
            yield f"Adam on a node's CPUs updates {CPU_ADAM_PER_SECOND / 1e9:g} billion parameters a second"
    yield "time is that of updates alone: start-up, checkpoints, evaluation and waiting for data come on top"
    if any(stage.config.workers.minimum < stage.config.workers.maximum for stage in stages):
        yield "elastic workers: memory for the fewest, time with the most"


def _mend(config: StageConfig, model: Model, capacity: int, on_gpu: bool) -> str:
    changes: list[str] = []

    def enough() -> bool:
        return worker_memory(config, model, config.workers.minimum, cuda=on_gpu).total <= capacity

    if not config.gradient_checkpointing:
        config = config.model_copy(update={"gradient_checkpointing": True})
        changes.append("gradient_checkpointing: true")
        if enough():
            return f"set {changes[0]}"
    if config.micro_batch_size > 1:
        parts = config.micro_batch_size
        steps = config.gradient_accumulation_steps * parts
        config = config.model_copy(update={"micro_batch_size": 1, "gradient_accumulation_steps": steps})
        model = replace(model, kept=_divided(model.kept, parts))
        changes.append(f"micro_batch_size: 1 and gradient_accumulation_steps: {steps}")
        if enough():
            return f"set {', '.join(changes)}"
    if on_gpu and not config.offload:
        config = config.model_copy(update={"zero": 2, "offload": True})
        changes.append("offload: true" if config.zero == 2 else "zero: 2, offload: true")
        if enough():
            return f"set {', '.join(changes)}"
    return "neither gradient checkpointing, a smaller micro-batch nor offload is enough: take a larger device"


def _divided(kept: Kept, parts: int) -> Kept:
    return Kept(
        layers=tuple(size // parts for size in kept.layers),
        outside=kept.outside // parts,
        layer_input=kept.layer_input // parts,
        widest=kept.widest // parts,
        logits=kept.logits // parts,
    )
