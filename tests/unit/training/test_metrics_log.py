"""metrics.jsonl after kills and resumes, on a local disk and on a remote store."""

import json
from uuid import uuid4

import fsspec
import pytest

from polysome.training.metrics import METRICS, MetricsLog


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{uuid4().hex}"


def updates(folder: str) -> list[int]:
    with fsspec.open(f"{folder}/{METRICS}", "r") as handle:
        return [json.loads(line)["update"] for line in handle]


def test_resume_drops_rows_past_the_checkpoint_and_half_written_ones(folder: str) -> None:
    log = MetricsLog(folder, after_update=0)
    for update in (1, 2, 3, 4):
        log.write({"update": update})
    log.sync()
    with fsspec.open(f"{folder}/{METRICS}", "ab") as handle:
        handle.write(b'{"update": 5, "lo')
    resumed = MetricsLog(folder, after_update=2)
    resumed.write({"update": 3})
    resumed.sync()
    assert updates(folder) == [1, 2, 3]


def test_local_rows_are_on_disk_before_any_sync(tmp_path) -> None:
    log = MetricsLog(str(tmp_path), after_update=0)
    log.write({"update": 1})
    assert updates(str(tmp_path)) == [1]
