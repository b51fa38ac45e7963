"""The Markdown report of a pipeline: results beside baselines, learning curves, leaks, and how each step was made."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import fsspec

from polysome.data.audit_report import AUDIT, AuditReport, DatasetAudit, overlap_lines
from polysome.operations import provenance, runs
from polysome.operations.pipeline_check import planned_steps
from polysome.operations.pipeline_config import MAIN, PipelineConfig
from polysome.storage import exists, join, read_json
from polysome.training.metrics import METRICS

if TYPE_CHECKING:
    from polysome.evaluation.report import Report


def markdown(config: PipelineConfig, report: "Report", record: runs.RunRecord, folder: str) -> str:
    """The report as Markdown.

    Args:
        report: of the evaluations and baselines.
        record: of the pipeline's run.
        folder: the pipeline's; its steps tell the rest.
    """
    steps = _steps(config, folder)
    lines = [
        f"# {config.name}",
        "",
        f"Made by `{provenance.command()}` with Polysome {record.versions['polysome']}.",
        "",
    ]
    lines += [report.markdown().rstrip(), "", *_variant_lines(config), *_ablation_lines(report, config)]
    lines += [line for note in config.notes for line in (note, "")]
    lines += _learning_curves(steps)
    if leaks := _leaks(steps):
        lines += ["## Leaks between splits", "", *leaks, ""]
    lines += ["## How it was made", "", "| step | what | seconds |", "| --- | --- | ---: |"]
    lines += [f"| {step.name} | {step_summary(step)} | {runs.seconds(step):.0f} |" for _, step in steps]
    return "\n".join([*lines, ""])


def step_summary(step: runs.RunRecord) -> str:
    """What a finished step came to, in one line."""
    found = step.results
    if step.job == "prepare":
        sources = found["sources"]
        return (
            f"{found['documents']:,} documents, {found['tokens']:,} tokens, packing {found['packing_efficiency']:.1%}; "
            f"left out {_excluded(sources)}, "
            f"set aside {sum(source['quarantined'] for source in sources):,}"
        )
    if step.job == "train":
        return (
            f"{found['updates']:,} updates, {found['tokens']:,} tokens, loss {found['final_loss']:.4f}; "
            f"{found['trainable_parameters']:,} of {found['total_parameters']:,} parameters trained; "
            f"{found['optimizer']}"
        )
    return ", ".join(
        f"{task}: undefined" if result["value"] is None else f"{task}: {result['value']:.2f}"
        for task, result in found.items()
    )


def step_title(chain: str, stages: Sequence[str]) -> str:
    """`after stage1+2`, or the ablation's name: how a column of the report is named."""
    if chain != MAIN:
        return words(chain)
    return "after " + "+".join([stages[0], *(stage.removeprefix("stage") for stage in stages[1:])])


def words(name: str) -> str:
    """A name of the recipe as a reader is told it."""
    return name.replace("_", " ")


def _excluded(sources: list[dict[str, Any]]) -> str:
    """`45 (in core_promoter/test)`: what protected splits kept out."""
    found: Counter[str] = Counter()
    for source in sources:
        found.update(source["excluded"])
    return ", ".join(f"{count:,} (in {holder})" for holder, count in sorted(found.items())) or "0"


def _variant_lines(config: PipelineConfig) -> list[str]:
    """For each variant of the evaluation: what is asked otherwise."""
    lines: list[str] = []
    if config.evaluation is not None:
        for variant in config.evaluation.variants:
            changes = config.evaluation.changes(variant).items()
            told = "; ".join(f"{key}: {_listed(value)}" for key, value in changes)
            lines += [f"Columns ({words(variant)}) are asked otherwise than the rest: {told}.", ""]
    return lines


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else json.dumps(value)


