"""Answers: a finished evaluation and its `samples.jsonl` in, every row's label, readings and scores out.

The file is read once, line by line; of a text no more is kept than is shown, so that 100,000 answers fit in memory.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import numpy as np

from polysome.config import DataError
from polysome.data.render import messages
from polysome.evaluation.measure import measure, predictions_of
from polysome.evaluation.parsers import Parser, Prediction, parser
from polysome.evaluation.prompts import CLOSED_LLM_SYSTEM_PROMPT
from polysome.evaluation.questions import sample_key
from polysome.evaluation.replicas import vote
from polysome.evaluation.results import Evaluation, TaskResult
from polysome.evaluation.samples import SAMPLES_FILE
from polysome.specs import Task, Value, dataset
from polysome.storage import exists, fingerprint, join

TEXT = 320
"""Letters kept of a question or an answer."""
_SHOWN_SEQUENCE = 48
_UNSAID = "(scored, not asked in words)"
_MOLECULE = re.compile(r"<(dna|rna|protein)>([^<>]*)</?\1>")


@dataclass(frozen=True)
class Answered:
    """One row of a task, as it was asked and answered."""

    id: str
    label: Value | str
    strict: Prediction
    """Of a task that was scored alone, what the scores speak for."""
    official: Prediction
    """Without a sentiment model."""
    scores: tuple[float, ...] | None
    """Per class, or expected numbers; None where it was not scored."""
    asked: str
    told: str | None
    """None where it could not be asked in words; then `error` says why."""
    error: str | None
    group: int | None
    """Leakage group."""


def read_answers(evaluation: Evaluation, folder: str) -> dict[str, list[Answered]]:
    """The rows of every task, by data set, in the order in which they were first written; empty without a file.

    A folder may hold answers of other settings too. An answer in words belongs by its key; of several scores of one row
    the last counts. A task whose answers do not give the results' rows and values is left out.

    Raises:
        DataError: a line of the samples is not one.
    """
    url = join(folder, SAMPLES_FILE)
    if not exists(url):
        return {}
    results = {result.dataset: result for result in evaluation.tasks}
    specs = {name: _Spec.of(name) for name in results}
    texts: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {name: {} for name in results}
    replicas = evaluation.settings.get("replicas", 1)
    scored: dict[str, dict[str, Mapping[str, Any]]] = {name: {} for name in results}
    for number, sample in _lines(url):
        try:
            name = sample["dataset"]
            if name not in results or sample["split"] != evaluation.settings["split"]:
                continue
            if sample["mode"] == "scores":
                scored[name][sample["id"]] = _kept(sample, specs[name].task, None)
            elif sample.get("replica", 0) < replicas and sample["key"] == _key(evaluation, specs[name], sample):
                kept = _kept(sample, specs[name].task, specs[name].parsers)
                texts[name].setdefault(sample["id"], {})[sample.get("replica", 0)] = kept
        except (KeyError, TypeError) as error:
            raise DataError(
                f"not a sample: {error!r}", where=f"{url}, line {number}", fix="evaluate again into a new folder"
            ) from error
    found = {}
    for name, result in results.items():
        told = [_together(specs[name].task, several) for several in texts[name].values()]
        rows = [
            Answered(**{**kept, "scores": scored[name].get(kept["id"], kept)["scores"]})
            for kept in (told if result.styles else scored[name].values())
        ]
        if rows and not result.styles:
            rows = _scored_alone(specs[name].task, rows)
        if rows and _gives(specs[name].task, rows, result):
            found[name] = rows
    return found


@dataclass(frozen=True)
class _Spec:
    """What is needed of a task to read its samples."""

    task: Task
    fingerprint: str
    parsers: tuple[Parser, Parser]

    @classmethod
    def of(cls, name: str) -> "_Spec":
        spec = dataset(name)
        assert spec.task is not None, f"{name} has no task"
        read = (parser(spec.task), parser(spec.task, style="official"))
        return cls(spec.task, fingerprint(spec.model_dump(mode="json")), read)


def _key(evaluation: Evaluation, spec: _Spec, sample: Mapping[str, Any]) -> str:
    """The key of an answer in words of this evaluation."""
    settings, asked = evaluation.settings, sample["input"]
    if settings["style"] == "closed_llm":
        told = [{"role": "system", "content": CLOSED_LLM_SYSTEM_PROMPT}, {"role": "user", "content": asked}]
    else:
        told = messages(settings["prompt"] if settings["style"] == "chat" else "none", asked)
    model, adapter = evaluation.model_fingerprint, evaluation.adapter_fingerprint
    whole = model if adapter is None else fingerprint([model, adapter])
    return sample_key(spec.fingerprint, sample["id"], whole, told, settings["decoding"], sample.get("replica", 0))


def _lines(url: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with fsspec.open(url, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.endswith(b"\n"):
                # A torn last line of a run that was killed counts as not written.
                return
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"not JSON: {error}", where=f"{url}, line {number}", fix="remove that line and evaluate again"
                ) from error


def _kept(sample: Mapping[str, Any], task: Task, readers: tuple[Parser, Parser] | None) -> dict[str, Any]:
    told = sample["model_output"]
    strict, official = (None, None) if told is None or readers is None else (read(told) for read in readers)
    return {
        "id": sample["id"],
        "label": sample["reference"] if task.label.kind == "generation" else tuple(sample["label"]),
        "strict": strict,
        "official": official,
        "asked": clipped(_MOLECULE.sub(_shortened, sample["input"])),
        "told": None if told is None else clipped(told),
        "scores": None if sample["scores"] is None else tuple(sample["scores"]),
        "error": sample["error"],
        "group": sample["group"],
    }


def _together(task: Task, replicas: Mapping[int, Mapping[str, Any]]) -> Mapping[str, Any]:
    """One row of its replicas: their vote, told in the words of the first that says it."""
    several = [replicas[number] for number in sorted(replicas)]
    if len(several) == 1:
        return several[0]
    strict, official = (vote(task, [kept[style] for kept in several]) for style in ("strict", "official"))
    shown = next((kept for kept in several if kept["strict"] == strict), several[0])
    return {**shown, "strict": strict, "official": official}


def _gives(task: Task, rows: Sequence[Answered], result: TaskResult) -> bool:
    """Whether the results follow from these answers."""
    expected = result.styles.get("strict", result.scored)
    if expected is None or expected.n != len(rows):
        return False
    told = [row.strict for row in rows]
    value = measure(task, [row.label for row in rows], told, style=expected.style, seed=0, resamples=0).value.value
    return value == expected.value.value or math.isclose(value, expected.value.value, abs_tol=1e-9)


def _scored_alone(task: Task, rows: list[Answered]) -> list[Answered]:
    told = label_of_scores(task, rows)
    return [
        replace(row, strict=value, told=None if row.scores is None else _UNSAID)
        for row, value in zip(rows, told, strict=True)
    ]


def label_of_scores(task: Task, rows: Sequence[Answered]) -> list[Prediction]:
    """The label that each row's scores speak for; None where it was not scored."""
    width = max((len(row.scores) for row in rows if row.scores is not None), default=0)
    if not width:
        return [None] * len(rows)
    blank = (math.nan,) * width
    table = np.array([blank if row.scores is None else row.scores for row in rows], dtype=np.float64)
    return predictions_of(task, table)


def _shortened(match: re.Match[str]) -> str:
    kind, sequence = match[1], match[2]
    if len(sequence) > _SHOWN_SEQUENCE:
        half = _SHOWN_SEQUENCE // 2
        sequence = f"{sequence[:half]}…({len(sequence)})…{sequence[-half:]}"
    return f"<{kind}>{sequence}</{kind}>"


def clipped(text: str) -> str:
    """The text, no longer than is shown."""
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"
