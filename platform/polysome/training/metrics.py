"""metrics.jsonl: one row per logged update, appended by worker 0; a resume cuts it back to its checkpoint."""

import json
import logging
import os
import tempfile
from typing import Any

from fsspec.core import url_to_fs

from polysome.storage import make_folder

METRICS = "metrics.jsonl"

logger = logging.getLogger(__name__)


class MetricsLog:
    """Rows in the run folder's `metrics.jsonl`.

    On a local disk every row is on the file as soon as it is written; for a remote folder rows wait in a local file
    that `sync` uploads, which the loop calls at every checkpoint.
    """

    def __init__(self, folder: str, *, after_update: int) -> None:
        """Open the log of `folder` and drop rows past `after_update`, which will be written again."""
        make_folder(folder)
        self._filesystem, self._path = url_to_fs(f"{folder.rstrip('/')}/{METRICS}")
        self._remote = "file" not in self._filesystem.protocol
        kept = [line for line in self._lines() if json.loads(line)["update"] <= after_update]
        if self._remote:
            self._local = os.path.join(tempfile.mkdtemp(prefix="polysome-metrics-"), METRICS)
        else:
            self._local = self._path
        replacement = f"{self._local}.tmp"
        with open(replacement, "w", encoding="utf-8") as handle:
            handle.writelines(line + "\n" for line in kept)
        os.replace(replacement, self._local)
        self._handle = open(self._local, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - lives as long as the log

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; it must hold `update`."""
        self._handle.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Bring a remote run folder up to date."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        if self._remote:
            self._filesystem.put_file(self._local, self._path)

    def _lines(self) -> list[str]:
        if not self._filesystem.exists(self._path):
            return []
        text = self._filesystem.cat_file(self._path).decode()
        # A kill can leave half a row at the end.
        return [line for line in text.split("\n")[:-1] if line]
