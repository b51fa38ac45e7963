"""GenBank, EMBL and UniProt flat files: entries split by their first and last lines, each parsed by Biopython."""

import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from polysome.config import DataError
from polysome.data.readers.records import BLOCK_BYTES, BLOCK_RECORDS, Damage, Records, stretches
from polysome.data.readers.stream import Stream
from polysome.specs.formats import FlatFileFormat

COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("id", "accession", "description", "organism", "molecule_type")]
    + [("sequence", pa.string())]
)

_FIRST = {"genbank": b"LOCUS       ", "embl": b"ID   ", "swissprot": b"ID   "}
_PARSER = {"genbank": "genbank", "embl": "embl", "swissprot": "swiss"}
_DECLARED_LENGTH = re.compile(r"\s(\d+) (?:bp|aa|BP|AA)\b")


def read(stream: Stream, format: FlatFileFormat, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Records]:
    """The columns COLUMNS, as Biopython's `SeqIO.parse` gives them; what an entry does not say is null.

    An entry is damaged when Biopython cannot parse it, when it holds no sequence (`CONTIG` or `CO` lines only) or not
    as many letters as its first line declares, when no `//` ends it, or when its first line is none; text before the
    first entry of a GenBank or EMBL file is its heading and is left out.

    Raises:
        DataError: no entry begins anywhere in the file, or a UniProt file does not begin with one; also see `Stream`.
    """
    if format.kind == "swissprot" and not stream.peek().lstrip().startswith(_FIRST[format.kind]):
        raise _no_entry(stream, format.kind)
    rows: list[dict[str, str | None]] = []
    damaged: list[Damage] = []
    first = number = size = 0
    for entry in _entries(stream, format.kind, block_bytes):
        try:
            rows.append(_parse(entry, format.kind))
        except _Unusable as error:
            damaged.append(Damage(number, entry.offset, str(error)))
        number += 1
        size += len(entry.text)
        if size >= block_bytes or number - first == BLOCK_RECORDS:
            yield from stretches(first, pa.Table.from_pylist(rows, schema=COLUMNS), damaged)
            rows, damaged, first, size = [], [], number, 0
    if number == 0:
        raise _no_entry(stream, format.kind)
    if rows or damaged:
        yield from stretches(first, pa.Table.from_pylist(rows, schema=COLUMNS), damaged)


def _no_entry(stream: Stream, kind: str) -> DataError:
    return DataError(
        f"no entry, which would begin with {_FIRST[kind].decode().rstrip()!r}",
        where=f"{stream.url}, byte 0",
        fix=f"check that this is a flat file of kind {kind}",
    )


class _Unusable(Exception):
    """An entry gives no record; its text says why."""


@dataclass(frozen=True)
class _Entry:
    offset: int
    text: bytes
    fault: str = ""


def _entries(stream: Stream, kind: str, block_bytes: int) -> Iterator[_Entry]:
    begins = _FIRST[kind]
    unbegun = f"its first line does not begin with {begins.decode().rstrip()!r}"
    text, start, heading = bytearray(), 0, kind != "swissprot"
    stray: int | None = None
    for offset, line in _lines(stream, block_bytes):
        ends = line.startswith(b"//") if kind == "swissprot" else line.rstrip() == b"//"
        if line.startswith(begins):
            if text:
                yield _Entry(start, bytes(text), "no // ends it before the next entry")
            elif stray is not None and not heading:
                yield _Entry(stray, b"", unbegun)
            text, start, stray, heading = bytearray(line), offset, None, False
        elif text:
            text += line
            if ends:
                yield _Entry(start, bytes(text))
                text = bytearray()
        elif ends:
            if stray is not None:
                yield _Entry(stray, b"", unbegun)
            stray, heading = None, False
        elif stray is None and line.strip():
            stray = offset
    if text:
        yield _Entry(start, bytes(text), "the file ends before its //")
    elif stray is not None and not heading:
        yield _Entry(stray, b"", unbegun)


def _lines(stream: Stream, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Byte offset and text of every line with its end: LF, CR LF or CR."""
    offset, rest = 0, b""
    for chunk in stream.chunks(block_bytes):
        lines = (rest + chunk).splitlines(keepends=True)
        # A line without an end goes on in the next chunk; one that ends with CR may have its LF there.
        rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
        for line in lines:
            yield offset, line
            offset += len(line)
    for line in rest.splitlines(keepends=True):
        yield offset, line
        offset += len(line)


def _parse(entry: _Entry, kind: str) -> dict[str, str | None]:
    from Bio import BiopythonWarning, SeqIO
    from Bio.Seq import UndefinedSequenceError

    if entry.fault:
        raise _Unusable(entry.fault)
    try:
        text = entry.text.decode()
        with warnings.catch_warnings():
            # About features and annotation, which are not read, and about a wrong length, which is checked below.
            warnings.simplefilter("ignore", BiopythonWarning)
            (record,) = SeqIO.parse(io.StringIO(text, newline=None), _PARSER[kind])
    except UnicodeDecodeError as error:
        raise _Unusable(f"not UTF-8: {error}") from error
    except Exception as error:  # Biopython's parsers raise whatever the line at hand leads them to
        raise _Unusable(f"Biopython: {type(error).__name__}: {' '.join(str(error).split())[:160]}") from error
    try:
        sequence = str(record.seq)
    except UndefinedSequenceError as error:
        raise _Unusable("it holds no sequence, only where to find it or how long it is") from error
    if not sequence:
        raise _Unusable("it holds no sequence")
    declared = _DECLARED_LENGTH.search(text.partition("\n")[0])
    if declared and int(declared[1]) != len(sequence):
        raise _Unusable(f"it declares a length of {declared[1]} and holds {len(sequence)} letters")
    accessions = record.annotations.get("accessions")
    return {
        "id": record.id,
        "accession": accessions[0] if accessions else None,
        "description": record.description,
        "organism": record.annotations.get("organism"),
        "molecule_type": record.annotations.get("molecule_type"),
        "sequence": sequence,
    }
