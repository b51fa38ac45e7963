"""Submitted jobs in memory: what a gateway shows and moves, for tests without a cluster."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from polysome.config import ConfigurationError, PolysomeError
from polysome.serving.jobs_api import JobStatus, UnknownJob

RECIPES = [
    {
        "name": "tiny",
        "description": "Train an adapter on labelled promoters, evaluate it, and publish it when it is good.",
        "parameters": {
            "type": "object",
            "required": ["data"],
            "additionalProperties": False,
            "properties": {
                "epochs": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": 20,
                    "default": 3,
                    "description": "Passes over the data.",
                },
                "data": {
                    "type": "string",
                    "pattern": "^(?:s3://[a-z0-9/_-]+)$",
                    "description": "Folder or URL of the labelled table.",
                },
                "priority": {"enum": ["low", "normal"], "default": "normal", "description": "When others wait too."},
                "publish": {"type": "boolean", "default": True, "description": "Only if the evaluation is better."},
            },
        },
    }
]
"""What stands in a recipe's schema: a number, a text with a pattern, a choice and a switch."""


@dataclass
class FakeJobs:
    """The jobs of all teams, newest last."""

    jobs: dict[str, JobStatus] = field(default_factory=dict)
    given: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """The parameters of each job that was submitted."""
    error: PolysomeError | None = None
    """Raised when they are listed."""

    def recipes(self) -> list[dict[str, Any]]:
        return RECIPES

    def submit(self, recipe: str, parameters: Mapping[str, Any], *, team: str, user: str) -> JobStatus:
        if recipe not in {offered["name"] for offered in RECIPES}:
            raise ConfigurationError(f"no recipe {recipe!r}", where="recipe")
        job_id = f"{recipe}-{len(self.jobs)}"
        self.given[job_id] = parameters
        return self.put(JobStatus(job_id, recipe, "queued", team, user, "2026-01-01T00:00:00+00:00", run=job_id))

    def put(self, job: JobStatus) -> JobStatus:
        self.jobs[job.id] = job
        return job

    def change(self, job_id: str, **changes: Any) -> JobStatus:
        return self.put(replace(self.status(job_id), **changes))

    def list(self, *, team: str | None) -> list[JobStatus]:
        if self.error:
            raise self.error
        return [job for job in reversed(self.jobs.values()) if team in (None, job.team)]

    def status(self, job: str) -> JobStatus:
        if job not in self.jobs:
            raise UnknownJob("no job")
        return self.jobs[job]

    def logs(self, job: str, *, tail: int) -> str:
        return f"{job}: at most {tail} lines\n{job}: <b>update 40</b> of 625, loss 2.28\n"

    def stop(self, job: str) -> JobStatus:
        return self.change(job, status="stopped")

    def resume(self, job: str) -> JobStatus:
        return self.change(job, status="queued")
