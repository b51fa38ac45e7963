"""A prepared folder of given documents, as `polysome prepare` would leave it: one shard, a plan of rows, a manifest."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa

from polysome.data.manifest import Manifest, Shard, SourceReport, write_manifest
from polysome.data.row_plan import plan_rows
from polysome.data.rows import one_per_row, write_rows

SEED = 42
_SHARD = "shards/documents.parquet"


def write_prepared(
    folder: Path,
    documents: pa.Table,
    max_length: int,
    *,
    packed: bool,
    vocabulary_size: int,
    pad_id: int = 0,
    tokenizer_fingerprint: str = "none",
) -> Manifest:
    """Write `documents` (schema TOKENS), planned into rows of `max_length`, or one to a row in their order."""
    rows = one_per_row(documents)
    content = io.BytesIO()
    write_rows(rows, content)
    (folder / _SHARD).parent.mkdir(parents=True)
    (folder / _SHARD).write_bytes(content.getbuffer())
    count, tokens, targets = (
        rows.num_rows,
        *(int(rows[column].to_numpy().sum(dtype=np.int64)) for column in ("tokens", "targets")),
    )
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    shard = Shard(path=_SHARD, sha256=digest, rows=count, documents=count, tokens=tokens, targets=targets)
    planned, plan_file = plan_rows(str(folder), [shard], max_length, SEED) if packed else (range(count), None)
    nothing = dict.fromkeys(
        ("quarantined", "in_other_shares", "duplicates", "conflicts", "beyond_limit", "not_drawn", "cropped"), 0
    )
    manifest = Manifest(
        name="benchmark",
        kind="instruct",
        recipe_fingerprint=digest[:16],
        fingerprint=hashlib.sha256(f"{digest}/{max_length}/{packed}".encode()).hexdigest()[:16],
        tokenizer_fingerprint=tokenizer_fingerprint,
        vocabulary_size=vocabulary_size,
        max_length=max_length,
        pad_id=pad_id,
        rows=len(planned),
        documents=count,
        tokens=tokens,
        targets=targets,
        packing_efficiency=tokens / (len(planned) * max_length),
        plan=plan_file,
        shards=[shard],
        sources=[
            SourceReport(
                dataset="benchmark", version=1, split="train", prompt="concise", licence="generated", molecules=[],
                files={}, records=count, quarantine_reasons={}, changed={}, excluded={}, unmatched=0, examples=count,
                documents=count, tokens=tokens, **nothing,
            )
        ],
    )  # fmt: skip
    write_manifest(str(folder), manifest)
    return manifest
