"""Packing: rows filled and documents placed per second by `polysome.data.pack.plan` and by its peers, in one process.

    python benchmarks/packing.py

Peers: one document per row (padding), next-fit in the given order, and best-fit-decreasing in plain Python with a
sorted list, which gives rows as full as `plan` does and is there for speed. Lengths: a seeded log-normal draw, and the
token lengths of the demo's stage-2 chats. Writes `benchmarks/results/packing.json`.
"""

import bisect
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import polysome
from polysome.data.pack import plan
from polysome.data.sources import BATCH_RECORDS
from polysome.operations.machine import inspect
from polysome.storage import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "packing.json"
SEED = 42
DOCUMENTS = 6 * BATCH_RECORDS
MEAN, SPREAD, LONGEST = 340, 0.7, 1024
ROUNDS = 3

Lengths = npt.NDArray[np.int64]
Rows = list[list[int]]
Packer = Callable[[Lengths, int], Rows]


def main() -> None:
    """Measure every packer on every set of lengths, print the table, write the result file."""
    cases = [("log-normal", log_normal_lengths(), LONGEST), ("demo stage 2", *demo_lengths())]
    measured = [
        measure(name, lengths, capacity, title, packer)
        for name, lengths, capacity in cases
        for title, packer in PACKERS.items()
    ]
    compare(measured)
    Console(width=None if sys.stdout.isatty() else 140).print(table(measured))
    write_json(
        str(RESULT),
        {
            "benchmark": "packing",
            "command": "python benchmarks/packing.py",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "python": platform.python_version(),
            "numpy": np.__version__,
            "polysome": polysome.__version__,
            "cpus": inspect(ROOT).cpus,
            "seed": SEED,
            "rounds": ROUNDS,
            "results": measured,
        },
    )
    print(f"written: {RESULT.relative_to(ROOT)}")


def log_normal_lengths() -> Lengths:
    """int64 [DOCUMENTS]: log-normal with mean MEAN before the cap at LONGEST."""
    draw = np.random.default_rng(SEED).lognormal(np.log(MEAN) - SPREAD**2 / 2, SPREAD, DOCUMENTS)
    return np.clip(np.rint(draw), 1, LONGEST).astype(np.int64)


