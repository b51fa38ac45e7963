"""Readers: one declared file in, batches of examples and of quarantined records out, nothing held whole in memory."""

import codecs
import csv
import hashlib
import io
import itertools
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO

import pyarrow as pa

from polysome.config import DataError
from polysome.data import planted
from polysome.data.clean import Refused, clean
from polysome.data.schema import EXAMPLES, QUARANTINE
from polysome.specs import Dataset, SourceFile, Split
from polysome.storage import open_bytes, resolve

BATCH_RECORDS = 8192
_GIT_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Record:
    """One record as it stands in its file: raw sequences in the order of the spec's molecules, raw label."""

    number: int
    sequences: tuple[str, ...]
    label: str | None


@dataclass
class FileReport:
    """What reading one file found; complete once the file was read to its end."""

    uri: str
    sha256: str = ""
    records: int = 0
    quarantined: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Examples (schema EXAMPLES) and the records set aside (schema QUARANTINE) of one stretch of a file."""

    examples: pa.Table
    quarantine: pa.Table


def read_file(
    spec: Dataset, split: Split, source: SourceFile, report: FileReport, *, limit: int | None = None
) -> Iterator[Batch]:
    """Stream one file of a split; `report` is filled as it goes.

    With `limit`, reading stops after so many records, and neither the checksum nor the row count is checked.

    Raises:
        DataError: the file is missing, is not what its format says, has another checksum or row count than declared,
            holds a label outside the codec, or too many records had to be set aside.
    """
    examples: list[dict[str, object]] = []
    quarantine: list[dict[str, object]] = []
    prefix = f"{spec.name}/{split}/{source.subset or '-'}"
    with closing(_records(spec, split, source, report)) as records:
        for record in records:
            if limit is not None and record.number >= limit:
                break
            report.records += 1
            try:
                sequences = _clean_molecules(spec, record)
            except Refused as refusal:
                report.quarantined += 1
                report.reasons[refusal.kind] = report.reasons.get(refusal.kind, 0) + 1
                quarantine.append({"file": source.uri, "record": record.number, "reason": str(refusal)})
            else:
                label = _decode_label(spec, source, record)
                if not _within(source.share, sequences):
                    continue
                for suffix, pieces in _windows(spec, sequences):
                    examples.append(
                        {
                            "id": f"{prefix}/{record.number}{suffix}",
                            "dataset": spec.name,
                            "split": split,
                            "subset": source.subset,
                            "sequences": pieces,
                            "label": label,
                        }
                    )
            if len(examples) + len(quarantine) >= BATCH_RECORDS:
                yield _batch(examples, quarantine)
                examples, quarantine = [], []
        finished = limit is None or report.records < limit
    if report.records == 0:
        raise DataError(
            "the file holds no record", where=source.uri, fix="an empty split cannot be used: mend the source"
        )
    share = report.quarantined / report.records
    if share > spec.maximum_quarantined:
        frequent = sorted(report.reasons.items(), key=lambda item: -item[1])[:3]
        reasons = "; ".join(f"{count} x {reason}" for reason, count in frequent)
        raise DataError(
            f"{report.quarantined} of {report.records} records cannot be used ({reasons})",
            where=source.uri,
            fix=f"check molecule types and columns in datasets_spec/{spec.name}.yaml, or raise its maximum_quarantined",
        )
    if finished:
        _check_declared(source, report)
    if examples or quarantine:
        yield _batch(examples, quarantine)


def read_examples(spec: Dataset, split: Split, *, limit: int | None = None) -> pa.Table:
    """A whole split as one table (schema EXAMPLES), in the order of its files; at most `limit` examples.

    Raises:
        DataError: see `read_file`.
    """
    tables: list[pa.Table] = [EXAMPLES.empty_table()]
    missing = limit
    for source in spec.files(split):
        report = FileReport(source.uri)
        tables += [batch.examples for batch in read_file(spec, split, source, report, limit=missing)]
        if missing is not None:
            missing = limit - sum(table.num_rows for table in tables) if limit is not None else None
            if missing is not None and missing <= 0:
                break
    table = pa.concat_tables(tables)
    return table if limit is None else table.slice(0, limit)


def _clean_molecules(spec: Dataset, record: Record) -> list[str]:
    cleaned = []
    for molecule, raw in zip(spec.molecules, record.sequences, strict=True):
        sequence = clean(raw, molecule.type)
        if not molecule.minimum_length <= len(sequence) <= molecule.maximum_length:
            bounds = f"[{molecule.minimum_length}, {molecule.maximum_length}]"
            raise Refused(f"{molecule.role} length {len(sequence)} is outside {bounds}", f"length outside {bounds}")
        cleaned.append(sequence)
    return cleaned


def _decode_label(spec: Dataset, source: SourceFile, record: Record) -> float | None:
    if spec.task is None:
        return None
    try:
        return spec.task.label.decode((record.label or "").strip())
    except ValueError as error:
        raise DataError(
            str(error),
            where=f"{source.uri}, record {record.number}",
            fix=f"mend the source, or the label codec in datasets_spec/{spec.name}.yaml",
        ) from error


def _within(share: tuple[float, float] | None, sequences: list[str]) -> bool:
    if share is None:
        return True
    digest = hashlib.blake2b("\t".join(sequences).encode(), digest_size=8).digest()
    return share[0] <= int.from_bytes(digest, "big") / 2**64 < share[1]


def _windows(spec: Dataset, sequences: list[str]) -> Iterator[tuple[str, list[str]]]:
    """A task's sequences as they are; a corpus sequence longer than the window as consecutive pieces (A-91)."""
    if spec.window is None or len(sequences[0]) <= spec.window:
        yield "", sequences
        return
    for piece, start in enumerate(range(0, len(sequences[0]), spec.window)):
        yield f"/{piece}", [sequences[0][start : start + spec.window]]


