"""What an audit of data sets found: frozen models that are stored as JSON, and the tables printed from them."""

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field

from polysome.config import Config

Count = Annotated[int, Field(ge=0)]

AUDIT = "audit.json"
"""In a prepared folder: what an audit of its data sets found."""

_OVERLAP = ["rows of", "also in", "equal", "distinct", "equal on the other strand", "near or equal", "equal, by subset"]
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Lengths(Config):
    """Characters of one molecule's sequences."""

    minimum: int
    median: float
    maximum: int


class SplitAudit(Config):
    """One split of a data set."""

    split: str
    records: Count
    """Read, usable or not."""
    rows: Count
    """Usable examples of this split."""
    quarantined: Count
    reasons: dict[str, int]
    """Records that cannot be used, by reason."""
    changed: dict[str, int]
    """Sequences that cleaning changed, by kind of change."""
    duplicates: Count
    """Rows that an earlier row of the same subset equals in all sequences (and in the question, where it came
    along)."""
    duplicates_across_subsets: Count
    """Further rows that an earlier row of another subset equals."""
    reverse_complement_duplicates: Count
    """Further rows that an earlier row equals on the other strand of DNA."""
    conflicting: Count
    """Distinct examples of one subset that stand there with different labels."""
    conflicting_rows: Count
    """Rows of those."""
    classes: dict[str, int]
    """Rows by class; of a multilabel, rows that have it."""
    quantiles: dict[str, list[float]]
    """Minimum, quartiles and maximum of each number of the label."""
    lengths: dict[str, Lengths]
    """By role."""
    unusual_letters: dict[str, dict[str, int]]
    """By role: how many sequences hold each letter that names no single base or residue."""


class Overlap(Config):
    """What of one split another split holds."""

    split: str
    other: str
    exact: Count
    """Rows whose sequences stand in the other split as well."""
    exact_distinct: Count
    """Distinct examples among those; published numbers mostly count these."""
    other_strand: Count
    """Further rows that stand there as the reverse complement of DNA."""
    near: Count | None
    """Rows that share a leakage group with a row of the other split, equal ones included; None: not looked for. Groups
    are those of the two splits; against train, those of all splits."""
    exact_by_subset: dict[str, int]


class CorpusOverlap(Config):
    """Which rows of a split hold a sequence that stands somewhere in a corpus."""

    corpus: str
    split: str
    texts: Count
    """Corpus records that were searched."""
    whole: bool
    """Whether that is all of the corpus."""
    contained: Count
    not_searched: Count
    """Sequences too short to be searched for."""


class DatasetAudit(Config):
    """One data set."""

    dataset: str
    version: int
    splits: list[SplitAudit]
    overlaps: list[Overlap]
    corpora: list[CorpusOverlap]
    near_method: str
    """How leakage groups were found; empty when they were not looked for."""


class AuditReport(Config):
    """What `audit` found."""

    format: Literal[1] = 1
    datasets: list[DatasetAudit]


def markdown(report: AuditReport) -> str:
    """The report as tables."""
    return "\n\n".join(_dataset_lines(item) for item in report.datasets) + "\n"


def overlap_lines(report: AuditReport) -> list[str]:
    """What splits of each data set have in common, in one table."""
    rows = [[item.dataset, *row] for item in report.datasets for row in _overlap_rows(item)]
    return _table(["data set", *_OVERLAP], rows) if rows else []


def _dataset_lines(item: DatasetAudit) -> str:
    lines = [f"## {item.dataset} (version {item.version})", ""]
    lines += _table(
        [
            "split",
            "rows",
            "set aside",
            "duplicates",
            "across subsets",
            "other strand",
            "conflicting",
            "lengths",
            "labels",
        ],
        [
            [
                entry.split,
                f"{entry.rows:,}",
                f"{entry.quarantined:,}",
                f"{entry.duplicates:,}",
                f"{entry.duplicates_across_subsets:,}",
                f"{entry.reverse_complement_duplicates:,}",
                f"{entry.conflicting:,} ({entry.conflicting_rows:,} rows)",
                ", ".join(f"{role} {found.minimum:,}-{found.maximum:,}" for role, found in entry.lengths.items()),
                _labels(entry),
            ]
            for entry in item.splits
        ],
    )
    for entry in item.splits:
        lines += [f"- {entry.split}: {count:,} set aside: {reason}" for reason, count in entry.reasons.items()]
        lines += [f"- {entry.split}: {count:,} sequences changed: {kind}" for kind, count in entry.changed.items()]
        lines += [
            f"- {entry.split}: {role}: "
            + ", ".join(f"{count:,} sequences hold {letter}" for letter, count in found.items())
            for role, found in entry.unusual_letters.items()
            if found
        ]
    if item.overlaps:
        lines += ["", *_table(_OVERLAP, _overlap_rows(item))]
    if item.near_method:
        lines += ["", f"Near: leakage groups; {item.near_method}."]
    if item.corpora:
        rows = [
            [
                entry.corpus,
                entry.split,
                f"{entry.texts:,}" + ("" if entry.whole else " (first of each file)"),
                f"{entry.contained:,}",
                f"{entry.not_searched:,}",
            ]
            for entry in item.corpora
        ]
        lines += ["", *_table(["corpus", "split", "texts", "rows contained", "sequences too short to search"], rows)]
    return "\n".join(lines)


def _overlap_rows(item: DatasetAudit) -> list[list[str]]:
    rows = {entry.split: entry.rows for entry in item.splits}
    return [
        [
            entry.split,
            entry.other,
            f"{entry.exact:,} of {rows[entry.split]:,}",
            f"{entry.exact_distinct:,}",
            f"{entry.other_strand:,}",
            "not looked for" if entry.near is None else f"{entry.near:,}",
            ", ".join(f"{subset} {count:,}" for subset, count in entry.exact_by_subset.items()),
        ]
        for entry in item.overlaps
    ]


def _labels(entry: SplitAudit) -> str:
    frequent = Counter(entry.classes).most_common(4)
    parts = [f"{name}: {count:,}" for name, count in frequent]
    parts += [f"and {len(entry.classes) - len(frequent):,} more"] if len(entry.classes) > len(frequent) else []
    parts += [f"{name}: {found[0]:g} … {found[2]:g} … {found[-1]:g}" for name, found in entry.quantiles.items()]
    return ", ".join(parts)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, ["---"] * len(header), *rows]]
    return [f"| {' | '.join(row)} |" for row in cells]
