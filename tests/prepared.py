"""A small prepared folder, written by hand: what the trainer reads, without the data room's pipeline."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polysome.data.manifest import Manifest, Shard, write_manifest
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
    columns = {
        name: np.zeros((rows, max_length), np.int32) for name in ("input_ids", "labels", "position_ids", "segment_ids")
    }
    columns["input_ids"][:] = tokenizer.pad_token_id
    columns["labels"][:] = -100
    documents = 0
    for row in range(rows):
        place, segment = 0, 0
        while max_length - place >= 6 and not (segment and generator.random() < 0.1):
            size = int(generator.integers(5, min(max_length - place, 24) + 1))
            walk = (np.cumsum(generator.choice([1, 1, 1, 2], size - 2)) + generator.integers(4)) % 4
            tokens = [tokenizer.bos_token_id, *(bases[step] for step in walk), tokenizer.eos_token_id]
            segment += 1
            part = slice(place, place + size)
            columns["input_ids"][row, part] = tokens
            columns["labels"][row, part] = tokens
            prompt = int(generator.integers(1, size - 1))
            columns["labels"][row, place : place + prompt] = -100
            columns["position_ids"][row, part] = np.arange(size)
            columns["segment_ids"][row, part] = segment
            place += size
        documents += segment
    token_counts = (columns["segment_ids"] != 0).sum(1).astype(np.int32)
    target_counts = (columns["labels"] != -100).sum(1).astype(np.int32)
    listed = []
    (folder / "shards").mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(rows), shards)):
        name = f"shards/{number:05d}.parquet"
        arrays = {
            column: pa.FixedSizeListArray.from_arrays(pa.array(values[part].ravel()), max_length)
            for column, values in columns.items()
        }
        table = pa.table({**arrays, "tokens": token_counts[part], "targets": target_counts[part]})
        pq.write_table(table, folder / name)
        listed.append(
            Shard(
                path=name,
                sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest(),
                rows=len(part),
                documents=1,
                tokens=int(token_counts[part].sum()),
                targets=int(target_counts[part].sum()),
            )
        )
    write_manifest(
        str(folder),
        Manifest(
            name="toy",
            kind="instruct",
            recipe_fingerprint="recipe",
            fingerprint=fingerprint,
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer_folder),
            vocabulary_size=len(tokenizer),
            max_length=max_length,
            rows=rows,
            documents=documents,
            tokens=int(token_counts.sum()),
            targets=int(target_counts.sum()),
            packing_efficiency=float(token_counts.sum() / (rows * max_length)),
            shards=listed,
            sources=[],
        ),
    )
    return folder
