"""Memory of preparing: 1 million records and 10 million, and 10 million through a small object store, written slowly.

    python benchmarks/data/memory.py [--quick]

Generates short proteins as FASTA.gz (see `corpora.py`) and prepares them with Polysome's per-base vocabulary, each time
in a new process. Meanwhile the memory of that process and of all that it started is sampled: PSS counts a page shared
by n processes as 1/n of it in each, so that its sum is what the job holds, the object store included; USS leaves shared
pages out. What Ray spills to disk is sampled as well. With slow writers every shard waits once it is written, so that
readers would fill the object store and then the disk if nothing held them back. Writes
`benchmarks/data/results/memory.json`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import corpora
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

import polysome
from polysome.operations.machine import inspect
from polysome.storage import write_json

if TYPE_CHECKING:
    import pyarrow as pa

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "data" / "results" / "memory.json"
FILES = 4
MEAN, MEDIAN = 80, 70
RECORDS = 1_000_000, 10_000_000
QUICK_RECORDS = 30_000, 150_000
OBJECT_STORE_BYTES = 200 * 1024**2
WAIT_SECONDS = 0.3
SAMPLE_SECONDS = 0.2
POINTS = 40
WARM_UP_RECORDS = 10_000
MEGABYTE = 1e6


@dataclass(frozen=True)
class Case:
    """One preparation.

    Attributes:
        records: in the corpus.
        slow: whether shards wait and the object store is small.
    """

    records: int
    slow: bool


def main() -> None:
    """Measure, print the table, write the result file."""
    options = parsed()
    few, many = options.records
    cases = (Case(few, False), Case(many, False), Case(many, True))
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        corpora.write_per_base_tokenizer(folder / "tokenizer")
        generated = {}
        for records in (WARM_UP_RECORDS, *options.records):
            corpus = folder / "corpora" / str(records)
            residues = corpora.write_corpus(corpus, records, files=FILES, mean=MEAN, median=MEDIAN)
            corpora.write_spec(folder / "specs", corpus, name=f"generated_{records}")
            stored = sum(path.stat().st_size for path in corpus.iterdir())
            generated[records] = {"records": records, "residues": residues, "compressed_bytes": stored}
        results = [row(case, run_apart(case, folder, options.cpus)) for case in cases]
    compared = {
        "rate_of_many_over_few": round(results[1]["records_per_second"] / results[0]["records_per_second"], 3),
        "peak_pss_of_many_over_few": round(results[1]["pss_peak_megabytes"] / results[0]["pss_peak_megabytes"], 3),
        "pss_late_over_early": {
            f"{item['records']}{' slow' if item['slow'] else ''}": item["pss_late_over_early"] for item in results
        },
        "spilled_megabytes": max(item["spilled_megabytes"] for item in results),
    }
    Console(width=None if sys.stdout.isatty() else 150).print(table(results))
    print(json.dumps(compared))
    content = {
        "benchmark": "memory",
        "command": "python benchmarks/data/memory.py",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "python": platform.python_version(),
        "polysome": polysome.__version__,
        **{name: version(name) for name in ("ray", "pyarrow", "numpy", "psutil")},
        "cpus": options.cpus,
        "memory_gigabytes": round(inspect(ROOT).memory / 1e9, 1),
        "seed": corpora.SEED,
        "files": FILES,
        "slow": {"object_store_bytes": OBJECT_STORE_BYTES, "wait_seconds_per_shard": WAIT_SECONDS},
        "corpora": list(generated.values()),
        "results": results,
        "compared": compared,
    }
    write_json(str(options.output), content)
    print(f"written: {options.output}")


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs=2, default=RECORDS, metavar=("FEW", "MANY"))
    parser.add_argument("--cpus", type=int, default=inspect(ROOT).cpus)
    parser.add_argument("--quick", action="store_true", help="few records: does it run?")
    parser.add_argument("--output", type=Path, help="result file; by default beside this program, nowhere with --quick")
    options = parser.parse_args()
    if options.quick:
        options.records = QUICK_RECORDS
    options.output = options.output or (Path(os.devnull) if options.quick else RESULT)
    return options


def run_apart(case: Case, folder: Path, cpus: int) -> dict[str, Any]:
    """One preparation in a new process, and the samples that were taken of it."""
    with TemporaryDirectory(prefix="pb-", dir=folder) as scratch, TemporaryDirectory(prefix="pb-") as ray:
        job = {**asdict(case), "folder": str(folder), "output": f"{scratch}/prepared", "cpus": cpus, "ray": ray}
        environment = os.environ | {"HOME": scratch, "RAY_TMPDIR": ray}
        command = [sys.executable, __file__, "--run", json.dumps(job)]
        # The output is a file: a pipe that nobody empties while sampling would stop the job.
        with open(f"{scratch}/told", "w+") as told, open(f"{scratch}/errors", "w+") as errors:
            process = subprocess.Popen(command, env=environment, stdout=told, stderr=errors)
            samples = list(sampled(process, Path(ray)))
            told.seek(0), errors.seek(0)
            lines = told.read().splitlines()
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{errors.read()[-4000:]}")
    return {**json.loads(lines[-1]), "samples": samples}


def sampled(process: "subprocess.Popen[str]", ray: Path) -> Iterator[dict[str, float]]:
    """Bytes of the process and all below it, every SAMPLE_SECONDS until it ends."""
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        begun = time.perf_counter()
        found = {"time": time.time(), "pss": 0.0, "uss": 0.0, "processes": 0.0, "spilled": float(spilled_bytes(ray))}
        try:
            members = [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            members = []
        for member in members:
            try:
                memory = member.memory_full_info()
            except psutil.Error:
                # It ended between being listed and being looked at.
                continue
            found["pss"] += memory.pss
            found["uss"] += memory.uss
            found["processes"] += 1
        yield found
        time.sleep(max(0.0, SAMPLE_SECONDS - (time.perf_counter() - begun)))


def spilled_bytes(ray: Path) -> int:
    """Bytes of objects that Ray has put on disk."""
    total = 0
    for path in ray.glob("**/ray_spilled_objects*/*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            # Restored and removed meanwhile.
            continue
    return total


def prepare_here(job: dict[str, Any]) -> None:
    """Prepare and tell when it began and ended; for a process of its own."""
    os.environ["POLYSOME_DATASETS"] = f"{job['folder']}/specs"
    os.environ["POLYSOME_CPUS"] = str(job["cpus"])
    from polysome.data import prepare as preparation
    from polysome.data.config import PrepareConfig, Source

    recipe = PrepareConfig(
        name="benchmark",
        kind="pretrain",
        tokenizer=f"{job['folder']}/tokenizer",
        max_length=1200,
        sources=[Source(dataset=f"generated_{job['records']}")],
    )
    if job["slow"]:
        preparation.WriteShards = slow_writers()  # type: ignore[misc]
    with cluster(job):
        # How long workers take to start and to import is not the pace of the records.
        warm_up = recipe.model_copy(update={"sources": [Source(dataset=f"generated_{WARM_UP_RECORDS}")]})
        preparation.prepare(warm_up, f"{job['output']}-before")
        began = time.time()
        manifest = preparation.prepare(recipe, job["output"])
        ended = time.time()
    told = {"began": began, "ended": ended, "records": manifest.sources[0].records, "shards": len(manifest.shards)}
    print(json.dumps(told))


@contextmanager
def cluster(job: dict[str, Any]) -> Iterator[None]:
    """Polysome's local cluster, or one with a small object store."""
    from polysome.operations.cluster import connect, local_environment

    if not job["slow"]:
        with connect(cpus=job["cpus"]):
            yield
        return
    os.environ.update(local_environment())
    import ray

    ray.init(
        address="local",
        num_cpus=job["cpus"],
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level="error",
        log_to_driver=False,
        _temp_dir=job["ray"],
    )
    yield
    ray.shutdown()


