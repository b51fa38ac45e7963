"""Published numbers: the literature's tables in `published.yaml` in, each number with its source and caveats out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from polysome.config import Config, load
from polysome.specs import Metric

Kind = Literal["chatmultiomics", "open", "closed", "biology", "literature"]
"""ChatMultiOmics itself; open, closed and biological language models; specialists as the paper quotes them (A-130)."""

SCALE = 100


@dataclass(frozen=True)
class Caveat:
    """What a reader must know of a published number."""

    id: str
    """Of the requirement or the ambiguity that says more, e.g. `AMB-21`."""
    text: str


@dataclass(frozen=True)
class Published:
    """A number from the literature, given as context: other rows, other parsers, no interval (K-3, E-6)."""

    dataset: str
    system: str
    value: float
    """In the scale of its source."""
    source: str
    kind: Kind | None = None
    """None for a number that a recipe quotes."""
    metric: Metric | None = None
    output: str | None = None
    """Which number of a task that has several, e.g. `hk`."""
    scale: int = SCALE
    """What the raw metric is multiplied by in the source: 100 or 1 (XP-4)."""
    caveats: tuple[Caveat, ...] = ()

    @property
    def scaled(self) -> float:
        """The value as this platform reports it: x100, two decimals."""
        return round(self.value * SCALE / self.scale, 2)


class _Column(Config):
    dataset: str
    output: str | None = None
    metric: Metric


class _Row(Config):
    system: str
    kind: Kind
    models: list[str] = []
    """The system of every value, where one row of the source holds several."""
    values: list[float]


class _Table(Config):
    source: str
    scale: Literal[1, 100] = 100
    columns: Annotated[list[_Column], Field(min_length=1)]
    rows: Annotated[list[_Row], Field(min_length=1)]

    @model_validator(mode="after")
    def _rectangular(self) -> "_Table":
        for row in self.rows:
            if len(row.values) != len(self.columns) or len(row.models) not in (0, len(self.columns)):
                raise ValueError(f"{self.source}, {row.system}: {len(self.columns)} values are needed")
            if not all(math.isfinite(value) and abs(value) <= self.scale for value in row.values):
                raise ValueError(f"{self.source}, {row.system}: a value is outside ±{self.scale}")
        return self


class _Caveat(Config):
    id: str
    text: str
    datasets: list[str] | None = None
    systems: list[str] | None = None
    kinds: list[Kind] | None = None
    sources: list[str] | None = None

    def holds(self, table: _Table, column: _Column, row: _Row) -> bool:
        """Whether it is about this number."""
        of = ((self.datasets, column.dataset), (self.systems, row.system), (self.kinds, row.kind))
        return all(only is None or name in only for only, name in (*of, (self.sources, table.source)))


class _Tables(Config):
    format: Literal[1]
    paper: str
    caveats: list[_Caveat]
    tables: list[_Table]


def published(datasets: Sequence[str] | None = None, *, kinds: Sequence[Kind] | None = None) -> tuple[Published, ...]:
    """The numbers of some data sets and kinds of systems (default: all), in the order of the source (A-140).

    A literature value is named by the specialist that reached it. A number is about its data set alone, not about
    another one of the same task, whose rows differ.
    """
    return tuple(
        item
        for item in _all()
        if (datasets is None or item.dataset in datasets) and (kinds is None or item.kind in kinds)
    )


@cache
def _all() -> tuple[Published, ...]:
    content = load(_Tables, Path(__file__).with_name("published.yaml"))
    return tuple(
        Published(
            dataset=column.dataset,
            system=row.models[place] if row.models else row.system,
            value=row.values[place],
            source=f"{content.paper}, {table.source}",
            kind=row.kind,
            metric=column.metric,
            output=column.output,
            scale=table.scale,
            caveats=tuple(Caveat(item.id, item.text) for item in content.caveats if item.holds(table, column, row)),
        )
        for table in content.tables
        for row in table.rows
        for place, column in enumerate(table.columns)
    )
