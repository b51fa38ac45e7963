"""Packing: how full rows are and how many documents a second are placed, by Polysome's packers and by their peers.

    python benchmarks/data/packing.py

Polysome's: `plan` (best-fit-decreasing), `plan_closest` on shards of 8,192 documents, which is what `polysome prepare`
does, and the streaming packer. Peers, in the same process on the same lengths: one document per row (padding), next-fit
in the given order, best-fit-decreasing in plain Python with a sorted list (rows as full as those of `plan`; it is there
for speed), and the same by batches of 1,000 documents, which is how trainers pack that map over batches of examples
(the default of TRL). Lengths: seeded log-normal draws; and, when POLYSOME_MIRROR names a copy of the public data, those
of the molecules of stage-2 tasks and stage-1 samples. Speeds are per second of CPU.
Writes `benchmarks/data/results/packing.json`.
"""

import bisect
import csv
import gzip
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console
from rich.table import Table

import polysome
from polysome.data.pack import StreamingPacker
from polysome.data.planning import Plan, plan, plan_closest
from polysome.data.schema import TOKENS
from polysome.operations.machine import inspect
from polysome.storage import write_json
from polysome.storage.files import MIRROR_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "data" / "results" / "packing.json"
SEED = 42
DOCUMENTS = 100_000
SHARD_DOCUMENTS = 8192
ROUNDS = 3
PLANNED_DOCUMENTS = 1_000_000

CHAT_TOKENS = 40, 80
"""Least and most around the molecule in a chat: question, answer, turns; as the wordings of a task differ."""
TASK_FILES = (
    "dna_core_promoter/*/*.csv*",
    "dna_promoter_300/*/*.csv*",
    "dna_emp_epigenetic_marks/*/*.csv*",
    "protein_ec/deepfri/*_sequences.fasta",
    "protein_fluorescence/fluorescence.valid.csv.gz",
    "protein_solubility/esol/*.csv",
    "protein_solubility/deepsol/*_src*",
    "protein_stability/*.csv*",
    "rna_ncrna_family/train.fasta.gz",
)
CORPUS_FILES = (
    "protein_ec/deepfri/*_sequences.fasta",
    "protein_fasta/nrPDB*.fasta.gz",
    "stage1_dna_human/*.fa",
    "stage1_dna_human/*.fasta",
    "stage1_rna_ncrna/*.fasta",
)
CORPUS_CHARACTERS, CHARACTERS_PER_TOKEN = 2000, 1.67
"""Longest document of stage 1, and what a token must hold for it to fit into 1,200 of them (A-91)."""

Lengths = npt.NDArray[np.int64]
Placement = npt.NDArray[np.int64]
"""int64 [documents]: the row of each."""


def main() -> None:
    """Measure every packer on every set of lengths, print the tables, write the result file."""
    packed = [
        measure(name, lengths, capacity, title, packer)
        for name, lengths, capacity in cases()
        for title, packer in PACKERS.items()
    ]
    compare(packed)
    planned = [measure_plan(name, lengths, capacity) for name, lengths, capacity in long_cases()]
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(packing_table(packed))
    console.print(planning_table(planned))
    write_json(
        str(RESULT),
        {
            "benchmark": "packing",
            "command": "python benchmarks/data/packing.py",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
            "polysome": polysome.__version__,
            "cpus": inspect(ROOT).cpus,
            "seed": SEED,
            "rounds": ROUNDS,
            "packing": packed,
            "planning": planned,
        },
    )
    print(f"written: {RESULT.relative_to(ROOT)}")


