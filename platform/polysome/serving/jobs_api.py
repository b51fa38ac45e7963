"""Jobs over HTTP: named recipes with checked parameters, submitted for people who hold a key and not the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class JobStatus:
    """One submitted job."""

    id: str
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
        """Raises ConfigurationError for an unknown recipe or a parameter it does not take; ResourceError if the
        cluster cannot be reached."""
        ...

    def list(self, *, team: str | None) -> list[JobStatus]:
        """Newest first; of one team, or of all."""
        ...

    def status(self, job: str) -> JobStatus:
        """Raises ConfigurationError for an unknown job."""
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
