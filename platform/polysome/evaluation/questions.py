"""Questions: a recipe in; everything that will be asked, rendered and keyed, out, checked before anything is asked."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polysome.config import ConfigurationError, DataError
from polysome.data.render import Style as TextStyle
from polysome.data.render import check_style, choose_question_template, question
from polysome.evaluation.choices import Choices, Unscored, choices
from polysome.evaluation.config import EvaluationConfig, Mode
from polysome.evaluation.prompts import conversation
from polysome.evaluation.reading import Read, labels_of, leakage_groups, read_rows
from polysome.inference.engine import Conversation
from polysome.specs import Dataset, Split, Task, Value, dataset
from polysome.storage import fingerprint, join

logger = logging.getLogger(__name__)

GROUPS_FILE = "groups.json"


@dataclass(frozen=True)
class Question:
    """One example asked in one mode, rendered and keyed."""

    key: str
    id: str
    spec: Dataset
    split: Split
    mode: Mode
    subset: str | None
    label: Value
    reference: str | None
    group: int | None
    text: str
    conversation: Conversation
    blank: Conversation | None
    """The same question without its molecules, where scores are told relative to it."""
    replica: int = 0
    """Which of several answers in words to the same question it asks for."""


@dataclass(frozen=True)
class PlannedTask:
    """All that is known of a task before it is asked.

    Attributes:
        rows: those to evaluate.
        groups: int64 [rows], leakage group of each.
        choices: the answers to score; why there are none; None where scores are not asked for.
        questions: of the evaluated rows, by mode and in their order; in words those of all replicas of a row together.
        calibration: of dev rows, in the mode `scores` for class probabilities, in words for the interval of a
            regression; why there are none.
        notes: what a reader must know about the task's rows.
    """

    spec: Dataset
    fingerprint: str
    rows: Read
    groups: NDArray[np.int64]
    choices: Choices | Unscored | None
    questions: dict[Mode, list[Question]] = field(default_factory=dict)
    calibration: list[Question] | str = ""
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """The spec's task."""
        assert self.spec.task is not None
        return self.spec.task

    @property
    def labels(self) -> list[Value | str]:
        """The decoded label of each row; the text of a generation."""
        return labels_of(self.spec, self.rows.table)

    @property
    def asked(self) -> list[Question]:
        """All questions of the task."""
        own = [item for items in self.questions.values() for item in items]
        return own + (self.calibration if isinstance(self.calibration, list) else [])


def task_specs(config: EvaluationConfig) -> list[Dataset]:
    """The specs of the recipe's tasks.

    Raises:
        ConfigurationError: a task is not declared, or a data set has none.
        DataError: a data set does not declare the split or a subset.
    """
    specs = []
    for name in config.tasks:
        spec = dataset(name)
        if spec.task is None:
            raise ConfigurationError(
                f"data set {name!r} is an unlabelled corpus: there is nothing to ask",
                where=f"recipe {config.name}: tasks",
                fix="name data sets that declare a task",
            )
        spec.files(config.split, config.subsets)
        check_style(spec, TextStyle(wording=config.wording_of(name)))
        specs.append(spec)
    return specs


def plan(
    config: EvaluationConfig, model: str, folder: str, *, announce: Callable[[str], None] = logger.info
) -> list[PlannedTask]:
    """Read and render all that the recipe asks.

    Args:
        model: fingerprint of the model and its adapter.
        folder: keeps the leakage groups.

    Raises:
        ConfigurationError, DataError: see `task_specs` and `read_rows`; a split has no rows.
    """
    planned = []
    for spec in task_specs(config):
        task = _planned(spec, config, model, folder)
        announce(f"{spec.name}: {task.rows.table.num_rows} rows, {len(task.asked)} questions")
        planned.append(task)
    return planned


