"""Plan on lengths, then pack: best-fit-decreasing rows, and token documents gathered into them (design, step 6)."""

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polysome.data.schema import IGNORED, packed

Lengths = npt.NDArray[np.int64]


def plan(lengths: Lengths, capacity: int) -> list[list[int]]:
    """Best-fit-decreasing: which documents share a row.

    Each document, longest first, goes to the open row with the least room that still takes it. Rooms are found by bit
    arithmetic on the set of distinct free sizes, so a document costs constant time for rows of up to a few thousand
    positions. Documents of equal length keep their order.

    Args:
        lengths: int64 [documents], each in 1..capacity.
        capacity: positions in a row.

    Returns:
        Document indices per row.
    """
    if len(lengths) and (lengths.min() < 1 or lengths.max() > capacity):
        raise ValueError(f"document lengths must lie in 1..{capacity}")
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = defaultdict(list)
    open_rooms = 0  # bit r is set when some row has exactly r free positions
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        fitting = open_rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                open_rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(document)
        left = room - length
        if left:
            by_room[left].append(row)
            open_rooms |= 1 << left
    return rows


def pack(documents: pa.Table, max_length: int, pad_id: int) -> pa.Table:
    """Pack token documents (schema TOKENS) into rows of `max_length` (schema `packed(max_length)`)."""
    ids_column = documents["input_ids"].combine_chunks()
    values = ids_column.flatten().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(ids_column.value_lengths().to_numpy())]).astype(np.int64)
    target_starts = documents["target_start"].to_numpy()
    rows = plan(np.diff(offsets), max_length)

    shape = (len(rows), max_length)
    input_ids = np.full(shape, pad_id, np.int32)
    labels = np.full(shape, IGNORED, np.int32)
    position_ids = np.zeros(shape, np.int32)
    segment_ids = np.zeros(shape, np.int32)
    tokens = np.zeros(len(rows), np.int32)
    for row, members in enumerate(rows):
        start = 0
        for segment, document in enumerate(members, 1):
            ids = values[offsets[document] : offsets[document + 1]]
            end = start + len(ids)
            input_ids[row, start:end] = ids
            first_target = max(1, int(target_starts[document]))
            labels[row, start + first_target : end] = ids[first_target:]
            position_ids[row, start:end] = np.arange(len(ids), dtype=np.int32)
            segment_ids[row, start:end] = segment
            start = end
        tokens[row] = start

    def fixed(matrix: npt.NDArray[np.int32]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), max_length)

    columns = [fixed(matrix) for matrix in (input_ids, labels, position_ids, segment_ids)]
    counts = [
        np.array([len(members) for members in rows], np.int32),
        tokens,
        (labels != IGNORED).sum(1, dtype=np.int32),
    ]
    return pa.Table.from_arrays(columns + [pa.array(count) for count in counts], schema=packed(max_length))
