"""A pipeline: tokenizer, then prepare, train and evaluate stage after stage, baselines, report, and a served model.

Preparing, training and evaluating are runs of their own in folders below the pipeline's, so a pipeline that was
stopped goes on with the first that is not finished. An ablation is another chain through the same stages; what it
shares with other chains (prepared data, the stages that it begins with, baselines) is made once.
"""

import copy
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from polysome.config import Config, ConfigurationError, PolysomeError
from polysome.data.config import PrepareConfig, PrepareSettings
from polysome.evaluation.config import BASELINES_FILE, EvaluationConfig, EvaluationSettings
from polysome.models.backbone import ModelSource
from polysome.operations import jobs, provenance, runs
from polysome.operations.runs import Run
from polysome.serving.config import ServeConfig, ServeSettings
from polysome.specs import CONCISE_SYSTEM_PROMPT, REASONING_SYSTEM_PROMPT, Split, dataset
from polysome.storage import exists, join, open_atomic
from polysome.storage.local import local_folder
from polysome.training.config import StageConfig, StageSettings

if TYPE_CHECKING:
    from polysome.evaluation.baselines import Baselines
    from polysome.evaluation.report import Report
    from polysome.evaluation.run import Evaluation

log = logging.getLogger(__name__)

MAIN = "main"
DEV_DATA = "prepared by the pipeline"
"""Stands for the folder until it is known."""
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class BuiltTokenizer(Config):
    """Build Polysome's own vocabulary from the wordings of the pipeline's data sets."""

    vocabulary_size: Annotated[int, Field(ge=276)] = 1024
    """Upper bound, k-mers not counted."""
    kmer: Annotated[int, Field(ge=1, le=6)] = 1
    """Spell DNA and RNA in overlapping k-mers; 1: base by base."""
    protein_kmer: Annotated[int, Field(ge=1, le=3)] = 1
    """Spell proteins in overlapping k-mers; 1: residue by residue."""


class PipelineStage(Config):
    """One stage: its data and its training."""

    prepare: PrepareSettings
    train: StageSettings
    dev: PrepareSettings | None = None
    """Data of the dev loss, prepared as well; `train.dev` says when it is taken, and needs no `data`."""

    @model_validator(mode="before")
    @classmethod
    def _dev_data_follows(cls, content: Any) -> Any:
        """Let `train.dev` do without the path that only the pipeline knows."""
        if not isinstance(content, dict) or not content.get("dev"):
            return content
        content = copy.deepcopy(content)
        settings = content.get("train")
        measured = settings.get("dev") if isinstance(settings, dict) else None
        if not isinstance(measured, dict) or measured.get("data"):
            raise ValueError("dev prepares data for train.dev, which must say every_updates, and no data of its own")
        measured["data"] = DEV_DATA
        return content


class Reference(Config):
    """A published number that stands beside the results for context."""

    dataset: str
    system: str
    value: float
    """In the scale of its source."""
    source: str


class PipelineEvaluation(EvaluationSettings):
    """What is asked after each stage, and of whom."""

    after: list[str] | None = None
    """Stages of the main chain after which to evaluate; all when not given. Ablations are evaluated at their end."""


class PipelineServing(ServeSettings):
    """Serve the main chain's last export when all is done, and ask it a question over HTTP."""

    question_task: str
    """Data set whose first test example is asked."""
    keep: bool = False
    """Leave the endpoint up until Ctrl-C."""


