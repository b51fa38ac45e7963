"""Plans on lengths: which documents share a row, before a single token is moved (design, step 6; A-91).

Best-fit-decreasing is all but free, and wastes little where lengths vary. Chats about molecules of a few sizes leave it
with gaps that no document fits; there rows are filled by search.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_GOOD = 0.995
"""Rows that are filled to this share are not searched for better ones."""
_SEARCHABLE = 1 << 23
"""Distinct lengths times positions in a row, up to which a search takes a fraction of a second."""


@dataclass(frozen=True)
class Plan:
    """Which documents share a row.

    Attributes:
        order: int64 [documents], document numbers row by row, the longest of a row first.
        row_starts: int64 [rows + 1], where each row begins in `order`; the last one is the number of documents.
    """

    order: Integers
    row_starts: Integers

    def __len__(self) -> int:
        return len(self.row_starts) - 1


def plan(lengths: Integers, capacity: int) -> Plan:
    """Exact best-fit-decreasing: each document, longest first, goes to the fullest row that still takes it.

    Documents of one length are placed together. The least room that takes them is found by bit arithmetic on the set
    of free sizes, and rows that were filled alike are carried as one range; so the work grows with the number of
    distinct lengths and not with the number of documents, which are dealt out to their rows at the end, all at once.

    Args:
        lengths: int64 [documents], each in 1..capacity.
        capacity: positions in a row.

    Raises:
        ValueError: a length lies outside 1..capacity.

    Example:
        >>> planned = plan(np.array([3, 7, 2, 8]), 10)
        >>> [part.tolist() for part in np.split(planned.order, planned.row_starts[1:-1])]
        [[3, 2], [1, 0]]
    """
    check(lengths, capacity)
    return _deal(lengths, capacity, *_best_fit_moves(lengths, capacity))


def plan_minimum_slack(lengths: Integers, capacity: int) -> Plan:
    """Fill row by row: the longest document that is left, and with it those that leave the least of its row empty.

    The minimum bin slack heuristic with the longest item fixed (Gupta and Ho 1999; Fleszar and Hindi 2002), on counts
    of equal lengths: the sums that a row can hold are found by shifting a set of bits, and a combination is used for as
    many rows as there are documents for it. Longer documents are tried first, because short ones are good for any gap.

    Args and errors as for `plan`; time grows with the number of combinations and with `capacity`.
    """
    check(lengths, capacity)
    counts = np.bincount(lengths, minlength=capacity + 1).tolist()
    left = [length for length in range(capacity, 0, -1) if counts[length]]
    rows = 0
    moves: list[_Move] = []
    while left:
        combination = _least_slack(left, counts, capacity)
        repeats = min(counts[length] // copies for length, copies in combination)
        before = 0
        for length, copies in combination:
            counts[length] -= copies * repeats
            moves.append(_Move(length, rows, copies * repeats, copies, before))
            before += copies
            if not counts[length]:
                left.remove(length)
        rows += repeats
    return _deal(lengths, capacity, sorted(moves, key=lambda move: -move.length), rows)


def plan_closest(lengths: Integers, capacity: int) -> Plan:
    """`plan`, or where it leaves more than 0.5 % empty and a search is affordable, the better one of the two plans."""
    found = plan(lengths, capacity)
    if len(found) <= math.ceil(lengths.sum() / (capacity * _GOOD)) or len(np.unique(lengths)) * capacity > _SEARCHABLE:
        return found
    searched = plan_minimum_slack(lengths, capacity)
    return searched if len(searched) < len(found) else found


def check(lengths: Integers, capacity: int) -> None:
    """ValueError when a length lies outside 1..capacity."""
    if len(lengths) and (lengths.min() < 1 or lengths.max() > capacity):
        raise ValueError(
            f"document lengths must lie in 1..{capacity}, and these lie in {lengths.min()}..{lengths.max()}"
        )


def starts(sizes: npt.NDArray[np.integer]) -> Integers:
    """int64 [n + 1]: where parts of these sizes begin, laid end to end, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


class _Move(NamedTuple):
    """Documents of one length placed together.

    `per_row` go into each of the rows `row`, `row` + 1, …, until all `documents` are placed, after the `before`
    documents that each of these rows holds.
    """

    length: int
    row: int
    documents: int
    per_row: int
    before: int


