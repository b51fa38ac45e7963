"""What this machine or container has: CPUs, memory, shared memory, disk."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

GIB = 1024**3


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes. Limits of a container count, not those of the host below it."""

    cpus: int
    memory: int
    memory_available: int
    shared_memory_available: int
    disk_available: int


def inspect(disk: str | Path = ".") -> Machine:
    """Look at the machine; `disk` is a path on the disk of interest (its nearest existing parent is looked at)."""
    import psutil

    host = psutil.virtual_memory()
    limit = _read_number("/sys/fs/cgroup/memory.max") or _read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    used = _read_number("/sys/fs/cgroup/memory.current") or _read_number("/sys/fs/cgroup/memory/memory.usage_in_bytes")
    memory, available = host.total, host.available
    if limit and limit < memory:
        # Page cache is charged to the container and given back when memory is short.
        cache = _read_statistic("/sys/fs/cgroup/memory.stat", "inactive_file")
        memory, available = limit, min(available, max(0, limit - (used or 0) + cache))
    path = Path(disk).absolute()
    while not path.exists():
        path = path.parent
    shared = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
    return Machine(_cpus(), memory, available, shared, shutil.disk_usage(path).free)


def _cpus() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, int(quota) // int(period)))


def _read_number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _read_statistic(path: str, name: str) -> int:
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
