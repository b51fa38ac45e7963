"""What is measured while a stage runs: the loss on dev rows, and answers to the dev questions of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from polysome.data.feed import Feed, open_feed
from polysome.data.tokenizer_files import load_tokenizer
from polysome.storage.local import cache_folder
from polysome.training.config import StageConfig

if TYPE_CHECKING:
    from polysome.inference.engine import Engine as AnsweringEngine
    from polysome.training.engine import Engine


class Questions(Protocol):
    """Dev questions that the workers share, and what the answers are worth; pickled to the workers."""

    def ask(self, engine: AnsweringEngine, rank: int, world_size: int) -> Sequence[Any]:
        """The answers to this worker's part of the questions."""

    def measure(self, parts: Sequence[Sequence[Any]]) -> dict[str, dict[str, Any]]:
        """What is measured of all workers' answers, by task."""


@dataclass
class Dev:
    """Measures on the dev data: mean loss over prepared rows, and answers to the dev examples of tasks."""

    config: StageConfig
    feed: Feed | None
    questions: Questions | None
    tokenizer_folder: str

    @classmethod
    def of(cls, config: StageConfig, questions: Questions | None, tokenizer_folder: str) -> Dev | None:
        """None for a stage that measures nothing."""
        if config.dev is None:
            return None
        data = config.dev.data
        feed = None if data is None else open_feed(data, seed=config.seed, cache=cache_folder("rows"))
        return cls(config, feed, questions, tokenizer_folder)

    def due(self, update: int, *, last: bool) -> bool:
        """Whether to measure after `update`."""
        assert self.config.dev is not None
        return last or update % self.config.dev.every_updates == 0

    def __call__(self, engine: Engine) -> dict[str, Any]:
        """`loss` and `by_source` of the dev rows, and `tasks`; on all workers, each with its share of the work."""
        found: dict[str, Any] = {}
        if self.feed is not None:
            found |= self._loss(engine, self.feed)
        if self.questions is not None:
            found["tasks"] = self._answers(engine, self.questions)
        return found

    def _loss(self, engine: Engine, feed: Feed) -> dict[str, Any]:
        import torch

        from polysome.training.batch import Objective, flatten
        from polysome.training.health import losses, source_names

        assert self.config.dev is not None
        rows = min(feed.length, self.config.dev.limit * self.config.rows_per_update)
        size, place, model = self.config.micro_batch_size, engine.place, engine.model
        sources = source_names(feed.manifest)
        sums = torch.zeros((len(sources), 3), dtype=torch.float64, device=place.device)
        trained, model.objective = model.objective, Objective(sources=len(sources))
        try:
            with engine.evaluating():
                for first in range(place.rank * size, rows, size * place.world_size):
                    batch = flatten(*feed.documents(np.arange(first, min(first + size, rows)))).to(place.device)
                    sums += model(batch)[1]
        finally:
            model.objective = trained
        if place.world_size > 1:
            torch.distributed.all_reduce(sums)
        return losses(sources, sums)

    def _answers(self, engine: Engine, questions: Questions) -> dict[str, dict[str, Any]]:
        import torch

        from polysome.inference.batch import BatchEngine, asking

        tokenizer = load_tokenizer(self.tokenizer_folder)
        place = engine.place
        with asking(engine.causal):
            answers = questions.ask(BatchEngine.of(engine.causal, tokenizer), place.rank, place.world_size)
        parts = [answers] * place.world_size
        if place.world_size > 1:
            torch.distributed.all_gather_object(parts, answers)
        return questions.measure(parts)
