"""Packed rows: written to and read from Parquet compactly, and expanded to padded matrices where they are consumed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polysome.data.schema import IGNORED, PACKED

Elements = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]

_ROW_GROUP_TOKENS = 1 << 22
# zstd looks at 128 KiB at a time; in large pages few such blocks hold bytes of two planes.
_PAGE_BYTES = 1 << 22
_PLANE = "input_ids.byte"


@dataclass(frozen=True)
class Rows:
    """Packed rows, padded.

    Attributes:
        input_ids: int32 [rows, max_length].
        labels: int32 [rows, max_length], aligned with `input_ids` (the model shifts), `IGNORED` where not trained on; a
            document's first token is never a target, because it would be predicted from the document before.
        position_ids: int32 [rows, max_length], restarting at 0 in each document; 0 in padding.
        segment_ids: int32 [rows, max_length], counting the documents of a row from 1; 0 is padding.
        tokens, targets: int64 [rows], positions that are not padding, and that are trained on.
    """

    input_ids: Elements
    labels: Elements
    position_ids: Elements
    segment_ids: Elements
    tokens: Counts
    targets: Counts

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Documents:
    """Token documents laid end to end.

    Attributes:
        input_ids: int32 [tokens].
        lengths, target_starts: int32 [documents]; the loss is on a document's ids from its target start on.
    """

    input_ids: Elements
    lengths: Elements
    target_starts: Elements


def as_documents(rows: pa.Table) -> Documents:
    """The documents of `rows` (schema PACKED), in order."""
    return Documents(*(_elements(rows[name]) for name in ("input_ids", "lengths", "target_starts")))


def one_per_row(documents: pa.Table) -> pa.Table:
    """Rows (schema PACKED) of one document each, of `documents` (schema TOKENS); the tokens are not copied."""
    ids = documents["input_ids"].combine_chunks()
    lengths = ids.value_lengths().to_numpy().astype(np.int32)
    target_starts = documents["target_start"].to_numpy().astype(np.int32)
    bounds = pa.array(np.arange(len(lengths) + 1, dtype=np.int32))
    columns = [
        ids,
        pa.ListArray.from_arrays(bounds, pa.array(lengths)),
        pa.ListArray.from_arrays(bounds, pa.array(target_starts)),
        pa.array(lengths),
        pa.array(count_targets(lengths, target_starts).astype(np.int32)),
        pa.array(np.ones(len(lengths), np.int32)),
    ]
    return pa.Table.from_arrays(columns, schema=PACKED)


def expand(rows: pa.Table, max_length: int, pad_id: int) -> Rows:
    """The matrices of `rows` (schema PACKED), padded to `max_length` with `pad_id`.

    Raises:
        ValueError: a row is longer than `max_length`.
    """
    return lay_out(as_documents(rows), rows["documents"].to_numpy(), max_length, pad_id)


def lay_out(documents: Documents, counts: npt.NDArray[np.integer], max_length: int, pad_id: int) -> Rows:
    """The matrices of rows that hold `counts` [rows] of the documents each, padded to `max_length` with `pad_id`.

    Raises:
        ValueError: a row is longer than `max_length`.
    """
    input_ids, lengths, target_starts = documents.input_ids, documents.lengths, documents.target_starts
    ends = np.cumsum(counts, dtype=np.int64)
    tokens, targets = (
        np.diff(np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])[np.concatenate([[0], ends])])
        for sizes in (lengths, count_targets(lengths, target_starts))
    )
    if len(tokens) and tokens.max() > max_length:
        raise ValueError(f"a row of {tokens.max()} tokens does not fit into {max_length}")
    position_ids = np.arange(len(input_ids), dtype=np.int32) - np.repeat(_before(lengths), lengths)
    segments = np.arange(1, len(lengths) + 1, dtype=np.int32) - np.repeat(_before(counts), counts)
    trained = position_ids >= np.repeat(np.maximum(1, target_starts), lengths)
    real = np.arange(max_length) < tokens[:, None]

    def matrix(values: Elements, padding: int) -> Elements:
        filled = np.full(real.shape, padding, np.int32)
        filled[real] = values
        return filled

    return Rows(
        input_ids=matrix(input_ids, pad_id),
        labels=matrix(np.where(trained, input_ids, np.int32(IGNORED)), IGNORED),
        position_ids=matrix(position_ids, 0),
        segment_ids=matrix(np.repeat(segments, lengths), 0),
        tokens=tokens,
        targets=targets,
    )


def count_targets(lengths: npt.NDArray[np.integer], target_starts: npt.NDArray[np.integer]) -> Counts:
    """How many positions of each document are trained on, int64 [documents]; the first one never is."""
    return np.maximum(0, lengths - np.maximum(1, target_starts)).astype(np.int64)


def write_rows(rows: pa.Table, handle: IO[bytes]) -> None:
    """Write `rows` (schema PACKED) to `handle` as one Parquet file.

    Token ids stand in binary columns, one for each of their bytes that is used: `input_ids.byte0` holds the lowest byte
    of all tokens of the row, one byte a token. Parquet writes a list of integers element by element, with the nesting
    level of each; whole rows of bytes it copies, two to four times as fast in all (`benchmarks/data` has a table), and
    the upper bytes, which are all but constant, compress to nothing.
    """
    import pyarrow.parquet as pq

    counts = rows["tokens"].to_numpy()
    tokens = int(counts.sum(dtype=np.int64))
    ids = _elements(rows["input_ids"])
    offsets = pa.py_buffer(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
    planes = {}
    for number in range(max(1, (int(ids.max(initial=0)).bit_length() + 7) // 8)):
        content = pa.py_buffer((ids >> 8 * number).astype(np.uint8))
        planes[f"{_PLANE}{number}"] = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), rows.num_rows, [None, offsets, content]
        )
    others = rows.drop_columns("input_ids")
    pq.write_table(
        pa.table({**planes, **{name: others[name] for name in others.column_names}}),
        handle,
        row_group_size=max(1, _ROW_GROUP_TOKENS * rows.num_rows // max(1, tokens)),
        compression="zstd",
        compression_level=1,
        use_dictionary=["lengths.list.element", "target_starts.list.element", "tokens", "targets", "documents"],
        data_page_size=_PAGE_BYTES,
        write_statistics=False,
    )


def read_rows(source: pa.NativeFile | IO[bytes], *, batch_rows: int) -> Iterator[pa.Table]:
    """Tables (schema PACKED) of at most `batch_rows` rows of the Parquet file `source`, in the order of the file.

    Raises:
        KeyError: it has no token ids.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(source)
    planes = sorted(name for name in file.schema_arrow.names if name.startswith(_PLANE))
    if not planes:
        raise KeyError(f"no column {_PLANE}0")
    for batch in file.iter_batches(batch_size=batch_rows, use_threads=False):
        ids = np.zeros(0, np.int32)
        for number, name in enumerate(planes):
            plane = batch.column(name).cast(pa.large_binary())
            offsets = np.frombuffer(plane.buffers()[1], np.int64)[plane.offset : plane.offset + len(plane) + 1]
            content = plane.buffers()[2]
            found = np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]] if content else np.zeros(0, np.uint8)
            ids = found.astype(np.int32) if not number else ids | found.astype(np.int32) << 8 * number
        starts = pa.array((offsets - offsets[0]).astype(np.int32))
        columns = [pa.ListArray.from_arrays(starts, pa.array(ids)), *(batch.column(name) for name in PACKED.names[1:])]
        yield pa.Table.from_arrays(columns, names=PACKED.names).cast(PACKED)


def _elements(column: pa.ChunkedArray) -> Elements:
    """int32 [elements] of a list column's rows, one after the other."""
    parts = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int32), *parts])


def _before(sizes: npt.NDArray[np.integer]) -> Elements:
    """int32 [n]: what stands before each part, when parts of these sizes are laid end to end."""
    return (np.cumsum(sizes, dtype=np.int64) - sizes).astype(np.int32)
