"""The three stages on one NVIDIA GPU: tokens per second, model FLOPs utilisation, and peak memory beside the plan's.

    python benchmarks/training/gpu.py [--cases stage1 stage2 stage3] [--variants 2 8 8:compile] [--data FOLDER] [--tiny]

Models have random weights: Llama-3.1-8B for stages 1 and 2 under the rules of A-93, the shape of Llama-3.2-1B for stage
3 in full. Rows are packed from documents with the lengths that `lengths.py` gives each stage, or are those of a
prepared folder. What runs is the platform's own feed, reading, model wrapper and engine, without Ray, in bf16
(`gpu_stage.py`). A variant is `ROWS[:FLAG...]`: rows per micro-batch, and flags of compile, checkpointing, zero2,
offload. Before anything is timed, logits of packed documents are compared with those of the same documents by
themselves. Every variant runs in a process of its own; the result is written after each. `--tiny` runs small models,
without a GPU too: does it work?
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu_cases import CASES

from polysome.storage import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "training" / "results" / "gpu.json"
WANTED_MFU = 0.45
FLAGS = ("compile", "checkpointing", "zero2", "offload")


def main() -> int:
    """Run the variants, print a table, write the result after each; 1 when a variant failed."""
    options = parsed()
    import torch

    if not torch.cuda.is_available() and not options.tiny:
        print("no CUDA device: nothing is measured; --tiny shows on the CPU that the program works")
        return 0
    began = time.monotonic()
    content = {
        "benchmark": "training on one GPU",
        "command": " ".join(["python", "benchmarks/training/gpu.py", *sys.argv[1:]]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "python": platform.python_version(),
        **{name: found(name) for name in ("torch", "transformers", "peft", "deepspeed", "numpy", "pyarrow")},
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "rows": options.data or "generated, see lengths.py",
        "wanted_mfu": WANTED_MFU,
        "results": [],
        "left_out": [],
    }
    failed = False
    for name in options.cases:
        for variant in options.variants:
            if time.monotonic() - began > options.limit_seconds:
                content["left_out"].append(f"{name} {variant}: {options.limit_seconds} s had passed")
                print(content["left_out"][-1])
                continue
            result = run_apart({"case": name, "variant": variant, **vars(options)})
            failed |= "error" in result
            content["results"].append(result)
            print(line(result), flush=True)
            write_json(str(options.output), content)
    print(f"written: {options.output}")
    return int(failed)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--variants", nargs="+", default=["2", "8", "8:compile"], metavar="ROWS[:FLAG...]")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches per update")
    parser.add_argument("--data", help="prepared folder, for all cases; its token ids must be below the vocabulary's")
    parser.add_argument("--updates", type=int, default=12, help="that are timed")
    parser.add_argument("--warmup-updates", type=int, default=4, help="before them")
    parser.add_argument("--peak-tflops", type=float, help="of the device in bf16, where it is not tabled")
    parser.add_argument("--limit-seconds", type=float, default=420, help="no variant is begun after so long")
    parser.add_argument("--tiny", action="store_true", help="small models, CPU or GPU; no result file")
    parser.add_argument("--output", type=Path, help="result file; by default beside this program")
    options = parser.parse_args()
    for variant in options.variants:
        rows, *flags = variant.split(":")
        if not rows.isdigit() or int(rows) < 1 or set(flags) - set(FLAGS):
            parser.error(f"variant {variant}: a number of rows, then flags of {', '.join(FLAGS)}")
    options.output = options.output or (Path(os.devnull) if options.tiny else RESULT)
    return options


def found(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_apart(job: dict[str, Any]) -> dict[str, Any]:
    """One variant in a new process; where it fails, what it said last."""
    program = Path(__file__).with_name("gpu_stage.py")
    command = [sys.executable, str(program), json.dumps({**job, "output": str(job["output"])})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"case": job["case"], "variant": job["variant"], "error": done.stderr[-2000:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def line(result: dict[str, Any]) -> str:
    """A result to print."""
    head = f"{result['case']} {result['variant']:>14}"
    if "error" in result:
        return f"{head}  FAILED: {result['error'].strip().splitlines()[-1]}"
    memory, mfu = result["memory"], result["mfu"]
    notes = f"  ({'; '.join(result['notes'])})" if result["notes"] else ""
    return (
        f"{head}  {result['tokens_per_second']:9,.0f} tokens/s  MFU {'unknown' if mfu is None else f'{mfu:.1%}'}"
        f"  peak {memory['peak_gib']:.2f} GiB, planned {memory['planned_gib']:.2f} GiB"
        f"  isolation {result['isolation']['packed']:.4f} (joined {result['isolation']['joined']:.3f}){notes}"
    )


if __name__ == "__main__":
    sys.exit(main())
