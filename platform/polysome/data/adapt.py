"""Adapters at work: a stretch of a file's records in, the columns that molecules and label name out.

Every step is Arrow arithmetic on whole columns. What a step cannot use is refused with a reason; what belongs to
another task or split is counted as not selected.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polysome.config import DataError
from polysome.data.clean import Refused
from polysome.data.hashing import mix
from polysome.data.readers import open_records
from polysome.specs import Companion, Dataset, SourceFile, Step
from polysome.specs.adapters import (
    Among,
    Beside,
    Constant,
    Extract,
    Join,
    Linear,
    Lookup,
    Mutate,
    Replace,
    Sample,
    Where,
)
from polysome.storage import exists, resolve

_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_COMPANIONS_KEPT = 16


@dataclass
class Stretch:
    """Records on their way through the steps.

    Attributes:
        numbers: int64 [rows], number of each record in its file.
        columns: string columns, [rows] each.
        refused: record number -> why it cannot be used.
        not_selected: how many records a step left to another task or split.
    """

    numbers: npt.NDArray[np.int64]
    columns: pa.Table
    refused: dict[int, Refused] = field(default_factory=dict)
    not_selected: int = 0

    def column(self, name: str, where: str) -> pa.ChunkedArray:
        """A column by name.

        Raises:
            DataError: there is none of this name.
        """
        if name not in self.columns.column_names:
            raise DataError(
                f"no column {name!r}; there are {', '.join(self.columns.column_names)}",
                where=where,
                fix="name the right columns in the data set's spec (molecules, label_column, adapter)",
            )
        return self.columns[name]

    def put(self, name: str, values: pa.Array | pa.ChunkedArray) -> None:
        """Add a column, or replace it."""
        if name in self.columns.column_names:
            self.columns = self.columns.set_column(self.columns.column_names.index(name), name, values)
        else:
            self.columns = self.columns.append_column(name, values)

    def keep(self, mask: pa.Array | pa.ChunkedArray, reason: Callable[[int], Refused] | None = None) -> None:
        """Keep the rows where `mask` (bool [rows]) holds; the others are refused, or without a reason not selected."""
        kept = mask.to_numpy(zero_copy_only=False).astype(bool)
        if kept.all():
            return
        left_out = np.flatnonzero(~kept)
        if reason is None:
            self.not_selected += len(left_out)
        else:
            for row in left_out.tolist():
                self.refused[int(self.numbers[row])] = reason(row)
        self.numbers = self.numbers[kept]
        self.columns = self.columns.filter(pa.array(kept))


def adapt(stretch: Stretch, steps: list[Step], where: str) -> Stretch:
    """Run the steps over a stretch, in order.

    Raises:
        DataError: a step names a column that is not there, or a companion file is missing or not as declared.
    """
    for step in steps:
        _STEPS[type(step)](stretch, step, where)
    return stretch


def check_complete(records: int, steps: list[Step], where: str) -> None:
    """Whether files that lie beside one another ended together.

    Raises:
        DataError: one has more records than the other.
    """
    for step in steps:
        if isinstance(step, Beside) and (beside := companion(step.file).num_rows) != records:
            raise DataError(
                f"{records} records, and {beside} in the file beside it, {step.file.uri}",
                where=where,
                fix="parallel files must have equal numbers of records: fetch both again, or mend the spec",
            )


def companion(file: Companion) -> pa.Table:
    """All records of a companion file, verified.

    Raises:
        DataError: it is missing, has another checksum, or a record in it cannot be read.
    """
    return _companion(file.model_dump_json())


@lru_cache(maxsize=_COMPANIONS_KEPT)
def _companion(declared: str) -> pa.Table:
    file = Companion.model_validate_json(declared)
    url = resolve(file.uri, file.mirror_path)
    parts = []
    with open_records(url, file.format) as records:
        for part in records:
            if part.damaged.num_rows:
                first = part.damaged.slice(0, 1).to_pylist()[0]
                raise DataError(
                    f"record {first['record']} cannot be read: {first['reason']}",
                    where=f"{url}, byte {first['offset']}",
                    fix="a file that others are looked up in must be whole: mend it or fetch it again",
                )
            parts.append(part.columns)
        checksum = records.sha256
    if file.sha256 and checksum != file.sha256:
        raise DataError(
            f"the content's sha256 is {checksum}, declared is {file.sha256}",
            where=url,
            fix="the source changed or the copy is damaged: fetch it again, or review and declare the new checksum",
        )
    if not parts:
        raise DataError("the file holds no record", where=url, fix="fetch it again")
    return pa.concat_tables(parts)


def absent_file(spec: Dataset, source: SourceFile) -> str | None:
    """Where a file that is needed is looked for and not found: the source, or one that its adapter names."""
    named: list[SourceFile | Companion] = [source]
    named += [step.file for step in (*source.adapter, *spec.adapter) if isinstance(step, Among | Lookup | Beside)]
    for file in named:
        url = resolve(file.uri, file.mirror_path)
        if urlsplit(url).scheme != "planted" and not exists(url):
            return url
    return None


def _extract(stretch: Stretch, step: Extract, where: str) -> None:
    values = stretch.column(step.column, where)
    found = pc.extract_regex(values, pattern=step.pattern)
    refusal = Refused(
        f"column {step.column!r} does not match {step.pattern!r}", f"column {step.column!r} does not match"
    )
    matched = pc.is_valid(found)
    names = list(re.compile(step.pattern).groupindex)
    groups = {name: pc.struct_field(found, name) for name in names}
    for name, group in groups.items():
        stretch.put(name, group)
    stretch.keep(matched, lambda row: refusal)


def _constant(stretch: Stretch, step: Constant, where: str) -> None:
    stretch.put(step.column, pa.array([step.value], pa.string()).take(pa.array(np.zeros(len(stretch.numbers), int))))


def _where(stretch: Stretch, step: Where, where: str) -> None:
    values = stretch.column(step.column, where)
    stretch.keep(pc.is_in(values, value_set=pa.array(step.values, values.type)))


def _sample(stretch: Stretch, step: Sample, where: str) -> None:
    drawn = mix(stretch.numbers.astype(np.uint64) ^ mix(np.array([step.seed], np.uint64)))
    stretch.keep(pa.array((drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53 < step.fraction))


def _among(stretch: Stretch, step: Among, where: str) -> None:
    values = stretch.column(step.column, where)
    there = _companion_column(step.file, step.file_column).cast(values.type)
    mask = pc.is_in(values, value_set=there)
    stretch.keep(mask if step.keep == "present" else pc.invert(mask))


def _lookup(stretch: Stretch, step: Lookup, where: str) -> None:
    values = stretch.column(step.column, where)
    keys, rows = _index(step.model_dump_json())
    found = pc.index_in(values, value_set=keys.cast(values.type))
    table = companion(step.file)
    for name, source in step.take.items():
        _require_column(table, source, step.file.uri)
        stretch.put(name, table[source].take(pc.take(rows, found)))
    listed = values.to_pylist() if found.null_count else []
    stretch.keep(
        pc.is_valid(found),
        lambda row: Refused(
            f"{step.column} {listed[row]!r} is not in {step.file.uri}", f"{step.column} is not in {step.file.uri}"
        ),
    )


@lru_cache(maxsize=_COMPANIONS_KEPT)
def _index(declared: str) -> tuple[pa.Array, pa.Array]:
    """Distinct keys of a lookup's file, and the row of each."""
    step = Lookup.model_validate_json(declared)
    table = companion(step.file)
    keys = _companion_column(step.file, step.file_column)
    if step.file_pattern:
        keys = pc.struct_field(pc.extract_regex(keys, pattern=step.file_pattern), "key")
    keys = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    first: dict[str, int] = {}
    taken = [table[source].to_pylist() for source in step.take.values()]
    for row, key in enumerate(keys.to_pylist()):
        if key is None:
            continue
        known = first.setdefault(key, row)
        if known != row and any(values[known] != values[row] for values in taken):
            raise DataError(
                f"key {key!r} stands more than once in {step.file_column!r} with different values",
                where=step.file.uri,
                fix="name a column, or a file_pattern, whose keys are unique",
            )
    return pa.array(list(first), pa.string()), pa.array(list(first.values()), pa.int64())


