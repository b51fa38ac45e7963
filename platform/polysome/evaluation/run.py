"""An evaluation: render a model's tasks, ask what is not answered yet, parse, measure, write one result file."""

import hashlib
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polysome.config import ConfigurationError, DataError
from polysome.data.examples import read_examples
from polysome.data.render import choose_question_template, messages, question
from polysome.evaluation import parsers
from polysome.evaluation.actors import ActorOptions, Answer, Refusal, answer_batches
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.measure import Measurement, measure, require_measured
from polysome.evaluation.samples import Sample, SampleFile
from polysome.inference.engine import Conversation
from polysome.inference.folder import model_fingerprint, require_model_folder
from polysome.specs import Dataset, dataset
from polysome.storage import fingerprint, join, read_json, require_folder_writable, write_json

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"
_SHOWN_ERRORS = 5

Progress = Callable[[int, int], None]
"""Called with (examples answered, examples in all), once at the start and after every batch."""


@dataclass(frozen=True)
class TaskResult:
    """What a model reached on one task."""

    dataset: str
    title: str
    measurement: Measurement
    errors: int
    """Examples that could not be asked; they count as wrong."""
    error_reasons: tuple[tuple[str, int], ...]
    """The most frequent reasons and how often each stood."""
    task_fingerprint: str


@dataclass(frozen=True)
class Evaluation:
    """What a model reached on all tasks of a recipe; `results.json` holds the same."""

    name: str
    model: str
    model_fingerprint: str
    tasks: tuple[TaskResult, ...]
    asked: int
    """Examples answered in this run."""
    reused: int
    """Examples whose answer an earlier run of the same folder had written."""
    seconds: float
    settings: Mapping[str, Any]
    """Prompt, decoding, parser and the rest of what the results depend on."""

    @property
    def measurements(self) -> dict[str, Measurement]:
        """Measurement per data set, in the recipe's order."""
        return {task.dataset: task.measurement for task in self.tasks}


@dataclass(frozen=True)
class _Question:
    """One example, rendered and keyed."""

    key: str
    id: str
    spec: Dataset
    subset: str | None
    label: float
    text: str
    conversation: Conversation


def evaluate(config: EvaluationConfig, folder: str, *, progress: Progress | None = None) -> Evaluation:
    """Ask a model the recipe's tasks and measure its answers, on the connected Ray cluster.

    `folder` (local, or any fsspec URL) gets `samples.jsonl`, a line per answer as it comes, and at the end
    `results.json`, whole. Run again on the same folder, only what has no answer yet for the same task, model, prompt
    and decoding is asked.

    Raises:
        ConfigurationError: a task is not declared, or a data set has none.
        DataError: the model folder or a data set is missing or not what it should be; before any actor starts.
        ResourceError: the cluster has no room for one actor, or actors die again and again.
    """
    started = time.monotonic()
    specs = [_task_spec(name, config) for name in config.tasks]
    require_model_folder(config.model)
    require_folder_writable(folder)
    model = model_fingerprint(config.model)
    questions = [item for spec in specs for item in _questions(spec, config, model)]
    with SampleFile(folder) as samples:
        waiting = [item for item in questions if item.key not in samples.known]
        logger.info("%d questions, %d of them answered before", len(questions), len(questions) - len(waiting))
        _ask(config, waiting, samples, len(questions), progress)
        answered = {item.key: samples.known[item.key] for item in questions}
    evaluation = Evaluation(
        name=config.name,
        model=config.model,
        model_fingerprint=model,
        tasks=tuple(
            _result(spec, [answered[item.key] for item in questions if item.spec is spec], config) for spec in specs
        ),
        asked=len(waiting),
        reused=len(questions) - len(waiting),
        seconds=time.monotonic() - started,
        settings={
            "parser": "strict",
            "prompt": config.prompt,
            "tagged": config.tagged,
            "decoding": _decoding(config),
            "split": config.split,
            "limit": config.limit,
            "seed": config.seed,
            "resamples": config.resamples,
        },
    )
    write_json(join(folder, RESULTS_FILE), _to_json(evaluation))
    return evaluation


def read_evaluation(folder: str) -> Evaluation:
    """The evaluation whose `results.json` stands in `folder`.

    Raises:
        DataError: there is none, or it is not of this version.
    """
    url = join(folder, RESULTS_FILE)
    content = read_json(url)
    try:
        tasks = tuple(
            TaskResult(
                task["dataset"],
                task["title"],
                Measurement.from_json(task),
                task["errors"],
                tuple((reason, count) for reason, count in task["error_reasons"]),
                task["fingerprint"],
            )
            for task in content["tasks"]
        )
        whole = ("name", "model", "model_fingerprint", "asked", "reused", "seconds", "settings")
        return Evaluation(tasks=tasks, **{key: content[key] for key in whole})
    except (KeyError, TypeError) as error:
        raise DataError(f"not an evaluation's results: {error!r}", where=url, fix="run the evaluation again") from error


