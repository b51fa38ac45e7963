"""`/v1/jobs` and `/v1/recipes`: whose jobs are whose, and what is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
from fake_jobs import FakeJobs
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from polysome.config import ResourceError
from polysome.serving.jobs_api import Unreachable, router
from polysome.serving.protocol import ApiError


def client(jobs: FakeJobs | None, *, team: str = "", scopes: tuple[str, ...] = ("submit",)) -> TestClient:
    api = FastAPI()

    @api.middleware("http")
    async def access(request: Request, following: Any) -> Any:
        request.state.caller = SimpleNamespace(key_id=f"key-{team}", team=team, scopes=frozenset(scopes))
        return await following(request)

    @api.exception_handler(ApiError)
    async def told(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status)

    api.include_router(router(SimpleNamespace(jobs=jobs)))  # type: ignore[arg-type]
    return TestClient(api)


def test_a_team_sees_and_moves_its_own_jobs_alone():
    jobs = FakeJobs()
    wet, dry, admin = client(jobs, team="wet"), client(jobs, team="dry"), client(jobs, scopes=("submit", "admin"))
    sent = wet.post("/v1/jobs", json={"recipe": "tiny", "parameters": {"epochs": 2}}).json()
    assert (sent["team"], sent["user"], sent["status"]) == ("wet", "key-wet", "queued")
    path = f"/v1/jobs/{sent['id']}"
    for caller, seen in ((wet, [sent["id"]]), (dry, []), (admin, [sent["id"]])):
        assert [job["id"] for job in caller.get("/v1/jobs").json()["data"]] == seen
        assert caller.get(path).status_code == (200 if seen else 404)
    for method, route in (("GET", "/logs"), ("POST", "/stop"), ("POST", "/resume")):
        refused = dry.request(method, path + route)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "job_not_found")
    assert jobs.jobs[sent["id"]].status == "queued"
    assert wet.post(f"{path}/stop").json()["status"] == "stopped"
    assert admin.post(f"{path}/resume").json()["status"] == "queued"


def test_another_teams_job_is_refused_as_one_that_is_not_there():
    jobs = FakeJobs()
    client(jobs, team="wet").post("/v1/jobs", json={"recipe": "tiny"})
    dry = client(jobs, team="dry")
    there, nowhere = dry.get("/v1/jobs/tiny-0").json(), dry.get("/v1/jobs/tiny-1").json()
    assert there == {"error": {**nowhere["error"], "message": nowhere["error"]["message"].replace("tiny-1", "tiny-0")}}


def test_logs_are_the_last_lines_within_a_bound():
    jobs = FakeJobs()
    caller = client(jobs)
    caller.post("/v1/jobs", json={"recipe": "tiny"})
    told = caller.get("/v1/jobs/tiny-0/logs?tail=7").json()
    assert (told["id"], told["logs"].splitlines()[0]) == ("tiny-0", "tiny-0: at most 7 lines")
    assert caller.get("/v1/jobs/tiny-0/logs?tail=1000000").status_code == 422


@pytest.mark.parametrize("body", [{}, {"recipe": ""}, {"recipe": "tiny", "overrides": ["a=b"]}, {"recipe": ["a"]}])
def test_a_body_that_says_anything_else_is_refused(body):
    jobs = FakeJobs()
    assert client(jobs).post("/v1/jobs", json=body).status_code == 422
    assert not jobs.jobs


def test_a_server_without_a_cluster_says_so():
    for route in ("/v1/recipes", "/v1/jobs", "/v1/jobs/a"):
        refused = client(None).get(route)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "jobs_disabled")
    assert client(FakeJobs()).get("/v1/recipes").json()["data"][0]["name"] == "tiny"


def test_a_cluster_that_is_gone_is_named_without_its_address(caplog):
    gone = Unreachable("no Ray cluster answers at http://10.0.0.7:8265", where="--address", fix="start it")
    refused = client(FakeJobs(error=gone)).get("/v1/jobs")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "jobs_unavailable")
    assert "10.0.0.7" not in refused.text
    assert "10.0.0.7" in caplog.text
    # What the cluster itself says is another matter.
    with pytest.raises(ResourceError, match="has no job"):
        client(FakeJobs(error=ResourceError("the cluster has no job, and so no log, of run a"))).get("/v1/jobs")
