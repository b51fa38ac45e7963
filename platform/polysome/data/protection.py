"""Protected splits: which examples, or stretches of a corpus, are held by a split that must stay unseen (AMB-3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from polysome.data.hashing import (
    Hashes,
    ListColumn,
    Text,
    blocks,
    both_strand_hashes,
    bounds,
    combine,
    hash_strings,
    is_nucleotide,
    list_text_of,
    within,
)

Holders = npt.NDArray[np.int32]

_SEED = 16
_SEED_CANDIDATES = 8
_BLOCK = 1 << 21
_U_AS_T = bytes.maketrans(b"U", b"T")
_SCRAMBLE = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


class Protection(Protocol):
    """Answers which protected split holds each example. Small and picklable: it travels to every worker."""

    names: list[str]
    """The protected splits, `dataset/split`."""

    def holders(self, sequences: ListColumn) -> Holders:
        """int32 [examples]: index into `names`, -1 when the example may be trained on.

        Args:
            sequences: list<string> [examples], cleaned sequences in the order of the molecules.
        """


class Equal:
    """An example is held when all its sequences, in order, equal those of a protected one.

    Examples are compared by 128 bits of hash. Examples without a sequence are free.
    """

    def __init__(self, held: Mapping[str, ListColumn], *, both_strands: bool = False) -> None:
        """`held`: the protected examples by name; with several holders, the first counts. With `both_strands`, a
        sequence of bases also equals its reverse complement."""
        self.names = list(held)
        self._both_strands = both_strands
        keys, checks, holder = [], [], []
        for index, column in enumerate(held.values()):
            found, check, empty = self._hashed(column)
            keys.append(found[~empty])
            checks.append(check[~empty])
            holder.append(np.full(len(keys[-1]), index, np.int32))
        together = np.concatenate([np.zeros(0, np.uint64), *keys])
        self._keys, first = np.unique(together, return_index=True)
        self._checks = np.concatenate([np.zeros(0, np.uint64), *checks])[first]
        self._holder = np.concatenate([np.zeros(0, np.int32), *holder])[first]

    def holders(self, sequences: ListColumn) -> Holders:
        """See `Protection`."""
        keys, checks, empty = self._hashed(sequences)
        if not len(self._keys):
            return np.full(len(keys), -1, np.int32)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        equal = (self._keys[place] == keys) & (self._checks[place] == checks) & ~empty
        return np.where(equal, self._holder[place], np.int32(-1))

    def _hashed(self, column: ListColumn) -> tuple[Hashes, Hashes, npt.NDArray[np.bool_]]:
        """Two independent hashes of each example, and whether it holds no sequence."""
        text, offsets = list_text_of(column)
        if self._both_strands:
            dna = is_nucleotide(text)
            first, second = both_strand_hashes(text, dna), both_strand_hashes(text, dna, salt=1)
        else:
            first, second = hash_strings(text), hash_strings(text, salt=1)
        return combine(first, offsets), combine(second, offsets, salt=1), np.diff(offsets) == 0


class Contained:
    """A corpus text is held when a protected sequence stands anywhere in it; of bases, also its reverse complement.

    U and T are read as equal, so that an RNA is found in its gene. A protected sequence that a window cut in two is not
    found. Shorter sequences than the bounds are not searched for, as texts hold them by chance; `too_short` counts
    them.
    """

    def __init__(
        self, held: Mapping[str, ListColumn], *, minimum_nucleotides: int = 16, minimum_residues: int = 8
    ) -> None:
        """`held`: the protected examples by name; with several holders of a sequence, the first counts."""
        self.names = list(held)
        parts = [list_text_of(column)[0] for column in held.values()]
        lengths = np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in parts)])
        data = np.concatenate([*(part.data[: part.size] for part in parts), np.zeros(16, np.uint8)])
        text = Text(data, bounds(lengths)).translated(_U_AS_T)
        nucleotide = is_nucleotide(text)
        long_enough = lengths >= np.where(nucleotide, minimum_nucleotides, minimum_residues)
        name = np.repeat(np.arange(len(parts), dtype=np.int32), [part.rows for part in parts])
        short = np.bincount(name[~long_enough], minlength=len(parts))
        self.too_short = {held: int(count) for held, count in zip(self.names, short, strict=True) if count}
        """How many sequences of a split are not searched for."""
        rows = np.flatnonzero(long_enough)
        _, first, number = np.unique(hash_strings(text.take(rows)), return_index=True, return_inverse=True)
        self.sequence_numbers = np.full(text.rows, -1, np.int32)
        """int32 [all sequences of all examples, split after split]: which of the distinct ones it is, -1 too short."""
        self.sequence_numbers[rows] = number
        self._holder = name[rows[first]]
        self._seeds = []
        for bases in (True, False):
            numbers = np.flatnonzero(nucleotide[rows[first]] == bases)
            if len(numbers):
                self._seeds.append(_Seeds.of(text.take(rows[first[numbers]]), numbers, both_strands=bases))

    def holders(self, sequences: ListColumn) -> Holders:
        """See `Protection`."""
        if not self._seeds:
            return np.full(len(sequences), -1, np.int32)
        free = np.int32(len(self.names))
        examples, found, count = self._found(sequences)
        holders = np.full(count, free, np.int32)
        np.minimum.at(holders, examples, self._holder[found])
        holders[holders == free] = -1
        return holders

    def found(self, sequences: ListColumn) -> npt.NDArray[np.int32]:
        """The distinct protected sequences (see `sequence_numbers`) that stand in any of the texts, ascending."""
        return np.unique(self._found(sequences)[1]).astype(np.int32)

    def _found(self, sequences: ListColumn) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
        text, offsets = list_text_of(sequences)
        text = text.translated(_U_AS_T)
        pairs = [pair for seeds in self._seeds for pair in seeds.find(text)]
        strings = np.concatenate([np.zeros(0, np.int64), *(strings for strings, _ in pairs)])
        found = np.concatenate([np.zeros(0, np.int64), *(found for _, found in pairs)])
        return np.searchsorted(offsets, strings, side="right") - 1, found, len(offsets) - 1


@dataclass(frozen=True)
class _Seeds:
    """Wordings that are searched for, each by one stretch of `size` letters in it.

    A stretch is read as one or two eight-byte words, so that a text's stretches at all positions cost two passes.
    """

    size: int
    wordings: Text
    numbers: npt.NDArray[np.int64]
    keys: Hashes
    order: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Text, numbers: npt.NDArray[np.int64], *, both_strands: bool) -> "_Seeds":
        """`numbers`: what to call the sequences."""
        if both_strands:
            other = sequences.reverse_complement()
            data = np.concatenate([sequences.data[: sequences.size], other.data])
            sequences = Text(data, bounds(np.concatenate([sequences.lengths, other.lengths])))
            numbers = np.concatenate([numbers, numbers[::-1]])
        size = int(min(_SEED, sequences.lengths.min()))
        places = _rarest(sequences, size)
        keys = _keys(sequences.words, sequences.offsets[:-1] + places, size)
        order = np.argsort(keys, kind="stable")
        return cls(size, sequences, numbers, keys[order], order, places)

    def find(self, text: Text) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Pairs of (row of the text, number of a sequence that stands in it), in pieces."""
        bits = max(16, min(26, int(len(self.keys) * 64).bit_length()))
        shift = np.uint64(64 - bits)
        marked = np.zeros(1 << bits, np.bool_)
        marked[self.keys >> shift] = True
        words, last = text.words, text.size - self.size + 1
        pairs = []
        for start in range(0, last, _BLOCK):
            keys = _keys_of_stretch(words, start, min(start + _BLOCK, last), self.size)
            likely = np.flatnonzero(marked[keys >> shift])
            keys = keys[likely]
            lower = np.searchsorted(self.keys, keys, side="left")
            upper = np.searchsorted(self.keys, keys, side="right")
            hit = np.flatnonzero(upper > lower)
            pairs += self._verified(text, likely[hit] + start, lower[hit], (upper - lower)[hit])
        return pairs

    def _verified(
        self,
        text: Text,
        positions: npt.NDArray[np.int64],
        lower: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Those of the wordings `lower`, `lower` + 1, … at each position that really stand there."""
        pairs = []
        for first, last in blocks(bounds(counts), _BLOCK):
            count = counts[first:last]
            wording = self.order[np.repeat(lower[first:last], count) + within(count)]
            position = np.repeat(positions[first:last], count)
            row = text.rows_of(position)
            start = position - self.places[wording]
            length = self.wordings.lengths[wording]
            inside = (start >= text.offsets[row]) & (start + length <= text.offsets[row + 1])
            start, wording, row, length = start[inside], wording[inside], row[inside], length[inside]
            for reach in range(0, int(length.max(initial=0)), 8):
                rest = np.clip(length - reach, 0, 8).astype(np.uint64)
                # A shift by 64 bits is undefined, so that a wording that has ended is shifted in two halves.
                unused = (np.uint64(8) - rest) * np.uint64(4)
                at = np.minimum(start + reach, len(text.words) - 1)
                wanted_at = np.minimum(self.wordings.offsets[wording] + reach, len(self.wordings.words) - 1)
                differ = text.words[at] ^ self.wordings.words[wanted_at]
                same = ((differ << unused) << unused) == 0
                if not same.all():
                    start, wording, row, length = start[same], wording[same], row[same], length[same]
            pairs.append((row, self.numbers[wording]))
        return pairs


def _keys(words: Hashes, positions: npt.NDArray[np.int64], size: int) -> Hashes:
    """The key of the stretch of `size` letters from each position on."""
    first = words[positions]
    if size <= 8:
        return (first << np.uint64(64 - 8 * size)) * _SCRAMBLE[0]
    return first * _SCRAMBLE[0] + words[positions + size - 8] * _SCRAMBLE[1]


def _keys_of_stretch(words: Hashes, start: int, stop: int, size: int) -> Hashes:
    """As `_keys`, at all positions of a stretch."""
    first = words[start:stop]
    if size <= 8:
        return (first << np.uint64(64 - 8 * size)) * _SCRAMBLE[0]
    keys = first * _SCRAMBLE[0]
    keys += words[start + size - 8 : stop + size - 8] * _SCRAMBLE[1]
    return keys


def _rarest(text: Text, size: int) -> npt.NDArray[np.int64]:
    """Where in each row a good stretch stands: of at least four letters if possible, shared by few others.

    A stretch like AAAA… would send every such stretch of a corpus to a closer look.
    """
    share = np.linspace(0, 1, _SEED_CANDIDATES)
    places = ((text.lengths - size)[:, None] * share).astype(np.int64)
    positions = text.offsets[:-1, None] + places
    _, number, count = np.unique(_keys(text.words, positions, size), return_inverse=True, return_counts=True)
    cost = count[number.reshape(positions.shape)]
    for column in range(_SEED_CANDIDATES):
        letters = text.data[positions[:, column, None] + np.arange(size)]
        distinct = np.bitwise_count(np.bitwise_or.reduce(np.uint32(1) << (letters & 31).astype(np.uint32), axis=1))
        cost[:, column] += (4 - np.minimum(distinct, 4)).astype(np.int64) << 40
    return places[np.arange(text.rows), cost.argmin(axis=1)]
