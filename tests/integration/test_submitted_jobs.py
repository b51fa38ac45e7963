"""Submitted jobs on a cluster with token authentication: at once, in the queue, stopped, killed, resumed, offered."""

import json
import signal
from collections.abc import Iterator

import psutil
import pytest
from head import Cluster, Head, eventually, kill_node, running_head
from prepared import write_prepared

from polysome.operations.gateway_jobs import GatewayJobs
from polysome.operations.runs import read_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

TRAIN = "tests/integration/tiny_train.yaml"
PREPARE = "tests/integration/light_prepare.yaml"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with running_head(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_prepared(tmp_path_factory.mktemp("data") / "prepared", rows=120, max_length=64))


def driver(run: str) -> psutil.Process:
    """The python process that works on the run."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "polysome.cli" in words and words[-2:] == ["--run-id", run] and "submit" not in words:
            return process
    raise AssertionError(f"no driver of {run}")


@pytest.mark.slow
def test_jobs_at_once_wait_die_stop_and_go_on(head, data, tiny_tokenizer, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "rates.json").write_text(json.dumps({"currency": "EUR", "cpu_hour": 3600, "gpu_hour": 0}))
    cluster = Cluster(head, runs)
    for run, team in (("one", "wet"), ("two", "dry")):
        cluster.submit(TRAIN, run, f"data={data}", "--team", team)
    eventually(lambda: all((runs / run / "run.json").exists() and cluster.update(run) >= 30 for run in ("one", "two")))
    assert {cluster.state("one"), cluster.state("two")} == {"running"}
    assert (cluster.record("one").team, cluster.record("two").team) == ("wet", "dry")

    # Both CPUs are held, so a third job waits, whatever its priority.
    cluster.submit(PREPARE, "third", f"tokenizer={tiny_tokenizer}", "--priority", "high")
    eventually(lambda: (runs / "third" / "run.json").exists() and cluster.record("third").status == "queued")
    assert cluster.state("third") == "queued"
    assert "waiting in the cluster's queue, 2 before this job" in cluster("logs", "third")["logs"]

    # A killed driver: the registry tells it at once.
    driver("one").send_signal(signal.SIGKILL)
    eventually(lambda: cluster.record("one").status == "interrupted", 5)
    lost = cluster.record("one")
    assert lost.finished is not None
    assert lost.started <= lost.finished
    assert lost.usage.cpu_hours > 0
    assert lost.cost == pytest.approx(lost.usage.cpu_hours * 3600)

    # A stopped job has time for a checkpoint, and says so itself.
    cluster("stop", "two")
    eventually(lambda: cluster.state("two") == "stopped")
    stopped = cluster.record("two")
    assert stopped.status == "interrupted"
    committed = [path.parent.name for path in (runs / "two" / "checkpoints").glob("*/COMMITTED")]
    assert int(max(committed).removeprefix("update-")) >= cluster.update("two") > 0

    # The job that waited has got its turn.
    eventually(lambda: cluster.state("third") == "finished")
    assert cluster.record("third").held_since >= lost.finished
    assert cluster.state("one") == "interrupted"

    # Both go on, with the hours that they had.
    for run in ("one", "two"):
        cluster("resume", run, "--runs", str(runs), "--no-follow")
    for run, before in (("one", lost), ("two", stopped)):
        eventually(lambda run=run: cluster.record(run).status == "finished")
        assert eventually(lambda run=run: cluster.state(run) == "finished", 10)
        after = cluster.record(run)
        assert (after.status, after.attempt) == ("finished", 2)
        assert after.usage.seconds > before.usage.seconds
    rows = [json.loads(line)["update"] for line in (runs / "two" / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows))

    teams = cluster("runs", "--runs", str(runs), "--cost")["teams"]
    assert set(teams) == {"", "dry", "wet"}
    assert teams["wet"]["cost"] == pytest.approx(cluster.record("one").cost)
    assert [item["id"] for item in cluster("status", "--team", "dry")] == ["two"]


def test_a_gateway_submits_what_is_offered_and_nothing_else(head, data, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYSOME_JOBS_TOKEN_PATH", head.user["RAY_AUTH_TOKEN_PATH"])
    jobs = GatewayJobs(head.address, str(tmp_path / "runs"), [TRAIN])
    sent = jobs.submit("tiny", {"data": data, "epochs": 2}, team="wet", user="k1")
    assert (sent.status, sent.team, sent.user) == ("queued", "wet", "k1")
    done = eventually(lambda: (now := jobs.status(sent.id)).status in ("finished", "failed") and now)
    assert (done.status, done.progress, done.run) == ("finished", 1.0, sent.id), jobs.logs(sent.id, tail=50)
    assert len(jobs.logs(sent.id, tail=2).splitlines()) == 2
    record = read_run(str(tmp_path / "runs" / sent.id))
    assert (record.config["epochs"], record.team, record.user) == (2, "wet", "k1")
    # Jobs with other runs folders, of the test before, are none of this gateway's.
    assert [job.id for job in jobs.list(team=None)] == [sent.id]
    assert jobs.list(team="dry") == []


@pytest.mark.slow
def test_a_job_outlives_the_node_that_it_trained_on(tmp_path_factory, data, tmp_path):
    with running_head(tmp_path_factory.mktemp("home"), cpus=0) as head:
        cluster = Cluster(head, tmp_path / "runs")
        with head.node("--num-cpus=1") as first:
            cluster.submit(TRAIN, "moved", f"data={data}", "epochs=12")
            eventually(lambda: cluster.update("moved") >= 30)
            kill_node(first)
            assert cluster.state("moved") == "running"
        with head.node("--num-cpus=1"):
            eventually(lambda: cluster.state("moved") in ("finished", "failed"))
            assert cluster.state("moved") == "finished", cluster("logs", "moved", "--tail", "60")["logs"]
            assert (cluster.record("moved").status, cluster.record("moved").attempt) == ("finished", 1)
