"""Prepare a training folder on Ray Data: read, clean, render, tokenize, plan, pack, commit Parquet shards + manifest.

Each file of each source is one unit of work. A unit streams through its reader block by block; a block becomes one
shard, whose name and content depend on the recipe alone. The manifest is written last and makes the folder whole.
"""

import hashlib
import io
import logging
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polysome import __version__
from polysome.config import ConfigurationError, DataError
from polysome.data.config import PrepareConfig, PrepareSettings, Source
from polysome.data.manifest import MANIFEST, Manifest, Shard, SourceReport, read_manifest, write_manifest
from polysome.data.pack import pack
from polysome.data.protection import Contained, Equal, Protection
from polysome.data.ray_errors import cause_of
from polysome.data.render import ChatFrame, choose, sequence_kmer
from polysome.data.sources import FileReport, read_file
from polysome.data.tokenize import Rendering, tokenize
from polysome.data.tokenizer_files import (
    TOKENIZER_FOLDER,
    copy_tokenizer,
    load_tokenizer,
    local_tokenizer,
    tokenizer_fingerprint,
)
from polysome.specs import Dataset, SourceFile, dataset
from polysome.storage import exists, fingerprint, join, open_atomic, remove

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFLIGHT_RECORDS = 50_000
SHARD_FOLDER = "shards"
QUARANTINE_FOLDER = "quarantine"


@dataclass(frozen=True)
class Unit:
    """One file of one source in one repeat: what a worker gets."""

    index: int
    source: Source
    spec: Dataset
    file: SourceFile
    rendering: Rendering
    repeat: int


def prepare(config: PrepareConfig, folder: str) -> Manifest:
    """Run the recipe into `folder` (any fsspec URL) on the connected Ray cluster; a finished equal folder is kept.

    Raises:
        ConfigurationError: the recipe does not fit its data sets or tokenizer; before any worker starts.
        DataError: a source is missing or not what its spec declares; nothing is committed.
    """
    check_sources(config, where=f"recipe {config.name}")
    tokenizer_folder = local_tokenizer(config.tokenizer)
    identity = _fingerprint(config, tokenizer_folder)
    if exists(join(folder, MANIFEST)) and (found := read_manifest(folder).recipe_fingerprint) != identity:
        raise ConfigurationError(
            f"{folder} holds prepared data of another recipe ({found}, this one is {identity})",
            where=folder,
            fix="name another folder, or remove that one",
        )
    units = _units(config, load_tokenizer(tokenizer_folder))
    preflight([(unit.spec, unit.source.split, unit.file) for unit in units if unit.repeat == 0])
    for stale in (MANIFEST, SHARD_FOLDER, QUARANTINE_FOLDER):
        remove(join(folder, stale))
    copy_tokenizer(tokenizer_folder, join(folder, TOKENIZER_FOLDER))
    statements = _run(config, units, protected(config), folder, tokenizer_folder)
    manifest = _manifest(config, identity, tokenizer_folder, units, statements)
    write_manifest(folder, manifest)
    return manifest


def preflight(files: list[tuple[Dataset, str, SourceFile]]) -> None:
    """Read the head of every file on the driver, so that what is wrong shows before any worker starts.

    Raises:
        DataError: see `read_file`; up to `PREFLIGHT_RECORDS` records of each file are looked at.
    """
    for spec, split, file in files:
        for _ in read_file(spec, split, file, FileReport(file.uri), limit=PREFLIGHT_RECORDS):  # type: ignore[arg-type]
            pass


def protected(config: PrepareSettings) -> Protection:
    """What the recipe's excluded splits hold, ready to be looked up."""
    held: dict[str, list[list[str]]] = {}
    for item in config.exclude:
        spec = dataset(item.dataset)
        for file in spec.files(item.split):
            for batch in read_file(spec, item.split, file, FileReport(file.uri)):
                held.setdefault(f"{item.dataset}/{item.split}", []).extend(batch.examples["sequences"].to_pylist())
    return Contained(held) if config.kind == "pretrain" else Equal(held)


