"""Finished evaluations on generated data, answered by a rule instead of a model: what reports and comparisons read."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from polysome.data.render import answer
from polysome.evaluation.baselines import Baselines
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.measure import measure
from polysome.evaluation.outcome import outcome
from polysome.evaluation.questions import PlannedTask, Question, plan
from polysome.evaluation.results import RESULTS_FILE, Evaluation
from polysome.evaluation.samples import Sample, SampleFile
from polysome.storage import write_json

TASKS = ("planted_promoter", "planted_ncrna_family", "planted_thermostability", "planted_binding")
Say = Callable[[Question, np.random.Generator], str]


def right(share: float) -> Say:
    """Answers in the task's words, the label with this probability, else that of a wrong class or number."""

    def say(question: Question, generator: np.random.Generator) -> str:
        label = question.spec.task.label
        value = question.label
        if generator.random() >= share:
            if label.kind == "regression":
                value = (float(generator.integers(30, 80)),)
            else:
                classes = getattr(label, "classes", ["no", "yes"])
                value = ((value[0] + 1) % len(classes),)
        return answer(question.spec, value)

    return say


def write_evaluation(
    folder: Path,
    say: Say,
    *,
    name: str = "tiny",
    tasks: Sequence[str] = TASKS,
    limit: int | None = 80,
    model: str = "m" * 64,
    seed: int = 1,
    **settings: Any,
) -> Evaluation:
    """Answer, measure and write a run folder as an evaluation leaves it."""
    config = EvaluationConfig(
        name=name, model=name, tasks=list(tasks), limit=limit, resamples=100, calibration_rows=40, **settings
    )
    planned = plan(config, model, str(folder))
    generator = np.random.default_rng(seed)
    with SampleFile(str(folder)) as samples:
        samples.append([_sample(item, say, generator) for task in planned for item in task.asked])
        known = dict(samples.known)
    baselines = {task.spec.name: _baselines(task) for task in planned}
    for item in baselines.values():
        item.write_predictions(str(folder))
    evaluation = Evaluation(
        name=name,
        model=f"models/{name}",
        model_fingerprint=model,
        tasks=tuple(outcome(task, known, config, baselines[task.spec.name]) for task in planned),
        asked=len(known),
        reused=0,
        seconds=1.5,
        settings={
            **config.model_dump(mode="json", exclude={"name", "model", "adapter"}),
            "decoding": config.decoding,
            "parsers": ["strict", "official"],
        },
        command=f"polysome evaluate models/{name}",
        versions={"polysome": "0"},
    )
    write_json(str(folder / RESULTS_FILE), evaluation.to_json())
    return evaluation


def _sample(item: Question, say: Say, generator: np.random.Generator) -> Sample:
    sample = Sample(
        key=item.key,
        id=item.id,
        dataset=item.spec.name,
        task=item.spec.task.name,
        split=item.split,
        mode=item.mode,
        subset=item.subset,
        label=item.label,
        reference=item.reference,
        group=item.group,
        input=item.text,
    )
    if item.mode == "text":
        return replace(sample, model_output=say(item, generator))
    label = item.spec.task.label
    if label.kind == "regression":
        return replace(sample, scores=(float(item.label[0] + generator.normal(0, 5)),))
    scores = generator.normal(0, 1, len(getattr(label, "classes", ["no", "yes"])))
    scores[int(item.label[0])] += 1
    return replace(sample, scores=tuple(scores.tolist()))


def _baselines(planned: PlannedTask) -> Baselines:
    labels = planned.labels
    told = [labels[0]] * len(labels)
    constant = measure(planned.task, labels, told, seed=0, resamples=100, parsed=False)
    predictions = pa.table({"id": planned.rows.table["id"], "majority": told})
    return Baselines(planned.spec.name, {"majority": constant}, 100, 3, predictions=predictions)
