"""`polysome evaluate`: a recipe, or a model and the names of tasks, in; the table of what the model reached out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polysome.cli.console import JsonOption, console, next_step, print_json
from polysome.config import ConfigurationError

if TYPE_CHECKING:
    from polysome.operations.recipes import Recipe

_MODEL = "model"


def evaluate(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE|MODEL", help="YAML file; or a model folder or endpoint, with --tasks.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. seed=7 actors=4")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Names of data sets, separated by commas; `polysome datasets ls`.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Rows of each task, drawn by the seed.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="test, dev, train or stage3_pool.")] = None,
    modes: Annotated[str | None, typer.Option("--modes", help="text, scores, or text,scores.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="concise, reasoning, concise_reference, none.")] = None,
    tagged: Annotated[
        bool | None, typer.Option("--tagged/--untagged", help="Put the task tag before the question.")
    ] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", help="Folder of a PEFT adapter for the model.")] = None,
    runs: Annotated[
        str, typer.Option("--runs", envvar="POLYSOME_RUNS", help="Folder or URL (any fsspec) that holds the runs.")
    ] = "runs",
    run_id: Annotated[
        str | None, typer.Option("--run-id", help="Take up the run of this id, or give this id to a new one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a model the declared tasks, measure its answers, and lay them beside trivial baselines."""
    options: dict[str, Any] = {
        "tasks": None if tasks is None else f"[{tasks}]",
        "limit": limit,
        "split": split,
        "modes": None if modes is None else f"[{modes}]",
        "prompt": prompt,
        "tagged": None if tagged is None else str(tagged).lower(),
        "adapter": adapter,
    }
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    loaded = _recipe(recipe, [*(overrides or []), *given])

    from polysome.evaluation.report import table
    from polysome.evaluation.run import read_evaluation
    from polysome.operations import jobs
    from polysome.operations.program import announcer

    done = jobs.execute(loaded, runs, run_id=run_id, announce=announcer(sys.stderr if as_json else sys.stdout))
    if as_json:
        print_json({"folder": done.folder, **done.record.model_dump(mode="json")})
        return
    screen = console()
    if done.reusable:
        screen.print(f"{done.record.id} had finished before; nothing was done", markup=False)
    screen.print(table({loaded.name: read_evaluation(done.folder)}).rich())
    screen.print(f"run {done.folder}", markup=False, soft_wrap=True)
    next_step(f"polysome report {done.folder}")


def _recipe(source: str, overrides: list[str]) -> Recipe:
    """The recipe of a file, or that of a model folder or endpoint whose settings are all defaults and overrides."""
    from polysome.config import apply_overrides, validate
    from polysome.evaluation.config import EvaluationConfig
    from polysome.operations.recipes import Recipe, load_recipe

    if source.endswith((".yaml", ".yml")):
        return load_recipe(source, overrides, job="evaluate")
    content = apply_overrides({"name": _MODEL, "model": source}, overrides)
    if not content.get("tasks"):
        raise ConfigurationError(
            "a model was named, but no task to ask it",
            where="command line",
            fix="add --tasks NAME,NAME; `polysome datasets ls` shows them",
        )
    config = validate(EvaluationConfig, content, where=f"polysome evaluate {source}")
    return Recipe(job="evaluate", name=config.name, config=config)
