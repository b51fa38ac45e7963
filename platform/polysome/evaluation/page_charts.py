"""Charts of the report's page: measured and published numbers in, a chart with its legend and its table out.

The SVG texts go into the page as they are: whatever they quote is escaped where they are made, in `charts`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from polysome.evaluation import charts
from polysome.evaluation.calibration import Calibration
from polysome.evaluation.details import Density
from polysome.evaluation.measure import Measurement
from polysome.evaluation.published import Published, published
from polysome.evaluation.report import ABSENT, Report, title_of
from polysome.evaluation.results import TaskResult
from polysome.specs import dataset

_LITERATURE = "literature"
_SLICES = {"length": "length", "gc": "GC"}


@dataclass(frozen=True)
class Grid:
    """A table: the first cell of every row is its heading."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Chart:
    """A chart, what it shows in words, its legend, and its numbers."""

    svg: str
    caption: str
    keys: tuple[tuple[str, str], ...]
    table: Grid


def group_charts(report: Report, group: str, tasks: Sequence[str]) -> Iterator[Chart]:
    """Radar (of three tasks or more), stage bars (where stages are published or there are several models), forest."""
    titles = [title_of(task) for task in tasks]
    compared = [*_measured(report, tasks), *_published(tasks, _headline)]
    if len(tasks) > 2:
        yield _chart(
            charts.radar(f"{group}: value x100 of every task", [_abbreviation(task) for task in tasks], compared),
            "Published polygons rest on other rows and parsers. What is below 0 is drawn at 0.",
            f"{group}, radar",
            titles,
            compared,
        )
    stages = [
        *_measured(report, tasks, baselines=False),
        *_published(tasks, lambda item: item.kind == "chatmultiomics"),
    ]
    if len(stages) > 1:
        yield _chart(
            charts.bars(f"{group}: stages", titles, stages),
            "Models evaluated here beside the published stages of ChatMultiOmics.",
            f"{group}, stages",
            titles,
            stages,
            keys=False,
        )
    yield _forest(report, group, tasks)


def calibration_chart(calibration: Calibration) -> Chart:
    """The reliability diagram before and after the fit on dev."""
    states = [("before", calibration.before)]
    states += [("after the fit on dev", calibration.after)] if calibration.after else []
    rows = [
        (f"{name}: {item.low:.2f} to {item.high:.2f}", f"{item.count}", _n(item.confidence), _n(item.frequency))
        for name, state in states
        for item in state.bins
        if item.count
    ]
    told = "; ".join(f"{name}: ECE {_n(state.ece)}, Brier {_n(state.brier)}" for name, state in states)
    fitted = ", ".join(f"{name} {value:.3g}" for name, value in calibration.parameters.items())
    how = f" Fitted by {calibration.method} ({fitted}) on {calibration.dev_n} dev rows." if calibration.method else ""
    notes = "".join(f" {note[:1].upper()}{note[1:]}." for note in calibration.notes)
    return Chart(
        charts.reliability("Reliability", [(name, state.bins) for name, state in states]),
        f"Calibration of the scored probabilities on {calibration.n} rows. {told}.{how}{notes}",
        _keys([name for name, _ in states]),
        Grid("Reliability by bin", ("confidence", "rows", "mean confidence", "frequency"), tuple(rows)),
    )


def density_chart(density: Density) -> Chart:
    """Answers over labels."""
    rows = tuple((f"{label:.3g}", f"{told:.3g}", f"{spread:.3g}", f"{n}") for label, told, spread, n in density.tenths)
    return Chart(
        charts.density(f"{density.output}: answers over labels", density.counts.tolist(), density.low, density.high),
        f"{density.output}: answers (to the right) over labels (upwards); on the diagonal both are equal. Answers "
        "outside the range of the labels are counted at its edge.",
        (),
        Grid(
            f"{density.output}: answers by tenths of the labels",
            ("mean label", "mean answer", "deviation of answers", "rows"),
            rows,
        ),
    )


def slices_chart(result: TaskResult) -> Chart | None:
    """The task's metric on parts of its rows; None where they are all alike."""
    parts = [
        (f"{_SLICES.get(by, by)} {name}", item) for by, found in result.slices.items() for name, item in found.items()
    ]
    parts += result.measurement.subsets.items()
    if not parts:
        return None
    return Chart(
        charts.forest("By length, GC content and subset", [(name, [_mark(0, item)]) for name, item in parts]),
        "Quarters of the rows by the letters of their molecules and by their share of G and C, and subsets; "
        f"{'strict answers' if result.styles else 'by scores'}.",
        (),
        Grid(
            "Slices",
            ("rows", "n", "value", "95 % interval", "parsed"),
            tuple((name, f"{item.n:,}", *value_cells(item)) for name, item in parts),
        ),
    )


