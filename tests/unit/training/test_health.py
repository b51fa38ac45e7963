"""The health window: what a row says of the updates since the last one, on one worker and over several."""

import math

import pytest
import torch

from polysome.data.manifest import Manifest, SourceReport
from polysome.training.health import Window, source_names

CPU = torch.device("cpu")


def sums(*rows: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_losses_are_per_target_and_shares_of_all_targets() -> None:
    window = Window(["tf", "flu", "idle"], CPU)
    for _ in range(2):
        window.add_losses(sums((6, 3, 2), (4, 1, 0), (0, 0, 0)))
        window.add_losses(sums((2, 1, 0), (8, 3, 1), (0, 0, 0)))
        window.add(tokens=100, targets=8, seconds=2.0, waited=0.5)
    row = window.row(updates_left=10)
    assert row["loss"] == 20 / 8
    assert row["by_source"] == {
        "tf": {"loss": 8 / 4, "targets_share": 0.5, "accuracy": 0.5},
        "flu": {"loss": 12 / 4, "targets_share": 0.5, "accuracy": 0.25},
    }
    assert row["tokens_per_second"] == row["tokens_per_second_per_device"] == 50
    assert row["targets_per_second"] == 4
    assert row["data_wait_share"] == 0.25
    assert row["eta_seconds"] == 20
    assert row["skipped"] == 0
    assert "mfu" not in row


def test_a_skipped_update_costs_time_and_leaves_the_losses_alone() -> None:
    window = Window(["tf"], CPU)
    window.add_losses(sums((3, 2, 1)))
    window.add(tokens=10, targets=2, seconds=1.0, waited=0.0)
    window.add_losses(sums((math.nan, 2, 0)))
    window.add(tokens=10, targets=2, seconds=1.0, waited=0.0, skipped=True)
    row = window.row(updates_left=0)
    assert (row["loss"], row["skipped"], row["tokens_per_second"]) == (1.5, 1, 10)


def test_a_window_of_skipped_updates_has_no_loss() -> None:
    window = Window(["tf"], CPU)
    window.add_losses(sums((math.nan, 2, 0)))
    window.add(tokens=10, targets=2, seconds=1.0, waited=0.0, skipped=True)
    row = window.row(updates_left=0)
    assert row["loss"] is None
    assert row["by_source"] == {}


def test_a_row_ends_its_window() -> None:
    window = Window(["tf"], CPU)
    rows = []
    for loss in (4.0, 2.0):
        window.add_losses(sums((loss, 2, 1)))
        window.add(tokens=10, targets=2, seconds=1.0, waited=1.0)
        rows.append(window.row(updates_left=1))
    assert [row["loss"] for row in rows] == [2.0, 1.0]
    assert rows[1]["tokens_per_second"] == 10


def test_utilisation_is_model_flops_over_the_peak_of_one_device() -> None:
    window = Window(["tf"], CPU, flops_per_token=6e9, peak_tflops=312)
    window.add(tokens=26_000, targets=1, seconds=1.0, waited=0.0)
    assert window.row(updates_left=0)["mfu"] == pytest.approx(0.5)


def test_workers_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker has seen other targets, took as long, and waited for data."""
    other = Window(["tf", "flu"], CPU)
    other.add_losses(sums((0, 0, 0), (9, 3, 3)))

    def all_reduce(tensor: torch.Tensor) -> None:
        tensor += torch.cat([other._update.flatten(), torch.tensor([2.0, 1.0], dtype=torch.float64)])

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    window = Window(["tf", "flu"], CPU, flops_per_token=1e12, peak_tflops=100)
    window.add_losses(sums((1, 1, 0), (0, 0, 0)))
    window.add(tokens=40, targets=4, seconds=2.0, waited=0.0)
    row = window.row(updates_left=3)
    assert row["loss"] == 10 / 4
    assert row["by_source"]["flu"] == {"loss": 3.0, "targets_share": 0.75, "accuracy": 1.0}
    assert row["tokens_per_second"] == 20
    assert row["tokens_per_second_per_device"] == 10
    assert row["mfu"] == pytest.approx(0.1)
    assert row["data_wait_share"] == 0.25
    assert row["eta_seconds"] == 6


def report(dataset: str, split: str = "train", prompt: str = "concise") -> SourceReport:
    return SourceReport.model_construct(dataset=dataset, split=split, prompt=prompt)


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        ([report("tf"), report("flu")], ["tf", "flu"]),
        (
            [report("tf"), report("flu"), report("tf", prompt="reasoning")],
            ["tf-concise", "flu", "tf-reasoning"],
        ),
        ([report("tf"), report("tf", "stage3_pool")], ["tf-train", "tf-stage3_pool"]),
        ([report("tf"), report("tf")], ["tf", "tf-2"]),
    ],
)
def test_sources_of_the_same_data_set_are_told_apart(sources: list[SourceReport], names: list[str]) -> None:
    assert source_names(Manifest.model_construct(sources=sources)) == names
