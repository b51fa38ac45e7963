"""The report's page: evaluations and what stands behind them in, one self-contained `report.html` out.

The page fetches nothing and runs nothing: charts are inline SVG, the style is inline, there is no script, and all that
came from models or data is escaped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polysome
from polysome.evaluation.answers import read_answers
from polysome.evaluation.baselines import Baselines
from polysome.evaluation.cases import Answerer, case_studies, soundness
from polysome.evaluation.details import Details, details
from polysome.evaluation.measure import Measurement
from polysome.evaluation.page_charts import (
    Chart,
    Grid,
    calibration_chart,
    density_chart,
    group_charts,
    slices_chart,
    value_cells,
)
from polysome.evaluation.published import published
from polysome.evaluation.report import (
    ABSENT,
    LEGEND,
    Column,
    Report,
    caveats,
    omics_groups,
    published_cell,
    published_columns,
    shown_published,
    table,
    title_of,
)
from polysome.evaluation.results import Evaluation, TaskResult, read_evaluation
from polysome.specs import dataset
from polysome.storage import open_atomic

if TYPE_CHECKING:
    from jinja2 import Template


REPORT_FILE = "report.html"
"""The page about a run, in its folder."""


@dataclass(frozen=True)
class Subject:
    """An evaluation, under the name that the page shall give it, and what its samples tell."""

    name: str
    evaluation: Evaluation
    details: Mapping[str, Details] = field(default_factory=dict)


@dataclass(frozen=True)
class _Cell:
    kind: str
    value: str
    interval: str = ""
    parsed: str = ""
    best: bool = False


@dataclass(frozen=True)
class _Row:
    title: str
    metric: str
    n: str
    cells: tuple[_Cell, ...]
    link: str = ""
    part: bool = False


@dataclass(frozen=True)
class _Group:
    id: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[_Row, ...]
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class _TaskSubject:
    name: str
    missing: str = ""
    charts: tuple[Chart, ...] = ()
    tables: tuple[Grid, ...] = ()
    unparsable: str = ""
    invalid: tuple[tuple[str, int], ...] = ()
    worst: tuple[Any, ...] = ()


def read_subject(folder: str, name: str | None = None) -> Subject:
    """The evaluation of a run folder, with the details that its samples give.

    Raises:
        DataError: the folder holds no results, or samples that cannot be read.
    """
    evaluation = read_evaluation(folder)
    found = {}
    for task, rows in read_answers(evaluation, folder).items():
        declared = dataset(task).task
        assert declared is not None
        found[task] = details(declared, rows)
    return Subject(name or evaluation.name, evaluation, found)


def page(
    subjects: Sequence[Subject],
    *,
    title: str,
    command: str,
    baselines: Mapping[str, Baselines] | None = None,
    audit: str = "",
) -> str:
    """The page as HTML.

    Args:
        subjects: evaluations, in the order of their columns, each under a name of its own.
        command: that makes this page again.
        baselines: by data set, where the evaluations hold none.
        audit: what `polysome datasets audit` said of the data, as text.
    """
    report = table({subject.name: subject.evaluation for subject in subjects}, baselines)
    shown = [item for task in report.tasks for item in shown_published(task)]
    evaluations = [subject.evaluation for subject in subjects]
    return _template().render(
        title=title,
        version=polysome.__version__,
        lead=f"{len(report.tasks)} tasks, {_rows(evaluations):,} rows, {len(subjects)} "
        f"{'model' if len(subjects) == 1 else 'models'}.",
        legend=LEGEND.replace("`", ""),
        sections=[
            ("results", "Results"),
            *((_anchor("group", name), name) for name, _ in omics_groups(report.tasks)),
            ("tasks", "Task by task"),
            ("data", "Data"),
            *([("audit", "Audit of leaks")] if audit else []),
            ("remake", "How to make it again"),
        ],
        groups=[_group(report, name, tasks) for name, tasks in omics_groups(report.tasks)],
        caveats=caveats(shown),
        notes=report.notes,
        tasks=[_task(report, task, subjects) for task in report.tasks],
        data=list(_data(evaluations)),
        audit=audit,
        remake=[
            {
                "name": item.name,
                "command": item.evaluation.command,
                "facts": list(_facts(item.evaluation)),
                "settings": list(_settings(item.evaluation)),
            }
            for item in subjects
        ],
        command=command,
    )


def write_page(url: str, subjects: Sequence[Subject], **settings: Any) -> None:
    """Write the page atomically to a file or URL; `settings` are those of `page`."""
    text = page(subjects, **settings)
    with open_atomic(url, "w") as handle:
        handle.write(text)


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8"))


def _group(report: Report, name: str, tasks: Sequence[str]) -> _Group:
    columns = [column for column in report.columns if any(task in column.measurements for task in tasks)]
    literature = published_columns(tasks)
    return _Group(
        _anchor("group", name),
        name,
        (
            *((column.title, column.reading) for column in columns),
            *((f"{title}, published", "published") for title in literature),
        ),
        tuple(row for task in tasks for row in _rows_of(report, task, columns, literature)),
        tuple(group_charts(report, name, tasks)),
    )


def _rows_of(report: Report, task: str, columns: Sequence[Column], literature: Sequence[str]) -> Iterator[_Row]:
    quoted, best = shown_published(task), report.best(task)
    cells = [_cell(column, column.measurements.get(task), best) for column in columns]
    cells += [_Cell("published", published_cell(quoted, name)) for name in literature]
    yield _Row(title_of(task), report.metric(task), report.n(task), tuple(cells), _anchor("task", task))
    for subset in report.subsets(task):
        parts = [whole.subsets.get(subset) if (whole := column.measurements.get(task)) else None for column in columns]
        n = next((str(part.n) for part in parts if part is not None), "")
        cells = [_cell(column, part, None) for column, part in zip(columns, parts, strict=True)]
        cells += [_Cell("published", "") for _ in literature]
        yield _Row(subset, report.metric(task), n, tuple(cells), part=True)


def _cell(column: Column, measurement: Measurement | None, best: Measurement | None) -> _Cell:
    if measurement is None:
        return _Cell(column.reading, ABSENT)
    value, interval, parsed = value_cells(measurement)
    return _Cell(column.reading, value, interval, f"p {parsed}" if parsed else "", measurement is best)


def _task(report: Report, task: str, subjects: Sequence[Subject]) -> dict[str, Any]:
    spec = dataset(task)
    results = {
        subject.name: (result, subject.details.get(task))
        for subject in subjects
        for result in subject.evaluation.tasks
        if result.dataset == task
    }
    tables = []
    if further := report.further(task):
        head = [column.title for column in report.columns if column.reading != "baseline"]
        rows = tuple((name, *(" ".join(cell) for cell in cells)) for name, cells in further)
        tables.append(Grid("Further metrics with their intervals", ("metric", *head), rows))
    if quoted := published([task]):
        rows = tuple(
            (item.system + (f" ({item.output})" if item.output else ""), f"{item.scaled:.2f}", item.source)
            for item in quoted
        )
        tables.append(Grid("Published", ("system", "value x100", "source"), rows))
    studied = [
        Answerer(subject.name, subject.evaluation.settings.get("prompt") == "reasoning", subject.details[task])
        for subject in subjects
        if task in subject.details and subject.details[task].told
    ]
    cases = case_studies(studied)
    return {
        "cases": cases,
        "soundness": list(soundness(studied)) if cases else [],
        "id": _anchor("task", task),
        "title": title_of(task),
        "dataset": task,
        "metric": spec.task.metric if spec.task else "",
        "tables": tables,
        "subjects": [_task_subject(name, *found) for name, found in results.items()],
    }


def _task_subject(name: str, result: TaskResult, found: Details | None) -> _TaskSubject:
    charts = [calibration_chart(result.calibration)] if result.calibration else []
    if sliced := slices_chart(result):
        charts.append(sliced)
    if found is None:
        missing = "The answers behind these results are not at hand: no confusion, invalid and worst answers."
        return _TaskSubject(name, missing=missing, charts=tuple(charts))
    charts += [density_chart(item) for item in found.densities]
    tables = []
    if found.confusion is not None:
        classes = found.confusion.classes
        rows = tuple(
            (label, *(f"{count:,}" for count in counts))
            for label, counts in zip(classes, found.confusion.counts.tolist(), strict=True)
        )
        tables.append(Grid("Confusion: labels down, answers across", ("label", *classes, "no label"), rows))
    if found.classes:
        rows = tuple(
            (item.name, f"{item.labelled}", f"{item.told}", f"{item.right}", _share(item.right, item.told),
             _share(item.right, item.labelled))
            for item in found.classes
        )  # fmt: skip
        head = ("class", "labelled", "told", "right", "precision", "recall")
        tables.append(Grid("The most frequent classes", head, rows))
    n = result.measurement.n
    return _TaskSubject(
        name,
        charts=tuple(charts),
        tables=tuple(tables),
        unparsable=f"{found.unparsable:,} of {n:,} answers say no label ({_share(found.unparsable, n)}); "
        f"{result.errors:,} rows could not be asked. The most frequent:",
        invalid=found.invalid,
        worst=found.worst,
    )


def _data(evaluations: Sequence[Evaluation]) -> Iterator[Grid]:
    results = {result.dataset: result for evaluation in evaluations for result in evaluation.tasks}
    yield Grid(
        "Data sets",
        ("data set", "version", "licence", "fingerprint of spec and data", "citation"),
        tuple(
            (name, f"{result.version}", result.licence, result.task_fingerprint, dataset(name).citation)
            for name, result in results.items()
        ),
    )
    yield Grid(
        "Files",
        ("data set", "file", "examples", "set aside", "SHA-256"),
        tuple(
            (name, str(file["uri"]), *(str(file.get(key, "")) for key in ("examples", "set_aside", "sha256")))
            for name, result in results.items()
            for file in result.data.get("files", [])
        ),
    )


def _facts(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    yield "model", evaluation.model
    yield "model fingerprint", evaluation.model_fingerprint
    if evaluation.adapter_fingerprint:
        yield "adapter", evaluation.adapter or ""
        yield "adapter fingerprint", evaluation.adapter_fingerprint
    yield "answers", f"{evaluation.asked:,} asked, {evaluation.reused:,} of an earlier run, {evaluation.seconds:.0f} s"


def _settings(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    for name, value in evaluation.settings.items():
        yield name.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    yield from evaluation.versions.items()


def _rows(evaluations: Sequence[Evaluation]) -> int:
    """Rows of all tasks, each task once."""
    return sum({result.dataset: result.measurement.n for item in evaluations for result in item.tasks}.values())


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ABSENT


def _anchor(kind: str, name: str) -> str:
    return f"{kind}-{name.lower().replace(' ', '-')}"
