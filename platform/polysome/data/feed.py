"""The feed: packed rows of a prepared folder, addressed by their position in the stream that a seed defines.

The Parquet shards are converted once, streaming, to an uncompressed Arrow file in a local cache; rows are then read
through the memory map and padded, so memory does not grow with the data. Which row stands at which position is a pure
function of (seed, epoch, position within the epoch): it does not know how many workers read, and a resume is one
integer.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator

import fsspec
import numpy as np
import pyarrow as pa

from polysome.config import DataError
from polysome.data.manifest import Manifest, Shard, read_manifest
from polysome.data.rows import Rows, expand, read_rows
from polysome.data.schema import PACKED
from polysome.storage import join, open_atomic
from polysome.storage.local import only_one

_BATCH_ROWS = 256
_ROUNDS = 6
_COUNTED = ("tokens", "targets")


class Feed:
    """Rows of one prepared folder in the order of `seed`; positions count on over the epochs."""

    def __init__(self, manifest: Manifest, path: str, *, seed: int) -> None:
        """Open the converted file at `path`; `open_feed` makes it."""
        self.manifest = manifest
        self.seed = seed
        self.length = manifest.rows
        self._reader = pa.ipc.open_file(pa.memory_map(path))
        self._counts = np.memmap(_counts_path(path), np.int32, mode="r", shape=(self.length, len(_COUNTED)))

    def order(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers, int64 [n], at int64 [n] positions: epoch = position // rows; every epoch is a permutation."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs, within = np.divmod(positions, self.length)
        result = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = permute(within[chosen], self.length, seed=self.seed, epoch=int(epoch))
        return result

    def rows(self, positions: np.ndarray) -> Rows:
        """The rows at `positions`, int64 [n] or empty."""
        found = [
            self._reader.get_batch(number // _BATCH_ROWS).slice(number % _BATCH_ROWS, 1)
            for number in self.order(positions).tolist()
        ]
        return expand(pa.Table.from_batches(found, PACKED), self.manifest.max_length, self.manifest.pad_id)

    def counts(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets), int64 [n] each, at `positions`, without reading the rows themselves."""
        tokens, targets = self._counts[self.order(positions)].astype(np.int64).T
        return tokens, targets


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
    name = f"{manifest.fingerprint}-{manifest.rows}x{manifest.max_length}-format{manifest.format}.arrow"
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


def _counts_path(path: str) -> str:
    """Of the file beside the rows that holds their counts, int32 [rows, 2]: tokens, targets."""
    return f"{path}.counts"


def _convert(folder: str, manifest: Manifest, path: str) -> None:
    """Stream all shards into one Arrow file of batches of `_BATCH_ROWS` rows and one of counts; both or none appear."""
    totals = np.zeros(1 + len(_COUNTED), np.int64)
    # The counts move into place before the rows, which are looked for.
    with (
        open_atomic(path) as rows,
        open_atomic(_counts_path(path)) as counts,
        pa.ipc.new_file(rows, PACKED) as writer,
    ):
        for batch in _whole_batches(_shard_rows(folder, shard) for shard in manifest.shards):
            writer.write_table(batch)
            numbers = np.stack([batch[name].to_numpy() for name in _COUNTED], axis=1)
            counts.write(numbers.tobytes())
            totals += [len(numbers), *numbers.sum(0, dtype=np.int64)]
        written = dict(zip(("rows", *_COUNTED), totals.tolist(), strict=True))
        declared = {"rows": manifest.rows, "tokens": manifest.tokens, "targets": manifest.targets}
        if written != declared:
            raise DataError(
                f"the shards hold {written}, and the manifest says {declared}",
                where=folder,
                fix="the folder was changed after it was committed; prepare it again",
            )


def _whole_batches(shards: Iterable[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """The rows of all shards in tables of one chunk and `_BATCH_ROWS` rows, only the last one smaller."""
    waiting = PACKED.empty_table()
    for tables in shards:
        for table in tables:
            joined = pa.concat_tables([waiting, table]).combine_chunks()
            whole = joined.num_rows - joined.num_rows % _BATCH_ROWS
            for start in range(0, whole, _BATCH_ROWS):
                yield joined.slice(start, _BATCH_ROWS)
            waiting = joined.slice(whole)
    if waiting.num_rows:
        yield waiting


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
