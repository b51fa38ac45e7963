"""What came out of a preparation: the manifest, made of what the workers said, and the plan of its rows."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from polysome.config import DataError
from polysome.data.config import PrepareConfig
from polysome.data.manifest import Manifest, Shard, SourceReport
from polysome.data.mixture import FileSurvey, Selection
from polysome.data.protection import Protection
from polysome.data.row_plan import plan_rows
from polysome.data.tokenizer_files import load_tokenizer, tokenizer_fingerprint
from polysome.data.units import FileRead, ShardWritten, Statement, Unit, count_held
from polysome.specs import dataset
from polysome.storage import fingerprint


@dataclass(frozen=True)
class Outcome:
    """All that was done.

    Attributes:
        units: every pass over every file.
        statements: of this and of interrupted attempts.
        surveys, selection: what examples were counted and chosen by; empty and None when all were taken.
    """

    units: list[Unit]
    statements: list[Statement]
    protection: Protection
    surveys: list[FileSurvey]
    selection: Selection | None


def manifest_of(
    config: PrepareConfig, folder: str, identity: str, tokenizer_folder: Path, outcome: Outcome
) -> Manifest:
    """Plan the rows of the committed shards, and tell what they hold.

    Raises:
        DataError: nothing is left to train on.
    """
    written = {(item.unit, item.number): item for item in outcome.statements if isinstance(item, ShardWritten)}
    read = {item.unit: item for item in outcome.statements if isinstance(item, FileRead)}
    for unit in outcome.units:
        lost = [n for n in range(read[unit.index].blocks) if (unit.index, n) not in written]
        assert not lost, f"blocks {lost} of unit {unit.index} were read and not written"
    shards = [item.shard for _, item in sorted(written.items()) if item.shard is not None]
    if not shards:
        raise DataError(
            "nothing is left to train on",
            where=f"recipe {config.name}",
            fix="every example was excluded or set aside; check exclude, limit and mixture",
        )
    planned, plan_file = plan_rows(folder, shards, config.max_length, config.seed)
    rows, tokens = len(planned), sum(shard.tokens for shard in shards)
    tokenizer = load_tokenizer(tokenizer_folder)
    sources = [
        _source_report(position, config, outcome, read, list(written.values()))
        for position in range(len(config.sources))
    ]
    return Manifest(
        name=config.name,
        kind=config.kind,
        recipe_fingerprint=identity,
        fingerprint=fingerprint([identity, plan_file.sha256, [shard.sha256 for shard in shards]]),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer_folder),
        vocabulary_size=len(tokenizer),
        pad_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        max_length=config.max_length,
        rows=rows,
        documents=sum(shard.documents for shard in shards),
        tokens=tokens,
        targets=sum(shard.targets for shard in shards),
        packing_efficiency=round(tokens / (rows * config.max_length), 6),
        tokens_by_molecules=_by_molecules(sources),
        plan=plan_file,
        shards=shards,
        sources=sources,
    )


def _by_molecules(sources: list[SourceReport]) -> dict[str, int]:
    tokens: Counter[str] = Counter()
    for source in sources:
        tokens["+".join(source.molecules) or "instructions"] += source.tokens
    return dict(tokens)


def _source_report(
    position: int,
    config: PrepareConfig,
    outcome: Outcome,
    read: dict[int, FileRead],
    written: list[ShardWritten],
) -> SourceReport:
    units, selection = outcome.units, outcome.selection
    source = config.sources[position]
    spec = dataset(source.dataset)
    mine = {unit.index for unit in units if unit.position == position}
    # What reading found is told once, not once per pass.
    first = [read[unit.index].report for unit in units if unit.position == position and unit.number == 0]
    reasons: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    excluded: Counter[str] = Counter()
    for report in first:
        reasons.update(report.reasons)
        changed.update(report.changed)
    made = [item for item in written if item.unit in mine]
    for item in made:
        if units[item.unit].number == 0:
            excluded.update(item.excluded)
    for survey in outcome.surveys:
        if survey.source == position:
            excluded.update(count_held(survey.held, outcome.protection))
    shards: list[Shard] = [item.shard for item in made if item.shard is not None]
    return SourceReport(
        dataset=source.dataset,
        version=spec.version,
        split=source.split,
        prompt=source.prompt,
        licence=spec.licence,
        molecules=[molecule.type for molecule in spec.molecules],
        files={report.uri: report.sha256 for report in first},
        records=sum(report.records for report in first),
        quarantined=sum(report.quarantined for report in first),
        quarantine_reasons=dict(reasons),
        in_other_shares=sum(report.in_other_shares for report in first),
        changed=dict(changed),
        excluded=dict(excluded),
        duplicates=selection.duplicates[position] if selection else 0,
        conflicts=selection.conflicts[position] if selection else 0,
        beyond_limit=selection.beyond_limit[position] if selection else 0,
        not_drawn=selection.not_drawn[position] if selection else 0,
        cropped=sum(item.cropped for item in made),
        unmatched=sum(item.unmatched for item in made),
        examples=sum(item.examples - sum(item.excluded.values()) for item in made),
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
    )
