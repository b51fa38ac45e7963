"""What is sent to a cluster, and what is told of a job from Ray's word and the run's record."""

import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from polysome.config import ConfigurationError, ResourceError
from polysome.operations import runs, runtime
from polysome.operations.jobs_client import JobsClient
from polysome.operations.submission import Submission, current
from polysome.operations.submit import ClusterJobs, describe
from polysome.serving.jobs_api import UnknownJob

ROOT = Path(__file__).resolve().parents[3]
DEMO = str(ROOT / "jobs" / "recipes" / "demo.yaml")


def submission(root: object = "s3://b/runs", run: str = "r", **fields: Any) -> Submission:
    return Submission(recipe="jobs/recipes/demo.yaml", job="pipeline", run=run, runs=str(root), user="u", **fields)


class FakeClient:
    """A cluster that knows the jobs it is given."""

    def __init__(self, *jobs: Any) -> None:
        self.jobs, self.sent, self.stopped = list(jobs), [], []

    def list(self) -> list[Any]:
        return self.jobs

    def info(self, job: str) -> Any:
        return next(found for found in self.jobs if found.submission_id == job)

    def log(self, job: str, *, tail: int | None = None) -> str:
        return "".join(["first\n", f"of {job}\n", "last\n"][-(tail or 3) :])

    def stop(self, job: str) -> None:
        self.stopped.append(job)

    def submit(self, job: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        self.sent.append((job, entrypoint, runtime_env))
        self.jobs.insert(0, details(job, "PENDING", metadata))


def details(job: str, status: str, metadata: dict[str, str] | None, message: str = "") -> Any:
    return SimpleNamespace(
        submission_id=job, status=JobStatus(status), metadata=metadata, start_time=1_700_000_000_000, message=message
    )


def cluster(*jobs: Any, root: object = None) -> ClusterJobs:
    made = ClusterJobs("http://127.0.0.1:1", runs_root=None if root is None else str(root))
    made.client = FakeClient(*jobs)  # type: ignore[misc, assignment]
    return made


def record(root: Path, run: str, job: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run folder as the job would have left it."""
    metadata = {"job_submission_id": job, **submission(root, run).metadata()}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": metadata}))
    made = runs.start(str(root), "train", "demo", {}, run_id=run)
    made._stop.set()
    if status == "dead":
        beat = Path(made.folder, runs.HEARTBEAT)
        beat.write_text(json.dumps({**json.loads(beat.read_text()), "pid": 2**30}))
    elif status != "running":
        made.__exit__(*{"finished": (None, None, None), "failed": (ValueError, ValueError("no"), None)}[status])


def test_a_submission_survives_the_metadata_of_a_job(monkeypatch):
    sent = submission(overrides=["a=b c", "d=[1]"], team="wet", priority="high")
    assert Submission.of_metadata(sent.metadata()) == sent
    assert all(isinstance(value, str) for value in sent.metadata().values())
    assert Submission.of_metadata({"job_submission_id": "x"}) is None
    assert Submission.of_metadata(None) is None
    assert current() is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "j"}}))
    assert current() is None
    metadata = {"job_submission_id": "j", **sent.metadata()}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": metadata}))
    assert current() == ("j", sent)


def test_a_recipe_is_described_by_what_the_cluster_needs(monkeypatch):
    monkeypatch.setenv("POLYSOME_TEAM", "wet")
    made = describe(DEMO, ["seed=1"], runs_root="s3://b/runs")
    assert (made.recipe, made.job, made.team) == ("jobs/recipes/demo.yaml", "pipeline", "wet")
    assert runs.is_id(made.run)
    assert made.run != describe(DEMO, [], runs_root="s3://b/runs").run
    with pytest.raises(ConfigurationError, match="outside the checkout"):
        describe(str(_copied(Path(DEMO))), [], runs_root="s3://b/runs")


def _copied(recipe: Path) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / recipe.name
    path.write_text(recipe.read_text())
    return path


@pytest.mark.parametrize(
    ("ray", "run", "told"),
    [
        ("PENDING", None, "queued"),
        ("RUNNING", None, "queued"),
        ("RUNNING", "running", "running"),
        ("RUNNING", "dead", "interrupted"),
        ("FAILED", "running", "interrupted"),
        ("FAILED", "dead", "interrupted"),
        ("FAILED", "failed", "failed"),
        ("FAILED", None, "failed"),
        ("STOPPED", "dead", "stopped"),
        ("STOPPED", "finished", "finished"),
        ("SUCCEEDED", "finished", "finished"),
    ],
)
def test_a_job_stands_as_ray_and_its_record_say_together(tmp_path, monkeypatch, ray, run, told):
    if run is not None:
        record(tmp_path, "r", "r.1", run, monkeypatch)
    jobs = cluster(details("r.1", ray, submission(tmp_path).metadata(), "could not start\nat line 1"))
    status = jobs.status("r")
    assert (status.status, status.id) == (told, "r")
    if told == "failed":
        assert status.message == ("ValueError: no" if run else "could not start")


def test_the_interrupt_that_stopped_a_job_is_no_failure(tmp_path, monkeypatch):
    record(tmp_path, "r", "r.1", "failed", monkeypatch)
    stopped = cluster(details("r.1", "STOPPED", submission(tmp_path).metadata())).status("r")
    assert (stopped.status, stopped.message) == ("stopped", "")


def test_the_newest_attempt_counts_and_the_record_of_an_earlier_one_says_nothing_about_it(tmp_path, monkeypatch):
    record(tmp_path, "r", "r.1", "failed", monkeypatch)
    metadata = submission(tmp_path).metadata()
    jobs = cluster(details("r.2", "RUNNING", metadata), details("r.1", "FAILED", metadata))
    assert [(status.id, status.status, status.message) for status in jobs.list()] == [("r", "queued", "")]
    assert jobs.logs("r", tail=2) == "of r.2\nlast\n"
    assert jobs.logs("r") == "first\nof r.2\nlast\n"


class Dashboard:
    """What of Ray's own client a log is asked of."""

    def __init__(
        self, status: int = 200, node: str | None = "n1", *, text: str = "no such node\n", job: str = "RUNNING"
    ) -> None:
        self.status, self.node, self.text, self.job, self.asked = status, node, text, JobStatus(job), []

    def get_job_logs(self, job: str) -> str:
        return "all"

    def get_job_info(self, job: str) -> Any:
        return SimpleNamespace(driver_node_id=self.node, status=self.job)

    def _do_request(self, method: str, path: str, **rest: Any) -> Any:
        self.asked.append((method, path, rest["params"]))
        content = "zwölf\n".encode()
        return SimpleNamespace(status_code=self.status, content=content, text=self.text)


def jobs_client(dashboard: Dashboard) -> JobsClient:
    client = JobsClient.__new__(JobsClient)
    client.address, client._client = "http://127.0.0.1:1", dashboard
    return client


def test_of_a_log_only_the_lines_that_are_asked_for_travel():
    dashboard = Dashboard()
    assert jobs_client(dashboard).log("r.1") == "all"
    assert dashboard.asked == []
    assert jobs_client(dashboard).log("r.1", tail=7) == "zwölf\n"
    assert dashboard.asked == [("GET", "/api/v0/logs/file", {"node_id": "n1", "submission_id": "r.1", "lines": 7})]
    assert jobs_client(Dashboard(node=None)).log("r.1", tail=7) == ""
    with pytest.raises(ResourceError, match="no such node"):
        jobs_client(Dashboard(500)).log("r.1", tail=7)
    missing = "Could not find a log file. Please make sure the given option exists"
    assert jobs_client(Dashboard(500, text=missing)).log("r.1", tail=7) == ""
    assert jobs_client(Dashboard(text=missing)).log("r.1", tail=7) == "zwölf\n"
    with pytest.raises(ResourceError, match="Could not find"):
        jobs_client(Dashboard(500, text=missing, job="FAILED")).log("r.1", tail=7)


def test_a_run_is_resumed_as_it_was_submitted_also_when_the_cluster_has_forgotten_it(tmp_path, monkeypatch):
    record(tmp_path, "r", "r.1", "dead", monkeypatch)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    jobs = cluster(root=tmp_path)
    assert [(status.id, status.status) for status in jobs.list()] == [("r", "interrupted")]
    with pytest.raises(ResourceError, match="no job"):
        jobs.logs("r")
    assert jobs.resume("r").status == "queued"
    ((job, entrypoint, environment),) = jobs.client.sent
    assert job.startswith("r.")
    assert entrypoint == f"python -m polysome.cli run jobs/recipes/demo.yaml --runs {tmp_path} --run-id r"
    assert environment["env_vars"]["POLYSOME_USER"] == "u"
    with pytest.raises(ConfigurationError, match="queued"):
        jobs.resume("r")
    assert jobs.stop("r").id == "r"
    assert jobs.client.stopped == [job]


def test_what_has_finished_is_neither_resumed_nor_stopped(tmp_path, monkeypatch):
    record(tmp_path, "r", "r.1", "finished", monkeypatch)
    jobs = cluster(details("r.1", "SUCCEEDED", submission(tmp_path).metadata()))
    for act in (jobs.resume, jobs.stop):
        with pytest.raises(ConfigurationError, match="finished"):
            act("r")


def test_only_runs_of_the_folder_are_seen_where_one_is_named(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    jobs = [details(f"{root.name}.1", "RUNNING", submission(root, root.name).metadata()) for root in (here, there)]
    assert {status.id for status in cluster(*jobs).list()} == {"here", "there"}
    mine = cluster(*jobs, root=here)
    assert [status.id for status in mine.list()] == ["here"]
    for unknown in ("there", "../there/there", "nothing"):
        with pytest.raises(UnknownJob):
            mine.status(unknown)


def test_jobs_of_other_programs_are_left_alone():
    jobs = cluster(details("raysubmit_1", "RUNNING", {"x": "y"}), details("raysubmit_2", "RUNNING", None))
    assert jobs.list() == []
    with pytest.raises(UnknownJob):
        jobs.stop("raysubmit_1")


def test_teams_are_told_apart(tmp_path):
    metadata = [submission(tmp_path, run, team=team).metadata() for run, team in (("a", "wet"), ("b", "dry"))]
    jobs = cluster(*(details(f"{one['run']}.1", "RUNNING", one) for one in metadata))
    assert [status.id for status in jobs.list(team="dry")] == ["b"]


def test_jobs_travel_to_a_gateway_before_they_connect():
    assert pickle.loads(pickle.dumps(ClusterJobs("http://127.0.0.1:1", runs_root="s3://b/runs"))).runs_root


def test_the_environment_is_the_tree_and_where_asked_for_the_lock(monkeypatch):
    from ray.runtime_env import RuntimeEnv

    monkeypatch.setenv("POLYSOME_MIRROR", "mirror")
    image = runtime.runtime_env(ROOT, submission(team="wet"))
    assert "pip" not in image
    variables = image["env_vars"]
    assert (variables["POLYSOME_TEAM"], variables["PYTHONPATH"]) == ("wet", "platform")
    assert variables["POLYSOME_MIRROR"] == os.path.abspath("mirror")
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    lock = runtime.runtime_env(ROOT, submission(packages="lock"))
    packages = lock["pip"]["packages"]
    assert "pydantic==" + runtime.locked(ROOT)["pydantic"] in packages
    assert not [text for text in packages if text.startswith("ray==")]
    RuntimeEnv(**{name: value for name, value in lock.items() if name != "working_dir"})


def test_packages_that_differ_from_the_lock_are_named(tmp_path):
    runtime.require_locked(ROOT)
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["pydantic>=2", "numpy", "no-such-thing"]\n')
    numpy = runtime.locked(ROOT)["numpy"]
    (tmp_path / "constraints.txt").write_text(f"# lock\npydantic==1.0\nnumpy=={numpy}\nno_such_thing==3\n")
    with pytest.raises(ConfigurationError) as caught:
        runtime.require_locked(tmp_path)
    assert "pydantic" in caught.value.what
    assert "no-such-thing absent (lock: 3)" in caught.value.what
    assert "numpy" not in caught.value.what
    assert "--packages lock" in caught.value.fix


def test_a_token_that_others_may_read_is_not_used(tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setenv("POLYSOME_JOBS_TOKEN_PATH", str(token))
    with pytest.raises(ConfigurationError, match="read by others") as caught:
        JobsClient("http://127.0.0.1:1")
    assert "chmod 600" in caught.value.fix
    token.chmod(0o600)
    with pytest.raises(ResourceError, match="no Ray cluster answers"):
        JobsClient("http://127.0.0.1:1")


def test_a_failure_is_told_by_the_last_line_of_the_job(tmp_path):
    lines = [
        "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):",
        "Traceback",
    ]
    message = "\n".join([*lines, "ModuleNotFoundError: No module named 'typer'", ""])
    jobs = cluster(details("r.1", "FAILED", submission(tmp_path).metadata(), message))
    assert jobs.status("r").message == "ModuleNotFoundError: No module named 'typer'"
