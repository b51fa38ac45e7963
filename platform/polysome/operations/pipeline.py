"""A pipeline: tokenizer, then prepare, train and evaluate stage after stage, baselines, report, and a served model.

Preparing, training and evaluating are runs of their own in folders below the pipeline's, so a pipeline that was
stopped goes on with the first that is not finished. An ablation is another chain through the same stages; what it
shares with other chains (prepared data, the stages that it begins with, baselines) is made once.
"""

import logging
import posixpath
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from polysome.config import ConfigurationError
from polysome.data.config import PrepareConfig, PrepareSettings
from polysome.evaluation.config import EvaluationConfig, EvaluationSettings
from polysome.evaluation.results import RESULTS_FILE
from polysome.models.backbone import ModelSource
from polysome.operations import jobs, provenance, runs
from polysome.operations.cluster import connect
from polysome.operations.pipeline_check import build_tokenizer
from polysome.operations.pipeline_config import MAIN, Asking, PipelineConfig, evaluation_step
from polysome.operations.pipeline_report import audit, markdown, step_summary, step_title, words
from polysome.operations.runs import Run
from polysome.serving.config import ServeConfig, ServeSettings
from polysome.specs import dataset
from polysome.storage import exists, join, open_atomic
from polysome.training.config import StageConfig

if TYPE_CHECKING:
    from polysome.evaluation.baselines import Baselines

log = logging.getLogger(__name__)


def run_pipeline(
    config: PipelineConfig, runs_root: str, run_id: str | None = None, *, announce: jobs.Announce = log.info
) -> Run:
    """Run a checked pipeline on the Ray cluster of the job; with the id of an earlier run, do what is not done yet.

    The recipe of an earlier run may have changed, as long as every step that it finished is the same: later stages can
    be tried anew without the earlier ones.

    Raises:
        PolysomeError: what is wrong, before the step that it concerns starts; finished steps stay.
    """
    with runs.start(runs_root, "pipeline", config.name, config, run_id=run_id, guarded_by_steps=True) as run:
        if run.reusable:
            announce(f"{run.id} is finished already")
            return run
        workers = [stage.train.workers for stage in config.stages.values()]
        cpus = max(worker.minimum * worker.cpus_per_worker for worker in workers)
        gpus = max(worker.minimum * worker.gpus_per_worker for worker in workers)
        try:
            with connect(cpus=cpus, gpus=gpus, run=run):
                _Pipeline(config, run, announce).run()
        except BaseException as error:
            if not isinstance(error, ConfigurationError):
                announce(f"stopped; go on with the same command and --run-id {run.id}")
            raise
    return run


