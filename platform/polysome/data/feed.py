"""The feed: packed rows of a prepared folder, addressed by their position in the stream that a seed defines.

The Parquet shards are converted once, streaming, to an uncompressed Arrow file in a local cache; rows are then read
through the memory map, so memory does not grow with the data. Which row stands at which position is a pure function
of (seed, epoch, position within the epoch): it does not know how many workers read, and a resume is one integer.
"""

import hashlib
import os
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
import pyarrow as pa

from polysome.config import DataError
from polysome.data.manifest import Manifest, read_manifest
from polysome.storage import join
from polysome.storage.local import only_one

_COLUMNS = ("input_ids", "labels", "position_ids", "segment_ids")
_BATCH_ROWS = 256
_ROUNDS = 6


@dataclass(frozen=True)
class Rows:
    """Packed rows.

    Attributes:
        input_ids, labels, position_ids, segment_ids: int32 [rows, max_length]; see the manifest's shard schema.
        tokens, targets: int64 [rows], positions that are not padding, and that are trained on.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    segment_ids: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


class Feed:
    """Rows of one prepared folder in the order of `seed`; positions count on over the epochs."""

    def __init__(self, manifest: Manifest, path: str, *, seed: int) -> None:
        """Open the converted file at `path`; `open_feed` makes it."""
        self.manifest = manifest
        self.seed = seed
        self._reader = pa.ipc.open_file(pa.memory_map(path))
        self.length = manifest.rows

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
        numbers = self.order(positions)
        columns: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
        for number in numbers:
            batch, offset = self._batch(int(number))
            for name in _COLUMNS:
                # `flatten` of a sliced fixed-size list is a view of the memory map.
                columns[name].append(batch.column(name).slice(offset, 1).flatten().to_numpy())
        width = self.manifest.max_length
        arrays = {
            name: np.stack(parts) if parts else np.empty((0, width), dtype=np.int32) for name, parts in columns.items()
        }
        return Rows(**arrays, tokens=self._counts(numbers, "tokens"), targets=self._counts(numbers, "targets"))

    def counts(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets), int64 [n] each, at `positions`, without reading the rows themselves."""
        numbers = self.order(positions)
        return self._counts(numbers, "tokens"), self._counts(numbers, "targets")

    def _counts(self, numbers: np.ndarray, name: str) -> np.ndarray:
        values = np.empty(len(numbers), dtype=np.int64)
        for place, number in enumerate(numbers):
            batch, offset = self._batch(int(number))
            values[place] = batch.column(name)[offset].as_py()
        return values

    def _batch(self, number: int) -> tuple[pa.RecordBatch, int]:
        index, offset = divmod(number, _BATCH_ROWS)
        return self._reader.get_batch(index), offset


def open_feed(folder: str, *, seed: int, cache: str) -> Feed:
    """Open a prepared folder, converting its shards on this machine when that was not done before.

    Args:
        folder: prepared folder, path or URL.
        seed: of the order.
        cache: local folder for the converted file; shared by all processes of the machine.

    Raises:
        DataError: the folder is unfinished, a shard is missing or broken, or the shards do not hold what the
            manifest says.
    """
    manifest = read_manifest(folder)
    if manifest.rows == 0 or manifest.targets == 0:
        raise DataError(
            f"nothing to train on: {manifest.rows} rows with {manifest.targets} targets",
            where=folder,
            fix="prepare the data again from sources that are not empty",
        )
    path = os.path.join(cache, f"{manifest.fingerprint}-{manifest.rows}x{manifest.max_length}.arrow")
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
    """Stream all shards into one Arrow file of batches of `_BATCH_ROWS` rows, and move it into place when complete."""
    row_type = pa.list_(pa.int32(), manifest.max_length)
    schema = pa.schema([(name, row_type) for name in _COLUMNS] + [("tokens", pa.int32()), ("targets", pa.int32())])
    temporary = f"{path}.{uuid4().hex}.tmp"
    written = {"rows": 0, "tokens": 0, "targets": 0}
    try:
        with pa.OSFile(temporary, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            pending: list[pa.RecordBatch] = []
            waiting = 0
            for batch in _batches(folder, manifest, schema):
                pending.append(batch)
                waiting += batch.num_rows
                while waiting >= _BATCH_ROWS:
                    joined = pa.Table.from_batches(pending).combine_chunks()
                    _write(writer, joined.slice(0, _BATCH_ROWS), written)
                    rest = joined.slice(_BATCH_ROWS)
                    pending, waiting = rest.to_batches(), rest.num_rows
            if waiting:
                _write(writer, pa.Table.from_batches(pending).combine_chunks(), written)
        declared = {"rows": manifest.rows, "tokens": manifest.tokens, "targets": manifest.targets}
        if written != declared:
            raise DataError(
                f"the shards hold {written}, and the manifest says {declared}",
                where=folder,
                fix="the folder was changed after it was committed; prepare it again",
            )
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _write(writer: pa.ipc.RecordBatchFileWriter, table: pa.Table, written: dict[str, int]) -> None:
    writer.write_table(table, max_chunksize=_BATCH_ROWS)
    written["rows"] += table.num_rows
    for name in ("tokens", "targets"):
        written[name] += int(table.column(name).to_numpy().sum(dtype=np.int64))


def _batches(folder: str, manifest: Manifest, schema: pa.Schema):  # type: ignore[no-untyped-def]
    import fsspec
    import pyarrow.parquet as pq

    for shard in manifest.shards:
        where = join(folder, shard.path)
        try:
            with fsspec.open(where, "rb") as handle:
                for batch in pq.ParquetFile(handle).iter_batches(batch_size=_BATCH_ROWS, columns=schema.names):
                    yield pa.Table.from_batches([batch]).cast(schema).combine_chunks().to_batches()[0]
        except (OSError, pa.ArrowException, ValueError, KeyError) as error:
            raise DataError(
                f"cannot read shard {shard.path}: {error}", where=where, fix="prepare the folder again"
            ) from error
