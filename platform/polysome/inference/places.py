"""Keys and values of rows that come and go: each row has a place of its own, filled from the front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_MORE_PLACES, _MORE_POSITIONS = 8, 64
"""Places and positions are made room for in steps of these."""

_POSITIONS_PER_CALL = {"cpu": 128, "cuda": 16384}
"""Filled up positions whose attention costs about as much as one more call of it. Measured on one core with 2 heads of
64 (0.08 us a position, 9 us a call); on a GPU an estimate."""

_ATTENTION = "sdpa_by_length"

_TRIED = 512
"""Tokens of the longer row of the trial."""

_TOLERANCE, _LOOSE_TOLERANCE = 1e-2, 5e-2
"""Of the largest logit, for fp32 and for less: rounding makes less."""

_groups: ContextVar[Sequence[tuple[int, int, int]] | None] = ContextVar("groups", default=None)
"""First row, row after the last, and longest length, of rows whose attention is computed together."""


def read_by_length(model: Any) -> None:
    """Where a model attends by PyTorch's SDPA, let a step read of each row about what is there, not the longest's."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        AttentionInterface.register(_ATTENTION, _attention)
        AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
        model.set_attn_implementation(_ATTENTION)


def read_plainly(model: Any) -> None:
    """Undo `read_by_length`."""
    if model.config._attn_implementation == _ATTENTION:
        model.set_attn_implementation("sdpa")


