"""Examples: one declared file in, batches of clean labelled examples and of quarantined records out.

Read, adapt, clean, decode, take the declared share, cut a corpus into windows: whole columns at a time, a stretch of
the file after the other, nothing held whole in memory but what lies beside it.
"""

import hashlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polysome.config import DataError
from polysome.data import planted
from polysome.data.adapt import Stretch, adapt, check_complete
from polysome.data.clean import Refused, clean, clean_column
from polysome.data.readers import BLOCK_BYTES, Records, open_records
from polysome.data.readers.records import DAMAGED
from polysome.data.schema import EXAMPLES, QUARANTINE
from polysome.data.shares import shares_of
from polysome.specs import Dataset, GenerationLabel, Molecule, SourceFile, Split
from polysome.storage import resolve

PLANTED_RECORDS = 8192
PREVIEW_BYTES = 1 << 16


@dataclass
class FileReport:
    """What reading one file found; complete once the file was read to its end.

    Attributes:
        sha256: of the decompressed content.
        records: those that belong to this task and split, readable or not.
        not_selected: those that the adapter left to others.
        quarantined, reasons: set aside, in all and by reason.
        changed: how many sequences cleaning changed, by kind of change.
        examples: those that came out, before any windows.
        in_other_shares: those that belong to another share of the file.
        first: record number and reason of the first that was set aside.
    """

    uri: str
    sha256: str = ""
    records: int = 0
    not_selected: int = 0
    quarantined: int = 0
    examples: int = 0
    in_other_shares: int = 0
    first: tuple[int, str] | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Batch:
    """Examples (schema EXAMPLES) and the records set aside (schema QUARANTINE) of one stretch of a file."""

    examples: pa.Table
    quarantine: pa.Table


def read_file(
    spec: Dataset,
    split: Split,
    source: SourceFile,
    report: FileReport,
    *,
    limit: int | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Batch]:
    """Stream one file of a split; `report` is filled as it goes. The same file gives the same batches.

    With `limit`, reading stops once so many records were read, and nothing is checked that is about the whole file:
    checksum, row count, share of records set aside.

    Raises:
        DataError: the file is missing, is not what its format says, has another checksum or row count than declared,
            lacks a column, holds a label outside the codec, or too many records had to be set aside.
    """
    where = source.uri
    steps = [*source.adapter, *spec.adapter]
    shares = shares_of(spec, split, source) if source.share else None
    seen = 0
    stretches = _stretches(spec, split, source, report, block_bytes)
    for records in stretches:
        seen += len(records.numbers) + records.damaged.num_rows
        stretch = adapt(Stretch(records.numbers, records.columns), steps, where)
        report.not_selected += stretch.not_selected
        report.records += len(records.numbers) + records.damaged.num_rows - stretch.not_selected
        examples = _examples(spec, split, source, stretch, report)
        quarantine = _quarantine(source, records, stretch, report)
        if shares is not None:
            whole = examples.num_rows
            examples = shares.take(examples)
            report.in_other_shares += whole - examples.num_rows
        report.examples += examples.num_rows
        if spec.window is not None:
            examples = _windows(examples, spec.window)
        yield Batch(_without_n(examples, spec.maximum_n, report), quarantine)
        if limit is not None and seen >= limit:
            # Of the head of a file nothing can be said of the whole.
            stretches.close()
            return
    check_complete(seen, steps, where)
    _check_declared(spec, source, report)
    _check_any(source, report)
    _check_quarantined(spec, source, report)


def read_examples(
    spec: Dataset, split: Split, *, limit: int | None = None, subsets: Sequence[str] | None = None
) -> pa.Table:
    """A whole split as one table (schema EXAMPLES), in the order of its files; at most `limit` examples.

    Raises:
        DataError: see `read_file`.
    """
    tables: list[pa.Table] = [EXAMPLES.empty_table()]
    found = 0
    # A small block for a small sample: a preview need not read megabytes.
    block_bytes = BLOCK_BYTES if limit is None else PREVIEW_BYTES
    for source in spec.files(split, subsets):
        for batch in read_file(spec, split, source, FileReport(source.uri), block_bytes=block_bytes):
            tables.append(batch.examples)
            found += batch.examples.num_rows
            if limit is not None and found >= limit:
                return pa.concat_tables(tables).slice(0, limit)
    return pa.concat_tables(tables)


