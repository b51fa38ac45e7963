"""Declared tasks asked of a model: sequences in, a label with its probability or a number out for each record."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from polysome.config import Config, ConfigurationError, DataError
from polysome.data.clean import Refused, clean
from polysome.data.render import messages, question
from polysome.evaluation.choices import Choices, Unscored, choices
from polysome.evaluation.parsers import parser
from polysome.inference.engine import Conversation, Generation, Scores
from polysome.specs import BinaryLabel, Dataset, MulticlassLabel, Prompt, RegressionLabel, dataset, names

RawRecord = str | dict[str, str]
"""One sequence, or for each role of the task its sequence."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn: `temperature` 0 is greedy; `seed` makes a sampled answer repeatable."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class Backend(Protocol):
    """Whatever answers: a pool of replicas behind a handle, or an engine in this process."""

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        """One answer."""
        ...

    async def score(self, conversation: Conversation, choices: Sequence[str]) -> Scores:
        """Log-likelihood of each choice."""
        ...


class Prediction(Config):
    """The answer about one record."""

    index: int
    """Position of the record in the request."""
    label: str | None = None
    """Classification: the most probable label. Null for a regression."""
    probability: float | None = None
    """Of `label`, by the model, among the declared labels; not calibrated."""
    probabilities: dict[str, float] | None = None
    """Of every label."""
    value: float | None = None
    """Regression: the number in the answer; null when it holds none that the label's declared range allows."""
    text: str
    """The model's answer in its own words, greedy."""


def task_spec(name: str) -> Dataset:
    """The data set that declares task `name`: by the data set's name, or by the task's where one alone bears it.

    Raises:
        ConfigurationError: no such task, several, or a corpus without one.
    """
    declared = names()
    if name in declared:
        spec = dataset(name)
        if spec.task is None:
            raise ConfigurationError(
                f"{name!r} is an unlabelled corpus, nothing can be asked about it", where="task", fix=_known_tasks()
            )
        return _predictable(spec)
    bearing = [spec for spec in map(dataset, declared) if spec.task is not None and spec.task.name == name]
    if len(bearing) != 1:
        what = f"no task {name!r}" if not bearing else f"task {name!r} stands in {', '.join(s.name for s in bearing)}"
        raise ConfigurationError(what, where="task", fix=_known_tasks())
    return _predictable(bearing[0])


def _predictable(spec: Dataset) -> Dataset:
    assert spec.task is not None
    if not isinstance(spec.task.label, BinaryLabel | MulticlassLabel | RegressionLabel):
        raise ConfigurationError(
            f"{spec.name!r} has a {spec.task.label.kind} label, which cannot be predicted here yet",
            where="task",
            fix="ask it in words, POST /v1/chat/completions",
        )
    return spec


def _known_tasks() -> str:
    return f"choose one of: {', '.join(name for name in names() if dataset(name).task is not None)}"


def read_record(spec: Dataset, raw: RawRecord, *, where: str) -> list[str]:
    """The cleaned sequences of one record, in the order of the spec's molecules.

    Raises:
        DataError: a role is missing or unknown, or a sequence breaks the molecule's alphabet or length.
    """
    roles = [molecule.role for molecule in spec.molecules]
    if isinstance(raw, str):
        if len(roles) != 1:
            raise DataError(
                f"task {spec.name!r} needs {len(roles)} sequences per record",
                where=where,
                fix=f"give {', '.join(roles)}",
            )
        raw = {roles[0]: raw}
    if set(raw) != set(roles):
        raise DataError(
            f"roles {sorted(raw)} given, task {spec.name!r} needs {sorted(roles)}",
            where=where,
            fix="name each role once",
        )
    sequences = []
    for molecule in spec.molecules:
        field = where if len(roles) == 1 else f"{where}.{molecule.role}"
        try:
            sequence = clean(raw[molecule.role], molecule.type)
        except Refused as refusal:
            raise DataError(str(refusal), where=field, fix=f"give a {molecule.type} sequence") from refusal
        if not molecule.minimum_length <= len(sequence) <= molecule.maximum_length:
            bounds = f"{molecule.minimum_length} to {molecule.maximum_length}"
            raise DataError(
                f"{len(sequence)} characters, task {spec.name!r} takes {bounds}",
                where=field,
                fix="cut or choose a window",
            )
        sequences.append(sequence)
    return sequences


async def predict(
    spec: Dataset,
    records: Sequence[list[str]],
    backend: Backend,
    *,
    prompt: Prompt,
    max_new_tokens: int,
) -> list[Prediction]:
    """Ask the task of every record, all at once, so that the backend can batch them; the first failure ends the rest.

    A class's probability is the softmax of the scores that an evaluation with the mode `scores` goes by, without prior
    correction (`polysome.evaluation.choices`). It is not calibrated.

    Args:
        records: cleaned sequences as `read_record` gives them.

    Raises:
        ConfigurationError: the task has more classes than are scored.
        DataError: a record does not fit into the model's context.
    """
    sampling, closed = Sampling(max_new_tokens), _closed(spec)
    return await _together(
        _predict_one(spec, index, sequences, backend, prompt, sampling, closed)
        for index, sequences in enumerate(records)
    )


async def _together(work: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of all, in order. The first failure cancels the others, so that nobody works for nothing."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _predict_one(
    spec: Dataset,
    index: int,
    sequences: list[str],
    backend: Backend,
    prompt: Prompt,
    sampling: Sampling,
    closed: Choices | None,
) -> Prediction:
    from scipy.special import softmax

    assert spec.task is not None
    conversation = messages(prompt, question(spec, sequences))
    if closed is None:
        generation = await backend.generate(conversation, sampling)
        return Prediction(index=index, value=read_number(spec, generation.text), text=generation.text)
    generation, scores = await _together(
        [backend.generate(conversation, sampling), backend.score(conversation, closed.texts)]
    )
    likelihoods = softmax(closed.read(scores.sums)).tolist()
    shares = dict(zip(map(spec.task.label.encode, closed.values), likelihoods, strict=True))
    label = max(shares, key=shares.__getitem__)
    return Prediction(index=index, label=label, probability=shares[label], probabilities=shares, text=generation.text)


def _closed(spec: Dataset) -> Choices | None:
    """The answers to score; None for a regression, whose number is read in the words of the answer."""
    assert spec.task is not None
    if isinstance(spec.task.label, RegressionLabel):
        return None
    found = choices(spec, None, seed=0)
    if isinstance(found, Unscored):
        raise ConfigurationError(
            f"{spec.name!r} has no probabilities: {found.reason}",
            where="task",
            fix="ask it in words, POST /v1/chat/completions",
        )
    return found


def read_number(spec: Dataset, text: str) -> float | None:
    """The number that the strict parser reads in an answer; None for none, or one out of the label's range."""
    assert spec.task is not None
    assert isinstance(spec.task.label, RegressionLabel)
    told = parser(spec.task)(text)
    value = told[0] if isinstance(told, tuple) and told else None
    low, high = spec.task.label.minimum, spec.task.label.maximum
    if value is None or (low is not None and value < low) or (high is not None and value > high):
        return None
    return value