def cases() -> list[tuple[str, Lengths, int]]:
    """(name, lengths, positions in a row), in an order that follows no source."""
    found = [
        (f"{name}, {capacity:,}", log_normal(mean, spread, capacity, DOCUMENTS), capacity)
        for name, mean, spread in (("chats", 340, 0.7), ("corpus", 500, 0.6))
        for capacity in (1024, 1200)
    ]
    if mirror := os.environ.get(MIRROR_VARIABLE):
        generator = np.random.default_rng(SEED)
        molecules = generator.permutation(list(sequence_lengths(Path(mirror), TASK_FILES)))[:DOCUMENTS]
        least, most = CHAT_TOKENS
        wordings = {
            "real tasks": generator.integers(least, most + 1, len(molecules)),
            "real tasks, one wording": np.full(len(molecules), (least + most) // 2),
        }
        characters = np.concatenate(
            [
                np.minimum(CORPUS_CHARACTERS, length - np.arange(0, length, CORPUS_CHARACTERS))
                for length in sequence_lengths(Path(mirror), CORPUS_FILES)
            ]
        )
        corpus = generator.permutation(np.floor(characters / CHARACTERS_PER_TOKEN).astype(np.int64) + 2)
        real = {name: molecules + around for name, around in wordings.items()} | {"real corpus": corpus}
        # Chats that are longer have their molecules cropped to fit (AMB-14); corpus documents are split above.
        found += [
            (f"{name}, {capacity:,}", np.minimum(lengths, capacity), capacity)
            for name, lengths in real.items()
            for capacity in (1024, 1200)
        ]
    return found


def long_cases() -> list[tuple[str, Lengths, int]]:
    """What `plan` is timed on by itself: rows from very short to very long."""
    generator = np.random.default_rng(SEED)
    return [
        ("chats", log_normal(340, 0.7, 1024, PLANNED_DOCUMENTS), 1024),
        ("corpus", log_normal(500, 0.6, 1200, PLANNED_DOCUMENTS), 1200),
        ("tiny", generator.integers(1, 17, PLANNED_DOCUMENTS), 16),
        ("chats", log_normal(340, 0.7, 8192, PLANNED_DOCUMENTS), 8192),
        ("long", log_normal(3000, 1.0, 8192, PLANNED_DOCUMENTS), 8192),
        ("chats", log_normal(340, 0.7, 131_072, PLANNED_DOCUMENTS), 131_072),
        ("every length alike", generator.integers(1, 131_073, PLANNED_DOCUMENTS), 131_072),
    ]


def log_normal(mean: float, spread: float, longest: int, documents: int) -> Lengths:
    """int64 [documents]: log-normal with this mean before the cap."""
    draw = np.random.default_rng(SEED).lognormal(np.log(mean) - spread**2 / 2, spread, documents)
    return np.clip(np.rint(draw), 1, longest).astype(np.int64)


def sequence_lengths(mirror: Path, patterns: tuple[str, ...]) -> Iterator[int]:
    """Characters of each sequence in FASTA files, in CSV files (their longest cell of letters), or line by line."""
    for path in sorted(path for pattern in patterns for path in mirror.glob(pattern)):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as handle:
            lines = [line.rstrip() for line in handle]
        if lines[0].startswith(">"):
            yield from (len("".join(part.split("\n")[1:])) for part in "\n".join(lines)[1:].split("\n>"))
        elif path.name.removesuffix(".gz").endswith(".csv"):
            for row in list(csv.reader(lines))[1:]:
                yield max((len(cell) for cell in row if cell.isalpha()), default=1)
        else:
            yield from map(len, lines)


def plan_in_shards(lengths: Lengths, capacity: int) -> list[Plan]:
    """`plan_closest` on blocks of SHARD_DOCUMENTS documents, as shards are packed."""
    return [
        plan_closest(lengths[start : start + SHARD_DOCUMENTS], capacity)
        for start in range(0, len(lengths), SHARD_DOCUMENTS)
    ]


def stream(documents: pa.Table, capacity: int) -> pa.Table:
    """`StreamingPacker`; its time includes gathering the tokens into rows, which that of the others does not."""
    packer = StreamingPacker(capacity)
    parts = [packer.add(documents.slice(start, 1000)) for start in range(0, documents.num_rows, 1000)]
    return pa.concat_tables([*parts, packer.flush()])


def padding(lengths: Lengths, capacity: int) -> Placement:
    """One document per row."""
    return np.arange(len(lengths))


def next_fit(lengths: Lengths, capacity: int) -> Placement:
    """In order; a document that does not fit opens the next row, and the last one is never looked at again."""
    rows, row, left = [], -1, 0
    for length in lengths.tolist():
        if length > left:
            row += 1
            left = capacity
        rows.append(row)
        left -= length
    return np.array(rows)


def plain_best_fit_decreasing(lengths: Lengths, capacity: int) -> Placement:
    """The textbook algorithm: the open row with the least room that fits, looked up in a sorted list of rooms."""
    rows = np.empty(len(lengths), np.int64)
    opened = 0
    rooms: list[tuple[int, int]] = []
    values = lengths.tolist()
    for document in sorted(range(len(values)), key=values.__getitem__, reverse=True):
        place = bisect.bisect_left(rooms, (values[document], -1))
        if place < len(rooms):
            room, row = rooms.pop(place)
        else:
            room, row = capacity, opened
            opened += 1
        rows[document] = row
        if room > values[document]:
            bisect.insort(rooms, (room - values[document], row))
    return rows


def plain_by_thousands(lengths: Lengths, capacity: int) -> Placement:
    """`plain_best_fit_decreasing` on each 1,000 documents."""
    placements, opened = [], 0
    for start in range(0, len(lengths), 1000):
        part = plain_best_fit_decreasing(lengths[start : start + 1000], capacity) + opened
        placements.append(part)
        opened = int(part.max()) + 1
    return np.concatenate(placements)


Packer = Callable[..., Plan | list[Plan] | pa.Table | Placement]
PACKERS: dict[str, Packer] = {
    "plan": plan,
    f"plan_closest, shards of {SHARD_DOCUMENTS:,}": plan_in_shards,
    "streaming packer": stream,
    "best-fit-decreasing, plain": plain_best_fit_decreasing,
    "same, batches of 1,000": plain_by_thousands,
    "next-fit": next_fit,
    "padding": padding,
}


def placement(result: Plan | list[Plan] | pa.Table | Placement, documents: int) -> Placement:
    """The row of each document, whatever form a packer gives its answer in."""
    if isinstance(result, pa.Table):
        # `numbered` documents hold their number in every position.
        starts = np.append(0, np.cumsum(result["lengths"].combine_chunks().flatten().to_numpy(), dtype=np.int64))[:-1]
        numbers = result["input_ids"].combine_chunks().flatten().to_numpy()[starts]
        assert np.array_equal(np.sort(numbers), np.arange(documents)), "a document stands in two rows, or in none"
        return np.repeat(np.arange(result.num_rows), result["documents"].to_numpy())[np.argsort(numbers)]
    if isinstance(result, Plan):
        result = [result]
    if isinstance(result, list):
        rows = np.empty(documents, np.int64)
        opened = start = 0
        for part in result:
            rows[start + part.order] = opened + np.repeat(np.arange(len(part)), np.diff(part.row_starts))
            opened, start = opened + len(part), start + len(part.order)
        return rows
    return result


def numbered(lengths: Lengths) -> pa.Table:
    """Documents (schema TOKENS) of these lengths, each of which holds nothing but its own number."""
    numbers = np.arange(len(lengths), dtype=np.int32)
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.repeat(numbers, lengths)))
    return pa.Table.from_arrays([pa.array(numbers).cast(pa.string()), ids, pa.array(0 * numbers)], schema=TOKENS)


