"""The run registry: every job owns a folder, and what `polysome runs` knows it reads from those folders alone.

A run folder is claimed by creating it, which can succeed once. While the job works, `run.json` says `running` and a
heartbeat file is refreshed; the last thing that a job does is to replace `run.json` by one that says how it ended. A
run whose process died without that is told from a living one by its heartbeat, and listed as interrupted then.
"""

import logging
import math
import os
import posixpath
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, Self

from fsspec.core import url_to_fs
from pydantic import BaseModel, Field

from polysome.config import Config, ConfigurationError, DataError, PolysomeError, validate
from polysome.operations import heartbeat, provenance
from polysome.operations.submission import Submission, current
from polysome.operations.usage import Rates, Usage, read_rates
from polysome.storage import (
    absolute,
    exists,
    fingerprint,
    join,
    list_folder,
    make_folder,
    read_json,
    require_folder_writable,
    write_json,
)

log = logging.getLogger(__name__)

RUNS_VARIABLE = "POLYSOME_RUNS"
RECORD = "run.json"
HEARTBEAT = "heartbeat.json"
BEAT_SECONDS = 15.0

Status = Literal["queued", "running", "finished", "failed", "interrupted"]
ALIVE: tuple[Status, ...] = ("queued", "running")
"""A process works or waits for the run."""
_RUN_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")


class RunRecord(Config):
    """`run.json`."""

    id: str
    """Name of the run folder."""
    job: str
    """prepare, train, evaluate or pipeline."""
    name: str
    status: Status
    started: str
    """UTC, ISO 8601, of the latest attempt."""
    finished: str | None = None
    """When the latest attempt ended; of one whose process died, when that was last alive."""
    attempt: int = 1
    """Counts how often the run was started, the first time included."""
    config: dict[str, Any]
    """The whole resolved recipe."""
    config_fingerprint: str
    fingerprints: dict[str, str] = Field(default_factory=dict)
    """Of what the run read: data, tokenizer, model."""
    versions: dict[str, str]
    commit: str | None = None
    user: str
    team: str = ""
    command: str
    job_id: str | None = None
    """Of the submitted job that the latest attempt belongs to."""
    submission: Submission | None = None
    """What was submitted; None for a run that was started by hand."""
    parents: list[str] = Field(default_factory=list)
    """Ids of the runs that this one belongs to or builds on."""
    results: dict[str, Any] = Field(default_factory=dict)
    error: str | None = None
    cpus: float = 0.0
    """That the latest attempt holds, or held: those it asked for at once, or the whole of a private local Ray."""
    gpus: float = 0.0
    held_since: str | None = None
    """UTC, ISO 8601; None while the latest attempt has none yet."""
    rates: Rates | None = None
    """When the latest attempt started."""
    usage: Usage = Usage()
    """Of all attempts; in the file, of those that have ended."""
    cost: float | None = None
    """`usage` at `rates`."""

    def used(self, until: str) -> dict[str, Any]:
        """`usage` and `cost` with the latest attempt, which ended or was last seen then."""
        held = (datetime.fromisoformat(until) - datetime.fromisoformat(self.held_since or until)).total_seconds()
        usage = self.usage.and_held(max(0.0, held), cpus=self.cpus, gpus=self.gpus)
        return {"usage": usage, "cost": usage.cost(self.rates)}


def is_id(text: str) -> bool:
    """Whether a run folder may be called so: a plain name, never a path."""
    return bool(_RUN_ID.match(text))


