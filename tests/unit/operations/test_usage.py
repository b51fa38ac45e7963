"""Hours and cost of runs: what was held, over attempts, until the last sign of life, summed by team."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from polysome.cli import main
from polysome.config import ConfigurationError
from polysome.operations import runs, usage

CONFIG = {"name": "demo"}
EUROS = {"currency": "EUR", "cpu_hour": 0.5, "gpu_hour": 2.0}


def began(run: runs.Run, hours: float) -> None:
    """Let the run have held what it holds for so long."""
    since = (datetime.now(UTC) - timedelta(hours=hours)).isoformat(timespec="seconds")
    run.record = run.record.model_copy(update={"held_since": since, "started": since})
    run.update()


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / usage.RATES).write_text(json.dumps(EUROS))
    return str(tmp_path)


def test_hours_count_from_when_a_run_holds_something_until_its_end(root):
    with runs.start(root, "train", "demo", CONFIG, run_id="a") as run:
        run.wait()
        assert runs.read_run(run.folder).status == "queued"
        assert runs.read_run(run.folder).usage.seconds == 0
        run.hold(cpus=4, gpus=2)
        began(run, 3)
        running = runs.read_run(run.folder)
        assert (running.status, running.cost) == ("running", pytest.approx(4 * 3 * 0.5 + 2 * 3 * 2, rel=1e-3))
    ended = json.loads(Path(root, "a", "run.json").read_text())
    assert ended["usage"] == {
        "seconds": pytest.approx(10800, abs=2),
        "cpu_hours": pytest.approx(12, rel=1e-3),
        "gpu_hours": pytest.approx(6, rel=1e-3),
    }
    assert ended["cost"] == pytest.approx(18, rel=1e-3)


def test_a_dead_run_ended_at_its_last_heartbeat_and_its_next_attempt_adds_to_it(root):
    run = runs.start(root, "train", "demo", CONFIG, run_id="a")
    run.hold(cpus=2, gpus=0)
    began(run, 5)
    run._stop.set()
    last = (datetime.now(UTC) - timedelta(hours=4)).isoformat(timespec="seconds")
    beat = Path(run.folder, runs.HEARTBEAT)
    beat.write_text(json.dumps({**json.loads(beat.read_text()), "machine": "another", "beat": last}))
    dead = runs.read_run(run.folder)
    assert (dead.status, dead.finished) == ("interrupted", last)
    assert dead.usage.cpu_hours == pytest.approx(2, rel=1e-3)
    assert runs.seconds(dead) == pytest.approx(3600, abs=2)
    with runs.start(root, "train", "demo", CONFIG, run_id="a") as again:
        again.hold(cpus=1, gpus=0)
        began(again, 1)
    assert runs.read_run(again.folder).usage.cpu_hours == pytest.approx(3, rel=1e-3)


def test_a_run_without_rates_has_hours_and_no_cost(tmp_path):
    with runs.start(str(tmp_path), "train", "demo", CONFIG) as run:
        run.hold(cpus=1, gpus=0)
        began(run, 1)
    record = runs.read_run(run.folder)
    assert (record.usage.cpu_hours, record.cost) == (pytest.approx(1, rel=1e-3), None)


def test_wrong_rates_are_refused_before_a_run_starts(tmp_path):
    (tmp_path / usage.RATES).write_text(json.dumps({**EUROS, "gpu_hour": -1}))
    with pytest.raises(ConfigurationError, match="gpu_hour"):
        runs.start(str(tmp_path), "train", "demo", CONFIG, run_id="a")
    assert not (tmp_path / "a").exists()


def test_runs_are_summed_by_team_and_steps_are_in_their_pipeline(root, capsys, monkeypatch):
    for team, name in (("wet", "a"), ("dry", "b"), ("wet", "c")):
        monkeypatch.setenv("POLYSOME_TEAM", team)
        with runs.start(root, "pipeline", name, CONFIG, run_id=name) as run:
            run.hold(cpus=2, gpus=0)
            began(run, 1)
            with runs.start(run.folder, "train", "step", CONFIG, parents=[run.id], run_id="step") as step:
                step.hold(cpus=2, gpus=0)
                began(step, 1)
    assert runs.read_run(step.folder).cost == pytest.approx(1, rel=1e-3)
    assert main(["runs", "--runs", root, "--cost", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [len(told["runs"]), list(told["teams"])] == [6, ["dry", "wet"]]
    assert told["teams"]["wet"]["cpu_hours"] == pytest.approx(4, rel=1e-3)
    assert told["teams"]["wet"]["cost"] == pytest.approx(2, rel=1e-3)
    assert main(["runs", "--runs", root, "--cost", "--team", "dry"]) == 0
    shown = capsys.readouterr().out
    assert "cost EUR" in shown
    (total,) = [line.split() for line in shown.splitlines() if line.startswith("all")]
    assert total == ["all", "dry", "2.00", "0.00", "1.00"]
