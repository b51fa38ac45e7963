"""Declared tasks asked of a model: sequences in, a label with its probability or a number out for each record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from polysome.config import Config, ConfigurationError, DataError
from polysome.data.clean import Refused, clean
from polysome.data.render import messages, question
from polysome.evaluation.choices import Choices, Unscored, choices
from polysome.evaluation.intervals import Interval, number
from polysome.evaluation.parsers import parser
from polysome.inference.asynchronous import Delta
from polysome.inference.engine import Prompt as Asked
from polysome.inference.engine import Sampling, Scores
from polysome.serving.calibrations import UNKNOWN, Evidence
from polysome.serving.calls import Target
from polysome.serving.concurrently import together, whole
from polysome.serving.warnings import Caution, of_answer, of_record
from polysome.specs import BinaryLabel, Dataset, MulticlassLabel, Prompt, RegressionLabel, dataset, names

RawRecord = str | dict[str, str]
"""One sequence, or for each role of the task its sequence."""


class Backend(Protocol):
    """What of a `Pool` a prediction needs."""

    def generate(
        self, prompt: Asked, sampling: Sampling, target: Target, *, stream: bool = True
    ) -> AsyncIterator[Delta]:
        """See `Pool.generate`."""
        ...

    async def score(self, prompt: Asked, choices: Sequence[str], target: Target) -> Scores:
        """See `Pool.score`."""
        ...


@dataclass(frozen=True)
class Record:
    """One record to ask about."""

    index: int
    """Position in the request."""
    id: str
    raw: RawRecord
    """As it came."""
    sequences: tuple[str, ...]
    """Cleaned, in the order of the spec's molecules."""


class Prediction(Config):
    """The answer about one record."""

    index: int
    """Position of the record in the request."""
    id: str
    """The record's name; its number, counted from 1, where it has none."""
    label: str | None = None
    """Classification: the most probable label. Null for a regression."""
    probability: float | None = None
    """Of `label`, by the model, among the declared labels."""
    probabilities: dict[str, float] | None = None
    """Of every label."""
    value: float | None = None
    """Regression: the number in the answer; null when it holds none that the label's declared range allows."""
    interval: tuple[float, float] | None = None
    """Regression: holds the label for nine in ten records that are drawn as the evaluated ones were; null where no
    evaluation tells."""
    calibrated: bool = False
    """Whether probabilities were fitted to frequencies on dev rows, or an interval is told."""
    text: str
    """The model's answer in its own words, greedy."""
    warnings: list[Caution] = []


class Answered(Config):
    """What was asked, and who answers."""

    object: str = "list"
    task: str
    model: str
    """Name of the base model."""
    adapter: str | None
    """`NAME@VERSION`; null where the base answers alone."""
    system_fingerprint: str
    """Of the weights that answer."""
    calibration: str
    """How probabilities or intervals were fitted and how good they are; or why there are none."""


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
        return _require_predictable(spec)
    bearing = [spec for spec in map(dataset, declared) if spec.task is not None and spec.task.name == name]
    if len(bearing) != 1:
        what = f"no task {name!r}" if not bearing else f"task {name!r} stands in {', '.join(s.name for s in bearing)}"
        raise ConfigurationError(what, where="task", fix=_known_tasks())
    return _require_predictable(bearing[0])


def is_predictable(spec: Dataset) -> bool:
    """Whether a data set has a task whose label can be predicted here."""
    return spec.task is not None and isinstance(spec.task.label, BinaryLabel | MulticlassLabel | RegressionLabel)


def _require_predictable(spec: Dataset) -> Dataset:
    assert spec.task is not None
    if not is_predictable(spec):
        raise ConfigurationError(
            f"{spec.name!r} has a {spec.task.label.kind} label, which cannot be predicted here yet",
            where="task",
            fix="ask it in words, POST /v1/chat/completions",
        )
    return spec


def _known_tasks() -> str:
    return f"choose one of: {', '.join(name for name in names() if is_predictable(dataset(name)))}"


