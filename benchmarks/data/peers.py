"""What prepares the same corpus without Polysome: a plain script, and Hugging Face `datasets` with TRL's packing.

    python benchmarks/data/peers.py '{"program": "plain", "files": [...], "tokenizer": "...", "output": "...", ...}'

Run by `prepare.py`, each in a process of its own, and with nothing imported of Polysome, so that another environment
can run it. Prints one line of JSON. A document is the tokenizer's begin, a tagged protein, and the end; a longer one
than a row is split; rows hold whole pieces.
"""

import gzip
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

BOS, EOS = "<|bos|>", "<|end|>"
SHARD_DOCUMENTS = 32_768
BATCH_DOCUMENTS = 1000


def main(job: dict[str, Any]) -> None:
    """Pin this process, prepare, and tell documents, tokens, rows and seconds."""
    os.sched_setaffinity(0, job["cores"])
    os.environ.update({"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})
    os.environ.update({"HF_HUB_OFFLINE": "1", "HF_HOME": job["scratch"], "HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    result = PEERS[job["program"]](job)
    print(json.dumps(result))


def plain(job: dict[str, Any]) -> dict[str, Any]:
    """One process, no framework: Biopython parses, `encode_batch_fast` tokenizes, shards are packed and written."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    started = time.perf_counter()
    tokenizer = Tokenizer.from_file(f"{job['tokenizer']}/tokenizer.json")
    max_length = job["max_length"]
    proteins = tokens = rows = 0
    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("lengths", pa.list_(pa.int32()))])
    with pq.ParquetWriter(f"{job['output']}/packed.parquet", schema, compression="zstd") as writer:
        texts = (f"{BOS}<protein>{sequence}</protein>{EOS}" for _, sequence in _records(job["files"]))
        while shard := list(itertools.islice(texts, SHARD_DOCUMENTS)):
            proteins += len(shard)
            pieces = []
            for first in range(0, len(shard), BATCH_DOCUMENTS):
                batch = shard[first : first + BATCH_DOCUMENTS]
                for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                    ids = np.array(encoding.ids, np.int32)
                    pieces += np.split(ids, range(max_length, len(ids), max_length)) if len(ids) > max_length else [ids]
            packed = _best_fit_decreasing([len(piece) for piece in pieces], max_length)
            order = [piece for row in packed for piece in row]
            lengths = np.array([len(pieces[piece]) for piece in order], np.int32)
            documents = np.cumsum([0, *map(len, packed)], dtype=np.int32)
            ends = np.concatenate([[0], np.cumsum(lengths)])[documents].astype(np.int32)
            input_ids = pa.ListArray.from_arrays(ends, np.concatenate([pieces[piece] for piece in order]))
            writer.write_table(pa.table([input_ids, pa.ListArray.from_arrays(documents, lengths)], schema=schema))
            tokens += int(lengths.sum())
            rows += len(packed)
    return _told(proteins, tokens, rows, started, ("tokenizers", "pyarrow", "biopython"))


def encode(job: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer alone, as a bound for all that call it: `encode_batch_fast` on texts that lie ready."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{job['tokenizer']}/tokenizer.json")
    texts = [f"{BOS}<protein>{sequence}</protein>{EOS}" for _, sequence in _records(job["files"])]
    tokens = 0
    started = time.perf_counter()
    for first in range(0, len(texts), BATCH_DOCUMENTS):
        batch = texts[first : first + BATCH_DOCUMENTS]
        tokens += sum(map(len, tokenizer.encode_batch_fast(batch, add_special_tokens=False)))
    return _told(len(texts), tokens, 0, started, ("tokenizers",))


def batched(job: dict[str, Any]) -> dict[str, Any]:
    """`datasets` by hand: batched tokenization in `map`, then TRL's `pack_dataset`."""
    import datasets
    from transformers import PreTrainedTokenizerFast
    from trl import pack_dataset

    datasets.disable_progress_bars()
    started = time.perf_counter()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job["tokenizer"])

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = [text + EOS for text in batch["text"]]
        return {"input_ids": tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]}

    dataset = _dataset(job)
    proteins = len(dataset)
    dataset = dataset.map(tokenize, batched=True, batch_size=BATCH_DOCUMENTS, remove_columns=["text"])
    return _packed(job, pack_dataset(dataset, job["max_length"], "bfd_split"), proteins, started)


def trainer(job: dict[str, Any]) -> dict[str, Any]:
    """The steps of TRL's SFT trainer with `packing=True`, each a `map` over single examples: end, tokens, labels."""
    import datasets
    from transformers import PreTrainedTokenizerFast
    from trl import pack_dataset

    datasets.disable_progress_bars()
    started = time.perf_counter()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job["tokenizer"])
    dataset = _dataset(job)
    proteins = len(dataset)
    dataset = dataset.map(lambda example: {"text": example["text"] + EOS})
    dataset = dataset.map(lambda example: {"input_ids": tokenizer(text=example["text"])["input_ids"]})
    dataset = dataset.map(lambda example: {"labels": list(example["input_ids"])})
    dataset = dataset.select_columns(["input_ids", "labels"])
    return _packed(job, pack_dataset(dataset, job["max_length"], "bfd_split"), proteins, started)


PEERS = {"encode": encode, "plain": plain, "batched": batched, "trainer": trainer}


def _records(files: list[str]) -> Iterator[tuple[str, str]]:
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    for file in files:
        with gzip.open(file, "rt") as text:
            yield from SimpleFastaParser(text)


def _best_fit_decreasing(lengths: list[int], max_length: int) -> list[list[int]]:
    """Which pieces share a row; rows are found by the room they have left, the least that is enough by one shift."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(max_length + 1)]
    rooms = 0
    for piece in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = lengths[piece]
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = max_length, len(rows)
            rows.append([])
        rows[row].append(piece)
        room -= length
        by_room[room].append(row)
        rooms |= 1 << room
    return rows


def _dataset(job: dict[str, Any]) -> Any:
    from datasets import Dataset

    def texts(files: list[str]) -> Iterator[dict[str, str]]:
        for _, sequence in _records(files):
            yield {"text": f"{BOS}<protein>{sequence}</protein>"}

    return Dataset.from_generator(texts, gen_kwargs={"files": job["files"]}, cache_dir=job["scratch"])


def _packed(job: dict[str, Any], dataset: Any, proteins: int, started: float) -> dict[str, Any]:
    """Write and count; counting is not timed."""
    import pyarrow.compute as pc

    dataset.to_parquet(Path(job["output"]) / "packed.parquet")
    told = _told(proteins, 0, len(dataset), started, ("datasets", "trl", "transformers", "tokenizers", "pyarrow"))
    return told | {"tokens": pc.sum(pc.list_value_length(dataset.data["input_ids"])).as_py()}


def _told(proteins: int, tokens: int, rows: int, started: float, packages: tuple[str, ...]) -> dict[str, Any]:
    return {
        "seconds": time.perf_counter() - started,
        "proteins": proteins,
        "tokens": tokens,
        "rows": rows,
        "versions": {name: version(name) for name in packages},
    }


if __name__ == "__main__" and len(sys.argv) > 1:
    main(json.loads(sys.argv[1]))
