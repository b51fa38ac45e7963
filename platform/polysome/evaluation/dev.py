"""Dev evaluation: questions of dev splits read once, asked of a model while it trains, and measured as in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polysome.config import ConfigurationError
from polysome.data.examples import read_examples
from polysome.data.render import choose, choose_question_template, messages, question
from polysome.evaluation import parsers
from polysome.evaluation.actors import ask
from polysome.evaluation.measure import measure
from polysome.inference.engine import Conversation, Engine, Generation
from polysome.specs import (
    Dataset,
    GenerationLabel,
    MultiRegressionLabel,
    Prompt,
    RegressionLabel,
    Split,
    Value,
    dataset,
)

Answer = tuple[int, str | None]
"""Number of a question and the answer's text; None where the engine refused the question."""


@dataclass(frozen=True)
class DevTask:
    """The questions of one task.

    Attributes:
        labels: decoded; of a generation the text.
    """

    spec: Dataset
    conversations: tuple[Conversation, ...]
    labels: tuple[Value | str, ...]


@dataclass(frozen=True)
class DevEvaluation:
    """What to ask; it holds all questions, so that it can be pickled to workers that know no data set.

    On one process it is a function of an engine. Several share the questions: each calls `ask` with its rank, and one
    calls `measure` with what all of them got. Answers are greedy, and the outcome does not depend on who asked what.
    """

    tasks: tuple[DevTask, ...]
    max_new_tokens: int

    @classmethod
    def of(
        cls,
        tasks: Sequence[str],
        *,
        split: Split = "dev",
        limit: int = 64,
        max_new_tokens: int = 64,
        seed: int = 42,
        prompt: Prompt = "concise",
    ) -> DevEvaluation:
        """Read and render the questions.

        Args:
            tasks: names of data sets that declare a task.
            limit: most examples per task, drawn from the whole split by `seed`, since files may be sorted by label.
            prompt: system prompt.

        Raises:
            ConfigurationError: a task is not declared.
            DataError: a data set's files are missing or not what they should be.
        """
        return cls(tuple(_dev_task(name, split, limit, seed, prompt) for name in tasks), max_new_tokens)

    def __call__(self, engine: Engine) -> dict[str, dict[str, Any]]:
        """Ask all and measure."""
        return self.measure([self.ask(engine)])

    def ask(self, engine: Engine, rank: int = 0, world_size: int = 1) -> list[Answer]:
        """Answers to every `world_size`-th question of all tasks, from the `rank`-th on."""
        conversations = [conversation for task in self.tasks for conversation in task.conversations]
        mine = range(rank, len(conversations), world_size)
        answers = ask(engine, [conversations[number] for number in mine], self.max_new_tokens) if mine else []
        return [
            (number, answer.text if isinstance(answer, Generation) else None)
            for number, answer in zip(mine, answers, strict=True)
        ]

    def measure(self, parts: Iterable[Sequence[Answer]]) -> dict[str, dict[str, Any]]:
        """Measure what all workers got.

        Args:
            parts: of every rank what its `ask` returned.

        Returns:
            For every task, by data set name: `metric`, `value` (raw, -1 to 1 or 0 to 1), `n`, `parse_rate`,
            `dominant_answer_share` (of the most frequent answer, what says nothing counted as one answer) and
            `prediction_spread`: the standard deviation of the predicted numbers over that of the labels (of several
            outputs the mean), or the entropy of the predicted classes, sets or texts over that of the labels; 0 when
            the model says one thing whatever it is asked, None when the labels are all the same.

        Raises:
            ValueError: a question was answered twice or not at all.
        """
        answered = [answer for part in parts for answer in part]
        texts = dict(answered)
        count = sum(len(task.labels) for task in self.tasks)
        if len(answered) != count or set(texts) != set(range(count)):
            raise ValueError(f"{len(answered)} answers to {len(texts)} of {count} questions: each needs exactly one")
        results, first = {}, 0
        for task in self.tasks:
            last = first + len(task.labels)
            results[task.spec.name] = _measured(task, [texts[number] for number in range(first, last)])
            first = last
        return results


def _dev_task(name: str, split: Split, limit: int, seed: int, prompt: Prompt) -> DevTask:
    spec = dataset(name)
    if spec.task is None:
        raise ConfigurationError(
            f"data set {name!r} is an unlabelled corpus: there is nothing to ask",
            where="dev.tasks",
            fix="name data sets that declare a task, or name a prepared folder in dev.data",
        )
    examples = read_examples(spec, split)
    draws = [choose(example_id, seed, "dev") for example_id in examples["id"].to_pylist()]
    chosen = np.sort(np.argsort(draws, kind="stable")[:limit])
    text = isinstance(spec.task.label, GenerationLabel)
    conversations: list[Conversation] = []
    labels: list[Value | str] = []
    for example in examples.select(["id", "sequences", "label", "answer"]).take(chosen).to_pylist():
        template = choose_question_template(spec, example["id"], seed)
        conversations.append(messages(prompt, question(spec, example["sequences"], template=template)))
        labels.append(example["answer"] if text else tuple(map(float, example["label"])))
    return DevTask(spec, tuple(conversations), tuple(labels))


def _measured(task: DevTask, texts: Sequence[str | None]) -> dict[str, Any]:
    assert task.spec.task is not None
    parse = parsers.parser(task.spec.task)
    parsed = [None if text is None else parse(text) for text in texts]
    # Nobody reads an interval of a few examples in the middle of a run: no resampling.
    measurement = measure(task.spec.task, task.labels, parsed, seed=0, resamples=0)
    told = [value for value in parsed if value is not None]
    numeric = isinstance(task.spec.task.label, RegressionLabel | MultiRegressionLabel)
    return {
        "metric": measurement.metric,
        "value": measurement.value.value,
        "n": len(task.labels),
        "parse_rate": len(told) / len(task.labels),
        "dominant_answer_share": max(Counter(parsed).values()) / len(task.labels),
        "prediction_spread": _number_spread(task.labels, told) if numeric else _entropy_spread(task.labels, told),
    }


def _number_spread(labels: Sequence[Any], told: Sequence[Any]) -> float | None:
    varied = np.std(np.array(labels), axis=0)
    if not varied.any():
        return None
    spread = np.std(np.array(told), axis=0) if told else np.zeros_like(varied)
    return float((spread[varied > 0] / varied[varied > 0]).mean())


def _entropy_spread(labels: Sequence[Any], told: Sequence[Any]) -> float | None:
    varied = _entropy(labels)
    return _entropy(told) / varied if varied else None


def _entropy(values: Sequence[Any]) -> float:
    shares = np.array(list(Counter(values).values())) / max(len(values), 1)
    return float(-(shares * np.log(shares)).sum())
