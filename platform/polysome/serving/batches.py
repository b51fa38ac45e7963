"""Batches: files of records in, files of answers out, all below one folder that every gateway sees.

`ID/batch.json` says what is asked, `ID/input` holds the records, `ID/answers/00000.csv` the rows of the first `chunk`
records, and so on; each appears whole or not at all. `open/ID.json` stands while a batch is not finished and says which
gateway works on it, and until when the others must not. Two that work on one batch write the same files.
"""

from __future__ import annotations

import csv
import datetime
import logging
import math
import re
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import count, islice
from typing import IO, TypeVar
from uuid import uuid4

import fsspec

from polysome.config import Config, ConfigurationError, DataError, validate
from polysome.serving.records import Entry, header, read_entries, written
from polysome.specs import Dataset
from polysome.storage import (
    absolute,
    join,
    list_folder,
    open_atomic,
    read_json,
    remove,
    write_json,
)

log = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=Config)

CHUNK = 256
"""Records whose answers are written at a time; so much is lost at most when a gateway dies."""
LEASE = 30.0
"""Seconds after which a batch that nobody tells of is taken by another gateway."""

_ID = re.compile(r"batch_[0-9a-f]{32}")
_PIECE = 1 << 20


class Batch(Config):
    """What is asked."""

    id: str
    task: str
    """Name of the data set."""
    model: str
    """The base's name, or `ADAPTER@VERSION`."""
    team: str
    records: int
    chunk: int
    created: str
    """UTC, ISO 8601."""


class Lease(Config):
    """Who works on a batch."""

    owner: str
    until: float
    """Seconds of `time.time`."""
    message: str = ""
    """What it waits for."""


class End(Config):
    """How a batch ended."""

    status: str
    """`finished` or `failed`."""
    errors: int | None = None
    """Records without an answer."""
    message: str = ""
    ended: str


