"""Recipes: one YAML per job, told apart by its key `job`, validated whole before anything starts.

A recipe may extend other files and offer presets (`polysome.operations.layers`).
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from polysome.config import Config, ConfigurationError, validate
from polysome.operations.layers import Layered, read_layers
from polysome.operations.parameters import Offer, Parameter

Job = Literal["prepare", "train", "evaluate", "pipeline", "serve"]
JOBS: tuple[Job, ...] = get_args(Job)


@dataclass(frozen=True)
class Recipe:
    """A validated recipe: `config` is the configuration of its `job`.

    Attributes:
        origins: of every value that is not a default, by dotted key (list items by index): the file, relative to the
            recipe's folder, `preset NAME`, or `override`.
        preset: the chosen one.
        files: those that it was merged from, the recipe last.
    """

    job: Job
    name: str
    config: Config
    origins: Mapping[str, str] = field(default_factory=dict)
    preset: str | None = None
    files: tuple[Path, ...] = ()

    def origin(self, key: str) -> str:
        """Where the value at a dotted key comes from; `default` where no layer sets it or what it is part of."""
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "default")


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
    from polysome.operations.pipeline_config import PipelineConfig

    return PipelineConfig


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, job: Job | None = None) -> Recipe:
    """Read a recipe, merge it over what it extends, put its preset and the overrides over it, validate it.

    Args:
        path: YAML file with the key `job`, its own or one that it extends.
        overrides: `dotted.key=value`, applied in order; `preset=NAME` chooses the preset.
        job: the job that the recipe must be for; None takes any.

    Raises:
        ConfigurationError: a file cannot be read, a preset or key is unknown, a key is missing or has a wrong value, or
            it is the recipe of another job.
    """
    layered = read_layers(path, overrides)
    content = layered.content
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
    config = validate(config_type(declared), content, where=_where(path, layered))
    validate(Offer, layered.offer, where=str(path))
    return Recipe(
        job=declared,
        name=str(config.model_dump()["name"]),
        config=config,
        origins=layered.origins,
        preset=layered.preset,
        files=layered.files,
    )


def _where(path: str | Path, layered: Layered) -> str:
    built = [file.name for file in layered.files[:-1]] + ([f"preset {layered.preset}"] if layered.preset else [])
    return f"{path} (with {', '.join(built)})" if built else str(path)


def schemas() -> dict[str, Any]:
    """JSON Schema of the recipe of every job and, under `dataset`, of the files in `datasets_spec/`.

    What is required is required of the merged recipe: a file may leave it to those that it extends.
    """
    from polysome.specs import Dataset

    found: dict[str, Any] = {}
    for job in JOBS:
        schema = config_type(job).model_json_schema()
        schema["title"] = f"Recipe of a {job} job"
        schema["properties"] = {"job": {"const": job, "type": "string"}, **_LAYER_KEYS, **schema.get("properties", {})}
        schema["required"] = ["job", *schema.get("required", [])]
        found[job] = schema
    stage = found["pipeline"]["$defs"]["PipelineStage"]
    stage["properties"] = {"like": _LIKE, **stage["properties"]}
    stage["anyOf"] = [{"required": stage.pop("required")}, {"required": ["like"]}]
    # What a variant does not name is the evaluation's.
    found["pipeline"]["$defs"]["Asking"].pop("required")
    found["dataset"] = Dataset.model_json_schema()
    return found


_LAYER_KEYS = {
    "extends": {
        "description": "Recipes that this one is merged over, relative to its folder: maps merge, lists and scalars "
        "replace.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    },
    "preset": {
        "description": "Which of the presets is merged over the recipe; `preset=NAME` on the command line goes first.",
        "anyOf": [{"type": "string"}, {"type": "null"}],
    },
    "presets": {
        "description": "Parts of a recipe, by name.",
        "type": "object",
        "additionalProperties": {"type": "object"},
    },
    "description": {
        "description": "What the recipe is for, told to those who submit it through a gateway.",
        "type": "string",
    },
    "parameters": {
        "description": "What those who submit the recipe through a gateway may set, by name.",
        "type": "object",
        "additionalProperties": Parameter.model_json_schema(),
    },
}
_LIKE = {"description": "Another stage of the recipe, which this one starts as a copy of.", "type": "string"}
