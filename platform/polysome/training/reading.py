"""Reading ahead: a worker's micro-batches in the order of the feed, made while the one before is computed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from polysome.data.feed import Feed
from polysome.training.config import StageConfig

if TYPE_CHECKING:
    from polysome.training.batch import MicroBatch
    from polysome.training.engine import Place


class Batches:
    """This worker's micro-batches from a position on, each read while the one before it is computed."""

    def __init__(self, feed: Feed, config: StageConfig, place: Place, start: int, rows: int) -> None:
        self.waited = 0.0
        """Seconds that computing has waited for reading."""
        self._feed, self._config, self._place = feed, config, place
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="rows")
        self._stretches = self._all(start, rows)
        self._next = self._begin()

    def of_update(self) -> Iterator[MicroBatch]:
        """Those of the next update."""
        for _ in range(self._config.accumulation(self._place.world_size)):
            began = time.perf_counter()
            assert self._next is not None, "asked for more updates than there are rows"
            batch: MicroBatch = self._next.result()
            self._next = self._begin()
            self.waited += time.perf_counter() - began
            yield batch.to(self._place.device)

    def close(self) -> None:
        """End the thread that reads."""
        self._reader.shutdown(cancel_futures=True)

    def _begin(self) -> Any:
        stretch = next(self._stretches, None)
        return None if stretch is None else self._reader.submit(self._read, *stretch)

    def _all(self, start: int, rows: int) -> Iterator[tuple[int, int]]:
        """First and last position of every micro-batch; both equal where an update has no rows left for this worker."""
        size, workers = self._config.micro_batch_size, self._place.world_size
        for begin in range(start, rows, self._config.rows_per_update):
            end = min(begin + self._config.rows_per_update, rows)
            for accumulation in range(self._config.accumulation(workers)):
                first = min(begin + (accumulation * workers + self._place.rank) * size, end)
                yield first, min(first + size, end)

    def _read(self, first: int, last: int) -> MicroBatch:
        from polysome.training.batch import flatten

        return flatten(*self._feed.documents(np.arange(first, last)))
