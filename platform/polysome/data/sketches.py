"""Sketches: sequences in, the pairs of them that share enough k-mers on one diagonal to be worth an alignment out.

All k-mers are indexed, or of a large set a sample by hash value (FracMinHash; Irber et al. 2022). k grows with the
number of letters, so that few pairs share a k-mer by chance. The sequences that share a k-mer are linked to the longest
of them and to their neighbours by length, not all with all (as in Linclust; Steinegger & Söding 2018): work grows
linearly.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polysome.data.hashing import Hashes, Text, blocks, mix

_MAXIMUM_ENTRIES = 1 << 24
_CHANCE_PAIRS = 5e6
_NEIGHBOURS = 3
_DIAGONALS = 16
_EXPECTED_HITS = 6.0
_BLOCK = 1 << 20
_STRANGE = 255

_BASES = {letter: code for code, letter in enumerate("ACGT")} | {"U": 3}
_RESIDUES = {letter: code for code, letter in enumerate("ACDEFGHIKLMNPQRSTVWY")}


@dataclass(frozen=True)
class Alphabet:
    """How the letters of a molecule are counted in k-mers; stretches with other letters are skipped."""

    codes: dict[str, int]
    letters: int
    bits: int
    both_strands: bool
    shortest: int
    longest: int
    """Bounds of k."""

    def table(self) -> bytes:
        """Byte -> code."""
        table = np.full(256, _STRANGE, np.uint8)
        for letter, code in self.codes.items():
            table[ord(letter)] = code
        return table.tobytes()


DNA = Alphabet(_BASES, 4, 2, True, 8, 16)
RNA = Alphabet(_BASES, 4, 2, False, 8, 16)
PROTEIN = Alphabet(_RESIDUES, 20, 5, False, 4, 7)


@dataclass(frozen=True)
class Pairs:
    """Pairs of sequences with a diagonal that they share.

    Attributes:
        first, second: int64 [pairs], rows; `first` < `second`.
        reverse: bool [pairs], it is the reverse complement of the second that is alike.
        diagonal: int64 [pairs], place in the second (or its reverse complement) minus place in the first.
        hits: int64 [pairs], k-mers that they share around the diagonal, of those compared.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    reverse: npt.NDArray[np.bool_]
    diagonal: npt.NDArray[np.int64]
    hits: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Entries:
    """k-mers of the sequences, equal ones side by side, then by row.

    `bucket` counts the distinct k-mers; `place` is the place within the row; `other` says that the other strand's
    wording of the k-mer stands there.
    """

    bucket: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    other: npt.NDArray[np.bool_]


def kmer_size(letters: int, alphabet: Alphabet) -> int:
    """The k for so many letters in all: the smallest one with few chance pairs, about letters^2 / alphabet^k."""
    entries = min(letters, _MAXIMUM_ENTRIES)
    wanted = math.log(max(entries**2 / _CHANCE_PAIRS, 1.0), alphabet.letters)
    return min(max(math.ceil(wanted), alphabet.shortest), alphabet.longest)


