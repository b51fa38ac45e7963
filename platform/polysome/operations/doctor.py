"""The doctor: what this machine has and lacks, one finding a line, each with how to mend it."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from polysome.config import PolysomeError
from polysome.operations import node, provenance
from polysome.operations.cluster import MINIMUM_MEMORY
from polysome.operations.machine import GIB, inspect
from polysome.operations.node import Finding
from polysome.storage import MIRROR_VARIABLE, exists

_OLDEST_PYTHON = (3, 11)
_MINIMUM_DISK = 2 * GIB
_MINIMUM_SHARED_MEMORY = 256 * 1024**2


def examine() -> list[Finding]:
    """All findings, in the order in which to mend them."""
    checks: list[Callable[[], list[Finding]]] = [
        _python,
        _house,
        _packages,
        _machine,
        _native,
        node.gpus,
        node.limits,
        node.clock,
        node.ray,
        node.token,
        _mirror,
        node.runs,
        node.ports,
        node.browser,
    ]
    return [finding for check in checks for finding in check()]


def _python() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return [
            Finding("python", "fail", version, "make the environment with Python 3.11: make install PYTHON=python3.11")
        ]
    if sys.version_info >= (3, 12):
        return [Finding("python", "warn", f"{version}; the pins were made for 3.11", "use Python 3.11 where you can")]
    return [Finding("python", "ok", version)]


def _house() -> list[Finding]:
    root = provenance.checkout()
    if root is None:
        return [Finding("checkout", "ok", "none; installed as a package")]
    stray = root / "platform" / "__init__.py"
    if stray.exists():
        return [Finding("checkout", "fail", f"{stray} hides the standard library's platform module", f"remove {stray}")]
    return [Finding("checkout", "ok", str(root))]


def _packages() -> list[Finding]:
    """Installed versions against constraints.txt: direct requirements must be there, pins should be met."""
    try:
        requirements = [Requirement(text) for text in metadata.requires("polysome") or []]
    except metadata.PackageNotFoundError:
        requirements = []
    needed = {canonicalize_name(item.name) for item in requirements if item.marker is None or item.marker.evaluate()}
    pins = _pins()
    missing, differing = [], []
    for name in sorted(needed | set(pins) & {"torch", "ray", "transformers", "peft", "deepspeed"}):
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if name in pins and Version(installed).public != pins[name]:
            differing.append(f"{name} {installed} (pinned {pins[name]})")
    if missing:
        return [Finding("packages", "fail", f"missing: {', '.join(missing)}", "make install")]
    if differing:
        return [Finding("packages", "warn", "; ".join(differing), "pip install -c constraints.txt -e '.[dev]'")]
    found = provenance.versions()
    shown = ", ".join(
        f"{name} {found[name]}" for name in ("torch", "ray", "transformers", "deepspeed") if name in found
    )
    return [Finding("packages", "ok", shown)]


def _pins() -> dict[str, str]:
    root = provenance.checkout()
    path = root / "constraints.txt" if root else None
    if path is None or not path.is_file():
        return {}
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines) if version
    }


def _machine() -> list[Finding]:
    machine = inspect()
    findings = [
        Finding(
            "cpus",
            "ok" if machine.cpus >= 2 else "warn",
            str(machine.cpus),
            "" if machine.cpus >= 2 else "two training workers will share one core",
        )
    ]
    memory = f"{machine.memory_available / GIB:.1f} GiB available of {machine.memory / GIB:.1f}"
    if machine.memory_available < MINIMUM_MEMORY:
        findings.append(
            Finding("memory", "fail", memory, f"close programs until {MINIMUM_MEMORY / GIB:.0f} GiB are available")
        )
    elif machine.memory_available < 2 * MINIMUM_MEMORY:
        findings.append(Finding("memory", "warn", memory, "enough for the demo; larger models need more"))
    else:
        findings.append(Finding("memory", "ok", memory))
    shared = f"{machine.shared_memory_available / GIB:.2f} GiB free"
    if machine.shared_memory_available < _MINIMUM_SHARED_MEMORY:
        findings.append(
            Finding(
                "/dev/shm", "warn", shared, "Ray falls back to disk; start the container with --shm-size=2g or more"
            )
        )
    else:
        findings.append(Finding("/dev/shm", "ok", shared))
    disk = f"{machine.disk_available / GIB:.0f} GiB free in the current folder"
    if machine.disk_available < _MINIMUM_DISK:
        findings.append(Finding("disk", "fail", disk, "free space, or put runs elsewhere with --runs"))
    else:
        findings.append(Finding("disk", "ok", disk))
    return findings


def _native() -> list[Finding]:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    findings = [
        Finding("compiler", "ok", compiler)
        if compiler
        else Finding("compiler", "warn", "no C++ compiler", "only to build DeepSpeed's CPU Adam: install g++")
    ]
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("deepspeed") is None:
        return findings
    from polysome.training.native import obstacle

    reason = obstacle()
    findings.append(
        Finding("deepspeed cpu adam", "ok", "built")
        if reason is None
        else Finding(
            "deepspeed cpu adam", "warn", f"{reason}; training uses torch AdamW", "python -m polysome.training.native"
        )
    )
    return findings


def _mirror() -> list[Finding]:
    mirror = os.environ.get(MIRROR_VARIABLE)
    if not mirror:
        return [Finding("mirror", "ok", f"{MIRROR_VARIABLE} is not set; data comes from its public sources")]
    try:
        there = exists(mirror)
    except (OSError, ImportError, ValueError, PolysomeError) as error:
        return [Finding("mirror", "fail", f"{mirror}: {error}", f"mend {MIRROR_VARIABLE}")]
    if not there:
        return [Finding("mirror", "fail", f"{mirror} is not there", f"mend or unset {MIRROR_VARIABLE}")]
    return [Finding("mirror", "ok", mirror)]
