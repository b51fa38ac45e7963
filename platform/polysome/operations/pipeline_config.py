"""The recipe of a pipeline: tokenizer, model, stages, the chains through them, what is evaluated and served."""

import copy
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from polysome.config import Config
from polysome.data.config import PrepareSettings
from polysome.evaluation.config import EvaluationSettings
from polysome.models.backbone import ModelSource
from polysome.serving.config import ServeSettings
from polysome.training.config import StageSettings

MAIN = "main"
DEV_DATA = "prepared by the pipeline"
"""Stands for the folder until it is known."""
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class BuiltTokenizer(Config):
    """Build Polysome's own vocabulary from the wordings of the pipeline's data sets."""

    vocabulary_size: Annotated[int, Field(ge=276)] = 1024
    """Upper bound, k-mers not counted."""
    kmer: Annotated[int, Field(ge=1, le=6)] = 1
    """Spell DNA and RNA in overlapping k-mers; 1: base by base."""
    protein_kmer: Annotated[int, Field(ge=1, le=3)] = 1
    """Spell proteins in overlapping k-mers; 1: residue by residue."""


class PipelineStage(Config):
    """One stage: its data and its training."""

    prepare: PrepareSettings
    train: StageSettings
    dev: PrepareSettings | None = None
    """Data of the dev loss, prepared as well; `train.dev` says when it is taken, and needs no `data`."""

    @model_validator(mode="before")
    @classmethod
    def _dev_data_follows(cls, content: Any) -> Any:
        """Let `train.dev` do without the path that only the pipeline knows."""
        if not isinstance(content, dict) or not content.get("dev"):
            return content
        content = copy.deepcopy(content)
        settings = content.get("train")
        measured = settings.get("dev") if isinstance(settings, dict) else None
        if not isinstance(measured, dict) or measured.get("data"):
            raise ValueError("dev prepares data for train.dev, which must say every_updates, and no data of its own")
        measured["data"] = DEV_DATA
        return content


class Reference(Config):
    """A published number that stands beside the results for context."""

    dataset: str
    system: str
    value: float
    """In the scale of its source."""
    source: str


class Asking(EvaluationSettings):
    """What is asked, how, and after which stages."""

    after: list[str] | None = None
    """Stages of the main chain after which to evaluate; all when not given. Ablations are evaluated at their end."""