def measure(name: str, lengths: Lengths, capacity: int, title: str, packer: Packer) -> dict[str, Any]:
    """The best CPU time of ROUNDS, and how full the rows are; every document must stand in one row that holds it."""
    given = numbered(lengths) if packer is stream else lengths
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        result = packer(given, capacity)
        seconds.append(max(time.process_time() - started, 1e-6))
    filled = np.bincount(placement(result, len(lengths)), weights=lengths)
    assert filled.min() > 0
    assert filled.max() <= capacity
    assert filled.sum() == lengths.sum()
    return {
        "lengths": name,
        "packer": title,
        "documents": len(lengths),
        "mean_length": round(float(lengths.mean()), 1),
        "capacity": capacity,
        "rows": len(filled),
        "efficiency": round(float(lengths.sum()) / (len(filled) * capacity), 4),
        "documents_per_second": round(len(lengths) / min(seconds)),
    }


def measure_plan(name: str, lengths: Lengths, capacity: int) -> dict[str, Any]:
    """Documents planned and dealt out per second of CPU, the best of ROUNDS."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        planned = plan(lengths, capacity)
        seconds.append(time.process_time() - started)
    return {
        "lengths": name,
        "documents": len(lengths),
        "mean_length": round(float(lengths.mean()), 1),
        "distinct_lengths": len(np.unique(lengths)),
        "capacity": capacity,
        "efficiency": round(float(lengths.sum()) / (len(planned) * capacity), 4),
        "documents_per_second": round(len(lengths) / min(seconds)),
    }


def compare(measured: list[dict[str, Any]]) -> None:
    """Add to every result its ratios to `plan` on the same lengths."""
    plans = {item["lengths"]: item for item in measured if item["packer"] == "plan"}
    for item in measured:
        base = plans[item["lengths"]]
        item["rows_over_plan"] = round(item["rows"] / base["rows"], 3)
        item["speed_over_plan"] = round(item["documents_per_second"] / base["documents_per_second"], 4)


def packing_table(measured: list[dict[str, Any]]) -> Table:
    """The comparison, to print."""
    found = Table(title="packing", caption="rows x, speed x: over those of `plan` on the same lengths")
    found.add_column("lengths")
    found.add_column("packer")
    for column in ("documents", "mean", "rows", "rows x", "filled", "documents/s", "speed x"):
        found.add_column(column, justify="right")
    for item in measured:
        found.add_row(
            item["lengths"],
            item["packer"],
            f"{item['documents']:,}",
            f"{item['mean_length']:.0f}",
            f"{item['rows']:,}",
            f"{item['rows_over_plan']:.3f}",
            f"{item['efficiency']:.2%}",
            f"{item['documents_per_second']:,}",
            f"{item['speed_over_plan']:.3f}",
        )
    return found


def planning_table(measured: list[dict[str, Any]]) -> Table:
    """Speed of `plan`, to print."""
    found = Table(title="plan by itself", caption="documents per second of CPU, planned and dealt out")
    found.add_column("lengths")
    for column in ("row", "documents", "mean", "distinct", "filled", "documents/s"):
        found.add_column(column, justify="right")
    for item in measured:
        found.add_row(
            item["lengths"],
            f"{item['capacity']:,}",
            f"{item['documents']:,}",
            f"{item['mean_length']:,.0f}",
            f"{item['distinct_lengths']:,}",
            f"{item['efficiency']:.2%}",
            f"{item['documents_per_second']:,}",
        )
    return found


if __name__ == "__main__":
    main()
