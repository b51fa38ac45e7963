"""Scaling by how long requests wait: replicas wanted, and the settings that Serve gets for it."""

from types import SimpleNamespace

import pytest
from ray.serve.config import AutoscalingConfig

from polysome.serving import app
from polysome.serving.autoscaling import QUEUE_SECONDS, QueueTime
from polysome.serving.config import Autoscaling, ServeConfig
from polysome.serving.pool import ModelPool


@pytest.mark.parametrize(
    ("replicas", "wait", "ongoing", "queued", "wanted"),
    [
        (0, None, 0, 0, 0),
        (0, None, 1, 1, 1),
        (1, 0.5, 3, 0, 1),
        # Half more or twice as many, however long they wait, and no more than are allowed.
        (2, 1.2, 8, 0, 3),
        (2, 90.0, 8, 0, 4),
        (3, 90.0, 40, 0, 4),
        (2, None, 9, 3, 3),
        # Fewer as soon as they would do.
        (4, 0.1, 5, 0, 2),
        (4, 0.1, 0, 0, 0),
    ],
)
def test_replicas_follow_the_longest_wait(replicas, wait, ongoing, queued, wanted) -> None:
    context = SimpleNamespace(
        current_num_replicas=replicas,
        aggregated_metrics=None if wait is None else {QUEUE_SECONDS: {"a": wait, "b": wait / 3}},
        total_num_requests=ongoing,
        total_queued_requests=queued,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=4,
    )
    policy = QueueTime(target_seconds=1.0, requests_per_replica=4)
    assert policy(context) == (wanted, {})
    context.capacity_adjusted_min_replicas = 1
    assert policy(context)[0] == max(1, wanted)


def test_serve_takes_the_policy_and_its_settings() -> None:
    scaling = Autoscaling(min_replicas=0, max_replicas=3, target_queue_seconds=2.5, target_ongoing_requests=6)
    settings = AutoscalingConfig(**app._autoscaling(ServeConfig(model="unused", autoscaling=scaling)))
    policy = settings.policy.get_policy()
    made = policy(**settings.policy.policy_kwargs) if isinstance(policy, type) else policy
    assert (made._target, made._per_replica) == (2.5, 6)
    assert (settings.min_replicas, settings.max_replicas) == (0, 3)


def test_a_replica_tells_how_long_its_oldest_request_waits() -> None:
    engine = SimpleNamespace(load=lambda: SimpleNamespace(waited_seconds=1.25))
    pool = ModelPool(ServeConfig(model="unused").model_dump(mode="json"), engine)  # type: ignore[arg-type]
    assert pool.record_autoscaling_stats() == {QUEUE_SECONDS: 1.25}