def new_id(name: str) -> str:
    """`<name>-<YYYYMMDD-HHMMSS>` (UTC), with what is no letter or digit of the name told by dashes."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
    return f"{plain[:70]}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def default_root() -> str:
    """Where runs go when nothing is said: `POLYSOME_RUNS`, else `runs/` in the current folder."""
    return os.environ.get(RUNS_VARIABLE) or "runs"


class Run:
    """A claimed run folder. As a context manager it marks the run finished, failed or interrupted when the block ends.

    Attributes:
        folder: absolute path or URL; everything that the job makes goes below it.
        reusable: an earlier attempt with the same configuration finished: its files stand, nothing is to be done.
    """

    def __init__(self, folder: str, record: RunRecord, *, reusable: bool = False) -> None:
        self.folder = folder
        self.record = record
        self.reusable = reusable
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None
        if not reusable:
            self._beat()
            self._beating = threading.Thread(target=self._keep_beating, name=f"heartbeat {record.id}", daemon=True)
            self._beating.start()

    @property
    def id(self) -> str:
        """Name of the run folder."""
        return self.record.id

    def update(
        self, *, results: Mapping[str, Any] | None = None, fingerprints: Mapping[str, str] | None = None
    ) -> None:
        """Add results or fingerprints to the record and write it."""
        self._write(
            {
                "results": {**self.record.results, **(results or {})},
                "fingerprints": {**self.record.fingerprints, **(fingerprints or {})},
            }
        )

    def wait(self) -> None:
        """Mark the run queued: it has nothing to run on yet."""
        self._write({"status": "queued"})

    def hold(self, *, cpus: float, gpus: float) -> None:
        """Mark the run running, on so many CPUs and GPUs; their hours count from now."""
        self._write({"status": "running", "cpus": cpus, "gpus": gpus, "held_since": heartbeat.now()})

    def finish(self, results: Mapping[str, Any] | None = None) -> None:
        """Mark the run finished, as the last thing of the job."""
        self._end("finished", results=dict(results or {}))

    def fail(self, error: BaseException) -> None:
        """Mark the run failed, or interrupted when a person or the system stopped it."""
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        text = str(error) if isinstance(error, PolysomeError) else f"{type(error).__name__}: {error}"
        self._end("interrupted" if stopped else "failed", error=text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.record.status not in ALIVE:
            return
        if error is None:
            self.finish()
        else:
            self.fail(error)

    def _end(self, status: Status, *, results: Mapping[str, Any] | None = None, error: str | None = None) -> None:
        self._stop.set()
        if self._beating is not None:
            self._beating.join()
        ended = heartbeat.now()
        results = {**self.record.results, **(results or {})}
        self._write(
            {"status": status, "finished": ended, "results": results, "error": error, **self.record.used(ended)}
        )

    def _write(self, changes: Mapping[str, Any]) -> None:
        self.record = self.record.model_copy(update=dict(changes))
        write_json(join(self.folder, RECORD), self.record.model_dump(mode="json"))

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._beat()
            except OSError as error:
                # A storage that fails for good fails the job itself; one missed beat must not.
                log.warning("heartbeat of run %s was not written: %s", self.id, error)

    def _beat(self) -> None:
        heartbeat.beat(join(self.folder, HEARTBEAT))


def start(
    runs_root: str,
    job: str,
    name: str,
    config: BaseModel | Mapping[str, Any],
    *,
    parents: Sequence[str] = (),
    run_id: str | None = None,
    guarded_by_steps: bool = False,
) -> Run:
    """Claim a run folder below `runs_root` and record the run as running.

    Without `run_id` the folder is new: `<name>-<YYYYMMDD-HHMMSS>` (UTC), with a suffix where that is taken. With
    `run_id` an earlier attempt of the same configuration is taken up: a finished one comes back as `reusable`, a failed
    or interrupted one is started again in its folder.

    With `guarded_by_steps` a run may go on with another configuration, because each of its steps is a run that refuses
    one that differs from its own.

    Raises:
        ConfigurationError: the run of that id has another configuration, is still running, or the id is not a plain
            name; `runs_root` cannot be written.
    """
    resolved = dict(config) if isinstance(config, Mapping) else config.model_dump(mode="json")
    root = absolute(runs_root)
    _make_root(root)
    job_id, submission = current() or (None, None)
    record = RunRecord(
        id=run_id or "",
        job=job,
        name=name,
        status="running",
        started=heartbeat.now(),
        config=resolved,
        config_fingerprint=fingerprint(resolved),
        versions=provenance.versions(),
        commit=provenance.commit(),
        user=provenance.user(),
        team=provenance.team(),
        command=provenance.command(),
        job_id=job_id,
        # Of a pipeline and its steps, the pipeline was submitted.
        submission=None if parents else submission,
        parents=list(parents),
        # A pipeline's folder stands in that of the runs.
        rates=read_rates(posixpath.dirname(root) if exists(join(root, RECORD)) else root),
    )
    if run_id is None:
        return _start_new(root, record)
    if not is_id(run_id):
        raise ConfigurationError(
            f"{run_id!r} is no run id", where="run id", fix="use letters, digits, '.', '_' and '-', at most 100 of them"
        )
    folder = join(root, run_id)
    if _claim(folder):
        return _write_first(folder, record)
    return _start_again(folder, record, guarded_by_steps)


def read_run(folder: str) -> RunRecord:
    """The record in a run folder, its usage up to now; a run that says `queued` or `running` but whose process is gone
    is `interrupted`, and ended when that was last alive.

    Raises:
        DataError: the folder has no readable `run.json`.
    """
    path = join(absolute(folder), RECORD)
    record = validate(RunRecord, read_json(path), where=path)
    if record.status not in ALIVE:
        return record
    last = heartbeat.read(join(absolute(folder), HEARTBEAT))
    if heartbeat.alive(last):
        return record.model_copy(update=record.used(heartbeat.now()))
    ended = max(last.beat, record.started) if last else record.started
    return record.model_copy(update={"status": "interrupted", "finished": ended, **record.used(ended)})


def list_runs(runs_root: str) -> list[tuple[str, RunRecord]]:
    """All runs below `runs_root` with their folders, newest first; the children of a run follow it, oldest first.

    A folder whose `run.json` cannot be read is logged and left out.
    """
    root = absolute(runs_root)
    found = sorted(_records_in(root), key=lambda item: item[1].started, reverse=True)
    listed: list[tuple[str, RunRecord]] = []
    for folder, record in found:
        listed.append((folder, record))
        if record.job == "pipeline":
            listed += list_steps(folder)
    return listed


def list_steps(folder: str) -> list[tuple[str, RunRecord]]:
    """The runs in a pipeline's folder, oldest first."""
    return sorted(_records_in(folder), key=lambda item: item[1].started)


