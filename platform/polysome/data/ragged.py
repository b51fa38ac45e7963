"""Rows of unequal length in one flat array, and gathering them from pieces that lie anywhere in another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_CHUNK_VALUES = 1 << 16


@dataclass(frozen=True)
class Ragged:
    """Rows of token ids.

    Attributes:
        offsets: int64 [rows + 1].
        values: int32 [offsets[-1]]; row `i` is `values[offsets[i]:offsets[i + 1]]`.
    """

    offsets: npt.NDArray[np.int64]
    values: npt.NDArray[np.int32]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 [rows]."""
        return np.diff(self.offsets)

    @classmethod
    def gather(
        cls, source: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> "Ragged":
        """Rows put together from pieces of `source`: row `i` is `source[starts[i, j]:][:lengths[i, j]]` for each j.

        Args:
            starts, lengths: int64 [rows, pieces]; an absent piece has length 0.
        """
        pieces = offsets_of(lengths.ravel())
        values = np.empty(pieces[-1], np.int32)
        shifts = starts.ravel() - pieces[:-1]
        # In chunks that stay in the processor's cache; a longer piece is a chunk of its own.
        bounds = np.unique(np.searchsorted(pieces, np.arange(0, pieces[-1] + _CHUNK_VALUES, _CHUNK_VALUES)))
        bounds = np.unique(np.concatenate([[0], np.minimum(bounds, len(shifts)), [len(shifts)]]))
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            begin, end = int(pieces[first]), int(pieces[last])
            places = np.repeat(shifts[first:last], np.diff(pieces[first : last + 1]))
            places += np.arange(begin, end)
            np.take(source, places, out=values[begin:end], mode="clip")
        return cls(pieces[:: lengths.shape[1]].copy(), values)


def offsets_of(lengths: npt.NDArray[np.int64] | Sequence[int]) -> npt.NDArray[np.int64]:
    """Offsets, int64 [rows + 1], of rows of these lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
