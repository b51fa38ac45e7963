"""The loop: what it logs and saves, that it skips and gives up, and that it can be asked to stop."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prepared import write_prepared
from test_schedule import stage

from polysome.data.feed import open_feed
from polysome.data.meters import Usage
from polysome.training.checkpoint import Progress
from polysome.training.engine import Place
from polysome.training.loop import STOP, Loop, NonFiniteLossError
from polysome.training.metrics import MetricsLog
from polysome.training.schedule import extent


class Engine:
    """Stands in for an engine: reads its batches, and reports the next of `norms` and a loss of 2 per target."""

    place = Place(0, 1, torch.device("cpu"))

    def __init__(self, norms: Any, after: Callable[[int], None] = lambda update: None) -> None:
        self.norms, self.after, self.updates = iter(norms), after, 0

    def set_rates(self, factor: float, learns: Callable[[Any], bool]) -> dict[str, float]:
        return {"base": factor}

    def update(self, batches: Any, targets: int) -> tuple[float, torch.Tensor]:
        counted = sum(len(batch.targets) for batch in batches)
        assert counted == targets
        self.updates += 1
        self.after(self.updates)
        return next(self.norms), torch.tensor([[2.0 * counted, counted, 0]], dtype=torch.float64)


class Writer:
    """Remembers what was saved."""

    def __init__(self) -> None:
        self.saved: list[Progress] = []

    def save(self, engine: Engine, progress: Progress) -> None:
        self.saved.append(progress)

    def wait(self) -> None: ...


def loop(folder: Path, engine: Engine, *, dev: Any = None, after: int = 0, **changes: Any) -> Loop:
    """12 rows, two in an update."""
    prepared = folder / "prepared"
    if not prepared.exists():
        write_prepared(prepared, rows=12, max_length=16)
    feed = open_feed(str(prepared), seed=1, cache=str(folder / "cache"))
    settings = {"workers": {"count": 1}, "gradient_accumulation_steps": 1, "log_every_updates": 2, **changes}
    config = stage(**settings)
    return Loop(
        engine=engine, feed=feed, config=config, length=extent(config, 12), folder=str(folder), writer=Writer(),
        metrics=MetricsLog(str(folder), after_update=after), trackers=None, sources=["toy"], dev=dev, watched=False,
        flops={}, usage=Usage("training"),
    )  # type: ignore[arg-type]  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("reported", [math.nan, math.inf])
def test_gradients_that_stay_not_finite_end_the_stage_unsaved(reported: float, tmp_path: Path) -> None:
    made = loop(tmp_path, Engine([1.0, *[reported] * 3]), max_skipped_updates=2, checkpoint={"every_updates": 4})
    with pytest.raises(NonFiniteLossError, match="update 4 is not finite, as were the 2 before it") as caught:
        made.run(Progress())
    assert "positions 6 to 7" in str(caught.value.where)
    assert not made.writer.saved


def test_a_skipped_update_is_counted_and_its_loss_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = loop(tmp_path, Engine([1.0, math.nan, 1.0, 1.0, math.nan, math.nan]), max_skipped_updates=2)
    progress, stopped = made.run(Progress())
    assert (progress.update, progress.skipped, progress.position, stopped) == (6, 3, 12, False)
    assert [row["skipped"] for row in rows(tmp_path)] == [1, 1, 3]
    assert [row["loss"] for row in rows(tmp_path)] == [2.0, 2.0, None]
    assert [row["grad_norm"] for row in rows(tmp_path)] == [None, 1.0, None]
    assert progress.loss == 2.0
    assert "update 2: the gradient is not finite, skipped" in caplog.text


def test_a_stage_resumed_after_its_last_update_keeps_its_loss(tmp_path: Path) -> None:
    """Killed between the last checkpoint and the export."""
    done = Progress(update=6, position=12, tokens=9, seconds=1.0, loss=0.25)
    assert loop(tmp_path, Engine([])).run(done) == (done, False)


def test_a_file_stops_it_after_a_checkpoint(tmp_path: Path) -> None:
    def ask(update: int) -> None:
        if update == 3:
            (tmp_path / STOP).touch()

    made = loop(tmp_path, Engine(itertools.repeat(1.0), ask))
    progress, stopped = made.run(Progress())
    assert (progress.update, stopped) == (3, True)
    assert made.writer.saved == [progress]


def test_rows_are_named_by_what_was_trained_on_wherever_it_was_resumed(tmp_path: Path) -> None:
    """Defect 4 of the reference code: the stored position was read nowhere, so that a resume began anew."""
    for name in ("whole", "half"):
        (tmp_path / name).mkdir()
    loop(tmp_path / "whole", Engine(itertools.repeat(1.0))).run(Progress())
    started = loop(tmp_path / "half", Engine(itertools.repeat(1.0)), max_updates=4)
    middle, _ = started.run(Progress())
    loop(tmp_path / "half", Engine(itertools.repeat(1.0)), after=middle.update).run(middle)
    whole, half = rows(tmp_path / "whole"), rows(tmp_path / "half")
    assert [row["rows_crc32"] for row in whole] == [row["rows_crc32"] for row in half]
    assert len({row["rows_crc32"] for row in whole}) == 3
    assert [row["position"] for row in half] == [4, 8, 12]


def test_dev_is_measured_when_due_and_at_the_end_and_names_its_checkpoint(tmp_path: Path) -> None:
    measures = iter([3.0, 1.0])
    dev = SimpleNamespace(due=lambda update, last: last or update == 3)

    class Measured(SimpleNamespace):
        def __call__(self, engine: Any) -> dict[str, Any]:
            return {"loss": next(measures)}

    made = loop(tmp_path, Engine(itertools.repeat(1.0)), dev=Measured(due=dev.due), checkpoint={"every_updates": 3})
    progress, _ = made.run(Progress())
    assert [(saved.update, saved.dev_loss, saved.dev_update) for saved in made.writer.saved] == [(3, 3, 3), (6, 1, 6)]
    assert [(row["update"], row.get("dev")) for row in rows(tmp_path)] == [
        (2, None), (3, {"loss": 3.0}), (4, None), (6, {"loss": 1.0}),
    ]  # fmt: skip
    assert progress.dev_loss == 1.0