def sample_key(
    task: str, example_id: str, model: str, asked: Conversation, answered: dict[str, Any], replica: int = 0
) -> str:
    """Hex SHA-256 of the example and of all that its answer depends on.

    Args:
        task, model: fingerprints.
        answered: decoding of a text, or answer set of scores.
    """
    if replica:
        answered = {**answered, "replica": replica}
    text = json.dumps([task, example_id, model, asked, answered], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _planned(spec: Dataset, config: EvaluationConfig, model: str, folder: str) -> PlannedTask:
    rows = read_rows(spec, config.split, subsets=config.subsets, limit=config.limit, seed=config.seed)
    if not rows.table.num_rows:
        raise DataError(
            f"split {config.split!r} of {spec.name!r} has no usable row",
            where=f"datasets_spec/{spec.name}.yaml",
            fix="mend the source, or leave the task out",
        )
    groups, method = leakage_groups(spec, rows.table, join(folder, GROUPS_FILE))
    notes = [*rows.notes, f"leakage groups: {int(groups.max()) + 1} among {len(groups)} rows ({method})"]
    closed = _closed(spec, config) if "scores" in config.modes else None
    planned = PlannedTask(spec, fingerprint(spec.model_dump(mode="json")), rows, groups, closed)
    asked: dict[Mode, list[Question]] = {}
    for mode in config.modes:
        if mode == "scores" and not isinstance(closed, Choices):
            assert closed is not None
            notes.append(f"not scored: {closed.reason}")
            continue
        asked[mode] = _questions(planned, config, model, rows, config.split, mode, groups)
    calibration = _calibration(planned, config, model, tuple(asked))
    if isinstance(calibration, str) and calibration:
        missing = "no interval" if planned.task.label.kind == "regression" else "not calibrated"
        notes.append(f"{missing}: {calibration}")
    return PlannedTask(spec, planned.fingerprint, rows, groups, closed, asked, calibration, tuple(notes))


def _closed(spec: Dataset, config: EvaluationConfig) -> Choices | Unscored:
    assert spec.task is not None
    training: Any = None
    if spec.task.label.kind in ("regression", "multi_regression"):
        if "train" not in spec.splits or config.split == "train":
            return Unscored("there are no training labels beside the evaluated rows to make a grid of numbers from")
        training = labels_of(spec, read_rows(spec, "train").table)
    return choices(spec, training, seed=config.seed)


def _calibration(
    planned: PlannedTask, config: EvaluationConfig, model: str, modes: tuple[Mode, ...]
) -> list[Question] | str:
    """Questions about dev rows, on which the calibration or the interval is fitted; or why there are none, which needs
    no words where the test rows are not asked in the mode that it is for."""
    spec = planned.spec
    kind = planned.task.label.kind
    mode: Mode = "text" if kind == "regression" else "scores"
    if mode not in modes:
        return ""
    if config.calibration_rows == 0:
        return "the recipe sets calibration_rows to 0"
    if kind not in ("binary", "multiclass", "regression"):
        return f"a {kind} label has no class probabilities"
    if mode == "text" and config.replicas > 1:
        return "the interval is one of single answers"
    if config.split == "dev":
        return "the dev split itself is evaluated"
    if "dev" not in spec.splits:
        return "the data set has no dev split"
    named = {file.subset for file in spec.splits["dev"]}
    subsets = [subset for subset in config.subsets or [] if subset in named] or None
    most = min(config.calibration_rows, config.limit or config.calibration_rows)
    rows = read_rows(spec, "dev", subsets=subsets, limit=most, seed=config.seed, purpose="calibration")
    return _questions(planned, config, model, rows, "dev", mode, None)


def _questions(
    planned: PlannedTask,
    config: EvaluationConfig,
    model: str,
    rows: Read,
    split: Split,
    mode: Mode,
    groups: NDArray[np.int64] | None,
) -> list[Question]:
    spec, task = planned.spec, planned.task
    answered = config.decoding
    if mode == "scores":
        assert isinstance(planned.choices, Choices)
        answered = {"choices": planned.choices.fingerprint, "prior_correction": config.prior_correction}
    wording = config.wording_of(spec.name)
    style = TextStyle(wording=wording)
    questions = []
    columns = ["id", "subset", "sequences", "label", "answer"]
    for row, example in enumerate(rows.table.select(columns).to_pylist()):
        template = choose_question_template(spec, example["id"], config.seed, wording=wording)

        def worded(
            sequences: list[str], template: int = template, subset: str | None = example["subset"]
        ) -> tuple[str, Conversation]:
            text = question(spec, sequences, template=template, tagged=config.tagged, style=style, subset=subset)
            asked = conversation(config.style, config.prompt, task, text)
            return asked[-1]["content"], asked

        text, asked = worded(example["sequences"])
        questions += [
            Question(
                key=sample_key(planned.fingerprint, example["id"], model, asked, answered, replica),
                id=example["id"],
                spec=spec,
                split=split,
                mode=mode,
                subset=example["subset"],
                label=tuple(example["label"] or ()),
                reference=example["answer"],
                group=None if groups is None else int(groups[row]),
                text=text,
                conversation=asked,
                blank=worded([""] * len(spec.molecules))[1] if mode == "scores" and config.prior_correction else None,
                replica=replica,
            )
            for replica in range(config.replicas if mode == "text" else 1)
        ]
    return questions
