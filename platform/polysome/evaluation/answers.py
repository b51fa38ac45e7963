"""Answers: a finished evaluation and its `samples.jsonl` in, every row's label, readings and scores out.

The file is read once, line by line; of a text no more is kept than is shown, so that 100,000 answers fit in memory.
Some answers of each task, the same ones in every evaluation of the same rows, are kept whole.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from polysome.data.reasoning import check
from polysome.data.render import choose, messages
from polysome.evaluation.measure import measure, predictions_of
from polysome.evaluation.metrics import Floats
from polysome.evaluation.parsers import Parser, Prediction, parser
from polysome.evaluation.prompts import CLOSED_LLM_SYSTEM_PROMPT
from polysome.evaluation.questions import sample_key
from polysome.evaluation.replicas import vote
from polysome.evaluation.results import Evaluation, TaskResult
from polysome.evaluation.samples import SAMPLES_FILE, Sample, read_samples
from polysome.specs import Task, Value, dataset
from polysome.storage import exists, fingerprint, join

TEXT = 320
"""Letters kept of a question or an answer."""
WHOLE = 200
"""Answers of a task that are kept whole, about."""
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
    whole: str | None = None
    """The answer unabridged, of rows that were drawn for it."""
    false_claims: tuple[str, ...] | None = None
    """Of the claims in the answer that can be checked (A-84) those that do not hold; None: there is no such claim."""


def own_samples(evaluation: Evaluation, folder: str) -> Iterator[Sample]:
    """The samples of the evaluation's tasks and split, in the order in which they were written; of answers in words,
    those whose key is the evaluation's, as a folder may hold answers of other settings too. Empty without a file.

    Raises:
        DataError: a line of the samples is not one.
    """
    url = join(folder, SAMPLES_FILE)
    if not exists(url):
        return
    fingerprints = {result.dataset: _fingerprint(result.dataset) for result in evaluation.tasks}
    for sample in read_samples(url):
        if sample.dataset not in fingerprints or sample.split != evaluation.settings["split"]:
            continue
        if sample.mode == "scores" or (
            sample.replica < evaluation.settings.get("replicas", 1)
            and sample.key == _key(evaluation, fingerprints[sample.dataset], sample)
        ):
            yield sample


def read_answers(evaluation: Evaluation, folder: str) -> dict[str, list[Answered]]:
    """The rows of every task, by data set, in the order in which they were first written; empty without a file.

    Of several scores of one row the last counts. A task whose answers do not give the results' rows and values is left
    out.

    Raises:
        DataError: a line of the samples is not one.
    """
    results = {result.dataset: result for result in evaluation.tasks}
    readers = {name: _Reader.of(name, result.measurement.n) for name, result in results.items()}
    texts: dict[str, dict[str, dict[int, Answered]]] = {name: {} for name in results}
    scored: dict[str, dict[str, Answered]] = {name: {} for name in results}
    for sample in own_samples(evaluation, folder):
        read = readers[sample.dataset].read(sample)
        if sample.mode == "scores":
            scored[sample.dataset][sample.id] = read
        else:
            texts[sample.dataset].setdefault(sample.id, {})[sample.replica] = read
    found = {}
    for name, result in results.items():
        task = readers[name].task
        rows = list(scored[name].values())
        if result.styles:
            voted = [_voted(task, replicas) for replicas in texts[name].values()]
            rows = [replace(row, scores=scored[name].get(row.id, row).scores) for row in voted]
        elif rows:
            rows = _scored_alone(task, rows)
        if rows and _gives(task, rows, result):
            found[name] = rows
    return found


@dataclass(frozen=True)
class _Reader:
    """What is needed of a task to read its samples."""

    task: Task
    strict: Parser
    official: Parser
    share: float
    """Of the rows, whose answers are kept whole."""

    @classmethod
    def of(cls, name: str, rows: int) -> "_Reader":
        task = dataset(name).task
        assert task is not None, f"{name} has no task"
        return cls(task, parser(task), parser(task, style="official"), WHOLE / max(1, rows))

    def read(self, sample: Sample) -> Answered:
        told = sample.model_output
        molecules = {f"{place}": sequence for place, (_, sequence) in enumerate(_MOLECULE.findall(sample.input))}
        claims = check(told, molecules) if told is not None else []
        return Answered(
            id=sample.id,
            label=sample.reference or "" if self.task.label.kind == "generation" else sample.label,
            strict=None if told is None else self.strict(told),
            official=None if told is None else self.official(told),
            scores=sample.scores,
            asked=clipped(_MOLECULE.sub(_shortened, sample.input)),
            told=None if told is None else clipped(told),
            error=sample.error,
            group=sample.group,
            whole=told if choose(sample.id, 0, "whole") < self.share else None,
            false_claims=tuple(claim.text for claim in claims if not claim.holds) if claims else None,
        )


def _fingerprint(name: str) -> str:
    return fingerprint(dataset(name).model_dump(mode="json"))


def _key(evaluation: Evaluation, task: str, sample: Sample) -> str:
    """The key of an answer in words of this evaluation."""
    settings, asked = evaluation.settings, sample.input
    if settings["style"] == "closed_llm":
        told = [{"role": "system", "content": CLOSED_LLM_SYSTEM_PROMPT}, {"role": "user", "content": asked}]
    else:
        told = messages(settings["prompt"] if settings["style"] == "chat" else "none", asked)
    model, adapter = evaluation.model_fingerprint, evaluation.adapter_fingerprint
    whole = model if adapter is None else fingerprint([model, adapter])
    return sample_key(task, sample.id, whole, told, settings["decoding"], sample.replica)


def _voted(task: Task, replicas: Mapping[int, Answered]) -> Answered:
    """One row of its replicas: their vote, told in the words of the first that says it."""
    several = [replicas[number] for number in sorted(replicas)]
    if len(several) == 1:
        return several[0]
    strict = vote(task, [row.strict for row in several])
    shown = next((row for row in several if row.strict == strict), several[0])
    return replace(shown, strict=strict, official=vote(task, [row.official for row in several]))


def _gives(task: Task, rows: Sequence[Answered], result: TaskResult) -> bool:
    """Whether the results follow from these answers."""
    expected = result.styles.get("strict", result.scored)
    if expected is None or expected.n != len(rows):
        return False
    labels, told = [row.label for row in rows], [row.strict for row in rows]
    scores = None if result.styles else score_table(rows)
    value = measure(task, labels, told, style=expected.style, scores=scores, seed=0, resamples=0).value.value
    return np.isclose(value, expected.value.value, rtol=1e-9, atol=1e-9, equal_nan=True).item()


def _scored_alone(task: Task, rows: list[Answered]) -> list[Answered]:
    told = label_of_scores(task, rows)
    return [
        replace(row, strict=value, told=None if row.scores is None else _UNSAID)
        for row, value in zip(rows, told, strict=True)
    ]


def label_of_scores(task: Task, rows: Sequence[Answered]) -> list[Prediction]:
    """The label that each row's scores speak for; None where it was not scored."""
    table = score_table(rows)
    return [None] * len(rows) if table is None else predictions_of(task, table)


def score_table(rows: Sequence[Answered]) -> Floats | None:
    """float64 [rows, classes or outputs], nan where a row was not scored; None where none was."""
    width = max((len(row.scores) for row in rows if row.scores is not None), default=0)
    blank = (math.nan,) * width
    return np.array([row.scores or blank for row in rows], dtype=np.float64) if width else None


def _shortened(match: re.Match[str]) -> str:
    kind, sequence = match[1], match[2]
    if len(sequence) > _SHOWN_SEQUENCE:
        half = _SHOWN_SEQUENCE // 2
        sequence = f"{sequence[:half]}…({len(sequence)})…{sequence[-half:]}"
    return f"<{kind}>{sequence}</{kind}>"


def clipped(text: str) -> str:
    """The text, no longer than is shown."""
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"
