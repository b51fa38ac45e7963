"""Features of molecules for linear models: sequences in, sparse counts of k-mers or bins of length out."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polysome.specs import Dataset, MoleculeType

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ALPHABETS: dict[MoleculeType, str] = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}
_LONGEST_KMER: dict[MoleculeType, int] = {"dna": 6, "rna": 6, "protein": 3}
LENGTH_BINS = 32


def log_counts(spec: Dataset, examples: list[list[str]]) -> "csr_matrix":
    """log(1 + k-mer count): float32 CSR [examples, k-mers of the first molecule + those of the second]."""
    from scipy.sparse import hstack

    blocks = [
        kmer_counts([sequences[position] for sequences in examples], molecule.type, _LONGEST_KMER[molecule.type])
        for position, molecule in enumerate(spec.molecules)
    ]
    counts = blocks[0] if len(blocks) == 1 else hstack(blocks, format="csr")
    counts.data = np.log1p(counts.data)
    return counts


def kmer_counts(sequences: list[str], molecule: MoleculeType, longest: int) -> "csr_matrix":
    """Counts of every k-mer of the plain alphabet, k from 1 to `longest`; one with another letter (N, X) is left out:
    float32 CSR [sequences, k-mers], short ones first, those of a length in the order of the alphabet."""
    from scipy.sparse import csr_matrix

    alphabet = ALPHABETS[molecule]
    letters = len(alphabet)
    codes_of_bytes = np.full(256, -1, dtype=np.int32)
    for code, letter in enumerate(alphabet):
        codes_of_bytes[ord(letter)] = codes_of_bytes[ord(letter.lower())] = code
    lengths = np.array([len(sequence) for sequence in sequences])
    codes = codes_of_bytes[np.frombuffer("".join(sequences).encode("ascii", "replace"), dtype=np.uint8)]
    owners = np.repeat(np.arange(len(sequences), dtype=np.int64), lengths)
    width = sum(letters**k for k in range(1, longest + 1))
    # One k-mer per position and k: grown from the one of k - 1, void where it leaves the sequence or the alphabet.
    kmers, plain = np.zeros(len(codes), dtype=np.int64), np.ones(len(codes), dtype=bool)
    cells, offset = [], 0
    for k in range(1, longest + 1):
        last = np.roll(codes, 1 - k)
        kmers = kmers * letters + last
        plain = plain & (last >= 0) & (np.roll(owners, 1 - k) == owners)
        if k > 1:
            plain[len(plain) - k + 1 :] = False
        cells.append(owners[plain] * width + offset + kmers[plain])
        offset += letters**k
    unique, counts = np.unique(np.concatenate(cells), return_counts=True)
    rows, columns = np.divmod(unique, width)
    starts = np.searchsorted(rows, np.arange(len(sequences) + 1))
    return csr_matrix((counts.astype(np.float32), columns.astype(np.int32), starts), shape=(len(sequences), width))


def inverse_deviation(features: "csr_matrix") -> Any:
    """Diagonal matrix that scales columns to unit variance without centring, so that they stay sparse."""
    from scipy.sparse import diags

    mean = np.asarray(features.mean(axis=0)).ravel()
    variance = np.asarray(features.multiply(features).mean(axis=0)).ravel() - mean**2
    deviation = np.sqrt(np.maximum(variance, 0))
    return diags(np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0).astype(np.float32))


def length_edges(examples: list[list[str]]) -> list[NDArray[np.float64]]:
    """For each molecule float64 [at most LENGTH_BINS - 1]: the quantiles of its length that bins lie between."""
    lengths = _lengths(examples)
    shares = np.arange(1, LENGTH_BINS) / LENGTH_BINS
    return [np.unique(np.quantile(column, shares, method="lower")) for column in lengths.T]


def length_bins(examples: list[list[str]], edges: list[NDArray[np.float64]]) -> "csr_matrix":
    """Which bin each molecule's length falls into: float32 CSR [examples, bins of the first + of the second]."""
    from scipy.sparse import csr_matrix, hstack

    blocks = []
    for column, bounds in zip(_lengths(examples).T, edges, strict=True):
        places = np.searchsorted(bounds, column)
        ones = np.ones(len(places), dtype=np.float32)
        shape = (len(places), len(bounds) + 1)
        blocks.append(csr_matrix((ones, (np.arange(len(places)), places)), shape=shape))
    return blocks[0] if len(blocks) == 1 else hstack(blocks, format="csr")


def _lengths(examples: list[list[str]]) -> NDArray[np.float64]:
    return np.array([[len(sequence) for sequence in sequences] for sequences in examples], dtype=np.float64)
