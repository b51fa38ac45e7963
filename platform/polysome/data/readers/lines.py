"""Plain text, a record a line; and the cutting of any text into blocks of whole lines."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import pyarrow as pa

from polysome.config import DataError
from polysome.data.readers.records import BLOCK_BYTES, Damage, Records, stretches
from polysome.data.readers.stream import Stream
from polysome.specs.formats import LinesFormat

LONGEST_LINE = 1 << 30
"""Bytes of a line above which a file is taken for something else than text."""
_MARK = b"\xef\xbb\xbf"


class Source(Protocol):
    """What lines are read from: a stream, or one that is recoded."""

    url: str

    def read(self, size: int, /) -> bytes:
        """The next bytes, none only at the end."""


def read(stream: Stream, format: LinesFormat, *, block_bytes: int = BLOCK_BYTES) -> Iterator[Records]:
    """Every line as a record, column `line`, without its line end (LF or CR LF).

    An empty line is an empty record, so that parallel files keep step; a final line end ends the last line and opens no
    further one. A line that is not UTF-8 is a damaged record.

    Raises:
        DataError: a line is longer than `LONGEST_LINE`.
    """
    number = 0
    for offset, block in whole_lines(stream, block_bytes):
        lines = block.removesuffix(b"\n").split(b"\n")
        texts = [line.removesuffix(b"\r") for line in lines] if b"\r" in block else lines
        damaged: list[Damage] = []
        try:
            column = pa.array(texts, pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            readable = [is_utf8(text) for text in texts]
            starts = offset + np.cumsum([0, *(len(line) + 1 for line in lines)])
            damaged = [
                Damage(number + row, int(starts[row]), "bytes that are not UTF-8")
                for row, kept in enumerate(readable)
                if not kept
            ]
            column = pa.array([text.decode() for text, kept in zip(texts, readable, strict=True) if kept], pa.string())
        yield from stretches(number, pa.table({"line": column}), damaged)
        number += len(lines)


def whole_lines(source: Source, block_bytes: int, *, carriage_returns: bool = False) -> Iterator[tuple[int, bytes]]:
    """Byte offset and content of consecutive blocks of whole lines, each of about `block_bytes` or one longer line.

    Every block but the last ends with a line end: LF, or with `carriage_returns` also CR, never between CR and LF. A
    UTF-8 byte order mark at the start is left out; the first offset is then 3.

    Raises:
        DataError: a line is longer than `LONGEST_LINE`.
    """
    chunk = source.read(max(block_bytes, len(_MARK)))
    offset = len(_MARK) if chunk.startswith(_MARK) else 0
    chunk = chunk[offset:]
    parts: list[bytes] = []
    held = 0
    while chunk or (chunk := source.read(block_bytes)):
        cut = chunk.rfind(b"\n") + 1
        if carriage_returns:
            # A CR that ends the chunk may be half of a CR LF: it is judged with the next chunk.
            cut = max(cut, chunk.rfind(b"\r", 0, len(chunk) - 1) + 1)
        if cut or (carriage_returns and parts and parts[-1].endswith(b"\r")):
            block = b"".join([*parts, chunk[:cut]])
            yield offset, block
            offset += len(block)
            parts, held = [], 0
        if rest := chunk[cut:]:
            parts.append(rest)
            held += len(rest)
        if held > LONGEST_LINE:
            raise DataError(
                f"a line of more than {LONGEST_LINE} bytes",
                where=f"{source.url}, byte {offset}",
                fix="check that this is a text file of the declared format",
            )
        chunk = b""
    if parts:
        yield offset, b"".join(parts)


def is_utf8(content: bytes) -> bool:
    """Whether bytes are UTF-8 text."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