def check_sources(config: PrepareSettings, *, where: str) -> None:
    """Whether the recipe's sources are declared and fit its kind.

    Raises:
        ConfigurationError: a data set is not declared, has no task to ask about, or no reasoning to train on.
        DataError: a data set has no such split.
    """
    for source in config.sources:
        spec = dataset(source.dataset)
        spec.files(source.split)
        if config.kind == "instruct" and spec.task is None:
            raise ConfigurationError(
                f"{source.dataset!r} is an unlabelled corpus and cannot be asked about",
                where=f"{where}: sources",
                fix="use it in a recipe of kind pretrain",
            )
        if config.kind == "pretrain" and len(spec.molecules) != 1:
            raise ConfigurationError(
                f"the records of {source.dataset!r} have {len(spec.molecules)} molecules, a corpus document is one",
                where=f"{where}: sources",
                fix="use it in a recipe of kind instruct",
            )
        if source.prompt == "reasoning" and config.kind == "instruct" and spec.task and not spec.task.reasoning:
            raise ConfigurationError(
                f"{source.dataset!r} declares no reasoning steps",
                where=f"{where}: sources",
                fix="use the concise prompt for it, or declare task.reasoning in its spec",
            )


def _fingerprint(config: PrepareConfig, tokenizer_folder: Path) -> str:
    names = sorted({item.dataset for item in config.sources} | {item.dataset for item in config.exclude})
    return fingerprint(
        {
            "recipe": config.model_dump(exclude={"tokenizer"}),
            "specs": {name: dataset(name).model_dump() for name in names},
            "tokenizer": tokenizer_fingerprint(tokenizer_folder),
            "version": __version__,
        }
    )


def _units(config: PrepareConfig, tokenizer: "PreTrainedTokenizerBase") -> list[Unit]:
    units: list[Unit] = []
    for source in config.sources:
        spec = dataset(source.dataset)
        frame = ChatFrame.of(tokenizer, source.prompt) if config.kind == "instruct" else None
        for repeat in range(source.repeat):
            rendering = Rendering(
                frame=frame,
                kmer=sequence_kmer(tokenizer),
                bos=str(tokenizer.bos_token or ""),
                eos=str(tokenizer.eos_token),
                prompt=source.prompt,
                tag_fraction=config.tag_fraction,
                seed=int(choose(f"{source.dataset}/{source.split}/{source.prompt}", config.seed, str(repeat)) * 2**31),
            )
            for file in spec.files(source.split):
                units.append(Unit(len(units), source, spec, file, rendering, repeat))
    return units


@dataclass(frozen=True)
class _UnitWork:
    """Runs in the workers: a unit in, one line of statistics per shard and one for the file out."""

    units: list[Unit]
    protection: Protection
    folder: str
    tokenizer_json: str
    max_length: int
    pad_id: int
    seed: int

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for index in batch["unit"].to_pylist():
            yield from self._unit(self.units[index])

    def _unit(self, unit: Unit) -> Iterator[pa.Table]:
        report = FileReport(unit.file.uri)
        excluded: Counter[str] = Counter()
        kept = beyond_limit = 0
        quarantine = []
        for number, block in enumerate(read_file(unit.spec, unit.source.split, unit.file, report)):
            quarantine.append(block.quarantine)
            holders = [self.protection.holder(sequences) for sequences in block.examples["sequences"].to_pylist()]
            excluded.update(holder for holder in holders if holder)
            examples = block.examples.filter(pa.array([holder is None for holder in holders], pa.bool_()))
            if unit.source.limit is not None:
                # The limit counts per file, so that units stay independent of one another.
                room = unit.source.limit - kept
                beyond_limit += max(0, examples.num_rows - room)
                examples = examples.slice(0, room)
            kept += examples.num_rows
            if examples.num_rows:
                yield self._shard(unit, number, examples)
        if report.quarantined:
            with open_atomic(join(self.folder, f"{QUARANTINE_FOLDER}/{unit.index:05d}.parquet")) as handle:
                pq.write_table(pa.concat_tables(quarantine), handle)
        yield _line(
            _FileRead(
                unit.index,
                report.records,
                report.quarantined,
                dict(excluded),
                beyond_limit,
                report.sha256,
                report.reasons,
            )
        )

    def _shard(self, unit: Unit, number: int, examples: pa.Table) -> pa.Table:
        documents = tokenize(examples, unit.spec, unit.rendering, self.tokenizer_json, self.max_length)
        # Shuffled before packing, so that which documents share a row does not follow the order of the source.
        order = np.random.default_rng([self.seed, unit.index, number]).permutation(documents.num_rows)
        rows = pack(documents.take(pa.array(order)), self.max_length, self.pad_id)
        path = f"{SHARD_FOLDER}/{unit.index:05d}-{number:06d}.parquet"
        content = io.BytesIO()
        pq.write_table(rows, content, compression="zstd", row_group_size=4096)
        with open_atomic(join(self.folder, path)) as handle:
            handle.write(content.getbuffer())
        shard = Shard(
            path=path,
            sha256=hashlib.sha256(content.getbuffer()).hexdigest(),
            rows=rows.num_rows,
            documents=documents.num_rows,
            tokens=int(np.sum(rows["tokens"].to_numpy())),
            targets=int(np.sum(rows["targets"].to_numpy())),
        )
        return _line(_ShardWritten(unit.index, shard))


