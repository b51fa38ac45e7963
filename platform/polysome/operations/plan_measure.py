"""Measure instead of assume: a stage's own engine on shallow copies of its model, in a process of its own.

The time of a micro-batch is that of one layer times their number, and that of what stands around them; two shallow
copies of the model tell both. So a model that would not fit on this machine is measured on it none the less.

    python -m polysome.operations.plan_measure < rehearsal.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from polysome.config import Config, ResourceError
from polysome.models.backbone import ModelSource
from polysome.operations.plan_model import Batch
from polysome.training.config import StageConfig, StageSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from polysome.training.batch import MicroBatch

REPEATS = 5
SHALLOW = (1, 4)
"""Layers of the copies: the further apart, the less an error of one grows with the layers of the whole model."""
LIMIT_SECONDS = 1800


class Rehearsal(Config):
    """What to measure."""

    settings: StageSettings
    """One worker of this stage."""
    model: dict[str, Any]
    """Fields of a transformers configuration, `model_type` and `vocab_size` among them."""
    documents: int
    document_length: int
    target_share: float
    cases: list[tuple[int, int]]
    """Layers of the copy, and micro-batches of its updates; one after another."""


@dataclass(frozen=True)
class Timing:
    """Of one case.

    Attributes:
        layers, accumulation: of the case.
        seconds: of one update, the fastest of REPEATS; of the CPU with one thread, which other work on the machine
            does not lengthen, else of the clock.
        peak_bytes: the most resident memory during updates, after the first.
    """

    layers: int
    accumulation: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Rate:
    """Seconds on the machine that was measured; each holds what `layers` need and what stands around them.

    Attributes:
        device: its name.
        micro_batch: of one forward and backward pass: around the layers, and per layer.
        update: of what an update needs beside its micro-batches, likewise.
    """

    device: str
    micro_batch: tuple[float, float]
    update: tuple[float, float]

    def micro_batch_seconds(self, layers: int) -> float:
        """Of the whole model."""
        return max(0.0, self.micro_batch[0] + self.micro_batch[1] * layers)

    def update_seconds(self, layers: int) -> float:
        """Of the whole model, all of its optimizer state on one worker."""
        return max(0.0, self.update[0] + self.update[1] * layers)


def rehearse(rehearsal: Rehearsal) -> tuple[str, list[Timing]]:
    """Run a rehearsal in a process of its own.

    Returns:
        The device's name, and the timing of every case.

    Raises:
        ResourceError: the copies do not fit on this machine, or the process failed otherwise.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=rehearsal.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ResourceError(
            f"measuring took longer than {LIMIT_SECONDS} s", where="--measure", fix="plan without it, by the tables"
        ) from error
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise ResourceError(
            f"shallow copies of the model cannot be measured here: {reason[-1] if reason else 'the process died'}",
            where="--measure",
            fix="plan without it, by the tables, or measure where a GPU is",
        )
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["device"], [Timing(**timing) for timing in answer["timings"]]


def measured_rate(settings: StageSettings, model: dict[str, Any], batch: Batch) -> Rate:
    """The rate of a stage on this machine, from copies of its model with one and four layers.

    Raises:
        ResourceError: see `rehearse`.
    """
    cases = [(layers, accumulation) for layers in SHALLOW for accumulation in (1, 2)]
    device, timings = rehearse(Rehearsal(settings=settings, model=model, cases=cases, **asdict(batch)))
    seconds = {(timing.layers, timing.accumulation): timing.seconds for timing in timings}
    micro_batch = [seconds[layers, 2] - seconds[layers, 1] for layers in SHALLOW]
    update = [seconds[layers, 1] - micro for layers, micro in zip(SHALLOW, micro_batch, strict=True)]
    return Rate(device, _line(*micro_batch), _line(*update))


def _line(few: float, more: float) -> tuple[float, float]:
    """Around the layers, and per layer."""
    fewest, most = SHALLOW
    per_layer = (more - few) / (most - fewest)
    return few - per_layer * fewest, per_layer


