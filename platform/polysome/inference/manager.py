"""transformers' continuous batching, opened so that no setting of a request reaches code that might fail on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import continuous_api
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.logits_process import LogitsProcessorList

from polysome.inference.decoding import Row, drawn
from polysome.inference.packed import Seats

PAGE = 32
"""Positions of a block of the cache: what a request needs is a multiple of it."""

_STEP_TOKENS = 512
"""Most tokens that one pass reads; a longer prompt takes several. The attention mask has this times the cache."""


@dataclass(eq=False)
class Turn:
    """What the generating thread knows of a request: given to `add_request` as `turn`."""

    row: Row
    """The thread reads how to draw, and with whose adapter; it adds no token."""
    broken: bool = False
    """Its logits were no numbers."""


def open_manager(
    model: Any,
    steps: Steps,
    *,
    blocks: int,
    most: int,
    said: Callable[[Sequence[Any]], None],
    ended: Callable[[], None],
) -> Any:
    """A `ContinuousBatchingManager` whose cache is allocated, and whose thread is not started.

    Prefixes are not shared between requests: transformers would share them across adapters too.

    Args:
        model: generates, and nothing else from now on.
        steps: the model's.
        blocks: of the cache, `PAGE` positions each.
        most: requests in one pass.
        said: called in the generating thread after a step with every `GenerationOutput` of it.
        ended: called in the generating thread as the last thing, however it ends.

    Raises:
        ValueError: the model's layers keep their caches in several ways. Architectures fail in others of their own.
        MemoryError, RuntimeError: there is no memory for the cache.
    """
    manager = model.init_continuous_batching(
        GenerationConfig(do_sample=False, eos_token_id=-1),
        ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=blocks,
            max_batch_tokens=max(most, min(_STEP_TOKENS, blocks * PAGE)),
            max_requests_per_batch=most,
            max_blocks_per_request=0,
            allow_block_sharing=False,
            use_async_batching=False,
            use_cuda_graph=False,
            safety_margin=0.0,
            # It would look for kernels on the hub.
            auto_switch_to_flash=False,
        ),
    )
    manager.logit_processor = steps
    manager.output_router = _Router(said)
    manager.background_thread_status = _Status(ended)
    manager.warmup()
    kinds = list(manager.batch_processor.cache.cache_allocators)
    if len(kinds) > 1:
        # Their blocks are cut from common sectors, and whether a request has room cannot be told beforehand.
        raise ValueError(f"its layers are of several kinds: {', '.join(kinds)}")
    return manager


class Steps(ContinuousBatchingLogitsProcessorList):
    """Told of every step before its pass, and asked for its tokens after it; a failure here would end the thread.

    Args:
        seats: set for every pass.
    """

    def __init__(self, seats: Seats) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self.supported_keys = {"turn": Turn}
        self.seats = seats
        self.count = 0
        """Steps that were begun."""
        self._ends: list[Turn] = []

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        """Note whose tokens the pass reads, and whose next one it gives."""
        self.count += 1
        turns = [(one, one.state.logit_processor_kwargs["turn"]) for one in requests_in_batch]
        self._ends = [turn for one, turn in turns if one.has_new_token]
        # Logits are computed for as many places as there are requests; those that have none stand last, unread.
        unread = len(turns) - len(self._ends)
        self.seats.take(
            [turn.row.adapter for one, turn in turns for _ in range(one.query_length)],
            [*(turn.row.adapter for turn in self._ends), *[None] * unread],
        )
        return arg_storage

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, arguments: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary], of which the manager takes the likeliest: the one that is drawn."""
        count = len(self._ends)
        for turn, finite in zip(self._ends, scores[:count].amax(dim=-1).isfinite().tolist(), strict=True):
            turn.broken |= not finite
        if any(turn.row.sampling.temperature > 0 for turn in self._ends):
            tokens = drawn(scores[:count], [turn.row for turn in self._ends])
            scores[:count].scatter_(1, tokens[:, None], float("inf"))
        return scores


class _Router(continuous_api.OutputRouter):
    """Gives what requests say to one listener, once for every step."""

    def __init__(self, listener: Callable[[Sequence[Any]], None]) -> None:
        super().__init__()
        self._listener = listener

    def deliver(self, output: Any) -> None:
        self._listener([output])

    def deliver_batch(self, outputs: list[Any]) -> None:
        self._listener(outputs)


class _Status(continuous_api.BackgroundThreadStatus):
    """Tells when the generating thread ends."""

    def __init__(self, listener: Callable[[], None]) -> None:
        super().__init__()
        self._listener = listener

    def mark_as_stopped(self) -> None:
        super().mark_as_stopped()
        self._listener()
