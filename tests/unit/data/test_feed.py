"""The feed gives back the rows of the shards in an order that depends on seed, epoch and position alone."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared import commit_rows, token_documents

from polysome.config import DataError
from polysome.data.feed import Feed, Rows, open_feed, permute
from polysome.data.manifest import read_manifest, write_manifest
from polysome.data.pack import pack
from polysome.data.row_plan import plan_rows
from polysome.data.rows import expand, one_per_row, read_rows
from polysome.data.schema import PACKED

COLUMNS = ("input_ids", "labels", "position_ids", "segment_ids")


def source_rows(rows: int, number: int, max_length: int = 16) -> pa.Table:
    """At most `rows` rows of documents that say which source they are from: their first id is its number."""
    generator = np.random.default_rng(number)
    documents = [[number, *generator.integers(50, 99, generator.integers(1, 12)).tolist()] for _ in range(3 * rows)]
    starts = generator.integers(0, 3, len(documents)).tolist()
    return pack(token_documents(documents, starts), max_length).slice(0, rows)


@pytest.fixture(scope="module")
def shards() -> list[pa.Table]:
    # More rows than one Arrow batch holds, and shards that end within a batch.
    return [source_rows(rows, number) for number, rows in enumerate((200, 313, 87))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shards: list[pa.Table]) -> Path:
    return commit_rows(tmp_path_factory.mktemp("prepared") / "folder", shards, max_length=16, pad_id=7)


@given(length=st.integers(1, 3000), seed=st.integers(0, 1 << 40), epoch=st.integers(0, 1000))
def test_every_epoch_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    images = permute(np.arange(length), length, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(images), np.arange(length))


def test_the_order_is_mixed_and_changes_with_seed_and_epoch() -> None:
    length = 10_000
    orders = [permute(np.arange(length), length, seed=seed, epoch=epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(length))[0, 1]) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert all((a == b).mean() < 0.01 for a, b in ((orders[0], orders[1]), (orders[0], orders[2])))


def test_rows_are_those_of_the_shards(folder: Path, shards: list[pa.Table], tmp_path: Path) -> None:
    feed = open_feed(str(folder), seed=3, cache=str(tmp_path))
    positions = np.arange(feed.length)
    rows, numbers = feed.rows(positions), feed.order(positions)
    expected = expand(pa.concat_tables(shards), 16, pad_id=7)
    for name in (*COLUMNS, "tokens", "targets"):
        assert np.array_equal(getattr(rows, name), getattr(expected, name)[numbers])
    tokens, targets = feed.counts(positions)
    assert np.array_equal(tokens, rows.tokens)
    assert np.array_equal(targets, rows.targets)


def test_any_split_of_the_positions_gives_the_same_rows(folder: Path, tmp_path: Path) -> None:
    feed = open_feed(str(folder), seed=3, cache=str(tmp_path))
    positions = np.arange(590, 630)  # across the end of an epoch
    whole = feed.rows(positions).input_ids
    halves = [feed.rows(positions[start::2]).input_ids for start in (0, 1)]
    assert np.array_equal(np.stack(halves, 1).reshape(whole.shape), whole)
    assert feed.rows(np.arange(0)).input_ids.shape == (0, 16)


def read_by(world_size: int, feed: Feed, epoch: int, micro_batch: int = 2) -> list[Rows]:
    """What each rank reads in one epoch: micro-batches go around the ranks, as in the stage program."""
    positions = np.arange(epoch * feed.length, (epoch + 1) * feed.length)
    turns = np.arange(feed.length) // micro_batch % world_size
    return [feed.rows(positions[turns == rank]) for rank in range(world_size)]


def test_an_epoch_is_the_same_rows_for_any_number_of_workers(folder: Path, tmp_path: Path) -> None:
    feed = open_feed(str(folder), seed=3, cache=str(tmp_path))
    epochs = []
    for epoch in (0, 1):
        one, *others = (read_by(world_size, feed, epoch) for world_size in (1, 2, 8))
        for ranks in others:
            # Laid round again, the ranks' rows are the order of a single worker.
            turns = np.argsort(np.arange(feed.length) // 2 % len(ranks), kind="stable")
            for name in COLUMNS:
                together = np.concatenate([getattr(rows, name) for rows in ranks])
                assert np.array_equal(together[np.argsort(turns)], getattr(one[0], name))
        epochs.append(one[0].input_ids)
    first, second = epochs
    assert not np.array_equal(first, second)
    assert np.array_equal(np.sort(first, axis=0), np.sort(second, axis=0))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Feed, dict[int, int]]:
    """A feed, and how many rows each of its sources has."""
    sizes = dict(enumerate((1500, 240, 36, 800)))
    shards = [source_rows(size, number) for number, size in sizes.items()]
    assert [shard.num_rows for shard in shards] == list(sizes.values())
    place = tmp_path_factory.mktemp("mixture")
    return open_feed(str(commit_rows(place / "folder", shards, max_length=16)), seed=1, cache=str(place)), sizes


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_every_rank_sees_the_mixture(world_size: int, mixture: tuple[Feed, dict[int, int]]) -> None:
    """Sources lie in the shards one after another, in blocks; no rank may get another share of them than the data has.

    A rank's rows of a source are a draw without replacement, so their count is hypergeometric.
    """
    feed, sizes = mixture
    for epoch in (0, 1):
        for rows in read_by(world_size, feed, epoch):
            share = len(rows) / feed.length
            for number, size in sizes.items():
                seen = int((rows.input_ids[:, 0] == number).sum())
                deviation = math.sqrt(size * share * (1 - share) * (feed.length - size) / (feed.length - 1))
                assert abs(seen - size * share) < 5 * deviation
            # Neither may a source come in stretches: neighbours of one source are as many as chance makes them.
            sources = rows.input_ids[:, 0]
            alike = sum((size / feed.length) ** 2 for size in sizes.values())
            assert abs((sources[1:] == sources[:-1]).mean() - alike) < 5 * math.sqrt(0.25 / len(sources))


def test_conversion_happens_once_and_leaves_nothing_half_made(folder: Path, tmp_path: Path) -> None:
    open_feed(str(folder), seed=1, cache=str(tmp_path))
    (converted,) = (path for path in tmp_path.iterdir() if path.is_dir())
    stamp = converted.stat().st_mtime_ns
    open_feed(str(folder), seed=2, cache=str(tmp_path))
    assert converted.stat().st_mtime_ns == stamp
    assert not list(tmp_path.glob("*.tmp"))


def test_a_plan_joins_documents_of_all_shards_into_rows(tmp_path: Path) -> None:
    """Sources of one length each, which alone would leave half of every row empty."""
    shards = [
        one_per_row(token_documents([[number] * size] * count, [1] * count))
        for number, (size, count) in enumerate(((9, 40), (7, 40), (3, 20)))
    ]
    folder = commit_rows(tmp_path / "prepared", shards, max_length=16)
    alone = open_feed(str(folder), seed=0, cache=str(tmp_path))
    assert alone.length == 100
    manifest = read_manifest(str(folder))
    planned, written = plan_rows(str(folder), manifest.shards, 16, seed=5)
    update = {"plan": written, "rows": len(planned), "fingerprint": "planned"}
    write_manifest(str(folder), manifest.model_copy(update=update))
    feed = open_feed(str(folder), seed=0, cache=str(tmp_path))
    assert feed.length == 44  # 40 of 9 + 7, 4 of 5 x 3
    rows, before = feed.rows(np.arange(44)), alone.rows(np.arange(100))
    assert np.array_equal(np.bincount(rows.input_ids[rows.segment_ids > 0]), [360, 280, 60])
    assert rows.targets.sum() == before.targets.sum()
    for matrix, segments in zip(rows.input_ids, rows.segment_ids, strict=True):
        for segment in range(1, segments.max() + 1):
            number = matrix[segments == segment]
            assert len(set(number.tolist())) == 1
            assert len(number) == (9, 7, 3)[number[0]]

    content = bytearray((folder / "plan.parquet").read_bytes())
    content[60] ^= 1
    (folder / "plan.parquet").write_bytes(content)
    with pytest.raises(DataError, match="row plan is damaged"):
        open_feed(str(folder), seed=0, cache=str(tmp_path / "other"))


def test_a_damaged_or_missing_shard_is_named(shards: list[pa.Table], tmp_path: Path) -> None:
    folder = commit_rows(tmp_path / "prepared", shards, max_length=16)
    shard = folder / "shards" / "00001.parquet"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"00001\.parquet is damaged"):
        open_feed(str(folder), seed=1, cache=str(tmp_path / "cache"))
    shard.unlink()
    with pytest.raises(DataError, match=r"cannot read shard shards/00001\.parquet"):
        open_feed(str(folder), seed=1, cache=str(tmp_path / "cache"))
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


def test_shards_that_contradict_the_manifest_are_refused(shards: list[pa.Table], tmp_path: Path) -> None:
    folder = commit_rows(tmp_path / "prepared", shards, max_length=16)
    manifest = read_manifest(str(folder))
    write_manifest(str(folder), manifest.model_copy(update={"tokens": manifest.tokens + 1}))
    with pytest.raises(DataError, match="manifest says"):
        open_feed(str(folder), seed=1, cache=str(tmp_path / "cache"))
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


def test_the_stored_shards_are_compact(folder: Path, shards: list[pa.Table]) -> None:
    (stored,) = read_rows(str(folder / "shards" / "00000.parquet"), batch_rows=1000)
    assert stored.schema.equals(PACKED)
    assert stored.combine_chunks().equals(shards[0].combine_chunks())