def value_cells(measurement: Measurement) -> tuple[str, str, str]:
    """Value, interval and parse rate."""
    parsed = "" if measurement.parse_rate is None else f"{100 * measurement.parse_rate.value:.1f} %"
    if math.isnan(measurement.value.value):
        return ABSENT, "", parsed
    value, low, high = measurement.value.scaled()
    return f"{value:.2f}", f"[{low:.2f}, {high:.2f}]", parsed


def _forest(report: Report, group: str, tasks: Sequence[str]) -> Chart:
    """All baselines and strict and scored values; the official reading is not comparable and stays in its column."""
    columns = [
        column
        for column in report.columns
        if column.reading != "official" and any(task in column.measurements for task in tasks)
    ]
    marks = [
        (
            title_of(task),
            [
                _mark(number, item.measurements[task])
                for number, item in enumerate(columns)
                if task in item.measurements
            ],
        )
        for task in tasks
    ]
    rows = [
        (title_of(task), column.title, *value_cells(column.measurements[task])[:2])
        for task in tasks
        for column in columns
        if task in column.measurements
    ]
    return Chart(
        charts.forest(f"{group}: values with 95 % intervals", marks),
        "Values x100 with their 95 % intervals.",
        _keys([column.title for column in columns]),
        Grid(f"{group}, intervals", ("task", "system", "value", "95 % interval"), tuple(rows)),
    )


def _measured(report: Report, tasks: Sequence[str], *, baselines: bool = True) -> list[charts.Series]:
    """The strict values of every model, before them the best baseline of every task."""
    series = []
    if baselines and any(system.baseline for system in report.systems):
        values = []
        for task in tasks:
            found = [_value(system.measurements.get(task)) for system in report.systems if system.baseline]
            values.append(max((value for value in found if not math.isnan(value)), default=math.nan))
        series.append(charts.Series("best baseline", values))
    for system in report.systems:
        if not system.baseline:
            series.append(charts.Series(system.name, [_value(system.measurements.get(task)) for task in tasks]))
    return series


def _published(tasks: Sequence[str], wanted: Callable[[Published], bool]) -> list[charts.Series]:
    """Published systems, those of the literature as one; of several outputs the mean."""
    found: dict[str, dict[str, list[float]]] = {}
    for item in published(tasks):
        spec = dataset(item.dataset)
        if wanted(item) and spec.task is not None and item.metric == spec.task.metric:
            name = _LITERATURE if item.kind == "literature" else item.system
            found.setdefault(name, {}).setdefault(item.dataset, []).append(item.scaled)
    return [
        charts.Series(f"{name} (published)", [_mean(values.get(task, [])) for task in tasks])
        for name, values in found.items()
    ]


def _headline(item: Published) -> bool:
    return item.kind == "literature" or item.system in ("ChatMultiOmics stages 1+2+3", "GPT-4o")


def _chart(
    svg: str, caption: str, title: str, names: Sequence[str], series: Sequence[charts.Series], *, keys: bool = True
) -> Chart:
    rows = tuple(
        (name, *(ABSENT if math.isnan(one.values[place]) else f"{one.values[place]:.2f}" for one in series))
        for place, name in enumerate(names)
    )
    legend = _keys([one.name for one in series]) if keys else ()
    return Chart(svg, caption, legend, Grid(title, ("task", *(one.name for one in series)), rows))


def _keys(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((charts.marker(number), name) for number, name in enumerate(names))


def _mark(series: int, measurement: Measurement) -> charts.Mark:
    return charts.Mark(series, *measurement.value.scaled())


def _abbreviation(task: str) -> str:
    """The paper's short name, where there is one."""
    spec = dataset(task)
    assert spec.task is not None
    return spec.task.aliases[0] if spec.task.aliases else spec.task.title


def _value(measurement: Measurement | None) -> float:
    return measurement.value.scaled()[0] if measurement is not None else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _n(value: float) -> str:
    return ABSENT if math.isnan(value) else f"{value:.3f}"
