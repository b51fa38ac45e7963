"""The whole platform through its command: a pipeline is killed, goes on where it stopped, and serves its model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).with_name("tiny_pipeline.yaml")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(runs, port, *more):
    arguments = ["run", str(RECIPE), f"serving.port={port}", "--runs", str(runs), "--run-id", "tiny", *more]
    return [sys.executable, "-m", "polysome.cli", *arguments]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_killed_pipeline_goes_on_and_finishes(tmp_path, isolated_environment):
    runs, port = tmp_path / "runs", free_port()
    started = subprocess.Popen(
        command(runs, port), env=isolated_environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    first_export = runs / "tiny" / "stage1" / "run.json"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if first_export.exists() and json.loads(first_export.read_text())["status"] == "finished":
            break
        assert started.poll() is None, "the pipeline ended before its first stage did"
        time.sleep(0.2)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    finished_at = json.loads(first_export.read_text())["finished"]

    def listed():
        out = subprocess.run(
            [sys.executable, "-m", "polysome.cli", "runs", "--runs", str(runs), "--json"],
            env=isolated_environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return {run["id"]: run["status"] for run in json.loads(out.stdout)}

    assert listed()["tiny"] == "interrupted"
    assert not (runs / "tiny" / "report.md").exists()

    done = subprocess.run(
        command(runs, port), env=isolated_environment, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(listed().values()) == {"finished"}
    # What was finished before the kill was not done again.
    assert json.loads(first_export.read_text())["finished"] == finished_at
    assert len((runs / "tiny/evaluate-stage2/samples.jsonl").read_text().splitlines()) == 12
    tagged = (runs / "tiny/evaluate-stage2.tagged/samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["input"].count("[Classification: promoter detection]") for line in tagged] == [1] * 6
    report = (runs / "tiny/report.md").read_text()
    for column in ("majority", "k-mer", "after stage1+2 |", "after stage1+2 (tagged) |"):
        assert column in report
    assert "Columns (tagged) are asked otherwise than the rest: limit: 6; tagged: true." in report
    pages = [runs / "tiny" / step / "report.html" for step in (".", "evaluate-stage2")]
    assert all("Worst samples" in page.read_text() for page in pages)
    assert (runs / "tiny/evaluate-stage2/baselines").is_dir()
    assert f"http://127.0.0.1:{port}/v1/chat/completions" in done.stdout
    record = json.loads((runs / "tiny/run.json").read_text())
    assert record["results"]["served"]["question"].startswith("<dna>")

    again = subprocess.run(
        command(runs, port), env=isolated_environment, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert again.returncode == 0
    assert "finished already" in again.stdout
    other = subprocess.run(
        command(runs, port, "seed=5"), env=isolated_environment, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert other.returncode == 2
    assert "prepare-stage1 differs in seed; stage1 differs in seed" in other.stderr