def _check_declared(source: SourceFile, report: FileReport) -> None:
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


def _batch(examples: list[dict[str, object]], quarantine: list[dict[str, object]]) -> Batch:
    return Batch(pa.Table.from_pylist(examples, schema=EXAMPLES), pa.Table.from_pylist(quarantine, schema=QUARANTINE))


def _records(spec: Dataset, split: Split, source: SourceFile, report: FileReport) -> Generator[Record, None, None]:
    if spec.format == "planted":
        yield from _planted_records(source, split, report)
        return
    url = resolve(source.uri, source.mirror_path)
    with open_bytes(url) as raw:
        hashed = _Hashed(raw)
        head = hashed.peek()
        if head.startswith(_GIT_LFS):
            raise DataError("a git-lfs pointer, not the data", where=url, fix="fetch the file with `git lfs pull`")
        if head.lstrip()[:1] == b"<":
            raise DataError("an HTML or XML page, not the data", where=url, fix="check the address: a page was saved")
        # typeshed wants more of a raw stream than BufferedReader uses.
        buffered = io.BufferedReader(hashed, 1 << 20)  # type: ignore[type-var]
        text = io.TextIOWrapper(buffered, encoding="utf-8", newline="")
        try:
            yield from _csv_records(spec, url, text) if spec.format == "csv" else _fasta_records(url, text)
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 text: {error.reason}", where=url, fix="check the compression") from error
        except (EOFError, OSError) as error:
            raise DataError(f"the archive is damaged or cut short: {error}", where=url, fix="fetch it again") from error
        report.sha256 = hashed.hexdigest()


def _csv_records(spec: Dataset, url: str, text: IO[str]) -> Iterator[Record]:
    reader = csv.reader(text, strict=True)
    try:
        header = next((row for row in reader if row), None)
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", where=f"{url}, line {reader.line_num}", fix="mend the line") from error
    if header is None:
        return
    header[0] = header[0].removeprefix(codecs.BOM_UTF8.decode())
    columns = [molecule.column for molecule in spec.molecules]
    wanted = columns + ([spec.task.label_column] if spec.task else [])
    absent = [name for name in wanted if name not in header]
    if absent:
        raise DataError(
            f"no column {absent[0]!r}; the header is {', '.join(header)}",
            where=url,
            fix=f"name the right columns in datasets_spec/{spec.name}.yaml",
        )
    positions = [header.index(name) for name in columns]
    label = header.index(spec.task.label_column) if spec.task else None
    try:
        for number, row in enumerate(row for row in reader if row):
            if len(row) != len(header):
                raise DataError(
                    f"{len(row)} fields where the header has {len(header)}",
                    where=f"{url}, line {reader.line_num}",
                    fix="mend the line, or check the delimiter",
                )
            yield Record(number, tuple(row[position] for position in positions), None if label is None else row[label])
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", where=f"{url}, line {reader.line_num}", fix="mend the line") from error


def _fasta_records(url: str, text: IO[str]) -> Iterator[Record]:
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    first = text.readline()
    while first and not first.strip():
        first = text.readline()
    if first and not first.startswith(">"):
        raise DataError("the first line does not start with '>'", where=url, fix="check that this is FASTA")
    # The parser only iterates over its handle.
    for number, (_, sequence) in enumerate(SimpleFastaParser(itertools.chain([first], text))):
        yield Record(number, (sequence.replace(" ", ""),), None)


def _planted_records(source: SourceFile, split: Split, report: FileReport) -> Iterator[Record]:
    digest = hashlib.sha256()
    for number, (sequences, label) in enumerate(planted.generate(source.uri, split)):
        digest.update(("\t".join(sequences) + f"\t{label}\n").encode())
        yield Record(number, sequences, label)
    report.sha256 = digest.hexdigest()


class _Hashed(io.RawIOBase):
    """A raw byte stream that hashes what is read through it."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._digest = hashlib.sha256()
        self._pending = b""

    def peek(self, size: int = 256) -> bytes:
        """The first bytes, which later reads give again."""
        try:
            self._pending = self._raw.read(size)
        except (EOFError, OSError) as error:
            where = str(getattr(self._raw, "name", ""))
            raise DataError(f"cannot be decompressed: {error}", where=where, fix="fetch it again") from error
        return self._pending

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        piece, self._pending = (self._pending, b"") if self._pending else (self._raw.read(len(buffer)), b"")
        if len(piece) > len(buffer):
            piece, self._pending = piece[: len(buffer)], piece[len(buffer) :]
        self._digest.update(piece)
        buffer[: len(piece)] = piece
        return len(piece)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
