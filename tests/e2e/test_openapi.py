"""The OpenAPI document against the gateway that tells it: whatever is sent, what comes back is what it says."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from evaluated import right, write_evaluation
from gateways import ADAPTER, FINGERPRINT, MODEL, Behind, gateways

from polysome.operations.runs import start
from polysome.serving import keys

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

DNA = "ACGTTATAAAACGTACGTACGTAC"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client, with a key that may do everything, of a gateway that has all of its parts."""
    folder = tmp_path_factory.mktemp("openapi")
    behind = Behind(folder)
    with start(behind.runs, "evaluate", "exam", {}, run_id="exam") as run:
        write_evaluation(
            Path(run.folder),
            right(0.9),
            model=FINGERPRINT,
            tasks=["planted_promoter"],
            modes=["text", "scores"],
            baselines=[],
        )
        Path(run.folder, "report.html").write_text("<!doctype html><title>exam</title>")
    store = str(folder / "private" / "keys.json")
    key = keys.create(store, team="lab", scopes=["admin"], expires=None)[1]
    behind.settings = {"keys": store, "calibration": run.folder}
    behind.jobs.submit("tiny", {}, team="lab", user="")
    with gateways(behind) as url, httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}) as client:
        yield client


def test_whatever_is_sent_the_answer_is_one_that_the_document_tells(served, tmp_path):
    settings = Path(__file__).with_name("schemathesis.toml")
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "--no-color", "run"]
    command += [f"{served.base_url}/openapi.json", "--header", f"Authorization: {served.headers['authorization']}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_afterwards_good_requests_are_answered_as_it_tells(served):
    """Every operation once, batches to their end; whatever was sent before, the gateway serves."""
    question = {"model": MODEL, "messages": [{"role": "user", "content": "Is there a promoter?"}]}
    named: dict[str, str] = {"id": "exam", "job": "tiny-0"}

    def ask(method: str, path: str, status: int = 200, **sent: Any) -> httpx.Response:
        answer = served.request(method, path.format(**named), **sent)
        assert answer.status_code == status, answer.text
        schema[path][method].validate_response(answer)
        asked.add((method, path))
        return answer

    asked: set[tuple[str, str]] = set()
    document = served.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    for path in document["paths"]:
        if "get" in document["paths"][path] and "batch" not in path and path != "/v1/models/{id}":
            ask("GET", path)
    for body in (question, {**question, "stream": True}):
        ask("POST", "/v1/chat/completions", json=body)
    for body in ({"model": MODEL, "prompt": "ACGT"}, {"model": ADAPTER.id, "prompt": [[65]], "stream": True}):
        ask("POST", "/v1/completions", json=body)
    ask("POST", "/v1/embeddings", json={"model": MODEL, "input": "ACGT"})
    ask("POST", "/v1/score", json={**question, "choices": ["Yes.", "No."]})
    told = ask("POST", "/v1/predict", json={"task": "planted_promoter", "sequences": [DNA]}).json()
    assert told["predictions"][0]["calibrated"] is True
    assert ask("POST", "/v1/jobs", json={"recipe": "tiny"}).json()["team"] == "lab"
    for what in ("stop", "resume"):
        ask("POST", f"/v1/jobs/{{job}}/{what}")
    named["id"] = MODEL
    ask("GET", "/v1/models/{id}")
    named["id"] = ask(
        "POST", "/v1/predict/batch", 202, params={"task": "planted_promoter"}, content=f">a\n{DNA}\n"
    ).json()["id"]
    until = time.monotonic() + 30
    while ask("GET", "/v1/predict/batch/{id}").json()["status"] != "finished":
        assert time.monotonic() < until
        time.sleep(0.05)
    assert ask("GET", "/v1/predict/batch/{id}/result").text.splitlines()[1].startswith("a,yes,")
    ask("DELETE", "/v1/predict/batch/{id}")
    assert asked == {(method.upper(), path) for path in document["paths"] for method in document["paths"][path]}
