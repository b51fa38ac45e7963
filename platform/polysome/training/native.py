"""DeepSpeed's native CPU Adam: built ahead of time, checked for this machine, and loaded without a compiler.

`python -m polysome.training.native` builds it into `TORCH_EXTENSIONS_DIR` (default: `torch_extensions` in the Python
environment). Workers load the finished library themselves, so they never compile, need no compiler or ninja, and
cannot hang on the lock file that a killed compilation leaves behind.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FOLDER_VARIABLE = "TORCH_EXTENSIONS_DIR"
OPERATION = "cpu_adam"
_PREBUILT = "deepspeed.ops.adam.cpu_adam_op"
_RECORD = "polysome.json"


def extensions_folder() -> Path:
    """Where native code of this Python environment lies."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path(sys.prefix) / "torch_extensions")


def prepare_environment() -> None:
    """Set what DeepSpeed and torch look up in the environment, before either is imported."""
    os.environ.setdefault(FOLDER_VARIABLE, str(extensions_folder()))
    scripts = str(Path(sys.prefix) / "bin")
    path = os.environ.get("PATH", "")
    if scripts not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, path])


def obstacle() -> str | None:
    """Why DeepSpeed's CPU Adam cannot run in this process, or None when it can."""
    if _prebuilt():
        return None
    library, record = _library(), _folder() / _RECORD
    if not library.is_file() or not record.is_file():
        return f"it is not built ({library} is absent)"
    built_for = json.loads(record.read_text(encoding="utf-8"))
    differing = sorted(key for key, value in _machine().items() if built_for.get(key) != value)
    if differing:
        return f"{library} was built for another {' and '.join(differing)}"
    return None


def skip_shared_memory_operation() -> None:
    """Keep `deepspeed.initialize` from compiling its shared-memory all-reduce, which only its inference uses."""
    import deepspeed.ops

    # Assigning before the first look-up also spares DeepSpeed's probe of every compiler on the machine.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


def deepspeed_cpu_adam(
    groups: list[dict[str, Any]], *, learning_rate: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.Optimizer:
    """DeepSpeedCPUAdam in AdamW mode; `obstacle()` must be None."""
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    _load()
    with _known_cpu():
        made = DeepSpeedCPUAdam(groups, lr=learning_rate, betas=betas, eps=epsilon, adamw_mode=True)
    nothing = torch.empty(0)

    def take_powers_anew(optimizer: Any, *_: Any) -> None:
        # The native code multiplies the powers of the betas from step to step and rounds each time, so that a run would
        # not go on as before from its checkpoint. After a step 0, here of no elements, it computes them from the count.
        optimizer.ds_opt_adam.adam_update(
            optimizer.opt_id, 0, learning_rate, *betas, epsilon, 0.0, True, nothing, nothing, nothing, nothing
        )

    made.register_step_pre_hook(take_powers_anew)
    return made


def build() -> str:
    """Build what is missing; returns one line that says what was done.

    Raises:
        RuntimeError: a compiler is present and failed.
    """
    prepare_environment()
    if _prebuilt():
        return "DeepSpeed CPU Adam: installed with DeepSpeed, nothing to build"
    if obstacle() is None:
        return f"DeepSpeed CPU Adam: already built, {_library()}"
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        return "DeepSpeed CPU Adam: no C++ compiler on PATH, not built; training uses torch AdamW"
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    from polysome.storage.local import only_one

    with only_one(str(folder)):
        if obstacle() is None:
            return f"DeepSpeed CPU Adam: built meanwhile by another process, {_library()}"
        # Holding our own lock, no other build of ours runs: a lock file of torch's belongs to a build that was killed.
        (folder / "lock").unlink(missing_ok=True)
        # Objects for another machine would be taken for up to date.
        for stale in [*folder.glob("*.o"), *folder.glob("*.so"), *folder.glob(".ninja*")]:
            stale.unlink()
        start = time.monotonic()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        from deepspeed.ops.op_builder import CPUAdamBuilder

        CPUAdamBuilder().load(verbose=False)
        temporary = folder / f"{_RECORD}.tmp"
        temporary.write_text(json.dumps(_machine(), indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / _RECORD)
    return f"DeepSpeed CPU Adam: built in {time.monotonic() - start:.0f} s with {compiler}, {_library()}"


def _folder() -> Path:
    return extensions_folder() / OPERATION


def _library() -> Path:
    return _folder() / f"{OPERATION}.so"


def _prebuilt() -> bool:
    specification = importlib.util.find_spec("deepspeed")
    folders = specification.submodule_search_locations if specification else None
    return any(library for folder in folders or [] for library in Path(folder).glob("ops/adam/cpu_adam_op*.so"))


def _machine() -> dict[str, str]:
    """What a library built with -march=native depends on."""
    from importlib.metadata import version

    flags = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            flags = next((line.partition(":")[2].strip() for line in handle if line.startswith("flags")), "")
    return {
        "processor": f"{platform.machine()} {' '.join(sorted(flags.split()))}".strip(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "torch": version("torch"),
        "deepspeed": version("deepspeed"),
    }


def _load() -> None:
    """Put the finished library where DeepSpeed looks before it compiles."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    if _prebuilt() or OPERATION in OpBuilder._loaded_ops:
        return
    specification = importlib.util.spec_from_file_location(OPERATION, _library())
    if specification is None or specification.loader is None:
        raise ImportError(f"{_library()} is no loadable library")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    OpBuilder._loaded_ops[OPERATION] = module


@contextmanager
def _known_cpu() -> Iterator[None]:
    """Answer DeepSpeed's question for the CPU vendor at once: py-cpuinfo takes one to two seconds in subprocesses.

    DeepSpeed asks only to warn of fp16 parameters on AMD, which no stage of ours has.
    """
    import cpuinfo  # type: ignore[import-untyped]

    original = cpuinfo.get_cpu_info
    cpuinfo.get_cpu_info = lambda: {"vendor_id_raw": platform.machine()}
    try:
        yield
    finally:
        cpuinfo.get_cpu_info = original


if __name__ == "__main__":
    print(build())
