"""The audit of data sets: what their splits hold, repeat and contradict, and what leaks between them and from a corpus.

Everything is read as a training job reads it: adapted, cleaned, labelled. Counts are of rows of the split that is named
first, so that they can be compared with published ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polysome.data.audit_report import (
    AuditReport,
    CorpusOverlap,
    DatasetAudit,
    Lengths,
    Overlap,
    SplitAudit,
    markdown,
)
from polysome.data.clean import PLAIN
from polysome.data.duplicates import example_keys, find_duplicates, keys, label_keys
from polysome.data.examples import FileReport, read_file
from polysome.data.hashing import Hashes, Text, hash_strings, list_text_of, mix, text_of
from polysome.data.leakage import Method, groups
from polysome.data.protection import Contained
from polysome.data.schema import EXAMPLES
from polysome.specs import (
    BinaryLabel,
    Dataset,
    Molecule,
    MulticlassLabel,
    MultilabelLabel,
    MultiRegressionLabel,
    RegressionLabel,
    dataset,
)

__all__ = ["AuditReport", "audit", "compare", "markdown"]


@dataclass(frozen=True)
class Overlaps:
    """What `compare` found, and how near rows were found (empty: not looked for)."""

    found: list[Overlap]
    near_method: str


def audit(
    datasets: str | Sequence[str],
    corpora: Sequence[str] = (),
    *,
    subsets: Sequence[str] | None = None,
    near: bool = True,
    method: Method = "auto",
    identity: float | None = None,
    corpus_limit: int | None = None,
) -> AuditReport:
    """Read data sets whole and report on them; what is held in memory is one data set.

    Args:
        datasets: names in the catalog.
        corpora: names of stage-1 corpora; sequences of every test split (of any other, where there is none) are
            searched for anywhere in their texts, which are streamed and not cut into windows.
        subsets: only these; by default all that are not optional.
        near: also look for rows that share a leakage group across splits.
        method, identity: see `polysome.data.leakage.groups`.
        corpus_limit: search only the first so many records of each corpus file.

    Raises:
        ConfigurationError: a data set is not declared, or the method does not fit.
        DataError: a file is missing or not what its spec declares.
    """
    names = [datasets] if isinstance(datasets, str) else list(datasets)
    return AuditReport(
        datasets=[_dataset(dataset(name), corpora, subsets, near, method, identity, corpus_limit) for name in names]
    )


def compare(
    splits: Mapping[str, pa.Table],
    molecules: Sequence[Molecule],
    *,
    near: bool = True,
    method: Method = "auto",
    identity: float | None = None,
) -> Overlaps:
    """What every split shares with those before it.

    Args:
        splits: schema EXAMPLES by name; the columns `sequences` and `subset` are used.
        molecules: as in the spec; none for rows that bring their own, which have no leakage groups.
        near, method, identity: see `audit`.
    """
    plain = {name: keys(table["sequences"]) for name, table in splits.items()}
    both = {name: keys(table["sequences"], molecules, both_strands=True) for name, table in splits.items()}
    neighbours = _Neighbours(splits, molecules, method, identity) if near and molecules else None
    found = []
    for other, split in combinations(splits, 2):
        exact = np.isin(plain[split], plain[other])
        strand = np.isin(both[split], both[other]) & ~exact
        subset = [name or "-" for name in splits[split]["subset"].filter(pa.array(exact)).to_pylist()]
        found.append(
            Overlap(
                split=split,
                other=other,
                exact=int(exact.sum()),
                exact_distinct=len(np.unique(plain[split][exact])),
                other_strand=int(strand.sum()),
                near=neighbours.count(split, other) if neighbours else None,
                exact_by_subset=dict(sorted(Counter(subset).items())),
            )
        )
    return Overlaps(found, neighbours.method if neighbours else "")


class _Neighbours:
    """Rows of a split that share a leakage group with a row of another one.

    What a third split alone joins is not near: two parts of one split, divided by group, would seem to touch. So every
    two splits are grouped by themselves; but train, which is large, is grouped once, with all others.
    """

    def __init__(
        self, splits: Mapping[str, pa.Table], molecules: Sequence[Molecule], method: Method, identity: float | None
    ) -> None:
        self._splits, self._molecules, self._chosen, self._identity = splits, molecules, method, identity
        self._with_train: dict[str, npt.NDArray[np.int64]] | None = None
        self.method = ""

    def count(self, split: str, other: str) -> int:
        """How many rows of `split` are near one of `other`."""
        if other != "train":
            members = self._grouped([split, other])
        else:
            members = self._with_train = self._with_train or self._grouped(list(self._splits))
        return int(np.isin(members[split], members[other]).sum())

    def _grouped(self, names: list[str]) -> dict[str, npt.NDArray[np.int64]]:
        tables = [self._splits[name] for name in names]
        chunks = [chunk for table in tables for chunk in table["sequences"].chunks]
        column = pa.chunked_array(chunks, EXAMPLES.field("sequences").type)
        found = groups(column, self._molecules, method=self._chosen, identity=self._identity)
        self.method = self.method or found.method
        cuts = np.cumsum([table.num_rows for table in tables])[:-1]
        return dict(zip(names, np.split(found.groups, cuts), strict=True))


_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_ORDER = ("train", "dev", "stage3_pool", "test")


@dataclass
class _Read:
    """What reading the files of a split gave."""

    table: pa.Table
    records: int = 0
    quarantined: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)


def _dataset(
    spec: Dataset,
    corpora: Sequence[str],
    subsets: Sequence[str] | None,
    near: bool,
    method: Method,
    identity: float | None,
    corpus_limit: int | None,
) -> DatasetAudit:
    read: dict[str, _Read] = {split: _read(spec, split, subsets) for split in sorted(spec.splits, key=_ORDER.index)}
    tables = {split: found.table for split, found in read.items()}
    overlaps = compare(tables, spec.molecules, near=near and spec.kind == "task", method=method, identity=identity)
    searched = {"test": tables["test"]} if "test" in tables else tables
    return DatasetAudit(
        dataset=spec.name,
        version=spec.version,
        splits=[_split(spec, split, found) for split, found in read.items()],
        overlaps=overlaps.found,
        corpora=[found for name in corpora for found in _in_corpus(dataset(name), searched, corpus_limit)],
        near_method=overlaps.near_method,
    )


def _read(spec: Dataset, split: str, subsets: Sequence[str] | None) -> _Read:
    tables = [EXAMPLES.empty_table()]
    found = _Read(tables[0])
    for file in spec.files(split, subsets):  # type: ignore[arg-type]
        report = FileReport(file.uri)
        tables += [batch.examples for batch in read_file(spec, split, file, report)]  # type: ignore[arg-type]
        found.records += report.records
        found.quarantined += report.quarantined
        found.reasons.update(report.reasons)
        found.changed.update(report.changed)
    found.table = pa.concat_tables(tables)
    return found


def _split(spec: Dataset, split: str, read: _Read) -> SplitAudit:
    table = read.table
    plain = example_keys(table, ())
    both = example_keys(table, spec.molecules, both_strands=True)
    subset = _text_key(table["subset"])
    within = find_duplicates(plain ^ subset, label_keys(table["label"], table["answer"]))
    anywhere = find_duplicates(plain).duplicate
    text, offsets = list_text_of(table["sequences"])
    return SplitAudit(
        split=split,
        records=read.records,
        rows=table.num_rows,
        quarantined=read.quarantined,
        reasons=dict(read.reasons.most_common()),
        changed=dict(read.changed.most_common()),
        duplicates=int(within.duplicate.sum()),
        duplicates_across_subsets=int((anywhere & ~within.duplicate).sum()),
        reverse_complement_duplicates=int((find_duplicates(both).duplicate & ~anywhere).sum()),
        conflicting=within.conflicting_keys,
        conflicting_rows=int(within.conflict.sum()),
        classes=_classes(spec, table["label"]),
        quantiles=_quantiles(spec, table["label"]),
        lengths={role: _lengths(part) for role, _, part in _roles(spec, text, offsets)},
        unusual_letters={
            molecule.role: _unusual_letters(molecule, part)
            for _, molecule, part in _roles(spec, text, offsets)
            if molecule is not None
        },
    )


def _text_key(column: pa.ChunkedArray) -> Hashes:
    return mix(hash_strings(text_of(column)))


def _roles(spec: Dataset, text: Text, offsets: npt.NDArray[np.int64]) -> list[tuple[str, Molecule | None, Text]]:
    """Role, declaration and sequences of each molecule; rows that bring their own molecules are taken together."""
    if not spec.molecules:
        return [("all molecules", None, text)]
    return [(item.role, item, text.take(offsets[:-1] + place)) for place, item in enumerate(spec.molecules)]


def _lengths(text: Text) -> Lengths:
    lengths = text.lengths if text.rows else np.zeros(1, np.int64)
    return Lengths(minimum=int(lengths.min()), median=float(np.median(lengths)), maximum=int(lengths.max()))


def _unusual_letters(molecule: Molecule, text: Text) -> dict[str, int]:
    table = np.ones(256, np.uint8)
    table[[ord(letter) for letter in PLAIN[molecule.type]]] = 0
    places = np.flatnonzero(text.translated(table.tobytes()).data[: text.size])
    letters = text.data[places]
    return {
        chr(letter): len(np.unique(text.rows_of(places[letters == letter]))) for letter in np.unique(letters).tolist()
    }


def _classes(spec: Dataset, labels: pa.ChunkedArray) -> dict[str, int]:
    label = spec.task.label if spec.task else None
    if isinstance(label, BinaryLabel):
        names = [label.negative, label.positive]
    elif isinstance(label, MulticlassLabel | MultilabelLabel):
        names = label.classes
    else:
        return {}
    values = labels.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    counts = np.bincount(values, minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def _quantiles(spec: Dataset, labels: pa.ChunkedArray) -> dict[str, list[float]]:
    label = spec.task.label if spec.task else None
    if isinstance(label, MultiRegressionLabel):
        names = label.outputs
    elif isinstance(label, RegressionLabel):
        names = ["label"]
    else:
        return {}
    values = labels.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, len(names))
    if not len(values):
        return {}
    found = np.quantile(values, _QUANTILES, axis=0).T.round(6)
    return dict(zip(names, found.tolist(), strict=True))


def _in_corpus(corpus: Dataset, splits: Mapping[str, pa.Table], limit: int | None) -> list[CorpusOverlap]:
    """Every record of the corpus once, whatever the number of splits."""
    whole = corpus.model_copy(update={"window": None})
    held = Contained({name: table["sequences"] for name, table in splits.items()})
    hit = np.zeros(len(held.sequence_numbers) + 1, np.bool_)
    texts = 0
    complete = True
    for split in whole.splits:
        for file in whole.files(split):
            report = FileReport(file.uri)
            for batch in read_file(whole, split, file, report, limit=limit):
                hit[held.found(batch.examples["sequences"])] = True
                texts += batch.examples.num_rows
            complete = complete and (limit is None or report.records < limit)
    found, start = [], 0
    for name, table in splits.items():
        _, offsets = list_text_of(table["sequences"])
        # A sequence that is too short has the number -1, the last place, which nothing hits.
        strings = np.flatnonzero(hit[held.sequence_numbers[start : start + offsets[-1]]])
        rows = np.unique(np.searchsorted(offsets, strings, side="right"))
        start += int(offsets[-1])
        found.append(
            CorpusOverlap(
                corpus=corpus.name,
                split=name,
                texts=texts,
                whole=complete,
                contained=len(rows),
                not_searched=held.too_short.get(name, 0),
            )
        )
    return found
