"""Separated values (CSV, TSV, any delimiter): text cells as they stand, a block of whole records at a time."""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Generator, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv

from polysome.config import ConfigurationError, DataError
from polysome.data.readers.lines import Source, is_utf8, whole_lines
from polysome.data.readers.records import BLOCK_BYTES, BLOCK_RECORDS, Damage, Records, stretches
from polysome.data.readers.stream import Stream
from polysome.specs.formats import CsvFormat

LONGEST_QUOTED = 16 << 20
"""Bytes after which a quote that is still open is taken for one that nobody closes."""


def read(stream: Stream, format: CsvFormat, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Records]:
    """Every record with its cells as text: nothing is trimmed, guessed or taken for null; "" is an empty cell.

    The first column may be without a name, as that of row numbers is where a data frame was written; it is read as "".
    Lines end at LF, CR LF or CR; quoted cells may hold line ends; blank lines are no records. Where a blank separates,
    a record is one line, blanks are spaces and tabs, and those around the line do not count.

    A record is damaged that has another count of cells than there are columns, bytes outside the encoding, text after
    a closing quote, or a quote that is not closed. After a damaged quote, reading goes on at the next line, so that a
    stray quote costs one line. Offsets are those of the record in the decompressed content; -1 in other encodings than
    UTF-8.

    Raises:
        DataError: there is no header, one of its other names is empty or stands twice, or the content is not in the
            encoding.
        ConfigurationError: the encoding is unknown, or delimiter and quote cannot be told apart.
    """
    # Python's limit on a cell is the process's, and its default would refuse a gene.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    parser = _Parser(format, stream.url)
    source = stream if parser.in_utf8 else _Recoded(stream, format.encoding)
    offset, content = 0, b""
    for start, block in whole_lines(source, block_bytes, carriage_returns=True):
        # What the parser left is the beginning of a record that goes on in this block.
        offset, content = (offset, content + block) if content else (start, block)
        used = yield from parser.parse(offset, content, last=False)
        offset, content = offset + used, content[used:]
    yield from parser.parse(offset, content, last=True)
    parser.require_header()


class _Parser:
    """The state of one file: lines still to be skipped, the columns, and the number of the next record."""

    def __init__(self, format: CsvFormat, url: str) -> None:
        self._format, self._url = format, url
        self._skip, self._number = format.skip_lines, 0
        self._names: list[str] | None = None
        try:
            self.in_utf8 = codecs.lookup(format.encoding).name in ("utf-8", "utf-8-sig")
        except LookupError as error:
            raise ConfigurationError(
                f"unknown encoding {format.encoding!r}",
                where=url,
                fix="name one that Python knows, e.g. utf-8 or cp1252",
            ) from error
        if format.delimiter == format.quote or format.delimiter in "\r\n":
            raise ConfigurationError(
                f"{format.delimiter!r} cannot separate the cells",
                where=url,
                fix="mend format.delimiter or format.quote",
            )
        if format.columns is not None:
            self._names = self._checked(format.columns, "the spec")

    def parse(self, offset: int, content: bytes, *, last: bool) -> Generator[Records, None, int]:
        """The records of `content`; returns how many of its bytes were used, all of them unless a record goes on."""
        used = 0
        while self._skip and used < len(content):
            used = _next_line(content, used)
            self._skip -= 1
        if self._names is None and used < len(content):
            used += self._read_header(content[used:], last)
        if self._names is None or used == len(content):
            return used
        rest = content[used:]
        columns = self._plain(rest, self._names)
        if columns is None:
            return used + (yield from self._careful(offset + used, rest, self._names, last))
        yield from stretches(self._number, columns, [])
        self._number += columns.num_rows
        return len(content)

    def require_header(self) -> None:
        """DataError when the file ended before its header."""
        if self._names is None:
            raise DataError("there is no header line", where=self._url, fix="the file is cut short: fetch it again")

    def _read_header(self, content: bytes, last: bool) -> int:
        """Take the names from the first record; returns the bytes used, only blank lines' while it is not whole."""
        lines = _Lines(content, self._format, last)
        for record in lines.records():
            problem = record.problem or (
                "" if _is_text(record.cells) else f"bytes that are not {self._format.encoding}"
            )
            if problem:
                raise DataError(
                    f"the header cannot be read: {problem}",
                    where=self._url,
                    fix="check delimiter, quote and encoding of the format, and that this is the right file",
                )
            self._names = self._checked(record.cells, "the header")
            return lines.byte_of(record.end)
        return lines.byte_of(lines.used)

    def _checked(self, names: list[str], where: str) -> list[str]:
        fix = "name the columns in format.columns of the spec, and skip the header with format.skip_lines"
        for position, name in enumerate(names):
            if not name and position:
                what = f"column {position + 1} of {len(names)} has no name in {where}"
                raise DataError(what, where=self._url, fix=fix)
            if name in names[:position]:
                raise DataError(f"{where} names {name!r} twice", where=self._url, fix=fix)
        return names

    def _plain(self, content: bytes, names: list[str]) -> pa.Table | None:
        """The columns of content in which nothing needs care, by Arrow: several times as fast. None where something
        does."""
        delimiter, quote = self._format.delimiter, self._format.quote
        if delimiter == " " or not (delimiter + quote).isascii() or content.startswith(codecs.BOM_UTF8):
            return None
        if quote and quote.encode() in content:
            return None
        try:
            return pa.csv.read_csv(
                pa.BufferReader(content),
                pa.csv.ReadOptions(column_names=names, use_threads=False, block_size=len(content)),
                pa.csv.ParseOptions(delimiter=delimiter, quote_char=False, double_quote=False),
                pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
            )
        except pa.ArrowInvalid:
            # A wrong count of cells, undecodable bytes, or blank lines only: told apart by the careful way.
            return None

    def _careful(self, offset: int, content: bytes, names: list[str], last: bool) -> Generator[Records, None, int]:
        lines = _Lines(content, self._format, last)
        decodable = is_utf8(content)
        first, rows, damaged = self._number, [], []
        for record in lines.records():
            problem = record.problem
            if not problem and len(record.cells) != len(names):
                problem = f"{len(record.cells)} cells where there are {len(names)} columns"
            elif not problem and not decodable and not _is_text(record.cells):
                problem = f"bytes that are not {self._format.encoding}"
            if problem:
                place = offset + lines.byte_of(record.start) if self.in_utf8 else -1
                damaged.append(Damage(self._number, place, problem))
            else:
                rows.append(record.cells)
            self._number += 1
            if self._number - first == BLOCK_RECORDS:
                yield from stretches(first, _table(names, rows), damaged)
                first, rows, damaged = self._number, [], []
        yield from stretches(first, _table(names, rows), damaged)
        return lines.byte_of(lines.used)


