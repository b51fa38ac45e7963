"""Heartbeats: small files that say when a process was last alive, and which one, without naming the machine."""

import hashlib
import os
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from fsspec.core import url_to_fs

from polysome.config import Config, ConfigurationError, DataError, validate
from polysome.storage import read_json, write_json

STALE_SECONDS = 60.0
"""Age from which the heartbeat of another machine counts as stopped."""


class Heartbeat(Config):
    """One file's content."""

    beat: str
    """UTC, ISO 8601."""
    machine: str
    pid: int
    process_started: float


def now() -> str:
    """UTC, ISO 8601, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def beat(url: str) -> None:
    """Write that this process is alive."""
    write_json(url, _this().model_dump())


def create(url: str) -> bool:
    """Create a file that names this process and must not exist yet; False when it does.

    Raises:
        ConfigurationError: the file system cannot create a file exclusively.
    """
    filesystem, path = url_to_fs(url)
    try:
        with filesystem.open(path, "xb") as handle:
            handle.write(_this().model_dump_json().encode())
    except FileExistsError:
        return False
    except (NotImplementedError, ValueError) as error:
        raise ConfigurationError(
            f"the file system of {url} cannot create a file exclusively, so two runs could share a folder",
            where="--runs",
            fix="keep runs on a local or shared folder, or on S3 or GCS",
        ) from error
    return True


def read(url: str) -> Heartbeat | None:
    """What stands at `url`; None where that is no heartbeat."""
    try:
        return validate(Heartbeat, read_json(url), where=url)
    except (DataError, ConfigurationError):
        return None


def alive(found: Heartbeat | None) -> bool:
    """Whether the process that wrote it lives: looked up where it is on this machine, else told by its age."""
    if found is None:
        return False
    if found.machine == _machine():
        return _process_started(found.pid) == found.process_started
    return (datetime.now(UTC) - datetime.fromisoformat(found.beat)).total_seconds() < STALE_SECONDS


def _this() -> Heartbeat:
    pid = os.getpid()
    return Heartbeat(beat=now(), machine=_machine(), pid=pid, process_started=_process_started(pid) or 0.0)


def _process_started(pid: int) -> float | None:
    import psutil

    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return float(process.create_time())
    return None


def _machine() -> str:
    """A hash that is the same for processes which see each other's process ids, and tells nothing else."""
    parts = []
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if os.path.islink(path) else Path(path).read_text(encoding="ascii"))
        except OSError:
            return f"unknown-{secrets.token_hex(8)}"
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
