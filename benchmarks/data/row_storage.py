"""How packed rows are stored: size and speed of `polysome.data.rows.write_rows` beside other ways to write them.

    python benchmarks/data/row_storage.py

Token ids of two kinds, drawn with a seed: per base (30 symbols, four of them frequent) and byte-pair encoding (4,096
symbols, frequencies falling with the rank); rows of 1,024 positions. Peers: pyarrow's defaults, other encodings under
other codecs, and an uncompressed Arrow file. Every result is read back and compared. Speeds are per second of CPU on
one thread. Writes `benchmarks/data/results/row_storage.json`.
"""

import io
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import polysome
from polysome.data.pack import pack
from polysome.data.rows import read_rows, write_rows
from polysome.data.schema import TOKENS
from polysome.operations.machine import inspect
from polysome.storage import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "data" / "results" / "row_storage.json"
SEED = 42
DOCUMENTS = 8192
MAX_LENGTH = 1024
ROUNDS = 7

IDS = "input_ids.list.element"
ENCODINGS: dict[str, dict[str, Any]] = {
    "dictionary": {"use_dictionary": True},
    "plain": {"use_dictionary": False},
    "delta": {"use_dictionary": False, "column_encoding": {IDS: "DELTA_BINARY_PACKED"}},
    "split bytes": {"use_dictionary": False, "column_encoding": {IDS: "BYTE_STREAM_SPLIT"}},
}
CODECS: dict[str, dict[str, Any]] = {
    "none": {"compression": "none"},
    "snappy": {"compression": "snappy"},
    "lz4": {"compression": "lz4"},
    "zstd 1": {"compression": "zstd", "compression_level": 1},
    "zstd 3": {"compression": "zstd", "compression_level": 3},
}
WRITE_ROWS = "write_rows"

Writer = Callable[[pa.Table, IO[bytes]], None]


def main() -> None:
    """Measure every way on both kinds of ids, print the table, write the result file."""
    measured = [
        measure(kind, way, writer, rows) for kind, rows in row_kinds().items() for way, writer in writers().items()
    ]
    chosen = {item["ids"]: item for item in measured if item["way"] == WRITE_ROWS}
    for item in measured:
        for name in ("write_tokens_per_second", "bytes_per_token"):
            item[f"{name}_over_write_rows"] = round(item[name] / chosen[item["ids"]][name], 3)
    Console(width=None if sys.stdout.isatty() else 140).print(table(measured))
    write_json(
        str(RESULT),
        {
            "benchmark": "row_storage",
            "command": "python benchmarks/data/row_storage.py",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
            "polysome": polysome.__version__,
            "cpus": inspect(ROOT).cpus,
            "seed": SEED,
            "rounds": ROUNDS,
            "results": measured,
        },
    )
    print(f"written: {RESULT.relative_to(ROOT)}")


def row_kinds() -> dict[str, pa.Table]:
    """Packed rows (schema PACKED) by kind of ids."""
    generator = np.random.default_rng(SEED)
    lengths = np.clip(np.rint(generator.lognormal(np.log(340) - 0.245, 0.7, DOCUMENTS)), 1, MAX_LENGTH).astype(np.int64)
    frequencies = {
        "per base": np.concatenate([np.full(4, 0.2), np.full(26, 0.2 / 26)]),
        "4k BPE": 1 / (np.arange(4096) + 20.0) ** 0.7,
    }
    return {kind: packed(lengths, weights / weights.sum(), generator) for kind, weights in frequencies.items()}


def packed(lengths: np.ndarray, probabilities: np.ndarray, generator: np.random.Generator) -> pa.Table:
    """Rows of documents of these lengths, ids drawn from `probabilities`, half of each document trained on."""
    ids = generator.choice(len(probabilities), size=int(lengths.sum()), p=probabilities).astype(np.int32)
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    names = pa.array(np.arange(len(lengths))).cast(pa.string())
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))
    starts = pa.array((lengths // 2).astype(np.int32))
    return pack(pa.Table.from_arrays([names, lists, starts], schema=TOKENS), MAX_LENGTH)


def writers() -> dict[str, Writer]:
    """Ways to write rows by name."""
    ways: dict[str, Writer] = {WRITE_ROWS: write_rows, "pyarrow's defaults": pq.write_table}
    for encoding, options in ENCODINGS.items():
        for codec, compression in CODECS.items():
            ways[f"{encoding}, {codec}"] = parquet_writer(**options, **compression)
    ways["Arrow file"] = write_arrow
    return ways


def parquet_writer(**options: Any) -> Writer:
    """A writer with these options of `pyarrow.parquet.write_table`."""
    return lambda rows, handle: pq.write_table(rows, handle, **options)


def write_arrow(rows: pa.Table, handle: IO[bytes]) -> None:
    """As an Arrow IPC file, uncompressed."""
    with pa.ipc.new_file(handle, rows.schema) as writer:
        writer.write_table(rows)


def measure(kind: str, way: str, writer: Writer, rows: pa.Table) -> dict[str, Any]:
    """Best CPU times of ROUNDS to write and to read, and the size."""
    tokens = int(np.sum(rows["tokens"].to_numpy(), dtype=np.int64))
    writing, reading = [], []
    for _ in range(ROUNDS):
        handle = io.BytesIO()
        started = time.process_time()
        writer(rows, handle)
        writing.append(time.process_time() - started)
        content = pa.BufferReader(handle.getvalue())
        started = time.process_time()
        if writer is write_arrow:
            found = pa.ipc.open_file(content).read_all()
        elif writer is write_rows:
            found = pa.concat_tables(read_rows(content, batch_rows=rows.num_rows))
        else:
            found = pq.ParquetFile(content).read(use_threads=False)
        reading.append(max(time.process_time() - started, 1e-6))
    assert found.cast(rows.schema).combine_chunks().equals(rows.combine_chunks())
    return {
        "ids": kind,
        "way": way,
        "tokens": tokens,
        "bytes_per_token": round(len(handle.getvalue()) / tokens, 4),
        "write_tokens_per_second": round(tokens / min(writing)),
        "read_tokens_per_second": round(tokens / min(reading)),
    }


def table(measured: list[dict[str, Any]]) -> Table:
    """The table to print."""
    found = Table(title="row storage", caption="size x, write x: over those of `write_rows` on the same ids")
    found.add_column("ids")
    found.add_column("way")
    for column in ("bytes/token", "size x", "write, M tokens/s", "write x", "read, M tokens/s"):
        found.add_column(column, justify="right")
    for item in measured:
        found.add_row(
            item["ids"],
            item["way"],
            f"{item['bytes_per_token']:.3f}",
            f"{item['bytes_per_token_over_write_rows']:.2f}",
            f"{item['write_tokens_per_second'] / 1e6:,.0f}",
            f"{item['write_tokens_per_second_over_write_rows']:.2f}",
            f"{item['read_tokens_per_second'] / 1e6:,.0f}",
        )
    return found


if __name__ == "__main__":
    main()