def _stretches(
    spec: Dataset, split: Split, source: SourceFile, report: FileReport, block_bytes: int
) -> Generator[Records, None, None]:
    format = spec.format_of(source)
    if format.kind == "planted":
        yield from _planted(spec, split, source, report)
        return
    with open_records(resolve(source.uri, source.mirror_path), format, block_bytes=block_bytes) as records:
        yield from records
        report.sha256 = records.sha256


def _planted(spec: Dataset, split: Split, source: SourceFile, report: FileReport) -> Iterator[Records]:
    """Generated records, in columns named as the spec's molecules and label want them."""
    digest = hashlib.sha256()
    names = [molecule.column if len(spec.molecules) == 1 else molecule.role for molecule in spec.molecules]
    label_column = spec.task.label_column if spec.task else "label"
    pending: list[tuple[tuple[str, ...], str | None]] = []
    number = 0

    def stretch() -> Records:
        columns = {name: [record[0][place] for record in pending] for place, name in enumerate(names)}
        columns[label_column] = [record[1] for record in pending]  # type: ignore[misc]
        schema = pa.schema([(name, pa.string()) for name in columns])
        numbers = np.arange(number - len(pending), number)
        return Records(numbers, pa.table(columns, schema=schema), DAMAGED.empty_table())

    for sequences, label in planted.generate(source.uri, split):
        digest.update(("\t".join(sequences) + f"\t{label}\n").encode())
        pending.append((sequences, label))
        number += 1
        if len(pending) == PLANTED_RECORDS:
            yield stretch()
            pending = []
    if pending:
        yield stretch()
    report.sha256 = digest.hexdigest()


def _examples(spec: Dataset, split: Split, source: SourceFile, stretch: Stretch, report: FileReport) -> pa.Table:
    """The stretch's records as examples; those that cannot be used are added to `stretch.refused`."""
    if spec.instructions is not None:
        return _instruction_examples(spec, split, source, stretch)
    for molecule in spec.molecules:
        name = _column_of(spec, source, molecule)
        values = stretch.column(name, source.uri)
        cleaned = clean_column(values, molecule)
        report.changed.update(cleaned.changed)
        stretch.put(name, cleaned.values)
        stretch.keep(pc.is_valid(cleaned.values), cleaned.refused.__getitem__)
    labels = _labels(spec, source, stretch)
    columns = [
        pa.chunked_array(stretch.columns[_column_of(spec, source, molecule)]).combine_chunks()
        for molecule in spec.molecules
    ]
    answers = None
    if spec.task is not None and isinstance(spec.task.label, GenerationLabel):
        answers = stretch.columns[spec.task.label_column]
    return _table(spec, split, source, stretch.numbers, _lists(columns), labels, None, answers)


def _column_of(spec: Dataset, source: SourceFile, molecule: Molecule) -> str:
    """Planted pairs are named by role, everything else as declared."""
    planted_pair = spec.format_of(source).kind == "planted" and len(spec.molecules) > 1
    return molecule.role if planted_pair else molecule.column


def _lists(columns: list[pa.Array]) -> pa.ListArray:
    """list<string> [rows] of one string column per molecule; a single column is not copied."""
    rows, width = len(columns[0]), len(columns)
    offsets = pa.array(np.arange(0, rows * width + 1, width, dtype=np.int32))
    if width == 1:
        return pa.ListArray.from_arrays(offsets, columns[0].cast(pa.string()))
    order = np.arange(rows * width).reshape(width, rows).T.ravel()
    return pa.ListArray.from_arrays(
        offsets, pa.concat_arrays([column.cast(pa.string()) for column in columns]).take(pa.array(order))
    )


