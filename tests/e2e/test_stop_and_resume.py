"""`polysome train` is stopped by SIGTERM, goes on, is killed, goes on, and ends where an undisturbed run does."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from in_process import train_here
from prepared import write_prepared
from safetensors.torch import load_file

from polysome.training.config import StageConfig

ROOT = Path(__file__).resolve().parents[2]
WHEN_AND_HOW_FAST = {
    "time", "eta_seconds", "data_wait_share", "tokens_per_second", "tokens_per_second_per_device", "targets_per_second",
}  # fmt: skip


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The whole rows of metrics.jsonl, without what differs between equal runs."""
    if not (folder / "metrics.jsonl").exists():
        return []
    lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    return [{key: value for key, value in json.loads(line).items() if key not in WHEN_AND_HOW_FAST} for line in lines]


def started(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "polysome.cli", *arguments],
        env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for(update: int, folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (rows := rows_of(folder)) or rows[-1]["update"] < update:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"update {update} was not reached"
        time.sleep(0.02)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_stopped_and_a_killed_driver_lose_nothing(tmp_path: Path, isolated_environment: dict[str, str]) -> None:
    data = write_prepared(tmp_path / "prepared", rows=120, max_length=64)
    recipe = {
        "name": "tiny",
        "data": str(data),
        "model": {
            "config": {
                "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
        },
        "trainability": [
            {"match": "_proj$", "mode": "lora", "rank": 4, "alpha": 8},
            {"match": "norm$", "mode": "full"},
        ],
        "optimizer": {"learning_rate": 1e-3, "lora_plus_ratio": 4},
        "epochs": 6,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "workers": {"count": 1},
        "zero": 0,
        "checkpoint": {"every_updates": 20},
        "log_every_updates": 1,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"job": "train", **recipe}))
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path / "runs"), "--run-id", "tiny"]
    folder = tmp_path / "runs" / "tiny"

    def record() -> dict[str, Any]:
        return json.loads((folder / "run.json").read_text())

    def newest() -> int:
        committed = [path.parent.name for path in folder.glob("checkpoints/*/COMMITTED")]
        return int(max(committed).removeprefix("update-"))

    stopped = started(arguments, isolated_environment)
    wait_for(25, folder, stopped)
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate(timeout=60)[0]
    assert stopped.returncode == 130, said
    assert record()["status"] == "interrupted"
    assert not (folder / "STOP").exists()
    at = rows_of(folder)[-1]["update"]
    assert 25 <= at == newest() < 180

    killed = started(arguments, isolated_environment)
    wait_for(at + 25, folder, killed)
    killed.kill()
    killed.communicate()
    assert at < newest() < 180

    finished = started(arguments, isolated_environment)
    said = finished.communicate(timeout=120)[0]
    assert finished.returncode == 0, said
    assert (record()["status"], record()["attempt"]) == ("finished", 3)

    train_here(StageConfig.model_validate(recipe), tmp_path / "undisturbed")
    rows, expected = rows_of(folder), rows_of(tmp_path / "undisturbed")
    assert len(rows) == 180
    assert rows == expected
    weights, wanted = (load_file(f / "export" / "model.safetensors") for f in (folder, tmp_path / "undisturbed"))
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert all(torch.equal(value, wanted[name]) for name, value in weights.items())
