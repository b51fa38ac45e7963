"""What is known of a pipeline before its first step: what its recipe lacks, and what its run folder holds already."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from polysome.config import ConfigurationError, PolysomeError
from polysome.data.config import PrepareSettings
from polysome.evaluation.config import EvaluationConfig, EvaluationSettings
from polysome.models.backbone import ModelSource
from polysome.operations import runs
from polysome.operations.pipeline_config import BuiltTokenizer, PipelineConfig, asking_key, evaluation_step
from polysome.specs import CONCISE_SYSTEM_PROMPT, REASONING_SYSTEM_PROMPT, Split, dataset
from polysome.storage import exists, join
from polysome.storage.local import local_folder

_NOT_TRAINED_YET = "fake:"
"""Stands for a model of which nothing can be checked yet."""


def check(config: PipelineConfig) -> None:
    """What can be known before the first step: data sets, heads of all files, tokenizer, model, rules, evaluations in
    all variants, trackers, port.

    Raises:
        PolysomeError: what is wrong, where, and how to mend it.
    """
    from polysome.data.prepare import check_sources, preflight
    from polysome.data.tokenizer_files import local_tokenizer, tokenizer_fingerprint
    from polysome.evaluation.run import check as check_evaluation
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
    for variant, asking in config.evaluation.askings.items() if config.evaluation else ():
        for task in asking.tasks:
            need_task(task, asking.split, f"{asking_key(variant)}.tasks", asking.subsets)
        asked = asking.model_dump(include=set(EvaluationSettings.model_fields))
        check_evaluation(EvaluationConfig(name=asking_key(variant), model=_NOT_TRAINED_YET, **asked))
    preflight(list(files.values()))
    _check_model(config)
    if config.serving:
        from polysome.serving.checks import require_free_port

        require_free_port(config.serving.host, config.serving.port)


def changed_steps(config: PipelineConfig, folder: str) -> dict[str, list[str]]:
    """Steps in a run folder that the recipe would now make otherwise, each with the settings that differ."""
    found: dict[str, list[str]] = {}
    for name, settings in planned_steps(config):
        if exists(join(folder, name, runs.RECORD)):
            earlier = runs.read_run(join(folder, name)).config
            if differing := [key for key, value in settings.items() if _known(earlier.get(key)) != _known(value)]:
                found[name] = differing
    if exists(join(folder, "tokenizer")):
        # It is built into the run folder, where all prepared data go by it.
        earlier, now = runs.read_run(folder).config, config.model_dump(mode="json")
        if earlier.get("tokenizer") != now["tokenizer"]:
            found["tokenizer"] = ["tokenizer"]
        elif _worded(earlier.get("stages", {})) != _worded(now["stages"]):
            found["tokenizer"] = ["data sets of the stages"]
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


def build_tokenizer(config: PipelineConfig, settings: BuiltTokenizer, folder: str) -> None:
    """Build the vocabulary from the wordings of all data sets of the stages; the same recipe gives the same files."""
    from polysome.data.render import wordings
    from polysome.models.tokenizer import build_per_base_tokenizer

    texts = [CONCISE_SYSTEM_PROMPT, REASONING_SYSTEM_PROMPT]
    texts += [text for name in _worded(config.model_dump()["stages"]) for text in wordings(dataset(name))]
    build_per_base_tokenizer(folder, texts, **settings.model_dump())


def planned_steps(config: PipelineConfig) -> Iterator[tuple[str, dict[str, Any]]]:
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
                trained[begun] = config.step(chain, stage)
                yield from prepare(stage, item.prepare)
                if item.dev is not None and item.train.dev is not None:
                    yield from prepare(f"{stage}-dev", item.dev)
                starts = {} if position else {"model": config.model.model_dump(mode="json")}
                yield trained[begun], {**item.train.model_dump(mode="json"), **starts}
            for variant, asking in config.askings(chain, stages, position).items():
                settings = asking.model_dump(mode="json", include=set(EvaluationSettings.model_fields))
                yield evaluation_step(trained[begun], variant), settings


def _worded(stages: Mapping[str, Any]) -> list[str]:
    """The data sets whose wordings a vocabulary is built from, in order."""
    return list(dict.fromkeys(source["dataset"] for item in stages.values() for source in item["prepare"]["sources"]))


def _known(value: Any) -> Any:
    """A setting, less the folder of prepared dev data, which a recipe does not know."""
    return {**value, "data": bool(value["data"])} if isinstance(value, dict) and "data" in value else value


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
            build_tokenizer(config, config.tokenizer, folder)
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
