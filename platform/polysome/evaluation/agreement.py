"""Agreement: several graders' grades of the same answers in; how often and how far beyond chance they agree out.

Cohen's kappa (Cohen 1960) of every two graders on the answers that both graded, task by task, with the percentiles of a
bootstrap that draws whole leakage groups.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np

from polysome.config import ConfigurationError
from polysome.evaluation import statistics
from polysome.evaluation.graders import Grade, Grader, Item
from polysome.evaluation.measure import without_nan
from polysome.evaluation.metrics import Floats
from polysome.evaluation.report import title_of
from polysome.evaluation.resampling import Resampled
from polysome.storage import exists, join, open_atomic

if TYPE_CHECKING:
    from rich.console import RenderableType

GRADES_FILE = "grades.jsonl"
_Row = tuple[str, ...]
_Table = tuple[_Row, list[_Row]]
"""Head and rows."""


@dataclass(frozen=True)
class Graded:
    """What one grader said of a task's answers."""

    dataset: str
    grader: str
    n: int
    """Answers with a grade."""
    truthful: int
    undecided: int
    """Answers of which the grader could not say."""

    @property
    def share(self) -> float:
        """Of truthful ones among the answers with a grade; nan for n = 0."""
        return self.truthful / self.n if self.n else math.nan


@dataclass(frozen=True)
class Agreement:
    """How far two graders agree on a task."""

    dataset: str
    first: str
    second: str
    n: int
    """Answers that both graded."""
    equal: float
    """Share of them with the same grade; nan for n = 0."""
    kappa: float
    """1: always the same; 0: as by chance; nan where both give all answers one and the same grade, or n is 0."""
    low: float
    high: float


@dataclass(frozen=True)
class Grading:
    """The grades of a run's answers in free text."""

    items: tuple[Item, ...]
    grades: Mapping[str, Sequence[Grade | None]]
    """By grader, in the order of the items."""
    graded: tuple[Graded, ...]
    agreements: tuple[Agreement, ...]

    def write(self, folder: str) -> str:
        """Write a line per grade to `GRADES_FILE` of a folder or URL; returns its path.

        Lines of graders that are not of this grading stay.
        """
        path = join(folder, GRADES_FILE)
        kept = [line for line in _lines(path) if json.loads(line)["grader"] not in self.grades]
        with open_atomic(path, "w") as handle:
            handle.writelines(f"{line}\n" for line in kept)
            for name, grades in self.grades.items():
                for item, grade in zip(self.items, grades, strict=True):
                    if grade is not None:
                        told = {"key": item.key, "dataset": item.dataset, "grader": name, "grade": grade.value}
                        handle.write(json.dumps({**told, "why": grade.why}, ensure_ascii=False) + "\n")
        return path

    def to_json(self) -> dict[str, Any]:
        """JSON-able: counts and agreements, nan as null."""
        content: dict[str, Any] = without_nan(
            {"graded": [asdict(item) for item in self.graded], "agreements": [asdict(item) for item in self.agreements]}
        )
        return content

    def rich(self) -> "RenderableType":
        """Both tables for a terminal."""
        from rich.console import Group
        from rich.table import Table

        tables = []
        for head, rows in self._tables():
            table = Table(caption=_LEGEND if head is _AGREED else None)
            for place, name in enumerate(head):
                table.add_column(name, justify="right" if place > 1 else "left")
            for row in rows:
                table.add_row(*row)
            tables.append(table)
        return Group(*tables)

    def markdown(self) -> str:
        """Both tables as Markdown; ends with a line break."""
        lines: list[str] = []
        for head, rows in self._tables():
            lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
            lines += [f"| {' | '.join(row)} |" for row in rows]
            lines.append("")
        return "\n".join([*lines, _LEGEND]) + "\n"

    def _tables(self) -> list[_Table]:
        graded: list[_Row] = [
            (title_of(item.dataset), item.grader, f"{item.n:,}", _percent(item.share), f"{item.undecided:,}")
            for item in self.graded
        ]
        agreed: list[_Row] = [
            (
                title_of(item.dataset),
                f"{item.first} - {item.second}",
                f"{item.n:,}",
                _percent(item.equal),
                _n(item.kappa),
                f"[{_n(item.low)}, {_n(item.high)}]",
            )
            for item in self.agreements
        ]
        return [(_GRADED, graded), *([(_AGREED, agreed)] if agreed else [])]


