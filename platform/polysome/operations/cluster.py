"""The Ray cluster of a job: the one that it was sent to, or a private local one for as long as the job lasts."""

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polysome.config import ConfigurationError, ResourceError
from polysome.operations import queue, submission
from polysome.operations.machine import GIB, inspect
from polysome.specs.catalog import FOLDER_VARIABLE
from polysome.storage import MIRROR_VARIABLE, absolute

if TYPE_CHECKING:
    from polysome.operations.runs import Run

log = logging.getLogger(__name__)

MINIMUM_MEMORY = 2 * GIB
"""Available memory below which a local Ray with two training workers does not fit (a tiny model needs 2.5 GiB, shared
pages counted once; the rest can come from what is freed meanwhile)."""
CPUS_VARIABLE = "POLYSOME_CPUS"

THREAD_PINS = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""One thread per worker process: Ray places work by CPUs, and libraries that take all cores fight over them."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
SERVING = {
    # Over gRPC a piece of an answer costs less on its way to the gateway than as an object of Ray's.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # By default 4 MiB, which the vectors or log-likelihoods of one request exceed; requests have bounds of their own.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "2147483647",
    # A gateway only passes on, and a model computes in a thread of its engine: Serve's own threads for the code that it
    # runs and for its router would be two more that every piece is handed to.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""How Ray Serve passes requests and answers on; for Serve's own processes too, so a cluster is started with it."""

_TRAINING = {
    # A report waits for the controller's next look at the workers, two seconds by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
}


@dataclass(frozen=True)
class Cluster:
    """The cluster that `connect` gave: `address` of its control store, and whether it ends with the block."""

    address: str
    local: bool
    cpus: float
    gpus: float


@contextmanager
def connect(*, cpus: int = 1, gpus: float = 0, times: int = 1, run: "Run | None" = None) -> Iterator[Cluster]:
    """Join the cluster at `RAY_ADDRESS`, else start a local Ray that ends with the block, also on Ctrl-C.

    A Ray that is already initialised in this process is used and left as it is. A local Ray listens on loopback, asks
    for a token that only this process and its children know, keeps its files in a folder of its own, and neither reads
    nor writes `~/.ray`, so that two at once do not meet. A submitted job waits for its turn in the cluster's queue.

    Args:
        cpus: CPUs that the job needs at once. A local Ray has `max(2, CPUs of the machine)`, or `POLYSOME_CPUS`.
        gpus: GPUs that the job needs at once.
        times: so often as much it has use for; waited for where the cluster has that much.
        run: is told when it waits, and what it holds; of a local Ray that is all of it.

    Raises:
        ResourceError: too little memory or too few CPUs or GPUs; no cluster answers at `RAY_ADDRESS`.
        ConfigurationError: `RAY_ADDRESS` is the address of the Jobs API.
    """
    ray_address = os.environ.get("RAY_ADDRESS", "")
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            cluster = _check(cpus, gpus, local=False)
            _hold(run, *_use(cluster, cpus, gpus, times))
            yield cluster
            return
    if ray_address and ray_address != "local":
        with _joined(ray_address):
            cluster = _check(cpus, gpus, local=False)
            use = _use(cluster, cpus, gpus, times)
            with _turn(*use, run):
                _hold(run, *use)
                yield cluster
        return
    with _started(cpus):
        cluster = _check(cpus, gpus, local=True)
        _hold(run, cluster.cpus, cluster.gpus)
        yield cluster


def _use(cluster: Cluster, cpus: float, gpus: float, times: int) -> tuple[float, float]:
    """What a job that needs so much at once, and has use for a multiple, can have of this cluster."""
    fits = [int(size // need) for size, need in ((cluster.cpus, cpus), (cluster.gpus, gpus)) if need]
    times = max(1, min([times, *fits]))
    return cpus * times, gpus * times


def _hold(run: "Run | None", cpus: float, gpus: float) -> None:
    if run is not None:
        run.hold(cpus=cpus, gpus=gpus)


@contextmanager
def _turn(cpus: float, gpus: float, run: "Run | None") -> Iterator[None]:
    """A submitted job's turn; what is started by hand has come to its own cluster and waits for nobody."""
    submitted = submission.current()
    if submitted is None or run is None:
        yield
        return

    def waits(ahead: int) -> None:
        run.wait()
        print(f"waiting in the cluster's queue, {ahead} before this job", file=sys.stderr)

    job, asked = submitted
    ticket = queue.Ticket(job, cpus, gpus, priority=asked.priority, team=asked.team, since=time.time())
    with queue.turn(ticket, waits):
        yield


@contextmanager
def _joined(address: str) -> Iterator[None]:
    if address.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"RAY_ADDRESS={address} is the address of the Jobs API",
            where="RAY_ADDRESS",
            fix=f"send the job with `polysome submit RECIPE --address {address}`, or unset RAY_ADDRESS to run here",
        )
    import ray

    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    try:
        # A submitted job brings its runtime environment with it; a driver of its own pins the threads of its workers.
        with _keeping_signals():
            ray.init(
                address=address,
                runtime_env=None if submitted else {"env_vars": {**THREAD_PINS, **SERVING, **_shared_variables()}},
                log_to_driver=True,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}",
            where="RAY_ADDRESS",
            fix="start the cluster, mend the address (and RAY_AUTH_TOKEN_PATH), or unset RAY_ADDRESS to run here",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _started(cpus: int) -> Iterator[None]:
    machine = inspect(tempfile.gettempdir())
    if machine.memory_available < MINIMUM_MEMORY:
        raise ResourceError(
            f"{machine.memory_available / GIB:.1f} GiB of memory available, {MINIMUM_MEMORY / GIB:.0f} GiB needed",
            where="this machine",
            fix="close other programs, raise the container's limit, or set RAY_ADDRESS to a cluster",
        )
    count = _local_cpus(machine.cpus)
    if cpus > count:
        raise ResourceError(
            f"the job needs {cpus} CPUs at once, this machine gives {count}",
            where="this machine",
            fix=f"lower the recipe's workers or actors, set {CPUS_VARIABLE}={cpus} to share cores, or set RAY_ADDRESS",
        )
    # Everything that Ray starts inherits this environment, so it stands before Ray is imported.
    for name, value in local_environment().items():
        os.environ[name] = value
    import ray
    from ray._raylet import Config  # type: ignore[attr-defined]

    # A Ray that was imported before has read its settings already; this is how Ray itself makes it read them again.
    Config.initialize("")
    folder = _session_folder()
    try:
        try:
            with _keeping_signals():
                ray.init(
                    address="local",
                    num_cpus=count,
                    include_dashboard=False,
                    object_store_memory=_object_store_bytes(machine.memory_available, machine.shared_memory_available),
                    logging_level=logging.ERROR,
                    log_to_driver=log.isEnabledFor(logging.INFO),
                    _temp_dir=folder,
                )
        except Exception as error:  # Ray raises a plain one where its processes do not come up in time.
            raise ResourceError(
                f"Ray did not start on this machine: {str(error).splitlines()[0]}",
                where="this machine",
                fix="give the same command again when the machine is less busy; with a run id it goes on",
            ) from error
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _keeping_signals() -> Iterator[None]:
    """Put SIGTERM's handler back after the block: Ray sets one that aborts the process with a crash report."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def local_environment() -> dict[str, str]:
    """Variables for a local Ray and all its workers; what the user already set stays, but for PATH and PYTHONPATH."""
    wanted = {
        **THREAD_PINS,
        **_QUIET,
        **SERVING,
        **_TRAINING,
        "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_extensions"),
        "RAY_AUTH_MODE": "token",
        # The node's address is the loopback one, also on Linux.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        **_shared_variables(),
    }
    environment = {name: os.environ.get(name, value) for name, value in wanted.items()}
    if environment["RAY_AUTH_MODE"] == "token" and not (
        os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    ):
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Ray starts ninja and its own programs by name.
    environment["PATH"] = _first(str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath))
    environment["PYTHONPATH"] = _first(str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", ""))
    return environment


def _shared_variables() -> dict[str, str]:
    """Polysome's own variables, with local paths made absolute, since a worker's current folder is not ours."""
    return {name: absolute(os.environ[name]) for name in (MIRROR_VARIABLE, FOLDER_VARIABLE) if os.environ.get(name)}


def _first(entry: str, paths: str) -> str:
    others = [path for path in paths.split(os.pathsep) if path and path != entry]
    return os.pathsep.join([entry, *others])


def _local_cpus(counted: int) -> int:
    declared = os.environ.get(CPUS_VARIABLE)
    if declared is None:
        return max(2, counted)
    if not declared.isdigit() or int(declared) < 1:
        raise ConfigurationError(
            f"{CPUS_VARIABLE}={declared} is no count", where=CPUS_VARIABLE, fix="set it to a whole number from 1"
        )
    return int(declared)


def _object_store_bytes(memory_available: int, shared_memory_available: int) -> int:
    """A fifth of the memory, within [100 MiB, 4 GiB], and within /dev/shm where that can hold Ray's minimum."""
    wanted = min(max(memory_available // 5, 100 * 1024**2), 4 * GIB)
    shared = int(shared_memory_available * 0.8)
    return min(wanted, shared) if shared >= 100 * 1024**2 else wanted


def _session_folder() -> str:
    """A private folder with a short path: the sockets below it may have 107 characters in all."""
    parent = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(parent) > 30 or not os.path.isdir(parent):
        parent = "/tmp"
    return tempfile.mkdtemp(prefix="ps-", dir=parent)


def _check(cpus: float, gpus: float, *, local: bool) -> Cluster:
    import ray

    resources = ray.cluster_resources()
    cluster = Cluster(
        address=ray.get_runtime_context().gcs_address,
        local=local,
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
    )
    if cluster.cpus < cpus or cluster.gpus < gpus:
        what = f"the job needs {cpus:g} CPUs and {gpus:g} GPUs, the cluster has {cluster.cpus:g} and {cluster.gpus:g}"
        if local:
            raise ResourceError(what, where="this machine", fix="lower the recipe's workers, or set RAY_ADDRESS")
        # An autoscaling cluster grows when work waits, so what it has now is no reason to refuse.
        log.warning("%s now; waiting for it to grow", what)
    return cluster
