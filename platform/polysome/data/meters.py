"""Meters: counters, gauges and histograms for Prometheus, which Ray exports on every node's metrics port.

A meter `<name>` is `ray_polysome_<name>` there. Each is made once per process; outside Ray it can be used as well, and
nobody sees it.
"""

import sys
import time
from functools import cache
from typing import TYPE_CHECKING, Literal

from polysome.data.manifest import Shard

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge, Histogram

Work = Literal["training", "evaluation", "serving"]


@cache
def counter(name: str, description: str, *tags: str) -> "Counter":
    """What only grows; `name` ends with `_total`."""
    from ray.util.metrics import Counter

    return Counter(f"polysome_{name}", description=description, tag_keys=tags)


@cache
def gauge(name: str, description: str, *tags: str) -> "Gauge":
    """What goes up and down; the newest value counts."""
    from ray.util.metrics import Gauge

    return Gauge(f"polysome_{name}", description=description, tag_keys=tags)


@cache
def histogram(name: str, description: str, boundaries: tuple[float, ...], *tags: str) -> "Histogram":
    """How often a value fell between which boundaries. Ray's sum of it is made of the buckets' middles: quantiles are
    as good as the boundaries, and so is the mean."""
    from ray.util.metrics import Histogram

    return Histogram(f"polysome_{name}", description=description, boundaries=list(boundaries), tag_keys=tags)


def count_shard(dataset: str, shard: Shard, seconds: float) -> None:
    """Count a written shard: `prepare_{documents,tokens,rows,shards,seconds}_total` by data set."""
    counts = {"documents": shard.documents, "tokens": shard.tokens, "rows": shard.rows, "shards": 1, "seconds": seconds}
    for what, value in counts.items():
        if value:
            written = counter(
                f"prepare_{what}_total", f"{what} of training data written by polysome prepare", "dataset"
            )
            written.inc(value, {"dataset": dataset})


class Usage:
    """What this process holds of the cluster, busy or not: `cpu_seconds_total` and `gpu_seconds_total` by kind of work.

    A driver, and a process outside Ray, holds nothing.
    """

    def __init__(self, work: Work) -> None:
        """Begin to count."""
        self._tags: dict[str, str] = {"work": work}
        self._held = _reserved()
        self._told = time.monotonic()

    def tell(self) -> None:
        """Count the time since the last call; what is not told by the end of the process is lost."""
        now = time.monotonic()
        seconds, self._told = now - self._told, now
        for resource, amount in self._held.items():
            if seconds * amount > 0:
                name = f"{resource.lower()}_seconds_total"
                counter(name, f"Seconds times {resource}s that were reserved", "work").inc(seconds * amount, self._tags)


def _reserved() -> dict[str, float]:
    # A process that has not imported Ray is none of its workers.
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return {}
    assigned = context.get_assigned_resources()
    return {name: float(assigned[name]) for name in ("CPU", "GPU") if assigned.get(name)}
