"""The manifest of a prepared folder: what it holds, from what, and the fingerprint that a trainer checks."""

from typing import Literal

from polysome.config import Config, DataError, validate
from polysome.storage import exists, join, read_json, write_json

MANIFEST = "manifest.json"


class Shard(Config):
    """One Parquet file of documents, or of packed rows when the manifest has no plan."""

    path: str
    """Relative to the prepared folder."""
    source: int = 0
    """Position of its source in the recipe."""
    sha256: str
    rows: int
    documents: int
    tokens: int
    """Positions that are not padding."""
    targets: int
    """Positions that are trained on."""

    @property
    def name(self) -> str:
        """Of the file, without its folder."""
        return self.path.rsplit("/", 1)[-1]


class PlanFile(Config):
    """Which documents share a row: one Parquet file, column `documents`."""

    path: str
    """Relative to the prepared folder."""
    sha256: str


class SourceReport(Config):
    """What became of one source."""

    dataset: str
    version: int
    split: str
    prompt: str
    licence: str
    molecules: list[str]
    """Types of the molecules of an example."""
    files: dict[str, str]
    """uri -> sha256 of the decompressed content that was read."""
    records: int
    """Records read, before anything was set aside (once, however often its examples stand in the data)."""
    quarantined: int
    quarantine_reasons: dict[str, int]
    in_other_shares: int
    """Records of the files that belong to other splits."""
    changed: dict[str, int]
    """Sequences that cleaning changed, by kind of change."""
    excluded: dict[str, int]
    """Examples left out because a protected split holds their sequences: count by `dataset/split`."""
    duplicates: int
    """Examples left out because they equal an earlier one."""
    conflicts: int
    """Examples left out because others with the same sequences are labelled otherwise."""
    beyond_limit: int
    """Examples left out by the source's `limit`."""
    not_drawn: int
    """Examples left out because the source's part of the mixture is smaller."""
    cropped: int
    """Chats whose molecules were cropped to fit a row (AMB-14), repeats counted."""
    unmatched: int
    """Of those, chats in which `crop: match` found no place and kept the centre."""
    examples: int
    """Examples in an epoch, repeats counted."""
    documents: int
    """Documents packed: examples, or pieces of them in a corpus."""
    tokens: int


class Manifest(Config):
    """`manifest.json`; it is written last, so a folder without it is unfinished."""

    format: Literal[3] = 3
    name: str
    kind: Literal["pretrain", "instruct"]
    recipe_fingerprint: str
    """Of recipe, specs, tokenizer, chat template and code version."""
    fingerprint: str
    """Of the recipe's fingerprint and the content of all shards; what a trainer and a resume must agree in."""
    tokenizer_fingerprint: str
    vocabulary_size: int
    max_length: int
    pad_id: int
    rows: int
    documents: int
    tokens: int
    targets: int
    packing_efficiency: float
    """tokens / (rows x max_length)."""
    tokens_by_molecules: dict[str, int] = {}
    """Tokens by what the examples are about: `dna`, `rna+protein`, …"""
    plan: PlanFile | None = None
    """None: the rows are those of the shards."""
    shards: list[Shard]
    sources: list[SourceReport]


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Commit a prepared folder."""
    write_json(join(folder, MANIFEST), manifest.model_dump())


def read_manifest(folder: str) -> Manifest:
    """The manifest of a prepared folder.

    Raises:
        DataError: the folder is absent, unfinished, or of another format.
    """
    path = join(folder, MANIFEST)
    if not exists(path):
        raise DataError(
            f"{folder} is no finished prepared folder: it has no {MANIFEST}",
            where=folder,
            fix="run `polysome prepare` to its end, or name the folder that it printed",
        )
    return validate(Manifest, read_json(path), where=path)
