"""Small prepared folders, written by hand: what the trainer reads, without the data room's pipeline."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from polysome.data.manifest import Manifest, Shard, SourceReport, write_manifest
from polysome.data.rows import write_rows
from polysome.data.schema import PACKED, TOKENS
from polysome.data.tokenizer_files import tokenizer_fingerprint
from polysome.models.tokenizer import build_per_base_tokenizer

PAD = 0


def write_prepared(
    folder: Path,
    *,
    rows: int = 24,
    max_length: int = 64,
    shards: int = 2,
    seed: int = 0,
    fingerprint: str = "data-1",
) -> Path:
    """Write `rows` packed rows of documents with a learnable rule (the next base follows from the last one)."""
    tokenizer_folder = folder / "tokenizer"
    build_per_base_tokenizer(tokenizer_folder, ["Is there a promoter? yes no"])
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    bases = tokenizer.convert_tokens_to_ids(list("ACGT"))
    generator = np.random.default_rng(seed)
    packed = []
    for _ in range(rows):
        ids: list[int] = []
        lengths: list[int] = []
        starts: list[int] = []
        while max_length - len(ids) >= 6 and not (lengths and generator.random() < 0.1):
            size = int(generator.integers(5, min(max_length - len(ids), 24) + 1))
            walk = (np.cumsum(generator.choice([1, 1, 1, 2], size - 2)) + generator.integers(4)) % 4
            ids += [tokenizer.bos_token_id, *(bases[step] for step in walk), tokenizer.eos_token_id]
            lengths.append(size)
            starts.append(int(generator.integers(1, size - 1)))
        targets = sum(lengths) - sum(starts)
        row = [[ids], [lengths], [starts], [len(ids)], [targets], [len(lengths)]]
        packed.append(
            pa.Table.from_arrays([pa.array(v, f.type) for v, f in zip(row, PACKED, strict=True)], schema=PACKED)
        )
    table = pa.concat_tables(packed).combine_chunks()
    assert table.num_rows == rows
    parts = [table.slice(part[0], len(part)) for part in np.array_split(np.arange(rows), shards)]
    return commit_rows(
        folder,
        parts,
        max_length=max_length,
        pad_id=tokenizer.pad_token_id,
        vocabulary_size=len(tokenizer),
        tokenizer=tokenizer_fingerprint(tokenizer_folder),
        fingerprint=fingerprint,
    )


def token_documents(documents: list[list[int]], target_starts: list[int]) -> pa.Table:
    """A table of schema TOKENS, with the documents' numbers for ids."""
    names = [str(number) for number in range(len(documents))]
    return pa.table({"id": names, "input_ids": documents, "target_start": target_starts}, TOKENS)


def commit_rows(
    folder: Path,
    shards: list[pa.Table],
    *,
    max_length: int,
    pad_id: int = PAD,
    vocabulary_size: int = 100,
    tokenizer: str = "none",
    fingerprint: str = "data-1",
) -> Path:
    """Write tables of schema PACKED as the shards of a prepared folder, and its manifest."""
    (folder / "shards").mkdir(parents=True)
    listed = []
    for number, table in enumerate(shards):
        name = f"shards/{number:05d}.parquet"
        with open(folder / name, "wb") as handle:
            write_rows(table.cast(PACKED), handle)
        totals = {column: int(np.sum(table[column].to_numpy())) for column in ("documents", "tokens", "targets")}
        sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        listed.append(Shard(path=name, sha256=sha256, rows=table.num_rows, **totals))
    rows, documents, tokens, targets = (
        sum(getattr(shard, column) for shard in listed) for column in ("rows", "documents", "tokens", "targets")
    )
    write_manifest(
        str(folder),
        Manifest(
            name="toy",
            kind="instruct",
            recipe_fingerprint="recipe",
            fingerprint=fingerprint,
            tokenizer_fingerprint=tokenizer,
            vocabulary_size=vocabulary_size,
            max_length=max_length,
            pad_id=pad_id,
            rows=rows,
            documents=documents,
            tokens=tokens,
            targets=targets,
            packing_efficiency=tokens / (rows * max_length),
            shards=listed,
            sources=[_source(documents, tokens)],
        ),
    )
    return folder


def _source(documents: int, tokens: int) -> SourceReport:
    counts = (
        "quarantined",
        "in_other_shares",
        "duplicates",
        "conflicts",
        "beyond_limit",
        "not_drawn",
        "cropped",
        "unmatched",
    )
    return SourceReport(
        dataset="toy",
        version=1,
        split="train",
        prompt="concise",
        licence="CC0-1.0",
        molecules=["dna"],
        files={},
        records=documents,
        quarantine_reasons={},
        changed={},
        excluded={},
        examples=documents,
        documents=documents,
        tokens=tokens,
        **dict.fromkeys(counts, 0),
    )
