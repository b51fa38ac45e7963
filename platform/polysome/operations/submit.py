"""Submitted jobs: a recipe and this checkout to a Ray cluster, and what has become of it, told by job and run folder.

A person knows a job by the id of its run. Every attempt at the run is a job of Ray's; the newest one counts. Ray
forgets its jobs when the head restarts; the runs folder does not, so a run is found and resumed from either.
"""

import logging
import secrets
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.operations import provenance, runs
from polysome.operations.jobs import last_row
from polysome.operations.jobs_client import JobsClient
from polysome.operations.recipes import load_recipe
from polysome.operations.runtime import require_checkout, runtime_env
from polysome.operations.submission import Packages, Priority, Submission
from polysome.serving.jobs_api import JobStatus, UnknownJob
from polysome.storage import absolute, join

log = logging.getLogger(__name__)

_ENDED = ("finished", "failed", "stopped", "interrupted")


def describe(
    recipe: str,
    overrides: Sequence[str],
    *,
    runs_root: str,
    run_id: str | None = None,
    user: str | None = None,
    team: str | None = None,
    priority: Priority = "normal",
    packages: Packages = "image",
) -> Submission:
    """Validate here what shall run there.

    Args:
        recipe: YAML file within the checkout.
        overrides: `dotted.key=value`.
        runs_root: where the job writes its run: a URL, or an absolute path that every node of the cluster sees.
        run_id: id of the run; by default `<name>-<YYYYMMDD-HHMMSS>-<4 hexadecimal digits>`.
        user, team: whose it is; by default those of this process.

    Raises:
        ConfigurationError: `runs_root` is missing or relative; the recipe is wrong, does not end by itself, or stands
            outside the checkout.
    """
    root = require_checkout()
    if "://" not in runs_root and not runs_root.startswith("/"):
        raise ConfigurationError(
            f"--runs {runs_root} would be a folder of this machine, and the job runs on the cluster"
            if runs_root
            else "where shall the job write its run?",
            where="--runs",
            fix="name a URL, or an absolute path that every node of the cluster sees, e.g. --runs s3://bucket/runs",
        )
    declared = load_recipe(recipe, overrides)
    if declared.job == "serve":
        raise ConfigurationError(
            "a recipe for 'serve' does not end by itself", where=recipe, fix="serve it with `serve deploy`, see serve/"
        )
    try:
        relative = Path(recipe).resolve().relative_to(root)
    except ValueError as error:
        raise ConfigurationError(
            f"{recipe} is outside the checkout, which is what the cluster gets",
            where=recipe,
            fix=f"put it below {root / 'jobs' / 'recipes'}",
        ) from error
    return Submission(
        recipe=str(relative),
        overrides=list(overrides),
        job=declared.job,
        run=run_id or runs.new_id(declared.name) + f"-{secrets.token_hex(2)}",
        runs=runs_root,
        user=user or provenance.user(),
        team=provenance.team() if team is None else team,
        priority=priority,
        packages=packages,
    )


@dataclass(frozen=True)
class _Known:
    """What is known of one run: its submission, its newest job, and its record."""

    submission: Submission
    job: Any = None
    """Ray's `JobDetails`; None where the cluster knows no job of it."""
    record: runs.RunRecord | None = None

    @property
    def attempt(self) -> runs.RunRecord | None:
        """The record where it is of the newest job; an earlier attempt's says nothing about this one."""
        current = self.record is not None and (self.job is None or self.record.job_id == self.job.submission_id)
        return self.record if current else None

    @property
    def state(self) -> str:
        told = self.attempt.status if self.attempt is not None else None
        if self.job is None:
            return told or "interrupted"
        ended = {"SUCCEEDED": "finished", "STOPPED": "stopped", "FAILED": "failed"}.get(self.job.status.value)
        if told == "finished" or (ended == "failed" and told in (*runs.ALIVE, "interrupted")):
            # A job that fails says so in its record; where it says nothing, its driver or node died.
            return "finished" if told == "finished" else "interrupted"
        return ended or told or "queued"

    @property
    def folder(self) -> str:
        return join(absolute(self.submission.runs), self.submission.run)

    def status(self) -> JobStatus:
        started = self.job.start_time / 1000 if self.job is not None and self.job.start_time else None
        submitted = datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds") if started else None
        return JobStatus(
            id=self.submission.run,
            recipe=self.submission.recipe,
            status=self.state,
            team=self.submission.team,
            user=self.submission.user,
            submitted=submitted or (self.record.started if self.record else ""),
            run=self.record.id if self.record else None,
            progress=self._progress(),
            message=self._message(),
        )

    def _progress(self) -> float | None:
        if self.state == "finished":
            return 1.0
        row = last_row(join(self.folder, "metrics.jsonl")) if self.record and self.record.job == "train" else None
        return row["update"] / row["updates"] if row else None

    def _message(self) -> str:
        if self.state == "stopped":
            # The interrupt that ended it is no failure.
            return ""
        if self.attempt is not None and self.attempt.error:
            return self.attempt.error
        if self.state == "failed":
            # Ray's first line says that it failed, and its last lines are the job's own.
            lines = [line for line in str(self.job.message or "").splitlines() if line.strip()] or [""]
            return lines[-1].strip() if "last available logs" in lines[0] else lines[0]
        if self.state == "running" and self.record and self.record.job == "pipeline":
            return ", ".join(step.id for _, step in runs.list_steps(self.folder) if step.status == "running")
        return ""


