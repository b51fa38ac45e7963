"""The jobs: a validated configuration in, a finished run folder out. One function each, read top to bottom."""

import dataclasses
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import fsspec

from polysome.config import ConfigurationError
from polysome.operations import provenance, runs, submission
from polysome.operations.cluster import connect
from polysome.operations.recipes import Recipe
from polysome.operations.runtime import require_checkout, require_locked
from polysome.storage import absolute, exists, join

if TYPE_CHECKING:
    from polysome.data.config import PrepareConfig
    from polysome.evaluation.config import EvaluationConfig
    from polysome.evaluation.dev import DevEvaluation
    from polysome.operations.pipeline_config import PipelineConfig
    from polysome.serving.app import Views
    from polysome.serving.config import ServeConfig
    from polysome.training.config import StageConfig

log = logging.getLogger(__name__)

Announce = Callable[[Any], None]
"""Takes one line, a table of rich, or a `Progress`, about what a job begins, where it stands, or what it has done."""


PROGRESS_SECONDS = 5.0


@contextmanager
def _following(folder: str, name: str, announce: Announce) -> Iterator[None]:
    """While the block runs, announce the newest row of the stage's `metrics.jsonl` every few seconds."""
    done = threading.Event()

    def follow() -> None:
        shown = 0
        while not done.wait(PROGRESS_SECONDS):
            row = last_row(join(folder, "metrics.jsonl"))
            if row and row["update"] > shown:
                shown = row["update"]
                loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
                announce(
                    f"  {name} {shown:,}/{row['updates']:,} updates  loss {loss}  "
                    f"{row['tokens_per_second']:,.0f} tokens/s  {row['eta_seconds']:.0f} s left"
                )

    follower = threading.Thread(target=follow, name=f"progress of {name}", daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()


def last_row(url: str) -> dict[str, Any] | None:
    """The last whole row of a file of JSON lines; None while there is none."""
    if not exists(url):
        return None
    with fsspec.open(url, "rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - 8192))
        lines = handle.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines else None


def prepare(
    config: "PrepareConfig",
    runs_root: str,
    *,
    run_id: str | None = None,
    parents: Sequence[str] = (),
    announce: Announce = log.info,
) -> runs.Run:
    """Read, clean, render, tokenize and pack into `<run>/data`."""
    from polysome.data.prepare import check_prepared, check_sources
    from polysome.data.tokenizer_files import local_tokenizer

    check_sources(config, where=f"recipe {config.name}")
    local_tokenizer(config.tokenizer)
    with runs.start(runs_root, "prepare", config.name, config, parents=parents, run_id=run_id) as run:
        folder = join(run.folder, "data")
        if run.reusable:
            check_prepared(config, folder)
            return run
        with connect(run=run):
            from polysome.data.prepare import prepare as prepare_data

            manifest = prepare_data(config, folder, report=announce)
        run.update(fingerprints={"data": manifest.fingerprint, "tokenizer": manifest.tokenizer_fingerprint})
        run.finish({"data": folder, **manifest.model_dump(exclude={"shards"})})
    return run


def train(
    config: "StageConfig",
    runs_root: str,
    *,
    run_id: str | None = None,
    parents: Sequence[str] = (),
    announce: Announce = log.info,
) -> runs.Run:
    """Train one stage on a prepared folder and export it to `<run>/export`."""
    from polysome.data.manifest import read_manifest

    manifest = read_manifest(config.data)
    questions = _questions(config)
    with runs.start(runs_root, "train", config.name, config, parents=parents, run_id=run_id) as run:
        if run.reusable:
            return run
        run.update(fingerprints={"data": manifest.fingerprint, "tokenizer": manifest.tokenizer_fingerprint})
        workers = config.workers
        cpus, gpus = workers.minimum * workers.cpus_per_worker, workers.minimum * workers.gpus_per_worker
        with connect(cpus=cpus, gpus=gpus, run=run):
            from polysome.training.launch import train_stage

            with _following(run.folder, config.name, announce):
                result = train_stage(config, run.folder, questions=questions)
        run.finish(dataclasses.asdict(result))
    return run


def _questions(config: "StageConfig") -> "DevEvaluation | None":
    """Of the dev tasks, read here, so that a task that cannot be asked is known before any worker starts."""
    if config.dev is None or not config.dev.tasks:
        return None
    from polysome.evaluation.dev import DevEvaluation

    settings = config.dev.model_dump(include={"split", "limit", "max_new_tokens"})
    return DevEvaluation.of(config.dev.tasks, seed=config.seed, **settings)


def evaluate(
    config: "EvaluationConfig",
    runs_root: str,
    *,
    run_id: str | None = None,
    parents: Sequence[str] = (),
    announce: Announce = log.info,
    shared: str | None = None,
) -> runs.Run:
    """Ask a model the declared tasks, measure its answers, and write `<run>/report.html` about them.

    Args:
        shared: folder that keeps leakage groups and baselines from one evaluation to the next; by default the run's.
    """
    from polysome.evaluation.page import REPORT_FILE, read_subject, write_page
    from polysome.evaluation.run import check

    check(config)
    with runs.start(runs_root, "evaluate", config.name, config, parents=parents, run_id=run_id) as run:
        if run.reusable:
            return run
        with connect(cpus=config.cpus_per_actor, gpus=config.gpus_per_actor, times=config.actors, run=run):
            from polysome.evaluation.run import evaluate as evaluate_model

            evaluation = evaluate_model(
                config,
                run.folder,
                progress=_asked(announce),
                announce=announce,
                shared=shared,
                command=provenance.command(),
                versions=run.record.versions,
            )
        # The results are on disk: where the page cannot be written, the same run id makes it and asks nothing again.
        path = join(run.folder, REPORT_FILE)
        write_page(path, [read_subject(run.folder)], title=config.name, command=provenance.command())
        announce(f"report: {path}")
        fingerprints = {"model": evaluation.model_fingerprint}
        if evaluation.adapter_fingerprint:
            fingerprints["adapter"] = evaluation.adapter_fingerprint
        run.update(fingerprints=fingerprints)
        run.finish({name: measured.to_json() for name, measured in evaluation.measurements.items()})
    return run


def _asked(announce: Announce) -> Callable[[int, int], None]:
    """Announces answers as they come, every few seconds."""
    started = shown = 0.0
    first: int | None = None

    def progress(done: int, total: int) -> None:
        nonlocal started, shown, first
        now = time.monotonic()
        if first is None:
            # Reading the rows took its time before.
            first, started, shown = done, now, now
        if done > first and (now - shown >= PROGRESS_SECONDS or done == total):
            shown = now
            left = (now - started) / (done - first) * (total - done)
            announce(f"  {done:,}/{total:,} answers  {left:.0f} s left")

    return progress


def pipeline(
    config: "PipelineConfig", runs_root: str, *, run_id: str | None = None, announce: Announce = log.info
) -> runs.Run:
    """Prepare, train and evaluate every stage of a recipe, each step a run below the pipeline's."""
    from polysome.operations.pipeline import run_pipeline
    from polysome.operations.pipeline_check import check, require_unchanged

    if run_id is not None:
        require_unchanged(config, join(absolute(runs_root), run_id))
    check(config)
    return run_pipeline(config, runs_root, run_id, announce=announce)


def views_of(config: "ServeConfig") -> "Views":
    """The jobs and runs that a server's gateways show.

    Raises:
        ConfigurationError: it submits jobs, and its recipes, its cluster or its runs are not what they should be.
    """
    from polysome.operations.gateway_jobs import GatewayJobs
    from polysome.operations.gateway_runs import GatewayRuns
    from polysome.serving.app import Views

    return Views(GatewayJobs.of(config), GatewayRuns(config.runs) if config.runs else None)


def serve(config: "ServeConfig", ready: Callable[[str, "ServeConfig"], None]) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Args:
        ready: called once with the URL and the configuration, the model's folder resolved, when a token was generated.

    Raises:
        DataError, ResourceError: see `polysome.serving.checks.check`; the cluster has no room; the model is not ready.
    """
    from polysome.serving.checks import check

    config = check(config)
    views = views_of(config)
    print(f"loading {config.model}", file=sys.stderr)
    with connect(cpus=config.cpus_per_replica):
        from polysome.serving import app

        with app.serving(config, views) as url:
            ready(url, config)
            try:
                app.wait()
            except KeyboardInterrupt:
                print("stopping", file=sys.stderr)


def execute(recipe: Recipe, runs_root: str, *, run_id: str | None = None, announce: Announce = log.info) -> runs.Run:
    """Run any recipe that ends by itself.

    Raises:
        ConfigurationError: the recipe is for serving, which has no end and no run.
        PolysomeError: what the job says is wrong.
    """
    config: Any = recipe.config
    if submission.current() is not None:
        require_locked(require_checkout())
    if recipe.job == "pipeline":
        return pipeline(config, runs_root, run_id=run_id, announce=announce)
    steps: dict[str, Callable[..., runs.Run]] = {"prepare": prepare, "train": train, "evaluate": evaluate}
    if recipe.job not in steps:
        raise ConfigurationError(
            f"a recipe for {recipe.job!r} does not end by itself", where=recipe.name, fix="use `polysome serve`"
        )
    announce(f"{recipe.job} {recipe.name}")
    return steps[recipe.job](config, runs_root, run_id=run_id, announce=announce)
