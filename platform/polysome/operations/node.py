"""What a node of a cluster needs beside the installation: GPUs, limits, clock, token, ports, stores."""

import ctypes
import importlib.util
import os
import resource
import shutil
import socket
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from polysome.config import PolysomeError
from polysome.operations.machine import GIB, inspect
from polysome.storage import exists

Verdict = Literal["ok", "warn", "fail"]

_PORTS = (
    (8000, "serving"),
    (8265, "the dashboard of a cluster"),
    (6379, "a head's control store"),
    (20080, "the metrics of a node in cluster.yaml"),
)
_OPEN_FILES = 65536
_MINIMUM_TEMPORARY = 5 * GIB
# What adjtimex(2) returns where nothing disciplines the clock.
_TIME_ERROR = 5


@dataclass(frozen=True)
class Finding:
    """One line: `fail` means that jobs cannot run, `warn` that some are slower or impossible."""

    subject: str
    verdict: Verdict
    detail: str
    fix: str = ""


def gpus() -> list[Finding]:
    """The GPUs that torch sees, and why it does not see those that are there."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    driver = _driver()
    count = torch.cuda.device_count()
    if count:
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
        return [Finding("gpus", "ok", f"{names}; driver {driver.detail}, CUDA {torch.version.cuda}")]
    if driver.verdict == "ok":
        detail = f"driver {driver.detail} is here, but torch {torch.__version__} sees no GPU"
        if torch.version.cuda is None:
            return [Finding("gpus", "warn", detail, "install a CUDA build of torch (locks/cuda.txt)")]
        return [
            Finding("gpus", "warn", detail, f"a driver for CUDA {torch.version.cuda}, or unset CUDA_VISIBLE_DEVICES")
        ]
    if driver.fix:
        return [driver]
    return [Finding("gpus", "ok", "none; jobs run on CPUs")]


def _driver() -> Finding:
    """`ok` with the version; `warn` with a way out where a GPU is there without it, without one where none is."""
    if shutil.which("nvidia-smi") is None:
        if Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia").exists():
            fix = "start the container with NVIDIA's container toolkit (docker run --gpus all)"
            return Finding("gpus", "warn", "a GPU is here, but not its driver's programs", fix)
        return Finding("gpus", "warn", "no driver")
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("gpus", "warn", f"nvidia-smi does not answer: {error}", "restart the node")
    if done.returncode or not done.stdout.strip():
        said = (done.stdout + done.stderr).strip().splitlines()
        fix = "load the driver's kernel module of the same version: most often a restart of the node"
        return Finding("gpus", "warn", f"nvidia-smi fails: {said[0] if said else done.returncode}", fix)
    return Finding("gpus", "ok", done.stdout.split()[0])


def limits() -> list[Finding]:
    """Open files, and the folder in which Ray keeps sessions and what spills out of its object store."""
    # Ray raises the soft limit to the hard one.
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY or allowed >= _OPEN_FILES:
        findings = [Finding("open files", "ok", "unlimited" if allowed == resource.RLIM_INFINITY else str(allowed))]
    else:
        fix = f"ulimit -n {_OPEN_FILES}, or docker run --ulimit nofile={_OPEN_FILES}:{_OPEN_FILES}"
        findings = [Finding("open files", "warn", f"{allowed}; a busy node holds more sockets", fix)]
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if not os.access(folder, os.W_OK):
        return [*findings, Finding("ray's folder", "fail", f"{folder} cannot be written", "set RAY_TMPDIR")]
    free = inspect(folder).disk_available
    detail = f"{free / GIB:.0f} GiB free in {folder}"
    if free < _MINIMUM_TEMPORARY:
        fix = "free space there, or set RAY_TMPDIR: sessions, logs and spilled objects lie there"
        return [*findings, Finding("ray's folder", "warn", detail, fix)]
    return [*findings, Finding("ray's folder", "ok", detail)]


def clock() -> list[Finding]:
    """Whether something keeps the clock right: deadlines, leases and heartbeats compare the clocks of several nodes."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "adjtimex"):
        return []
    # `struct timex` with no mode set only reads; 208 bytes on 64-bit Linux.
    state = library.adjtimex(ctypes.create_string_buffer(512))
    if state < 0:
        return []
    if state == _TIME_ERROR:
        fix = "install chrony or enable systemd-timesyncd (in a container: on its host)"
        return [Finding("clock", "warn", "nothing keeps it in step with others", fix)]
    return [Finding("clock", "ok", "kept in step")]


def ray() -> list[Finding]:
    """Which Ray jobs of this machine use."""
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        return [Finding("ray", "ok", "RAY_ADDRESS is not set; each job starts a local Ray")]
    if address.startswith(("http://", "https://")):
        fix = "unset it, and use polysome submit --address"
        return [Finding("ray", "fail", f"RAY_ADDRESS={address} is a Jobs API", fix)]
    return [Finding("ray", "ok", f"jobs join {address}")]


def token() -> list[Finding]:
    """The token of the cluster: whoever reads it can run code there."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        fix = "RAY_AUTH_MODE=token, unless nobody else reaches this machine"
        return [Finding("ray token", "warn", "RAY_AUTH_MODE=disabled: who reaches the cluster can run code on it", fix)]
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named or "~/.ray/auth_token").expanduser()
    if not path.is_file():
        return [Finding("ray token", "fail", f"{path} is not there", "mend RAY_AUTH_TOKEN_PATH")] if named else []
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        # Ray itself writes the one in the home folder so.
        return [Finding("ray token", "fail" if named else "warn", f"others can read {path}", f"chmod 600 {path}")]
    return [Finding("ray token", "ok", str(path))]


def runs() -> list[Finding]:
    """The folder or store of the runs, where `POLYSOME_RUNS` names one."""
    root = os.environ.get("POLYSOME_RUNS")
    if not root:
        return []
    try:
        there = exists(root)
    except (OSError, ImportError, ValueError, PolysomeError) as error:
        fix = "mend POLYSOME_RUNS, install the store's package (s3fs, gcsfs) or give this node its credentials"
        return [Finding("runs", "fail", f"{root}: {error}", fix)]
    if not there and "://" not in root:
        return [Finding("runs", "warn", f"{root} is not there yet", "mount it, or leave it to the first run")]
    return [Finding("runs", "ok", root)]


def ports() -> list[Finding]:
    """Ports that jobs, clusters and servers listen on by default."""
    findings = []
    for port, purpose in _PORTS:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                fix = "stop its owner or choose another --port"
                findings.append(Finding(f"port {port}", "warn", f"{purpose}: {error.strerror}", fix))
            else:
                findings.append(Finding(f"port {port}", "ok", f"free for {purpose}"))
    return findings


def browser() -> list[Finding]:
    """A Chromium, which only the tests of the pages need."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return [Finding("chromium", "ok", found or "none; the tests of the pages are left out")]
