"""A submission: all that was asked of a cluster, as it travels in a job's metadata and stands in its run.json."""

import json
import os
from collections.abc import Mapping
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, ValidationError

from polysome.config import Config

Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
Packages = Literal["image", "lock"]
"""`image`: those that the cluster's nodes have, which must be the lock's; `lock`: what differs from the lock is
installed on every node for the job."""

_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_LISTS = ("overrides",)


class Submission(Config):
    """One recipe sent to a cluster; enough to send it again."""

    recipe: str
    """Path within the checkout."""
    overrides: list[str] = []
    job: str
    """prepare, train, evaluate or pipeline."""
    run: Annotated[str, Field(min_length=1)]
    """Id of the run."""
    runs: str
    """Folder or URL that holds the run."""
    user: str
    team: str = ""
    priority: Priority = "normal"
    packages: Packages = "image"

    def metadata(self) -> dict[str, str]:
        """As the Jobs API takes it: text by name."""
        return {name: json.dumps(value) if name in _LISTS else value for name, value in self.model_dump().items()}

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str] | None) -> Self | None:
        """The submission of a job; None for a job that something else submitted."""
        known = {name: text for name, text in (metadata or {}).items() if name in cls.model_fields}
        try:
            return cls.model_validate({n: json.loads(text) if n in _LISTS else text for n, text in known.items()})
        except (ValidationError, json.JSONDecodeError):
            return None

    @property
    def arguments(self) -> list[str]:
        """Of `polysome` on the cluster."""
        return ["run", self.recipe, *self.overrides, "--runs", self.runs, "--run-id", self.run]


def current() -> tuple[str, Submission] | None:
    """Id and submission of the job that this process is the driver of; None for any other process."""
    text = os.environ.get(_JOB_CONFIG)
    metadata = json.loads(text).get("metadata") or {} if text else {}
    submission = Submission.of_metadata(metadata)
    return None if submission is None else (str(metadata["job_submission_id"]), submission)
