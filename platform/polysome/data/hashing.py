"""Byte views and 64-bit hashes of string columns: whole columns at a time, the same on every machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

PADDING = 16
"""Zero bytes after the last row, so that eight bytes can be read from any position."""

StringColumn: TypeAlias = pa.Array | pa.ChunkedArray
"""string or large_string."""
ListColumn: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[Sequence[str]]
"""list<string>, one list of molecules per example; plain lists are converted."""
Hashes = npt.NDArray[np.uint64]

_BLOCK_WORDS = 1 << 21
_BLOCK_LETTERS = 1 << 22
_COMPLEMENT = bytes.maketrans(b"ACGTURYSWKMBDHVN", b"TGCAAYRSWMKVHDBN")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Text:
    """A string column as bytes; nulls are empty.

    Attributes:
        data: uint8 [bytes + PADDING], zeros at the end.
        offsets: int64 [rows + 1], where each row starts; the last one is the end.
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    @property
    def size(self) -> int:
        """Number of bytes of all rows."""
        return len(self.data) - PADDING

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 [rows], bytes of each row."""
        return np.diff(self.offsets)

    @property
    def words(self) -> Hashes:
        """uint64 [bytes + PADDING - 7]: the eight bytes from each position on, little endian; a view."""
        return np.ndarray((len(self.data) - 7,), "<u8", self.data.data, strides=(1,))

    def rows_of(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The row that holds each position."""
        return np.searchsorted(self.offsets, positions, side="right") - 1

    def string(self, row: int) -> str:
        """One row."""
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes().decode()

    def translated(self, table: bytes) -> "Text":
        """Every byte replaced by the one that the table of 256 holds for it; the table must keep zero."""
        return Text(np.frombuffer(self.data.tobytes().translate(table), np.uint8), self.offsets)

    def reverse_complement(self) -> "Text":
        """The other strand of all rows, U read as T, **rows in reversed order**."""
        total = self.offsets[-1]
        data = np.zeros(len(self.data), np.uint8)
        data[:total] = np.frombuffer(self.data[:total].tobytes().translate(_COMPLEMENT), np.uint8)[::-1]
        return Text(data, total - self.offsets[::-1])

    def take(self, rows: npt.NDArray[np.int64]) -> "Text":
        """The rows in the given order."""
        lengths = self.lengths[rows]
        offsets = bounds(lengths)
        data = np.zeros(offsets[-1] + PADDING, np.uint8)
        for first, last in blocks(offsets, _BLOCK_LETTERS):
            start, stop = offsets[first], offsets[last]
            shift = np.repeat(self.offsets[rows[first:last]] - offsets[first:last], lengths[first:last])
            data[start:stop] = self.data[np.arange(start, stop) + shift]
        return Text(data, offsets)


def text_of(column: StringColumn) -> Text:
    """The bytes of a string column."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    views = [_view(chunk) for chunk in chunks]
    lengths = [np.diff(offsets) for _, offsets in views]
    offsets = bounds(np.concatenate([*lengths, np.zeros(0, np.int64)]))
    data = np.zeros(offsets[-1] + PADDING, np.uint8)
    np.concatenate([np.zeros(0, np.uint8), *(data for data, _ in views)], out=data[: offsets[-1]])
    return Text(data, offsets)


def list_text_of(column: ListColumn) -> tuple[Text, npt.NDArray[np.int64]]:
    """The strings of a list column one after the other, and int64 [examples + 1]: where each example's start."""
    if not isinstance(column, pa.Array | pa.ChunkedArray):
        column = pa.array(column, pa.list_(pa.string()))
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    strings = pa.chunked_array([chunk.flatten() for chunk in chunks], column.type.value_type)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return text_of(strings), bounds(lengths)


