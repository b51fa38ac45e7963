"""Eight workers on four nodes, of which one is lost: six finish, and train what one process alone would have."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import train_here
from prepared import write_prepared

from polysome.training.config import StageConfig

PROGRAM = Path(__file__).with_name("elastic_program.py")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_lost_node_costs_only_the_updates_since_the_last_checkpoint(
    tmp_path: Path, isolated_environment: dict[str, str]
) -> None:
    data = write_prepared(tmp_path / "prepared", rows=64, max_length=32)
    config = StageConfig.model_validate(
        {
            "name": "elastic",
            "data": str(data),
            "model": {
                "config": {
                    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                },
            },
            "trainability": [
                {"match": "_proj$", "mode": "lora", "rank": 8, "alpha": 8},
                {"match": "norm$", "mode": "full"},
            ],
            "optimizer": {"learning_rate": 1e-2, "lora_plus_ratio": 4},
            "max_updates": 16,
            "micro_batch_size": 1,
            "workers": {"count": [4, 8], "gpus_per_worker": 1, "device": "cpu"},
            "precision": "fp32",
            # Eight processes start faster without DeepSpeed; what it does is seen elsewhere.
            "zero": 0,
            "checkpoint": {"every_updates": 2},
            "log_every_updates": 1,
        }
    )  # fmt: skip
    (tmp_path / "config.json").write_text(config.model_dump_json())
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path / "config.json"), str(tmp_path / "run"), "6"],
        env={
            **isolated_environment,
            "POLYSOME_CACHE": str(tmp_path / "cache"),
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
            # Gauges show this late; 10 seconds by default.
            "RAY_metrics_report_interval_ms": "500",
        },
        capture_output=True, text=True, check=False, timeout=380,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed_after"] < told["ended_after"]
    assert told["metered"]
    # The export says how many workers had part in its end.
    assert re.search(r"Workers\W+6, ZeRO stage 0", (Path(told["export"]) / "README.md").read_text())

    train_here(config, tmp_path / "alone")
    rows, expected = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "alone")
    )
    assert [(row["update"], row["position"]) for row in rows] == [(row["update"], row["position"]) for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row["rows_crc32"] == wanted["rows_crc32"]
        assert row["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