class _Record(NamedTuple):
    """Lines `start` to `end` (exclusive), their cells, and what is wrong with them ("": nothing)."""

    start: int
    end: int
    cells: list[str]
    problem: str


class _Lines:
    """The lines of a block, with their ends; undecodable bytes stand as surrogates."""

    def __init__(self, content: bytes, format: CsvFormat, last: bool) -> None:
        self._lines = list(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""))
        self._format, self._last = format, last
        self._ascii = content.isascii()
        self._line = self._byte = 0
        self.used = 0
        """Lines that the records so far, and the blank lines around them, took."""

    def byte_of(self, line: int) -> int:
        """Where a line begins, in bytes; to be asked for rising lines."""
        for text in itertools.islice(self._lines, self._line, line):
            self._byte += len(text) if self._ascii else len(text.encode("utf-8", "surrogateescape"))
        self._line = line
        return self._byte

    def records(self) -> Iterator[_Record]:
        """Each record; one that is still open at the end is left for later, unless this is the last block."""
        return self._blank_separated() if self._format.delimiter == " " else self._separated()

    def _separated(self) -> Iterator[_Record]:
        delimiter, quote = self._format.delimiter, self._format.quote
        while self.used < len(self._lines):
            base, ended = self.used, _End()
            following = itertools.chain(map(self._lines.__getitem__, range(base, len(self._lines))), ended)
            if quote:
                reader = csv.reader(following, delimiter=delimiter, quotechar=quote, strict=True)
            else:
                reader = csv.reader(following, delimiter=delimiter, quoting=csv.QUOTE_NONE)
            try:
                for cells in reader:
                    start, self.used = self.used, base + reader.line_num
                    if cells:
                        yield _Record(start, self.used, cells, "")
            except csv.Error as error:
                if ended.reached and not self._last and sum(map(len, self._lines[self.used :])) <= LONGEST_QUOTED:
                    return
                self.used += 1
                problem = "a quote that is not closed" if ended.reached else str(error)
                yield _Record(self.used - 1, self.used, [], problem)

    def _blank_separated(self) -> Iterator[_Record]:
        quote = self._format.quote
        quoted = re.compile("{0}((?:[^{0}]|{0}{0})*){0}(?![^ \t])|([^ \t{0}][^ \t]*)".format(re.escape(quote or '"')))
        for line in self._lines:
            self.used += 1
            text = line.strip(" \t\r\n")
            if not text:
                continue
            if not quote or quote not in text:
                yield _Record(self.used - 1, self.used, _BLANKS.split(text), "")
                continue
            cells, at = [], 0
            while at < len(text) and (cell := quoted.match(text, at)):
                cells.append(cell[2] if cell[1] is None else cell[1].replace(quote * 2, quote))
                at = len(text) - len(text[cell.end() :].lstrip(" \t"))
            problem = "" if at == len(text) else f"a quote at character {at + 1} that is not closed before a blank"
            yield _Record(self.used - 1, self.used, cells, problem)


class _End(Iterator[str]):
    """An end of lines that knows whether it was come to: within a record, that is a quote that was not closed."""

    reached = False

    def __next__(self) -> str:
        self.reached = True
        raise StopIteration


class _Recoded:
    """Text in another encoding as UTF-8; what cannot be decoded becomes bytes that are no UTF-8 either."""

    def __init__(self, stream: Source, encoding: str) -> None:
        self.url = stream.url
        self._stream, self._encoding = stream, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")

    def read(self, size: int, /) -> bytes:
        """The next bytes, none only at the end."""
        text, ended = "", False
        while not text and not ended:
            piece = self._stream.read(size)
            ended = not piece
            try:
                text = self._decoder.decode(piece, final=ended)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"the content is not {self._encoding}: {error.reason}", where=self.url, fix="check format.encoding"
                ) from error
        return text.encode("utf-8", "surrogatepass")


_BLANKS = re.compile("[ \t]+")
_LINE_END = re.compile(rb"\r\n|\r|\n")


def _next_line(content: bytes, start: int) -> int:
    end = _LINE_END.search(content, start)
    return end.end() if end else len(content)


def _is_text(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _table(names: list[str], rows: list[list[str]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    return pa.table([pa.array(column, pa.string()) for column in columns], names=names)
