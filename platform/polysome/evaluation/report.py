"""Reports: evaluations, baselines and published numbers in; tables of tasks x systems by omics out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from polysome.evaluation.baselines import Baselines
from polysome.evaluation.measure import Estimate, Measurement, is_error
from polysome.evaluation.published import Published
from polysome.evaluation.published import published as published_numbers
from polysome.evaluation.quantities import SCORED
from polysome.evaluation.results import Evaluation, TaskResult
from polysome.specs import Omics, dataset

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Column", "Published", "Report", "System", "omics_groups", "shown_published", "table", "title_of"]

Reading = Literal["baseline", "strict", "official", "scored"]
"""How predictions came about; values of different readings never share a column (E-6)."""

OMICS: dict[Omics, str] = {"dna": "DNA", "rna": "RNA", "protein": "Protein", "multi": "Multi-molecule"}
"""Groups in the order of the paper's Tables 4 to 7 (A-120)."""
HEADLINE: dict[str, str] = {
    "ChatMultiOmics stages 1+2+3": "ChatMultiOmics",
    "ChatMultiOmics": "ChatMultiOmics",
    "GPT-4o": "GPT-4o",
}
"""Published systems with a column of their own, the second one after its transfer to Mol-Instructions (A-146); the
specialist of the literature has one too."""
LITERATURE = "literature"
LEGEND = (
    "Values x100 with their 95 % confidence interval; p: share of answers that could be parsed. `official`: parsed as "
    "the paper's evaluator does, not comparable with the strict column; `scored`: from likelihoods of the answers."
)
ABSENT = "-"


@dataclass(frozen=True)
class System:
    """A system and what it reached, by data set: a model, or one baseline of each task."""

    name: str
    measurements: Mapping[str, Measurement]
    """By the strict parser; of a baseline, which says no text, its predictions."""
    official: Mapping[str, Measurement] = field(default_factory=dict)
    scored: Mapping[str, Measurement] = field(default_factory=dict)
    baseline: bool = False


@dataclass(frozen=True)
class Column:
    """One way of reading one system."""

    title: str
    reading: Reading
    measurements: Mapping[str, Measurement]