def _inherited(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation that a variant may have too: wordings of the tasks that it asks."""
    wording = settings.get("wording")
    if isinstance(wording, dict) and isinstance(changes.get("tasks"), list):
        settings = {**settings, "wording": {task: word for task, word in wording.items() if task in changes["tasks"]}}
    return settings


class PipelineEvaluation(Asking):
    """What is asked after each stage, and the other ways in which the same models are asked."""

    variants: dict[Name, Asking] = {}
    """Each says what differs from the evaluation, and has a run folder and a column of its own."""

    @field_validator("variants", mode="before")
    @classmethod
    def _the_rest_is_the_same(cls, variants: Any, info: ValidationInfo) -> Any:
        if "tasks" not in info.data:
            # The evaluation itself is refused; its variants would repeat that.
            return {}
        if not isinstance(variants, dict):
            return variants
        return {
            name: {**_inherited(info.data, changes), **changes} if isinstance(changes, dict) else changes
            for name, changes in variants.items()
        }

    @model_validator(mode="after")
    def _variants_differ(self) -> "PipelineEvaluation":
        for name in self.variants:
            if not self.changes(name):
                raise ValueError(f"variant {name!r} asks what the evaluation asks: name a setting that differs")
        return self

    @property
    def askings(self) -> dict[str, Asking]:
        """The evaluation itself, under no name, and its variants."""
        return {"": self, **self.variants}

    def changes(self, variant: str) -> dict[str, Any]:
        """The settings of a variant that differ from the evaluation's."""
        own = self.model_dump(mode="json", include=set(EvaluationSettings.model_fields))
        other = self.variants[variant].model_dump(mode="json")
        return {key: other[key] for key, value in own.items() if other[key] != value}


class PipelineServing(ServeSettings):
    """Serve the main chain's last export when all is done, and ask it a question over HTTP."""

    question_task: str
    """Data set whose first test example is asked."""
    keep: bool = False
    """Leave the endpoint up until Ctrl-C."""


class PipelineConfig(Config):
    """The recipe of a pipeline."""

    name: str
    seed: int = 42
    """Of everything below that names no seed of its own: data, training, evaluation."""
    tokenizer: str | BuiltTokenizer
    """Folder of a Hugging Face tokenizer, or how to build one."""
    model: ModelSource
    """What the first stage of a chain starts from; later stages start from the export before them."""
    stages: Annotated[dict[Name, PipelineStage], Field(min_length=1)]
    """In order."""
    chain: Annotated[list[Name], Field(min_length=1)] | None = None
    """Stages of the main chain, in order; all of them when not given."""
    ablations: dict[Name, list[str]] = {}
    """Other chains by name: which stages they run, in order."""
    evaluation: PipelineEvaluation | None = None
    references: list[Reference] = []
    notes: list[str] = []
    """Sentences that the report shall end with."""
    serving: PipelineServing | None = None
    report: str | None = None
    """Also write the Markdown report to this file."""

    @model_validator(mode="before")
    @classmethod
    def _spread_seed(cls, content: Any) -> Any:
        """Give the pipeline's seed to every part that names none."""
        if not isinstance(content, dict) or "seed" not in content:
            return content
        content = copy.deepcopy(content)
        parts = [content.get("evaluation")]
        if isinstance(content.get("stages"), dict):
            for stage in content["stages"].values():
                parts += [stage.get(part) for part in ("prepare", "train", "dev")] if isinstance(stage, dict) else []
        for part in parts:
            if isinstance(part, dict):
                part.setdefault("seed", content["seed"])
        return content

    @model_validator(mode="after")
    def _chains_exist(self) -> "PipelineConfig":
        reserved = {MAIN, "tokenizer"} & {*self.stages, *self.ablations}
        if reserved:
            raise ValueError(f"{sorted(reserved)[0]!r} cannot name a stage or an ablation")
        for name, chain in self.chains.items():
            unknown = [stage for stage in chain if stage not in self.stages]
            if unknown or len(set(chain)) < len(chain) or not chain:
                part = "chain" if name == MAIN else f"ablation {name!r}"
                raise ValueError(f"{part} needs stages of {list(self.stages)}, each once, found {chain}")
        askings = self.evaluation.askings if self.evaluation else {}
        for name, asking in askings.items():
            unknown = [stage for stage in asking.after or [] if stage not in self.chains[MAIN]]
            if unknown:
                raise ValueError(f"{asking_key(name)}.after names {unknown}, stages are {self.chains[MAIN]}")
        tasks = self.evaluation.tasks if self.evaluation else []
        if self.serving and self.serving.question_task not in tasks:
            raise ValueError(f"serving.question_task must be one of the evaluated tasks {tasks}")
        if strange := sorted({item.dataset for item in self.references} - set(tasks)):
            raise ValueError(f"references name {strange}, which are not evaluated")
        return self

    @property
    def chains(self) -> dict[str, list[str]]:
        """All chains, the main one first."""
        return {MAIN: self.chain or list(self.stages), **self.ablations}

    def step(self, chain: str, stage: str) -> str:
        """Name of the run that trains a stage of a chain first."""
        return stage if chain == MAIN else f"{chain}-{stage}"

    def askings(self, chain: str, stages: Sequence[str], position: int) -> dict[str, Asking]:
        """How the model is evaluated after the stage at `position` of a chain, by variant; the evaluation itself
        under no name."""
        found = self.evaluation.askings if self.evaluation else {}
        if chain != MAIN:
            return found if position == len(stages) - 1 else {}
        return {name: item for name, item in found.items() if item.after is None or stages[position] in item.after}


def asking_key(variant: str) -> str:
    """Where a recipe says how a variant, or under no name the evaluation itself, is asked."""
    return f"evaluation.variants.{variant}" if variant else "evaluation"


def evaluation_step(step: str, variant: str) -> str:
    """Name of the run that evaluates what the run `step` trained; no other step has a dot in its name."""
    return f"evaluate-{step}.{variant}" if variant else f"evaluate-{step}"
