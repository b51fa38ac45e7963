"""Plan a recipe before it runs: what it does, what it needs, how long it takes, what it would overwrite.

Every figure is computed, not run; each says what it rests on. No weight is drawn, nothing is downloaded, no worker
starts (but the one of `measure`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from polysome.config import ConfigurationError
from polysome.data.manifest import MANIFEST, read_manifest
from polysome.operations import plan_memory, plan_time
from polysome.operations.plan_data import TEXT_CHARACTERS_PER_TOKEN, Data, declared, estimated, of_manifest, unknown
from polysome.operations.plan_memory import Memory
from polysome.operations.plan_model import Batch, Model, examine
from polysome.operations.plan_runs import Present, overwritten, present, refused
from polysome.operations.plan_time import Assumptions, Time
from polysome.operations.plan_verdict import assumptions, verdict
from polysome.operations.recipes import Recipe
from polysome.storage import exists, join
from polysome.storage.local import local_folder
from polysome.training import devices
from polysome.training.config import StageConfig
from polysome.training.devices import Device

if TYPE_CHECKING:
    from polysome.data.config import PrepareSettings

DEFAULT_GPU = "A100-PCIE-40GB"
"""Where the recipe asks for GPUs and neither this machine nor the caller says which: the paper's (A-93)."""


@dataclass(frozen=True)
class Options:
    """What the caller declares.

    Attributes:
        gpu: name of the GPU to plan for.
        rows, tokens_per_row: of an epoch, by stage; under the key "" for all.
        tokens_per_second: unpadded, of one worker, instead of a tabled rate.
        measure: time shallow copies of each stage's model on this machine.
        assumed: what tabled rates rest on.
        runs, run_id: where the job would run.
    """

    gpu: str | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    tokens_per_row: Mapping[str, int] = field(default_factory=dict)
    tokens_per_second: float | None = None
    measure: bool = False
    assumed: Assumptions = field(default_factory=Assumptions)
    runs: str = "runs"
    run_id: str | None = None


@dataclass(frozen=True)
class StagePlan:
    """What one stage needs.

    Attributes:
        config: of the stage, as it would run.
        rows, updates, micro_steps: of the whole stage; None when the size of its data is not known (AMB-8).
        tokens: unpadded, of the whole stage.
        memory: of one worker.
        host: of one node with GPUs, by part.
        disk: by part.
        time: None on a CPU that is not measured.
        fits: whether a worker's memory does.
        verdict: in one sentence, with what would mend it.
    """

    config: StageConfig
    data: Data
    model: Model
    rows: int | None
    updates: int | None
    micro_steps: int | None
    tokens: int | None
    memory: Memory
    capacity: int
    host: dict[str, int]
    disk: dict[str, int]
    time: Time | None
    fits: bool
    verdict: str

    @property
    def gpu_hours(self) -> float | None:
        """GPUs x hours; None without GPUs or without a time."""
        gpus = self.config.workers.maximum * self.config.workers.gpus_per_worker
        known = self.time is not None and self.updates is not None and gpus
        return self.time.seconds * gpus / 3600 if known and self.time else None


@dataclass(frozen=True)
class Plan:
    """What a recipe needs.

    Attributes:
        device: None on CPUs.
        present: what is here, or on the cluster of RAY_ADDRESS.
        cpus, gpus: used at once; problems go by the fewest that an elastic stage starts with.
        disk_free: of the runs folder, where it is local.
        existing: what stands in the run folder and what becomes of it.
        assumptions: sentences.
        problems: sentences; none when everything fits and is there.
    """

    recipe: Recipe
    stages: tuple[StagePlan, ...]
    device: Device | None
    present: Present
    cpus: int
    gpus: int
    existing: tuple[str, ...]
    assumptions: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def disk(self) -> int:
        """Bytes that all stages write."""
        return sum(sum(stage.disk.values()) for stage in self.stages)


