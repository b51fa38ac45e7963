"""Time of a planned stage: from the tables and declared assumptions, from a measured rate, or from one that is given.

An update is `accumulation` micro-batches and what follows them; nothing is taken to overlap, because the stage's
DeepSpeed configuration does not ask for it:

compute      operations of the micro-batch (training/flops.py, recomputation included) / (peak x efficiency)
reduction    every micro-batch: DeepSpeed all-reduces the gradients of all buckets, 2 (n-1)/n bytes per byte on a ring
             (Patarasuk and Yuan 2009, J. Parallel Distrib. Comput. 69, 117); `zero: 0` once an update, in fp32
offload      gradients to host memory and weights back over PCIe, and Adam on the CPU
gather       every worker gets the others' updated weights, (n-1)/n bytes per byte; the update of the GPU's share
"""

from dataclasses import dataclass

from polysome.operations.plan_measure import Rate
from polysome.operations.plan_memory import FP32, precision_bytes
from polysome.operations.plan_model import Batch, Model
from polysome.training.config import StageSettings
from polysome.training.devices import Device

EFFICIENCY = 0.45
"""Share of the peak at which operations run, recomputed ones counted. Published for models of 7 and 8 billion in bf16:
0.64 to 0.69 on A100 40GB with large micro-batches and recomputation, 0.46 on H100 without (llm-foundry,
scripts/train/benchmarking/README.md); 0.33 to 0.39 on H100 (torchtitan, benchmarks of Llama 3.1 8B)."""
LINK_SHARE = 0.5
"""Share of a link's data-sheet rate that collectives and copies reach; across nodes the network counts as no slower."""
CPU_ADAM_PER_SECOND = 4e9
"""Assumed: parameters per second and node of DeepSpeedCPUAdam, which is bound by memory: ADAM_BYTES each at 120 GB/s.
Two cores of an EPYC alone were measured at 2.1 billion."""
ADAM_BYTES = 30
"""Per parameter that an AdamW update reads and writes: four fp32 read, three written, one bf16 written."""


@dataclass(frozen=True)
class Assumptions:
    """What a tabled rate rests on; each can be declared."""

    efficiency: float = EFFICIENCY
    link_share: float = LINK_SHARE
    workers_per_node: int = 8


@dataclass(frozen=True)
class Time:
    """Of one stage.

    Attributes:
        parts: seconds of one update, by part.
        updates: optimizer updates.
        tokens_per_second: unpadded, of all workers.
        basis: where the rate is from, in words.
        mfu: model FLOPs utilisation, where the peak is known.
    """

    parts: dict[str, float]
    updates: int
    tokens_per_second: float
    basis: str
    mfu: float | None = None

    @property
    def update_seconds(self) -> float:
        """Of one update."""
        return sum(self.parts.values())

    @property
    def seconds(self) -> float:
        """Of the stage, without start-up, checkpoints and evaluation."""
        return self.update_seconds * self.updates


def tabled(
    settings: StageSettings, model: Model, batch: Batch, updates: int, device: Device, assumed: Assumptions
) -> Time:
    """Time on a tabled GPU. `batch` is the average micro-batch, and `settings` fix how many there are."""
    workers, width = settings.workers.maximum, precision_bytes(settings)
    accumulation = settings.accumulation(workers)
    peak = (settings.peak_tflops or device.peak_tflops(settings.precision)) * 1e12
    operations = model.flops.computed(recomputed=settings.gradient_checkpointing) * batch.tokens
    ring = (workers - 1) / workers
    link = device.peer_gb_per_second * 1e9 * assumed.link_share
    host = device.host_gb_per_second * 1e9 * assumed.link_share
    shard = model.trainable / workers if settings.zero else model.trainable
    reductions, reduced = (accumulation, width) if settings.zero else (1, FP32)
    parts = {
        "compute": accumulation * operations / (peak * assumed.efficiency),
        "reduction": reductions * 2 * ring * reduced * model.trainable / link,
        "gather": ring * width * model.trainable / link if settings.zero else 0.0,
    }
    if settings.offload:
        # With accumulation every micro-batch fetches the sum and puts it back.
        summed = (2 * accumulation - 1) * width if accumulation > 1 else 0
        together = shard * min(workers, assumed.workers_per_node)
        parts["offload"] = shard * (FP32 + width + summed) / host + together / CPU_ADAM_PER_SECOND
    else:
        parts["optimizer"] = shard * ADAM_BYTES / (device.memory_gb_per_second * 1e9)
    tokens = batch.tokens * accumulation * workers
    seconds = sum(parts.values())
    return Time(
        parts,
        updates,
        tokens / seconds,
        f"tabled: {device.name}, {peak / 1e12:g} TFLOP/s peak, {assumed.efficiency:.0%} of it reached",
        mfu=model.flops.model * batch.tokens * accumulation / (seconds * peak),
    )


def measured(settings: StageSettings, model: Model, batch: Batch, updates: int, rate: Rate) -> Time:
    """Time at a rate measured on shallow copies; traffic between workers is not in it."""
    workers, layers = settings.workers.maximum, len(model.kept.layers)
    accumulation = settings.accumulation(workers)
    parts = {
        "compute": accumulation * rate.micro_batch_seconds(layers),
        "optimizer": rate.update_seconds(layers) / (workers if settings.zero else 1),
    }
    tokens = batch.tokens * accumulation * workers
    basis = f"measured: {rate.device}, one worker, copies of the model with one and four layers"
    return Time(parts, updates, tokens / sum(parts.values()), basis)


def given(settings: StageSettings, batch: Batch, updates: int, tokens_per_second: float) -> Time:
    """Time at a declared rate of one worker, in unpadded tokens per second."""
    workers = settings.workers.maximum
    accumulation = settings.accumulation(workers)
    seconds = batch.tokens * accumulation / tokens_per_second
    return Time(
        {"update": seconds}, updates, tokens_per_second * workers, f"given: {tokens_per_second:g} tokens/s each"
    )