class PipelineConfig(Config):
    """The recipe of a pipeline."""

    name: str
    seed: int = 42
    """Of everything below that names no seed of its own: data, training, evaluation."""
    tokenizer: str | BuiltTokenizer
    """Folder of a Hugging Face tokenizer, or how to build one."""
    model: ModelSource
    """What the first stage of a chain starts from; later stages start from the export before them."""
    stages: Annotated[dict[Name, PipelineStage], Field(min_length=1)]
    """In order."""
    chain: Annotated[list[Name], Field(min_length=1)] | None = None
    """Stages of the main chain, in order; all of them when not given."""
    ablations: dict[Name, list[str]] = {}
    """Other chains by name: which stages they run, in order."""
    evaluation: PipelineEvaluation | None = None
    references: list[Reference] = []
    notes: list[str] = []
    """Sentences that the report shall end with."""
    serving: PipelineServing | None = None
    report: str | None = None
    """Also write the Markdown report to this file."""

    @model_validator(mode="before")
    @classmethod
    def _spread_seed(cls, content: Any) -> Any:
        """Give the pipeline's seed to every part that names none."""
        if not isinstance(content, dict) or "seed" not in content:
            return content
        content = copy.deepcopy(content)
        parts = [content.get("evaluation")]
        if isinstance(content.get("stages"), dict):
            for stage in content["stages"].values():
                parts += [stage.get(part) for part in ("prepare", "train", "dev")] if isinstance(stage, dict) else []
        for part in parts:
            if isinstance(part, dict):
                part.setdefault("seed", content["seed"])
        return content

    @model_validator(mode="after")
    def _chains_exist(self) -> "PipelineConfig":
        reserved = {MAIN, "tokenizer"} & {*self.stages, *self.ablations}
        if reserved:
            raise ValueError(f"{sorted(reserved)[0]!r} cannot name a stage or an ablation")
        for name, chain in self.chains.items():
            unknown = [stage for stage in chain if stage not in self.stages]
            if unknown or len(set(chain)) < len(chain) or not chain:
                part = "chain" if name == MAIN else f"ablation {name!r}"
                raise ValueError(f"{part} needs stages of {list(self.stages)}, each once, found {chain}")
        if self.evaluation and self.evaluation.after:
            unknown = [stage for stage in self.evaluation.after if stage not in self.chains[MAIN]]
            if unknown:
                raise ValueError(f"evaluation.after names {unknown}, stages are {self.chains[MAIN]}")
        tasks = self.evaluation.tasks if self.evaluation else []
        if self.serving and self.serving.question_task not in tasks:
            raise ValueError(f"serving.question_task must be one of the evaluated tasks {tasks}")
        if strange := sorted({item.dataset for item in self.references} - set(tasks)):
            raise ValueError(f"references name {strange}, which are not evaluated")
        return self

    @property
    def chains(self) -> dict[str, list[str]]:
        """All chains, the main one first."""
        return {MAIN: self.chain or list(self.stages), **self.ablations}


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


def changed_steps(config: PipelineConfig, folder: str) -> dict[str, list[str]]:
    """Steps in a run folder that the recipe would now make otherwise, each with the settings that differ."""
    found = {}
    for name, settings in _planned(config):
        if exists(join(folder, name, runs.RECORD)):
            earlier = runs.read_run(join(folder, name)).config
            if differing := [key for key, value in settings.items() if _known(earlier.get(key)) != _known(value)]:
                found[name] = differing
    return found


def require_unchanged(config: PipelineConfig, folder: str) -> None:
    """Refuse a recipe that would change a step which a run folder already holds; nothing is touched.

    Raises:
        ConfigurationError: it would; the steps and their settings are named.
    """
    if changed := changed_steps(config, folder):
        told = "; ".join(f"{name} differs in {', '.join(keys)}" for name, keys in changed.items())
        raise ConfigurationError(
            f"the run holds steps of another configuration: {told}",
            where=folder,
            fix="choose another run id, or restore what the run.json of each step says",
        )


