"""Reading FASTA.gz: records and megabytes per second, and peak memory, of Polysome's reader and of Biopython's.

    python benchmarks/data/read_fasta.py

Generates protein-like FASTA.gz of 1, 3 (about 1 GB) and 10 million records in a temporary folder and reads each in a
process of its own. Peers, on the smallest file: Biopython's `SimpleFastaParser` on `gzip`, and the stream below the
reader alone (decompression and checksum, no parsing). Every reader runs on one thread, so that ratios are taken of
processor time, which other work on the machine moves less than the clock's. Writes
`benchmarks/data/results/read_fasta.json`.
"""

import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from isal import igzip
from rich.console import Console
from rich.table import Table

import polysome
from polysome.data.readers import fasta
from polysome.data.readers.records import BLOCK_BYTES
from polysome.data.readers.stream import open_stream
from polysome.operations.machine import inspect
from polysome.specs.formats import FastaFormat
from polysome.storage import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "data" / "results" / "read_fasta.json"
SEED = 42
MEMBER_RECORDS = 50_000
"""Records of one gzip member; the files are that member over and over, which no reader gains from."""
MILLIONS = 1, 3, 10
MEAN, SPREAD, LONGEST = 540, 0.6, 5000
ROUNDS = 2
SAMPLE_SECONDS = 0.05


def main() -> None:
    """Measure, print the table, write the result file."""
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "proteins.fa.gz"
        member, text_bytes = one_member()
        held = 0
        for millions in MILLIONS:
            wanted = millions * 1_000_000 // MEMBER_RECORDS
            with path.open("ab") as file:
                for _ in range(wanted - held):
                    file.write(member)
            held = wanted
            smallest = millions == MILLIONS[0]
            for reader in READERS if smallest else ("polysome",):
                best = min((read_apart(reader, path) for _ in range(ROUNDS if smallest else 1)), key=cpu_seconds)
                assert best["records"] in (millions * 1_000_000, None)
                measured.append(row(reader, millions, path, text_bytes * held, best))
    compare(measured)
    Console(width=None if sys.stdout.isatty() else 140).print(table(measured))
    write_json(
        str(RESULT),
        {
            "benchmark": "read_fasta",
            "command": "python benchmarks/data/read_fasta.py",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "python": platform.python_version(),
            "polysome": polysome.__version__,
            **{name: version(name) for name in ("biopython", "isal", "numpy", "pyarrow")},
            "cpus": inspect(ROOT).cpus,
            "seed": SEED,
            "rounds": ROUNDS,
            "block_bytes": BLOCK_BYTES,
            "results": measured,
        },
    )
    print(f"written: {RESULT.relative_to(ROOT)}")


def one_member() -> tuple[bytes, int]:
    """A gzip member of MEMBER_RECORDS proteins in lines of 60, UniRef-like headers; and the bytes of its text."""
    draw = np.random.default_rng(SEED)
    lengths = np.clip(draw.lognormal(np.log(MEAN) - SPREAD**2 / 2, SPREAD, MEMBER_RECORDS), 20, LONGEST).astype(int)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)[draw.integers(0, 20, lengths.sum())].tobytes()
    parts, start = [], 0
    for number, length in enumerate(lengths):
        sequence = letters[start : start + length]
        start += length
        lines = [sequence[place : place + 60] for place in range(0, length, 60)]
        title = b">UniRef50_A0A%06d Uncharacterized protein n=%d Tax=Homo sapiens TaxID=9606" % (number, number % 97)
        parts += [title, *lines]
    text = b"\n".join(parts) + b"\n"
    return igzip.compress(text, compresslevel=3), len(text)


def with_polysome(path: str) -> int:
    """Records that Polysome's reader gives."""
    with open_stream(path) as stream:
        return sum(len(stretch.numbers) for stretch in fasta.read(stream, FastaFormat()))