def bounds(lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """int64 [n + 1]: where stretches of these lengths start when laid one after the other, and the end."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def within(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """int64 [sum]: 0, 1, … within each stretch."""
    offsets = bounds(lengths)
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)


def blocks(offsets: npt.NDArray[np.int64], size: int) -> list[tuple[int, int]]:
    """First and last row of stretches of about `size` elements, so that what is computed beside them stays small."""
    cuts = np.searchsorted(offsets, np.arange(size, max(offsets[-1], 1), size))
    edges = np.unique(np.concatenate([[0], cuts, [len(offsets) - 1]]))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def hash_strings(text: Text, *, salt: int = 0) -> Hashes:
    """uint64 [rows]: hash of each row's bytes; another `salt` gives an independent one.

    A sum of mixed eight-byte words, each with the key of its place, and the length.
    """
    words = text.words
    lengths = text.lengths
    counts = (lengths + 7) >> 3
    hashes = np.empty(text.rows, np.uint64)
    for first, last in blocks(bounds(counts), _BLOCK_WORDS):
        count = counts[first:last]
        place = within(count)
        taken = words[np.repeat(text.offsets[first:last], count) + 8 * place]
        rest = np.repeat(lengths[first:last], count) - 8 * place
        short = np.flatnonzero(rest < 8)
        taken[short] &= (np.uint64(1) << (8 * rest[short]).astype(np.uint64)) - np.uint64(1)
        hashes[first:last] = _folded(taken, place, count, lengths[first:last], salt)
    return hashes


def both_strand_hashes(text: Text, dna: npt.NDArray[np.bool_], *, salt: int = 0) -> Hashes:
    """uint64 [rows]: as `hash_strings`, but the same for the two strands of the rows where `dna` is true."""
    hashes = hash_strings(text, salt=salt)
    if dna.all():
        return np.minimum(hashes, hash_strings(text.reverse_complement(), salt=salt)[::-1])
    rows = np.flatnonzero(dna)
    other = hash_strings(text.take(rows).reverse_complement(), salt=salt)[::-1]
    hashes[rows] = np.minimum(hashes[rows], other)
    return hashes


def combine(hashes: Hashes, offsets: npt.NDArray[np.int64], *, salt: int = 0) -> Hashes:
    """uint64 [examples]: one hash of each example's hashes, in their order.

    Args:
        hashes: uint64 [strings].
        offsets: int64 [examples + 1], where each example's strings start.
    """
    counts = np.diff(offsets)
    return _folded(hashes, within(counts), counts, counts, salt)


def is_nucleotide(text: Text) -> npt.NDArray[np.bool_]:
    """bool [rows]: only IUPAC codes of bases, at least nine in ten of them A C G T U N. Empty rows are none."""
    table = np.full(256, 2, np.uint8)
    table[np.frombuffer(b"RYSWKMBDHV", np.uint8)] = 1
    table[np.frombuffer(b"ACGTUN", np.uint8)] = 0
    kinds = text.translated(b"\0" + table.tobytes()[1:]).data
    found = np.zeros(text.rows, np.bool_)
    filled = np.flatnonzero(text.lengths)
    starts = text.offsets[filled]
    if len(filled):
        rare = np.add.reduceat(kinds[: text.size], starts, dtype=np.int64)
        found[filled] = (np.maximum.reduceat(kinds[: text.size], starts) < 2) & (rare * 10 <= text.lengths[filled])
    return found


def mix(values: Hashes) -> Hashes:
    """uint64 of the same shape: a one-to-one scrambling of all bits (splitmix64; Steele, Lea & Flood 2014)."""
    values = values + _GOLDEN
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _folded(
    words: Hashes,
    place: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    salt: int,
) -> Hashes:
    keys = mix(np.arange(salt << 40, (salt << 40) + (int(counts.max(initial=0)) or 1)).astype(np.uint64))
    mixed = mix(words ^ keys[place])
    sums = np.zeros(len(counts), np.uint64)
    filled = np.flatnonzero(counts)
    if len(filled):
        sums[filled] = np.add.reduceat(mixed, bounds(counts)[:-1][filled])
    return mix(sums ^ mix(lengths.astype(np.uint64) ^ keys[:1]))


def _view(chunk: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes of a chunk and int64 [rows + 1] within them, without a copy of the bytes."""
    if chunk.null_count:
        chunk = pc.fill_null(chunk, "")
    if not len(chunk):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offset_buffer, data_buffer = chunk.buffers()
    kind = np.int64 if chunk.type == pa.large_string() else np.int32
    offsets = np.frombuffer(offset_buffer, kind)[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]
