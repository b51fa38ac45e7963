"""Trackers: the rows of metrics.jsonl as they are logged, shown in TensorBoard, Prometheus and MLflow as well.

Files are the truth and trackers are views of them: one that fails is reported once and left out, and training goes on.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from fsspec.core import url_to_fs

from polysome.config import ResourceError
from polysome.storage import join, make_folder

Name = Literal["tensorboard", "prometheus", "mlflow"]

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"
"""Folder of the event files in the run folder; `tensorboard --logdir` reads it, also where it is an fsspec URL."""

_NEEDED = {"tensorboard": "tensorboardX", "prometheus": "ray", "mlflow": "mlflow"}
_INSTALL = {
    "tensorboard": "pip install tensorboardX",
    "prometheus": "pip install 'ray[default]'",
    "mlflow": "pip install mlflow-skinny",
}
_MEMBERS = {"learning_rate": "role", "by_source": "source", "tasks": "task"}
"""Keys of a row that hold something for every member of a kind."""


class Tracker(Protocol):
    """What takes rows."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Take one row; it holds `update`."""
        ...

    def sync(self) -> None:
        """Bring what was logged to where it can be read; called at every checkpoint."""
        ...

    def close(self) -> None:
        """Finish; nothing is logged afterwards."""
        ...


@dataclass(frozen=True)
class Run:
    """Which rows these are.

    Attributes:
        id: of the run.
        stage: name of the stage.
        after_update: the update of the checkpoint that was resumed from, 0 in the beginning; rows follow from there.
    """

    id: str
    stage: str
    after_update: int = 0


@dataclass(frozen=True)
class Number:
    """One number of a row: `source_loss` of the member `core_promoter` of the kind `source`, or a number of the run."""

    name: str
    value: float
    kind: str = ""
    member: str = ""

    @property
    def path(self) -> str:
        """`training/loss`, `learning_rate/lora_a`, `source_loss/core_promoter`: panels of one kind stand together."""
        return f"{self.name}/{self.member}" if self.kind else f"training/{self.name}"


def numbers_of(row: Mapping[str, Any]) -> Iterator[Number]:
    """All numbers of a row but its `time`; what is None or text is left out.

    `by_source: {tf: {loss: 1.2}}` becomes `source_loss` of tf, `dev: {tasks: {tf: {value: 0.3}}}` becomes
    `dev_task_value` of tf.
    """
    return _numbers("", "", "", row)


def require_trackers(names: Sequence[Name]) -> None:
    """Check that the trackers' packages are installed.

    Raises:
        ResourceError: one is not.
    """
    for name in names:
        if importlib.util.find_spec(_NEEDED[name]) is None:
            raise ResourceError(
                f"the tracker {name} needs the package {_NEEDED[name]}, which is not installed",
                where=f"trackers: {name}",
                fix=f"{_INSTALL[name]} on every node, or take {name} out of trackers",
            )


def open_trackers(names: Sequence[Name], folder: str, run: Run) -> Trackers:
    """Open trackers for a run; worker 0 holds them.

    Args:
        folder: the run folder, path or any fsspec URL.

    Raises:
        ResourceError: a tracker's package is not installed.
    """
    require_trackers(names)
    openers: dict[Name, Callable[[], Tracker]] = {
        "tensorboard": partial(TensorBoard, folder, run),
        "prometheus": partial(Prometheus, run),
        "mlflow": partial(Mlflow, run),
    }
    return Trackers({name: openers[name] for name in names})