class Batches:
    """The folder of all batches. Every method blocks; errors of the storage are its own, a damaged file is a DataError
    or ConfigurationError with its place.

    Args:
        folder: local path or any fsspec URL.
    """

    def __init__(self, folder: str) -> None:
        self._folder = absolute(folder)
        self._told: set[tuple[str, str]] = set()
        """Problems that a warning has told of."""

    def create(
        self, content: IO[bytes], spec: Dataset, model: str, team: str, *, most: int, chunk: int = CHUNK
    ) -> Batch:
        """Keep an input, and open a batch for it.

        Args:
            content: FASTA or a table, not compressed.
            most: records.

        Raises:
            DataError: it is neither, or holds no record or more than `most`.
        """
        batch_id = f"batch_{uuid4().hex}"
        try:
            with open_atomic(self._input(batch_id)) as file:
                while piece := content.read(_PIECE):
                    file.write(piece)
            with closing(self.entries(batch_id, spec)) as entries:
                records = sum(1 for _ in islice(entries, most + 1))
            if records > most:
                raise DataError(f"more than {most} records", where="body", fix="send them in parts")
            batch = Batch(
                id=batch_id, task=spec.name, model=model, team=team, records=records, chunk=chunk, created=_now()
            )
            # The lease first: what has no batch.json is nothing, and what has one is found.
            write_json(self._lease(batch_id), Lease(owner="", until=0).model_dump())
            write_json(self._file(batch_id, "batch.json"), batch.model_dump())
        except BaseException:
            self.delete(batch_id)
            raise
        return batch

    def read(self, batch_id: str) -> Batch | None:
        """The batch; None where there is none.

        Raises:
            DataError, ConfigurationError: its record is damaged.
        """
        return _read(Batch, self._file(batch_id, "batch.json")) if _ID.fullmatch(batch_id) else None

    def delete(self, batch_id: str) -> None:
        """Remove a batch with its records and answers; a gateway that works on it stops soon."""
        remove(self._lease(batch_id))
        remove(join(self._folder, batch_id))

    def status(self, batch: Batch) -> dict[str, str | int | None]:
        """How far a batch is: `queued`, `running`, `finished` or `failed`."""
        done = min(batch.records, batch.chunk * len(self.answered(batch.id)))
        told = {"id": batch.id, "object": "batch", "task": batch.task, "model": batch.model, "created": batch.created}
        if (end := self.end(batch.id)) is not None:
            return {**told, "records": batch.records, "done": done, **end.model_dump()}
        lease = self.lease(batch.id)
        running = lease is not None and lease.until > time.time()
        return {
            **told,
            "records": batch.records,
            "done": done,
            "status": "running" if running else "queued",
            "errors": None,
            "message": lease.message if lease else "",
            "ended": None,
        }

    def entries(self, batch_id: str, spec: Dataset) -> Generator[Entry, None, None]:
        """The records of a batch.

        Raises:
            DataError: see `read_entries`.
        """
        try:
            yield from read_entries(self._input(batch_id), spec)
        except DataError as error:
            # Where the folder lies is nothing to the caller.
            raise DataError(error.what, where="body", fix=error.fix) from error

    def answered(self, batch_id: str) -> set[int]:
        """Numbers of the chunks that are answered."""
        names = list_folder(self._file(batch_id, "answers"))
        return {int(name.removesuffix(".csv")) for name in names if re.fullmatch(r"\d+\.csv", name)}

    def write_answers(self, batch_id: str, number: int, rows: list[list[str]]) -> None:
        """Keep the rows of a chunk."""
        with open_atomic(self._file(batch_id, "answers", f"{number:05d}.csv"), "w") as file:
            file.write(written(rows))

    def result(self, batch: Batch, spec: Dataset) -> Iterator[bytes]:
        """The table of all answers, piece by piece, in the order of the records."""
        yield written([header(spec)]).encode()
        for number in range(math.ceil(batch.records / batch.chunk)):
            with fsspec.open(self._file(batch.id, "answers", f"{number:05d}.csv"), "rb") as file:
                while piece := file.read(_PIECE):
                    yield piece

    def count_errors(self, batch: Batch, spec: Dataset) -> int:
        """Records without an answer, of a batch whose chunks are all answered."""
        place, errors = header(spec).index("error"), 0
        for number in self.answered(batch.id):
            with fsspec.open(self._file(batch.id, "answers", f"{number:05d}.csv"), "r", newline="") as file:
                errors += sum(bool(row[place]) for row in csv.reader(file))
        return errors

    def unfinished(self) -> list[str]:
        """Batches that are not finished, those first that wait longest. One whose record cannot be read is left out,
        with a warning."""
        ids = [name.removesuffix(".json") for name in list_folder(join(self._folder, "open"))]
        batches = [batch for batch_id in ids if (batch := self._readable(batch_id)) is not None]
        return [batch.id for batch in sorted(batches, key=lambda batch: batch.created)]

    def _readable(self, batch_id: str) -> Batch | None:
        try:
            return self.read(batch_id)
        except (DataError, ConfigurationError, OSError) as error:
            problem = (batch_id, type(error).__name__)
            if problem not in self._told:
                log.warning("batch %s is left out, its record cannot be read: %s", batch_id, error)
            self._told.add(problem)
            return None

    def lease(self, batch_id: str) -> Lease | None:
        """Who works on a batch; None once it is finished or removed."""
        try:
            return _read(Lease, self._lease(batch_id))
        except (DataError, ConfigurationError):
            # Damaged: nobody's, and written anew by who takes it.
            return Lease(owner="", until=0)

    def take(self, batch_id: str, owner: str) -> bool:
        """Take a batch that nobody works on; False where somebody does."""
        lease = self.lease(batch_id)
        if lease is None or lease.until > time.time():
            return False
        self.renew(batch_id, owner)
        return True

    def renew(self, batch_id: str, owner: str, message: str = "") -> None:
        """Keep the others away for another while."""
        write_json(self._lease(batch_id), Lease(owner=owner, until=time.time() + LEASE, message=message).model_dump())

    def release(self, batch_id: str, owner: str) -> None:
        """Leave a batch to the others."""
        lease = self.lease(batch_id)
        if lease is not None and lease.owner == owner:
            write_json(self._lease(batch_id), Lease(owner="", until=0).model_dump())

    def end(self, batch_id: str) -> End | None:
        """How a batch ended; None while it has not."""
        return _read(End, self._file(batch_id, "end.json"))

    def finish(self, batch_id: str, status: str, *, errors: int | None = None, message: str = "") -> None:
        """Tell how a batch ended, and close it."""
        end = End(status=status, errors=errors, message=message, ended=_now())
        write_json(self._file(batch_id, "end.json"), end.model_dump())
        remove(self._lease(batch_id))

    def _input(self, batch_id: str) -> str:
        return self._file(batch_id, "input")

    def _file(self, batch_id: str, *parts: str) -> str:
        assert _ID.fullmatch(batch_id), "ids come from here or are checked by read"
        return join(self._folder, batch_id, *parts)

    def _lease(self, batch_id: str) -> str:
        return join(self._folder, "open", f"{batch_id}.json")


def chunks(entries: Iterator[Entry], size: int) -> Iterator[tuple[int, list[Entry]]]:
    """The records in stretches of `size`, numbered."""
    for number in count():
        if not (part := list(islice(entries, size))):
            return
        yield number, part


def _read(model: type[ConfigT], url: str) -> ConfigT | None:
    """One of the small files, which appear whole; None where it is not there."""
    try:
        return validate(model, read_json(url), where=url)
    except UnicodeDecodeError as error:
        raise DataError(f"not JSON: {error}", where=url) from error
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
