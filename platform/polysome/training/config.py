"""What one stage is: data, model, what trains, optimizer, schedule, workers; validated before any worker starts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from polysome.config import Config
from polysome.models.backbone import ModelSource
from polysome.models.trainability import Rule
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
    """Pre-warm-up, linear warm-up, cosine decay; one unit is an optimizer update (A-93, AMB-8)."""

    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of all updates over which the rate rises to its peak."""
    prewarmup_steps: int = Field(default=0, ge=0)
    """Updates at `prewarmup_factor` of the peak before the warm-up."""
    prewarmup_factor: float = Field(default=0.05, gt=0, le=1)
    floor: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak that the cosine ends at."""


class Workers(Config):
    """Ray Train workers; each holds the model."""

    count: int = Field(default=2, gt=0)
    cpus_per_worker: int = Field(default=1, gt=0)
    gpus_per_worker: int = Field(default=0, ge=0, le=1)


class Checkpointing(Config):
    """When training state is written."""

    every_updates: int = Field(default=500, gt=0)
    keep: int = Field(default=2, gt=0)
    """Newest committed checkpoints kept."""


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
    zero: Literal[2] = 2
    """DeepSpeed ZeRO stage."""
    offload: bool = False
    """Keep optimizer state in CPU memory (ZeRO-Offload)."""
    gradient_checkpointing: bool = False
    checkpoint: Checkpointing = Checkpointing()
    log_every_updates: int = Field(default=10, gt=0)
    max_failures: int = Field(default=1, ge=0)
    """Times the workers are started again from the newest checkpoint after one died."""

    @model_validator(mode="after")
    def _has_an_end(self) -> StageSettings:
        if self.epochs is None and self.max_updates is None:
            raise ValueError("give epochs, max_updates, or both")
        return self

    @property
    def rows_per_update(self) -> int:
        """Packed rows of one optimizer update, over all workers and accumulation."""
        return self.workers.count * self.micro_batch_size * self.gradient_accumulation_steps


class StageConfig(StageSettings):
    """The whole of one stage."""

    name: str = Field(min_length=1)
    data: str
    """Prepared folder, path or URL."""
    model: ModelSource

    def fingerprint(self, data_fingerprint: str) -> str:
        """16 hex digits of everything that decides the course of training; a resume must agree in it.

        The number of workers is not part of it, the rows per update are: two workers may go on where four stopped.
        """
        decisive: dict[str, Any] = self.model_dump(
            mode="json",
            include={
                "seed", "model", "trainability", "optimizer", "schedule", "epochs", "max_updates", "precision",
            },
        )  # fmt: skip
        decisive["optimizer"].pop("kind")
        return fingerprint({**decisive, "rows_per_update": self.rows_per_update, "data": data_fingerprint})