def make_plan(recipe: Recipe, options: Options) -> Plan:
    """Plan a recipe for the jobs train and pipeline.

    Raises:
        ConfigurationError: the recipe is for another job, the GPU or a stage that an option names is not known, the
            model's configuration cannot be found, or the rules do not fit it.
        DataError: the prepared folder is unfinished.
        ResourceError: measuring failed.
    """
    stages = _stages(recipe, options)
    _check_named(options, [stage.config.name for stage in stages])
    gpus = max(stage.config.workers.maximum * stage.config.workers.gpus_per_worker for stage in stages)
    cpus = max(stage.config.workers.maximum * stage.config.workers.cpus_per_worker for stage in stages)
    here = present(options.runs)
    device = _device(options, here) if gpus else None
    with _tokenizer(recipe) as tokenizer:
        planned = tuple(_plan_stage(stage, tokenizer, device, here, options) for stage in stages)
    disk = sum(sum(stage.disk.values()) for stage in planned)
    problems = [f"{stage.config.name}: {stage.verdict}" for stage in planned if not stage.fits]
    # An elastic stage starts with the fewest workers that it may have.
    fewest_gpus = max(stage.config.workers.minimum * stage.config.workers.gpus_per_worker for stage in stages)
    fewest_cpus = max(stage.config.workers.minimum * stage.config.workers.cpus_per_worker for stage in stages)
    if fewest_gpus > here.gpus:
        problems.append(f"{fewest_gpus} GPUs are needed and {here.gpus} are {here.where}")
    if fewest_cpus > here.cpus:
        problems.append(f"{fewest_cpus} CPUs are needed and {here.cpus} are {here.where}")
    if here.disk_free is not None and disk > here.disk_free:
        problems.append(f"{disk / 1e9:.1f} GB of disk are needed and {here.disk_free / 1e9:.1f} are free")
    for step, keys in refused(recipe, options.runs, options.run_id).items():
        problems.append(f"{step} stands in run {options.run_id} with other settings ({', '.join(keys)})")
    return Plan(
        recipe=recipe,
        stages=planned,
        device=device,
        present=here,
        cpus=cpus,
        gpus=gpus,
        existing=tuple(overwritten(recipe, options.runs, options.run_id)),
        assumptions=tuple(assumptions(planned, device, here, options)),
        problems=tuple(problems),
    )


@dataclass(frozen=True)
class _Stage:
    config: StageConfig
    prepare: PrepareSettings | None
    data: Data


def _stages(recipe: Recipe, options: Options) -> list[_Stage]:
    """The stages in the order in which they train, each with its data."""
    config: Any = recipe.config
    if recipe.job == "train":
        known = of_manifest(read_manifest(config.data), config.data) if exists(join(config.data, MANIFEST)) else None
        return [_Stage(config, None, _data(config.name, known, None, 1.0, options, missing=config.data))]
    if recipe.job != "pipeline":
        raise ConfigurationError(
            f"a recipe for {recipe.job!r} has no stages to plan",
            where=recipe.name,
            fix="plan a recipe with job: train or job: pipeline",
        )
    from_text = isinstance(config.tokenizer, str)
    found = []
    for name in dict.fromkeys(name for chain in config.chains.values() for name in chain):
        stage = config.stages[name]
        folder = join(options.runs, options.run_id or "", f"prepare-{name}", "data")
        prepared = options.run_id is not None and exists(join(folder, MANIFEST))
        known = of_manifest(read_manifest(folder), folder) if prepared else None
        letters = TEXT_CHARACTERS_PER_TOKEN if from_text else 1.0
        data = _data(name, known, stage.prepare, letters, options, missing=folder)
        whole = StageConfig(name=name, data=folder, model=config.model, **stage.train.model_dump())
        found.append(_Stage(whole, stage.prepare, data))
    return found


def _data(
    name: str, known: Data | None, settings: PrepareSettings | None, letters: float, options: Options, *, missing: str
) -> Data:
    rows = options.rows.get(name, options.rows.get(""))
    length = options.tokens_per_row.get(name, options.tokens_per_row.get(""))
    if rows is not None:
        return declared(rows, length, settings)
    if known is not None:
        return known
    if settings is not None:
        return estimated(settings, characters_per_token=letters)
    return unknown(settings, f"{missing} is not prepared")


def _check_named(options: Options, names: list[str]) -> None:
    for option, values in (("--rows", options.rows), ("--tokens-per-row", options.tokens_per_row)):
        for name in values:
            if name and name not in names:
                raise ConfigurationError(
                    f"{option} names the stage {name!r}", where="command line", fix=f"name one of {', '.join(names)}"
                )


