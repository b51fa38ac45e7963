"""Comparison: evaluations of the same rows in; paired differences with intervals and corrected p-values out (E-5)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from polysome.config import ConfigurationError, DataError
from polysome.evaluation import statistics
from polysome.evaluation.answers import Answered, label_of_scores, read_answers, score_table
from polysome.evaluation.baselines import BASELINES_FOLDER, read_predictions
from polysome.evaluation.measure import SCALE, Measurement, Style, without_nan
from polysome.evaluation.measure import compare as paired
from polysome.evaluation.metrics import Floats
from polysome.evaluation.parsers import Prediction
from polysome.evaluation.report import omics_groups, title_of
from polysome.evaluation.results import Evaluation, TaskResult, read_evaluation
from polysome.specs import dataset
from polysome.storage import join

if TYPE_CHECKING:
    from rich.table import Table

_MUST_AGREE = ("split", "subsets", "limit", "seed")
"""Settings that say which rows were asked; two evaluations that differ in one are not compared."""


@dataclass(frozen=True)
class Contestant:
    """An evaluation and its answers, under the name that it is told by, and how the answers are read; or a baseline of
    that evaluation, whose predictions stand in the place of what was read."""

    name: str
    evaluation: Evaluation
    answers: Mapping[str, Sequence[Answered]]
    style: Style = "strict"
    baseline: str | None = None

    def measured(self, result: TaskResult) -> Measurement | None:
        """What the results say of it on a task."""
        if self.baseline is not None:
            return result.baselines.get(self.baseline)
        return result.scored if self.style == "scored" else result.styles.get(self.style)


@dataclass(frozen=True)
class Compared:
    """Two systems on one task."""

    dataset: str
    metric: str
    n: int
    first: str
    second: str
    first_value: float
    second_value: float
    difference: statistics.Difference
    """First minus second, raw."""
    p_holm: float
    """Corrected over all comparisons of this report (Holm 1979)."""

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p_holm < 1 - statistics.LEVEL


@dataclass(frozen=True)
class Comparison:
    """All pairs of systems on all tasks that they have in common."""

    style: Style
    rows: tuple[Compared, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-able: raw values, nan as null."""
        rows = [{**asdict(row), "significant": row.significant} for row in self.rows]
        content: dict[str, Any] = without_nan({"style": self.style, "rows": rows, "notes": list(self.notes)})
        return content

    def rich(self) -> "Table":
        """The table for a terminal; what is significant after the correction stands out."""
        from rich.table import Table
        from rich.text import Text

        table = Table(caption=_LEGEND)
        for name in ("task", "n", "systems", "values", "difference", "95 % interval", "p", "p, Holm", "detectable"):
            table.add_column(name, justify="left" if name in ("task", "systems") else "right")
        for row in self._in_order():
            cells = [Text(cell) for cell in _cells(row, "\n")]
            cells[0].append(f"\n{row.metric}", style="dim")
            table.add_row(*cells, style="bold" if row.significant else "")
        return table

    def markdown(self) -> str:
        """The table and the notes as Markdown; ends with a line break."""
        head = ("task", "n", "systems", "values", "difference", "95 % interval", "p", "p, Holm", "detectable", "metric")
        lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        lines += [f"| {' | '.join((*_cells(row, ' - '), row.metric))} |" for row in self._in_order()]
        lines += ["", _LEGEND, *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def _in_order(self) -> list[Compared]:
        tasks = list(dict.fromkeys(row.dataset for row in self.rows))
        return [row for _, group in omics_groups(tasks) for task in group for row in self.rows if row.dataset == task]


_LEGEND = (
    "Values x100. Difference: first minus second, paired bootstrap on the same rows, whole leakage groups drawn. p: "
    "two-sided; Holm: corrected over all rows of this table. Detectable: true difference found in 4 of 5 tests."
)


def read_contestant(folder: str, name: str, style: Style = "strict") -> Contestant:
    """The evaluation of a run folder and its answers.

    Raises:
        DataError: the folder holds no results, or not the answers that they are about.
    """
    evaluation = read_evaluation(folder)
    answers = read_answers(evaluation, folder)
    if lost := [result.dataset for result in evaluation.tasks if result.dataset not in answers]:
        raise DataError(
            f"the answers behind the results of {', '.join(lost)} are not there",
            where=folder,
            fix="run the evaluation again on this folder: what is still known is not asked again",
        )
    return Contestant(name, evaluation, answers, style)


def read_baseline(contestant: Contestant, folder: str, baseline: str) -> Contestant:
    """A baseline of a contestant's evaluation, on the tasks that have it.

    Raises:
        ConfigurationError: the evaluation has no such baseline, or answers are read by the official parser, which a
            baseline, that says no text, has none for.
        DataError: what the baseline says of the rows is not in the folder, or is of other rows.
    """
    if contestant.style == "official":
        raise ConfigurationError(
            f"{baseline} says no text that the official parser could read",
            where=contestant.name,
            fix="compare with baselines in style strict or scored",
        )
    results = contestant.evaluation.tasks
    tasks = tuple(result for result in results if baseline in result.baselines)
    if not tasks:
        known = dict.fromkeys(name for result in results for name in result.baselines)
        raise ConfigurationError(
            f"no baseline {baseline!r}; there is {', '.join(known) or 'none'}",
            where=folder,
            fix="name one of those, or evaluate with it under `baselines`",
        )
    answers = {result.dataset: _baseline_rows(contestant, folder, result.dataset, baseline) for result in tasks}
    evaluation = replace(contestant.evaluation, tasks=tasks)
    return Contestant(baseline, evaluation, answers, contestant.style, baseline)


def compare(contestants: Sequence[Contestant], *, resamples: int = 10_000, seed: int = 42) -> Comparison:
    """Compare every two of them on every task that both have.

    Raises:
        ConfigurationError: fewer than two; official answers against strict ones (E-6); settings that choose rows
            differ; a task's fingerprint differs; no task in common. The message names which.
        DataError: the rows of a task differ.
    """
    _check(contestants)
    found = [
        (_pair(first, second, one, other, resamples, seed))
        for first, second in combinations(contestants, 2)
        for one, other in _shared(first, second)
    ]
    corrected = statistics.holm([row.difference.p for row in found])
    rows = [replace(row, p_holm=p) for row, p in zip(found, corrected, strict=True)]
    return Comparison(contestants[0].style, tuple(rows), tuple(_notes(contestants)))


def _check(contestants: Sequence[Contestant]) -> None:
    names = [item.name for item in contestants]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigurationError(
            f"{len(names)} evaluations named {', '.join(names)}",
            where="compare",
            fix="name two or more, each once",
        )
    base, *others = contestants
    for other in others:
        where = f"{base.name} against {other.name}"
        if other.style != base.style:
            raise ConfigurationError(
                f"{base.name} is read by the {base.style} parser, {other.name} by the {other.style} one",
                where=where,
                fix="compare like with like: read both the same way",
            )
        for key in _MUST_AGREE:
            mine, theirs = base.evaluation.settings.get(key), other.evaluation.settings.get(key)
            if mine != theirs and (key != "seed" or base.evaluation.settings.get("limit")):
                raise ConfigurationError(
                    f"{key} is {mine!r} in {base.name} and {theirs!r} in {other.name}: they were asked other rows",
                    where=where,
                    fix=f"evaluate both with the same {key}",
                )
    for first, second in combinations(contestants, 2):
        shared = _shared(first, second)
        if not shared:
            raise ConfigurationError(
                "they have no task in common",
                where=f"{first.name} against {second.name}",
                fix="evaluate the same tasks",
            )
        for one, other_result in shared:
            for item, result in ((first, one), (second, other_result)):
                if item.measured(result) is None:
                    raise ConfigurationError(
                        f"{result.dataset} has no {item.style} values in {item.name}",
                        where=f"{first.name} against {second.name}",
                        fix="compare in a style that both have: strict, official or scored",
                    )
            if one.task_fingerprint != other_result.task_fingerprint:
                raise ConfigurationError(
                    f"{one.dataset} is not the same task in both: its fingerprint is {one.task_fingerprint[:12]} in "
                    f"{first.name} and {other_result.task_fingerprint[:12]} in {second.name}",
                    where=f"{first.name} against {second.name}",
                    fix="evaluate both with the same spec and data",
                )


def _shared(first: Contestant, second: Contestant) -> list[tuple[TaskResult, TaskResult]]:
    others = {result.dataset: result for result in second.evaluation.tasks}
    return [(result, others[result.dataset]) for result in first.evaluation.tasks if result.dataset in others]


def _pair(
    first: Contestant, second: Contestant, one: TaskResult, other: TaskResult, resamples: int, seed: int
) -> Compared:
    name = one.dataset
    task = dataset(name).task
    assert task is not None
    mine, theirs = ({row.id: row for row in item.answers[name]} for item in (first, second))
    if mine.keys() != theirs.keys() or any(mine[key].label != theirs[key].label for key in mine):
        raise DataError(
            f"{len(mine.keys() ^ theirs.keys())} rows stand in one of the two alone, or their labels differ",
            where=f"{name} in {first.name} and {second.name}",
            fix="evaluate both on the same data",
        )
    ids = list(mine)
    known = [mine[key].group for key in ids if mine[key].group is not None]
    groups = np.array(known, dtype=np.int64) if len(known) == len(ids) else None
    told = [_read(name, item, rows, ids) for item, rows in ((first, mine), (second, theirs))]
    scores = (_scores(first, mine, ids), _scores(second, theirs, ids))
    labels = [mine[key].label for key in ids]
    style = first.style
    values = [_value(item, result) for item, result in ((first, one), (second, other))]
    difference = paired(task, labels, *told, style=style, scores=scores, groups=groups, seed=seed, resamples=resamples)
    if not math.isclose(difference.value, values[0] - values[1], abs_tol=1e-9) and not math.isnan(difference.value):
        raise DataError(
            f"the {style} answers are {difference.value:.6f} apart, the results {values[0] - values[1]:.6f}",
            where=f"{name} in {first.name} and {second.name}",
            fix="the results rest on more than the answers, such as a sentiment model: compare strict",
        )
    return Compared(
        dataset=name,
        metric=task.metric,
        n=len(ids),
        first=first.name,
        second=second.name,
        first_value=values[0],
        second_value=values[1],
        difference=difference,
        p_holm=math.nan,
    )


def _read(name: str, item: Contestant, rows: Mapping[str, Answered], ids: Sequence[str]) -> list[Prediction]:
    if item.style == "strict" or item.baseline:
        return [rows[key].strict for key in ids]
    if item.style == "official":
        return [rows[key].official for key in ids]
    task = dataset(name).task
    assert task is not None
    return label_of_scores(task, [rows[key] for key in ids])


def _scores(item: Contestant, rows: Mapping[str, Answered], ids: Sequence[str]) -> Floats | None:
    if item.style != "scored" or item.baseline:
        return None
    return score_table([rows[key] for key in ids])


def _baseline_rows(contestant: Contestant, folder: str, name: str, baseline: str) -> list[Answered]:
    table = read_predictions(folder, name)
    if table is None or baseline not in table.column_names:
        raise DataError(
            f"what {baseline} says of the rows of {name} was not kept",
            where=join(folder, BASELINES_FOLDER),
            fix="evaluate again under another --run-id: earlier versions kept the value of a baseline alone",
        )
    told = dict(zip(table["id"].to_pylist(), table[baseline].to_pylist(), strict=True))
    rows = contestant.answers[name]
    if told.keys() != {row.id for row in rows}:
        raise DataError(
            f"the baselines of {name} are of other rows than its answers",
            where=join(folder, BASELINES_FOLDER),
            fix="evaluate again under another --run-id",
        )
    said = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    return [replace(row, strict=said[row.id]) for row in rows]


def _value(item: Contestant, result: TaskResult) -> float:
    measurement = item.measured(result)
    return measurement.value.value if measurement is not None else math.nan


def _notes(contestants: Sequence[Contestant]) -> list[str]:
    notes = []
    tasks = [{result.dataset for result in item.evaluation.tasks} for item in contestants]
    for left_out in sorted(task for task in {*chain(*tasks)} if not all(task in own for own in tasks)):
        have = ", ".join(item.name for item, own in zip(contestants, tasks, strict=True) if left_out in own)
        notes.append(f"{title_of(left_out)} has answers of {have} alone.")
    for name in dict.fromkeys(chain(*tasks)) if contestants[0].style == "scored" else ():
        task = dataset(name).task
        trivial = [item.name for item, own in zip(contestants, tasks, strict=True) if item.baseline and name in own]
        if trivial and task is not None and task.label.kind == "multilabel":
            notes.append(
                f"{title_of(name)}: {', '.join(trivial)} says sets without scores; the others' scores are measured."
            )
    if limit := contestants[0].evaluation.settings.get("limit"):
        notes.append(f"At most {limit} rows of each task, for trying out.")
    return notes


def _cells(row: Compared, separator: str) -> tuple[str, ...]:
    apart = row.difference
    return (
        title_of(row.dataset),
        f"{row.n:,}",
        f"{row.first}{separator}{row.second}",
        f"{_times(row.first_value)}{separator}{_times(row.second_value)}",
        _times(apart.value, sign=True),
        f"[{_times(apart.low)}, {_times(apart.high)}]",
        _p(apart.p),
        _p(row.p_holm),
        _times(apart.minimum_detectable),
    )


def _times(value: float, *, sign: bool = False) -> str:
    return "-" if math.isnan(value) else f"{SCALE * value:{'+' if sign else ''}.2f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