def _labels(spec: Dataset, source: SourceFile, stretch: Stretch) -> pa.Array | None:
    """list<float64> [rows]; every distinct text is decoded once. Records without a label are refused."""
    if spec.task is None:
        return None
    name = spec.task.label_column
    texts = pc.utf8_trim_whitespace(stretch.column(name, source.uri))
    stretch.put(name, texts)
    present = pc.fill_null(pc.not_equal(texts, ""), False)
    stretch.keep(present, lambda row: Refused("no label", "no label"))
    encoded = pa.chunked_array(stretch.columns[name]).combine_chunks().dictionary_encode()
    values = []
    for place, text in enumerate(encoded.dictionary.to_pylist()):
        try:
            values.append(list(spec.task.label.decode(text)))
        except ValueError as error:
            record = int(stretch.numbers[encoded.indices.to_numpy().tolist().index(place)])
            raise DataError(
                str(error),
                where=f"{source.uri}, record {record}, column {name!r}",
                fix=f"mend the source, or the label codec in datasets_spec/{spec.name}.yaml",
            ) from error
    return pa.array(values, pa.list_(pa.float64())).take(encoded.indices)


def _instruction_examples(spec: Dataset, split: Split, source: SourceFile, stretch: Stretch) -> pa.Table:
    """Ready-made rows: molecules are taken out of the question's text, the wordings stay as they are."""
    from polysome.data.interchange import parse_input

    assert spec.instructions is not None
    questions = stretch.column(spec.instructions.input, source.uri).to_pylist()
    answers = stretch.column(spec.instructions.output, source.uri)
    sequences: list[list[str] | None] = []
    wordings: list[str | None] = []
    problems: dict[int, Refused] = {}
    for row, (text, answer) in enumerate(zip(questions, answers.to_pylist(), strict=True)):
        try:
            for what, value in (("question", text), ("answer", answer)):
                if not (value or "").strip():
                    raise Refused(f"no {what}", f"no {what}")
            parsed = parse_input(text)
            sequences.append([clean(molecule.sequence, molecule.type) for molecule in parsed.molecules])
            wordings.append(parsed.wording)
        except Refused as refusal:
            sequences.append(None)
            wordings.append(None)
            problems[row] = refusal
    kept = pa.array([item is not None for item in sequences])
    whole = pa.array(sequences, pa.list_(pa.string())).filter(kept)
    asked = pa.array(wordings, pa.string()).filter(kept)
    answers = answers.filter(kept)
    stretch.keep(kept, problems.__getitem__)
    tasks = stretch.column(spec.instructions.task, source.uri)
    table = _table(spec, split, source, stretch.numbers, whole, None, asked, answers)
    return table.set_column(EXAMPLES.get_field_index("subset"), EXAMPLES.field("subset"), tasks.cast(pa.string()))


def _table(
    spec: Dataset,
    split: Split,
    source: SourceFile,
    numbers: npt.NDArray[np.int64],
    sequences: pa.Array,
    labels: pa.Array | None,
    questions: pa.Array | None,
    answers: pa.Array | None,
) -> pa.Table:
    rows = len(numbers)
    prefix = f"{spec.name}/{split}/{source.subset or '-'}/"
    columns = {
        "id": pc.binary_join_element_wise(prefix, pc.cast(pa.array(numbers), pa.string()), ""),
        "dataset": _repeated(spec.name, rows),
        "split": _repeated(split, rows),
        "subset": _repeated(source.subset, rows),
        "sequences": sequences,
        "label": labels,
        "question": questions,
        "answer": answers,
    }
    return pa.table(
        [
            pa.nulls(rows, field.type) if columns[field.name] is None else _plain(columns[field.name], field.type)
            for field in EXAMPLES
        ],
        schema=EXAMPLES,
    )


