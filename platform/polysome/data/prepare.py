"""Prepare a training folder on Ray Data: read, clean, select, render, tokenize, pack, commit shards, then the manifest.

Readers stream files into blocks, and any free CPU makes a block into a shard; what waits between them is bounded by
Ray Data's back-pressure. Every shard is committed on its own, so a preparation that was killed goes on where it
stopped. The manifest is written last and makes the folder whole.
"""

import logging
import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from polysome import __version__
from polysome.config import ConfigurationError, DataError
from polysome.data.audit import audit
from polysome.data.audit_report import AUDIT, AuditReport
from polysome.data.config import PrepareConfig, PrepareSettings, Source
from polysome.data.examples import FileReport, read_file
from polysome.data.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from polysome.data.mixture import FileSurvey, Selection, select
from polysome.data.progress import Report, Tally, silent
from polysome.data.protection import Contained, Equal, Protection
from polysome.data.ray_errors import cause_of
from polysome.data.render import Style, check_style, choose
from polysome.data.summary import Outcome, manifest_of
from polysome.data.tokenize import Rendering, tokenize, verify_spans
from polysome.data.tokenizer_files import (
    TOKENIZER_FOLDER,
    copy_tokenizer,
    load_tokenizer,
    local_tokenizer,
    tokenizer_fingerprint,
)
from polysome.data.units import (
    COMMIT_FOLDER,
    QUARANTINE_FOLDER,
    SHARD_FOLDER,
    FileRead,
    ReadBlocks,
    ShardWritten,
    Statement,
    SurveyFiles,
    Unit,
    WriteShards,
    from_commit,
)
from polysome.specs import Dataset, SourceFile, Split, dataset
from polysome.storage import (
    exists,
    fingerprint,
    join,
    list_folder,
    read_json,
    remove,
    resolve,
    version,
    write_json,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFLIGHT_RECORDS = 5_000
PREFLIGHT_BYTES = 1 << 20
PREFLIGHT_DOCUMENTS = 64
RECIPE = "recipe.json"
FORMAT = 2
"""Of shards and commits; a folder of another format is made anew."""
BLOCK_BYTES = 1 << 20
"""What Ray gathers from one worker before it hands it on. Blocks of examples are larger and so travel one by one."""


def prepare(config: PrepareConfig, folder: str, *, report: Report = silent) -> Manifest:
    """Run the recipe into `folder` (any fsspec URL) on the connected Ray cluster.

    A finished equal folder is kept as it is; an unfinished one is gone on with, and what it has committed is not done
    again.

    Two at once in one folder undo each other's work: a caller claims the folder first, as a run does.

    Raises:
        ConfigurationError: the recipe does not fit its data sets or tokenizer; before any worker starts.
        DataError: a source is missing or not what its spec declares. What was committed stays.
        ResourceError: no space is left. What was committed stays.
    """
    check_sources(config, where=f"recipe {config.name}")
    tokenizer_folder = local_tokenizer(config.tokenizer)
    identity = _fingerprint(config, tokenizer_folder)
    if exists(join(folder, MANIFEST)):
        return check_prepared(config, folder)
    tokenizer = load_tokenizer(tokenizer_folder)
    units = _units(config, tokenizer)
    preflight([(unit.spec, unit.source.split, unit.file) for unit in units])
    _preflight_rendering(config, units, tokenizer_folder)
    committed = _committed(folder, identity, _versions(units))
    if config.audit and not exists(join(folder, AUDIT)):
        write_json(join(folder, AUDIT), _audit(config).model_dump())
    copy_tokenizer(tokenizer_folder, join(folder, TOKENIZER_FOLDER))
    protection = protected(config)
    selection = None
    surveys: list[FileSurvey] = []
    if config.selects:
        surveys = _survey(config, units, protection)
        selection = select(config, surveys)
        surveyed = {_file_key(unit): survey.sha256 for unit, survey in zip(units, surveys, strict=True)}
        units = _passes(units, selection)
    else:
        surveyed = {}
        units = _repeats(config, units)
    statements = _run(config, units, protection, folder, tokenizer_folder, committed, report)
    _check_unchanged(units, statements, surveyed)
    outcome = Outcome(units, statements, protection, surveys, selection)
    manifest = manifest_of(config, folder, identity, tokenizer_folder, outcome)
    write_manifest(folder, manifest)
    remove(join(folder, COMMIT_FOLDER))
    return manifest


def check_prepared(config: PrepareConfig, folder: str) -> Manifest:
    """The manifest of a finished folder, if it was made by this recipe with these specs and this tokenizer.

    Raises:
        ConfigurationError: it was made by another recipe, or another tokenizer, chat template or spec of the same name.
    """
    found, tokenizer_folder = read_manifest(folder), local_tokenizer(config.tokenizer)
    if found.recipe_fingerprint != (identity := _fingerprint(config, tokenizer_folder)):
        same = found.tokenizer_fingerprint == tokenizer_fingerprint(tokenizer_folder)
        raise ConfigurationError(
            f"{folder} was prepared by another recipe, spec or version of Polysome"
            if same
            else f"{folder} was prepared with another tokenizer or chat template than {config.tokenizer} now holds",
            where=f"{folder}: fingerprint {found.recipe_fingerprint}, this one is {identity}",
            fix="name another folder or run id, or remove that one",
        )
    return found


def preflight(files: list[tuple[Dataset, Split, SourceFile]]) -> None:
    """Read the head of every file on the driver, so that what is wrong shows before any worker starts.

    Raises:
        DataError: see `read_file`; some PREFLIGHT_RECORDS records of each file are looked at.
    """
    for spec, split, file in files:
        whole = file.model_copy(update={"share": None})
        head = read_file(spec, split, whole, FileReport(file.uri), limit=PREFLIGHT_RECORDS, block_bytes=PREFLIGHT_BYTES)
        for _ in head:
            pass


def protected(config: PrepareSettings) -> Protection:
    """What the recipe's excluded splits hold, ready to be looked up."""
    held: dict[str, list[pa.Array]] = {}
    for item in config.exclude:
        spec = dataset(item.dataset)
        for file in spec.files(item.split, item.subsets):
            for batch in read_file(spec, item.split, file, FileReport(file.uri)):
                held.setdefault(f"{item.dataset}/{item.split}", []).append(batch.examples["sequences"].combine_chunks())
    joined = {name: pa.concat_arrays(parts) for name, parts in held.items()}
    if config.kind == "pretrain":
        return Contained(joined)
    return Equal(joined, both_strands=config.deduplicate == "both_strands")


def check_sources(config: PrepareSettings, *, where: str) -> None:
    """Whether the recipe's sources are declared and fit its kind.

    Raises:
        ConfigurationError: a data set is not declared, has no task to ask about, or no reasoning to train on.
        DataError: a data set has no such split or subset.
    """
    for item in config.exclude:
        dataset(item.dataset).files(item.split, item.subsets)
    for source in config.sources:
        spec = dataset(source.dataset)
        spec.files(source.split, source.subsets)
        if config.kind == "instruct" and spec.kind == "corpus":
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
        if config.kind == "pretrain":
            continue
        if source.prompt == "reasoning" and spec.task and not spec.task.reasoning:
            raise ConfigurationError(
                f"{source.dataset!r} declares no reasoning steps",
                where=f"{where}: sources",
                fix="use the concise prompt for it, or declare task.reasoning in its spec",
            )
        check_style(spec, Style(config.task_tag, source.wording, config.tag_style))


def _fingerprint(config: PrepareConfig, tokenizer_folder: Path) -> str:
    names = sorted({item.dataset for item in config.sources} | {item.dataset for item in config.exclude})
    return fingerprint(
        {
            "format": FORMAT,
            "recipe": config.model_dump(exclude={"tokenizer"}),
            "specs": {name: dataset(name).model_dump() for name in names},
            "tokenizer": tokenizer_fingerprint(tokenizer_folder),
            "version": __version__,
        }
    )


def _units(config: PrepareConfig, tokenizer: "PreTrainedTokenizerBase") -> list[Unit]:
    """The first pass over every file of every source."""
    units: list[Unit] = []
    for position, source in enumerate(config.sources):
        spec = dataset(source.dataset)
        rendering = _rendering(config, source, tokenizer)
        for file in spec.files(source.split, source.subsets):
            units.append(Unit(len(units), position, source, spec, file, 0, rendering))
    return units


def _rendering(config: PrepareConfig, source: Source, tokenizer: "PreTrainedTokenizerBase") -> Rendering:
    """How the examples of a source become text; every pass over it draws its templates and tags anew."""
    return Rendering.of(
        tokenizer,
        chat=config.kind == "instruct",
        prompt=source.prompt,
        seed=int(choose(f"{source.dataset}/{source.split}/{source.prompt}", config.seed, "rendering") * 2**31),
        style=Style(config.task_tag, source.wording, config.tag_style),
    )


def _repeats(config: PrepareConfig, units: list[Unit]) -> list[Unit]:
    """All passes over all files when every example is taken."""
    return _numbered([unit for unit in units for _ in range(unit.source.repeat)])


def _passes(units: list[Unit], selection: Selection) -> list[Unit]:
    """The passes that a selection takes, each with its examples marked."""
    chosen = []
    for unit, masks in zip(units, selection.passes, strict=True):
        chosen += [_taking(unit, mask) for mask in masks]
    return _numbered(chosen)


def _taking(unit: Unit, mask: Any) -> Unit:
    return Unit(unit.index, unit.position, unit.source, unit.spec, unit.file, 0, unit.rendering, np.packbits(mask))


def _numbered(units: list[Unit]) -> list[Unit]:
    """The units in order with their final index, pass number and seed."""
    passes: Counter[tuple[int, int]] = Counter()
    numbered = []
    for index, unit in enumerate(units):
        number = passes[unit.position, unit.index]
        passes[unit.position, unit.index] += 1
        rendering = unit.rendering.for_pass(number)
        numbered.append(Unit(index, unit.position, unit.source, unit.spec, unit.file, number, rendering, unit.taken))
    return numbered


def _preflight_rendering(config: PrepareConfig, units: list[Unit], tokenizer_folder: Path) -> None:
    """Render and tokenize some examples of every source here, and verify what would be trained on."""
    tokenizer_json = (tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8")
    for position in range(len(config.sources)):
        unit = next(unit for unit in units if unit.position == position)
        whole = unit.file.model_copy(update={"share": None})
        head = read_file(unit.spec, unit.source.split, whole, FileReport(unit.file.uri), block_bytes=PREFLIGHT_BYTES)
        found = next((batch.examples for batch in head if batch.examples.num_rows), None)
        if found is not None:
            examples = found.slice(0, PREFLIGHT_DOCUMENTS)
            tokenized = tokenize(examples, unit.spec, unit.rendering, tokenizer_json, config.max_length)
            verify_spans(tokenized.documents, examples, unit.spec, unit.rendering, tokenizer_json)


def _committed(folder: str, identity: str, versions: dict[str, str]) -> list[Statement]:
    """What an interrupted attempt at the same recipe and files has committed; the rests of another are removed."""
    recipe = join(folder, RECIPE)
    begun = {"fingerprint": identity, "files": versions}
    if not exists(recipe) or read_json(recipe) != begun:
        for stale in (RECIPE, AUDIT, COMMIT_FOLDER, SHARD_FOLDER, QUARANTINE_FOLDER):
            remove(join(folder, stale))
        write_json(recipe, begun)
        return []
    commits, shards = join(folder, COMMIT_FOLDER), set(list_folder(join(folder, SHARD_FOLDER)))
    names = [name for name in list_folder(commits) if name.endswith(".json")]
    found = [from_commit(read_json(join(commits, name))) for name in names]
    # A shard that somebody removed is made again.
    return [item for item in found if not (isinstance(item, ShardWritten) and item.shard) or item.shard.name in shards]


def _versions(units: list[Unit]) -> dict[str, str]:
    """What tells whether a file is still the one that was read: size and time, or what else its storage says of it."""
    files = [unit.file for unit in units if unit.spec.format_of(unit.file).kind != "planted"]
    urls = {resolve(file.uri, file.mirror_path) for file in files}
    return {url: version(url) for url in sorted(urls)}


def _unfinished(units: list[Unit], committed: list[Statement]) -> tuple[list[Unit], frozenset[tuple[int, int]]]:
    """Units whose file was not read to its end or that lack a block, and the blocks that are committed."""
    blocks = frozenset((item.unit, item.number) for item in committed if isinstance(item, ShardWritten))
    whole = {
        item.unit
        for item in committed
        if isinstance(item, FileRead) and all((item.unit, number) in blocks for number in range(item.blocks))
    }
    return [unit for unit in units if unit.index not in whole], blocks


def _survey(config: PrepareConfig, units: list[Unit], protection: Protection) -> list[FileSurvey]:
    work = SurveyFiles(units, protection, config.deduplicate == "both_strands")
    with _ray_data():
        rows = _units_dataset(units).map_batches(
            work, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, num_cpus=1
        )
        found = {row["unit"]: pickle.loads(row["survey"]) for row in rows.iter_rows()}
    return [found[unit.index] for unit in units]


def _check_unchanged(units: list[Unit], statements: list[Statement], surveyed: dict[tuple[int, str], str]) -> None:
    """Whether every file was the same in the survey and in every pass over it."""
    for item in statements:
        if isinstance(item, FileRead):
            unit = units[item.unit]
            if surveyed.setdefault(_file_key(unit), item.report.sha256) != item.report.sha256:
                raise DataError(
                    "the file changed while it was prepared",
                    where=unit.file.uri,
                    fix="remove the prepared folder and prepare again, when nobody writes to the file",
                )


def _file_key(unit: Unit) -> tuple[int, str]:
    """Names a file of a source, whatever the pass."""
    return unit.position, unit.file.model_dump_json()


def _run(
    config: PrepareConfig,
    units: list[Unit],
    protection: Protection,
    folder: str,
    tokenizer_folder: Path,
    committed: list[Statement],
    report: Report,
) -> list[Statement]:
    import ray

    tokenizer_json = (tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8")
    waiting, blocks_done = _unfinished(units, committed)
    read = ReadBlocks(units, folder, blocks_done)
    write = WriteShards(units, protection, folder, tokenizer_json, config.max_length)
    statements = list(committed)
    tally = Tally(len(units), _declared(units), report, files=len(units) - len(waiting))
    for statement in committed:
        if isinstance(statement, ShardWritten):
            tally.examples_before += statement.examples
            tally.shard(statement.examples, statement.shard.tokens if statement.shard else 0)
    if not waiting:
        return statements
    readers = max(1, min(len(waiting), int(ray.cluster_resources().get("CPU", 1))))
    with _ray_data():
        # Readers take no CPU of Ray's: a reader that waits for room would otherwise keep the CPU that makes room.
        blocks = _units_dataset(waiting).map_batches(
            read,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(size=readers),
        )
        shards = blocks.map_batches(write, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, num_cpus=1)
        for row in shards.iter_rows():
            statement = pickle.loads(row["statement"])
            statements.append(statement)
            if isinstance(statement, ShardWritten):
                tally.shard(statement.examples, statement.shard.tokens if statement.shard else 0)
            else:
                tally.files += 1
                tally.tell()
    tally.tell(at_once=True)
    return statements


def _units_dataset(units: list[Unit]) -> Any:
    """A Ray data set of unit numbers, one block each, so that each is a task."""
    import ray

    return ray.data.from_arrow([pa.table({"unit": pa.array([unit.index], pa.int64())}) for unit in units])


@contextmanager
def _ray_data() -> Iterator[None]:
    """Ray Data as preparation wants it, and its failures as the product's own errors."""
    import ray

    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.target_max_block_size, context.enable_progress_bars, log.level
    context.target_max_block_size, context.enable_progress_bars = BLOCK_BYTES, False
    # Ray's own log of an execution: progress is told by the job, and an error is raised as well as logged.
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except ray.exceptions.RayError as error:
        if (cause := cause_of(error)) is not None:
            raise cause from None
        raise
    finally:
        context.target_max_block_size, context.enable_progress_bars = before[:2]
        log.setLevel(before[2])


def _audit(config: PrepareConfig) -> AuditReport:
    """Of all tasks that the recipe names; what they are tested on is looked for in its corpora. By Polysome's own
    method, so that the report does not depend on the machine."""
    named = list(dict.fromkeys([source.dataset for source in config.sources] + [i.dataset for i in config.exclude]))
    corpora = [name for name in named if dataset(name).kind == "corpus"]
    return audit([name for name in named if dataset(name).kind == "task"], corpora, method="own")


def _declared(units: list[Unit]) -> int | None:
    """Examples in all passes, as far as selection or the specs tell; None when a file does not."""
    counts = []
    for unit in units:
        if unit.taken is not None:
            counts.append(int(np.unpackbits(unit.taken).sum()))
        elif unit.file.rows is None or unit.spec.window is not None:
            return None
        else:
            lower, upper = unit.file.share or (0, 1)
            counts.append(round(unit.file.rows * (upper - lower)))
    return sum(counts)
