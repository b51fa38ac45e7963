"""Examples to chat: seeded choice of templates and task tags, questions with places for molecules, answers."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polysome.config import ConfigurationError, DataError
from polysome.data.frame import ChatFrame, TagStyle, messages, sequence_spelling, spell, tagged_sequence
from polysome.data.reasoning import explain
from polysome.data.skeleton import (
    PLAIN,
    Skeleton,
    Style,
    TaskTag,
    Wording,
    check_style,
    questions,
    skeleton,
    task_of,
)
from polysome.specs import Dataset, GenerationLabel, MultiRegressionLabel, Prompt, Value

__all__ = [
    "PLAIN",
    "Block",
    "ChatFrame",
    "Chosen",
    "Skeleton",
    "Style",
    "TagStyle",
    "TaskTag",
    "Wording",
    "answer",
    "asked",
    "check_style",
    "choose",
    "choose_answer_template",
    "choose_question_template",
    "chosen",
    "messages",
    "question",
    "reasoning_answer",
    "render",
    "sequence_spelling",
    "spell",
    "tagged_sequence",
    "told",
    "wordings",
]


@dataclass(frozen=True)
class Chosen:
    """What was drawn for one example; the same again for the same id and seed, which is how template ids are kept.

    Attributes:
        question_template: index in the wording's questions; None where the question came with the record.
        answer_template: index in the label's pool; None where the answer came with the record.
        tagged: the question carries the task tag.
    """

    question_template: int | None
    answer_template: int | None
    tagged: bool


@dataclass(frozen=True)
class Block:
    """Rendered examples, each wording held once.

    Attributes:
        skeletons, answers: the different questions and answers of the block.
        skeleton_of, answer_of: int64 [examples], which of them an example has.
    """

    skeletons: list[Skeleton]
    skeleton_of: npt.NDArray[np.int64]
    answers: list[str]
    answer_of: npt.NDArray[np.int64]


def question(
    spec: Dataset,
    sequences: Sequence[str],
    *,
    template: int = 0,
    tagged: bool = False,
    style: Style = PLAIN,
    subset: str | None = None,
) -> str:
    """The user's message: question template `template` filled with the sequences, with the task tag if `tagged`."""
    example = {"sequences": sequences, "subset": subset}
    return skeleton(spec, example, template, tagged=tagged, style=style).fill(sequences)


def asked(spec: Dataset, example: Mapping[str, Any], chosen: Chosen, style: Style = PLAIN) -> str:
    """The user's message for an example (a row of EXAMPLES).

    Raises:
        DataError: the record's own question does not hold its molecules, or a conditioned question lacks its subset.
    """
    found = skeleton(spec, example, chosen.question_template, tagged=chosen.tagged, style=style)
    return found.fill(example["sequences"])


def answer(spec: Dataset, label: Value, template: int = 0) -> str:
    """The concise answer: template `template` of the label's pool, with the label written by its codec.

    Raises:
        ConfigurationError: the answers are generated text, which stands with the examples.
    """
    task = task_of(spec)
    if isinstance(task.label, GenerationLabel):
        raise ConfigurationError(
            f"the answers of {spec.name!r} are free text, which no template words",
            where=f"datasets_spec/{spec.name}.yaml",
            fix="take the example's own answer",
        )
    wording = task.templates.answers[task.label.pool(label)][template]
    if isinstance(task.label, MultiRegressionLabel):
        return wording.format_map(task.label.encode_each(label))
    return wording.format(label=task.label.encode(label))


def reasoning_answer(spec: Dataset, sequences: Sequence[str], label: Value) -> str:
    """The task's checkable steps worked out on the sequences, then the answer (A-81, A-84).

    Raises:
        ConfigurationError: the task declares no reasoning steps.
    """
    task = task_of(spec)
    if not task.reasoning:
        raise ConfigurationError(
            f"task {spec.name!r} has no reasoning steps",
            where=f"datasets_spec/{spec.name}.yaml",
            fix="declare task.reasoning, or use the concise prompt for this source",
        )
    by_role = {molecule.role: sequence for molecule, sequence in zip(spec.molecules, sequences, strict=True)}
    return f"{explain(task.reasoning, by_role)} Therefore the answer is {task.label.encode(label)}."


def told(spec: Dataset, example: Mapping[str, Any], chosen: Chosen, prompt: Prompt) -> str:
    """The assistant's message for an example (a row of EXAMPLES): the record's own, the worked-out one, or a template.

    Raises:
        DataError: the example has neither an answer nor a label.
    """
    if example.get("answer") is not None:
        return str(example["answer"])
    if example["label"] is None or chosen.answer_template is None:
        raise DataError(
            "the example has no answer and no label to word one from",
            where=str(example["id"]),
            fix=f"name the answer's column in datasets_spec/{spec.name}.yaml",
        )
    if prompt == "reasoning":
        return reasoning_answer(spec, example["sequences"], tuple(example["label"]))
    return answer(spec, tuple(example["label"]), chosen.answer_template)