def similar_pairs(text: Text, alphabet: Alphabet, identity: float) -> Pairs:
    """Pairs that may be alike in at least `identity` of their letters.

    Args:
        text: distinct sequences, the longest first; their order decides ties, so it must not depend on the input's
            order.
    """
    size = kmer_size(text.size, alphabet)
    density = min(1.0, 0.9 * _MAXIMUM_ENTRIES / max(text.size, 1))
    entries = _entries(text, alphabet, size, density)
    lengths = text.lengths
    keys, counts, examples = [], [], []
    for lower, upper in _linked(entries.bucket):
        for start in range(0, len(lower), _BLOCK):
            low, high = lower[start : start + _BLOCK], upper[start : start + _BLOCK]
            reverse = entries.other[low] != entries.other[high]
            row = entries.row[high]
            place = np.where(reverse, lengths[row] - size - entries.place[high], entries.place[high])
            diagonal = place - entries.place[low]
            key = mix((entries.row[low].astype(np.uint64) << np.uint64(32)) | row.astype(np.uint64))
            key ^= mix((diagonal // _DIAGONALS * 2 + reverse).astype(np.uint64))
            key, example, count = np.unique(key, return_index=True, return_counts=True)
            keys.append(key)
            counts.append(count)
            examples.append(np.stack([entries.row[low], row, reverse, diagonal])[:, example])
    key, example, number = np.unique(
        np.concatenate([np.zeros(0, np.uint64), *keys]), return_index=True, return_inverse=True
    )
    hits = np.bincount(number, np.concatenate([np.zeros(0, np.int64), *counts]), minlength=len(key)).astype(np.int64)
    first, second, reverse, diagonal = np.concatenate([np.zeros((4, 0), np.int64), *examples], axis=1)[:, example]
    shorter = np.minimum(lengths[first], lengths[second])
    expected = (shorter - size + 1) * identity**size * density
    kept = np.flatnonzero(hits >= np.where(expected >= _EXPECTED_HITS, 2, 1))
    return Pairs(first[kept], second[kept], reverse[kept] == 1, diagonal[kept], hits[kept])


def _linked(bucket: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Entries to compare, as (earlier, later) of the same bucket: close neighbours, and the first with all others."""
    for distance in range(1, _NEIGHBOURS + 1):
        later = np.flatnonzero(bucket[distance:] == bucket[:-distance]) + distance
        yield later - distance, later
    start = np.flatnonzero(np.concatenate([[True], bucket[1:] != bucket[:-1]]))[: len(bucket)]
    head = start[np.cumsum(np.concatenate([[0], bucket[1:] != bucket[:-1]]))[: len(bucket)]]
    later = np.flatnonzero(np.arange(len(bucket)) - head > _NEIGHBOURS)
    yield head[later], later


def _entries(text: Text, alphabet: Alphabet, size: int, density: float) -> _Entries:
    parts = list(_kmers(text, alphabet, size, density))
    kmer = np.concatenate([np.zeros(0, np.uint64), *(kmer for kmer, _, _ in parts)])
    position = np.concatenate([np.zeros(0, np.int64), *(position for _, position, _ in parts)])
    other = np.concatenate([np.zeros(0, np.bool_), *(other for _, _, other in parts)])
    del parts
    # k-mer and number of the entry in one word: numpy sorts words much faster than it sorts by them.
    bits = np.uint64(max(len(kmer), 1).bit_length())
    packed = (kmer << bits) | np.arange(len(kmer), dtype=np.uint64)
    packed.sort()
    ordered = packed >> bits
    equal = ordered[1:] == ordered[:-1]
    shared = np.concatenate([equal, [False]]) | np.concatenate([[False], equal])
    entry = (packed[shared[: len(packed)]] & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    ordered = ordered[shared[: len(packed)]]
    row = text.rows_of(position[entry])
    # Of a k-mer that a sequence repeats, the first place stands for all.
    new = np.ones(len(entry), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]) | (row[1:] != row[:-1])
    ordered, entry, row = ordered[new], entry[new], row[new]
    bucket = np.cumsum(np.concatenate([[False], ordered[1:] != ordered[:-1]]))[: len(ordered)]
    return _Entries(bucket, row, position[entry] - text.offsets[row], other[entry])


def _kmers(
    text: Text, alphabet: Alphabet, size: int, density: float
) -> Iterator[tuple[Hashes, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """k-mer, position and whether it is the other strand's wording, a block of rows at a time, in order."""
    table = alphabet.table()
    bits = np.uint64(alphabet.bits)
    threshold = np.uint64(min(int(density * 2**64), 2**64 - 1))
    for first, last in blocks(text.offsets, _BLOCK):
        start, stop = int(text.offsets[first]), int(text.offsets[last])
        codes = np.frombuffer(text.data[start:stop].tobytes().translate(table), np.uint8)
        count = len(codes) - size + 1
        if count <= 0:
            continue
        strange = np.zeros(count, np.bool_)
        kmer = np.zeros(count, np.uint64)
        for offset in range(size):
            letter = codes[offset : offset + count]
            strange |= letter == _STRANGE
            kmer = (kmer << bits) | letter
        other = np.zeros(count, np.bool_)
        if alphabet.both_strands:
            complement = np.zeros(count, np.uint64)
            for offset in range(size):
                # Codes 0 … 3 are A C G T, so that 3 minus the code is the complement.
                complement |= (3 - codes[offset : offset + count]).astype(np.uint64) << np.uint64(2 * offset)
            other = complement < kmer
            kmer = np.minimum(kmer, complement)
        position = np.arange(start, start + count)
        good = ~strange & (
            position + size <= np.repeat(text.offsets[first + 1 : last + 1], text.lengths[first:last])[:count]
        )
        if density < 1:
            good &= mix(kmer) < threshold
        yield kmer[good], position[good], other[good]
