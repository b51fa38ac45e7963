"""FASTQ: a stream in, headers, sequences and qualities out; four lines a record at once, wrapped records one by one."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from polysome.config import DataError
from polysome.data.readers.records import BLOCK_BYTES, Damage, Records, as_text, content, gather, stretches
from polysome.data.readers.stream import Stream
from polysome.specs.formats import FastqFormat

SEARCH_BYTES = 16 << 20
"""How far after a damaged record the next one may begin."""

Positions = npt.NDArray[np.int64]

_COLUMNS = ("header", "sequence", "quality")
_AT, _PLUS = ord("@"), ord("+")
_BLANK = b"\t\n\v\f\r\x1c\x1d\x1e\x1f "
"""What `str.rstrip` removes, of ASCII."""
_SUSPICIOUS = np.zeros(256, bool)
_SUSPICIOUS[list(_BLANK) + list(range(128, 256))] = True
_QUALITY = bytes(range(33, 127))
_LETTERS = re.compile(rb"[A-Za-z*.\-]+")


def read(stream: Stream, format: FastqFormat, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Records]:
    """Columns `header` (the line without `@` and without blanks at its end), `sequence` and `quality`, its characters
    as they stand, whatever their scale.

    Sequence and quality may be wrapped, line ends may be LF, CR LF or CR; both as Biopython's `FastqGeneralIterator`
    has them. A record is damaged when sequence and quality differ in length, its `+` line is missing or repeats another
    title, its quality holds a character outside ASCII 33 to 126, its sequence holds a blank or a line that begins with
    `@`, or the file ends within it. Reading goes on at the next line that can be nothing but the first of a record: `@`
    and a title, one line of letters, a `+` line, a quality of the same length, and then another `@` or the end.

    Raises:
        DataError: the file does not begin with `@`, or after a damaged record it is not certain where the next one
            begins; also see `Stream`.
    """
    head = stream.peek(64)
    if not head.startswith(b"@"):
        begins = head.splitlines()[0].decode(errors="replace")
        raise DataError(
            f"begins with {begins!r}, not with '@'",
            where=f"{stream.url}, byte 0",
            fix="check that this is FASTQ, and remove what stands before the first record",
        )
    number = offset = 0
    rest, at_end = b"", False
    while not at_end:
        chunk = stream.read(block_bytes)
        at_end = len(chunk) < block_bytes
        block = _Block(rest + chunk, stream.url, offset, number, at_end)
        block.cut()
        columns = pa.concat_tables(block.tables).combine_chunks()
        yield from stretches(number, columns, block.damaged)
        number, offset, rest = block.number, offset + block.position, block.data[block.position :]


@dataclass(frozen=True)
class _Record:
    header: bytes
    sequence: bytes
    quality: bytes
    end: int
    """Position of the line after it."""


@dataclass(frozen=True)
class _Broken:
    reason: str


class _Block:
    """A piece of the file that begins with a record; `cut` moves `position` over every record that it holds whole."""

    def __init__(self, data: bytes, url: str, offset: int, number: int, at_end: bool) -> None:
        self.data, self.url, self.offset, self.number, self.at_end = data, url, offset, number, at_end
        self.position = 0
        self.tables: list[pa.Table] = [pa.table({name: pa.array([], pa.string()) for name in _COLUMNS})]
        self.damaged: list[Damage] = []
        self._records: list[_Record] = []
        self._starts: list[int] = []

    def cut(self) -> None:
        if not self._cut_four_lines():
            self._cut_one_by_one()

    def _cut_four_lines(self) -> bool:
        """Cut off records of four lines up to the first that is not a faultless one; whether none such was met."""
        lines = _four_lines(self.data, self.at_end)
        if lines is None:
            return False
        starts, ends, following = lines
        good, pieces = _faultless(self.data, starts, ends, following)
        count = len(good) if good.all() else int(np.argmin(good))
        if count:
            columns = [as_text(piece.slice(0, count)) for piece in pieces]
            self.tables.append(pa.table(columns, names=_COLUMNS))
            self.number += count
            self.position = int(following[count - 1])
        # What is left of a block is part of a record, which the next one completes; at the end it must be nothing.
        return count == len(good) and (not self.at_end or self.position == len(self.data))

    def _cut_one_by_one(self) -> None:
        lines = self.data[self.position :].splitlines(keepends=True)
        if lines and not self.at_end and not lines[-1].endswith(b"\n"):
            # Neither a line without an end nor one that ends with the first half of CR LF is whole.
            lines.pop()
        starts = np.cumsum([self.position, *map(len, lines)])
        place = 0
        while place < len(lines):
            found = _record(lines, place, self.at_end)
            if found is None:
                break
            if isinstance(found, _Record):
                self._keep(found, starts[place])
                place = found.end
                continue
            following = self._set_aside(lines, starts, place, found)
            if following is None:
                break
            place = following
        self.position = int(starts[place])
        self._flush()

    def _keep(self, record: _Record, start: int) -> None:
        try:
            record.header.decode()
            record.sequence.decode("ascii")
        except UnicodeDecodeError as error:
            self._damage(start, f"not {'ASCII' if error.encoding == 'ascii' else 'UTF-8'}: {error}")
        else:
            self._records.append(record)
            self.number += 1

    def _damage(self, start: int, reason: str) -> None:
        self.damaged.append(Damage(self.number, self.offset + int(start), reason))
        self.number += 1

    def _flush(self) -> None:
        if self._records:
            columns = [
                pa.array([getattr(record, name) for record in self._records], pa.large_binary()) for name in _COLUMNS
            ]
            self.tables.append(pa.table([as_text(column) for column in columns], names=_COLUMNS))
            self._records = []

    def _set_aside(self, lines: list[bytes], starts: npt.NDArray[np.int64], place: int, broken: _Broken) -> int | None:
        """Set aside what stands from a broken record to the next certain one; where that is, None to look further."""
        following = place + 1
        while following < len(lines) and starts[following] - starts[place] < SEARCH_BYTES:
            certain = _certain(lines, following, self.at_end)
            if certain is None:
                return None
            if certain:
                self._damage_all(lines, starts, place, following, broken)
                return following
            following += 1
        if starts[-1] - starts[place] < SEARCH_BYTES:
            if not self.at_end:
                return None
            if len(_possible_starts(lines, place, len(lines))) == 1:
                self._damage(starts[place], broken.reason)
                return len(lines)
        raise DataError(
            f"record {self.number} is damaged ({broken.reason}), and it is not certain where the next one begins",
            where=f"{self.url}, byte {self.offset + int(starts[place])}",
            fix="mend or remove that record, or fetch the file again",
        )

    def _damage_all(
        self, lines: list[bytes], starts: npt.NDArray[np.int64], first: int, end: int, broken: _Broken
    ) -> None:
        for place in _possible_starts(lines, first, end):
            found = broken if place == first else _record(lines[:end], place, at_end=True)
            reason = found.reason if isinstance(found, _Broken) else "cannot be told from the damage before it"
            self._damage(starts[place], reason)


def _four_lines(data: bytes, at_end: bool) -> tuple[Positions, Positions, Positions] | None:
    """Where the lines of records of four lines start and end, both [records, 4], and where each record ends [records].

    None where CR alone ends lines.
    """
    returns = data.count(b"\r")
    if returns and returns - (data.endswith(b"\r") and not at_end) != data.count(b"\r\n"):
        return None
    text = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    if at_end and data and not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    count = len(ends) // 4
    if count and not at_end and ends[4 * count - 1] + 1 == len(data):
        # Whether a record ends here shows only in the byte after it.
        count -= 1
    ends = ends[: 4 * count]
    starts = np.append(0, ends + 1)[: len(ends)]
    following = np.minimum(ends[3::4] + 1, len(data))
    if returns:
        ends = ends - ((ends > starts) & (text[ends - 1] == ord("\r")))
    return starts.reshape(-1, 4), ends.reshape(-1, 4), following


def _faultless(
    data: bytes, starts: Positions, ends: Positions, following: Positions
) -> tuple[npt.NDArray[np.bool_], list[pa.Array]]:
    """Which records are beyond doubt [records]; headers, sequences and qualities of all, large_binary [records]."""
    text = np.frombuffer(data, np.uint8)
    lengths = (ends - starts).T
    at, letters, plus, _ = text[starts].T
    last = text[ends - 1]
    good = (at == _AT) & (lengths[0] > 0) & (plus == _PLUS) & (lengths[2] > 0) & (lengths[1] == lengths[3])
    good &= (letters != _AT) & (letters != _PLUS)
    good &= (following == len(data)) | (text[np.minimum(following, len(data) - 1)] == _AT)
    good &= ~_SUSPICIOUS[last[:, 0]] & ~_SUSPICIOUS[last[:, 2]]
    header, sequence, repeated, quality = (
        gather(data, np.minimum(starts[:, line] + skipped, ends[:, line]), ends[:, line])
        for line, skipped in enumerate((1, 0, 1, 0))
    )
    if (lengths[2] > 1).any():
        good &= (lengths[2] == 1) | pc.equal(header, repeated).to_numpy(zero_copy_only=False)
    for piece, lowest, highest in ((header, 0, 127), (sequence, 33, 127), (quality, 33, 126)):
        values, bounds = content(piece)
        if len(values) and (values.min() < lowest or values.max() > highest):
            strange = np.flatnonzero((values < lowest) | (values > highest))
            good[np.searchsorted(bounds, strange, side="right") - 1] = False
    return good, [header, sequence, quality]


def _record(lines: list[bytes], place: int, at_end: bool) -> _Record | _Broken | None:
    """The record whose first line is at `place`, read as Biopython reads it; None where more lines are needed."""
    if not lines[place].startswith(b"@"):
        return _Broken("its first line does not begin with '@'")
    header = lines[place][1:].rstrip(_BLANK)
    sequence, after = _until_plus(lines, place + 1)
    if after == len(lines):
        return _Broken("the file ends before its '+' line") if at_end else None
    if lines[after].startswith(b"@"):
        return _Broken("a line that begins with '@' stands before its '+' line")
    repeated = lines[after][1:].rstrip(_BLANK)
    if repeated and repeated != header:
        return _Broken(f"its '+' line repeats another title: {repeated[:60].decode(errors='replace')!r}")
    if b" " in sequence or b"\t" in sequence:
        return _Broken("its sequence holds a blank")
    pieces, length, first = [], 0, after + 1
    after = first
    known: int | None = None
    while after < len(lines) and not (lines[after].startswith(b"@") and length >= len(sequence)):
        if known is None and after > first and lines[after].startswith(b"@"):
            # It is taken for more quality because there is too little as yet: if that proves wrong, it was a header.
            known = length
        pieces.append(lines[after].rstrip(_BLANK))
        length += len(pieces[-1])
        after += 1
        if length > len(sequence):
            return _Broken(
                f"its quality has {length if known is None else known} characters, its sequence {len(sequence)}"
            )
    if after == len(lines):
        if not at_end:
            return None
        if length < len(sequence) or after == first:
            return _Broken(f"the file ends after {length} of {len(sequence)} characters of its quality")
    quality = b"".join(pieces)
    if strange := quality.translate(None, _QUALITY):
        return _Broken(f"its quality holds {strange[:1]!r}, which is outside ASCII 33 to 126")
    return _Record(header, sequence, quality, after)


def _until_plus(lines: list[bytes], place: int) -> tuple[bytes, int]:
    """The sequence that begins at a line, and the line after it: the first that begins with '+' or '@', or the end."""
    first = place
    while place < len(lines) and lines[place][:1] not in (b"+", b"@"):
        place += 1
    return b"".join(line.rstrip(_BLANK) for line in lines[first:place]), place


def _certain(lines: list[bytes], place: int, at_end: bool) -> bool | None:
    """Whether the line at `place` can be nothing but the first of a record; None where more lines are needed.

    A line of a wrapped quality that begins with `@` fails: the line three below would have to be of one length with the
    one below it, the line between a lone '+', and the one after them begin with `@` again, or end the file.
    """
    if not lines[place].startswith(b"@"):
        return False
    after = place + 4
    while after < len(lines) and not lines[after].strip():
        after += 1
    if after >= len(lines) and not at_end:
        return None
    if place + 4 > len(lines) or (after < len(lines) and not lines[after].startswith(b"@")):
        return False
    header, sequence, plus, quality = (line.rstrip(_BLANK) for line in lines[place : place + 4])
    return (
        len(header) > 1
        and _LETTERS.fullmatch(sequence) is not None
        and plus in (b"+", b"+" + header[1:])
        and len(quality) == len(sequence)
        and not quality.translate(None, _QUALITY)
    )


def _possible_starts(lines: list[bytes], first: int, end: int) -> list[int]:
    """`first`, and the lines after it that begin with `@` and are not the first line of a quality."""
    after = range(first + 1, end)
    return [first, *(p for p in after if lines[p].startswith(b"@") and not lines[p - 1].startswith(b"+"))]
