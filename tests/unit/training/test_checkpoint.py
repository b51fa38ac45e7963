"""Which checkpoints stay, and where restored optimizer state lies."""

from pathlib import Path

import pytest
import torch

from polysome.training import checkpoint
from polysome.training.engine import fresh_state


def folders(root: Path, committed: list[int], uncommitted: list[int]) -> None:
    for number in committed + uncommitted:
        (root / f"update-{number:08d}").mkdir()
    for number in committed:
        (root / f"update-{number:08d}" / checkpoint.COMMITTED).touch()


def test_what_was_never_committed_does_not_count_as_kept(tmp_path: Path) -> None:
    folders(tmp_path, committed=[1, 2, 5], uncommitted=[3, 4, 7])
    checkpoint.prune(str(tmp_path), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-00000002", "update-00000005"]
    assert str(checkpoint.newest(str(tmp_path))).endswith("update-00000005")


@pytest.mark.parametrize("fused", [True, False])
def test_restored_state_lies_on_the_parameters_device(fused: bool) -> None:
    # The meta device stands in for a GPU.
    flat = torch.nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=fused)
    state = fresh_state(optimizer, flat, steps=7)
    assert {value.device.type for value in state.values()} == {"meta"}
    assert fresh_state(torch.optim.SGD([flat]), flat, steps=7)["step"] == 7
