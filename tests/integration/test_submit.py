"""A cluster with token authentication, and a job sent to it through the Jobs API by `polysome submit`."""

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from head import Head, free_ports, running_head

from polysome.operations.runs import list_runs

pytestmark = pytest.mark.ray

RECIPE = "tests/integration/light_prepare.yaml"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with running_head(tmp_path_factory.mktemp("home")) as started:
        yield started


def submit(head: Head, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return head.polysome("submit", "--address", head.address, RECIPE, *arguments, environment=environment)


def test_a_job_runs_on_the_cluster_and_its_log_is_followed_to_the_end(head, tiny_tokenizer, tmp_path):
    runs = tmp_path / "runs"
    done = submit(head, head.user, f"tokenizer={tiny_tokenizer}", "--runs", str(runs), "--run-id", "sent")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prepare light" in done.stdout  # said by the job, in its log
    assert done.stdout.rstrip().splitlines()[-1] == f"next: polysome runs --runs {runs}"
    ((folder, record),) = list_runs(str(runs))
    assert (record.id, record.status, record.job) == ("sent", "finished", "prepare")
    assert json.loads(Path(folder, "data", "manifest.json").read_text())["documents"] == 40


def test_a_job_that_fails_there_fails_here_with_its_exit_code_and_reason(head, tmp_path):
    done = submit(head, head.user, "--runs", str(tmp_path / "runs"), "--run-id", "wrong")
    assert done.returncode == 2
    assert "given-by-the-test" in done.stdout
    assert "run wrong failed" in done.stderr


def test_without_the_token_or_with_another_one_the_cluster_refuses(head, tmp_path):
    other = tmp_path / "other"
    other.write_text(secrets.token_hex(32))
    wrong = {**head.user, "RAY_AUTH_TOKEN_PATH": str(other)}
    for environment, told in ((head.stranger, "without a token"), (wrong, "this token")):
        done = submit(head, environment, "--runs", str(tmp_path / "runs"))
        assert done.returncode == 2, done.stdout + done.stderr
        assert told in done.stderr
        assert "RAY_AUTH_TOKEN_PATH" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_wrong_recipe_is_refused_before_the_cluster_hears_of_it(head, tmp_path):
    done = submit(head, head.user, "kind=pretrian", "--runs", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "kind" in done.stderr


def test_an_address_where_nothing_listens_is_one_clear_error(head, tmp_path):
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    done = head.polysome("submit", RECIPE, "--address", nowhere, "--runs", str(tmp_path))
    assert done.returncode == 3
    assert "no Ray cluster answers" in done.stderr
