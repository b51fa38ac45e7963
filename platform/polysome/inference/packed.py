"""A model's twin for packed passes: other modules over the same weights, in which every token has its own adapter."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from polysome.inference.forward import Forward
from polysome.inference.places import read_plainly

_TRIED = 5
"""Tokens of each half of a trial."""

_TOLERANCE = 1e-2
"""Of the largest logit: rounding makes less."""


class Seats:
    """Which adapter answers which token of the next pass. The thread that computes the pass sets it.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._groups: dict[int, list[tuple[str | None, torch.Tensor]]] = {}

    def take(self, tokens: Sequence[str | None], ends: Sequence[str | None]) -> None:
        """Name the adapters of a pass, None for the base.

        Args:
            tokens: of each token that the pass reads.
            ends: of each token that logits are computed for. A layer sees either all tokens or these, and as many as
                there are tells which: where both are equally many, every row has one token, and both are the same.
        """
        self._groups = {len(names): self._grouped(names) for names in (ends, tokens)}

    def groups(self, length: int) -> list[tuple[str | None, torch.Tensor]]:
        """Adapters and the places, int64, of their tokens among `length`."""
        return self._groups[length]

    def _grouped(self, names: Sequence[str | None]) -> list[tuple[str | None, torch.Tensor]]:
        places: dict[str | None, list[int]] = {}
        for place, name in enumerate(names):
            places.setdefault(name, []).append(place)
        return [(name, torch.tensor(own, device=self._device)) for name, own in places.items()]


def twin(model: Any, seats: Seats) -> Any:
    """A model of its own state - attention, which adapters answer - over the parameters and buffers of another.

    Args:
        model: a transformers model, on which PEFT may have put adapters.
        seats: tells the adapters of each pass over rows that are packed into one, int64 [1, tokens]. Layers with
            adapters compute the tokens of each adapter by themselves, as PEFT computes them, whatever kind they are.
    """
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    read_plainly(copied)
    for layer, parts in _adapted(copied):
        layer.forward = functools.partial(_seated, seats, layer.forward, parts)
    return copied


@torch.inference_mode()
def adapter_obstacle(forward: Forward, name: str) -> str | None:
    """Why a loaded adapter cannot share a packed pass, if so: the first half of one is held against a pass of its own.

    Args:
        forward: the model; nobody else calls it meanwhile.
        name: of the adapter.
    """
    seats = Seats(forward.device)
    model = twin(forward.model, seats)
    ids = list(range(_TRIED))
    for first, second in ((name, None), (None, name)):
        wanted, _ = forward.logits(*forward.padded([ids]), keep=_TRIED, use_cache=False, adapters=[first])
        names = [first] * _TRIED + [second] * _TRIED
        seats.take(names, names)
        try:
            found = model(input_ids=forward.padded([ids + ids])[0], use_cache=False).logits[:, :_TRIED]
        except Exception as error:  # PEFT has many kinds of layers; however one fails, it cannot.
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        difference = float((found - wanted).abs().max())
        if not difference <= _TOLERANCE * float(wanted.abs().max()):
            return f"its logits differ by {difference:.2g} from those that it gives alone"
    return None


def _adapted(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The outermost layers that PEFT put in, each with itself and what PEFT put into it."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds: Any = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    inner: set[Any] = set()
    for layer in model.modules():
        if layer not in inner and isinstance(layer, kinds):
            parts = list(layer.modules())
            inner.update(parts)
            yield layer, [part for part in parts if isinstance(part, kinds)]


def _seated(
    seats: Seats, forward: Callable[..., torch.Tensor], parts: Sequence[Any], packed: torch.Tensor, *args: Any
) -> torch.Tensor:
    """What a layer gives for packed tokens [1, tokens, …], each computed with its own adapter."""
    groups = seats.groups(packed.shape[1])
    found: torch.Tensor | None = None
    for name, places in groups:
        for part in parts:
            # PEFT's own setters walk through all parameters: far too slow for every layer of every step.
            part._active_adapter, part._disable_adapters = [name], name is None
        if len(groups) == 1:
            return forward(packed, *args)
        own = forward(packed[:, places], *args)
        if found is None:
            found = own.new_empty(1, packed.shape[1], *own.shape[2:])
        found[:, places] = own
    assert found is not None
    return found