def seconds(record: RunRecord) -> float:
    """Wall seconds of the latest attempt; nan while it has no end."""
    if record.finished is None:
        return math.nan
    return (datetime.fromisoformat(record.finished) - datetime.fromisoformat(record.started)).total_seconds()


def _records_in(root: str) -> list[tuple[str, RunRecord]]:
    records = []
    for name in list_folder(root):
        folder = join(root, name)
        if not exists(join(folder, RECORD)):
            continue
        try:
            records.append((folder, read_run(folder)))
        except PolysomeError as error:
            log.warning("skipped a run that cannot be read: %s", error)
    return records


def _make_root(root: str) -> None:
    try:
        make_folder(root)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigurationError(
            f"cannot make the runs folder {root}: {error}",
            where="--runs",
            fix="name a folder or URL that can be written",
        ) from error
    require_folder_writable(root)


def _start_new(root: str, record: RunRecord) -> Run:
    base = new_id(record.name)
    run_id = base
    while not _claim(join(root, run_id)):
        run_id = f"{base}-{secrets.token_hex(2)}"
    return _write_first(join(root, run_id), record.model_copy(update={"id": run_id}))


def _write_first(folder: str, record: RunRecord) -> Run:
    # The heartbeat begins first: a record that says `running` never stands there without one.
    run = Run(folder, record)
    run.update()
    return run


def _start_again(folder: str, record: RunRecord, guarded_by_steps: bool) -> Run:
    try:
        earlier = read_run(folder)
    except DataError as error:
        raise ConfigurationError(
            f"{folder} exists and is no run folder", where=folder, fix="choose another run id, or remove the folder"
        ) from error
    equal = earlier.config_fingerprint == record.config_fingerprint
    if not equal and not guarded_by_steps:
        changed = sorted(
            key
            for key in {*earlier.config, *record.config}
            if earlier.config.get(key, _ABSENT) != record.config.get(key, _ABSENT)
        )
        raise ConfigurationError(
            f"run {record.id!r} exists with another configuration (differs in: {', '.join(changed)})",
            where=folder,
            fix="choose another run id, restore the configuration of its run.json, or remove the folder",
        )
    if earlier.status == "finished" and equal:
        return Run(folder, earlier, reusable=True)
    attempt = earlier.attempt + 1
    # Of two that take the run up at once, one makes the marker; a marker whose maker died at once is passed over.
    while earlier.status in ALIVE or not heartbeat.create(_marker(folder, attempt)):
        if earlier.status in ALIVE or heartbeat.alive(heartbeat.read(_marker(folder, attempt))):
            raise ConfigurationError(
                f"run {record.id!r} is still running",
                where=folder,
                fix="wait for it or stop it, or choose another run id",
            )
        attempt += 1
    return _write_first(folder, record.model_copy(update={"attempt": attempt, "usage": earlier.usage}))


_ABSENT = object()


def _marker(folder: str, attempt: int) -> str:
    return join(folder, f"attempt-{attempt}.json")


def _claim(folder: str) -> bool:
    """Make `folder`; False when it exists. Of two at once, one gets True: a local folder is made once, and on stores
    without real folders the marker file is."""
    filesystem, path = url_to_fs(folder)
    if filesystem.exists(path):
        return False
    try:
        filesystem.mkdir(path, create_parents=False)
    except FileExistsError:
        return False
    return heartbeat.create(_marker(folder, 1))
