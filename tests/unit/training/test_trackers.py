"""Trackers: every number of a row can be looked up, none twice after a resume, and one that fails does no harm."""

import logging
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import uuid4

import fsspec
import pytest

from polysome.config import ResourceError
from polysome.training import trackers
from polysome.training.trackers import Run, TensorBoard, Trackers, numbers_of, open_trackers, require_trackers

ROW = {
    "update": 10,
    "loss": 1.5,
    "mfu": None,
    "learning_rate": {"lora_a": 1e-4, "lora_b": 1.6e-3},
    "by_source": {"tf": {"loss": 1.25, "targets_share": 0.75, "accuracy": 0.5}},
    "dev": {
        "loss": 1.75,
        "by_source": {"tf": {"loss": 2.0}},
        "tasks": {"tf": {"metric": "mcc", "value": 0.25, "prediction_spread": None}},
    },
    "time": 1_700_000_000.0,
}
PATHS = {
    "training/update": 10,
    "training/loss": 1.5,
    "training/dev_loss": 1.75,
    "learning_rate/lora_a": 1e-4,
    "learning_rate/lora_b": 1.6e-3,
    "source_loss/tf": 1.25,
    "source_targets_share/tf": 0.75,
    "source_accuracy/tf": 0.5,
    "dev_source_loss/tf": 2.0,
    "dev_task_value/tf": 0.25,
}


def events(content: bytes) -> list[Any]:
    """The events of a TensorBoard file: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found, place = [], 0
    while place < len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        found.append(Event.FromString(content[place + 12 : place + 12 + size]))
        place += size + 16
    return found


def scalars(folder: str) -> list[tuple[str, int, float]]:
    """What TensorBoard shows of a folder: files in the order of their names, each START voiding what comes later."""
    shown: list[tuple[str, int, float]] = []
    filesystem, path = fsspec.core.url_to_fs(folder)
    for file in sorted(filesystem.ls(f"{path}/tensorboard", detail=False)):
        for event in events(filesystem.cat_file(file)):
            if event.HasField("session_log"):
                shown = [scalar for scalar in shown if scalar[1] < event.step]
            shown += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return shown


def test_every_number_of_a_row_has_a_path() -> None:
    assert {number.path: number.value for number in numbers_of(ROW)} == PATHS


@pytest.mark.parametrize("remote", [False, True])
def test_tensorboard_shows_each_update_once_though_the_run_was_resumed(
    remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"memory://{uuid4().hex}" if remote else str(tmp_path)
    # Files are ordered by their second, and a resumed run starts in a later one than its first row.
    clock = iter(range(1_700_000_000, 1_800_000_000))
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: float(next(clock)))
    first = TensorBoard(folder, Run("r", "stage 2"))
    for update in (10, 20, 30):
        first.log({**ROW, "update": update})
    first.sync()
    resumed = TensorBoard(folder, Run("r", "stage 2", after_update=10))
    resumed.log({**ROW, "update": 20, "loss": 0.5})
    resumed.close()
    shown = scalars(folder)
    assert {(path, step) for path, step, _ in shown} == {(path, step) for path in PATHS for step in (10, 20)}
    assert len(shown) == 2 * len(PATHS)
    assert ("training/loss", 20, 0.5) in shown
    assert ("training/loss", 10, 1.5) in shown


def test_prometheus_gauges_carry_run_stage_and_member(monkeypatch: pytest.MonkeyPatch) -> None:
    gauges: dict[str, Any] = {}

    class Gauge:
        """What Ray's gauge asks for: every declared tag, and numbers."""

        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert name not in gauges
            self.tag_keys, self.values = set(tag_keys), {}
            gauges[name] = self

        def set(self, value: float, tags: Mapping[str, str]) -> None:
            assert set(tags) == self.tag_keys
            self.values[tuple(tags.values())] = value

    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    opened = open_trackers(["prometheus"], "unused", Run("run-1", "stage2"))
    opened.log({**ROW, "loss": 3.0})
    opened.log(ROW)
    assert not opened.failed
    assert gauges["polysome_training_loss"].values == {("run-1", "stage2"): 1.5}
    assert gauges["polysome_training_learning_rate"].values[("run-1", "stage2", "lora_b")] == 1.6e-3
    assert gauges["polysome_training_source_loss"].values == {("run-1", "stage2", "tf"): 1.25}
    assert gauges["polysome_training_dev_task_value"].values == {("run-1", "stage2", "tf"): 0.25}
    assert gauges["polysome_training_trackers_failed"].values == {("run-1", "stage2"): 0}


class Broken:
    """A tracker whose server goes away."""

    def log(self, row: Mapping[str, Any]) -> None:
        raise ConnectionError("server gone")

    def sync(self) -> None:
        raise AssertionError("called again")

    close = sync


class Kept:
    """A tracker that works."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []

    def log(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def sync(self) -> None: ...

    close = sync


def test_a_tracker_that_fails_is_told_once_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()

    def unreachable() -> Broken:
        raise ConnectionError("no server")

    with caplog.at_level(logging.ERROR, logger="polysome"):
        opened = Trackers({"mlflow": unreachable, "tensorboard": Broken, "prometheus": lambda: kept})
        for update in (1, 2):
            opened.log({"update": update})
        opened.sync()
        opened.close()
    assert opened.failed == ["mlflow", "tensorboard"]
    assert kept.rows == [{"update": 1, "trackers_failed": 2}, {"update": 2, "trackers_failed": 2}]
    assert [record.getMessage().split()[2] for record in caplog.records] == ["mlflow", "tensorboard"]


def test_an_absent_package_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="mlflow") as caught:
        require_trackers(["mlflow"])
    assert "pip install mlflow-skinny" in str(caught.value)


class Server:
    """What an MLflow server keeps, with the client's calls."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.points: list[tuple[str, str, float, int]] = []
        self.ends: list[str] = []

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        known = [run for run in self.runs.values() if run.experiment == name]
        return SimpleNamespace(experiment_id=name) if known else None

    def create_experiment(self, name: str) -> str:
        return name

    def search_runs(self, experiments: list[str], query: str, max_results: int) -> list[SimpleNamespace]:
        return [run for name, run in self.runs.items() if query == f"attributes.run_name = '{name}'"]

    def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
        run = SimpleNamespace(experiment=experiment, status="", info=SimpleNamespace(run_id=f"id of {run_name}"))
        self.runs[run_name] = run
        return run

    def update_run(self, run_id: str, status: str) -> None: ...

    def log_batch(self, run_id: str, metrics: list[SimpleNamespace]) -> None:
        self.points += [(run_id, metric.key, metric.value, metric.step) for metric in metrics]

    def set_terminated(self, run_id: str, status: str) -> None:
        self.ends.append(status)


def test_mlflow_goes_on_in_the_run_that_was_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    for name, content in {
        "mlflow": {},
        "mlflow.tracking": {"MlflowClient": lambda: server},
        "mlflow.entities": {
            "Metric": lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)
        },
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: object())
    for after_update in (0, 10):
        opened = open_trackers(["mlflow"], "unused", Run("run-1", "stage2", after_update))
        opened.log({"update": after_update + 10, "updates": 20, "loss": 1.0})
        opened.close()
        assert not opened.failed
    assert list(server.runs) == ["run-1"]
    assert server.ends == ["KILLED", "FINISHED"]
    assert [point for point in server.points if point[1] == "training/loss"] == [
        ("id of run-1", "training/loss", 1.0, 10),
        ("id of run-1", "training/loss", 1.0, 20),
    ]
