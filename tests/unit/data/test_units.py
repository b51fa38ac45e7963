"""Units in one process: blocks are deterministic, commits tell what was written, a full disk commits nothing."""

import errno
import json
from collections import Counter

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from polysome.config import ResourceError
from polysome.data import units
from polysome.data.config import PrepareConfig
from polysome.data.examples import FileReport
from polysome.data.prepare import _numbered, _units, protected
from polysome.data.tokenizer_files import load_tokenizer
from polysome.storage import list_folder, read_json


class FullDisk(MemoryFileSystem):
    """Takes so many files, then has no space left."""

    protocol = "full"
    store = {}
    pseudo_dirs = [""]
    room = 3

    def _open(self, path, mode="rb", **options):
        if "w" in mode and type(self).room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        type(self).room -= "w" in mode
        return super()._open(path, mode, **options)


@pytest.fixture
def work(tiny_tokenizer, monkeypatch):
    """Makes reader and writer of a folder, with blocks of 500 examples."""
    monkeypatch.setattr(units, "BLOCK_EXAMPLES", 500)

    def make(folder, committed=frozenset()):
        config = PrepareConfig(
            name="p",
            kind="instruct",
            tokenizer=tiny_tokenizer,
            max_length=512,
            sources=[{"dataset": "planted_promoter", "split": "train"}],
            exclude=[{"dataset": "planted_promoter", "split": "test"}],
        )
        tokenizer = load_tokenizer(tiny_tokenizer)
        found = _numbered(_units(config, tokenizer))
        tokenizer_json = tokenizer.backend_tokenizer.to_str()
        read = units.ReadBlocks(found, folder, committed)
        return read, units.WriteShards(found, protected(config), folder, tokenizer_json, 512)

    return make


UNIT = pa.table({"unit": [0]})


def test_blocks_are_the_same_at_every_attempt_and_committed_ones_are_passed_over(work, tmp_path):
    read, _ = work(str(tmp_path))
    first, second = list(read(UNIT)), list(read(UNIT))
    assert [table["number"][0].as_py() for table in first] == [*range(8), -1]
    assert first == second
    rest, _ = work(str(tmp_path), frozenset({(0, 0), (0, 5)}))
    assert [table["number"][0].as_py() for table in rest(UNIT)] == [1, 2, 3, 4, 6, 7, -1]


def test_a_commit_says_what_was_written(work, tmp_path):
    read, write = work(str(tmp_path))
    blocks = list(read(UNIT))
    for block in blocks:
        list(write(block))
    names = list_folder(str(tmp_path / units.COMMIT_FOLDER))
    assert len(names) == 9
    statements = [units.from_commit(read_json(str(tmp_path / units.COMMIT_FOLDER / name))) for name in names]
    *shards, file = statements
    assert isinstance(file, units.FileRead)
    assert (file.blocks, file.report.records, type(file.report)) == (8, 4000, FileReport)
    assert sum(statement.examples for statement in shards) == 4000
    # A second attempt writes the same bytes.
    before = {name: (tmp_path / "shards" / name).read_bytes() for name in list_folder(str(tmp_path / "shards"))}
    for block in blocks:
        list(write(block))
    assert before == {name: (tmp_path / "shards" / name).read_bytes() for name in list_folder(str(tmp_path / "shards"))}
    report = FileReport("x", records=3, reasons=Counter({"no label": 2}), changed=Counter({"upper-cased": 1}))
    for statement in [*statements, units.FileRead(1, 2, report)]:
        content = json.loads(json.dumps(units.commit_content(statement)))
        assert units.from_commit(content) == statement


def test_a_full_disk_commits_nothing_and_leaves_no_part(work):
    fsspec.register_implementation("full", FullDisk, clobber=True)
    read, write = work("full://prepared")
    blocks = list(read(UNIT))
    list(write(blocks[0]))
    # Two files for a block: the second block takes the last room for its shard, and cannot be committed.
    with pytest.raises(ResourceError, match="no space is left"):
        list(write(blocks[1]))
    assert list_folder("full://prepared/commits") == ["00000-000000.json"]
    assert not [name for name in FullDisk.store if name.endswith(".tmp")]


def test_blocks_hold_every_example_once_whatever_the_parts():
    generator = np.random.default_rng(0)
    for _ in range(20):
        sizes = generator.integers(0, 70_000, 6)
        parts, start = [], 0
        for size in sizes:
            sequences = pa.array([["AC"]] * int(size), pa.list_(pa.string()))
            parts.append(pa.table({"n": np.arange(start, start + size), "sequences": sequences}))
            start += int(size)
        found = list(units._blocks(iter(parts)))
        assert np.concatenate([block["n"].to_numpy() for block in found] or [[]]).tolist() == list(range(start))
        assert all(block.num_rows <= units.BLOCK_EXAMPLES for block in found)