@dataclass(frozen=True)
class Report:
    """Tables of tasks x systems. Values are x100 with the 95 % confidence interval behind them (XP-4, E-5)."""

    tasks: tuple[str, ...]
    """Data sets, one row each."""
    systems: tuple[System, ...]
    """Baselines first (A-119)."""
    quoted: tuple[Published, ...]
    """Numbers that a recipe quotes; those of `published.yaml` have columns."""
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns that hold a value: of each system the strict one, beside it the official and the scored one."""
        found = []
        for system in self.systems:
            strict: Reading = "baseline" if system.baseline else "strict"
            found.append(Column(system.name, strict, system.measurements))
            found.append(Column(f"{system.name}, official", "official", system.official))
            found.append(Column(f"{system.name}, scored", "scored", system.scored))
        return tuple(column for column in found if any(task in column.measurements for task in self.tasks))

    def rich(self, title: str | None = None) -> "Table":
        """The table for a terminal, without published numbers; the best strict value of each row stands out."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, caption="x100, 95 % confidence interval; p: share of answers that could be parsed")
        table.add_column("task")
        table.add_column("n", justify="right")
        for column in self.columns:
            table.add_column(column.title, justify="right")
        for _, tasks in omics_groups(self.tasks):
            for task in tasks:
                best = self.best(task)
                cells = [Text(title_of(task) + "\n").append(self.metric(task), style="dim"), Text(self.n(task))]
                for column in self.columns:
                    measurement = column.measurements.get(task)
                    style = "bold" if measurement is not None and measurement is best else ""
                    cells.append(Text(cell(measurement, "\n", decimals=1), style=style))
                table.add_row(*cells)
            table.add_section()
        return table

    def markdown(self) -> str:
        """A table per omics, further metrics, quoted numbers, caveats and notes as Markdown; ends with a line break."""
        lines: list[str] = []
        for name, tasks in omics_groups(self.tasks):
            lines += [f"## {name}", "", *self._group(tasks), ""]
        lines.append(LEGEND)
        models = [column.title for column in self.columns if column.reading != "baseline"]
        further = [(task, name, cells) for task in self.tasks for name, cells in self.further(task)]
        if further:
            lines += ["", "## Further metrics", "", _row(["task", "metric", *models])]
            lines += [_row(["---", "---", *["---:"] * len(models)])]
            lines += [
                _row([title_of(task), name, *(value or ABSENT for value, _ in cells)]) for task, name, cells in further
            ]
        if self.quoted:
            lines += ["", "Published, for context (other rows and parsers, no interval):", ""]
            lines += [_row(["task", "system", "value", "source"]), _row(["---", "---", "---:", "---"])]
            lines += [
                _row([title_of(item.dataset), item.system, f"{item.scaled:.2f}", item.source]) for item in self.quoted
            ]
        if shown := [item for task in self.tasks for item in shown_published(task)]:
            sources = ", ".join(dict.fromkeys(item.source for item in shown))
            lines += ["", f"Columns `published` are context: other rows, prompts and parsers, no interval ({sources})."]
            lines += ["", *(f"- {text}" for text in caveats(shown))]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def metric(self, task: str) -> str:
        """The task's metric, or metrics where systems were measured by several."""
        return " / ".join(dict.fromkeys(item.metric for item in self._found(task)))

    def n(self, task: str) -> str:
        """How many rows were measured, or how many each system was measured on where they differ."""
        return " / ".join(dict.fromkeys(str(item.n) for item in self._found(task)))

    def best(self, task: str) -> Measurement | None:
        """The greatest value of those that may be compared: baselines and strict readings."""
        found = [system.measurements[task] for system in self.systems if task in system.measurements]
        numbers = [item for item in found if not math.isnan(item.value.value)]
        return max(numbers, key=lambda item: item.value.value, default=None)

    def subsets(self, task: str) -> list[str]:
        """Names of the task's subsets."""
        return list(dict.fromkeys(name for item in self._found(task) for name in item.subsets))

    def further(self, task: str) -> list[tuple[str, list[tuple[str, str]]]]:
        """All other metrics of a task by id, with value and interval for every column but those of baselines; of a
        scored column those of the scores themselves."""
        found: dict[str, list[tuple[str, str]]] = {}
        columns = [column for column in self.columns if column.reading != "baseline"]
        for place, column in enumerate(columns):
            measurement = column.measurements.get(task)
            extras = measurement.extras if measurement is not None else {}
            if any(name.endswith(SCORED) for name in extras):
                extras = {name.removesuffix(SCORED): item for name, item in extras.items() if name.endswith(SCORED)}
            for name, estimate in extras.items():
                found.setdefault(name, [("", "")] * len(columns))[place] = estimate_cells(name, estimate)
        return list(found.items())

    def _found(self, task: str) -> list[Measurement]:
        return [column.measurements[task] for column in self.columns if task in column.measurements]

    def _group(self, tasks: Sequence[str]) -> Iterator[str]:
        literature = published_columns(tasks)
        columns = [column for column in self.columns if any(task in column.measurements for task in tasks)]
        names = [*(column.title for column in columns), *(f"{name}, published" for name in literature)]
        yield _row(["task", "metric", "n", *names])
        yield _row(["---", "---", "---:", *["---:"] * len(names)])
        for task in tasks:
            cells = [cell(column.measurements.get(task), " ") for column in columns]
            cells += [published_cell(shown_published(task), name) for name in literature]
            yield _row([title_of(task), self.metric(task), self.n(task), *cells])
            for subset in self.subsets(task):
                parts = [_subset(column.measurements.get(task), subset) for column in columns]
                n = next((part.n for part in parts if part is not None), 0)
                cells = [cell(part, " ") for part in parts]
                yield _row([f"… {subset}", self.metric(task), str(n), *cells, *[""] * len(literature)])


def table(
    evaluations: Mapping[str, Evaluation],
    baselines: Mapping[str, Baselines] | None = None,
    *,
    published: Sequence[Published] = (),
) -> Report:
    """Lay evaluations and baselines side by side.

    Args:
        evaluations: by the name that their columns shall have, in order. The baselines in them become columns too.
        baselines: by data set, where evaluations hold none; they become the first columns (A-119).
        published: numbers that a recipe quotes; those of the paper's tables stand beside the systems by themselves.
    """
    measured: dict[str, dict[str, Measurement]] = {}
    for name, item in (baselines or {}).items():
        for baseline, measurement in item.measurements.items():
            measured.setdefault(baseline, {})[name] = measurement
    for evaluation in evaluations.values():
        for result in evaluation.tasks:
            for baseline, measurement in result.baselines.items():
                measured.setdefault(baseline, {}).setdefault(result.dataset, measurement)
    systems = [System(name, found, baseline=True) for name, found in measured.items()]
    for name, evaluation in evaluations.items():
        readings = {
            style: {result.dataset: result.styles[style] for result in evaluation.tasks if style in result.styles}
            for style in ("strict", "official")
        }
        scored = {result.dataset: result.scored for result in evaluation.tasks if result.scored is not None}
        systems.append(System(name, readings["strict"], readings["official"], scored))
    tasks = tuple(dict.fromkeys(result.dataset for item in evaluations.values() for result in item.tasks))
    tasks = tasks or tuple(baselines or {})
    return Report(tasks, tuple(systems), tuple(published), tuple(_notes(evaluations, baselines or {}, tasks)))