class Places:
    """A cache of rows [places, heads, positions, head size], to each of which a step adds one token.

    A row that joins is copied into a place once, and one that leaves gives its place to the last: the others stay where
    they are, whatever their lengths.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.lengths: list[int] = []
        """Positions that are filled, of each row."""
        self._layers: list[_Layer] = []
        self._filled: torch.Tensor

    def take(self, cache: Any, lengths: Sequence[int]) -> None:
        """Copy rows in behind the others.

        Args:
            cache: a left-padded `DynamicCache`.
            lengths: tokens of each of its rows.
        """
        if not self._layers:
            self._layers = [_Layer() for _ in cache.layers]
        self._make_room(len(self.lengths) + len(lengths), max([*self.lengths, *lengths]) + 1, cache.layers)
        for index, length in enumerate(lengths):
            place = len(self.lengths)
            for layer, source in zip(self._layers, cache.layers, strict=True):
                for own, other in ((layer.keys, source.keys), (layer.values, source.values)):
                    own[place, :, :length] = other[index, :, other.shape[-2] - length :]
                    # What is masked must still be a number.
                    own[place, :, length:] = 0
            self.lengths.append(length)

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all other rows; the indices that the kept ones had, in their new order."""
        holes = sorted(set(range(len(rows))) - set(rows))
        movers = [row for row in rows if row >= len(rows)]
        order = list(range(len(rows)))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
            for layer in self._layers:
                for own in (layer.keys, layer.values):
                    own[hole] = own[mover]
        self.lengths = [self.lengths[row] for row in order]
        return order

    @contextmanager
    def step(self) -> Iterator[tuple[Cache, torch.Tensor, torch.Tensor]]:
        """For a pass of one token per row: the cache, its mask int64 [rows, longest], and positions int64 [rows, 1]."""
        width = max(self.lengths) + 1
        self._make_room(len(self.lengths), width, self._layers)
        at = torch.tensor(self.lengths, device=self._device)
        rows = torch.arange(len(self.lengths), device=self._device)
        for layer in self._layers:
            layer.aim(rows, at, width)
        mask = (torch.arange(width, device=self._device) <= at[:, None]).long()
        self.lengths = [length + 1 for length in self.lengths]
        before = _groups.set(grouped(self.lengths, _POSITIONS_PER_CALL.get(self._device.type, 16384)))
        try:
            yield Cache(layers=list(self._layers)), mask, at[:, None]
        finally:
            _groups.reset(before)

    def _make_room(self, places: int, positions: int, like: Sequence[Any]) -> None:
        """Where there is too little, as much as the rows of now need, and some; for the shapes of other layers."""
        first = self._layers[0].keys
        if first is not None and first.shape[0] >= places and first.shape[2] >= positions:
            return
        # A long row by itself may be all that the memory holds: no further places beside it.
        places, positions = min(_up(places, _MORE_PLACES), places + places // 4), _up(positions, _MORE_POSITIONS)
        longest = max(self.lengths, default=0)
        for layer, other in zip(self._layers, like, strict=True):
            layer.move(places, positions, other, rows=len(self.lengths), longest=longest)


class _Layer(CacheLayerMixin):
    """One layer of `Places`."""

    keys: Any
    values: Any

    def aim(self, rows: torch.Tensor, at: torch.Tensor, width: int) -> None:
        """Say where the next token of each row goes."""
        self._rows, self._at, self._width = rows, at, width

    def move(self, places: int, positions: int, like: Any, *, rows: int, longest: int) -> None:
        """Take other room, with what the first rows hold."""
        for name in ("keys", "values"):
            own, other = getattr(self, name), getattr(like, name)
            room = other.new_zeros(places, other.shape[1], positions, other.shape[3])
            if rows:
                room[:rows, :, :longest] = own[:rows, :, :longest]
            setattr(self, name, room)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """There is room already."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a token to every row; keys and values [rows, heads, longest, head size], masked beyond a row's own."""
        self.keys[self._rows, :, self._at] = key_states[:, :, 0]
        self.values[self._rows, :, self._at] = value_states[:, :, 0]
        rows = len(self._rows)
        return self.keys[:rows, :, : self._width], self.values[:rows, :, : self._width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask."""
        return self._width, 0

    def get_seq_length(self) -> int:
        """Positions before the token of this step, of the longest row."""
        return self._width - 1

    def get_max_length(self) -> int:
        """None is known."""
        return -1


def obstacle(forward: Any) -> str | None:
    """Why rows of a model cannot have places, if so: a step of two is held against passes of each by itself.

    Args:
        forward: the model, see `Forward`; its cache is plain.
    """
    config, size = forward.model.config.get_text_config(), forward.model.get_input_embeddings().weight.shape[0]
    # As far apart as windows are long that an architecture may count from the end of the longest row.
    longest = min(_TRIED, getattr(config, "max_position_embeddings", None) or _TRIED) - 1
    ids = [place * 7919 % size for place in range(longest + 1)]
    prompts, following = [ids[:longest], ids[1:3]], [[ids[longest]], [ids[3]]]
    try:
        places = Places(forward.device)
        for prompt in prompts:
            _, cache = forward.logits(*forward.padded([prompt]), keep=1)
            places.take(cache, [len(prompt)])
        with places.step() as (cache, mask, positions):
            tokens = torch.tensor(following, device=forward.device)
            found, _ = forward.logits(tokens, mask, keep=1, positions=positions, cache=cache)
        rows = [[*prompt, *token] for prompt, token in zip(prompts, following, strict=True)]
        wanted = torch.cat([forward.logits(*forward.padded([row]), keep=1, use_cache=False)[0] for row in rows])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # An architecture may fail in any way of its own; whatever it is, it cannot.
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    difference = float((found.float() - wanted.float()).abs().max())
    tolerance = _TOLERANCE if wanted.dtype in (torch.float32, torch.float64) else _LOOSE_TOLERANCE
    if difference <= tolerance * float(wanted.float().abs().max()):
        return None
    return f"logits differ by {difference:.2g} from those of rows by themselves"


def grouped(lengths: Sequence[int], padding: int) -> list[tuple[int, int, int]]:
    """Rows that follow each other in groups: first, after the last, longest; each filled up by at most `padding`."""
    groups: list[tuple[int, int, int]] = []
    first = total = longest = 0
    for row, length in enumerate(lengths):
        most = max(longest, length)
        if row > first and most * (row + 1 - first) - total - length > padding:
            groups.append((first, row, longest))
            first, total, most = row, 0, length
        longest, total = most, total + length
    return [*groups, (first, len(lengths), longest)]


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """SDPA; in a step of `Places`, group by group."""
    groups = _groups.get()
    if groups is None or len(groups) == 1 or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    found = [
        sdpa_attention_forward(
            module,
            query[first:after],
            key[first:after, :, :longest],
            value[first:after, :, :longest],
            attention_mask[first:after, ..., :longest],
            **options,
        )[0]
        for first, after, longest in groups
    ]
    return torch.cat(found), None


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
