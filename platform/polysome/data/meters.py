"""Counters of data preparation for Prometheus, exported by Ray on every node's metrics port."""

from functools import cache
from typing import TYPE_CHECKING

from polysome.data.manifest import Shard

if TYPE_CHECKING:
    from ray.util.metrics import Counter


def count_shard(dataset: str, shard: Shard, seconds: float) -> None:
    """Count a written shard: `polysome_prepare_{documents,tokens,rows,shards,seconds}_total` by data set."""
    tags = {"dataset": dataset}
    counts = {"documents": shard.documents, "tokens": shard.tokens, "rows": shard.rows, "shards": 1, "seconds": seconds}
    for name, value in counts.items():
        if value:
            _counter(name).inc(value, tags)


@cache
def _counter(what: str) -> "Counter":
    """One counter per worker process."""
    from ray.util.metrics import Counter

    description = f"{what} of training data written by polysome prepare"
    return Counter(f"polysome_prepare_{what}_total", description=description, tag_keys=("dataset",))