class Trackers:
    """Several trackers as one that never fails.

    A tracker that raises, on opening or later, is reported as an error in the log and not called again. The others get
    the number of lost ones with every row, as `trackers_failed`.
    """

    def __init__(self, openers: Mapping[Name, Callable[[], Tracker]]) -> None:
        """Open all."""
        self.failed: list[Name] = []
        """Those that are not called any more."""
        self._open: dict[Name, Tracker] = {}
        for name, opener in openers.items():
            self._guarded(name, partial(self._start, name, opener))

    def log(self, row: Mapping[str, Any]) -> None:
        """Hand a row to all."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, partial(tracker.log, {**row, "trackers_failed": len(self.failed)}))

    def sync(self) -> None:
        """See `Tracker.sync`."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.sync)

    def close(self) -> None:
        """Close all."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.close)
        self._open.clear()

    def _start(self, name: Name, opener: Callable[[], Tracker]) -> None:
        self._open[name] = opener()

    def _guarded(self, name: Name, call: Callable[[], object]) -> None:
        try:
            call()
        # Whatever a tracker's library or server does, it is no reason to lose a training.
        except Exception:
            self._open.pop(name, None)
            self.failed.append(name)
            logger.exception(
                "the tracker %s failed and gets no more rows; metrics.jsonl goes on and has them all", name
            )


class TensorBoard:
    """Event files in `<run folder>/tensorboard`; of a remote folder a local copy, uploaded by `sync` and `close`."""

    def __init__(self, folder: str, run: Run) -> None:
        """Open a new event file that declares all later updates of earlier files void."""
        from tensorboardX import SummaryWriter

        target = join(folder, TENSORBOARD)
        make_folder(target)
        self._filesystem, self._target = url_to_fs(target)
        local = "file" in self._filesystem.protocol
        self._local = self._target if local else tempfile.mkdtemp(prefix="polysome-tensorboard-")
        self._remote = not local
        # A resumed run must not write into the file of the run that was killed in the same second.
        suffix = re.sub(r"[^\w.]", "-", f".{run.stage}.{run.after_update}.{os.getpid()}")
        self._writer = SummaryWriter(self._local, purge_step=run.after_update + 1, filename_suffix=suffix)

    def log(self, row: Mapping[str, Any]) -> None:
        """See `Tracker.log`."""
        for number in numbers_of(row):
            self._writer.add_scalar(number.path, number.value, row["update"], walltime=row.get("time"))
        self._writer.flush()

    def sync(self) -> None:
        """See `Tracker.sync`."""
        if self._remote:
            for name in os.listdir(self._local):
                self._filesystem.put_file(os.path.join(self._local, name), join(self._target, name))

    def close(self) -> None:
        """See `Tracker.close`."""
        self._writer.close()
        self.sync()


class Prometheus:
    """Gauges `polysome_training_<name>`, tagged run, stage, and source, role or task; Ray's own metrics endpoint of the
    worker's node exports them, as `ray_polysome_training_<name>`."""

    def __init__(self, run: Run) -> None:
        """Gauges are made as their names come."""
        self._tags = {"run": run.id, "stage": run.stage}
        self._gauges: dict[str, Any] = {}

    def log(self, row: Mapping[str, Any]) -> None:
        """See `Tracker.log`."""
        from ray.util.metrics import Gauge

        for number in numbers_of(row):
            tags = {**self._tags, **({number.kind: number.member} if number.kind else {})}
            if number.name not in self._gauges:
                self._gauges[number.name] = Gauge(
                    f"polysome_training_{number.name}",
                    description=f"{number.name} of the newest logged update, as in metrics.jsonl",
                    tag_keys=tuple(tags),
                )
            self._gauges[number.name].set(number.value, tags)

    def sync(self) -> None:
        """Nothing: Ray exports on its own."""

    def close(self) -> None:
        """Nothing: the gauges go with the process."""


class Mlflow:
    """A run of the experiment named after the stage, on the server that `MLFLOW_TRACKING_URI` names.

    A resumed run goes on in the MLflow run of the same id. MLflow cannot take a number back: those of updates that are
    trained again stand there twice, equal ones.
    """

    def __init__(self, run: Run) -> None:
        """Find or make experiment and run."""
        # The client's own defaults try for many minutes while all workers wait.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name(run.stage)
        number = experiment.experiment_id if experiment else self._client.create_experiment(run.stage)
        query = f"attributes.run_name = '{run.id}'"
        found = self._client.search_runs([number], query, max_results=1)
        self._run = (found[0] if found else self._client.create_run(number, run_name=run.id)).info.run_id
        self._client.update_run(self._run, status="RUNNING")
        self._ended = False

    def log(self, row: Mapping[str, Any]) -> None:
        """See `Tracker.log`."""
        from mlflow.entities import Metric

        moment = int(1000 * row.get("time", time.time()))
        found = [Metric(number.path, number.value, moment, row["update"]) for number in numbers_of(row)]
        self._client.log_batch(self._run, metrics=found)
        self._ended = row["update"] == row.get("updates")

    def sync(self) -> None:
        """Nothing: rows are on the server."""

    def close(self) -> None:
        """See `Tracker.close`."""
        self._client.set_terminated(self._run, status="FINISHED" if self._ended else "KILLED")


def _numbers(prefix: str, kind: str, member: str, content: Mapping[str, Any]) -> Iterator[Number]:
    for key, value in content.items():
        name = f"{prefix}_{key}" if prefix else key
        if isinstance(value, Mapping) and key in _MEMBERS:
            # `learning_rate` is a number per role already; the others hold several numbers per member.
            of_kind = name if key == "learning_rate" else f"{prefix}_{_MEMBERS[key]}" if prefix else _MEMBERS[key]
            for inner, held in value.items():
                if isinstance(held, Mapping):
                    yield from _numbers(of_kind, _MEMBERS[key], inner, held)
                elif held is not None:
                    yield Number(of_kind, float(held), _MEMBERS[key], inner)
        elif isinstance(value, Mapping):
            yield from _numbers(name, kind, member, value)
        elif isinstance(value, (int, float)) and key != "time":
            yield Number(name, float(value), kind, member)
