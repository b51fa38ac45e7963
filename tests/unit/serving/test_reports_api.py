"""Runs and evaluations over HTTP, from real run folders, to callers of several teams."""

import json
import math
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.testclient import TestClient

from polysome.evaluation.measure import Estimate, Measurement
from polysome.evaluation.results import Evaluation, TaskResult
from polysome.operations.gateway_runs import GatewayRuns
from polysome.operations.runs import start
from polysome.serving import reports_api
from polysome.serving.config import ServeConfig
from polysome.serving.context import Context
from polysome.serving.protocol import ApiError

Caller = namedtuple("Caller", "key_id team scopes")
ADMIN = Caller("k1", "platform", {"infer", "admin"})
ADA = Caller("k2", "genomics", {"infer"})
BOB = Caller("k3", "proteins", {"infer"})


def client(runs: GatewayRuns | None, caller: Caller = ADMIN) -> TestClient:
    app = FastAPI()
    app.include_router(reports_api.router(Context(ServeConfig(model="unused"), pool=None, fingerprint="", runs=runs)))

    @app.middleware("http")
    async def access(request: Request, answer):
        request.state.caller = caller
        return await answer(request)

    @app.exception_handler(ApiError)
    async def told(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status)

    return TestClient(app)


def evaluation() -> Evaluation:
    def task(name: str, value: float) -> TaskResult:
        measured = Measurement("mcc", 200, Estimate(value, value - 0.1, value + 0.05), None)
        return TaskResult(name, name.title(), "dna", 1, "f" * 16, "MIT", {}, styles={"strict": measured}, errors=3)

    return Evaluation(
        name="exam",
        model="/data/runs/demo/stage3/export",
        model_fingerprint="a" * 16,
        tasks=(task("promoter", 0.8), task("splice", math.nan)),
        asked=400,
        reused=0,
        seconds=12.5,
        settings={},
    )


def end_run(root: Path, job: str, name: str, *, team: str = "", **files: str) -> str:
    """A finished run with these files, of a team."""
    with start(str(root), job, name, {"secret": "of the config"}) as run:
        folder = Path(run.folder)
    for file, content in files.items():
        (folder / file.replace("__", ".")).write_text(content)
    record = json.loads((folder / "run.json").read_text()) | ({"team": team} if team else {})
    (folder / "run.json").write_text(json.dumps(record))
    return run.id


@pytest.fixture
def runs(tmp_path: Path) -> GatewayRuns:
    return GatewayRuns(str(tmp_path))


def test_runs_are_listed_with_a_pipelines_steps_and_the_detail_holds_the_rest(runs, tmp_path):
    with start(str(tmp_path), "pipeline", "whole", {}) as whole:
        step = end_run(Path(whole.folder), "train", "stage1")
    web = client(runs)
    listed = web.get("/v1/runs").json()
    assert [run["id"] for run in listed["data"]] == [whole.id, f"{whole.id}~{step}"]
    assert not listed["has_more"]
    assert "config" not in listed["data"][1]
    detail = web.get(f"/v1/runs/{whole.id}~{step}").json()
    assert detail["config"] == {"secret": "of the config"}
    assert detail["status"] == "finished"
    first = web.get("/v1/runs", params={"limit": 1}).json()
    assert [run["id"] for run in first["data"]] == [whole.id]
    assert first["has_more"]


def test_the_metrics_of_a_long_training_are_thinned_and_a_line_being_written_is_left(runs, tmp_path):
    lines = "".join(json.dumps({"update": number, "loss": 1 / number}) + "\n" for number in range(1, 3001))
    long = end_run(tmp_path, "train", "long", metrics__jsonl=lines + '{"update": 3001, "lo')
    short = end_run(tmp_path, "train", "short", metrics__jsonl=lines.split("\n")[0] + "\n")
    told = client(runs).get(f"/v1/runs/{long}").json()["metrics"]
    updates = [row["update"] for row in told]
    assert reports_api.POINTS / 2 < len(updates) <= reports_api.POINTS + 1
    assert (updates[0], updates[-1]) == (1, 3000)
    assert len({later - earlier for earlier, later in pairwise(updates[:-1])}) == 1
    assert client(runs).get(f"/v1/runs/{short}").json()["metrics"] == [{"update": 1, "loss": 1.0}]
    bare = end_run(tmp_path, "prepare", "bare", metrics__jsonl="")
    assert client(runs).get(f"/v1/runs/{bare}").json()["metrics"] == []