def choose(example_id: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments: the same in every process and order."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{example_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def choose_question_template(spec: Dataset, example_id: str, seed: int, *, wording: Wording = "faithful") -> int:
    """Index of the question template for an example, seeded."""
    return int(choose(example_id, seed, "question") * len(questions(spec, wording)))


def choose_answer_template(spec: Dataset, label: Value, example_id: str, seed: int) -> int:
    """Index of the answer template within the label's pool, seeded."""
    task = task_of(spec)
    return int(choose(example_id, seed, "answer") * len(task.templates.answers[task.label.pool(label)]))


def chosen(spec: Dataset, example: Mapping[str, Any], seed: int, style: Style = PLAIN) -> Chosen:
    """What the seed draws for an example (a row of EXAMPLES): template ids, and whether the task tag is there."""
    draws = tuple(choose(str(example["id"]), seed, purpose) for purpose in _PURPOSES)
    return _chosen(spec, example.get("question"), example["label"], example.get("answer"), draws, style)


def render(examples: pa.Table, spec: Dataset, *, prompt: Prompt, seed: int, style: Style = PLAIN) -> Block:
    """Render a table of examples (schema EXAMPLES): for each what `asked` and `told` make of what is `chosen`.

    Raises:
        DataError: see `asked` and `told`.
    """
    examples = examples.combine_chunks()
    subsets, labels, questions, answers = (
        examples[name].to_pylist() for name in ("subset", "label", "question", "answer")
    )
    identities = examples["id"].to_pylist()
    draws = zip(*(_draw(identities, seed, purpose).tolist() for purpose in _PURPOSES), strict=True)
    skeletons: dict[object, int] = {}
    made: list[Skeleton] = []
    texts: dict[str, int] = {}
    worded: dict[object, int] = {}
    skeleton_of, answer_of = [], []
    for row, (subset, label, given, own, drawn) in enumerate(
        zip(subsets, labels, questions, answers, draws, strict=True)
    ):
        choice = _chosen(spec, given, label, own, drawn, style)
        # A key is all that a wording depends on, so that each is made once.
        key = (given, choice.question_template, choice.tagged, subset if style.wording == "conditioned" else None)
        place = skeletons.get(key)
        if place is None:
            place = skeletons[key] = len(made)
            made.append(
                skeleton(spec, _row(examples, row), choice.question_template, tagged=choice.tagged, style=style)
            )
        skeleton_of.append(place)
        answer_key: object = own if own is not None else (choice.answer_template, *(label or ()))
        index = worded.get(answer_key)
        if index is None:
            text = told(spec, _row(examples, row), choice, prompt)
            index = texts.setdefault(text, len(texts))
            if own is not None or prompt != "reasoning":
                worded[answer_key] = index
        answer_of.append(index)
    return Block(made, np.array(skeleton_of, np.int64), list(texts), np.array(answer_of, np.int64))


def wordings(spec: Dataset) -> list[str]:
    """Every fixed wording of a task, for building a vocabulary: templates, tags, class names, reasoning sentences."""
    if spec.task is None:
        return []
    task = spec.task
    texts = [*task.templates.questions, *(text for pool in task.templates.answers.values() for text in pool), task.tag]
    texts += getattr(task.label, "classes", [])
    texts += [*task.templates.conditioned, *task.subset_titles.values()]
    if task.release_tag:
        texts.append(task.release_tag)
    if task.reasoning:
        label = (0.0,) * len(task.label.outputs) if isinstance(task.label, MultiRegressionLabel) else (0.0,)
        # Worked out on two made sequences, so that both outcomes of a motif step are worded.
        for filler in ("G", "".join(step.pattern for step in task.reasoning) or "A"):
            sequences = [filler * 40 for _ in spec.molecules]
            texts.append(reasoning_answer(spec, sequences, label))
    return [_without_placeholders(text) for text in texts]


_PURPOSES = ("question", "answer", "tag")


def _chosen(
    spec: Dataset,
    given: str | None,
    label: Sequence[float] | None,
    own: str | None,
    draws: tuple[float, ...],
    style: Style,
) -> Chosen:
    task = spec.task
    if task is None:
        return Chosen(None, None, False)
    asks = None if given is not None else int(draws[0] * len(questions(spec, style.wording)))
    tells = None
    if own is None and label is not None and task.templates.answers:
        tells = int(draws[1] * len(task.templates.answers[task.label.pool(tuple(label))]))
    return Chosen(asks, tells, draws[2] < style.task_tag.fraction)


def _draw(identities: list[str], seed: int, purpose: str) -> npt.NDArray[np.float64]:
    """`choose` for many ids."""
    begun = hashlib.blake2b(f"{seed}/{purpose}/".encode(), digest_size=8)
    digests = []
    for identity in identities:
        digest = begun.copy()
        digest.update(identity.encode())
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), ">u8") / 2.0**64


def _row(examples: pa.Table, row: int) -> dict[str, Any]:
    return dict(examples.slice(row, 1).to_pylist()[0])


def _without_placeholders(text: str) -> str:
    for character in "{}":
        text = text.replace(character, "\x00")
    return "".join(text.split("\x00")[::2])
