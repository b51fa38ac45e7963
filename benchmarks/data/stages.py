"""Where the time of preparing goes: each stage of Polysome on the first file of a corpus, in one process without Ray.

    python benchmarks/data/stages.py '{"folder": "...", "vocabulary": "bpe", "corpus": "small", "cores": [0]}'

Run by `prepare.py`, which tells what the folder holds. Prints one line of JSON.
"""

import hashlib
import io
import json
import pickle
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepare import pinned

if TYPE_CHECKING:
    from polysome.data.config import PrepareConfig

STAGE_ROUNDS = 5


def main(job: dict[str, Any]) -> None:
    """Time the stages of reading and writing one file; each one's best of the rounds, for a process of its own."""
    recipe = pinned(job)
    with tempfile.TemporaryDirectory(dir=job["folder"]) as folder:
        rounds = [staged(recipe, folder) for _ in range(STAGE_ROUNDS)]
    best = {step: min(found["seconds"][step] for found in rounds) for step in rounds[0]["seconds"]}
    seconds = {
        "read": best["read"],
        "clean": best["read_and_clean"] - best["read"],
        "block": best["read_clean_and_block"] - best["read_and_clean"],
        **{step: best[step] for step in ("protect", "tokenize", "write", "commit", "plan")},
    }
    print(json.dumps({**rounds[0], "seconds": seconds}))


def staged(recipe: "PrepareConfig", folder: str) -> dict[str, Any]:
    """One pass over the first file: seconds of the steps, of which some hold others."""
    import pyarrow as pa

    from polysome.data.examples import FileReport, read_file
    from polysome.data.protection import Contained
    from polysome.data.readers import open_records
    from polysome.data.row_plan import plan_rows
    from polysome.data.rows import one_per_row, write_rows
    from polysome.data.tokenize import Rendering, tokenize
    from polysome.data.tokenizer_files import load_tokenizer
    from polysome.data.units import ReadBlocks, Unit, WriteShards, commit_content
    from polysome.specs import dataset
    from polysome.storage import open_atomic, write_json

    source = recipe.sources[0]
    spec = dataset(source.dataset)
    (file, *_) = spec.files(source.split)
    tokenizer_json = Path(recipe.tokenizer, "tokenizer.json").read_text(encoding="utf-8")
    rendering = Rendering.of(load_tokenizer(recipe.tokenizer), chat=False, prompt=source.prompt, seed=recipe.seed)
    unit = Unit(0, 0, source, spec, file, 0, rendering)
    protection = Contained({})
    reader = ReadBlocks([unit], folder, frozenset())
    writer = WriteShards([unit], protection, folder, tokenizer_json, recipe.max_length)

    seconds: Counter[str] = Counter()

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[step] += time.perf_counter() - started

    with timed("read"), open_records(file.uri, spec.format_of(file)) as records:
        for _ in records:
            pass
    with timed("read_and_clean"):
        for _ in read_file(spec, source.split, file, FileReport(file.uri)):
            pass
    with timed("read_clean_and_block"):
        blocks = list(reader(pa.table({"unit": [0]})))
    proteins = tokens = 0
    shards = []
    for block in blocks[:-1]:
        (told,) = writer(block)
        statement = pickle.loads(told["statement"][0].as_py())
        proteins, tokens = proteins + statement.examples, tokens + statement.shard.tokens
        examples = pa.ipc.open_stream(block["payload"][0].as_buffer()).read_all()
        sequences = examples["sequences"].combine_chunks()
        with timed("protect"):
            free = examples.filter(pa.array(protection.holders(sequences) < 0))
        with timed("tokenize"):
            documents = tokenize(free, spec, rendering, tokenizer_json, recipe.max_length).documents
        with timed("write"):
            content = io.BytesIO()
            write_rows(one_per_row(documents), content)
        with timed("commit"):
            hashlib.sha256(content.getbuffer()).hexdigest()
            with open_atomic(f"{folder}/again.parquet") as handle:
                handle.write(content.getbuffer())
            write_json(f"{folder}/again.json", commit_content(statement))
        shards.append(statement.shard)
    with timed("plan"):
        plan_rows(folder, shards, recipe.max_length, recipe.seed)
    return {"proteins": proteins, "tokens": tokens, "seconds": dict(seconds)}


if __name__ == "__main__" and len(sys.argv) > 1:
    main(json.loads(sys.argv[1]))
