"""Edit distances of many pairs of sequences at once, within a band around a given diagonal.

The bit-parallel recurrence of Myers (1999) in the form that follows a diagonal (Hyyrö 2003): one 64-bit word holds the
vertical differences of a pair's 64 rows around its diagonal, numpy advances a column of all pairs together. The price
of the band: a pair whose best alignment leaves it gets a distance that is too large, never one that is too small.
"""

import numpy as np
import numpy.typing as npt

from polysome.data.hashing import Text

HALF_BAND = 32
"""How many letters may be inserted or removed in a row before an alignment leaves the band."""

_PAIRS_AT_ONCE = 1 << 14
_COLUMNS_BETWEEN_CHECKS = 16
_ONE = np.uint64(1)
_BITS = np.uint64(63)


class Aligner:
    """Answers for one text; making it costs one pass over the text per letter that stands in it."""

    def __init__(self, text: Text) -> None:
        present = np.flatnonzero(np.bincount(text.data[: text.size], minlength=256))
        codes = np.zeros(256, np.uint8)
        codes[present] = np.arange(len(present))
        self._codes = np.frombuffer(text.data.tobytes().translate(codes.tobytes()), np.uint8)
        # One plane of bits per letter, with a word before and two words after the text.
        planes = [self._plane(text.data[: text.size] == letter) for letter in present]
        self._stride = len(planes[0]) if planes else 0
        joined = np.concatenate([*planes, np.zeros(16, np.uint8)])
        self._words = np.ndarray((len(joined) - 7,), "<u8", joined.data, strides=(1,))

    def distances(
        self,
        first: npt.NDArray[np.int64],
        second: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        limits: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        """int64 [pairs]: edits that turn one stretch into the other, `limit` + 1 when there are more than that.

        Args:
            first, second: int64 [pairs], where the two stretches of each pair start in the text.
            lengths: int64 [pairs], letters of both stretches.
            limits: int64 [pairs], edits beyond which the number does not matter.
        """
        found = np.empty(len(first), np.int64)
        order = np.argsort(-lengths, kind="stable")
        for start in range(0, len(order), _PAIRS_AT_ONCE):
            pairs = order[start : start + _PAIRS_AT_ONCE]
            found[pairs] = self._together(first[pairs], second[pairs], lengths[pairs], limits[pairs])
        return found

    def _together(
        self,
        first: npt.NDArray[np.int64],
        second: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        limits: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int64]:
        """Pairs with descending lengths."""
        found = limits + 1
        live = np.arange(len(first))
        distance = np.zeros(len(first), np.int64)
        positive = np.full(len(first), ~np.uint64(0) << np.uint64(HALF_BAND))
        negative = np.zeros(len(first), np.uint64)
        for column in range(int(lengths.max(initial=0)) + 1):
            ended = int(np.searchsorted(-lengths[live], -column, side="left"))
            if ended < len(live):
                found[live[ended:]] = distance[ended:]
            keep: slice | npt.NDArray[np.bool_] = slice(ended)
            if column % _COLUMNS_BETWEEN_CHECKS == 0:
                keep = np.arange(len(live)) < ended
                keep &= distance <= limits[live]
            if ended < len(live) or column % _COLUMNS_BETWEEN_CHECKS == 0:
                live, distance, positive, negative = live[keep], distance[keep], positive[keep], negative[keep]
            if not len(live):
                break
            match = self._matches(self._codes[second[live] + column], first[live] + column, column)
            # Set where the value is that of the cell diagonally before, i.e. where nothing is added on the diagonal.
            equal = (((match & positive) + positive) ^ positive) | match | negative
            right = negative | ~(equal | positive)
            left = equal & positive
            distance += ((equal >> np.uint64(HALF_BAND)) & _ONE) == 0
            # The band moves one row down with every column.
            moved = equal >> _ONE
            positive = left | ~(moved | right)
            negative = moved & right
        return np.minimum(found, limits + 1)

    def _matches(
        self, letters: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], column: int
    ) -> npt.NDArray[np.uint64]:
        """64 bits per pair: which of the letters around a row equal the column's letter; none before the stretch."""
        bit = rows + (64 - HALF_BAND)
        byte = letters.astype(np.int64) * self._stride + (bit >> 3)
        shift = (bit & 7).astype(np.uint64)
        bits = (self._words[byte] >> shift) | ((self._words[byte + 8] << _ONE) << (_BITS - shift))
        return bits if column >= HALF_BAND else bits & (~np.uint64(0) << np.uint64(HALF_BAND - column))

    @staticmethod
    def _plane(equal: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        return np.concatenate([np.zeros(8, np.uint8), np.packbits(equal, bitorder="little"), np.zeros(17, np.uint8)])
