"""Preparing a corpus: proteins and tokens per second of `polysome prepare` and of its peers, and where the time goes.

    python benchmarks/data/prepare.py --peer-python PEERS/bin/python [--quick]

Generates proteins as FASTA.gz (see `corpora.py`) and makes packed Parquet of them: by Polysome on one CPU and on two,
and by the peers in `peers.py`, of which `--peer-python` runs those that need other packages (README.md says how to make
that environment; without it they are left out). Every contender runs in a new process that is pinned to its cores with
all that it starts; contenders take turns, and the best of the rounds counts. Then each stage of Polysome is timed on
one file within one process. Writes `benchmarks/data/results/prepare.json`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import corpora
from rich.console import Console
from rich.table import Table

import polysome
from polysome.operations.machine import inspect
from polysome.storage import write_json

if TYPE_CHECKING:
    from polysome.data.config import PrepareConfig

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "data" / "results" / "prepare.json"
MAX_LENGTH = 1200
FILES = 4
PROTEINS, BPE_PROTEINS, PER_BASE_PROTEINS = 200_000, 5_000_000, 12_000_000
FILE_PROTEINS = 1_000_000
QUICK_PROTEINS, QUICK_FILE_PROTEINS = 8_000, 2_000
ROUNDS = 2


@dataclass(frozen=True)
class Contender:
    """One way to prepare a corpus.

    Attributes:
        program: polysome; or plain, batched, trainer, encode (the tokenizer alone), which are in `peers.py`.
        vocabulary: bpe or per_base.
        cpus: cores it may use.
        corpus: small, on which all meet; or bpe or per_base, larger ones on which Polysome takes a minute or so, of
            which the start of its workers is a small part. A peer takes as long for each protein of a larger one.
    """

    program: str
    vocabulary: str
    cpus: int
    corpus: str


CONTENDERS = (
    Contender("encode", "bpe", 1, "small"),
    Contender("plain", "bpe", 1, "small"),
    Contender("polysome", "bpe", 1, "small"),
    Contender("batched", "bpe", 1, "small"),
    Contender("trainer", "bpe", 1, "small"),
    Contender("plain", "per_base", 1, "small"),
    Contender("polysome", "per_base", 1, "small"),
    Contender("polysome", "bpe", 1, "bpe"),
    Contender("polysome", "bpe", 2, "bpe"),
    Contender("polysome", "per_base", 1, "per_base"),
    Contender("polysome", "per_base", 2, "per_base"),
)


def main() -> None:
    """Measure, print the tables, write the result file."""
    options = parsed()
    cores = sorted(os.sched_getaffinity(0))
    contenders = [item for item in CONTENDERS if item.cpus <= len(cores) and (options.peer_python or not usual(item))]
    for item in sorted(set(CONTENDERS) - set(contenders), key=str):
        print(f"left out: {item} ({'--peer-python is not given' if usual(item) else 'too few cores'})")
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        generated = generate(folder, options)
        corpora.write_bpe_tokenizer(folder / "tokenizers" / "bpe")
        corpora.write_per_base_tokenizer(folder / "tokenizers" / "per_base")
        runs: dict[Contender, list[dict[str, Any]]] = {contender: [] for contender in contenders}
        for turn in range(options.rounds):
            for contender in contenders:
                runs[contender].append(run_apart(contender, folder, cores, options.peer_python))
                print(f"round {turn}: {contender}: {runs[contender][-1]['seconds']:.2f} s", flush=True)
        check_same_tokens(runs)
        stages = {kind: stages_apart(kind, "small", folder, cores[:1]) for kind in ("bpe", "per_base")}
        control = {kind: copies(kind, folder, cores) for kind in ("bpe", "per_base")} if len(cores) > 1 else {}
    results = [row(contender, found) for contender, found in runs.items()]
    ratios = compared(results)
    console = Console(width=None if sys.stdout.isatty() else 150)
    for shown in (result_table(results), ratio_table(ratios), stage_table(stages)):
        console.print(shown)
    console.print(f"two independent copies of the stages over one: {control}")
    content = {
        "benchmark": "prepare",
        "command": "python benchmarks/data/prepare.py --peer-python PEERS/bin/python",
        "options": {key: value for key, value in vars(options).items() if key not in ("peer_python", "output")},
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "python": platform.python_version(),
        "polysome": polysome.__version__,
        **{name: version(name) for name in ("ray", "tokenizers", "pyarrow", "numpy", "numba", "isal", "biopython")},
        "cpus": inspect(ROOT).cpus,
        "seed": corpora.SEED,
        "max_length": MAX_LENGTH,
        "corpora": generated,
        "results": results,
        "ratios": ratios,
        "stages": stages,
        # What the machine gives two processes that share nothing: the most that two CPUs can be over one here.
        "two_independent_copies_of_the_stages_over_one": control,
    }
    write_json(str(options.output), content)
    print(f"written: {options.output}")


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter of an environment with datasets and trl")
    parser.add_argument("--proteins", type=int, default=PROTEINS, help="of the small corpus, that of the peers")
    parser.add_argument("--bpe-proteins", type=int, default=BPE_PROTEINS, help="of Polysome's corpus for BPE")
    parser.add_argument("--per-base-proteins", type=int, default=PER_BASE_PROTEINS, help="of that for per-base")
    parser.add_argument("--file-proteins", type=int, default=FILE_PROTEINS, help="of each file of these two")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PROTEINS} proteins, one round: does it run?")
    parser.add_argument("--output", type=Path, help="result file; by default beside this program, nowhere with --quick")
    options = parser.parse_args()
    if options.quick:
        options.proteins = options.bpe_proteins = options.per_base_proteins = QUICK_PROTEINS
        options.file_proteins, options.rounds = QUICK_FILE_PROTEINS, 1
    if options.bpe_proteins % options.file_proteins or options.per_base_proteins % options.file_proteins:
        parser.error("--bpe-proteins and --per-base-proteins must be multiples of --file-proteins")
    options.output = options.output or (Path(os.devnull) if options.quick else RESULT)
    return options


def usual(contender: Contender) -> bool:
    """Whether it needs the environment of the peers."""
    return contender.program in ("batched", "trainer")


def generate(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """The corpora and their specs, and what they hold. The two larger ones begin with the same files."""
    generated = {"small": {"proteins": options.proteins, "files": FILES}}
    generated["small"]["residues"] = corpora.write_corpus(folder / "corpora" / "small", options.proteins, files=FILES)
    sizes = {"bpe": options.bpe_proteins, "per_base": options.per_base_proteins}
    most = max(sizes.values())
    corpora.write_corpus(folder / "shared", most, files=most // options.file_proteins)
    files = sorted((folder / "shared").iterdir())
    for corpus, proteins in sizes.items():
        (folder / "corpora" / corpus).mkdir()
        generated[corpus] = {"proteins": proteins, "files": proteins // options.file_proteins}
        for file in files[: generated[corpus]["files"]]:
            (folder / "corpora" / corpus / file.name).hardlink_to(file)
    for corpus, told in generated.items():
        corpora.write_spec(folder / "specs", folder / "corpora" / corpus, name=f"generated_{corpus}")
        told["compressed_bytes"] = sum(path.stat().st_size for path in (folder / "corpora" / corpus).iterdir())
    return generated


def run_apart(contender: Contender, folder: Path, cores: list[int], peer_python: str | None) -> dict[str, Any]:
    """One run in a new process; `total_seconds` is that process from its start to its end."""
    with TemporaryDirectory(prefix="pb-", dir=folder) as scratch, TemporaryDirectory(prefix="pb-") as ray:
        output = Path(scratch) / "prepared"
        output.mkdir()
        job = {
            **asdict(contender),
            "folder": str(folder),
            "files": [str(path) for path in sorted((folder / "corpora" / contender.corpus).iterdir())],
            "tokenizer": str(folder / "tokenizers" / contender.vocabulary),
            "output": str(output),
            "scratch": scratch,
            "max_length": MAX_LENGTH,
            "cores": cores[: contender.cpus],
        }
        environment = os.environ | {"HOME": scratch, "RAY_TMPDIR": ray}
        if contender.program == "polysome":
            command = [sys.executable, __file__, "--run", json.dumps(job)]
        else:
            python = peer_python if usual(contender) else sys.executable
            command = [str(python), "-W", "ignore", str(Path(__file__).with_name("peers.py")), json.dumps(job)]
        return told_by(command, environment)


def told_by(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """What a program says in its last line, with its seconds from start to end."""
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    total = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "total_seconds": total}


def prepare_here(job: dict[str, Any]) -> None:
    """Prepare twice on a cluster started here and tell the seconds; for a process of its own."""
    recipe = pinned(job)
    from polysome.data.prepare import prepare
    from polysome.operations.cluster import connect

    begun = time.perf_counter()
    with connect(cpus=job["cpus"]):
        connected = time.perf_counter()
        manifest = prepare(recipe, f"{job['output']}/first")
        first = time.perf_counter()
        # The workers that the first one started are there still.
        prepare(recipe, f"{job['output']}/again")
        again = time.perf_counter()
    told = {
        "cluster_seconds": connected - begun,
        "seconds": first - connected,
        "again_seconds": again - first,
        "proteins": manifest.sources[0].records,
        "tokens": manifest.tokens,
        "rows": manifest.rows,
        "packing_efficiency": manifest.packing_efficiency,
        "versions": {},
    }
    print(json.dumps(told))


def pinned(job: dict[str, Any]) -> "PrepareConfig":
    """Pin this process to its cores, and the recipe of the job."""
    os.sched_setaffinity(0, job["cores"])
    os.environ["POLYSOME_DATASETS"] = f"{job['folder']}/specs"
    os.environ["POLYSOME_CPUS"] = str(len(job["cores"]))
    from polysome.data.config import PrepareConfig, Source

    return PrepareConfig(
        name="benchmark",
        kind="pretrain",
        tokenizer=f"{job['folder']}/tokenizers/{job['vocabulary']}",
        max_length=MAX_LENGTH,
        sources=[Source(dataset=f"generated_{job['corpus']}")],
    )


def copies(vocabulary: str, folder: Path, cores: list[int]) -> float:
    """Rate of two copies of the stages without Ray, at once on a core each, over that of one alone."""
    alone = total_seconds(stages_apart(vocabulary, vocabulary, folder, cores[:1]))
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(stages_apart, vocabulary, vocabulary, folder, [core]) for core in cores[:2]]
        together = max(total_seconds(job.result()) for job in jobs)
    return round(2 * alone / together, 2)


def total_seconds(stages: dict[str, Any]) -> float:
    """Of all stages."""
    return float(sum(stages["seconds"].values()))


def stages_apart(vocabulary: str, corpus: str, folder: Path, cores: list[int]) -> dict[str, Any]:
    """Seconds of each stage on the first file of a corpus, in one pinned process without Ray."""
    from polysome.operations.cluster import THREAD_PINS

    job = {"folder": str(folder), "vocabulary": vocabulary, "corpus": corpus, "cores": cores}
    found = told_by(
        [sys.executable, str(Path(__file__).with_name("stages.py")), json.dumps(job)], {**os.environ, **THREAD_PINS}
    )
    del found["total_seconds"]
    return found


def check_same_tokens(runs: dict[Contender, list[dict[str, Any]]]) -> None:
    """Whether all contenders made the same number of tokens of the same corpus; else they did not do the same work."""
    found: dict[tuple[str, str], set[int]] = {}
    for item, rounds in runs.items():
        found.setdefault((item.corpus, item.vocabulary), set()).update(run["tokens"] for run in rounds)
    assert all(len(tokens) == 1 for tokens in found.values()), found


def row(contender: Contender, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One result: the best round, and the seconds of all."""
    best = min(rounds, key=lambda run: float(run["seconds"]))
    told = {
        **asdict(contender),
        "proteins": best["proteins"],
        "tokens": best["tokens"],
        "rows": best["rows"],
        "packing_efficiency": round(best["tokens"] / (best["rows"] * MAX_LENGTH), 4) if best["rows"] else None,
        "seconds": round(best["seconds"], 2),
        "seconds_of_rounds": [round(run["seconds"], 2) for run in rounds],
        "proteins_per_second": round(best["proteins"] / best["seconds"]),
        "tokens_per_second": round(best["tokens"] / best["seconds"]),
        "process_seconds": round(best["total_seconds"], 2),
        "versions": best["versions"],
    }
    if contender.program == "polysome":
        again = min(run["again_seconds"] for run in rounds)
        told |= {
            "cluster_seconds": round(min(run["cluster_seconds"] for run in rounds), 2),
            "again_seconds": round(again, 2),
            "again_proteins_per_second": round(best["proteins"] / again),
            # Two preparations share the process; one would have ended sooner.
            "process_seconds": round(best["total_seconds"] - best["again_seconds"], 2),
        }
    return told


