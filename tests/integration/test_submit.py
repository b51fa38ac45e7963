"""A cluster with token authentication, and a job sent to it through the Jobs API by `polysome submit`."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from polysome.operations.runs import list_runs

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "tests/integration/light_prepare.yaml"


@dataclass(frozen=True)
class Head:
    """A running head: the address of its Jobs API, and the environment of its users with and without the token."""

    address: str
    user: dict[str, str]
    stranger: dict[str, str]


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


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` in a HOME and a temporary folder of its own; ended by the process ids found there."""
    home = tmp_path_factory.mktemp("home")
    token = home / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard, client, agent = free_ports(4)
    stranger = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    stranger |= {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{stranger['PATH']}"}
    stranger |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory(prefix="ph-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        user = {**stranger, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        command = [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--num-cpus=2"]
        command += [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
        command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--temp-dir={folder}", "--object-store-memory=150000000", "--node-ip-address=127.0.0.1"]
        log = home / "head.log"
        with log.open("w") as output:
            started = subprocess.Popen(command, env={**user, "RAY_TMPDIR": folder}, stdout=output, stderr=output)
        try:
            address = f"http://127.0.0.1:{dashboard}"
            _wait_for(address, token.read_text(), started, log)
            yield Head(address, user, stranger)
        finally:
            _end(started, folder)


def _wait_for(address: str, token: str, started: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and started.poll() is None:
        with suppress(httpx.HTTPError):
            answer = httpx.get(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"}, timeout=5)
            if answer.status_code == 200:
                return
        time.sleep(0.3)
    raise RuntimeError(f"the head did not start:\n{log.read_text()}")


def _end(started: subprocess.Popen, folder: str) -> None:
    """End the head and what belongs to it: its descendants, and those whose command line names its folder."""
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


def submit(head: Head, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "polysome.cli", "submit", "--address", head.address, RECIPE, *arguments]
    environment = {**environment, "PYTHONPATH": str(ROOT / "platform")}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_a_job_runs_on_the_cluster_and_its_log_is_followed_to_the_end(head, tiny_tokenizer, tmp_path):
    runs = tmp_path / "runs"
    done = submit(head, head.user, f"tokenizer={tiny_tokenizer}", "--runs", str(runs), "--run-id", "sent")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prepare light" in done.stdout  # said by the job, in its log
    assert done.stdout.rstrip().splitlines()[-1] == f"next: polysome runs --runs {runs}"
    ((folder, record),) = list_runs(str(runs))
    assert (record.id, record.status, record.job) == ("sent", "finished", "prepare")
    assert json.loads(Path(folder, "data", "manifest.json").read_text())["documents"] == 40


def test_a_job_that_fails_there_fails_here_with_its_exit_code_and_reason(head, tmp_path):
    done = submit(head, head.user, "--runs", str(tmp_path / "runs"))
    assert done.returncode != 0
    assert "given-by-the-test" in done.stdout
    assert "FAILED" in done.stderr


def test_without_the_token_or_with_another_one_the_cluster_refuses(head, tmp_path):
    other = tmp_path / "other"
    other.write_text(secrets.token_hex(32))
    wrong = {**head.user, "RAY_AUTH_TOKEN_PATH": str(other)}
    for environment, told in ((head.stranger, "without a token"), (wrong, "this token")):
        done = submit(head, environment, "--runs", str(tmp_path / "runs"))
        assert done.returncode == 2, done.stdout + done.stderr
        assert told in done.stderr
        assert "RAY_AUTH_TOKEN_PATH" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_wrong_recipe_is_refused_before_the_cluster_hears_of_it(head, tmp_path):
    done = submit(head, head.user, "kind=pretrian", "--runs", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "kind" in done.stderr


def test_an_address_where_nothing_listens_is_one_clear_error(head, tmp_path):
    nowhere = Head(f"http://127.0.0.1:{free_ports(1)[0]}", head.user, head.stranger)
    done = submit(nowhere, head.user, "--runs", str(tmp_path))
    assert done.returncode == 3
    assert "no Ray cluster answers" in done.stderr
