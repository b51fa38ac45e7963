"""The run registry: claims, endings, interruptions, and taking up an earlier attempt."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from polysome.config import ConfigurationError, DataError
from polysome.operations import heartbeat, provenance, runs

CONFIG = {"name": "demo", "seed": 7}


def start(root: Path, **fields: object) -> runs.Run:
    return runs.start(str(root), "train", "demo", fields.pop("config", CONFIG), **fields)


def test_a_run_is_running_within_its_block_and_finished_after_it(tmp_path):
    with start(tmp_path, parents=["p"]) as run:
        assert runs.read_run(run.folder).status == "running"
        run.update(fingerprints={"data": "abc"})
        run.finish({"loss": 1.5})
    record = runs.read_run(run.folder)
    assert (record.status, record.results, record.fingerprints) == ("finished", {"loss": 1.5}, {"data": "abc"})
    assert (record.config, record.parents) == (CONFIG, ["p"])
    assert {"python", "ray", "torch", "polysome"} <= set(record.versions)


def test_a_run_that_raises_is_failed_and_says_why(tmp_path):
    with pytest.raises(DataError), start(tmp_path) as run:
        raise DataError("no such file", where="here", fix="look")
    record = runs.read_run(run.folder)
    assert record.status == "failed"
    assert "no such file" in (record.error or "")
    assert "fix" in (record.error or "")


def test_ctrl_c_leaves_an_interrupted_run(tmp_path):
    with pytest.raises(KeyboardInterrupt), start(tmp_path) as run:
        raise KeyboardInterrupt
    assert runs.read_run(run.folder).status == "interrupted"


def test_a_run_killed_outright_is_listed_as_interrupted_and_can_be_taken_up(tmp_path):
    program = f"""
        import time
        from polysome.operations import runs
        run = runs.start({str(tmp_path)!r}, "train", "demo", {CONFIG!r}, run_id="killed")
        print("started", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ((_, living),) = runs.list_runs(str(tmp_path))
        with pytest.raises(ConfigurationError, match="still running"):
            start(tmp_path, run_id="killed")
        process.send_signal(signal.SIGKILL)
    ((_, dead),) = runs.list_runs(str(tmp_path))
    assert (living.status, dead.status) == ("running", "interrupted")
    with start(tmp_path, run_id="killed") as again:
        assert not again.reusable
    assert (again.record.attempt, runs.read_run(again.folder).status) == (2, "finished")


def test_a_run_of_another_machine_is_told_by_its_heartbeat(tmp_path):
    with start(tmp_path, run_id="far") as run:
        beat = Path(run.folder, runs.HEARTBEAT)
        content = {**json.loads(beat.read_text()), "machine": "another"}
        for age, status in ((0, "running"), (heartbeat.STALE_SECONDS + 1, "interrupted")):
            content["beat"] = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
            beat.write_text(json.dumps(content))
            assert runs.read_run(run.folder).status == status


def test_of_many_that_claim_the_same_id_at_once_one_gets_it(tmp_path):
    def claim(_: int) -> str:
        try:
            return start(tmp_path, run_id="same").id
        except ConfigurationError:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(claim, range(8))) == ["refused"] * 7 + ["same"]


def test_runs_started_in_the_same_second_have_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: start(tmp_path), range(8)))
    assert len({run.folder for run in found}) == 8
    for run in found:
        run.finish()


def test_a_finished_run_of_the_same_configuration_is_reused_and_another_configuration_is_refused(tmp_path):
    with start(tmp_path, run_id="child") as first:
        first.finish({"export": "x"})
    with start(tmp_path, run_id="child") as second:
        assert second.reusable
    assert second.record.results == {"export": "x"}
    with pytest.raises(ConfigurationError, match="seed") as caught:
        start(tmp_path, run_id="child", config={**CONFIG, "seed": 8})
    assert "restore" in caught.value.fix


@pytest.mark.parametrize("run_id", ["../up", "", "a/b", ".hidden", "x" * 101])
def test_a_run_id_is_a_plain_name(tmp_path, run_id):
    with pytest.raises(ConfigurationError):
        start(tmp_path, run_id=run_id)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_run_is_not_taken_for_one(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigurationError, match="no run folder"):
        start(tmp_path, run_id="mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_children_are_listed_after_their_pipeline(tmp_path):
    with runs.start(str(tmp_path), "pipeline", "whole", CONFIG, run_id="whole") as whole:
        for name in ("b", "a"):
            with runs.start(whole.folder, "train", name, CONFIG, parents=[whole.id], run_id=name):
                pass
    listed = [record.id for _, record in runs.list_runs(str(tmp_path))]
    assert listed[0] == "whole"
    assert set(listed[1:]) == {"a", "b"}


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path, caplog):
    with start(tmp_path, run_id="good"):
        pass
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / runs.RECORD).write_text("{")
    assert [record.id for _, record in runs.list_runs(str(tmp_path))] == ["good"]
    assert "bad" in caplog.text


def test_runs_live_on_any_fsspec_file_system():
    root = f"memory://runs-{os.getpid()}"
    with runs.start(root, "train", "far", CONFIG, run_id="one") as run:
        assert runs.read_run(run.folder).status == "running"
    assert [record.status for _, record in runs.list_runs(root)] == ["finished"]
    with pytest.raises(ConfigurationError, match="another configuration"):
        runs.start(root, "train", "far", {}, run_id="one")


def test_the_record_names_no_machine(tmp_path):
    import socket

    with start(tmp_path) as run:
        text = "".join(path.read_text() for path in Path(run.folder).glob("*.json"))
    assert socket.gethostname() not in text.replace(str(tmp_path), "")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(runs.__file__).parents[2])}


@pytest.mark.parametrize("program", ["/env/bin/polysome", "/checkout/platform/polysome/cli/__main__.py"])
def test_a_command_names_the_program_however_it_was_started(monkeypatch, program) -> None:
    monkeypatch.setattr("sys.argv", [program, "run", "a b.yaml"])
    assert provenance.command() == "polysome run 'a b.yaml'"
