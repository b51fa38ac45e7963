"""The loop stops where training diverged, and says so."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from prepared import write_prepared
from test_schedule import stage

from polysome.data.feed import open_feed
from polysome.training.checkpoint import Progress
from polysome.training.schedule import extent
from polysome.training.stage import NonFiniteLossError, Place, _loop


class Engine:
    """Stands in for DeepSpeed: gradients overflow at the second update."""

    optimizer = SimpleNamespace(param_groups=[])

    def __init__(self, reported: float) -> None:
        self.norms = [1.0, reported]

    def __call__(self, batch) -> torch.Tensor:
        return torch.tensor(1.0)

    def backward(self, loss) -> None: ...

    def step(self) -> None: ...

    def get_global_grad_norm(self) -> float:
        return self.norms.pop(0)


@pytest.mark.parametrize("reported", [math.nan, math.inf, -1.0])
def test_a_gradient_that_is_not_finite_ends_the_stage_unsaved(reported: float, tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "prepared", rows=8, max_length=16)
    feed = open_feed(str(folder), seed=1, cache=str(tmp_path))
    config = stage(workers={"count": 1}, gradient_accumulation_steps=1)
    saved: list[Progress] = []
    place = Place(0, 1, torch.device("cpu"))
    with pytest.raises(NonFiniteLossError, match="update 2 is not finite") as caught:
        _loop(Engine(reported), feed, config, extent(config, 8), [], Progress(), place, None, saved.append)
    assert "positions 2 to 3" in caught.value.where
    assert not saved


def test_a_stage_resumed_after_its_last_update_keeps_its_loss(tmp_path: Path) -> None:
    """Killed between the last checkpoint and the export."""
    folder = write_prepared(tmp_path / "prepared", rows=8, max_length=16)
    feed = open_feed(str(folder), seed=1, cache=str(tmp_path))
    config = stage(workers={"count": 1}, gradient_accumulation_steps=1)
    length = extent(config, 8)
    done = Progress(update=length.updates, position=length.rows, tokens=9, seconds=1.0, loss=0.25)
    place = Place(0, 1, torch.device("cpu"))
    assert _loop(Engine(1.0), feed, config, length, [], done, place, None, lambda _: None) == done