def slow_writers() -> type:
    """Polysome's writer, every shard of which waits."""
    from polysome.data.units import WriteShards

    class SlowWriters(WriteShards):
        def __call__(self, batch: "pa.Table") -> "Iterator[pa.Table]":
            for written in super().__call__(batch):
                time.sleep(WAIT_SECONDS)
                yield written

    return SlowWriters


def row(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """One result."""
    seconds = found["ended"] - found["began"]
    during = [sample for sample in found["samples"] if found["began"] <= sample["time"] <= found["ended"]]
    pss, uss = (np.array([sample[name] for sample in during]) / MEGABYTE for name in ("pss", "uss"))
    quarter = max(1, len(pss) // 4)
    # The first quarter has workers starting.
    early, late = pss[quarter : 2 * quarter], pss[-quarter:]
    places = np.unique(np.linspace(0, len(during) - 1, POINTS).astype(int))
    return {
        **asdict(case),
        "shards": found["shards"],
        "seconds": round(seconds, 2),
        "records_per_second": round(found["records"] / seconds),
        "pss_peak_megabytes": round(float(pss.max())),
        "pss_median_megabytes": round(float(np.median(pss))),
        "pss_late_over_early": round(float(late.mean() / early.mean()), 3),
        "uss_peak_megabytes": round(float(uss.max())),
        "uss_median_megabytes": round(float(np.median(uss))),
        "spilled_megabytes": round(max(sample["spilled"] for sample in during) / MEGABYTE, 1),
        "processes": int(max(sample["processes"] for sample in during)),
        "samples": len(during),
        "pss_megabytes_over_time": [
            [round(during[place]["time"] - found["began"], 1), round(float(pss[place]))] for place in places.tolist()
        ],
    }


def table(results: list[dict[str, Any]]) -> Table:
    """The results as a table."""
    names = ("records", "writers", "seconds", "records/s", "PSS peak", "PSS median", "late / early", "USS peak")
    found = Table(*names, "spilled", "processes", "samples")
    for item in results:
        found.add_row(
            f"{item['records']:,}",
            "slow" if item["slow"] else "as they are",
            f"{item['seconds']:.1f}",
            f"{item['records_per_second']:,}",
            f"{item['pss_peak_megabytes']:,} MB",
            f"{item['pss_median_megabytes']:,} MB",
            f"{item['pss_late_over_early']:.2f}",
            f"{item['uss_peak_megabytes']:,} MB",
            f"{item['spilled_megabytes']:.0f} MB",
            str(item["processes"]),
            str(item["samples"]),
        )
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        prepare_here(json.loads(sys.argv[2]))
    else:
        main()
