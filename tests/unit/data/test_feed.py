"""The feed gives back the rows of the shards in an order that depends on seed, epoch and position alone."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared import write_prepared

from polysome.config import DataError
from polysome.data.feed import open_feed, permute


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # More rows than one Arrow batch holds, and shards that end within a batch.
    return write_prepared(tmp_path_factory.mktemp("prepared"), rows=600, max_length=16, shards=3)


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


def test_rows_are_those_of_the_shards(folder: Path, tmp_path: Path) -> None:
    feed = open_feed(str(folder), seed=3, cache=str(tmp_path))
    table = pq.read_table(sorted((folder / "shards").iterdir()))
    positions = np.arange(feed.length)
    rows, numbers = feed.rows(positions), feed.order(positions)
    for name in ("input_ids", "labels", "position_ids", "segment_ids"):
        expected = np.stack(table.column(name).to_pylist())[numbers]
        assert np.array_equal(getattr(rows, name), expected)
    assert np.array_equal(rows.targets, (rows.labels != -100).sum(1))
    assert np.array_equal(rows.tokens, (rows.segment_ids != 0).sum(1))


def test_any_split_of_the_positions_gives_the_same_rows(folder: Path, tmp_path: Path) -> None:
    feed = open_feed(str(folder), seed=3, cache=str(tmp_path))
    positions = np.arange(590, 630)  # across the end of an epoch
    whole = feed.rows(positions).input_ids
    halves = [feed.rows(positions[start::2]).input_ids for start in (0, 1)]
    assert np.array_equal(np.stack(halves, 1).reshape(whole.shape), whole)
    assert np.array_equal(feed.counts(positions)[1], feed.rows(positions).targets)
    assert len(feed.rows(np.arange(0))) == 0


def test_conversion_happens_once_and_leaves_nothing_half_made(folder: Path, tmp_path: Path) -> None:
    open_feed(str(folder), seed=1, cache=str(tmp_path))
    (converted,) = tmp_path.glob("*.arrow")
    stamp = converted.stat().st_mtime_ns
    open_feed(str(folder), seed=2, cache=str(tmp_path))
    assert converted.stat().st_mtime_ns == stamp
    assert not list(tmp_path.glob("*.tmp"))


def test_shards_that_contradict_the_manifest_are_refused(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "prepared", rows=20, max_length=16)
    shard = sorted((folder / "shards").iterdir())[0]
    pq.write_table(pq.read_table(shard).slice(1), shard)
    with pytest.raises(DataError, match="manifest says"):
        open_feed(str(folder), seed=1, cache=str(tmp_path / "cache"))
    shard.write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot read shard"):
        open_feed(str(folder), seed=1, cache=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*.tmp"))
