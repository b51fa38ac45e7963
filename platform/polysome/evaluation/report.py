"""Reports: named systems and their measurements in, a table of tasks x systems out, for a terminal and as Markdown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polysome.evaluation.baselines import Baselines
from polysome.evaluation.measure import Measurement
from polysome.evaluation.run import Evaluation
from polysome.specs import dataset

if TYPE_CHECKING:
    from rich.table import Table

MAJORITY, KMER = "majority", "k-mer"
_ABSENT = "-"


@dataclass(frozen=True)
class System:
    """One column: a name and what it reached, by data set."""

    name: str
    measurements: Mapping[str, Measurement]


@dataclass(frozen=True)
class Published:
    """A number from the literature, given as context: other rows, other parsers, no interval."""

    dataset: str
    system: str
    value: float
    """In the scale of its source."""
    source: str


@dataclass(frozen=True)
class Report:
    """A table of tasks x systems. Values are x100 with the 95 % confidence interval behind them (XP-4, E-5)."""

    tasks: tuple[str, ...]
    """Data sets, one row each."""
    systems: tuple[System, ...]
    published: tuple[Published, ...]
    notes: tuple[str, ...]

    def rich(self, title: str | None = None) -> "Table":
        """The table for a terminal; the best value of each row stands out."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, caption="x100, 95 % confidence interval; p: share of answers that could be parsed")
        table.add_column("task")
        table.add_column("n", justify="right")
        for system in self.systems:
            table.add_column(system.name, justify="right")
        for task in self.tasks:
            best = self._best(task)
            cells = [Text(_title(task) + "\n").append(self._metric(task), style="dim"), Text(self._n(task))]
            for system in self.systems:
                measurement = system.measurements.get(task)
                style = "bold" if measurement is not None and measurement is best else ""
                cells.append(Text(_cell(measurement, "\n", decimals=1), style=style))
            table.add_row(*cells)
        return table

    def markdown(self) -> str:
        """The table, the subsets, the published numbers and the notes as Markdown; ends with a line break."""
        names = [system.name for system in self.systems]
        lines = [_row(["task", "metric", "n", *names]), _row(["---", "---", "---:", *["---:"] * len(names)])]
        for task in self.tasks:
            cells = [_cell(system.measurements.get(task), " ") for system in self.systems]
            lines.append(_row([_title(task), self._metric(task), self._n(task), *cells]))
            for subset in self._subsets(task):
                parts = [_subset(system.measurements.get(task), subset) for system in self.systems]
                n = next(part.n for part in parts if part is not None)
                cells = [_cell(part, " ") for part in parts]
                lines.append(_row([f"… {subset}", self._metric(task), str(n), *cells]))
        lines += ["", "Values x100 with their 95 % confidence interval; p: share of answers that could be parsed."]
        if self.published:
            lines += ["", "Published, for context (other rows and parsers, no interval):", ""]
            lines += [_row(["task", "system", "value", "source"]), _row(["---", "---", "---:", "---"])]
            lines += [
                _row([_title(item.dataset), item.system, f"{item.value:.2f}", item.source]) for item in self.published
            ]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def _found(self, task: str) -> list[Measurement]:
        return [system.measurements[task] for system in self.systems if task in system.measurements]

    def _metric(self, task: str) -> str:
        return " / ".join(dict.fromkeys(item.metric for item in self._found(task)))

    def _n(self, task: str) -> str:
        return " / ".join(dict.fromkeys(str(item.n) for item in self._found(task)))

    def _best(self, task: str) -> Measurement | None:
        numbers = [item for item in self._found(task) if not math.isnan(item.value.value)]
        return max(numbers, key=lambda item: item.value.value, default=None)

    def _subsets(self, task: str) -> list[str]:
        return list(dict.fromkeys(name for item in self._found(task) for name in item.subsets))


def table(
    evaluations: Mapping[str, Evaluation],
    baselines: Mapping[str, Baselines] | None = None,
    *,
    published: Sequence[Published] = (),
) -> Report:
    """Lay evaluations and baselines side by side.

    Args:
        evaluations: by the name that their column shall have, in order.
        baselines: by data set; they become the first two columns (A-119).
        published: numbers from the literature.
    """
    baselines = baselines or {}
    systems = []
    if baselines:
        systems.append(System(MAJORITY, {name: item.majority for name, item in baselines.items()}))
        systems.append(System(KMER, {name: item.kmer for name, item in baselines.items()}))
    systems += [System(name, evaluation.measurements) for name, evaluation in evaluations.items()]
    tasks = tuple(dict.fromkeys(task for evaluation in evaluations.values() for task in evaluation.measurements))
    return Report(
        tasks or tuple(baselines), tuple(systems), tuple(published), tuple(_notes(evaluations, baselines, tasks))
    )


def _notes(
    evaluations: Mapping[str, Evaluation], baselines: Mapping[str, Baselines], tasks: tuple[str, ...]
) -> list[str]:
    notes = []
    for task in tasks:
        if (baseline := baselines.get(task)) and baseline.removed_rows:
            notes.append(
                f"{_title(task)}: the baselines are fitted on {baseline.train_rows} rows; {baseline.removed_rows} "
                "whose sequences stand in the test were left out."
            )
    for name, evaluation in evaluations.items():
        if limit := evaluation.settings.get("limit"):
            notes.append(f"{name}: only the first {limit} rows of each task, for trying out.")
        for result in evaluation.tasks:
            remarks = list(result.measurement.notes)
            if result.errors:
                reason = result.error_reasons[0][0] if result.error_reasons else "unknown"
                remarks.append(f"{result.errors} rows could not be asked ({reason}) and count as wrong")
            notes += [f"{name}, {result.title}: {remark}." for remark in remarks]
    return notes


def _cell(measurement: Measurement | None, separator: str, *, decimals: int = 2) -> str:
    """Value, interval (with so many decimals) and parse rate."""
    if measurement is None or math.isnan(measurement.value.value):
        return _ABSENT
    value, low, high = measurement.value.scaled()
    text = f"{value:.2f}{separator}[{low:.{decimals}f}, {high:.{decimals}f}]"
    if measurement.parse_rate is not None:
        text += f"{separator}p {100 * measurement.parse_rate.value:.1f} %"
    return text


def _subset(measurement: Measurement | None, name: str) -> Measurement | None:
    return measurement.subsets.get(name) if measurement is not None else None


def _title(task: str) -> str:
    spec = dataset(task)
    return spec.task.title if spec.task else spec.title


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
