"""Units of preparation: one file of one source in one pass, read into blocks, and blocks made into committed shards.

This is what runs in the workers. A unit's blocks, and the bytes of each shard, depend on the recipe alone. A shard is
committed by a small file beside it, written after it; what is committed is never done again.
"""

import hashlib
import io
import pickle
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from polysome.data.config import Source
from polysome.data.duplicates import example_keys, label_keys
from polysome.data.examples import FileReport, read_file
from polysome.data.manifest import Shard
from polysome.data.memory import keep_memory
from polysome.data.meters import count_shard
from polysome.data.mixture import FileSurvey
from polysome.data.protection import Protection
from polysome.data.rows import one_per_row, write_rows
from polysome.data.tokenize import Rendering, tokenize
from polysome.specs import Dataset, SourceFile
from polysome.storage import join, open_atomic, write_json

SHARD_FOLDER = "shards"
COMMIT_FOLDER = "commits"
QUARANTINE_FOLDER = "quarantine"
BLOCK_EXAMPLES = 32_768
BLOCK_CHARACTERS = 16 << 20
"""A block, and so a shard, holds no more examples and hardly more characters than these."""


@dataclass(frozen=True)
class Unit:
    """One file of one source in one pass over it.

    Attributes:
        index: position among the units of the recipe.
        position: of the source in the recipe.
        number: of the pass, from 0.
        taken: packed bits of the file's examples that this pass takes; None: all that are not protected.
    """

    index: int
    position: int
    source: Source
    spec: Dataset
    file: SourceFile
    number: int
    rendering: Rendering
    taken: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class ShardWritten:
    """What became of one block."""

    unit: int
    number: int
    examples: int
    """In the block, those excluded counted."""
    shard: Shard | None
    """None when nothing of the block was left."""
    excluded: dict[str, int] = field(default_factory=dict)
    cropped: int = 0
    unmatched: int = 0


@dataclass(frozen=True)
class FileRead:
    """What a worker says of a file that it read to its end."""

    unit: int
    blocks: int
    report: FileReport


Statement = ShardWritten | FileRead


@dataclass(frozen=True)
class ReadBlocks:
    """Units in (column `unit`); blocks of examples out, one a row, and what was read of each file at its end.

    Blocks in `committed` are passed over. It is what was committed when the job began, so that an attempt which Ray
    repeats gives the same blocks.
    """

    units: list[Unit]
    folder: str
    committed: frozenset[tuple[int, int]]

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        keep_memory()
        for index in batch["unit"].to_pylist():
            yield from self._blocks(self.units[index])

    def _blocks(self, unit: Unit) -> Iterator[pa.Table]:
        report = FileReport(unit.file.uri)
        number = 0
        for block in _blocks(self._examples(unit, report)):
            if (unit.index, number) not in self.committed:
                yield _row(unit.index, number, _to_bytes(block))
            number += 1
        yield _row(unit.index, -1, pa.py_buffer(pickle.dumps(FileRead(unit.index, number, report))))

    def _examples(self, unit: Unit, report: FileReport) -> Iterator[pa.Table]:
        """Those that the pass takes, as they are read; what is set aside is written down by the first pass."""
        taken = None if unit.taken is None else np.unpackbits(unit.taken).astype(bool)
        seen = 0
        for number, batch in enumerate(read_file(unit.spec, unit.source.split, unit.file, report)):
            if batch.quarantine.num_rows and unit.number == 0:
                path = f"{QUARANTINE_FOLDER}/{unit.index:05d}-{number:06d}.parquet"
                with open_atomic(join(self.folder, path)) as handle:
                    pq.write_table(batch.quarantine, handle)
            rows = batch.examples.num_rows
            yield batch.examples if taken is None else batch.examples.filter(pa.array(taken[seen : seen + rows]))
            seen += rows


@dataclass(frozen=True)
class WriteShards:
    """Blocks in, committed shards and one statement for each out; statements about files pass through."""

    units: list[Unit]
    protection: Protection
    folder: str
    tokenizer_json: str
    max_length: int

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        keep_memory()
        for row in range(batch.num_rows):
            unit, number = batch["unit"][row].as_py(), batch["number"][row].as_py()
            payload = batch["payload"][row].as_buffer()
            if number < 0:
                statement: Statement = pickle.loads(payload)
            else:
                statement = self._shard(self.units[unit], number, pa.ipc.open_stream(payload).read_all())
            write_json(join(self.folder, COMMIT_FOLDER, commit_name(statement)), commit_content(statement))
            yield pa.table({"statement": pa.array([pickle.dumps(statement)], pa.binary())})

    def _shard(self, unit: Unit, number: int, examples: pa.Table) -> ShardWritten:
        started, count = time.perf_counter(), examples.num_rows
        excluded: Counter[str] = Counter()
        if unit.taken is None:
            held = self.protection.holders(examples["sequences"].combine_chunks())
            excluded = count_held(held, self.protection)
            if excluded:
                examples = examples.filter(pa.array(held < 0))
        if not examples.num_rows:
            return ShardWritten(unit.index, number, count, None, dict(excluded))
        tokenized = tokenize(examples, unit.spec, unit.rendering, self.tokenizer_json, self.max_length)
        rows = one_per_row(tokenized.documents)
        content = io.BytesIO()
        write_rows(rows, content)
        path = f"{SHARD_FOLDER}/{unit.index:05d}-{number:06d}.parquet"
        with open_atomic(join(self.folder, path)) as handle:
            handle.write(content.getbuffer())
        shard = Shard(
            path=path,
            source=unit.position,
            sha256=hashlib.sha256(content.getbuffer()).hexdigest(),
            rows=rows.num_rows,
            documents=rows.num_rows,
            tokens=int(rows["tokens"].to_numpy().sum(dtype=np.int64)),
            targets=int(rows["targets"].to_numpy().sum(dtype=np.int64)),
        )
        count_shard(unit.spec.name, shard, time.perf_counter() - started)
        return ShardWritten(unit.index, number, count, shard, dict(excluded), tokenized.cropped, tokenized.unmatched)