def with_the_stream_alone(path: str) -> None:
    """Decompress and hash, parse nothing."""
    with open_stream(path) as stream:
        for _ in stream.chunks(BLOCK_BYTES):
            pass


def with_biopython(path: str) -> int:
    """Records that Biopython's fastest FASTA parser gives."""
    import gzip

    from Bio.SeqIO.FastaIO import SimpleFastaParser

    with gzip.open(path, "rt") as text:
        return sum(1 for _ in SimpleFastaParser(text))


READERS: dict[str, Callable[[str], int | None]] = {
    "polysome": with_polysome,
    "stream alone": with_the_stream_alone,
    "biopython": with_biopython,
}


def read_apart(reader: str, path: Path) -> dict[str, Any]:
    """Records, seconds, and unique set sizes in bytes of one reading in a new process."""
    command = [sys.executable, __file__, reader, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def read_here(reader: str, path: str) -> None:
    """Read once and print what `read_apart` gives; a thread samples this process's memory meanwhile."""
    process, ended = psutil.Process(), threading.Event()
    before = process.memory_full_info().uss
    sampled = [before]

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            sampled.append(process.memory_full_info().uss)

    thread = threading.Thread(target=sample)
    thread.start()
    start, begun = time.perf_counter(), time.process_time()
    records = READERS[reader](path)
    took = time.perf_counter() - start
    used = time.process_time() - begun
    ended.set()
    thread.join()
    print(
        json.dumps({"records": records, "seconds": took, "cpu_seconds": used, "before": before, "peak": max(sampled)})
    )


def cpu_seconds(measured: dict[str, Any]) -> float:
    """What the best of several rounds is chosen by."""
    return float(measured["cpu_seconds"])


def row(reader: str, millions: int, path: Path, text_bytes: int, best: dict[str, Any]) -> dict[str, Any]:
    """One result."""
    return {
        "reader": reader,
        "million_records": millions,
        "compressed_bytes": path.stat().st_size,
        "text_bytes": text_bytes,
        "seconds": round(best["seconds"], 2),
        "cpu_seconds": round(best["cpu_seconds"], 2),
        "records_per_cpu_second": round(millions * 1_000_000 / best["cpu_seconds"]),
        "text_megabytes_per_cpu_second": round(text_bytes / 1e6 / best["cpu_seconds"], 1),
        "uss_before_megabytes": round(best["before"] / 1e6, 1),
        "uss_peak_megabytes": round(best["peak"] / 1e6, 1),
    }


def compare(measured: list[dict[str, Any]]) -> None:
    """Add to every row its rate over that of Biopython."""
    (peer,) = (item["text_megabytes_per_cpu_second"] for item in measured if item["reader"] == "biopython")
    for item in measured:
        item["speed_over_biopython"] = round(item["text_megabytes_per_cpu_second"] / peer, 2)


def table(measured: list[dict[str, Any]]) -> Table:
    """The results as a table."""
    found = Table(
        "reader",
        "records",
        "gz GB",
        "text GB",
        "seconds",
        "CPU s",
        "records/CPU s",
        "MB of text/CPU s",
        "speed x",
        "USS before",
        "USS peak",
    )
    for item in measured:
        found.add_row(
            item["reader"],
            f"{item['million_records']} M",
            f"{item['compressed_bytes'] / 1e9:.2f}",
            f"{item['text_bytes'] / 1e9:.2f}",
            f"{item['seconds']:.1f}",
            f"{item['cpu_seconds']:.1f}",
            f"{item['records_per_cpu_second']:,}",
            f"{item['text_megabytes_per_cpu_second']:.0f}",
            f"{item['speed_over_biopython']:.2f}",
            f"{item['uss_before_megabytes']:.0f} MB",
            f"{item['uss_peak_megabytes']:.0f} MB",
        )
    return found


if __name__ == "__main__":
    if len(sys.argv) == 3:
        read_here(*sys.argv[1:])
    else:
        main()
