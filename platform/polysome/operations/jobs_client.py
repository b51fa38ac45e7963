"""A cluster's Jobs API with its failures told as Polysome's errors, and its token."""

import asyncio
import functools
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polysome.config import ConfigurationError, ResourceError
from polysome.serving.jobs_api import Unreachable

log = logging.getLogger(__name__)

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TOKEN_VARIABLE = "POLYSOME_JOBS_TOKEN_PATH"
"""File with the token of the cluster that jobs go to, where that is another than the cluster of this process."""

# A cluster that has just started answers 500 until its first node has an agent that can take a job.
_PATIENCE_SECONDS = 60.0
_REQUEST_SECONDS = 60.0


class JobsClient:
    """Connected when made. Safe for several threads.

    Args:
        address: of the Jobs API, e.g. http://127.0.0.1:8265.

    Raises:
        ConfigurationError: the token is missing or wrong; the address is none of a Jobs API.
        Unreachable: nothing answers there.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"{address!r} is no address of a Jobs API",
                where="--address",
                fix=f"give a URL such as {DEFAULT_ADDRESS}",
            )
        self.address = address
        token = _own_token()
        # A token that was given is meant to be used.
        if token is None and (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        from ray.job_submission import JobSubmissionClient

        for name in ("ray._private.runtime_env", "ray.dashboard.modules.dashboard_sdk"):
            # They tell every file that stays here.
            logging.getLogger(name).setLevel(logging.ERROR)
        with self._told():
            client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
        # Ray's client waits for an answer for ever.
        vars(client)["_do_request"] = functools.partial(client._do_request, timeout=_REQUEST_SECONDS)
        self._client = client

    def submit(self, job: str, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Upload the working folder where the cluster has not got it, and start the job."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        pause = 0.5
        while True:
            try:
                with self._told():
                    self._client.submit_job(
                        submission_id=job,
                        entrypoint=entrypoint,
                        runtime_env=dict(runtime_env),
                        metadata=dict(metadata),
                    )
                return
            except RuntimeError as error:
                if "No available agent" not in str(error):
                    raise
                if time.monotonic() + pause > deadline:
                    raise Unreachable(
                        f"the cluster at {self.address} has no node that can take a job",
                        where=self.address,
                        fix="look at its nodes; a second Ray on a machine needs its own --dashboard-agent-listen-port",
                    ) from error
                log.info("the cluster is still starting; asking again in %.1f s", pause)
            time.sleep(pause)
            pause = min(2 * pause, 8.0)

    def list(self) -> list[Any]:
        """Ray's `JobDetails` of every submitted job, newest first."""
        with self._told():
            found = [details for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda details: details.start_time or 0, reverse=True)

    def info(self, job: str) -> Any:
        """Ray's `JobDetails` of one job."""
        with self._told():
            return self._client.get_job_info(job)

    def log(self, job: str, *, tail: int | None = None) -> str:
        """All that the job's driver has written, or the last lines of it."""
        with self._told():
            if tail is None:
                return str(self._client.get_job_logs(job))
            info = self._client.get_job_info(job)
            if info.driver_node_id is None:
                # It has not begun.
                return ""
            # The Jobs API has whole logs alone; that of Ray's state reads the last lines where the file lies.
            asked = {"node_id": info.driver_node_id, "submission_id": job, "lines": tail}
            answer = self._client._do_request("GET", "/api/v0/logs/file", params=asked)
            if answer.status_code != 200:
                if "Could not find a log file" in answer.text and not info.status.is_terminal():
                    # It has a node, and has written nothing yet.
                    return ""
                raise ResourceError(
                    f"the log of {job} cannot be read: {answer.text.strip()[:500]}",
                    where=self.address,
                    fix="is the node that it runs on alive?",
                )
            return str(answer.content.decode("utf-8", "replace"))

    def stop(self, job: str) -> None:
        """Ask the job to end: SIGTERM, and SIGKILL when it does not."""
        with self._told():
            self._client.stop_job(job)

    def follow(self, job: str, show: Callable[[str], None]) -> None:
        """Hand over the log until the job has ended; a lost connection is taken up again where it broke."""

        async def tail(skip: int) -> int:
            seen = 0
            try:
                async for piece in self._client.tail_job_logs(job):
                    seen += len(piece)
                    if seen > skip:
                        show(piece[-(seen - skip) :] if seen - skip < len(piece) else piece)
                        skip = seen
            except (RuntimeError, OSError) as error:
                log.warning("the connection to the log broke (%s); taking it up again", error)
            return max(seen, skip)

        shown = 0
        while True:
            shown = asyncio.run(tail(shown))
            if self.info(job).status.is_terminal():
                return
            time.sleep(1.0)

    @contextmanager
    def _told(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError
        from requests import RequestException

        try:
            yield
        except AuthenticationError as error:
            raise self._refused() from error
        except (ConnectionError, RequestException) as error:
            raise Unreachable(
                f"no Ray cluster answers at {self.address}",
                where="--address",
                fix="start it, forward its port, mend the address",
            ) from error
        except RuntimeError as error:
            if hasattr(self, "_client"):
                raise
            text = str(error)
            if any(sign in text for sign in ("401", "403", "Unauthorized", "Forbidden", "authentication token")):
                raise self._refused() from error
            raise ConfigurationError(
                f"{self.address} is no Jobs API: {text.splitlines()[0]}",
                where="--address",
                fix="give the address of a Ray dashboard, by default port 8265",
            ) from error

    def _refused(self) -> ConfigurationError:
        names = (TOKEN_VARIABLE, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
        given = any(os.environ.get(name) for name in names)
        return ConfigurationError(
            f"the cluster at {self.address} refuses {'this token' if given else 'requests without a token'}",
            where="RAY_AUTH_TOKEN_PATH" if given else "RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH",
            fix="export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/path/to/the/token of this cluster",
        )


def _own_token() -> str | None:
    """The token of the file that POLYSOME_JOBS_TOKEN_PATH names; None leaves it to Ray's own settings.

    Raises:
        ConfigurationError: the file cannot be read, or others than its owner may read it.
    """
    name = os.environ.get(TOKEN_VARIABLE)
    if not name:
        return None
    path = Path(name).expanduser()
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(
                f"{path} may be read by others than its owner", where=TOKEN_VARIABLE, fix=f"chmod 600 {path}"
            )
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"cannot read {path}: {error}", where=TOKEN_VARIABLE, fix="name the file that holds the token"
        ) from error