class _Pipeline:
    """One execution of a recipe in its run folder; the methods stand in the order in which they run."""

    def __init__(self, config: PipelineConfig, run: Run, announce: jobs.Announce) -> None:
        self.config, self.folder, self.id, self.run_record = config, run.folder, run.id, run
        self.announce = announce
        self.evaluations: dict[str, str] = {}
        """Run folders by the title of their column."""
        self.prepared: dict[str, Run] = {}
        """By settings."""
        self.trained: dict[tuple[str, ...], tuple[str, str]] = {}
        """Run and export of every beginning of a chain."""

    def run(self) -> None:
        self.tokenizer = self._tokenizer()
        exports = {chain: self._chain(chain, stages) for chain, stages in self.config.chains.items()}
        self.run_record.update(results={"exports": exports})
        if self.config.evaluation:
            self._report(self._baselines())
        if self.config.serving:
            self._serve(exports[MAIN])

    def _chain(self, chain: str, stages: Sequence[str]) -> str:
        """Train stage after stage, evaluate where the recipe asks for it; returns the last export."""
        export: str | None = None
        for position, stage in enumerate(stages):
            begun = tuple(stages[: position + 1])
            if begun not in self.trained:
                name = self.config.step(chain, stage)
                self.trained[begun] = name, self._train(name, stage, export)
            name, export = self.trained[begun]
            for variant, asking in self.config.askings(chain, stages, position).items():
                title = step_title(chain, begun) + (f" ({words(variant)})" if variant else "")
                self._evaluate(name, evaluation_step(name, variant), title, asking, export)
        assert export is not None
        return export

    def _tokenizer(self) -> str:
        """The tokenizer's folder: the recipe's, or the one that is built into the run folder."""
        if isinstance(self.config.tokenizer, str):
            return self.config.tokenizer
        from polysome.data.tokenizer_files import copy_tokenizer, tokenizer_fingerprint

        folder = join(self.folder, "tokenizer")
        with tempfile.TemporaryDirectory() as local:
            build_tokenizer(self.config, self.config.tokenizer, local)
            copy_tokenizer(local, folder)
            self.run_record.update(fingerprints={"tokenizer": tokenizer_fingerprint(local)})
        return folder

    def _prepare(self, name: str, settings: PrepareSettings) -> Run:
        """Prepared data; that of an earlier step with the same settings where there is one."""
        key = settings.model_dump_json()
        if key not in self.prepared:
            config = PrepareConfig(name=f"prepare-{name}", tokenizer=self.tokenizer, **settings.model_dump())
            self.announce(f"prepare {name}")
            step = jobs.prepare(config, self.folder, run_id=config.name, parents=[self.id], announce=self.announce)
            self.announce(f"  {step_summary(step.record)}")
            self.prepared[key] = step
        return self.prepared[key]

    def _train(self, name: str, stage: str, previous: str | None) -> str:
        prepared = self._prepare(stage, self.config.stages[stage].prepare)
        settings, dev = self.config.stages[stage].train, self.config.stages[stage].dev
        if dev is not None and settings.dev is not None:
            measured = settings.dev.model_copy(
                update={"data": self._prepare(f"{stage}-dev", dev).record.results["data"]}
            )
            settings = settings.model_copy(update={"dev": measured})
        model = self.config.model if previous is None else ModelSource(path=previous)
        data = str(prepared.record.results["data"])
        config = StageConfig(name=name, data=data, model=model, **settings.model_dump())
        self.announce(f"train {name}")
        parents = [self.id, prepared.id]
        step = jobs.train(config, self.folder, run_id=name, parents=parents, announce=self.announce)
        self.announce(f"  {step_summary(step.record)}")
        return str(step.record.results["export"])

    def _evaluate(self, trained: str, name: str, title: str, asking: Asking, export: str) -> None:
        settings = asking.model_dump(include=set(EvaluationSettings.model_fields))
        config = EvaluationConfig(name=name, model=export, **settings)
        self.announce(f"evaluate {title}")
        parents = [self.id, trained]
        step = jobs.evaluate(
            config,
            self.folder,
            run_id=config.name,
            parents=parents,
            announce=self.announce,
            shared=self.folder,
        )
        self.announce(f"  {step_summary(step.record)}")
        self.evaluations[title] = step.folder

    def _baselines(self) -> "dict[str, Baselines]":
        """Those that the evaluations kept; fitted here where nothing was evaluated."""
        from polysome.evaluation.baselines import run_baselines

        assert self.config.evaluation is not None
        settings = self.config.evaluation
        self.announce("baselines")
        started = time.monotonic()
        found = run_baselines(
            settings.tasks,
            split=settings.split,
            subsets=settings.subsets,
            limit=settings.limit,
            seed=settings.seed,
            resamples=settings.resamples,
            chosen=settings.baselines,
            cache=self.folder,
        )
        self.announce(f"  {len(found)} tasks in {time.monotonic() - started:.0f} s")
        return found

    def _report(self, baselines: "dict[str, Baselines]") -> None:
        """Print the table; write it as Markdown and as a page into the run folder, and as Markdown where the recipe
        says."""
        from polysome.evaluation.page import REPORT_FILE, read_subject, write_page
        from polysome.evaluation.report import Published, table

        subjects = [read_subject(folder, title) for title, folder in self.evaluations.items()]
        evaluations = {subject.name: subject.evaluation for subject in subjects}
        published = [Published(item.dataset, item.system, item.value, item.source) for item in self.config.references]
        report = table(evaluations, baselines, published=published)
        self.announce(report.rich(self.config.name))
        text = markdown(self.config, report, self.run_record.record, self.folder)
        for path in [join(self.folder, "report.md"), *([self.config.report] if self.config.report else [])]:
            with open_atomic(path, "w") as handle:
                handle.write(text)
            self.announce(f"report: {path}")
        page = join(self.folder, REPORT_FILE)
        leaks = audit(self.config, self.folder)
        write_page(
            page, subjects, title=self.config.name, command=provenance.command(), audit=leaks, baselines=baselines
        )
        self.announce(f"report: {page}")

    def _serve(self, export: str) -> None:
        """Serve the export, ask the first test example over HTTP, and stop, or stay until Ctrl-C."""
        from polysome.data.examples import read_examples
        from polysome.data.render import question
        from polysome.serving.app import serving
        from polysome.serving.checks import check
        from polysome.serving.client import ask_chat

        assert self.config.serving is not None
        settings = self.config.serving
        config = ServeConfig(model=export, **settings.model_dump(include=set(ServeSettings.model_fields)))
        name, _ = self.trained[tuple(self.config.chains[MAIN])]
        evaluated = join(self.folder, evaluation_step(name, ""))
        # What the pipeline knows of its model, and its own run, are there to be shown.
        known = {"runs": posixpath.dirname(self.folder)}
        if exists(join(evaluated, RESULTS_FILE)):
            known["calibration"] = evaluated
        unset = {name: value for name, value in known.items() if getattr(config, name) is None}
        config = check(config.model_copy(update=unset))
        spec = dataset(settings.question_task)
        example = read_examples(spec, "test", limit=1).to_pylist()[0]
        asked = question(spec, example["sequences"])
        self.announce(f"serve {config.name}")
        with serving(config, jobs.views_of(config)) as url:
            told = ask_chat(url, config.name, asked, prompt=config.prompt)
            assert spec.task is not None
            self.announce(f"  url:      {url}/v1/chat/completions")
            self.announce(f"  question: {asked}")
            self.announce(f"  answer:   {told}   (truth: {spec.task.label.encode(example['label'])})")
            self.run_record.update(results={"served": {"question": asked, "answer": told}})
            if settings.keep:
                self.announce(f"  stays up until Ctrl-C; open {url} in a browser")
                with suppress(KeyboardInterrupt):
                    while True:
                        time.sleep(1)