def _plain(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return array if array.type == kind else array.cast(kind)


def _repeated(value: str | None, rows: int) -> pa.Array:
    return pa.array([value], pa.string()).take(pa.array(np.zeros(rows, np.int64)))


def _windows(examples: pa.Table, window: int) -> pa.Table:
    """Corpus sequences longer than the window as consecutive pieces (A-91), on the same characters, nothing copied."""
    sequences = examples["sequences"].combine_chunks().flatten()
    lengths = pc.binary_length(sequences).to_numpy(zero_copy_only=False).astype(np.int64)
    if not len(lengths) or lengths.max() <= window:
        return examples
    pieces = np.maximum(1, -(-lengths // window))
    rows = np.repeat(np.arange(len(lengths)), pieces)
    piece = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    bounds = np.frombuffer(sequences.buffers()[1], np.int32)[sequences.offset : sequences.offset + len(lengths) + 1]
    starts = bounds[:-1].astype(np.int64)[rows] + piece * window
    cut = pa.StringArray.from_buffers(
        len(rows), pa.py_buffer(np.append(starts, bounds[-1]).astype(np.int32)), sequences.buffers()[2]
    )
    suffix = pc.if_else(
        pa.array(pieces[rows] > 1), pc.binary_join_element_wise("/", pa.array(piece).cast(pa.string()), ""), ""
    )
    # Without the sequences, which would be copied once for every piece of them.
    taken = examples.drop_columns(["sequences"]).take(pa.array(rows))
    taken = taken.set_column(0, EXAMPLES.field("id"), pc.binary_join_element_wise(taken["id"], suffix, ""))
    return taken.append_column("sequences", _lists([cut])).select(EXAMPLES.names).cast(EXAMPLES)


def _without_n(examples: pa.Table, maximum: float, report: FileReport) -> pa.Table:
    """Corpus sequences with no more than this share of N; the others are counted."""
    if maximum >= 1 or not examples.num_rows:
        return examples
    sequences = examples["sequences"].combine_chunks().flatten()
    shares = pc.divide(pc.cast(pc.count_substring(sequences, "N"), pa.float64()), pc.binary_length(sequences))
    kept = pc.less_equal(shares, maximum)
    if left_out := examples.num_rows - pc.sum(kept).as_py():
        report.changed[f"left out, more than {maximum:g} of the letters are N"] += left_out
    return examples.filter(kept)


def _quarantine(source: SourceFile, records: Records, stretch: Stretch, report: FileReport) -> pa.Table:
    """All records of the stretch that could not be used, in the order of the file, counted by reason."""
    entries = [
        (entry["record"], entry["offset"], entry["reason"], entry["reason"]) for entry in records.damaged.to_pylist()
    ]
    entries += [(number, -1, str(refusal), refusal.kind) for number, refusal in stretch.refused.items()]
    entries.sort()
    if entries and report.first is None:
        report.first = (entries[0][0], entries[0][2])
    report.quarantined += len(entries)
    report.reasons.update(kind for *_, kind in entries)
    rows = [
        {"file": source.uri, "record": number, "offset": offset, "reason": reason}
        for number, offset, reason, _ in entries
    ]
    return pa.Table.from_pylist(rows, schema=QUARANTINE)


def _check_any(source: SourceFile, report: FileReport) -> None:
    if report.records == 0:
        raise DataError(
            "the file holds no record" if not report.not_selected else "the adapter selects no record",
            where=source.uri,
            fix="an empty split cannot be used: mend the source or its spec",
        )


def _check_quarantined(spec: Dataset, source: SourceFile, report: FileReport) -> None:
    if report.quarantined > spec.maximum_quarantined * report.records:
        assert report.first is not None
        reasons = "; ".join(f"{count} x {reason}" for reason, count in report.reasons.most_common(3))
        raise DataError(
            f"{report.quarantined} of {report.records} records cannot be used ({reasons}); "
            f"the first: {report.first[1]}",
            where=f"{source.uri}, record {report.first[0]} (counted from 0)",
            fix=f"mend the file, or format, columns and molecules in {spec.name}.yaml, or raise maximum_quarantined",
        )


def _check_declared(spec: Dataset, source: SourceFile, report: FileReport) -> None:
    if source.sha256 and report.sha256 != source.sha256:
        raise DataError(
            f"the content's sha256 is {report.sha256}, declared is {source.sha256}",
            where=source.uri,
            fix="the source changed or the copy is damaged: fetch it again, or review and declare the new checksum",
        )
    if source.rows and report.records != source.rows:
        raise DataError(
            f"{report.records} records read, {source.rows} declared",
            where=source.uri,
            fix="the source changed or the copy is cut short: fetch it again, or review and declare the new count",
        )