class _OpenRows:
    """Rows with free positions, by how many they have; ranges of rows that hold documents of the same lengths."""

    def __init__(self) -> None:
        self._by_room: dict[int, list[_Range]] = {}
        self._rooms = 0  # bit r is set when some row has exactly r free positions

    def take(self, length: int) -> "tuple[int, _Range] | None":
        """The least room that a document of `length` fits into, and a range of rows that have it."""
        fitting = self._rooms >> length
        if not fitting:
            return None
        room = length + (fitting & -fitting).bit_length() - 1
        ranges = self._by_room[room]
        found = ranges.pop()
        if not ranges:
            self._rooms ^= 1 << room
        return room, found

    def keep(self, room: int, rows: "_Range") -> None:
        """Put back a range of rows that have `room` free positions now."""
        if room:
            self._by_room.setdefault(room, []).append(rows)
            self._rooms |= 1 << room


class _Range(NamedTuple):
    first: int
    size: int
    documents: int  # in each of the rows


def _best_fit_moves(lengths: Integers, capacity: int) -> tuple[list[_Move], int]:
    """The moves that place all documents, in falling order of length, and how many rows they fill."""
    counts = np.bincount(lengths)
    distinct = np.flatnonzero(counts)[::-1]
    open_rows = _OpenRows()
    rows = 0
    moves: list[_Move] = []
    for length, waiting in zip(distinct.tolist(), counts[distinct].tolist(), strict=True):
        while waiting:
            found = open_rows.take(length)
            if found is None:
                new = -(-waiting // (capacity // length))
                found = capacity, _Range(rows, new, 0)
                rows += new
            room, (first, size, before) = found
            # The row that just took a document is the fullest that takes the next one, as long as it has the room.
            per_row = room // length
            complete = min(size, waiting // per_row)
            if complete:
                moves.append(_Move(length, first, complete * per_row, per_row, before))
                open_rows.keep(room - per_row * length, _Range(first, complete, before + per_row))
                waiting -= complete * per_row
                first, size = first + complete, size - complete
            if size and waiting:
                moves.append(_Move(length, first, waiting, waiting, before))
                open_rows.keep(room - waiting * length, _Range(first, 1, before + waiting))
                waiting = 0
                first, size = first + 1, size - 1
            if size:
                open_rows.keep(room, _Range(first, size, before))
    return moves, rows


def _least_slack(left: list[int], counts: list[int], capacity: int) -> list[tuple[int, int]]:
    """(length, copies) of the row's documents, falling; `left` are the lengths that are left, falling."""
    longest = left[0]
    room = capacity - longest
    mask = (1 << room + 1) - 1
    sums = 1  # bit s is set when some of the documents looked at add up to s
    steps: list[tuple[int, int]] = []
    for length in left:
        copies = min(counts[length] - (length == longest), room // length)
        if copies < 1:
            continue
        steps.append((length, sums))
        step = 1
        while copies:
            part = min(step, copies)
            sums |= (sums << length * part) & mask
            copies -= part
            step *= 2
        if sums >> room:
            break
    total = sums.bit_length() - 1
    found = {longest: 1}
    for length, before in reversed(steps):
        while not before >> total & 1:
            found[length] = found.get(length, 0) + 1
            total -= length
    return sorted(found.items(), reverse=True)


def _deal(lengths: Integers, capacity: int, moves: list[_Move], rows: int) -> Plan:
    """Give the places that the moves made, in falling order of length, their documents; equal ones keep their order."""
    _, first, documents, per_row, before = np.array(moves, np.int64).reshape(-1, len(_Move._fields)).T
    move = np.repeat(np.arange(len(moves)), documents)
    within = np.arange(len(lengths)) - starts(documents)[:-1][move]
    offset, turn = np.divmod(within, per_row[move])
    row = first[move] + offset
    row_starts = starts(np.bincount(row, minlength=rows))
    order = np.empty(len(lengths), np.int64)
    order[row_starts[row] + before[move] + turn] = _longest_first(lengths, capacity)
    return Plan(order, row_starts)


def _longest_first(lengths: Integers, capacity: int) -> Integers:
    """int64 [documents]: document numbers by falling length, stable."""
    free = capacity - lengths
    # Two digits, because numpy's stable sort is a radix sort, and several times as fast, for 16-bit integers alone.
    order = np.argsort((free & 0xFFFF).astype(np.uint16), kind="stable")
    if capacity > 0xFFFF:
        order = order[np.argsort((free >> 16).astype(np.uint16)[order], kind="stable")]
    return order
