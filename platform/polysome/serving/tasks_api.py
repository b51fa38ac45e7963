"""`GET /v1/tasks`: the tasks that can be asked, what each takes and tells, and how good the model was found at it."""

from __future__ import annotations

import asyncio
import random
import re
from functools import cache
from typing import Any, Literal

from fastapi import APIRouter

from polysome.config import Config
from polysome.data.clean import ALPHABETS, PLAIN
from polysome.evaluation.results import TaskResult
from polysome.serving.calibrations import Calibrations
from polysome.serving.prediction import is_predictable
from polysome.specs import (
    BinaryLabel,
    Dataset,
    Molecule,
    MoleculeType,
    MulticlassLabel,
    RegressionLabel,
    dataset,
    names,
)

_EXAMPLE_LETTERS = 60


class MoleculeCard(Config):
    """One molecule of a task's records."""

    role: str
    type: MoleculeType
    minimum_length: int
    maximum_length: int
    alphabet: str
    """Letters that are taken; lower case too, and T in RNA."""


class Measured(Config):
    """How good the model was found on rows that it was not trained on."""

    metric: str
    value: float
    """Raw: -1 to 1 or 0 to 1."""
    low: float | None
    high: float | None
    """Bounds of its 95 % confidence interval."""
    rows: int
    evaluation: str
    """Name of the evaluation; it asked `asked`."""
    asked: str
    """The base model, or the fingerprint of an adapter."""


class TaskCard(Config):
    """One task."""

    name: str
    """As requests name it."""
    title: str
    question: str
    kind: str
    """`binary`, `multiclass` or `regression`."""
    labels: list[str] | None
    """Null for a regression."""
    minimum: float | None
    maximum: float | None
    """Of a regression's numbers, where they are declared."""
    molecules: list[MoleculeCard]
    examples: list[dict[str, str]]
    """Records to try, a sequence for each role."""
    examples_from: Literal["evaluation", "random"]
    """Evaluated rows; or random letters, which show the shape of a record and mean nothing."""
    measured: Measured | None


def router(calibrations: Calibrations) -> APIRouter:
    """The route of one gateway."""
    routes = APIRouter()

    @cache
    def cards() -> list[TaskCard]:
        specs = [spec for spec in map(dataset, names()) if is_predictable(spec)]
        found = [_card(spec, calibrations) for spec in specs]
        return sorted(found, key=lambda card: (card.measured is None, card.title))

    @routes.get("/v1/tasks")
    async def tasks() -> dict[str, str | list[TaskCard]]:
        """The tasks that can be asked, evaluated ones first."""
        return {"object": "list", "data": await asyncio.to_thread(cards)}

    return routes


def _card(spec: Dataset, calibrations: Calibrations) -> TaskCard:
    assert spec.task is not None
    label, result = spec.task.label, calibrations.result(spec)
    number = label if isinstance(label, RegressionLabel) else None
    seen = {profile.role: profile.example for profile in result.profiles} if result else {}
    example = seen or {molecule.role: _random(spec.name, molecule) for molecule in spec.molecules}
    return TaskCard(
        name=spec.name,
        title=spec.task.title,
        question=re.sub(r"\{\w+\}\s*", "", spec.task.templates.questions[0]).strip(),
        kind=label.kind,
        labels=_labels(label),
        minimum=number.minimum if number else None,
        maximum=number.maximum if number else None,
        molecules=[
            MoleculeCard(
                role=molecule.role,
                type=molecule.type,
                minimum_length=molecule.minimum_length,
                maximum_length=molecule.maximum_length,
                alphabet=(PLAIN if molecule.ambiguous == "refuse" else ALPHABETS)[molecule.type],
            )
            for molecule in spec.molecules
        ],
        examples=[example],
        examples_from="evaluation" if seen else "random",
        measured=_measured(result, calibrations) if result else None,
    )


def _labels(label: Any) -> list[str] | None:
    if isinstance(label, BinaryLabel):
        return ["yes", "no"]
    return label.classes if isinstance(label, MulticlassLabel) else None


def _measured(result: TaskResult, calibrations: Calibrations) -> Measured:
    assert calibrations.evaluation is not None
    # Predictions of classes go by scores, numbers are read in words.
    found = result.measurement
    if result.scored is not None and result.interval is None and result.calibration is not None:
        found = result.scored
    low, high = (None if bound != bound else bound for bound in (found.value.low, found.value.high))
    return Measured(
        metric=found.metric,
        value=found.value.value,
        low=low,
        high=high,
        rows=found.n,
        evaluation=calibrations.evaluation.name,
        asked=calibrations.evaluation.adapter_fingerprint or "base",
    )


def _random(task: str, molecule: Molecule) -> str:
    draw = random.Random(f"{task}/{molecule.role}")
    length = min(max(_EXAMPLE_LETTERS, molecule.minimum_length), molecule.maximum_length)
    return "".join(draw.choices(PLAIN[molecule.type].removesuffix("OU"), k=length))
