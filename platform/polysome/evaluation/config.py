"""The recipe of an evaluation."""

from typing import Annotated

from pydantic import Field, field_validator

from polysome.config import Config
from polysome.specs import Prompt, Split


class EvaluationSettings(Config):
    """Which tasks are asked, and how: a recipe but for its name and model. Answers are greedy."""

    seed: int = 42
    """Of the question template of each example and of the bootstrap."""
    tasks: Annotated[list[str], Field(min_length=1)]
    """Names of data sets that declare a task."""
    split: Split = "test"
    limit: Annotated[int, Field(ge=1)] | None = None
    """Ask only the first so many examples of each task. For trying out: the report says so."""
    prompt: Prompt = "concise"
    """System prompt. Metric tables use `concise` (A-74)."""
    tagged: bool = False
    """Put the task tag before the question (A-62: off by default)."""
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 32
    actors: Annotated[int, Field(ge=1)] = 2
    """Engines that answer side by side; fewer start when the cluster has fewer CPUs or GPUs."""
    cpus_per_actor: Annotated[int, Field(ge=1)] = 1
    gpus_per_actor: Annotated[float, Field(ge=0, le=1)] = 0
    """Above 0 the engines run on a GPU; a fraction lets several share one."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Examples that an actor gets, answers and hands back at a time; so much is lost at most when all is killed."""
    max_batch_tokens: Annotated[int, Field(ge=1)] = 16384
    """Most positions of one forward batch."""
    start_timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds to wait for the first actor to be placed before a local Ray counts as full; on a cluster that may grow,
    the waiting is told this often."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples of the confidence intervals (E-5)."""

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: list[str]) -> list[str]:
        if len(set(tasks)) != len(tasks):
            raise ValueError("each task may stand once")
        return tasks


class EvaluationConfig(EvaluationSettings):
    """The whole recipe of an evaluation."""

    name: str
    model: str
    """Hugging Face folder (safetensors, tokenizer with a chat template), local or any fsspec URL."""