def sample_key(task: str, example_id: str, model: str, conversation: Conversation, decoding: dict[str, Any]) -> str:
    """Hex SHA-256 of the example and of all that its answer depends on; `task` and `model` are fingerprints."""
    text = json.dumps([task, example_id, model, conversation, decoding], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _task_spec(name: str, config: EvaluationConfig) -> Dataset:
    spec = dataset(name)
    if spec.task is None:
        raise ConfigurationError(
            f"data set {name!r} is an unlabelled corpus: there is nothing to ask",
            where=f"recipe {config.name}: tasks",
            fix="name data sets that declare a task",
        )
    require_measured(spec, where=f"recipe {config.name}: tasks")
    spec.files(config.split)
    return spec


def _questions(spec: Dataset, config: EvaluationConfig, model: str) -> list[_Question]:
    examples = read_examples(spec, config.split, limit=config.limit)
    task, decoding = _task_fingerprint(spec), _decoding(config)
    questions = []
    for example in examples.select(["id", "subset", "sequences", "label"]).to_pylist():
        template = choose_question_template(spec, example["id"], config.seed)
        text = question(spec, example["sequences"], template=template, tagged=config.tagged)
        conversation = messages(config.prompt, text)
        key = sample_key(task, example["id"], model, conversation, decoding)
        questions.append(
            _Question(key, example["id"], spec, example["subset"], example["label"][0], text, conversation)
        )
    return questions


def _ask(
    config: EvaluationConfig, waiting: list[_Question], samples: SampleFile, total: int, progress: Progress | None
) -> None:
    # Neighbours in length share a batch, so that little of it is padding; the longest go first.
    ordered = sorted(waiting, key=lambda item: len(item.text), reverse=True)
    batches = [ordered[start : start + config.batch_size] for start in range(0, len(ordered), config.batch_size)]
    options = ActorOptions(
        model=config.model if "://" in config.model else os.path.abspath(os.path.expanduser(config.model)),
        actors=config.actors,
        cpus=config.cpus_per_actor,
        gpus=config.gpus_per_actor,
        max_batch_tokens=config.max_batch_tokens,
        max_new_tokens=config.max_new_tokens,
        start_timeout=config.start_timeout,
    )
    done = total - len(waiting)
    if progress:
        progress(done, total)
    for index, answers in answer_batches([[item.conversation for item in batch] for batch in batches], options):
        samples.append([_sample(item, answer) for item, answer in zip(batches[index], answers, strict=True)])
        done += len(answers)
        if progress:
            progress(done, total)


def _sample(item: _Question, answer: Answer) -> Sample:
    task = item.spec.task
    assert task is not None
    common: dict[str, Any] = {
        "key": item.key,
        "id": item.id,
        "dataset": item.spec.name,
        "task": task.name,
        "subset": item.subset,
        "label": item.label,
        "input": item.text,
    }
    if isinstance(answer, Refusal):
        return Sample(
            **common, model_output=None, finish_reason=None, prompt_tokens=0, completion_tokens=0, error=answer.reason
        )
    return Sample(
        **common,
        model_output=answer.text,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
    )


def _result(spec: Dataset, samples: list[Sample], config: EvaluationConfig) -> TaskResult:
    assert spec.task is not None
    parse = parsers.parser(spec.task)
    predictions = [parse(sample.model_output) if sample.model_output is not None else None for sample in samples]
    measurement = measure(
        spec.task,
        np.array([sample.label for sample in samples], dtype=np.float64),
        np.array([math.nan if prediction is None else prediction for prediction in predictions], dtype=np.float64),
        seed=config.seed,
        resamples=config.resamples,
        subsets=[sample.subset for sample in samples],
    )
    reasons = Counter(sample.error for sample in samples if sample.error is not None)
    return TaskResult(
        dataset=spec.name,
        title=spec.task.title,
        measurement=measurement,
        errors=reasons.total(),
        error_reasons=tuple(reasons.most_common(_SHOWN_ERRORS)),
        task_fingerprint=_task_fingerprint(spec),
    )


def _task_fingerprint(spec: Dataset) -> str:
    return fingerprint(spec.model_dump(mode="json"))


def _decoding(config: EvaluationConfig) -> dict[str, Any]:
    return {"temperature": 0.0, "max_new_tokens": config.max_new_tokens}


def _to_json(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "name": evaluation.name,
        "model": evaluation.model,
        "model_fingerprint": evaluation.model_fingerprint,
        "settings": dict(evaluation.settings),
        "asked": evaluation.asked,
        "reused": evaluation.reused,
        "seconds": round(evaluation.seconds, 3),
        "tasks": [
            {
                "dataset": task.dataset,
                "title": task.title,
                "fingerprint": task.task_fingerprint,
                **task.measurement.to_json(),
                "errors": task.errors,
                "error_reasons": [list(reason) for reason in task.error_reasons],
            }
            for task in evaluation.tasks
        ],
    }
