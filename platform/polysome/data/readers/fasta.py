"""FASTA: a stream in, headers and sequences out, whole blocks at a time; agrees with Biopython on what that accepts."""

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polysome.config import DataError
from polysome.data.readers.records import BLOCK_BYTES, Damage, Records, as_text, content, gather, stretches
from polysome.data.readers.stream import Stream
from polysome.specs.formats import FastaFormat

_HEADER, _NEWLINE = ord(">"), ord("\n")
_RECORD_START = re.compile(rb"(?:^|(?<=[\r\n]))>")
_TRAILING = np.zeros(256, bool)
_TRAILING[list(b"\t\n\v\f\r\x1c\x1d\x1e\x1f ")] = True
"""What `str.rstrip` removes, of ASCII."""


def read(stream: Stream, format: FastaFormat, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Records]:
    """Columns `header` (the line without `>` and without blanks at its end) and `sequence` (without blanks, tabs and
    line ends; case and every other character kept).

    Line ends may be LF, CR LF or CR. Every line that does not begin with `>` is sequence, as it is to Biopython's
    `SeqIO.parse(…, "fasta")`; so a `;` comment within a record becomes part of it, and cleaning refuses that. A record
    that is not UTF-8 is damaged.

    Raises:
        DataError: the file does not begin with `>`; also see `Stream`.
    """
    _require_header(stream)
    number = 0
    for offset, block in _whole_records(stream, block_bytes):
        headers, sequences = _cut(block)
        try:
            columns = pa.table({"header": as_text(headers), "sequence": as_text(sequences)})
            damaged: list[Damage] = []
        except pa.ArrowInvalid:
            columns, damaged = _readable(block, offset, number, headers, sequences)
        yield from stretches(number, columns, damaged)
        number += len(headers)


def _require_header(stream: Stream) -> None:
    head = stream.peek()
    if head.startswith(b">"):
        return
    fix = "check that this is FASTA"
    if head.startswith(b"\xef\xbb\xbf"):
        what, fix = "a byte order mark stands before the first '>'", "save the file as UTF-8 without one"
    elif b"\0" in head:
        what = "binary content, not FASTA"
    elif head.startswith(b"@"):
        what, fix = "begins with '@', as FASTQ does, not with '>'", "declare `format: fastq`"
    elif head.lstrip()[:1] == b">":
        what, fix = "blank lines stand before the first '>'", "remove them"
    else:
        line = head.splitlines()[0][:60].decode(errors="replace")
        what, fix = f"begins with {line!r}, not with '>'", f"{fix}, and remove comments before the first record"
    raise DataError(what, where=f"{stream.url}, byte 0", fix=fix)


def _whole_records(stream: Stream, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Byte offset and text of consecutive blocks, each from a `>` at the start of a line to before another."""
    offset, last = 0, b"\n"
    held: list[bytes] = []
    for chunk in stream.chunks(block_bytes):
        cut = max(chunk.rfind(b"\n>"), chunk.rfind(b"\r>") if b"\r" in chunk else -1) + 1
        starts = cut or (held and last in b"\r\n" and chunk.startswith(b">"))
        # A chunk that is not full is the last one: what it holds stays together.
        if starts and len(chunk) == block_bytes:
            block = b"".join([*held, chunk[:cut]])
            if block:
                yield offset, block
            offset += len(block)
            chunk, held = chunk[cut:], []
        held.append(chunk)
        last = chunk[-1:]
    yield offset, b"".join(held)


def _cut(block: bytes) -> tuple[pa.Array, pa.Array]:
    """Headers and sequences of a block, both large_binary [records]."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1])
    is_header = data[np.minimum(starts, len(data) - 1)] == _HEADER
    header_lines = np.flatnonzero(is_header)
    header_starts = starts[is_header] + 1
    headers = gather(block, header_starts, _trim(data, header_starts, ends[is_header]))
    lines = gather(block, starts[~is_header], ends[~is_header])
    # Lines of sequence before header r: its own line number less the r header lines before it.
    before = np.append(header_lines - np.arange(len(header_lines)), len(lines))
    return headers, _join(lines, before)


def _trim(
    data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Ends of the lines without white space at their end, as `str.rstrip` has it."""
    ends = ends.copy()
    while (blank := (ends > starts) & _TRAILING[data[ends - 1]]).any():
        ends -= blank
    for row in np.flatnonzero((ends > starts) & (data[ends - 1] >= 0x80)):
        line = data[starts[row] : ends[row]].tobytes()
        ends[row] = starts[row] + len(line.decode(errors="surrogateescape").rstrip().encode(errors="surrogateescape"))
    return ends


def _join(lines: pa.Array, first: npt.NDArray[np.int64]) -> pa.Array:
    """Join lines [first[r], first[r + 1]) to row r and remove blanks and tabs from them; large_binary [rows]."""
    data, bounds = content(lines)
    offsets = bounds[first]
    if len(data) and data.min() <= ord(" "):
        blank = np.flatnonzero((data == ord(" ")) | (data == ord("\t")))
        data = np.delete(data, blank)
        offsets = offsets - np.searchsorted(blank, offsets)
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(first) - 1, buffers)


def _readable(
    block: bytes, offset: int, first: int, headers: pa.Array, sequences: pa.Array
) -> tuple[pa.Table, list[Damage]]:
    """The records of a block that are UTF-8, and the others as damaged."""
    starts = [match.start() for match in _RECORD_START.finditer(block)]
    damaged = []
    for row, pair in enumerate(zip(headers, sequences, strict=True)):
        for name, piece in zip(("header", "sequence"), pair, strict=True):
            try:
                piece.as_py().decode()
            except UnicodeDecodeError as error:
                damaged.append(Damage(first + row, offset + starts[row], f"the {name} is not UTF-8: {error}"))
                break
    good = np.ones(len(headers), bool)
    good[[damage.record - first for damage in damaged]] = False
    kept = [as_text(pc.filter(column, pa.array(good))) for column in (headers, sequences)]
    return pa.table(kept, names=["header", "sequence"]), damaged