def _device(options: Options, here: Present) -> Device:
    said = options.gpu or here.gpu or DEFAULT_GPU
    found = devices.find(said)
    if found is None:
        raise ConfigurationError(
            f"the GPU {said!r} is not known",
            where="--gpu",
            fix=f"name one of {', '.join(devices.near(said))}",
        )
    return found


@contextmanager
def _tokenizer(recipe: Recipe) -> Iterator[str | None]:
    """A local folder of the recipe's tokenizer, for models whose vocabulary is the tokenizer's; None for others."""
    from polysome.data.tokenizer_files import local_tokenizer
    from polysome.operations.pipeline_check import build_tokenizer
    from polysome.operations.pipeline_config import BuiltTokenizer

    config: Any = recipe.config
    if config.model.config is None or "vocab_size" in config.model.config:
        yield None
    elif recipe.job == "train":
        folder = join(config.data, "tokenizer")
        yield local_folder(folder) if exists(folder) else None
    elif isinstance(config.tokenizer, BuiltTokenizer):
        with tempfile.TemporaryDirectory() as folder:
            build_tokenizer(config, config.tokenizer, folder)
            yield folder
    else:
        yield str(local_tokenizer(config.tokenizer))


def _plan_stage(
    stage: _Stage, tokenizer: str | None, device: Device | None, here: Present, options: Options
) -> StagePlan:
    config, data = stage.config, stage.data
    on_gpu = device is not None and config.workers.gpus_per_worker > 0 and config.workers.device == "auto"
    documents = max(1, round(data.row_tokens / data.document_length)) * config.micro_batch_size
    full = Batch(documents, min(data.document_length, data.row_tokens), data.target_share)
    model = examine(
        config.model,
        config.trainability,
        full,
        config.precision,
        tokenizer=tokenizer,
        on_cpu=not on_gpu,
        seed=config.seed,
    )
    rows, updates = _extent(config, data)
    workers = config.workers
    # With an elastic number of workers, memory must do with the fewest and time goes by the most.
    memory = plan_memory.worker_memory(config, model, workers.minimum, cuda=on_gpu)
    per_node = min(workers.maximum, options.assumed.workers_per_node)
    capacity = device.memory_bytes if on_gpu and device else here.memory // min(workers.maximum, max(1, here.cpus))
    share = data.tokens_per_row / data.row_tokens
    average = replace(full, document_length=max(1, round(full.document_length * share)))
    fits, sentence = verdict(config, model, memory, capacity, on_gpu=on_gpu)
    return StagePlan(
        config=config,
        data=data,
        model=model,
        rows=rows,
        updates=updates,
        micro_steps=updates * config.accumulation(workers.maximum) if updates is not None else None,
        tokens=round(rows * data.tokens_per_row) if rows is not None else None,
        memory=memory,
        capacity=capacity,
        host=plan_memory.host_memory(config, model, workers.minimum, per_node) if on_gpu else {},
        disk=plan_memory.disk(config, model, prepared=data.prepared_bytes),
        time=_time(config, model, average, updates or 0, device if on_gpu else None, options),
        fits=fits,
        verdict=sentence,
    )


def _extent(config: StageConfig, data: Data) -> tuple[int | None, int | None]:
    """Packed rows and updates of the whole stage, as the stage itself reckons them."""
    from polysome.training.schedule import extent

    if data.rows is not None:
        found = extent(config, data.rows)
        return found.rows, found.updates
    if config.epochs is None and config.max_updates is not None:
        return config.max_updates * config.rows_per_update, config.max_updates
    return None, None


def _time(
    config: StageConfig, model: Model, batch: Batch, updates: int, device: Device | None, options: Options
) -> Time | None:
    if options.tokens_per_second is not None:
        return plan_time.given(config, batch, updates, options.tokens_per_second)
    if options.measure:
        from polysome.operations.plan_measure import measured_rate

        return plan_time.measured(config, model, batch, updates, measured_rate(config, model.fields, batch))
    if device is None:
        return None
    return plan_time.tabled(config, model, batch, updates, device, options.assumed)


def hours(seconds: float) -> str:
    """`36.4 h`, `12 min`, `8 s`."""
    if not math.isfinite(seconds):
        return "-"
    if seconds >= 5400:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
