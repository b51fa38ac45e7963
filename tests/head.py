"""A Ray head with token authentication for tests: its own HOME, folder and ports; ended by its process ids."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from polysome.operations.jobs import last_row
from polysome.operations.runs import RunRecord, read_run

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Head:
    """A running head: the address of its Jobs API, and the environment of its users with and without the token."""

    address: str
    user: dict[str, str]
    stranger: dict[str, str]
    gcs: str
    """`host:port` that nodes join."""
    home: Path

    def polysome(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """The command of that name, talking to this head."""
        environment = {**(environment or self.user), "PYTHONPATH": str(ROOT / "platform")}
        environment.setdefault("POLYSOME_ADDRESS", self.address)
        command = [sys.executable, "-m", "polysome.cli", *arguments]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)

    @contextmanager
    def node(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """A node more, joined by `ray start`."""
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", f"--address={self.gcs}"]
        with tempfile.TemporaryDirectory(prefix="pn-", dir="/tmp", ignore_cleanup_errors=True) as folder:
            # Of its own: nodes that share one also share, and remove, each other's copies of a job's working folder.
            command += [f"--temp-dir={folder}", "--object-store-memory=100000000", *options]
            with (self.home / "node.log").open("w") as output:
                environment = {**self.user, "RAY_TMPDIR": folder}
                started = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            try:
                yield started
            finally:
                end(started, folder)


def kill_node(node: subprocess.Popen[bytes]) -> None:
    """End a node as a machine ends whose power fails: all of its processes at once, with SIGKILL."""
    for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
        process.kill()
    node.wait(timeout=30)


def eventually(what: Callable[[], Any], seconds: float = 240) -> Any:
    """The first truth that `what` tells."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)
    return found


class Cluster:
    """What tests ask of a head, and of the folder that its jobs write runs to."""

    def __init__(self, head: Head, runs: Path) -> None:
        self.head, self.runs = head, runs

    def __call__(self, *arguments: str) -> Any:
        done = self.head.polysome(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def submit(self, recipe: str, run: str, *options: str) -> None:
        self("submit", recipe, *options, "--runs", str(self.runs), "--run-id", run, "--no-follow")

    def state(self, run: str) -> str:
        return str(self("status", run)["status"])

    def record(self, run: str) -> RunRecord:
        return read_run(str(self.runs / run))

    def update(self, run: str) -> int:
        return int((last_row(str(self.runs / run / "metrics.jsonl")) or {"update": 0})["update"])


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, outside the range that Ray gives to workers."""
    found: list[int] = []
    for port in range(23000 + os.getpid() % 5000, 40000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


@contextmanager
def running_head(home: Path, *, cpus: int = 2) -> Iterator[Head]:
    """`ray start --head` in this HOME and a temporary folder of its own."""
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard, client, agent = free_ports(4)
    stranger = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "POLYSOME_"))}
    stranger |= {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{stranger['PATH']}"}
    stranger |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory(prefix="ph-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        user = {**stranger, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--num-cpus={cpus}"]
        command += [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
        command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--temp-dir={folder}", "--object-store-memory=150000000", "--node-ip-address=127.0.0.1"]
        log = home / "head.log"
        with log.open("w") as output:
            started = subprocess.Popen(command, env={**user, "RAY_TMPDIR": folder}, stdout=output, stderr=output)
        try:
            address = f"http://127.0.0.1:{dashboard}"
            _wait_for(address, token.read_text(), started, log)
            yield Head(address, user, stranger, f"127.0.0.1:{port}", home)
        finally:
            end(started, folder)


def _wait_for(address: str, token: str, started: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and started.poll() is None:
        with suppress(httpx.HTTPError):
            answer = httpx.get(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"}, timeout=5)
            if answer.status_code == 200:
                return
        time.sleep(0.3)
    raise RuntimeError(f"the head did not start:\n{log.read_text()}")


def end(started: subprocess.Popen[bytes], folder: str) -> None:
    """End a node and what belongs to it: its descendants, and those whose command line names the folder."""
    own = {}
    with suppress(psutil.NoSuchProcess):
        own = {process.pid: process for process in psutil.Process(started.pid).children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if any(folder in part for part in process.cmdline()):
                own[process.pid] = process
    started.terminate()
    for process in own.values():
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(own.values(), timeout=15)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    started.wait(timeout=30)
