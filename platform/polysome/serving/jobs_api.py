"""Jobs over HTTP: named recipes with checked parameters, submitted for people who hold a key and not the cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from polysome.config import Config, ConfigurationError, ResourceError
from polysome.serving.protocol import ApiError

if TYPE_CHECKING:
    from polysome.serving.context import Context

MAX_TAIL = 10_000
UNAVAILABLE = "jobs_unavailable"

log = logging.getLogger(__name__)


class UnknownJob(ConfigurationError):
    """There is no job of that id."""


class Unreachable(ResourceError):
    """The cluster that runs the jobs does not answer, or has no node for them."""


@dataclass(frozen=True)
class JobStatus:
    """One submitted job."""

    id: str
    """Of its run; the same for every attempt at it."""
    recipe: str
    status: str
    """queued, running, finished, failed, stopped or interrupted."""
    team: str
    user: str
    submitted: str
    """UTC, ISO 8601."""
    run: str | None = None
    """Id of its run below the runs folder, once it has one."""
    progress: float | None = None
    """0 to 1, where the job tells."""
    message: str = ""


class Jobs(Protocol):
    """What submits; `polysome.operations` gives it to the gateway. Blocking: routers call it in a thread."""

    def recipes(self) -> list[dict[str, Any]]:
        """Name, description and JSON Schema of the parameters of every recipe that may be submitted."""
        ...

    def submit(self, recipe: str, parameters: Mapping[str, Any], *, team: str, user: str) -> JobStatus:
        """Raises ConfigurationError for an unknown recipe or a parameter it does not take; Unreachable if the
        cluster is."""
        ...

    def list(self, *, team: str | None) -> list[JobStatus]:
        """Newest first; of one team, or of all."""
        ...

    def status(self, job: str) -> JobStatus:
        """Raises UnknownJob."""
        ...

    def logs(self, job: str, *, tail: int) -> str:
        """The last lines."""
        ...

    def stop(self, job: str) -> JobStatus:
        """End it; `resume` goes on."""
        ...

    def resume(self, job: str) -> JobStatus:
        """Submit it again with the same run id."""
        ...


class JobRequest(Config):
    """`POST /v1/jobs`."""

    recipe: Annotated[str, Field(min_length=1, max_length=128)]
    """Name of one of `GET /v1/recipes`."""
    parameters: dict[str, Any] = {}
    """By name, as the recipe's JSON Schema declares them."""


class JobList(Config):
    """`GET /v1/jobs`."""

    object: Literal["list"] = "list"
    data: list[JobStatus]


class _Caller(Protocol):
    """What of `access.Caller` counts here."""

    key_id: str
    team: str
    scopes: frozenset[str]


def _reachable() -> Iterator[None]:
    """Tell callers that it is the cluster of the jobs that is not to be had, and the operators where it should be."""
    try:
        yield
    except Unreachable as error:
        log.error("jobs: %s", error)
        raise ApiError(
            503,
            "the cluster that runs the jobs cannot be reached or has no node for them now; models are served as before",
            code=UNAVAILABLE,
            headers={"retry-after": "30"},
        ) from error


def router(context: Context) -> APIRouter:
    """`/v1/recipes` and `/v1/jobs`. A team sees, stops and resumes its own jobs; the scope `admin` all."""
    routes = APIRouter(dependencies=[Depends(_reachable)])

    def jobs() -> Jobs:
        if context.jobs is None:
            raise ApiError(404, "this server takes no jobs", code="jobs_disabled")
        return context.jobs

    def caller(request: Request) -> _Caller:
        found: _Caller = request.state.caller
        return found

    def own(request: Request, job: str, act: Callable[[], JobStatus] | None = None) -> JobStatus:
        """Do it to a job of the caller's and tell its status; another team's job is as unknown as none."""
        asked = caller(request)
        try:
            status = jobs().status(job)
            if status.team != asked.team and "admin" not in asked.scopes:
                raise UnknownJob(f"no job {job!r}")
            return act() if act else status
        except UnknownJob as error:
            raise ApiError(404, f"no job {job!r}; GET /v1/jobs lists them", code="job_not_found") from error

    # Plain functions: what asks a cluster blocks, and runs in a thread.
    @routes.get("/v1/recipes")
    def recipes() -> dict[str, Any]:
        """The recipes that may be submitted, with the JSON Schema of their parameters."""
        return {"object": "list", "data": jobs().recipes()}

    @routes.get("/v1/jobs")
    def listed(request: Request) -> JobList:
        """The team's jobs, newest first."""
        asked = caller(request)
        team = None if "admin" in asked.scopes else asked.team
        return JobList(data=jobs().list(team=team))

    @routes.post("/v1/jobs")
    def submit(body: JobRequest, request: Request) -> JobStatus:
        """Submit a recipe with parameters."""
        asked = caller(request)
        return jobs().submit(body.recipe, body.parameters, team=asked.team, user=asked.key_id)

    @routes.get("/v1/jobs/{job}")
    def status(job: str, request: Request) -> JobStatus:
        """How one job stands."""
        return own(request, job)

    @routes.get("/v1/jobs/{job}/logs")
    def logs(job: str, request: Request, tail: Annotated[int, Query(ge=1, le=MAX_TAIL)] = 200) -> dict[str, Any]:
        """The last lines that it has written."""
        own(request, job)
        return {"id": job, "logs": jobs().logs(job, tail=tail)}

    @routes.post("/v1/jobs/{job}/stop")
    def stop(job: str, request: Request) -> JobStatus:
        """End it after a last checkpoint."""
        return own(request, job, lambda: jobs().stop(job))

    @routes.post("/v1/jobs/{job}/resume")
    def resume(job: str, request: Request) -> JobStatus:
        """Go on where it ended."""
        return own(request, job, lambda: jobs().resume(job))

    return routes
