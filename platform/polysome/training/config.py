"""What one stage is: data, model, what trains, optimizer, schedule, workers; validated before any worker starts."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from polysome.config import Config
from polysome.models.backbone import ModelSource
from polysome.models.trainability import Rule
from polysome.specs import Split
from polysome.storage import fingerprint

OptimizerKind = Literal["auto", "deepspeed_cpu_adam", "adamw"]


class Optimizer(Config):
    """AdamW (decoupled weight decay) with the groups of A-95."""

    learning_rate: float = Field(gt=0)
    """Of LoRA A, of modules trained in full, and of norms."""
    lora_plus_ratio: float = Field(default=1.0, gt=0)
    """Learning rate of LoRA B over `learning_rate` (LoRA+); 16 is unstable in continued pre-training, 4 not (A-95)."""
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    """Of matrices; norms and biases have none."""
    clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""
    kind: OptimizerKind = "auto"
    """auto: DeepSpeedCPUAdam where its native code is built and the optimizer runs on the CPU, else torch AdamW."""

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each beta lies in [0, 1)")
        return betas


class Schedule(Config):
    """Embedding warm-up, pre-warm-up, linear warm-up, cosine decay; one unit is an optimizer update (A-93, AMB-8)."""

    embedding_warmup_steps: int = Field(default=0, ge=0)
    """Updates at the start in which only the embedding and the output layer learn, at their peak rate; the rest of the
    schedule, for all that trains, follows. For tokens that were added to a model."""
    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of all updates over which the rate rises to its peak."""
    prewarmup_steps: int = Field(default=0, ge=0)
    """Updates at `prewarmup_factor` of the peak before the warm-up."""
    prewarmup_factor: float = Field(default=0.05, gt=0, le=1)
    floor: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak that the cosine ends at."""


class Workers(Config):
    """Ray Train workers; each holds the model."""

    count: Annotated[int, Field(gt=0)] | tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] = 2
    """A number, or `[minimum, maximum]`: training starts with as many as the cluster has room for, goes on with fewer
    when a node is lost, and takes up new ones. The batch and the course of training are those of the maximum."""
    cpus_per_worker: int = Field(default=1, gt=0)
    gpus_per_worker: int = Field(default=0, ge=0, le=1)
    device: Literal["auto", "cpu"] = "auto"
    """auto: the worker's GPU if it has one. cpu: compute on the CPU though a GPU is reserved, to rehearse a cluster."""

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.minimum > self.maximum:
            raise ValueError(f"count: [minimum, maximum] holds {self.minimum} and {self.maximum}, the larger first")
        return self

    @property
    def minimum(self) -> int:
        """Fewest workers that train."""
        return self.count if isinstance(self.count, int) else self.count[0]

    @property
    def maximum(self) -> int:
        """Most workers, which fixes the batch."""
        return self.count if isinstance(self.count, int) else self.count[1]


class Checkpointing(Config):
    """When training state is written, and what is kept."""

    every_updates: int = Field(default=500, gt=0)
    keep: int = Field(default=2, gt=0)
    """Newest committed checkpoints kept."""
    keep_best: int = Field(default=0, ge=0)
    """Beside them, those of the lowest dev loss; needs `dev.data`."""
    background: bool = True
    """Write and upload while training goes on; the next checkpoint and the end of training wait for it."""


class Dev(Config):
    """What is measured while the stage runs, on data that it does not train on."""

    every_updates: int = Field(gt=0)
    data: str | None = None
    """Prepared folder whose mean loss is taken, in all and by source."""
    tasks: list[str] = []
    """Data sets whose questions are asked; needs the job `train` or `pipeline`, which bring parsers and metrics."""
    split: Split = "dev"
    limit: int = Field(default=64, gt=0)
    """Most examples asked per task, and most rows of `data`, times the rows of an update, that are read."""
    max_new_tokens: int = Field(default=64, gt=0)

    @model_validator(mode="after")
    def _measures_something(self) -> Dev:
        if self.data is None and not self.tasks:
            raise ValueError("give data (a prepared folder), tasks, or both")
        return self


class NumberLoss(Config):
    """An additional loss on answers that are numbers: how far off the predicted digits are, not only whether."""

    weight: float = Field(gt=0)
    """Factor beside the cross-entropy."""


