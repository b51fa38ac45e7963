"""Ray's failures and its room as the jobs see them, without a cluster."""

import pytest
import ray
from ray.exceptions import RayTaskError
from ray.train import ControllerError, WorkerGroupError

from polysome.config import DataError, ResourceError
from polysome.data import ray_capacity
from polysome.data.ray_errors import cause_of

TOLD = DataError("wrong", where="row 3", fix="mend it")


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("work", "Traceback", cause, "worker", 1, "127.0.0.1")


def chained(cause: Exception) -> RuntimeError:
    error = RuntimeError("failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        TOLD,
        chained(TOLD),
        task_error(TOLD),
        task_error(TOLD).as_instanceof_cause(),
        WorkerGroupError("two workers", {1: task_error(TOLD)}),
        ControllerError(chained(TOLD)),
    ],
    ids=["plain", "chained", "task", "dual", "workers", "controller"],
)
def test_the_products_own_error_is_found_and_plain(error: Exception) -> None:
    assert cause_of(error) is TOLD


def test_an_error_that_is_not_ours_has_no_cause() -> None:
    assert cause_of(WorkerGroupError("one worker", {0: task_error(ValueError("x"))})) is None


@pytest.mark.parametrize(("cpus", "gpus"), [(1, 0), (0, 0.5)])
def test_an_idle_cluster_that_can_grow_is_waited_for_and_a_local_ray_is_refused(
    cpus: float, gpus: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", dict)

    def require() -> None:
        ray_capacity.require_capacity("a stage", cpus=cpus, gpus=gpus, where="workers", fix="lower it")

    monkeypatch.setattr(ray_capacity, "can_grow", lambda: True)
    require()
    assert "waiting for it to grow" in caplog.text
    monkeypatch.setattr(ray_capacity, "can_grow", lambda: False)
    with pytest.raises(ResourceError, match="the cluster has 0 and 0"):
        require()
