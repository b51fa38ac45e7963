"""The samples file: one JSON line per answer, appended and synced batch by batch, kept across runs.

On a local folder the file is appended in place. Object stores cannot append, so for a remote folder the file grows in a
local working copy that is uploaded whole every `UPLOAD_EVERY` batches and at the end: a machine that is lost takes at
most so many batches with it.
"""

import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import IO, Any

import fsspec

from polysome.config import DataError, ResourceError
from polysome.evaluation.config import Mode
from polysome.storage import absolute, exists, join, open_atomic

logger = logging.getLogger(__name__)

SAMPLES_FILE = "samples.jsonl"
UPLOAD_EVERY = 16


@dataclass(frozen=True)
class Sample:
    """One answer; `input`, `label`, `task` and `model_output` are the authors' names for these (XP-3)."""

    key: str
    """Hex SHA-256 of task, model, adapter, prompt, and decoding or answer set; see `questions.sample_key`."""
    id: str
    dataset: str
    task: str
    split: str
    """The evaluated one, or `dev` where the answer serves calibration or an interval alone."""
    mode: Mode
    subset: str | None
    label: tuple[float, ...]
    """As decoded: 1 or 0, class index, numbers, sorted indices of a multilabel; empty for generated text."""
    reference: str | None
    """The expected text of a generation."""
    group: int | None
    """Leakage group among the rows of the task and split; None for rows that serve calibration."""
    input: str
    """The user's message."""
    model_output: str | None = None
    """The answer of mode `text`; None where the example could not be asked: then `error` says why."""
    scores: tuple[float, ...] | None = None
    """The answer of mode `scores`: what `Choices.read` returns."""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """This example's share of the time that its batch took."""
    error: str | None = None
    replica: int = 0
    """Which of several answers to the same question."""
    transient: bool = False
    """The error is of the machine or the endpoint, not of the example: it is asked again in the next run."""


def read_samples(url: str) -> Iterator[Sample]:
    """Every whole line of a samples file; a torn last line of a run that was killed counts as not written.

    Raises:
        DataError: a line is no sample of this version.
    """
    with fsspec.open(url, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            if line.endswith(b"\n"):
                yield _parse(line, f"{url}, line {number}")


class SampleFile:
    """The samples of a folder: what stands there is read on opening, what is new is appended.

    Use as a context manager. `known` maps the key of every sample to the sample, of several with one key to the last.

    Raises:
        DataError: a line other than a torn last one cannot be read.
        ResourceError: another process of this machine is writing the same local file.
    """

    def __init__(self, folder: str) -> None:
        self._remote = join(folder, SAMPLES_FILE) if "://" in folder and not folder.startswith("file://") else None
        self._scratch: str | None = None
        if self._remote:
            self._scratch = tempfile.mkdtemp(prefix="polysome-samples-")
            self._path = os.path.join(self._scratch, SAMPLES_FILE)
            if exists(self._remote):
                with fsspec.open(self._remote, "rb") as source, open(self._path, "wb") as copy:
                    shutil.copyfileobj(source, copy)
        else:
            local = absolute(folder.removeprefix("file://"))
            os.makedirs(local, exist_ok=True)
            self._path = os.path.join(local, SAMPLES_FILE)
        self._unsent = 0
        self._handle: IO[bytes] = open(self._path, "ab")  # noqa: SIM115 - lives as long as this object
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._handle.close()
            raise ResourceError(
                "another evaluation is writing to this folder",
                where=self._path,
                fix="wait for it, or name another folder",
            ) from error
        self.known: dict[str, Sample] = {sample.key: sample for sample in self._recover()}

    def append(self, samples: Sequence[Sample]) -> None:
        """Write samples so that they survive a kill -9 of this process and a power cut of this machine."""
        lines = "".join(json.dumps(vars(sample), ensure_ascii=False) + "\n" for sample in samples)
        self._handle.write(lines.encode())
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self.known.update((sample.key, sample) for sample in samples)
        self._unsent += 1
        if self._remote and self._unsent >= UPLOAD_EVERY:
            self._upload()

    def __enter__(self) -> "SampleFile":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._remote and self._unsent:
                self._upload()
        finally:
            self._handle.close()
            if self._scratch:
                shutil.rmtree(self._scratch)

    def _upload(self) -> None:
        assert self._remote is not None
        with open(self._path, "rb") as source, open_atomic(self._remote) as target:
            shutil.copyfileobj(source, target)
        self._unsent = 0

    def _recover(self) -> list[Sample]:
        """Read every whole line; cut off a last line that a kill left unfinished."""
        samples: list[Sample] = []
        whole = 0
        with open(self._path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                samples.append(_parse(line, f"{self._remote or self._path}, line {number}"))
                whole += len(line)
        torn = os.path.getsize(self._path) - whole
        if torn:
            logger.warning("%s: dropped a torn last line of %d bytes", self._path, torn)
            self._handle.truncate(whole)
        return samples


def _parse(line: bytes, where: str) -> Sample:
    try:
        content: dict[str, Any] = json.loads(line)
        content = {
            # What has a default may be younger than the line.
            field.name: content[field.name] if field.default is MISSING else content.get(field.name, field.default)
            for field in fields(Sample)
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"not a sample of this version: {error!r}",
            where=where,
            fix="remove that line: its example is then asked again; or name another folder",
        ) from error
    for name in ("label", "scores"):
        content[name] = None if content[name] is None else tuple(content[name])
    return Sample(**content)