@pytest.mark.parametrize("run_id", ["none", "..", "..%2f..", "~", "a~b~c", ".", "%2fetc", "demo~..", "files"])
def test_an_id_is_never_a_path(runs, tmp_path, run_id):
    end_run(tmp_path, "train", "demo")
    (tmp_path / "files").mkdir()
    (tmp_path.parent / "run.json").write_text("{}")
    answer = client(runs).get(f"/v1/runs/{run_id}")
    assert answer.status_code in (200, 404)
    assert answer.status_code == 404 or answer.json()["object"] == "list"


def test_evaluations_tell_their_headlines_and_those_that_cannot_be_read_say_why(runs, tmp_path):
    results = json.dumps(evaluation().to_json())
    good = end_run(tmp_path, "evaluate", "good", results__json=results, report__html="<h1>Found</h1>")
    old = end_run(tmp_path, "evaluate", "old", results__json='{"format": 1, "tasks": []}')
    empty = end_run(tmp_path, "evaluate", "empty")
    end_run(tmp_path, "train", "other")
    with pytest.raises(ValueError, match="ends"), start(str(tmp_path), "evaluate", "failed", {}):
        raise ValueError("it ends")
    told = {one["id"]: one for one in client(runs).get("/v1/evaluations").json()["data"]}
    assert set(told) == {good, old, empty}
    assert empty in told[empty]["problem"]
    assert str(tmp_path) not in told[empty]["problem"]
    assert told[good]["model"] == "demo/stage3"
    promoter, splice = told[good]["tasks"]
    assert (promoter["value"], promoter["ci_low"], promoter["ci_high"]) == (80.0, 70.0, 85.0)
    assert (promoter["metric"], promoter["n"], promoter["errors"]) == ("mcc", 200, 3)
    assert splice["value"] is None
    assert told[good]["report"]
    assert told[old]["problem"].startswith("results of format 1")
    assert not told[old]["report"]


def test_a_report_comes_whole_and_may_run_nothing(runs, tmp_path):
    page = "<h1>Found</h1><script>alert(1)</script>"
    good = end_run(tmp_path, "evaluate", "good", report__html=page)
    none = end_run(tmp_path, "evaluate", "none")
    answer = client(runs).get(f"/v1/evaluations/{good}/report")
    assert answer.text == page
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none';")
    assert "script-src" not in policy
    assert client(runs).get(f"/v1/evaluations/{none}/report").json()["error"]["code"] == "report_not_found"


def test_a_key_sees_the_runs_of_its_team_and_those_of_none(runs, tmp_path):
    shared = end_run(tmp_path, "evaluate", "shared", report__html="shared")
    theirs = end_run(tmp_path, "evaluate", "theirs", team="genomics", report__html="theirs")
    with start(str(tmp_path), "pipeline", "whole", {}) as whole:
        step = end_run(Path(whole.folder), "evaluate", "step", report__html="step")
    record = json.loads(Path(whole.folder, "run.json").read_text()) | {"team": "genomics"}
    Path(whole.folder, "run.json").write_text(json.dumps(record))
    inner = f"{whole.id}~{step}"
    everything = {shared, theirs, whole.id, inner}
    for caller, seen in [(ADMIN, everything), (ADA, everything), (BOB, {shared})]:
        web = client(runs, caller)
        assert {run["id"] for run in web.get("/v1/runs").json()["data"]} == seen
        assert {one["id"] for one in web.get("/v1/evaluations").json()["data"]} == seen - {whole.id}
        for run_id in (theirs, inner):
            wanted = 200 if run_id in seen else 404
            assert web.get(f"/v1/runs/{run_id}").status_code == wanted
            assert web.get(f"/v1/evaluations/{run_id}/report").status_code == wanted


def test_without_a_runs_folder_the_routes_say_so(tmp_path):
    for path in ("/v1/runs", "/v1/runs/a", "/v1/evaluations", "/v1/evaluations/a/report"):
        answer = client(None).get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_configured")
    assert client(GatewayRuns(str(tmp_path / "none yet"))).get("/v1/runs").json()["data"] == []