def _ablation_lines(report: "Report", config: PipelineConfig) -> list[str]:
    """For each ablation: on which tasks the main chain is above it, and on which it is not."""
    by_name = {system.name: system for system in report.systems}
    main = by_name.get(step_title(MAIN, config.chains[MAIN]))
    lines: list[str] = []
    for ablation in config.ablations:
        other = by_name.get(step_title(ablation, []))
        if main is None or other is None:
            continue
        both = [task for task in report.tasks if task in main.measurements and task in other.measurements]
        above = [task for task in both if main.measurements[task].value.value > other.measurements[task].value.value]
        rest = [task for task in both if task not in above]
        apart = [task for task in above if main.measurements[task].value.low > other.measurements[task].value.high]
        lines += [
            f"{main.name} is above {other.name} on {len(above)} of {len(both)} tasks "
            f"({', '.join(above) or 'none'}; with intervals apart: {', '.join(apart) or 'none'}); "
            f"it is not on {', '.join(rest) or 'none'}.",
            "",
        ]
    return lines


def _learning_curves(steps: Sequence[tuple[str, runs.RunRecord]]) -> list[str]:
    """What was measured on dev data while stages trained; nothing where no stage measured."""
    rows = [(step.name, row) for folder, step in steps if step.job == "train" for row in _measured(folder)]
    if not rows:
        return []
    tasks = list(dict.fromkeys(task for _, row in rows for task in row["dev"].get("tasks", {})))
    losses = any("loss" in row["dev"] for _, row in rows)
    sizes = {task: found["n"] for _, row in rows for task, found in row["dev"].get("tasks", {}).items()}
    head = ["stage", "update", "tokens", "training loss", *(["dev loss"] if losses else []), *tasks]
    lines = ["## Learning curve", "", f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for name, row in rows:
        dev = row["dev"]
        cells = [name, f"{row['update']:,}", f"{row['tokens']:,}", _number(row["loss"], ".4f")]
        cells += [_number(dev.get("loss"), ".4f")] if losses else []
        cells += [_number(_value(dev, task), ".1f") for task in tasks]
        lines.append(f"| {' | '.join(cells)} |")
    if tasks:
        told = ", ".join(f"{task} {sizes[task]}" for task in tasks)
        lines += ["", f"Tasks: the metric of each x100 on dev rows, answers in words (n: {told})."]
    return [*lines, ""]


def _measured(folder: str) -> Iterator[dict[str, Any]]:
    """The rows of a stage's metrics that hold dev measurements."""
    if not exists(join(folder, METRICS)):
        return
    with fsspec.open(join(folder, METRICS), "r") as lines:
        for line in lines:
            row = json.loads(line)
            if row.get("dev"):
                yield row


def _value(dev: dict[str, Any], task: str) -> float | None:
    value = dev.get("tasks", {}).get(task, {}).get("value")
    return None if value is None else 100 * value


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def audit(config: PipelineConfig, folder: str) -> str:
    """The leaks between splits as text; empty where no step was audited."""
    return "\n".join(_leaks(_steps(config, folder)))


def _steps(config: PipelineConfig, folder: str) -> list[tuple[str, runs.RunRecord]]:
    """The recipe's own steps that are finished; a run folder may hold others too."""
    own = {name for name, _ in planned_steps(config)}
    return [(url, step) for url, step in runs.list_steps(folder) if step.name in own and step.status == "finished"]


def _leaks(steps: Sequence[tuple[str, runs.RunRecord]]) -> list[str]:
    """What the audits of prepared data (`audit: true`) found in common between splits."""
    found: dict[str, DatasetAudit] = {}
    for folder, step in steps:
        path = join(str(step.results.get("data", folder)), AUDIT)
        if step.job == "prepare" and exists(path):
            found |= {item.dataset: item for item in AuditReport.model_validate(read_json(path)).datasets}
    lines = overlap_lines(AuditReport(datasets=list(found.values())))
    if not lines:
        return []
    told = "What splits have in common before anything is left out; how much was left out of training stands below."
    return [told, "", *lines]