def omics_groups(tasks: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Data sets by the omics of their molecules, in the order of the paper's tables; empty groups are left out."""
    groups = [(title, [task for task in tasks if dataset(task).omics == omics]) for omics, title in OMICS.items()]
    return [(title, found) for title, found in groups if found]


def shown_published(task: str) -> list[Published]:
    """The published numbers of a data set that have columns; none for another metric's."""
    spec = dataset(task)
    return [
        item
        for item in published_numbers([task])
        if (item.system in HEADLINE or item.kind == "literature") and spec.task and item.metric == spec.task.metric
    ]


def published_columns(tasks: Sequence[str]) -> list[str]:
    """Titles of the published columns that some of the data sets have a number for."""
    named = {_published_column(item) for task in tasks for item in shown_published(task)}
    return [title for title in dict.fromkeys((*HEADLINE.values(), LITERATURE)) if title in named]


def published_cell(items: Sequence[Published], column: str) -> str:
    """What a published column says of a task: a value, the specialist's name, the output of each of several values."""
    told = []
    for item in items:
        if _published_column(item) == column:
            words = [item.system] if item.kind == "literature" else []
            words += [item.output] if item.output else []
            told.append(f"{item.scaled:.2f}" + (f" ({', '.join(words)})" if words else ""))
    return " / ".join(told) or ABSENT


def caveats(items: Sequence[Published]) -> list[str]:
    """Every caveat once, with the tasks that it is about."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for item in items:
        for caveat in item.caveats:
            found.setdefault((caveat.id, caveat.text), {})[title_of(item.dataset)] = None
    everywhere = len({item.dataset for item in items})
    return [
        f"{text} ({name}{'' if len(titles) == everywhere > 1 else ': ' + '; '.join(titles)})"
        for (name, text), titles in found.items()
    ]


def cell(measurement: Measurement | None, separator: str, *, decimals: int = 2) -> str:
    """Value, interval (with so many decimals) and parse rate."""
    if measurement is None or math.isnan(measurement.value.value):
        return ABSENT
    value, low, high = measurement.value.scaled()
    text = f"{value:.2f}{separator}[{low:.{decimals}f}, {high:.{decimals}f}]"
    if measurement.parse_rate is not None:
        text += f"{separator}p {100 * measurement.parse_rate.value:.1f} %"
    return text


def estimate_cells(metric: str, estimate: Estimate) -> tuple[str, str]:
    """Value and interval of any metric: x100, an error in the unit of the label."""
    if math.isnan(estimate.value):
        return ABSENT, ""
    if is_error(metric):
        return f"{estimate.value:.4g}", f"[{estimate.low:.4g}, {estimate.high:.4g}]"
    value, low, high = estimate.scaled()
    return f"{value:.2f}", f"[{low:.2f}, {high:.2f}]"


def title_of(task: str) -> str:
    """The title of a data set's task."""
    spec = dataset(task)
    return spec.task.title if spec.task else spec.title


def _notes(
    evaluations: Mapping[str, Evaluation], baselines: Mapping[str, Baselines], tasks: tuple[str, ...]
) -> list[str]:
    """What a reader must know, each remark once with the evaluations that it is about."""
    notes = []
    for task in tasks:
        if (baseline := baselines.get(task)) and baseline.removed_rows:
            notes.append(
                f"{title_of(task)}: the baselines are fitted on {baseline.train_rows} rows; {baseline.removed_rows} "
                "whose sequences stand in the test were left out."
            )
    for name, evaluation in evaluations.items():
        if limit := evaluation.settings.get("limit"):
            notes.append(f"{name}: at most {limit} rows of each task, for trying out.")
    remarks: dict[tuple[str, str], list[str]] = {}
    for name, evaluation in evaluations.items():
        for result in evaluation.tasks:
            for remark in dict.fromkeys(_remarks(result)):
                remarks.setdefault((result.title, remark), []).append(name)
    for (title, remark), names in remarks.items():
        about = "" if len(names) == len(evaluations) else f"{', '.join(names)}, "
        notes.append(f"{about}{title}: {remark}.")
    return notes


def _remarks(result: TaskResult) -> Iterator[str]:
    yield from result.notes
    for style, measurement in {**result.styles, "scored": result.scored}.items():
        for note in measurement.notes if measurement is not None else ():
            yield note if style == "strict" else f"{style}: {note}"
    if result.errors:
        reason = result.error_reasons[0][0] if result.error_reasons else "unknown"
        yield f"{result.errors} rows could not be asked ({reason}) and count as wrong"
    if result.empty:
        yield f"{result.empty} answers in words are empty"
    if result.calibration is not None:
        yield from result.calibration.notes


def _published_column(item: Published) -> str:
    return LITERATURE if item.kind == "literature" else HEADLINE[item.system]


def _subset(measurement: Measurement | None, name: str) -> Measurement | None:
    return measurement.subsets.get(name) if measurement is not None else None


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