class StageSettings(Config):
    """How a stage trains: all of it but for its name, data and model."""

    seed: int = 42
    trainability: list[Rule] = Field(min_length=1)
    """First match wins; a module that no rule matches is frozen."""
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the packed rows."""
    max_updates: int | None = Field(default=None, gt=0)
    """Optimizer updates; with `epochs` as well, whichever ends first."""
    micro_batch_size: int = Field(default=8, gt=0)
    """Packed rows per worker and forward pass."""
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    workers: Workers = Workers()
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of weights, activations and gradients; master weights and optimizer moments are fp32 always."""
    export_dtype: Literal["bf16", "fp32"] | None = None
    """Of the exported weights; that of `precision` when not given."""
    zero: Literal[0, 2] = 2
    """DeepSpeed ZeRO stage; 0: plain data parallelism without DeepSpeed, every worker with all optimizer state."""
    offload: bool = False
    """Keep optimizer state in CPU memory (ZeRO-Offload)."""
    gradient_checkpointing: bool = False
    compile: bool = False
    """Compile the model with `torch.compile`; worth its start-up on GPUs."""
    number_loss: NumberLoss | None = None
    checkpoint: Checkpointing = Checkpointing()
    dev: Dev | None = None
    log_every_updates: int = Field(default=10, gt=0)
    trackers: list[Literal["tensorboard", "prometheus", "mlflow"]] = ["prometheus"]
    """Where the rows of metrics.jsonl go as well; the dashboards show those of prometheus."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Of one device in the stage's precision, for the model FLOPs utilisation; known GPUs need none."""
    max_skipped_updates: int = Field(default=5, ge=0)
    """Updates in a row whose gradient is not finite: each is skipped and counted, one more stops the stage."""
    max_failures: int = Field(default=1, ge=0)
    """Times the workers are started again from the newest checkpoint after one died."""

    @model_validator(mode="after")
    def _has_an_end(self) -> StageSettings:
        if self.epochs is None and self.max_updates is None:
            raise ValueError("give epochs, max_updates, or both")
        if self.offload and not self.zero:
            raise ValueError("offload is DeepSpeed's: it needs zero: 2")
        if self.checkpoint.keep_best:
            if self.dev is None or self.dev.data is None:
                raise ValueError("checkpoint.keep_best goes by the dev loss: it needs dev.data")
            if self.checkpoint.every_updates % self.dev.every_updates:
                raise ValueError(
                    "checkpoint.keep_best needs a dev loss at every checkpoint: checkpoint.every_updates "
                    f"({self.checkpoint.every_updates}) must be a multiple of dev.every_updates "
                    f"({self.dev.every_updates})"
                )
        workers = self.workers
        on_gpu = workers.gpus_per_worker and workers.device == "auto" and not self.offload
        if self.optimizer.kind == "deepspeed_cpu_adam" and on_gpu:
            raise ValueError("optimizer.kind deepspeed_cpu_adam runs on the CPU: set offload: true, or kind adamw")
        return self

    @property
    def rows_per_update(self) -> int:
        """Packed rows of one optimizer update, over all workers and accumulation, however many workers run."""
        return self.workers.maximum * self.micro_batch_size * self.gradient_accumulation_steps

    def accumulation(self, world_size: int) -> int:
        """Micro-batches per update of each of `world_size` workers; in the last some workers may have no rows."""
        return math.ceil(self.rows_per_update / (self.micro_batch_size * world_size))


class StageConfig(StageSettings):
    """The whole of one stage."""

    name: str = Field(min_length=1)
    data: str
    """Prepared folder, path or URL."""
    model: ModelSource

    def fingerprint(self, data_fingerprint: str, model_content: str | None = None) -> str:
        """16 hex digits of everything that decides the course of training; a resume must agree in it.

        The number of workers is not part of it, the rows per update are: two workers may go on where four stopped.

        Args:
            data_fingerprint: of the prepared data.
            model_content: what stands at `model.path`, which then counts instead of the path itself.
        """
        decisive: dict[str, Any] = self.model_dump(
            mode="json",
            include={
                "seed", "model", "trainability", "optimizer", "schedule", "epochs", "max_updates", "precision",
                "number_loss",
            },
        )  # fmt: skip
        decisive["optimizer"].pop("kind")
        if model_content is not None:
            decisive["model"]["path"] = model_content
        return fingerprint({**decisive, "rows_per_update": self.rows_per_update, "data": data_fingerprint})