class ClusterJobs:
    """The jobs of one cluster. Blocking; connects at the first call; can be pickled before that.

    The token, where the cluster asks for one, comes from `RAY_AUTH_TOKEN`, the file `RAY_AUTH_TOKEN_PATH`, or the file
    `POLYSOME_JOBS_TOKEN_PATH`, which goes first.

    Args:
        address: of the Jobs API, e.g. http://127.0.0.1:8265.
        runs_root: see only runs in this folder, also those whose jobs the cluster has forgotten.
    """

    def __init__(self, address: str, *, runs_root: str | None = None) -> None:
        self.address, self.runs_root = address, absolute(runs_root).rstrip("/") if runs_root else None

    @cached_property
    def client(self) -> JobsClient:
        """Of the Jobs API. Raises what `JobsClient` raises."""
        return JobsClient(self.address)

    def submit(self, submission: Submission) -> JobStatus:
        """Send it; it runs when the cluster's queue lets it."""
        job = f"{submission.run}.{secrets.token_hex(3)}"
        command = shlex.join(["python", "-m", "polysome.cli", *submission.arguments])
        self.client.submit(job, command, runtime_env(require_checkout(), submission), submission.metadata())
        return _Known(submission, self.client.info(job)).status()

    def list(self, *, team: str | None = None) -> list[JobStatus]:
        """Newest first; of one team, or of all."""
        known = [item.status() for item in self._known() if team is None or item.submission.team == team]
        return sorted(known, key=lambda status: status.submitted, reverse=True)

    def status(self, run: str) -> JobStatus:
        """Of a run, by its id."""
        return self._find(run).status()

    def logs(self, run: str, *, tail: int | None = None) -> str:
        """What its newest job has written; the last lines of it."""
        return self.client.log(self._job(run).submission_id, tail=tail)

    def follow(self, run: str, show: Callable[[str], None]) -> int:
        """Hand its log to `show` until the job has ended; returns the exit code: 0, the job's own, or 1."""
        job = self._job(run).submission_id
        self.client.follow(job, show)
        info = self.client.info(job)
        code = info.driver_exit_code
        return 0 if info.status.value == "SUCCEEDED" else code if code and 0 < code < 256 else 1

    def stop(self, run: str) -> JobStatus:
        """Ask it to write a checkpoint and end, and return at once; `resume` goes on from there."""
        known = self._find(run)
        if known.job is None or known.state in _ENDED:
            raise ConfigurationError(
                f"run {run!r} is {known.state}: there is nothing to stop", where=run, fix="see `polysome status`"
            )
        self.client.stop(known.job.submission_id)
        return self.status(run)

    def resume(self, run: str) -> JobStatus:
        """Submit it again with the same run id, so that it goes on where it ended.

        Raises:
            ConfigurationError: it is unknown, at work, or finished; its recipe has become wrong.
        """
        known = self._find(run)
        if known.state not in _ENDED or known.state == "finished":
            raise ConfigurationError(
                f"run {run!r} is {known.state}",
                where=run,
                fix="there is nothing to resume" if known.state == "finished" else "stop it first, or wait for its end",
            )
        load_recipe(require_checkout() / known.submission.recipe, known.submission.overrides)
        return self.submit(known.submission)

    def _find(self, run: str) -> _Known:
        for known in self._known(only=run):
            return known
        raise UnknownJob(
            f"no submitted run {run!r}",
            where=self.address,
            fix="`polysome status` lists those that the cluster knows; name --runs for one that it has forgotten",
        )

    def _job(self, run: str) -> Any:
        job = self._find(run).job
        if job is None:
            raise ResourceError(
                f"the cluster has no job, and so no log, of run {run!r}",
                where=run,
                fix="the head was restarted since; what the run made stands in its folder",
            )
        return job

    def _known(self, only: str | None = None) -> Iterator[_Known]:
        """One for every run, of its newest job; then those that only the runs folder knows."""
        seen = set()
        # Of two attempts at once the one at work counts, though the other was begun later.
        for job in sorted(self.client.list(), key=lambda job: job.status.is_terminal()):
            submission = Submission.of_metadata(job.metadata)
            if submission is None or only not in (None, submission.run) or not self._here(submission):
                continue
            key = absolute(submission.runs).rstrip("/"), submission.run
            if key not in seen:
                seen.add(key)
                yield _Known(submission, job, _record(join(*key)))
        if self.runs_root is None:
            return
        records = _forgotten(self.runs_root, only)
        for record in records:
            if record.submission is not None and (self.runs_root, record.id) not in seen:
                yield _Known(record.submission, None, record)

    def _here(self, submission: Submission) -> bool:
        return self.runs_root is None or absolute(submission.runs).rstrip("/") == self.runs_root


def _forgotten(root: str, only: str | None) -> list[runs.RunRecord]:
    if only is None:
        return [record for _, record in runs.list_runs(root)]
    found = _record(join(root, only)) if runs.is_id(only) else None
    return [found] if found else []


def _record(folder: str) -> runs.RunRecord | None:
    """None while the run has none, or where its folder cannot be seen from here."""
    try:
        return runs.read_run(folder)
    except DataError:
        return None
    except (ConfigurationError, OSError, ImportError) as error:
        log.warning("%s cannot be read from here: %s", folder, error)
        return None
