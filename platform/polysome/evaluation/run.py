"""An evaluation: render a model's tasks, ask what is not answered yet, parse, measure, write one result file."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polysome.config import ResourceError
from polysome.evaluation.actors import ActorOptions, Answer, Batch, Refusal, Scored, answer_batches
from polysome.evaluation.baselines import Baselines, run_baselines
from polysome.evaluation.choices import Choices
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.outcome import outcome
from polysome.evaluation.questions import PlannedTask, Question, plan, task_specs
from polysome.evaluation.results import RESULTS_FILE, Evaluation, TaskResult, read_evaluation
from polysome.evaluation.samples import Sample, SampleFile
from polysome.evaluation.sentiment import sentiment_model
from polysome.inference.endpoint import Endpoint
from polysome.inference.engine import open_engine
from polysome.inference.folder import (
    adapter_fingerprint,
    model_fingerprint,
    require_adapter_folder,
    require_model_folder,
)
from polysome.storage import absolute, fingerprint, join, require_folder_writable, write_json

__all__ = ["RESULTS_FILE", "Evaluation", "Progress", "TaskResult", "check", "evaluate", "read_evaluation"]

logger = logging.getLogger(__name__)

OUTAGE = 3
"""So many batches in a row none of whose questions could be asked, for reasons that are not theirs, end the asking."""

Progress = Callable[[int, int], None]
"""Called with (questions answered, questions in all), once at the start and after every batch."""


@dataclass(frozen=True)
class _Model:
    """Fingerprints of what is asked."""

    model: str
    adapter: str | None

    @property
    def whole(self) -> str:
        return self.model if self.adapter is None else fingerprint([self.model, self.adapter])


def check(config: EvaluationConfig) -> None:
    """What can be known at once: tasks and their splits, the model's folder and adapter, the endpoint's health.

    Raises:
        ConfigurationError: a task is not declared, or a data set has none; there is no such sentiment model; an
            endpoint does not accept the key, or tells no log-likelihoods.
        DataError: the model folder is not what it should be, or a data set has no such split or subset.
        ResourceError: the endpoint cannot be reached.
    """
    task_specs(config)
    if config.sentiment:
        sentiment_model(config.sentiment)
    if isinstance(config.model, Endpoint):
        engine = open_engine(config.model)
        if not config.model.replay:
            engine.health()
        if "scores" in config.modes:
            engine.score([], ["yes"])
    elif not _is_fake(config):
        brings_tokenizer = config.adapter is not None and require_adapter_folder(config.adapter)
        require_model_folder(config.model, tokenizer=not brings_tokenizer)


def evaluate(
    config: EvaluationConfig,
    folder: str,
    *,
    progress: Progress | None = None,
    announce: Callable[[str], None] = logger.info,
    shared: str | None = None,
    command: str = "",
    versions: Mapping[str, str] | None = None,
) -> Evaluation:
    """Ask a model the recipe's tasks and measure its answers, on the connected Ray cluster.

    `folder` (local, or any fsspec URL) gets `samples.jsonl`, a line per answer as it comes, what baselines say of the
    same rows in `baselines/`, and at the end `results.json`, whole. Run again on the same folder, only what has no
    answer yet for the same task, model, prompt and decoding or answer set is asked.

    Args:
        announce: is told what is begun, in lines.
        shared: folder that keeps what follows from the data alone, leakage groups and baselines, from one evaluation to
            the next; by default `folder`.
        command: what makes the results again, for the record.
        versions: of the software, for the record.

    Raises:
        ConfigurationError, DataError: see `check`; a data set is missing or not what it should be. Before any actor
            starts.
        ResourceError: the cluster has no room for one actor, actors die again and again, or the endpoint is gone or its
            budget spent; answers so far are kept.
    """
    started = time.monotonic()
    check(config)
    require_folder_writable(folder)
    model = _fingerprints(config)
    planned = plan(config, model.whole, shared or folder, announce=announce)
    questions = [item for task in planned for item in task.asked]
    with SampleFile(folder) as samples:
        waiting = [item for item in questions if _is_open(samples.known.get(item.key))]
        announce(f"{_counted(questions, config)}, {len(questions) - len(waiting)} of them answered before")
        _ask(config, planned, waiting, samples, len(questions), progress)
        known = {item.key: samples.known[item.key] for item in questions}
    found = _baselines(config, planned, shared or folder, announce)
    if shared:
        for item in found.values():
            item.write_predictions(folder)
    announce("measuring")
    sentiment = sentiment_model(config.sentiment) if config.sentiment else None
    evaluation = Evaluation(
        name=config.name,
        model=config.source,
        model_fingerprint=model.model,
        adapter=config.adapter,
        adapter_fingerprint=model.adapter,
        tasks=tuple(outcome(task, known, config, found[task.spec.name], sentiment) for task in planned),
        asked=len(waiting),
        reused=len(questions) - len(waiting),
        seconds=time.monotonic() - started,
        settings={
            **config.model_dump(mode="json", exclude={"name", "model", "adapter"}),
            "decoding": config.decoding,
            "parsers": ["strict", "official"],
        },
        command=command,
        versions=dict(versions or {}),
    )
    write_json(join(folder, RESULTS_FILE), evaluation.to_json())
    return evaluation


def _counted(questions: Sequence[Question], config: EvaluationConfig) -> str:
    """How many, and of which kind."""
    kinds = {"answers in words": 0, "scored": 0, "scored on dev, to calibrate": 0}
    for item in questions:
        scored = "scored" if item.split == config.split else "scored on dev, to calibrate"
        kinds["answers in words" if item.mode == "text" else scored] += 1
    told = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    return f"{len(questions):,} questions ({told})"


def _is_fake(config: EvaluationConfig) -> bool:
    return isinstance(config.model, str) and config.model.startswith("fake:")


def _is_open(sample: Sample | None) -> bool:
    return sample is None or sample.transient


def _fingerprints(config: EvaluationConfig) -> _Model:
    if isinstance(config.model, Endpoint):
        # Patience, budget and key do not shape an answer.
        return _Model(fingerprint(config.model.model_dump(mode="json", include={"url", "model", "extra"})), None)
    if _is_fake(config):
        return _Model(fingerprint(config.model), None)
    adapter = None if config.adapter is None else adapter_fingerprint(config.adapter)
    return _Model(model_fingerprint(config.model), adapter)


def _baselines(
    config: EvaluationConfig, planned: list[PlannedTask], cache: str, announce: Callable[[str], None]
) -> dict[str, Baselines]:
    if not config.baselines:
        return {task.spec.name: Baselines(task.spec.name, {}) for task in planned}
    announce(f"baselines: {', '.join(config.baselines)}")
    return run_baselines(
        config.tasks,
        split=config.split,
        subsets=config.subsets,
        limit=config.limit,
        seed=config.seed,
        resamples=config.resamples,
        chosen=config.baselines,
        groups={task.spec.name: task.groups for task in planned},
        cache=cache,
        announce=announce,
    )


def _ask(
    config: EvaluationConfig,
    planned: list[PlannedTask],
    waiting: list[Question],
    samples: SampleFile,
    total: int,
    progress: Progress | None,
) -> None:
    asked = list(_batches(waiting, config.batch_size))
    choices = {task.spec.name: task.choices for task in planned}
    source = config.model
    options = ActorOptions(
        model=source if isinstance(source, Endpoint) or _is_fake(config) else absolute(source),
        adapter=None if config.adapter is None else absolute(config.adapter),
        actors=config.actors,
        cpus=config.cpus_per_actor,
        gpus=config.gpus_per_actor,
        max_batch_tokens=config.max_batch_tokens,
        max_new_tokens=config.answer_tokens,
        start_timeout=config.start_timeout,
        temperature=config.temperature,
    )
    done = total - len(waiting)
    if progress:
        progress(done, total)
    outage = 0
    for index, answered in answer_batches([_batch(items, choices) for items in asked], options):
        seconds = answered.seconds / len(asked[index])
        written = [_sample(item, answer, seconds) for item, answer in zip(asked[index], answered.answers, strict=True)]
        samples.append(written)
        done += len(written)
        if progress:
            progress(done, total)
        outage = outage + 1 if all(sample.transient for sample in written) else 0
        if outage == OUTAGE or (outage == len(asked) and len(waiting) == total):
            raise ResourceError(
                f"no question could be asked in {outage} batches in a row: {written[-1].error}",
                where=options.where,
                fix="mend that and run the same command again: answers so far are kept",
            )


def _batches(waiting: list[Question], size: int) -> Iterator[list[Question]]:
    """Answers in words, of all tasks together, then scores task by task; the longest first of each.

    Neighbours in length share a batch, so that little of it is padding; replicas of a question never do, so that their
    draws differ.
    """
    kinds: dict[str | int, list[Question]] = {}
    for item in sorted(waiting, key=lambda item: len(item.text), reverse=True):
        kinds.setdefault(item.replica if item.mode == "text" else item.spec.name, []).append(item)
    for items in kinds.values():
        for start in range(0, len(items), size):
            yield items[start : start + size]


def _batch(items: list[Question], choices: Mapping[str, Any]) -> Batch:
    conversations = [item.conversation for item in items]
    if items[0].mode == "text":
        return Batch(conversations, seeds=tuple(int(item.key[:8], 16) for item in items))
    closed = choices[items[0].spec.name]
    assert isinstance(closed, Choices)
    return Batch(conversations, closed, tuple(item.blank for item in items))


def _sample(item: Question, answer: Answer, seconds: float) -> Sample:
    task = item.spec.task
    assert task is not None
    sample = Sample(
        key=item.key,
        id=item.id,
        dataset=item.spec.name,
        task=task.name,
        split=item.split,
        mode=item.mode,
        subset=item.subset,
        label=item.label,
        reference=item.reference,
        group=item.group,
        input=item.text,
        seconds=round(seconds, 6),
        replica=item.replica,
    )
    if isinstance(answer, Refusal):
        return replace(sample, error=answer.reason, transient=answer.transient)
    if isinstance(answer, Scored):
        if not np.isfinite(answer.scores).all():
            return replace(sample, error="the model's scores are not finite")
        return replace(sample, scores=answer.scores)
    return replace(
        sample,
        model_output=answer.text,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
    )