@dataclass(frozen=True)
class _ShardWritten:
    """What a worker says of a shard."""

    unit: int
    shard: Shard


@dataclass(frozen=True)
class _FileRead:
    """What a worker says of a file that it read to its end."""

    unit: int
    records: int
    quarantined: int
    excluded: dict[str, int]
    beyond_limit: int
    sha256: str
    reasons: dict[str, int]


def _line(statement: _ShardWritten | _FileRead) -> pa.Table:
    """One row of Ray Data's output: few and small, so that they travel as they are."""
    return pa.table({"statement": pa.array([pickle.dumps(statement)], pa.binary())})


def _run(
    config: PrepareConfig, units: list[Unit], protection: Protection, folder: str, tokenizer_folder: Path
) -> list[_ShardWritten | _FileRead]:
    import ray

    tokenizer_json = (tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8")
    pad_id = load_tokenizer(tokenizer_folder).pad_token_id or 0
    work = _UnitWork(units, protection, folder, tokenizer_json, config.max_length, pad_id, config.seed)
    table = pa.table({"unit": pa.array([unit.index for unit in units], pa.int64())})
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # Ray's own log of an execution: the manifest tells what came out, and an error is raised as well as logged.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    rows = ray.data.from_arrow([table.slice(index, 1) for index in range(len(units))]).map_batches(
        work, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, num_cpus=1
    )
    try:
        return [pickle.loads(row["statement"]) for row in rows.take_all()]
    except ray.exceptions.RayError as error:
        if (cause := cause_of(error)) is not None:
            raise cause from None
        raise


def _manifest(
    config: PrepareConfig,
    identity: str,
    tokenizer_folder: Path,
    units: list[Unit],
    statements: list[_ShardWritten | _FileRead],
) -> Manifest:
    written = [statement for statement in statements if isinstance(statement, _ShardWritten)]
    read = [statement for statement in statements if isinstance(statement, _FileRead)]
    if not written:
        raise DataError(
            "nothing is left to train on",
            where=f"recipe {config.name}",
            fix="every example was excluded or set aside; check exclude and limit",
        )
    shards = [statement.shard for statement in written]
    rows, tokens = sum(shard.rows for shard in shards), sum(shard.tokens for shard in shards)
    return Manifest(
        name=config.name,
        kind=config.kind,
        recipe_fingerprint=identity,
        fingerprint=fingerprint([identity, [shard.sha256 for shard in shards]]),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer_folder),
        vocabulary_size=len(load_tokenizer(tokenizer_folder)),
        max_length=config.max_length,
        rows=rows,
        documents=sum(shard.documents for shard in shards),
        tokens=tokens,
        targets=sum(shard.targets for shard in shards),
        packing_efficiency=round(tokens / (rows * config.max_length), 6),
        shards=shards,
        sources=[_source_report(source, units, read, written) for source in config.sources],
    )


def _source_report(
    source: Source, units: list[Unit], read: list[_FileRead], written: list[_ShardWritten]
) -> SourceReport:
    mine = {unit.index for unit in units if unit.source is source}
    first = [item for item in read if item.unit in mine and units[item.unit].repeat == 0]
    reasons: Counter[str] = Counter()
    excluded: Counter[str] = Counter()
    for item in first:
        reasons.update(item.reasons)
        excluded.update(item.excluded)
    spec = dataset(source.dataset)
    return SourceReport(
        dataset=source.dataset,
        version=spec.version,
        split=source.split,
        prompt=source.prompt,
        repeat=source.repeat,
        licence=spec.licence,
        files={units[item.unit].file.uri: item.sha256 for item in first},
        records=sum(item.records for item in first),
        quarantined=sum(item.quarantined for item in first),
        quarantine_reasons=dict(reasons),
        excluded=dict(excluded),
        beyond_limit=sum(item.beyond_limit for item in first),
        documents=sum(item.shard.documents for item in written if item.unit in mine),
    )