def _beside(stretch: Stretch, step: Beside, where: str) -> None:
    table = companion(step.file)
    beyond = stretch.numbers >= table.num_rows
    if beyond.any():
        check_complete(int(stretch.numbers.max()) + 1, [step], where)
    for name, source in step.take.items():
        _require_column(table, source, step.file.uri)
        stretch.put(name, table[source].take(pa.array(stretch.numbers)))


def _replace(stretch: Stretch, step: Replace, where: str) -> None:
    values = stretch.column(step.column, where)
    stretch.put(step.column, pc.replace_substring_regex(values, pattern=step.pattern, replacement=step.by))


def _linear(stretch: Stretch, step: Linear, where: str) -> None:
    values = stretch.column(step.column, where)
    numbers = pc.fill_null(pc.match_substring_regex(values, pattern=_NUMBER), False)
    listed = values.to_pylist() if not pc.all(numbers).as_py() else []
    stretch.keep(
        numbers,
        lambda row: Refused(f"{step.column} {listed[row]!r} is not a number", f"{step.column} is not a number"),
    )
    read = pc.cast(pc.utf8_trim_whitespace(stretch.column(step.column, where)), pa.float64())
    stretch.put(step.column, pc.cast(pc.add(pc.multiply(read, step.scale), step.offset), pa.string()))


