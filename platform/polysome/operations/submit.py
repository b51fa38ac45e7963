"""Submission: a recipe and this checkout to a Ray cluster's Jobs API, its log followed to the end."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polysome.config import ConfigurationError, ResourceError
from polysome.operations import provenance
from polysome.operations.cluster import THREAD_PINS
from polysome.operations.recipes import load_recipe
from polysome.storage import MIRROR_VARIABLE, absolute

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

log = logging.getLogger(__name__)

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
EXCLUDED = [
    ".git",
    ".venv",
    "runs",
    "build",
    "dist",
    "**/__pycache__",
    "**/*.egg-info",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".import_linter_cache",
    ".hypothesis",
]
"""What of the checkout stays here (gitignore syntax), beside what .gitignore names."""

# A cluster that has just started answers 500 until its first node has an agent that can take a job.
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Submitted:
    """A job that the cluster took, and how it ended: SUCCEEDED, FAILED, STOPPED, or a state before the end."""

    id: str
    address: str
    status: str
    message: str
    exit_code: int


def submit(
    recipe: str,
    overrides: Sequence[str],
    *,
    address: str,
    runs_root: str,
    run_id: str | None = None,
    follow: bool = True,
    show: Callable[[str], None],
) -> Submitted:
    """Validate a recipe here, send checkout and recipe to the cluster, run it there with `polysome run`.

    The token, where the cluster asks for one, comes from `RAY_AUTH_TOKEN` or the file `RAY_AUTH_TOKEN_PATH`.

    Args:
        recipe: YAML file within the checkout.
        overrides: `dotted.key=value`.
        address: of the Jobs API, e.g. http://127.0.0.1:8265.
        runs_root: where the job writes its run: a URL, or an absolute path that every node of the cluster sees.
        run_id: id of the run.
        follow: wait for the end and hand the log to `show` as it comes.
        show: takes pieces of the log.

    Raises:
        ConfigurationError: `runs_root` is missing or relative; the recipe is wrong or outside the checkout; the token
            is missing or wrong; the address is none of a Jobs API.
        ResourceError: nothing answers at `address`, or the cluster cannot take a job.
    """
    root = provenance.checkout()
    if root is None:
        raise ConfigurationError(
            "Polysome is installed without its checkout, which is what a job runs from",
            where="polysome submit",
            fix="run it from a checkout installed with `make install`",
        )
    if "://" not in runs_root and not runs_root.startswith("/"):
        raise ConfigurationError(
            f"--runs {runs_root} would be a folder of this machine, and the job runs on the cluster"
            if runs_root
            else "where shall the job write its run?",
            where="--runs",
            fix="name a URL, or an absolute path that every node of the cluster sees, e.g. --runs s3://bucket/runs",
        )
    declared = load_recipe(recipe, overrides)
    try:
        relative = Path(recipe).resolve().relative_to(root)
    except ValueError as error:
        raise ConfigurationError(
            f"{recipe} is outside the checkout, which is what the cluster gets",
            where=recipe,
            fix=f"put it below {root / 'jobs' / 'recipes'}",
        ) from error
    command = ["python", "-m", "polysome.cli", "run", str(relative), *overrides, "--runs", runs_root]
    command += ["--run-id", run_id] if run_id else []
    client = _client(address)
    job_id = _submit(
        client,
        address,
        entrypoint=_quoted(command),
        runtime_env={"working_dir": str(root), "excludes": EXCLUDED, "env_vars": _environment()},
        metadata={"recipe": str(relative), "job": declared.job, "name": declared.name, "user": provenance.user()},
    )
    show(f"job {job_id} submitted to {address}\n")
    if follow:
        _follow(client, job_id, show)
    info = client.get_job_info(job_id)
    return Submitted(job_id, address, str(info.status.value), str(info.message or ""), _exit_code(info, follow))


def _environment() -> dict[str, str]:
    """Variables of the job: where the library lies in its working folder, thread pins, and who sent what."""
    variables = {
        **THREAD_PINS,
        # Relative to the job's working folder.
        "PYTHONPATH": "platform",
        "PYTHONUNBUFFERED": "1",
        provenance.USER_VARIABLE: provenance.user(),
    }
    commit = provenance.commit()
    if commit:
        variables[provenance.COMMIT_VARIABLE] = commit
    if os.environ.get(MIRROR_VARIABLE):
        variables[MIRROR_VARIABLE] = absolute(os.environ[MIRROR_VARIABLE])
    return variables


def _quoted(command: list[str]) -> str:
    import shlex

    return shlex.join(command)


def _client(address: str) -> "JobSubmissionClient":
    if not address.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"{address!r} is no address of a Jobs API", where="--address", fix=f"give a URL such as {DEFAULT_ADDRESS}"
        )
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # A token that was given is meant to be used.
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise _refused(address) from error
    except (ConnectionError, OSError) as error:
        raise ResourceError(
            f"no Ray cluster answers at {address}",
            where="--address",
            fix="start it, forward its port, mend the address",
        ) from error
    except RuntimeError as error:
        raise _refused(address) if _is_refusal(error) else _not_jobs(address, error) from error


def _not_jobs(address: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{address} is no Jobs API: {str(error).splitlines()[0]}",
        where="--address",
        fix="give the address of a Ray dashboard, by default port 8265",
    )


def _is_refusal(error: Exception) -> bool:
    text = str(error)
    return any(sign in text for sign in ("401", "403", "Unauthorized", "Forbidden", "authentication token"))


def _refused(address: str) -> ConfigurationError:
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return ConfigurationError(
        f"the cluster at {address} refuses {'this token' if given else 'requests without a token'}",
        where="RAY_AUTH_TOKEN_PATH" if given else "RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH",
        fix="export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/path/to/the/token of this cluster",
    )


def _submit(client: "JobSubmissionClient", address: str, **job: Any) -> str:
    from ray.exceptions import AuthenticationError

    deadline = time.monotonic() + _PATIENCE_SECONDS
    pause = 0.5
    while True:
        try:
            return str(client.submit_job(**job))
        except AuthenticationError as error:
            raise _refused(address) from error
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            if time.monotonic() + pause > deadline:
                raise ResourceError(
                    f"the cluster at {address} has no node that can take a job", where=address, fix="look at its nodes"
                ) from error
            log.info("the cluster is still starting; asking again in %.1f s", pause)
        time.sleep(pause)
        pause = min(2 * pause, 8.0)


def _follow(client: "JobSubmissionClient", job_id: str, show: Callable[[str], None]) -> None:
    """Hand over the log until the job has ended; a lost connection is taken up again where it broke."""

    async def tail(skip: int) -> int:
        seen = 0
        try:
            async for piece in client.tail_job_logs(job_id):
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
        if client.get_job_status(job_id).is_terminal():
            return
        time.sleep(1.0)


def _exit_code(info: Any, followed: bool) -> int:
    """0 for a job that succeeded or is not waited for; the job's own exit code where it is known; else 1."""
    if info.status.value == "SUCCEEDED" or not followed:
        return 0
    code = getattr(info, "driver_exit_code", None)
    return code if isinstance(code, int) and 0 < code < 256 else 1
