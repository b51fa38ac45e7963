"""A pipeline: tokenizer, then prepare, train and evaluate stage after stage, baselines, report, and a served model.

Preparing, training and evaluating are runs of their own in folders below the pipeline's, so a pipeline that was
stopped goes on with the first that is not finished. An ablation is another chain through the same stages; what it
shares with other chains (prepared data, the stages that it begins with, baselines) is made once.
"""

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from polysome.config import ConfigurationError
from polysome.data.config import PrepareConfig, PrepareSettings
from polysome.evaluation.config import EvaluationConfig, EvaluationSettings
from polysome.models.backbone import ModelSource
from polysome.operations import jobs, provenance, runs
from polysome.operations.pipeline_check import build_tokenizer
from polysome.operations.pipeline_config import MAIN, PipelineConfig
from polysome.operations.runs import Run
from polysome.serving.config import ServeConfig, ServeSettings
from polysome.specs import dataset
from polysome.storage import join, open_atomic
from polysome.training.config import StageConfig

if TYPE_CHECKING:
    from polysome.evaluation.baselines import Baselines
    from polysome.evaluation.report import Report

log = logging.getLogger(__name__)


def run_pipeline(
    config: PipelineConfig, runs_root: str, run_id: str | None = None, *, announce: jobs.Announce = log.info
) -> Run:
    """Run a checked pipeline on the connected Ray cluster; with the id of an earlier run, do what is not done yet.

    The recipe of an earlier run may have changed, as long as every step that it finished is the same: later stages can
    be tried anew without the earlier ones.

    Raises:
        PolysomeError: what is wrong, before the step that it concerns starts; finished steps stay.
    """
    with runs.start(runs_root, "pipeline", config.name, config, run_id=run_id, guarded_by_steps=True) as run:
        if run.reusable:
            announce(f"{run.id} is finished already")
            return run
        try:
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
            if self.config.evaluated(chain, stages, position):
                self._evaluate(name, _title(chain, begun), export)
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
            self.announce(f"  {_step_summary(step.record)}")
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
        self.announce(f"  {_step_summary(step.record)}")
        return str(step.record.results["export"])

    def _evaluate(self, name: str, title: str, export: str) -> None:
        assert self.config.evaluation is not None
        settings = self.config.evaluation.model_dump(include=set(EvaluationSettings.model_fields))
        config = EvaluationConfig(name=f"evaluate-{name}", model=export, **settings)
        self.announce(f"evaluate {title}")
        parents = [self.id, name]
        step = jobs.evaluate(
            config,
            self.folder,
            run_id=config.name,
            parents=parents,
            announce=self.announce,
            shared=self.folder,
        )
        self.announce(f"  {_step_summary(step.record)}")
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
        text = self._markdown(report)
        for path in [join(self.folder, "report.md"), *([self.config.report] if self.config.report else [])]:
            with open_atomic(path, "w") as handle:
                handle.write(text)
            self.announce(f"report: {path}")
        page = join(self.folder, REPORT_FILE)
        write_page(page, subjects, title=self.config.name, command=provenance.command(), baselines=baselines)
        self.announce(f"report: {page}")

    def _markdown(self, report: "Report") -> str:
        record = self.run_record.record
        lines = [
            f"# {self.config.name}",
            "",
            f"Made by `{provenance.command()}` with Polysome {record.versions['polysome']}.",
            "",
        ]
        lines += [report.markdown().rstrip(), "", *_ablation_lines(report, self.config)]
        lines += [line for note in self.config.notes for line in (note, "")]
        lines += ["## How it was made", "", "| step | what | seconds |", "| --- | --- | ---: |"]
        for _, step in runs.list_steps(self.folder):
            lines.append(f"| {step.name} | {_step_summary(step)} | {runs.seconds(step):.0f} |")
        return "\n".join([*lines, ""])

    def _serve(self, export: str) -> None:
        """Serve the export, ask the first test example over HTTP, and stop, or stay until Ctrl-C."""
        from polysome.data.examples import read_examples
        from polysome.data.render import question
        from polysome.serving.app import serving
        from polysome.serving.client import ask_chat

        assert self.config.serving is not None
        settings = self.config.serving
        config = ServeConfig(model=export, **settings.model_dump(include=set(ServeSettings.model_fields)))
        spec = dataset(settings.question_task)
        example = read_examples(spec, "test", limit=1).to_pylist()[0]
        asked = question(spec, example["sequences"])
        self.announce(f"serve {config.name}")
        with serving(config) as url:
            told = ask_chat(url, config.name, asked, prompt=config.prompt)
            assert spec.task is not None
            self.announce(f"  url:      {url}/v1/chat/completions")
            self.announce(f"  question: {asked}")
            self.announce(f"  answer:   {told}   (truth: {spec.task.label.encode(example['label'])})")
            self.run_record.update(results={"served": {"question": asked, "answer": told}})
            if settings.keep:
                self.announce(f"  stays up at {url} until Ctrl-C")
                with suppress(KeyboardInterrupt):
                    while True:
                        time.sleep(1)


def _step_summary(step: runs.RunRecord) -> str:
    found = step.results
    if step.job == "prepare":
        sources = found["sources"]
        return (
            f"{found['documents']:,} documents, {found['tokens']:,} tokens, packing {found['packing_efficiency']:.1%}; "
            f"left out {_excluded(sources)}, "
            f"set aside {sum(source['quarantined'] for source in sources):,}"
        )
    if step.job == "train":
        return (
            f"{found['updates']:,} updates, {found['tokens']:,} tokens, loss {found['final_loss']:.4f}; "
            f"{found['trainable_parameters']:,} of {found['total_parameters']:,} parameters trained; "
            f"{found['optimizer']}"
        )
    return ", ".join(
        f"{task}: undefined" if result["value"] is None else f"{task}: {result['value']:.2f}"
        for task, result in found.items()
    )


def _excluded(sources: list[dict[str, Any]]) -> str:
    """`45 (in core_promoter/test)`: what protected splits kept out."""
    found: Counter[str] = Counter()
    for source in sources:
        found.update(source["excluded"])
    return ", ".join(f"{count:,} (in {holder})" for holder, count in sorted(found.items())) or "0"


def _ablation_lines(report: "Report", config: PipelineConfig) -> list[str]:
    """For each ablation: on which tasks the main chain is above it, and on which it is not."""
    by_name = {system.name: system for system in report.systems}
    main = by_name.get(_title(MAIN, config.chains[MAIN]))
    lines: list[str] = []
    for ablation in config.ablations:
        other = by_name.get(_title(ablation, []))
        if main is None or other is None:
            continue
        both = [task for task in report.tasks if task in main.measurements and task in other.measurements]
        above = [task for task in both if main.measurements[task].value.value > other.measurements[task].value.value]
        rest = [task for task in both if task not in above]
        apart = [task for task in above if main.measurements[task].value.low > other.measurements[task].value.high]
        lines += [
            f"{main.name} is above {other.name} on {len(above)} of {len(both)} tasks "
            f"({', '.join(above) or 'none'}; with intervals apart: {', '.join(apart) or 'none'}); "
            f"it is not on {', '.join(rest) or 'none'}.",
            "",
        ]
    return lines


def _title(chain: str, stages: Sequence[str]) -> str:
    """`after stage1+2`, or the ablation's name: how a column of the report is named."""
    if chain != MAIN:
        return chain.replace("_", " ")
    return "after " + "+".join([stages[0], *(stage.removeprefix("stage") for stage in stages[1:])])
