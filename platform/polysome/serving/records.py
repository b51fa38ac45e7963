"""Tables at both ends of a prediction: files of records in, one entry per record; answers out as CSV or TSV rows."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from polysome.config import DataError
from polysome.data.readers import open_records
from polysome.data.readers.stream import HEAD_BYTES, open_stream
from polysome.serving.prediction import Answered, Prediction, RawRecord
from polysome.specs import BinaryLabel, Dataset, MulticlassLabel
from polysome.specs.formats import CsvFormat, FastaFormat, Format

MOST_LABELS = 32
"""Tables have a column with the probability of each label where a task has no more labels than this."""
_DELIMITERS = ",\t;"
_HEADER_FIX = "a table needs a header that names the molecules of the task; FASTA begins with '>'"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet may take for the beginning of a formula."""


@dataclass(frozen=True)
class Entry:
    """One record of a file."""

    id: str
    """Its name in the file; else its number, counted from 1."""
    raw: RawRecord | None
    """None where the record cannot be read."""
    problem: str = ""
    """Why it cannot."""


def read_entries(url: str, spec: Dataset | None) -> Iterator[Entry]:
    """Every record of a FASTA file or a table (separated by comma, tab or semicolon), plain or compressed.

    A table has a header that names each of the task's molecules by its role, or the only one `sequence`; upper and
    lower case are alike. `id` or `name` names the records. Other columns are not read.

    Args:
        url: local path or any fsspec URL.
        spec: of the task; None where it is not known, then only FASTA can be read.

    Raises:
        DataError: the file is missing, damaged, or neither FASTA nor a table with those columns.
    """
    format = _format(url)
    if isinstance(format, CsvFormat) and spec is None:
        raise DataError("this is not FASTA, which begins with '>'", where=url, fix="check the file")
    if isinstance(format, FastaFormat) and spec is not None and len(spec.molecules) > 1:
        raise DataError(
            f"FASTA holds one sequence per record, task {spec.name!r} needs {len(spec.molecules)}",
            where=url,
            fix=f"send a table with the columns {', '.join(molecule.role for molecule in spec.molecules)}",
        )
    read = False
    with open_records(url, format) as stretches:
        for stretch in stretches:
            numbers = stretch.numbers.tolist()
            if isinstance(format, FastaFormat):
                headers, sequences = (stretch.columns[name].to_pylist() for name in ("header", "sequence"))
                names, raws = [(header.split() or [""])[0] for header in headers], sequences
            else:
                assert spec is not None
                places, named = _columns(stretch.columns.column_names, spec, url)
                names = stretch.columns[named].to_pylist() if named else [""] * len(numbers)
                columns = {role: stretch.columns[name].to_pylist() for role, name in places.items()}
                raws = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            found = {
                number: Entry(name.strip() or str(number + 1), raw)
                for number, name, raw in zip(numbers, names, raws, strict=True)
            }
            for damage in stretch.damaged.to_pylist():
                where = f" (byte {damage['offset']})" if damage["offset"] >= 0 else ""
                found[damage["record"]] = Entry(str(damage["record"] + 1), None, f"{damage['reason']}{where}")
            read = read or bool(found)
            yield from (found[number] for number in sorted(found))
    if not read:
        raise DataError("there is no record", where=url, fix=_HEADER_FIX)


def _format(url: str) -> Format:
    with closing(open_stream(url)) as stream:
        head = stream.peek(HEAD_BYTES)
    # FASTA with blanks before its first record is told so by its reader.
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b">":
        return FastaFormat()
    header = head.splitlines()[0].decode("utf-8", "replace") if head.splitlines() else ""
    return CsvFormat(delimiter=max(_DELIMITERS, key=header.count))


def _columns(names: Sequence[str], spec: Dataset, url: str) -> tuple[dict[str, str], str | None]:
    """The column of each role, and that of the records' names."""
    known = {name.strip().lower(): name for name in reversed(names)}
    found = {}
    for molecule in spec.molecules:
        spellings = [molecule.role, *(["sequence"] if len(spec.molecules) == 1 else []), molecule.column]
        column = next((known[name.lower()] for name in spellings if name.lower() in known), None)
        if column is None:
            raise DataError(
                f"no column {molecule.role!r} in the header ({', '.join(names[:20])})",
                where=url,
                fix=_HEADER_FIX,
            )
        found[molecule.role] = column
    return found, known.get("id", known.get("name"))


def header(spec: Dataset) -> list[str]:
    """The columns of a table of answers."""
    return [
        *("id", "label", "probability", "value", "interval_low", "interval_high", "calibrated", "warnings", "text"),
        *(f"p_{label}" for label in _labels(spec)),
        *("error", "task", "model", "adapter", "system_fingerprint"),
    ]


def answer_row(spec: Dataset, answer: Answered, prediction: Prediction) -> list[str]:
    """The row of one answer."""
    low, high = prediction.interval or (None, None)
    shares = prediction.probabilities or {}
    return [
        _text(prediction.id),
        _text(prediction.label or ""),
        *map(_number, (prediction.probability, prediction.value, low, high)),
        str(prediction.calibrated).lower(),
        _text("; ".join(caution.message for caution in prediction.warnings)),
        _text(prediction.text),
        *(_number(shares.get(label)) for label in _labels(spec)),
        "",
        *map(_text, (answer.task, answer.model, answer.adapter or "", answer.system_fingerprint)),
    ]


def error_row(spec: Dataset, answer: Answered, name: str, error: str) -> list[str]:
    """The row of a record that has no answer."""
    blank = [""] * (len(header(spec)) - 6)
    told = map(_text, (error, answer.task, answer.model, answer.adapter or "", answer.system_fingerprint))
    return [_text(name), *blank, *told]


def written(rows: Iterable[Sequence[str]], delimiter: str = ",") -> str:
    """Rows as lines of a table."""
    lines = io.StringIO(newline="")
    csv.writer(lines, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return lines.getvalue()


def _labels(spec: Dataset) -> list[str]:
    """Labels that have a column of their own."""
    assert spec.task is not None
    label = spec.task.label
    if isinstance(label, BinaryLabel):
        return ["yes", "no"]
    return label.classes if isinstance(label, MulticlassLabel) and len(label.classes) <= MOST_LABELS else []


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _text(value: str) -> str:
    """Text that a spreadsheet shows and does not compute: names and answers are not ours."""
    return f"'{value}" if value.startswith(_FORMULA) else value
