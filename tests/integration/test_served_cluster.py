"""A model served and jobs submitted on one cluster with token authentication, which loses a node."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from head import ROOT, Cluster, Head, eventually, kill_node, running_head
from ports import free_port
from prepared import write_prepared
from servers import hear_interrupts

from polysome.inference.batch import BatchEngine

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = "tests/integration/tiny_train.yaml"
ASKED = [{"role": "user", "content": "Is there a promoter?"}]


@contextmanager
def serve(head: Head, folder: Path, **settings: Any) -> Iterator[httpx.Client]:
    """`polysome serve` on the cluster; gives a client of what it serves."""
    recipe = folder / "serve.yaml"
    recipe.write_text(json.dumps({"job": "serve", "port": free_port(), **settings}))
    environment = {**head.user, "RAY_ADDRESS": head.gcs, "PYTHONPATH": str(ROOT / "platform"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "polysome.cli", "serve", str(recipe), "--json"]
    log = folder / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=output, stderr=output, preexec_fn=hear_interrupts
        )
    try:
        eventually(lambda: '"url"' in log.read_text() or server.poll() is not None)
        assert server.poll() is None, log.read_text()
        with httpx.Client(base_url=f"http://127.0.0.1:{json.loads(recipe.read_text())['port']}", timeout=90) as client:
            yield client
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0, log.read_text()
    finally:
        server.kill()


def ask(client: httpx.Client) -> tuple[int, str]:
    """Status, and the answer or the error's code."""
    answer = client.post("/v1/chat/completions", json={"model": "polysome", "messages": ASKED, "max_tokens": 6})
    told = answer.json()
    return answer.status_code, told["choices"][0]["message"]["content"] if "choices" in told else told["error"]["code"]


def test_endpoint_and_registry_tell_the_truth_when_a_node_is_lost(tmp_path_factory, model_folder, tmp_path):
    """The node holds the only replica and works on one of two jobs; both go on at the other node."""
    data = str(write_prepared(tmp_path / "data" / "prepared", rows=120, max_length=64))
    (own,) = BatchEngine(model_folder).generate([ASKED], max_new_tokens=6)
    home = tmp_path_factory.mktemp("home")
    with running_head(home, cpus=0) as head, head.node("--num-cpus=2") as lost:
        cluster = Cluster(head, tmp_path / "runs")
        settings = {
            "model": model_folder,
            "runs": str(cluster.runs),
            "jobs_address": head.address,
            "recipes": [RECIPE],
            "request_timeout_seconds": 60,
        }
        with serve(head, tmp_path, **settings) as client:
            assert ask(client) == (200, own.text)

            def submit() -> str:
                sent = client.post("/v1/jobs", json={"recipe": "tiny", "parameters": {"data": data, "epochs": 40}})
                assert sent.status_code == 200, sent.text
                return str(sent.json()["id"])

            def told(run: str) -> dict[str, Any]:
                return dict(client.get(f"/v1/jobs/{run}").json())

            # Beside the replica there is room for one of them.
            runs = [submit(), submit()]
            eventually(lambda: any(cluster.update(run) >= 20 for run in runs))
            with head.node("--num-cpus=3"):
                eventually(lambda: all(cluster.update(run) >= 20 for run in runs))
                assert [told(run)["status"] for run in runs] == ["running", "running"]
                kill_node(lost)
                # The only replica is gone: an answer is right, or says that there is none now.
                answers = [ask(client)]
                while answers[-1][0] != 200:
                    answers.append(ask(client))
                assert {status for status, _ in answers} <= {200, 408, 429, 503}, answers
                assert answers[-1] == (200, own.text)
                assert client.get("/readyz").status_code == 200
                for run in runs:
                    eventually(lambda run=run: told(run)["status"] in ("finished", "failed"))
                    assert told(run)["status"] == "finished", client.get(f"/v1/jobs/{run}/logs").text
                    record = client.get(f"/v1/runs/{run}").json()
                    assert (record["status"], record["attempt"]) == ("finished", 1)
                assert [job["id"] for job in client.get("/v1/jobs").json()["data"]] == runs[::-1]
                assert ask(client) == (200, own.text)