def main() -> None:
    """Read a rehearsal from standard input, measure, and print one line of JSON."""
    from polysome.training import native

    rehearsal = Rehearsal.model_validate_json(sys.stdin.read())
    native.prepare_environment()
    # What libraries print goes to standard error; standard output holds the answer alone.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    workers = rehearsal.settings.workers
    cuda = workers.gpus_per_worker > 0 and workers.device == "auto"
    # DeepSpeed asks for what a launcher would set.
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch

    torch.set_num_threads(workers.cpus_per_worker)
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    timings = [_measure(rehearsal, layers, accumulation, device) for layers, accumulation in rehearsal.cases]
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    answer.write(json.dumps({"device": name, "timings": [asdict(timing) for timing in timings]}) + "\n")
    answer.flush()
    torch.distributed.destroy_process_group()


def _measure(rehearsal: Rehearsal, layers: int, accumulation: int, device: torch.device) -> Timing:
    import torch

    from polysome.models import trainability
    from polysome.training.batch import PackedLanguageModel
    from polysome.training.engine import Place, open_engine
    from polysome.training.optimizer import choose_kind, groups

    alone = rehearsal.settings.workers.model_copy(update={"count": 1})
    changes = {"workers": alone, "gradient_accumulation_steps": accumulation}
    settings = StageConfig(
        name="rehearsal",
        data="",
        model=ModelSource(config=rehearsal.model),
        **rehearsal.settings.model_copy(update=changes).model_dump(),
    )
    causal = shallow(rehearsal.model, layers, seed=settings.seed)
    trainability.apply(causal, settings.trainability, seed=settings.seed)
    if settings.gradient_checkpointing:
        causal.activation_checkpointing_enable({"use_reentrant": False})
    kind = choose_kind(settings.optimizer, on_cpu=device.type == "cpu" or settings.offload)
    plan = groups(causal, settings.optimizer)
    engine = open_engine(PackedLanguageModel(causal), settings, plan, kind, Place(0, 1, device))
    engine.set_rates(1.0)
    batch = micro_batch(rehearsal, seed=settings.seed).to(device)

    alone_on_cpu = device.type == "cpu" and settings.workers.cpus_per_worker == 1
    clock = time.process_time if alone_on_cpu else time.perf_counter

    def update() -> float:
        began = clock()
        engine.update([batch] * accumulation, len(batch.targets) * accumulation)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - began

    update()
    _forget_peak(device)
    seconds = min(update() for _ in range(REPEATS))
    return Timing(layers, accumulation, seconds, _peak(device))


def shallow(fields: dict[str, Any], layers: int, *, seed: int) -> PreTrainedModel:
    """The model of a configuration with `layers` layers, drawn in fp32."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from polysome.models.attention import ATTENTION, register

    register()
    content = dict(fields)
    config = CONFIG_MAPPING[content.pop("model_type")](**content)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=ATTENTION)


def micro_batch(rehearsal: Rehearsal, *, seed: int) -> MicroBatch:
    """Documents of random tokens."""
    import numpy as np

    from polysome.data.rows import Documents
    from polysome.training.batch import flatten

    length, count = rehearsal.document_length, rehearsal.documents
    drawn = np.random.default_rng(seed).integers(0, rehearsal.model["vocab_size"], length * count)
    first = length - round(rehearsal.target_share * length)
    documents = Documents(drawn.astype(np.int32), np.full(count, length, np.int32), np.full(count, first, np.int32))
    return flatten(documents, np.zeros(count, np.int64))


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    # Linux then counts the peak of resident memory anew (proc(5), clear_refs).
    with open("/proc/self/clear_refs", "w", encoding="ascii") as handle:
        handle.write("5")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_reserved(device)
    with open("/proc/self/status", encoding="ascii") as handle:
        (line,) = [line for line in handle if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
