"""Recipes: one YAML per job, told apart by its key `job`, validated whole before anything starts."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from polysome.config import Config, ConfigurationError, apply_overrides, read_yaml, validate

Job = Literal["prepare", "train", "evaluate", "pipeline", "serve"]
JOBS: tuple[Job, ...] = get_args(Job)


@dataclass(frozen=True)
class Recipe:
    """A validated recipe: `config` is the configuration of its `job`."""

    job: Job
    name: str
    config: Config


def config_type(job: Job) -> type[Config]:
    """The model of what a recipe of `job` holds beside its key `job`."""
    if job == "prepare":
        from polysome.data.config import PrepareConfig

        return PrepareConfig
    if job == "train":
        from polysome.training.config import StageConfig

        return StageConfig
    if job == "evaluate":
        from polysome.evaluation.config import EvaluationConfig

        return EvaluationConfig
    if job == "serve":
        from polysome.serving.config import ServeConfig

        return ServeConfig
    from polysome.operations.pipeline import PipelineConfig

    return PipelineConfig


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, job: Job | None = None) -> Recipe:
    """Read a recipe, apply `dotted.key=value` overrides, validate it.

    Args:
        path: YAML file with the key `job`.
        overrides: applied in order.
        job: the job that the recipe must be for; None takes any.

    Raises:
        ConfigurationError: the file cannot be read, a key is unknown, missing or has a wrong value, or it is the recipe
            of another job.
    """
    content = apply_overrides(read_yaml(path), overrides)
    declared = content.pop("job", None)
    if declared not in JOBS:
        near = difflib.get_close_matches(str(declared), JOBS, n=1)
        what = "job: required and missing" if declared is None else f"job: {declared!r} is no job"
        fix = f"did you mean {near[0]!r}?" if near else f"set it to one of {', '.join(JOBS)}"
        raise ConfigurationError(what, where=str(path), fix=fix)
    if job is not None and declared != job:
        raise ConfigurationError(
            f"this is a recipe for {declared!r}, not for {job!r}",
            where=str(path),
            fix=f"run it with `polysome {'run' if declared == 'pipeline' else declared} {path}`",
        )
    config = validate(config_type(declared), content, where=str(path))
    return Recipe(job=declared, name=str(config.model_dump()["name"]), config=config)


def schemas() -> dict[str, Any]:
    """JSON Schema of the recipe of every job and, under `dataset`, of the files in `datasets_spec/`."""
    from polysome.specs import Dataset

    found: dict[str, Any] = {}
    for job in JOBS:
        schema = config_type(job).model_json_schema()
        schema["title"] = f"Recipe of a {job} job"
        schema["properties"] = {"job": {"const": job, "type": "string"}, **schema.get("properties", {})}
        schema["required"] = ["job", *schema.get("required", [])]
        found[job] = schema
    found["dataset"] = Dataset.model_json_schema()
    return found
