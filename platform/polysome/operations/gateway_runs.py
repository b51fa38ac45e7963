"""The runs folder as the gateway shows it: every run, and every step of a pipeline, under an id of its own."""

import posixpath
from dataclasses import dataclass

from polysome.config import PolysomeError
from polysome.operations.runs import list_runs, read_run
from polysome.serving.reports_api import RunFolder
from polysome.storage import absolute, join, list_folder


@dataclass(frozen=True)
class GatewayRuns:
    """`polysome.serving.reports_api.Runs` of a runs folder."""

    root: str
    """Folder or URL."""

    def list(self) -> list[RunFolder]:
        """See `Runs.list`."""
        root = absolute(self.root)
        teams: dict[str, str] = {}
        listed = []
        for folder, record in list_runs(root):
            parts = posixpath.relpath(folder, root).split("/")
            # A pipeline stands before its steps, and they are its team's.
            team = teams.setdefault(parts[0], record.team)
            listed.append(RunFolder("~".join(parts), folder, team, record.model_dump(mode="json")))
        return listed

    def find(self, run_id: str) -> RunFolder | None:
        """See `Runs.find`."""
        parts = run_id.split("~")
        if len(parts) > 2:
            return None
        folder, records = absolute(self.root), []
        for part in parts:
            # Only names that stand there are followed: an id is never a path.
            if part not in list_folder(folder):
                return None
            folder = join(folder, part)
            try:
                records.append(read_run(folder))
            except PolysomeError:
                return None
        return RunFolder(run_id, folder, records[0].team, records[-1].model_dump(mode="json"))
