"""Autoscaling by queue time: replicas are added while requests wait too long, and taken away when fewer would do."""

import math
from typing import Any

QUEUE_SECONDS = "queue_seconds"
"""What every replica tells: how long the request that waits longest has waited."""


class QueueTime:
    """A policy of Ray Serve. It travels to Serve's controller by value, so it imports nothing of ours.

    Args:
        target_seconds: wait that is allowed.
        requests_per_replica: requests at once that a replica shall have; a replica goes only if the others keep to it.
    """

    def __init__(self, target_seconds: float, requests_per_replica: float) -> None:
        self._target, self._per_replica = target_seconds, requests_per_replica

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas wanted, and the policy's state, which is empty. Delays are those of the autoscaling settings."""
        current = max(1, context.current_num_replicas)
        waits = (context.aggregated_metrics or {}).get(QUEUE_SECONDS, {}).values()
        over = max(waits, default=0.0) / self._target
        ongoing = context.total_num_requests
        if over > 1 or (context.total_queued_requests or 0) > current:
            # At most twice as many at once: what is starting does not help yet.
            wanted = math.ceil(current * min(2.0, max(over, 1.5)))
        elif context.current_num_replicas == 0 or ongoing == 0:
            wanted = 1 if ongoing else 0
        else:
            wanted = min(current, math.ceil(ongoing / self._per_replica))
        low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return max(low, min(high, wanted)), {}
