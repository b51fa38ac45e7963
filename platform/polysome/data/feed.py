"""The feed: packed rows of a prepared folder, addressed by their position in the stream that a seed defines.

The Parquet shards are converted once, streaming, to flat arrays in a local cache; the documents of a row are then read
through the memory map and padded, so the tokens need no memory. Which row stands at which position is a pure
function of (seed, epoch, position within the epoch): it does not know how many workers read, and a resume is one
integer.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from uuid import uuid4

import fsspec
import numpy as np
import pyarrow as pa

from polysome.config import DataError, ResourceError
from polysome.data.manifest import Manifest, Shard, read_manifest
from polysome.data.planning import Plan
from polysome.data.ragged import offsets_of
from polysome.data.row_plan import read_plan
from polysome.data.rows import Documents, Rows, as_documents, count_targets, lay_out, read_rows
from polysome.storage import join
from polysome.storage.local import only_one

_BATCH_ROWS = 4096
_ROUNDS = 6
_TOKENS = "input_ids.int32"
_CACHE_FORMAT = 3


class Feed:
    """Rows of one prepared folder in the order of `seed`; positions count on over the epochs."""

    def __init__(self, manifest: Manifest, path: str, *, seed: int) -> None:
        """Open the converted files below `path`; `open_feed` makes them."""
        self.manifest = manifest
        self.seed = seed
        self.length = manifest.rows
        self._arrays = _Arrays.open(path)

    def order(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers, int64 [n], at int64 [n] positions: epoch = position // rows; every epoch is a permutation."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs, within = np.divmod(positions, self.length)
        result = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = permute(within[chosen], self.length, seed=self.seed, epoch=int(epoch))
        return result

    @property
    def attended_length(self) -> float:
        """Tokens of the document that a token stands in, in the mean: sum(n^2) / sum(n) over documents of n tokens."""
        lengths = np.diff(self._arrays.bounds).astype(np.float64)
        return float((lengths**2).sum() / lengths.sum())

    def rows(self, positions: np.ndarray) -> Rows:
        """The rows at `positions`, int64 [n] or empty, padded."""
        documents, counts, _ = self._arrays.documents_of(self.order(positions))
        return lay_out(documents, counts, self.manifest.max_length, self.manifest.pad_id)

    def documents(self, positions: np.ndarray) -> tuple[Documents, np.ndarray]:
        """The documents of the rows at `positions`, int64 [n] or empty, in order, and the source of each, int64
        [documents]: its place in the manifest's `sources`."""
        documents, _, sources = self._arrays.documents_of(self.order(positions))
        return documents, sources

    def counts(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets), int64 [n] each, at `positions`, without reading the rows themselves."""
        tokens, targets = self._arrays.row_counts[self.order(positions)].astype(np.int64).T
        return tokens, targets


@dataclass(frozen=True)
class _Arrays:
    """The converted folder, memory-mapped.

    Attributes:
        input_ids: int32 [tokens], of all documents, end to end.
        bounds: int64 [documents + 1], where each document begins.
        target_starts: int32 [documents].
        sources: int16 [documents], place of each one's source in the manifest.
        order: int64 [documents], document numbers row by row.
        row_bounds: int64 [rows + 1], where each row begins in `order`.
        row_counts: int32 [rows, 2], tokens and targets.
    """

    input_ids: np.ndarray
    bounds: np.ndarray
    target_starts: np.ndarray
    sources: np.ndarray
    order: np.ndarray
    row_bounds: np.ndarray
    row_counts: np.ndarray

    @classmethod
    def open(cls, path: str) -> "_Arrays":
        tokens = np.memmap(os.path.join(path, _TOKENS), np.int32, mode="r")
        names = [field.name for field in fields(cls)][1:]
        return cls(tokens, *(np.load(os.path.join(path, f"{name}.npy"), mmap_mode="r") for name in names))

    def documents_of(self, rows: np.ndarray) -> tuple[Documents, np.ndarray, np.ndarray]:
        """The documents of `rows`, int64 [n], in order; how many each row has, int64 [n]; and the source of each."""
        first, last = self.row_bounds[rows], self.row_bounds[rows + 1]
        members = [self.order[start:end] for start, end in zip(first.tolist(), last.tolist(), strict=True)]
        numbers = np.concatenate([np.empty(0, np.int64), *members])
        starts, ends = self.bounds[numbers], self.bounds[numbers + 1]
        pieces = [self.input_ids[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        ids = np.concatenate([np.empty(0, np.int32), *pieces])
        documents = Documents(ids, (ends - starts).astype(np.int32), self.target_starts[numbers])
        return documents, last - first, self.sources[numbers].astype(np.int64)


def open_feed(folder: str, *, seed: int, cache: str) -> Feed:
    """Open a prepared folder, converting its shards on this machine when that was not done before.

    Args:
        folder: prepared folder, path or URL.
        seed: of the order.
        cache: local folder for the converted file; shared by all processes of the machine.

    Raises:
        DataError: the folder is unfinished, a shard is missing or not the one that was committed, or the shards do not
            hold what the manifest says.
    """
    manifest = read_manifest(folder)
    if manifest.rows == 0 or manifest.targets == 0:
        raise DataError(
            f"nothing to train on: {manifest.rows} rows with {manifest.targets} targets",
            where=folder,
            fix="prepare the data again from sources that are not empty",
        )
    name = f"{manifest.fingerprint}-{manifest.rows}x{manifest.max_length}-format{_CACHE_FORMAT}"
    path = os.path.join(cache, name)
    os.makedirs(cache, exist_ok=True)
    with only_one(path):
        if not os.path.exists(path):
            _convert(folder, manifest, path)
    return Feed(manifest, path, seed=seed)


def permute(positions: np.ndarray, length: int, *, seed: int, epoch: int) -> np.ndarray:
    """The images of `positions` under a pseudo-random permutation of range(length), without holding it.

    A Feistel network over the smallest even number of bits that covers `length`, walked until the image lies below
    `length` (Black and Rogaway 2002, cycle walking).

    Args:
        positions: int64 [n], each in [0, length).

    Returns:
        int64 [n].
    """
    half = max(1, (max(length - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    digest = hashlib.sha256(f"{seed}/{epoch}/{length}".encode()).digest() * 2
    keys = np.frombuffer(digest[: 8 * _ROUNDS], dtype="<u8")
    images = np.asarray(positions, dtype=np.int64).astype(np.uint64)
    outside = np.ones(images.shape, dtype=bool)
    while outside.any():
        values = images[outside]
        left, right = values >> np.uint64(half), values & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        images[outside] = (left << np.uint64(half)) | right
        outside = images >= length
    return images.astype(np.int64)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64, on uint64 with wrap-around."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _convert(folder: str, manifest: Manifest, path: str) -> None:
    """Stream all shards into memory-mappable arrays in the folder `path`, which appears whole or not at all."""
    temporary = f"{path}.{uuid4().hex}.tmp"
    try:
        os.makedirs(temporary)
        _write_arrays(folder, manifest, temporary)
        os.rename(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                "no space is left for the converted rows", where=path, fix="free some, or set POLYSOME_CACHE"
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_arrays(folder: str, manifest: Manifest, path: str) -> None:
    lengths, target_starts, row_sizes = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    documents_of_shards = []
    with open(os.path.join(path, _TOKENS), "wb") as tokens:
        for shard in manifest.shards:
            documents_of_shards.append(0)
            for table in _shard_rows(folder, shard):
                documents = as_documents(table)
                documents_of_shards[-1] += len(documents.lengths)
                tokens.write(documents.input_ids.tobytes())
                lengths.append(documents.lengths)
                target_starts.append(documents.target_starts)
                row_sizes.append(table["documents"].to_numpy())
    sizes, starts = np.concatenate(lengths), np.concatenate(target_starts)
    if manifest.plan is None:
        planned = Plan(np.arange(len(sizes)), offsets_of(np.concatenate(row_sizes).astype(np.int64)))
    else:
        planned = read_plan(join(folder, manifest.plan.path), manifest.plan.sha256)
    if not np.array_equal(np.sort(planned.order), np.arange(len(sizes))):
        raise DataError(
            f"the row plan does not name each of the {len(sizes)} documents once",
            where=folder,
            fix="the folder was changed after it was committed; prepare it again",
        )
    counts = np.stack([sizes, count_targets(sizes, starts)], axis=1).astype(np.int64)
    row_counts = np.add.reduceat(counts[planned.order], planned.row_starts[:-1]) if len(planned) else counts[:0]
    written = dict(zip(("rows", "tokens", "targets"), (len(planned), *row_counts.sum(0).tolist()), strict=True))
    declared = {"rows": manifest.rows, "tokens": manifest.tokens, "targets": manifest.targets}
    if written != declared:
        raise DataError(
            f"the shards hold {written}, and the manifest says {declared}",
            where=folder,
            fix="the folder was changed after it was committed; prepare it again",
        )
    arrays: dict[str, np.ndarray] = {
        "bounds": offsets_of(sizes.astype(np.int64)),
        "target_starts": starts,
        "sources": np.repeat([shard.source for shard in manifest.shards], documents_of_shards).astype(np.int16),
        "order": planned.order.astype(np.int64),
        "row_bounds": planned.row_starts.astype(np.int64),
        "row_counts": row_counts.astype(np.int32),
    }
    for name, values in arrays.items():
        np.save(os.path.join(path, f"{name}.npy"), values)


def _shard_rows(folder: str, shard: Shard) -> Iterator[pa.Table]:
    """The rows of one shard, after its content was found to be what was committed."""
    where = join(folder, shard.path)
    fix = "copy the folder again from where it was prepared, or prepare it again"
    try:
        with fsspec.open(where, "rb") as handle:
            content = handle.read()
    except OSError as error:
        raise DataError(f"cannot read shard {shard.path}: {error}", where=where, fix=fix) from error
    found = hashlib.sha256(content).hexdigest()
    if found != shard.sha256:
        raise DataError(
            f"shard {shard.path} is damaged: its {len(content):,} bytes have sha256 {found}, "
            f"and the manifest says {shard.sha256}",
            where=where,
            fix=fix,
        )
    try:
        yield from read_rows(pa.BufferReader(content), batch_rows=_BATCH_ROWS)
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise DataError(f"cannot read shard {shard.path}: {error}", where=where, fix=fix) from error
