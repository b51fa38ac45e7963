"""Recordings: every answer of an endpoint in one SQLite file, found again by a hash of what was asked."""

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from polysome.config import DataError, ResourceError

_TABLE = "answers (key TEXT PRIMARY KEY, request TEXT, answer TEXT, recorded REAL)"


class Recording:
    """Answers by request. Safe for several threads, and on a local disk for several processes.

    Args:
        path: local file, made when absent and readable by its owner alone, as it holds prompts; None keeps the answers
            in memory.

    Raises:
        DataError: the file is no recording.
        ResourceError: it cannot be made, read or written.
    """

    def __init__(self, path: str | None) -> None:
        self._path = os.path.abspath(os.path.expanduser(path)) if path else None
        self._lock = threading.Lock()
        with self._told():
            if self._path:
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            # A minute: other processes write to the same file.
            self._base = sqlite3.connect(self._path or ":memory:", timeout=60, check_same_thread=False)
            with self._base:
                self._base.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE}")

    def get(self, key: str) -> Any:
        """The answer of a request, as JSON holds it; None where it is not recorded."""
        with self._told(), self._lock:
            found = self._base.execute("SELECT answer FROM answers WHERE key = ?", [key]).fetchone()
        return None if found is None else json.loads(found[0])

    def put(self, key: str, request: Any, answer: Any) -> None:
        """Record an answer; it is on disk when this returns. The first one of a request stays."""
        row = [key, json.dumps(request), json.dumps(answer), time.time()]
        with self._told(), self._lock, self._base:
            self._base.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", row)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            raise ResourceError(
                f"cannot use the recording of answers: {error}",
                where=self._path or "memory",
                fix="free the disk, or name another file",
            ) from error
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"not a recording of answers: {error}", where=self._path or "memory", fix="name another file"
            ) from error


def request_key(request: Any) -> str:
    """SHA-256 of a request, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