@dataclass(frozen=True)
class SurveyFiles:
    """Units in, one FileSurvey for each out: which examples there are, before any is taken."""

    units: list[Unit]
    protection: Protection
    both_strands: bool

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for index in batch["unit"].to_pylist():
            unit = self.units[index]
            report = FileReport(unit.file.uri)
            batches = read_file(unit.spec, unit.source.split, unit.file, report)
            parts = [self._part(unit, batch.examples) for batch in batches]
            survey = FileSurvey(
                unit.position, report.sha256, *(np.concatenate(columns) for columns in zip(*parts, strict=True))
            )
            yield pa.table({"unit": [index], "survey": pa.array([pickle.dumps(survey)], pa.binary())})

    def _part(self, unit: Unit, examples: pa.Table) -> tuple[npt.NDArray[np.generic], ...]:
        sequences = examples["sequences"].combine_chunks()
        keys = example_keys(examples, unit.spec.molecules, both_strands=self.both_strands)
        if unit.source.wording == "conditioned" and unit.file.subset:
            # A conditioned question names the subset: the same sequence asked about another one is another example.
            keys = keys ^ np.uint64(int.from_bytes(hashlib.blake2b(unit.file.subset.encode(), digest_size=8).digest()))
        return keys, label_keys(examples["label"], examples["answer"]), self.protection.holders(sequences)


def count_held(held: npt.NDArray[np.int32], protection: Protection) -> Counter[str]:
    """Examples by the protected split that holds them."""
    places, counts = np.unique(held[held >= 0], return_counts=True)
    return Counter(dict(zip((protection.names[place] for place in places), counts.tolist(), strict=True)))


def commit_name(statement: Statement) -> str:
    """The file in the commit folder that stands for a statement."""
    if isinstance(statement, FileRead):
        return f"{statement.unit:05d}-read.json"
    return f"{statement.unit:05d}-{statement.number:06d}.json"


def commit_content(statement: Statement) -> dict[str, Any]:
    """A statement as JSON."""
    if isinstance(statement, FileRead):
        return vars(statement) | {"report": vars(statement.report)}
    return vars(statement) | {"shard": statement.shard and statement.shard.model_dump()}


def from_commit(content: dict[str, Any]) -> Statement:
    """A statement read back from its commit."""
    if "report" in content:
        report = content["report"]
        counted: dict[str, Any] = {name: Counter(report[name]) for name in ("reasons", "changed")}
        counted["first"] = report["first"] and tuple(report["first"])
        return FileRead(content["unit"], content["blocks"], FileReport(**(report | counted)))
    shard = content["shard"]
    return ShardWritten(**(content | {"shard": None if shard is None else Shard(**shard)}))


def _blocks(parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Examples in blocks of BLOCK_EXAMPLES, or fewer where so many hold more than BLOCK_CHARACTERS, in their order."""
    waiting: list[pa.Table] = []
    rows = size = 0
    for part in parts:
        waiting.append(part)
        rows, size = rows + part.num_rows, size + part["sequences"].nbytes
        if rows < BLOCK_EXAMPLES and size < BLOCK_CHARACTERS:
            continue
        joined = pa.concat_tables(waiting)
        step = max(1, min(BLOCK_EXAMPLES, BLOCK_CHARACTERS * rows // max(1, size)))
        full = rows // step * step
        for start in range(0, full, step):
            yield joined.slice(start, step)
        rest = joined.slice(full)
        waiting, rows, size = [rest], rest.num_rows, rest["sequences"].nbytes
    if rows:
        yield pa.concat_tables(waiting)


def _row(unit: int, number: int, payload: pa.Buffer) -> pa.Table:
    """One block on its way between workers, as one row, so that Ray neither cuts nor joins blocks; not copied here."""
    bounds = pa.py_buffer(np.array([0, payload.size], np.int64))
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, bounds, payload])
    return pa.table({"unit": [unit], "number": [number], "payload": column})


def _to_bytes(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()