_GRADED = ("task", "grader", "n", "truthful", "cannot say")
_AGREED = ("task", "graders", "n", "same grade", "kappa", "95 % interval")
_LEGEND = (
    "Kappa: Cohen's, on the answers that both graded; 1: always the same grade, 0: as often as by chance. The interval "
    "draws whole leakage groups."
)


def grade(items: Sequence[Item], graders: Sequence[Grader], *, resamples: int = 1000, seed: int = 42) -> Grading:
    """Let every grader grade, and measure how far every two agree.

    Raises:
        ConfigurationError: no grader, or two of one name; or as a grader raises.
    """
    names = [grader.name for grader in graders]
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(
            f"{len(names)} graders named {', '.join(names) or 'nothing'}",
            where="grade",
            fix="name one or more, each once",
        )
    grades = {grader.name: grader.grade(items) for grader in graders}
    tasks = list(dict.fromkeys(item.dataset for item in items))
    values = {
        (task, name): np.array(
            [
                math.nan if given is None or given.value is None or item.dataset != task else given.value
                for item, given in zip(items, found, strict=True)
            ]
        )
        for name, found in grades.items()
        for task in tasks
    }
    graded = []
    for (task, name), found in values.items():
        given = [one for item, one in zip(items, grades[name], strict=True) if item.dataset == task and one is not None]
        n = int((~np.isnan(found)).sum())
        graded.append(Graded(task, name, n, int(np.nansum(found)), len(given) - n))
    groups = np.array([-1 - place if item.group is None else item.group for place, item in enumerate(items)])
    agreements = []
    for task in tasks:
        for first, second in combinations(names, 2):
            both = ~np.isnan(values[task, first]) & ~np.isnan(values[task, second])
            one, other = values[task, first][both], values[task, second][both]
            measured = _agreement(one, other, groups[both], resamples, seed)
            agreements.append(Agreement(task, first, second, len(one), *measured))
    return Grading(tuple(items), grades, tuple(graded), tuple(agreements))


def _agreement(
    one: Floats, other: Floats, groups: np.ndarray[Any, Any], resamples: int, seed: int
) -> tuple[float, float, float, float]:
    if not len(one):
        return (math.nan,) * 4

    values = statistics.bootstrap(
        {"kappa": resampled_kappa(one, other)}, len(one), resamples=resamples, seed=seed, groups=groups
    )
    return float((one == other).mean()), _kappa(one, other), *statistics.percentiles(values["kappa"])


def resampled_kappa(one: Floats, other: Floats) -> Resampled:
    """Cohen's kappa of two graders' grades [n], 1 or 0, of many resamples at once; see `resampling`."""
    columns = np.stack([np.ones_like(one), one, other, one == other], axis=1)

    def value(weights: Floats) -> Floats:
        n, first, second, equal = (weights @ columns).T
        chance = (first * second + (n - first) * (n - second)) / n**2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(chance < 1, (equal / n - chance) / (1 - chance), np.nan)

    return value


def _kappa(one: Floats, other: Floats) -> float:
    from sklearn.metrics import cohen_kappa_score

    with warnings.catch_warnings():
        # Graders who give one and the same grade alone: kappa is 0 over 0, which is told as nan.
        warnings.simplefilter("ignore")
        return float(cohen_kappa_score(one, other, labels=[0, 1]))


def _lines(path: str) -> list[str]:
    if not exists(path):
        return []
    with fsspec.open(path, "r", encoding="utf-8") as handle:
        return [line for line in handle.read().split("\n") if line]


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def _n(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