def read_record(spec: Dataset, raw: RawRecord, *, where: str, longest: int | None = None) -> list[str]:
    """The sequences of one record after the rules of the spec's molecules, in their order.

    Args:
        longest: most characters of one sequence, whatever the task takes.

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
        if longest is not None and len(raw[molecule.role]) > longest:
            raise DataError(
                f"{len(raw[molecule.role])} characters are above the limit of {longest}",
                where=field,
                fix="cut the sequence, or choose a window",
            )
        try:
            sequences.append(clean(raw[molecule.role], molecule))
        except Refused as refusal:
            bounds = f"{molecule.minimum_length} to {molecule.maximum_length}"
            raise DataError(
                str(refusal), where=field, fix=f"task {spec.name!r} takes {molecule.type} of {bounds} letters"
            ) from refusal
    return sequences


@dataclass(frozen=True)
class Predictor:
    """One task, asked of a model."""

    spec: Dataset
    backend: Backend
    prompt: Prompt
    max_new_tokens: int
    evidence: Evidence = UNKNOWN

    @cached_property
    def closed(self) -> Choices | None:
        """The answers to score; None for a regression, whose number is read in the words of the answer.

        Raises:
            ConfigurationError: the task has more classes than are scored.
        """
        assert self.spec.task is not None
        if isinstance(self.spec.task.label, RegressionLabel):
            return None
        found = choices(self.spec, None, seed=0)
        if isinstance(found, Unscored):
            raise ConfigurationError(
                f"{self.spec.name!r} has no probabilities: {found.reason}",
                where="task",
                fix="ask it in words, POST /v1/chat/completions",
            )
        return found

    async def predict(self, records: Sequence[Record], target: Target) -> list[Prediction]:
        """Ask all at once, so that the backend can batch them; the first failure ends the rest. See `predict_one`."""
        return await together(self.predict_one(record, target) for record in records)

    async def predict_one(self, record: Record, target: Target) -> Prediction:
        """Ask the task of one record.

        A class's probability is the softmax of the scores that an evaluation with the mode `scores` goes by, without
        prior correction (`polysome.evaluation.choices`), through the fit of the evidence where there is one.

        Raises:
            ConfigurationError: the task has more classes than are scored.
            DataError: the record does not fit into the model's context.
        """
        assert self.spec.task is not None
        conversation = messages(self.prompt, question(self.spec, record.sequences))
        asked = self.backend.generate(conversation, Sampling(self.max_new_tokens), target, stream=False)
        odd = of_record(self.spec, record.raw, record.sequences, self.evidence.profiles)
        if self.closed is None:
            generation = await whole(asked)
            value = read_number(self.spec, generation.text)
            interval = self._interval(value, self.evidence.interval)
            return Prediction(
                index=record.index,
                id=record.id,
                value=value,
                interval=interval,
                calibrated=interval is not None,
                text=generation.text,
                warnings=odd + of_answer(self.spec, generation.text, None, value),
            )
        scoring = self.backend.score(conversation, self.closed.texts, target)
        answered: list[Any] = await together([whole(asked), scoring])
        generation, scores = answered
        shares = self._shares(self.closed, scores)
        label = max(shares, key=shares.__getitem__)
        return Prediction(
            index=record.index,
            id=record.id,
            label=label,
            probability=shares[label],
            probabilities=shares,
            calibrated=self.evidence.calibration is not None,
            text=generation.text,
            warnings=odd + of_answer(self.spec, generation.text, label, None),
        )

    def _shares(self, closed: Choices, scores: Scores) -> dict[str, float]:
        from scipy.special import softmax

        assert self.spec.task is not None
        likelihoods = np.array([closed.read(scores.sums)])
        fit = self.evidence.calibration
        found = softmax(likelihoods, axis=1) if fit is None else fit.probabilities(likelihoods)
        return dict(zip(map(self.spec.task.label.encode, closed.values), found[0].tolist(), strict=True))

    def _interval(self, value: float | None, band: Interval | None) -> tuple[float, float] | None:
        """The interval within what the label may be."""
        if value is None or band is None:
            return None
        assert self.spec.task is not None
        assert isinstance(self.spec.task.label, RegressionLabel)
        low, high = value - band.half_width, value + band.half_width
        least, most = self.spec.task.label.minimum, self.spec.task.label.maximum
        return (low if least is None else max(low, least), high if most is None else min(high, most))


def read_number(spec: Dataset, text: str) -> float | None:
    """The number that the strict parser reads in an answer; None for none, or one out of the label's range."""
    assert spec.task is not None
    assert isinstance(spec.task.label, RegressionLabel)
    return number(spec.task.label, parser(spec.task)(text))
