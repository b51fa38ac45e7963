"""What every reader gives: stretches of a file as string columns, and the records that could not be read."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BLOCK_BYTES = 4 << 20
"""Bytes of text that a reader takes up at a time, few enough to stay in a processor's cache; a longer record is read
whole."""

BLOCK_RECORDS = 32_768
"""The most records, damaged ones included, of one stretch."""

LONGEST_COLUMN = 2**31 - 1
"""Bytes that an Arrow string column holds at most."""

DAMAGED = pa.schema(
    [
        pa.field("record", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""One record that could not be read: its number from 0 within the file, the byte at which it starts in the decompressed
content (-1 where a format has none), and why."""


@dataclass(frozen=True)
class Records:
    """One stretch of a file.

    The same content gives the same stretches in every process and at every retry, however it is stored or compressed.
    """

    numbers: npt.NDArray[np.int64]
    """[rows] number of each record in `columns`, ascending; counted from 0 over good and damaged records."""
    columns: pa.Table
    """[rows] string columns, named as the format defines them; an absent value is null."""
    damaged: pa.Table
    """Schema DAMAGED: the records of this stretch that could not be read."""


@dataclass(frozen=True)
class Damage:
    """One row of DAMAGED."""

    record: int
    offset: int
    reason: str


def damaged_table(rows: list[Damage]) -> pa.Table:
    """Rows as a table of schema DAMAGED."""
    return pa.Table.from_pydict(
        {
            "record": [row.record for row in rows],
            "offset": [row.offset for row in rows],
            "reason": [row.reason for row in rows],
        },
        schema=DAMAGED,
    )


def stretches(first: int, columns: pa.Table, damaged: list[Damage]) -> Iterator[Records]:
    """Cut the records of one block into stretches of at most BLOCK_RECORDS.

    Args:
        first: number of the block's first record, good or damaged.
        columns: [good] records in their order.
        damaged: the block's other records, ascending; their numbers lie among those of the good ones.
    """
    total = columns.num_rows + len(damaged)
    good = np.ones(total, bool)
    good[[row.record - first for row in damaged]] = False
    numbers = first + np.flatnonzero(good).astype(np.int64)
    for start in range(first, first + total, BLOCK_RECORDS):
        low, high = np.searchsorted(numbers, (start, start + BLOCK_RECORDS))
        yield Records(
            numbers=numbers[low:high],
            columns=columns.slice(low, high - low),
            damaged=damaged_table([row for row in damaged if start <= row.record < start + BLOCK_RECORDS]),
        )


def gather(block: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> pa.Array:
    """Cut pieces out of a block, large_binary [pieces], their bytes one after the other without gaps.

    Args:
        starts: [pieces] first byte of each; pieces are ascending and do not overlap.
        ends: [pieces] the byte after each.
    """
    # Pieces and what lies between them alternate as elements of one array over the block; every second one is taken.
    bounds = np.zeros(2 * len(starts) + 1, np.int64)
    bounds[:-1:2], bounds[1::2] = starts, ends
    bounds[-1] = bounds[-2] if len(starts) else 0
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(block)]
    alternating = pa.Array.from_buffers(pa.large_binary(), 2 * len(starts), buffers)
    return alternating.take(pa.array(np.arange(0, 2 * len(starts), 2)))


def content(pieces: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes [n] of what `gather` gave, and where its pieces start and end in them [pieces + 1]."""
    _, offsets, values = pieces.buffers()
    data = np.frombuffer(values, np.uint8) if values is not None else np.zeros(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int64)[: len(pieces) + 1]
    return data[: bounds[-1]], bounds


def as_text(pieces: pa.Array) -> pa.Array:
    """large_binary as string; as large_string where one column of the block is longer than a string column can be.

    Raises:
        pyarrow.ArrowInvalid: it is not UTF-8.
    """
    _, bounds = content(pieces)
    return pieces.cast(pa.string() if bounds[-1] <= LONGEST_COLUMN else pa.large_string())