def _join(stretch: Stretch, step: Join, where: str) -> None:
    values = [stretch.column(name, where).cast(pa.string()) for name in step.columns]
    stretch.put(step.into, pc.binary_join_element_wise(*values, step.separator))


def _mutate(stretch: Stretch, step: Mutate, where: str) -> None:
    mutated: list[str | None] = []
    counts: list[str] = []
    problems: dict[int, Refused] = {}
    for row, text in enumerate(stretch.column(step.column, where).to_pylist()):
        substitutions = text.split(":") if text else []
        counts.append(str(len(substitutions)))
        try:
            mutated.append(_mutated(step, substitutions))
        except Refused as refusal:
            mutated.append(None)
            problems[row] = refusal
    stretch.put(step.into, pa.array(mutated, pa.string()))
    if step.count_into:
        stretch.put(step.count_into, pa.array(counts, pa.string()))
    stretch.keep(pc.is_valid(stretch.columns[step.into]), problems.__getitem__)


def _mutated(step: Mutate, substitutions: list[str]) -> str:
    sequence = list(step.wild_type)
    for substitution in substitutions:
        match = re.fullmatch(rf"{re.escape(step.prefix)}(.)(\d+)(.)", substitution)
        if match is None:
            raise Refused(f"{substitution!r} is no substitution", "no substitution")
        old, position, new = match[1], int(match[2]) - step.first_position, match[3]
        if not 0 <= position < len(sequence) or step.wild_type[position] != old:
            raise Refused(
                f"{substitution!r}: the wild type has no {old} there", "a substitution does not fit the wild type"
            )
        sequence[position] = new
    return "".join(sequence).translate({ord(letter): None for letter in step.remove})


def _companion_column(file: Companion, name: str) -> pa.ChunkedArray:
    table = companion(file)
    _require_column(table, name, file.uri)
    return table[name]


def _require_column(table: pa.Table, name: str, uri: str) -> None:
    if name not in table.column_names:
        raise DataError(
            f"no column {name!r}; there are {', '.join(table.column_names)}",
            where=uri,
            fix="name the right column in the adapter of the data set's spec",
        )


_STEPS: dict[type, Callable[..., None]] = {
    Extract: _extract,
    Constant: _constant,
    Where: _where,
    Sample: _sample,
    Among: _among,
    Lookup: _lookup,
    Beside: _beside,
    Replace: _replace,
    Linear: _linear,
    Join: _join,
    Mutate: _mutate,
}