def demo_lengths() -> tuple[Lengths, int]:
    """Token lengths, int64 [documents], of the chats that the demo's stage 2 packs, and the length of its rows."""
    from polysome.data.render import ChatFrame, sequence_kmer, wordings
    from polysome.data.sources import read_examples
    from polysome.data.tokenize import Rendering, tokenize
    from polysome.data.tokenizer_files import load_tokenizer
    from polysome.models.tokenizer import build_per_base_tokenizer
    from polysome.operations.recipes import load_recipe
    from polysome.specs import CONCISE_SYSTEM_PROMPT, REASONING_SYSTEM_PROMPT, dataset

    recipe: Any = load_recipe(ROOT / "jobs" / "recipes" / "demo.yaml", job="pipeline").config
    names = dict.fromkeys(source.dataset for stage in recipe.stages.values() for source in stage.prepare.sources)
    texts = [CONCISE_SYSTEM_PROMPT, REASONING_SYSTEM_PROMPT, *(text for n in names for text in wordings(dataset(n)))]
    settings = recipe.stages["stage2"].prepare
    lengths: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        build_per_base_tokenizer(folder, texts, **recipe.tokenizer.model_dump())
        tokenizer = load_tokenizer(folder)
        tokenizer_json = (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
    for source in settings.sources:
        rendering = Rendering(
            frame=ChatFrame.of(tokenizer, source.prompt),
            kmer=sequence_kmer(tokenizer),
            bos=str(tokenizer.bos_token),
            eos=str(tokenizer.eos_token),
            prompt=source.prompt,
            tag_fraction=settings.tag_fraction,
            seed=SEED,
        )
        examples = read_examples(dataset(source.dataset), source.split)
        documents = tokenize(examples, dataset(source.dataset), rendering, tokenizer_json, settings.max_length)
        lengths += documents["input_ids"].combine_chunks().value_lengths().to_pylist()
    # As a mixture comes: the sources in one order that follows none of them.
    return np.random.default_rng(SEED).permutation(np.array(lengths, np.int64)), settings.max_length


def plan_in_blocks(lengths: Lengths, capacity: int) -> Rows:
    """`plan` on blocks of BATCH_RECORDS documents, which is how `polysome prepare` calls it."""
    rows: Rows = []
    for start in range(0, len(lengths), BATCH_RECORDS):
        block = plan(lengths[start : start + BATCH_RECORDS], capacity)
        rows += [[start + document for document in row] for row in block]
    return rows


def padding(lengths: Lengths, capacity: int) -> Rows:
    """One document per row."""
    return [[document] for document in range(len(lengths))]


def next_fit(lengths: Lengths, capacity: int) -> Rows:
    """In order; a document that does not fit opens the next row, and the last one is never looked at again."""
    rows: Rows = []
    left = 0
    for document, length in enumerate(lengths.tolist()):
        if length > left:
            rows.append([])
            left = capacity
        rows[-1].append(document)
        left -= length
    return rows


def plain_best_fit_decreasing(lengths: Lengths, capacity: int) -> Rows:
    """The textbook algorithm: the open row with the least room that fits, looked up in a sorted list of rooms."""
    rows: Rows = []
    rooms: list[tuple[int, int]] = []
    values = lengths.tolist()
    for document in sorted(range(len(values)), key=values.__getitem__, reverse=True):
        place = bisect.bisect_left(rooms, (values[document], -1))
        if place < len(rooms):
            room, row = rooms.pop(place)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(document)
        if room > values[document]:
            bisect.insort(rooms, (room - values[document], row))
    return rows


PACKERS: dict[str, Packer] = {
    "plan": plan,
    f"plan, blocks of {BATCH_RECORDS:,}": plan_in_blocks,
    "best-fit-decreasing, plain": plain_best_fit_decreasing,
    "next-fit": next_fit,
    "padding": padding,
}


def measure(name: str, lengths: Lengths, capacity: int, title: str, packer: Packer) -> dict[str, Any]:
    """The best time of ROUNDS, and how full the rows are; every document must stand in one row that holds it."""
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        rows = packer(lengths, capacity)
        seconds.append(time.perf_counter() - started)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= capacity for row in rows)
    return {
        "lengths": name,
        "packer": title,
        "documents": len(lengths),
        "mean_length": round(float(lengths.mean()), 1),
        "capacity": capacity,
        "rows": len(rows),
        "efficiency": round(float(lengths.sum()) / (len(rows) * capacity), 4),
        "documents_per_second": round(len(lengths) / min(seconds)),
    }


def compare(measured: list[dict[str, Any]]) -> None:
    """Add to every result its ratios to `plan` on the same lengths."""
    plans = {item["lengths"]: item for item in measured if item["packer"] == "plan"}
    for item in measured:
        base = plans[item["lengths"]]
        item["rows_over_plan"] = round(item["rows"] / base["rows"], 3)
        item["speed_over_plan"] = round(item["documents_per_second"] / base["documents_per_second"], 3)


def table(measured: list[dict[str, Any]]) -> Table:
    """The table to print."""
    found = Table(title="packing", caption="rows x, speed x: over those of `plan` on the same lengths")
    found.add_column("lengths")
    found.add_column("packer")
    for column in ("documents", "mean", "row", "rows", "rows x", "filled", "documents/s", "speed x"):
        found.add_column(column, justify="right")
    for item in measured:
        found.add_row(
            item["lengths"],
            item["packer"],
            f"{item['documents']:,}",
            f"{item['mean_length']:.0f}",
            str(item["capacity"]),
            f"{item['rows']:,}",
            f"{item['rows_over_plan']:.3f}",
            f"{item['efficiency']:.1%}",
            f"{item['documents_per_second']:,}",
            f"{item['speed_over_plan']:.2f}",
        )
    return found


if __name__ == "__main__":
    main()
