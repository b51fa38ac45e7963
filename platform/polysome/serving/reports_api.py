"""Runs and evaluations over HTTP: what the folders of a team's runs say, and the reports that stand in them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import fsspec
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from polysome.config import DataError
from polysome.evaluation.measure import SCALE, without_nan
from polysome.evaluation.page import REPORT_FILE
from polysome.evaluation.results import Evaluation, TaskResult, read_evaluation
from polysome.serving.context import Context
from polysome.serving.protocol import ApiError
from polysome.storage import exists, join
from polysome.training.metrics import METRICS

POINTS = 400
"""Most lines of a run's `metrics.jsonl` that are told; of more, evenly spread ones."""
REPORT_HEADERS = {
    # Made of what models and data said: shown without scripts, forms, or the origin of the pages.
    "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
Id = Annotated[str, Path(alias="id")]
_ONLY_IN_DETAIL = ("config", "versions", "results", "command", "submission")


@dataclass(frozen=True)
class RunFolder:
    """One run, or one step of a pipeline's."""

    id: str
    """Of the run; of a step `RUN~STEP`."""
    folder: str
    team: str
    """That the run, or the pipeline it is a step of, was made for; empty: nobody's in particular."""
    record: Mapping[str, Any]
    """Its `run.json`, with the status as it is now."""


class Runs(Protocol):
    """What reads the runs folder; `polysome.operations` gives it to the gateway. Blocking: called in a thread."""

    def list(self) -> list[RunFolder]:
        """Newest first; the steps of a pipeline follow it."""
        ...

    def find(self, run_id: str) -> RunFolder | None:
        """The run of an id; None where there is none, and for what cannot be an id."""
        ...


def router(context: Context) -> APIRouter:
    """`/v1/runs` and `/v1/evaluations`. A key sees the runs of its team and those that belong to none."""
    routes = APIRouter()

    def source() -> Runs:
        if context.runs is None:
            raise ApiError(404, "this server shows no runs: its configuration names no `runs`", code="not_configured")
        return context.runs

    def find(run_id: str, request: Request) -> RunFolder:
        run = source().find(run_id)
        if run is None or not _may_see(request, run):
            raise ApiError(404, f"no run {run_id!r}; GET /v1/runs lists them", code="run_not_found", param="id")
        return run

    @routes.get("/v1/runs")
    def runs(request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        """Runs, newest first."""
        seen = [run for run in source().list() if _may_see(request, run)]
        return {
            "object": "list",
            "data": [
                {**{key: run.record[key] for key in run.record if key not in _ONLY_IN_DETAIL}, "id": run.id}
                for run in seen[:limit]
            ],
            "has_more": len(seen) > limit,
        }

    @routes.get("/v1/runs/{id}")
    def run(run_id: Id, request: Request) -> dict[str, Any]:
        """All that a run's record says, and how its training went."""
        found = find(run_id, request)
        return {**found.record, "id": found.id, "metrics": _metrics(found.folder)}

    @routes.get("/v1/evaluations")
    def evaluations(request: Request) -> dict[str, Any]:
        """Finished evaluations with the headline result of every task, newest first."""
        finished = [
            run
            for run in source().list()
            if run.record["job"] == "evaluate" and run.record["status"] == "finished" and _may_see(request, run)
        ]
        finished.sort(key=lambda run: str(run.record["started"]), reverse=True)
        return {"object": "list", "data": [_summary(run) for run in finished]}

    @routes.get("/v1/evaluations/{id}/report", response_class=Response, responses={200: {"content": {"text/html": {}}}})
    def report(run_id: Id, request: Request) -> Response:
        """The evaluation's self-contained page."""
        found = find(run_id, request)
        try:
            with fsspec.open(join(found.folder, REPORT_FILE), "rb") as page:
                content = page.read()
        except FileNotFoundError as error:
            raise ApiError(404, f"run {run_id!r} has no report", code="report_not_found", param="id") from error
        return Response(content, media_type="text/html; charset=utf-8", headers=REPORT_HEADERS)

    return routes


def _may_see(request: Request, run: RunFolder) -> bool:
    caller = request.state.caller
    return not run.team or run.team == caller.team or "admin" in caller.scopes


def _summary(run: RunFolder) -> dict[str, Any]:
    told = {key: run.record[key] for key in ("user", "started", "finished")}
    told |= {"id": run.id, "team": run.team, "report": exists(join(run.folder, REPORT_FILE))}
    try:
        evaluation = read_evaluation(run.folder)
    except DataError as error:
        # Told and not left out: somebody will look for it.
        # Where it lies on the server is nothing to the caller.
        problem = error.what.replace(run.folder, run.id)
        return {**told, "name": run.record["name"], "problem": problem, "tasks": []}
    return {**told, **_results(evaluation), "problem": None}


def _results(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "name": evaluation.name,
        "model": _short(evaluation.model),
        "model_fingerprint": evaluation.model_fingerprint,
        "adapter": _short(evaluation.adapter) if evaluation.adapter else None,
        "adapter_fingerprint": evaluation.adapter_fingerprint,
        "seconds": evaluation.seconds,
        "tasks": [_task(task) for task in evaluation.tasks],
    }


def _task(task: TaskResult) -> dict[str, Any]:
    value, low, high = task.measurement.value.scaled()
    told = {
        "dataset": task.dataset,
        "title": task.title,
        "omics": task.omics,
        "metric": task.measurement.metric,
        "style": task.measurement.style,
        "n": task.measurement.n,
        "scale": SCALE,
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "errors": task.errors,
    }
    return dict(without_nan(told))


def _short(model: str) -> str:
    """A model's folder without the place where it lies: `RUN/stage3` of `/data/runs/RUN/stage3/export`."""
    return "/".join(model.rstrip("/").removesuffix("/export").split("/")[-2:])


def _metrics(folder: str) -> list[dict[str, Any]]:
    """Lines of the run's metrics, evenly spread; none where it trains nothing. A last line still being written is
    left for the next time."""
    try:
        with fsspec.open(join(folder, METRICS), "rb") as lines:
            kept: list[bytes] = []
            every = 1
            newest = None
            for place, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    break
                newest = line
                if place % every == 0:
                    kept.append(line)
                if len(kept) > POINTS:
                    kept, every = kept[::2], 2 * every
    except FileNotFoundError:
        return []
    if newest is not None and kept[-1] is not newest:
        kept.append(newest)
    return [json.loads(line) for line in kept]
