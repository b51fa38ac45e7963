"""`polysome plan`: what a recipe does, needs, costs and would overwrite, before it runs."""

from __future__ import annotations

import dataclasses
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from polysome.cli.console import JsonOption, console, next_step, print_json
from polysome.config import ConfigurationError, ResourceError

if TYPE_CHECKING:
    from polysome.operations.plan import Plan, StagePlan

_GIB = 1 << 30
_SHOWN = (
    "epochs", "max_updates", "micro_batch_size", "gradient_accumulation_steps", "workers.count",
    "workers.gpus_per_worker", "precision", "zero", "offload", "gradient_checkpointing", "optimizer.learning_rate",
    "optimizer.lora_plus_ratio", "optimizer.weight_decay", "optimizer.epsilon", "schedule.warmup_fraction",
    "schedule.floor", "seed",
)  # fmt: skip
"""Settings that the table shows; `--json` has all of them."""


def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="YAML file with job: train or job: pipeline.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. preset=tiny seed=7")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Plan for this GPU, e.g. A100-PCIE-40GB or H200. Default: the one here.")
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--rows", metavar="[STAGE=]N", help="Packed rows of an epoch, where nothing is prepared."),
    ] = None,
    tokens_per_row: Annotated[
        list[str] | None, typer.Option("--tokens-per-row", metavar="[STAGE=]N", help="Default: full rows.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option("--tokens-per-second", min=0.001, help="Rate of one GPU, instead of a tabled one.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time shallow copies of the model on this machine.")
    ] = False,
    efficiency: Annotated[
        float | None, typer.Option("--efficiency", min=0.01, max=1, help="Share of the GPU's peak that is reached.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", min=1, help="For host memory and Adam on CPUs.")] = 8,
    cost: Annotated[
        float | None, typer.Option("--cost-per-gpu-hour", min=0, help="In your currency; none is assumed.")
    ] = None,
    currency: Annotated[str, typer.Option("--currency", help="How the cost is written.")] = "",
    runs: Annotated[str, typer.Option("--runs", envvar="POLYSOME_RUNS", help="Folder or URL that holds the runs.")] = (
        "runs"
    ),
    run_id: Annotated[str | None, typer.Option("--run-id", help="The run that would be started or taken up.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a recipe does, needs, costs and would overwrite; exit code 0 when it fits and all is there, else 3."""
    from polysome.operations.plan import Options, make_plan
    from polysome.operations.plan_time import EFFICIENCY, Assumptions
    from polysome.operations.recipes import load_recipe

    options = Options(
        gpu=gpu,
        rows=_by_stage(rows, "--rows"),
        tokens_per_row=_by_stage(tokens_per_row, "--tokens-per-row"),
        tokens_per_second=tokens_per_second,
        measure=measure,
        assumed=Assumptions(efficiency=efficiency or EFFICIENCY, workers_per_node=gpus_per_node),
        runs=runs,
        run_id=run_id,
    )
    made = make_plan(load_recipe(recipe, overrides or []), options)
    if as_json:
        print_json(content(made, cost, currency))
    else:
        _show(made, cost, currency)
        command = ["polysome", "run", recipe, *(overrides or [])]
        command += ["--runs", runs] if runs != "runs" else []
        command += ["--run-id", run_id] if run_id else []
        next_step(shlex.join(command) if not made.problems else "mend what is said above, and plan again")
    if made.problems:
        raise typer.Exit(ResourceError.exit_code)


def content(made: Plan, cost: float | None, currency: str) -> dict[str, Any]:
    """The plan for a program: sizes in bytes, times in seconds."""
    return {
        "recipe": made.recipe.name,
        "preset": made.recipe.preset,
        "device": made.device.name if made.device else None,
        "stages": [_stage_content(made, stage, cost) for stage in made.stages],
        "currency": currency or None,
        "needed": {"gpus": made.gpus, "cpus": made.cpus, "disk": made.disk},
        "present": vars(made.present),
        "existing": list(made.existing),
        "assumptions": list(made.assumptions),
        "problems": list(made.problems),
        "ok": not made.problems,
    }


def _stage_content(made: Plan, stage: StagePlan, cost: float | None) -> dict[str, Any]:
    from polysome.training.optimizer import table

    time, hours = stage.time, stage.gpu_hours
    return {
        "name": stage.config.name,
        "values": {
            key: {"value": value, "origin": _origin(made, stage, key)}
            for key, value in _leaves(stage.config.model_dump(mode="json"))
        },
        "data": {"known": stage.data.known, "basis": stage.data.basis, "rows_per_epoch": stage.data.rows},
        "rows": stage.rows,
        "tokens": stage.tokens,
        "updates": stage.updates,
        "micro_steps": stage.micro_steps,
        "rows_per_update": stage.config.rows_per_update,
        "parameters": {"trainable": stage.model.trainable, "total": stage.model.total},
        "modules": [dataclasses.asdict(row) for row in table(stage.model.choices, stage.config.optimizer)],
        "memory": {"moment": stage.memory.moment, "parts": stage.memory.parts, "total": stage.memory.total},
        "capacity": stage.capacity,
        "host_memory": stage.host,
        "disk": stage.disk,
        "time": None
        if time is None
        else {
            "update_seconds": time.update_seconds,
            "parts": time.parts,
            "seconds": time.seconds if stage.updates is not None else None,
            "tokens_per_second": time.tokens_per_second,
            "mfu": time.mfu,
            "basis": time.basis,
        },
        "gpu_hours": hours,
        "cost": hours * cost if hours is not None and cost is not None else None,
        "fits": stage.fits,
        "verdict": stage.verdict,
    }


def _show(made: Plan, cost: float | None, currency: str) -> None:
    from polysome.operations.plan import hours

    screen = console()
    device = made.device.name if made.device else "CPU"
    preset = f", preset {made.recipe.preset}" if made.recipe.preset else ""
    screen.print(f"[bold]{escape(made.recipe.name)}[/]{escape(preset)} on {device}: computed, not run")
    screen.print(_values(made))
    screen.print()
    table = _by_stages("what", made)
    figures: list[tuple[str, list[str]]] = [
        ("rows", [_count(stage.rows) for stage in made.stages]),
        ("tokens", [_count(stage.tokens) for stage in made.stages]),
        ("updates (micro-steps)", [f"{_count(stage.updates)} ({_count(stage.micro_steps)})" for stage in made.stages]),
        ("parameters that train", [f"{stage.model.trainable:,}" for stage in made.stages]),
        ("parameters", [f"{stage.model.total:,}" for stage in made.stages]),
    ]
    parts = list(dict.fromkeys(part for stage in made.stages for part in stage.memory.parts))
    unit = "GPU" if made.device else "worker"
    for part in parts:
        figures.append((f"GiB per {unit}: {part}", [_gib(stage.memory.parts.get(part, 0)) for stage in made.stages]))
    totals = [f"{_gib(stage.memory.total)} of {_gib(stage.capacity)} ({stage.memory.moment})" for stage in made.stages]
    figures.append((f"[bold]GiB per {unit}[/]", totals))
    if made.device:
        figures.append(("GiB of host memory a node", [_gib(sum(stage.host.values())) for stage in made.stages]))
    figures.append(("GiB of disk", [_gib(sum(stage.disk.values())) for stage in made.stages]))
    times = [stage.time for stage in made.stages]
    figures.append(("seconds per update", [f"{time.update_seconds:.2f}" if time else "-" for time in times]))
    figures.append(("tokens per second", [f"{time.tokens_per_second:,.0f}" if time else "-" for time in times]))
    figures.append(("MFU", [f"{time.mfu:.0%}" if time and time.mfu else "-" for time in times]))
    wall = [stage.time.seconds if stage.time and stage.updates is not None else None for stage in made.stages]
    figures.append(("[bold]time[/]", [hours(seconds) if seconds is not None else "-" for seconds in wall]))
    if made.device:
        figures.append(("GPU-hours", [_count(stage.gpu_hours) for stage in made.stages]))
    if cost is not None:
        prices = [None if stage.gpu_hours is None else stage.gpu_hours * cost for stage in made.stages]
        figures.append((f"cost {currency}".rstrip(), [_count(price) for price in prices]))
    for name, cells in figures:
        table.add_row(name, *cells)
    screen.print(table)
    if len(made.stages) > 1 and all(seconds is not None for seconds in wall):
        spent = sum(stage.gpu_hours or 0.0 for stage in made.stages)
        whole = f", cost {currency} {_count(spent * cost)}".replace("  ", " ") if cost is not None and spent else ""
        used = f", {_count(spent)} GPU-hours{whole}" if spent else ""
        screen.print(f"all stages: {hours(sum(seconds or 0.0 for seconds in wall))}{used}")
    for stage in made.stages:
        screen.print(f"{stage.config.name}: {stage.verdict}", style="green" if stage.fits else "red", markup=False)
    screen.print(
        f"needed at once: {made.gpus} GPUs, {made.cpus} CPUs; {made.present.where}: {made.present.gpus}, "
        f"{made.present.cpus}"
    )
    for line in (*made.existing, *(f"assumed: {text}" for text in made.assumptions)):
        screen.print(line, style="dim", markup=False, soft_wrap=True)
    for problem in made.problems:
        screen.print(f"problem: {problem}", style="red", markup=False, soft_wrap=True)


def _values(made: Plan) -> Table:
    """The settings that some layer sets, each with its origin, and what trains."""
    table = _by_stages("setting", made)
    for key in _SHOWN:
        cells = []
        for stage in made.stages:
            value: Any = dict(_leaves(stage.config.model_dump(mode="json"))).get(key)
            cells.append(f"{escape(str(value))} [dim]{escape(_origin(made, stage, key))}[/]")
        if any("default" not in cell for cell in cells):
            table.add_row(key, *cells)
    longest = max(len(stage.config.trainability) for stage in made.stages)
    for number in range(longest):
        cells = []
        for stage in made.stages:
            rules = stage.config.trainability
            cell = ""
            if number < len(rules):
                rule = rules[number]
                detail = f" r{rule.rank} alpha {rule.alpha:g}" if rule.rank and rule.alpha else ""
                origin = _origin(made, stage, f"trainability.{number}.match")
                cell = f"{escape(rule.match)}: {rule.mode}{detail} [dim]{escape(origin)}[/]"
            cells.append(cell)
        table.add_row(f"trainability.{number}", *cells)
    return table


def _by_stages(first: str, made: Plan) -> Table:
    table = Table(first, *(stage.config.name for stage in made.stages), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.overflow = "fold"
    return table


def _origin(made: Plan, stage: StagePlan, key: str) -> str:
    """`stage1.yaml:31`, `preset tiny`, `override`, `default`, or what else decides it."""
    from polysome.operations.plan_values import origin

    if made.recipe.job == "train" or key.partition(".")[0] == "model":
        return origin(made.recipe, key)
    if key in ("name", "data"):
        return "pipeline"
    found = origin(made.recipe, f"stages.{stage.config.name}.train.{key}")
    return origin(made.recipe, "seed") if key == "seed" and found == "default" else found


def _leaves(node: Any, at: str = "") -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [leaf for key, value in node.items() for leaf in _leaves(value, f"{at}.{key}" if at else str(key))]
    if isinstance(node, list) and any(isinstance(item, dict) for item in node):
        return [leaf for number, item in enumerate(node) for leaf in _leaves(item, f"{at}.{number}")]
    return [(at, node)]


def _by_stage(values: list[str] | None, option: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values or []:
        stage, _, number = value.rpartition("=")
        if not number.isdigit() or int(number) < 1:
            raise ConfigurationError(
                f"{option} {value} is no positive number", where="command line", fix=f"write {option} STAGE=3360000"
            )
        found[stage] = int(number)
    return found


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _gib(size: float) -> str:
    gib = size / _GIB
    return f"{gib:.1f}" if gib >= 1 else f"{gib:.2f}" if size else "-"