def _planned(config: PipelineConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of every step that has a run of its own, and its settings, in the order in which they run."""
    prepared: set[str] = set()
    trained: dict[tuple[str, ...], str] = {}

    def prepare(name: str, settings: PrepareSettings) -> Iterator[tuple[str, dict[str, Any]]]:
        if (key := settings.model_dump_json()) not in prepared:
            prepared.add(key)
            yield f"prepare-{name}", settings.model_dump(mode="json")

    for chain, stages in config.chains.items():
        for position, stage in enumerate(stages):
            begun, item = tuple(stages[: position + 1]), config.stages[stage]
            if begun not in trained:
                trained[begun] = stage if chain == MAIN else f"{chain}-{stage}"
                yield from prepare(stage, item.prepare)
                if item.dev is not None and item.train.dev is not None:
                    yield from prepare(f"{stage}-dev", item.dev)
                yield trained[begun], item.train.model_dump(mode="json")
            if config.evaluation and _evaluated(config.evaluation, chain, stage, last=position == len(stages) - 1):
                settings = config.evaluation.model_dump(mode="json", include=set(EvaluationSettings.model_fields))
                yield f"evaluate-{trained[begun]}", settings


def _known(value: Any) -> Any:
    """A setting, less the folder of prepared dev data, which a recipe does not know."""
    return {**value, "data": bool(value["data"])} if isinstance(value, dict) and "data" in value else value


def _evaluated(settings: PipelineEvaluation, chain: str, stage: str, *, last: bool) -> bool:
    """Whether the model is evaluated after this stage of this chain."""
    return last if chain != MAIN else settings.after is None or stage in settings.after


def check(config: PipelineConfig) -> None:
    """What can be known before the first step: data sets, heads of all files, tokenizer, model, rules, trackers, port.

    Raises:
        PolysomeError: what is wrong, where, and how to mend it.
    """
    from polysome.data.prepare import check_sources, preflight
    from polysome.data.tokenizer_files import local_tokenizer, tokenizer_fingerprint
    from polysome.training.trackers import require_trackers

    if isinstance(config.tokenizer, str):
        tokenizer_fingerprint(local_tokenizer(config.tokenizer))
    files = {}

    def need_task(task: str, split: Split, where: str, subsets: list[str] | None = None) -> None:
        if dataset(task).task is None:
            raise ConfigurationError(
                f"{task!r} is an unlabelled corpus and cannot be asked about",
                where=where,
                fix="name data sets with a task",
            )
        for file in dataset(task).files(split, subsets):
            files[task, split, file.uri] = (dataset(task), split, file)

    for name, stage in config.stages.items():
        require_trackers(stage.train.trackers)
        if stage.train.dev is not None:
            for task in stage.train.dev.tasks:
                need_task(task, stage.train.dev.split, f"stages.{name}.train.dev.tasks")
        for part, settings in (("prepare", stage.prepare), ("dev", stage.dev)):
            if settings is None:
                continue
            check_sources(settings, where=f"stages.{name}.{part}")
            read = [(item.dataset, item.split, item.subsets) for item in settings.sources]
            read += [(item.dataset, item.split, item.subsets) for item in settings.exclude]
            for data, split, subsets in read:
                for file in dataset(data).files(split, subsets):
                    files[data, split, file.uri] = (dataset(data), split, file)
    if config.evaluation:
        for task in config.evaluation.tasks:
            need_task(task, config.evaluation.split, "evaluation.tasks", config.evaluation.subsets)
    preflight(list(files.values()))
    _check_model(config)
    if config.serving:
        from polysome.serving.checks import require_free_port

        require_free_port(config.serving.host, config.serving.port)


def _check_model(config: PipelineConfig) -> None:
    """Build the architecture without weights, and see that every stage's rules find their modules."""
    from polysome.data.tokenizer_files import local_tokenizer
    from polysome.models import trainability
    from polysome.models.backbone import build_model
    from polysome.training.launch import require_numbers

    with tempfile.TemporaryDirectory() as folder:
        if isinstance(config.tokenizer, str):
            tokenizer = str(local_tokenizer(config.tokenizer))
        else:
            tokenizer = folder
            _build_tokenizer(config, config.tokenizer, folder)
        path = config.model.path
        source = config.model if path is None else ModelSource(path=local_folder(path))
        model = build_model(source, tokenizer, seed=config.seed, meta=True)
        for name, stage in config.stages.items():
            with _in_stage(name):
                if stage.train.number_loss is not None:
                    require_numbers([item.dataset for item in stage.prepare.sources], tokenizer)
                trainability.choose(model, stage.train.trainability)


@contextmanager
def _in_stage(name: str) -> Iterator[None]:
    """Errors about the training of a stage, with its name."""
    try:
        yield
    except PolysomeError as error:
        raise type(error)(error.what, where=f"stages.{name}.train.{error.where}", fix=error.fix) from error


def _build_tokenizer(config: PipelineConfig, settings: BuiltTokenizer, folder: str) -> None:
    """Build the vocabulary from the wordings of all data sets of the stages; the same recipe gives the same files."""
    from polysome.data.render import wordings
    from polysome.models.tokenizer import build_per_base_tokenizer

    sources = [source.dataset for stage in config.stages.values() for source in stage.prepare.sources]
    texts = [CONCISE_SYSTEM_PROMPT, REASONING_SYSTEM_PROMPT]
    texts += [text for name in dict.fromkeys(sources) for text in wordings(dataset(name))]
    build_per_base_tokenizer(folder, texts, **settings.model_dump())


class _Pipeline:
    """One execution of a recipe in its run folder; the methods stand in the order in which they run."""

    def __init__(self, config: PipelineConfig, run: Run, announce: jobs.Announce) -> None:
        self.config, self.folder, self.id, self.run_record = config, run.folder, run.id, run
        self.announce = announce
        self.evaluations: dict[str, Evaluation] = {}
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
                name = stage if chain == MAIN else f"{chain}-{stage}"
                self.trained[begun] = name, self._train(name, stage, export)
            name, export = self.trained[begun]
            asked = self.config.evaluation
            if asked is not None and _evaluated(asked, chain, stage, last=position == len(stages) - 1):
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
            _build_tokenizer(self.config, self.config.tokenizer, local)
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
        from polysome.evaluation.run import read_evaluation

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
        self.evaluations[title] = read_evaluation(step.folder)

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
            cache=join(self.folder, BASELINES_FILE),
        )
        self.announce(f"  {len(found)} tasks in {time.monotonic() - started:.0f} s")
        return found

    def _report(self, baselines: "dict[str, Baselines]") -> None:
        """Print the table; write it as Markdown into the run folder, and where the recipe says."""
        from polysome.evaluation.report import Published, table

        published = [Published(item.dataset, item.system, item.value, item.source) for item in self.config.references]
        report = table(self.evaluations, baselines, published=published)
        self.announce(report.rich(self.config.name))
        text = self._markdown(report)
        for path in [join(self.folder, "report.md"), *([self.config.report] if self.config.report else [])]:
            with open_atomic(path, "w") as handle:
                handle.write(text)
            self.announce(f"report: {path}")

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