def compared(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ratios that matter, each also with the cluster's start and with warm workers."""
    by_contender = {(item["program"], item["vocabulary"], item["cpus"], item["corpus"]): item for item in results}
    plain, batched, trainer, encode = ((name, "bpe", 1, "small") for name in ("plain", "batched", "trainer", "encode"))
    bpe, per_base = ("polysome", "bpe", 1, "bpe"), ("polysome", "per_base", 1, "per_base")
    small_bpe, small_per_base = ("polysome", "bpe", 1, "small"), ("polysome", "per_base", 1, "small")
    plain_per_base = ("plain", "per_base", 1, "small")
    wanted = (
        ("BPE on one CPU over the plain script", bpe, plain, 0.8),
        ("BPE on one CPU over datasets + TRL, batched by hand", bpe, batched, 5),
        ("BPE on one CPU over the steps of TRL's trainer", bpe, trainer, 5),
        ("per-base on one CPU over the plain script with BPE", per_base, plain, 10),
        ("per-base on one CPU over the plain script alike", per_base, plain_per_base, None),
        ("BPE on two CPUs over one", ("polysome", "bpe", 2, "bpe"), bpe, 1.7),
        ("per-base on two CPUs over one", ("polysome", "per_base", 2, "per_base"), per_base, 1.7),
        ("small corpus: BPE over the plain script", small_bpe, plain, None),
        ("small corpus: BPE over datasets + TRL, batched by hand", small_bpe, batched, None),
        ("small corpus: BPE over the steps of TRL's trainer", small_bpe, trainer, None),
        ("small corpus: per-base over the plain script with BPE", small_per_base, plain, None),
        ("small corpus: per-base over the plain script alike", small_per_base, plain_per_base, None),
        ("small corpus: the tokenizer alone over the plain script", encode, plain, None),
        ("small corpus: the tokenizer alone over datasets + TRL, batched", encode, batched, None),
    )
    return [
        {
            "what": what,
            "wanted": bar,
            "proteins": [ours["proteins"], theirs["proteins"]],
            "on_a_running_cluster": round(rate(ours, "seconds") / rate(theirs, "seconds"), 2),
            "with_warm_workers": round(rate(ours, "again_seconds") / rate(theirs, "again_seconds"), 2),
            "whole_process": round(rate(ours, "process_seconds") / rate(theirs, "process_seconds"), 2),
        }
        for what, first, second, bar in wanted
        if (ours := by_contender.get(first)) and (theirs := by_contender.get(second))
    ]


def rate(result: dict[str, Any], seconds: str) -> float:
    """Proteins per second; a program without workers is always as warm as it gets."""
    return float(result["proteins"] / result.get(seconds, result["seconds"]))


def result_table(results: list[dict[str, Any]]) -> Table:
    """The results as a table."""
    names = ("contender", "vocabulary", "CPUs", "proteins", "seconds", "proteins/s", "tokens/s", "filled")
    found = Table(*names, "again s", "cluster s", "process s")
    for item in results:
        found.add_row(
            item["program"],
            item["vocabulary"],
            str(item["cpus"]),
            f"{item['proteins']:,}",
            f"{item['seconds']:.2f}",
            f"{item['proteins_per_second']:,}",
            f"{item['tokens_per_second']:,}",
            f"{item['packing_efficiency']:.4f}" if item["packing_efficiency"] else "",
            f"{item['again_seconds']:.2f}" if "again_seconds" in item else "",
            f"{item['cluster_seconds']:.2f}" if "cluster_seconds" in item else "",
            f"{item['process_seconds']:.2f}",
        )
    return found


def ratio_table(ratios: list[dict[str, Any]]) -> Table:
    """The ratios as a table."""
    found = Table("proteins/s of", "proteins", "wanted", "on a running cluster", "with warm workers", "whole process")
    for item in ratios:
        shown = [f"{item[name]:.2f}" for name in ("on_a_running_cluster", "with_warm_workers", "whole_process")]
        sizes = " : ".join(f"{proteins:,}" for proteins in item["proteins"])
        found.add_row(item["what"], sizes, f"{item['wanted']}" if item["wanted"] else "", *shown)
    return found


def stage_table(stages: dict[str, dict[str, Any]]) -> Table:
    """Milliseconds per 10,000 proteins, and shares."""
    costs_of, shares_of = ([f"{kind}: {what}" for kind in stages] for what in ("ms per 10,000 proteins", "share"))
    found = Table("stage", *costs_of, *shares_of)
    for stage in next(iter(stages.values()))["seconds"]:
        costs = [item["seconds"][stage] / item["proteins"] * 1e7 for item in stages.values()]
        shares = [item["seconds"][stage] / sum(item["seconds"].values()) for item in stages.values()]
        found.add_row(stage, *(f"{cost:.1f}" for cost in costs), *(f"{share:.1%}" for share in shares))
    whole = [sum(item["seconds"].values()) / item["proteins"] for item in stages.values()]
    rates = [f"{1 / seconds:,.0f}/s" for seconds in whole]
    found.add_row("all", *(f"{seconds * 1e7:.1f}" for seconds in whole), *rates)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        prepare_here(json.loads(sys.argv[2]))
    else:
        main()
