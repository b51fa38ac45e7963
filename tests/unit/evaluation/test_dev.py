"""Dev evaluation: the same questions whoever asks them, measured as an evaluation measures, collapse seen."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from polysome.config import ConfigurationError, DataError
from polysome.data.examples import read_examples
from polysome.data.render import answer
from polysome.evaluation.dev import DevEvaluation, DevTask
from polysome.inference.engine import Conversation, Generation
from polysome.specs import dataset

TASKS = ["planted_promoter", "planted_thermostability", "planted_ncrna_family"]


class Told:
    """An engine that says what a function makes of a question, and refuses where that is None."""

    def __init__(self, tell: Any) -> None:
        self.tell = tell
        self.asked = 0

    def generate(self, conversations: Sequence[Conversation], *, max_new_tokens: int, **_: Any) -> list[Generation]:
        texts = [self.tell(conversation[-1]["content"]) for conversation in conversations]
        if None in texts:
            raise DataError("too long")
        self.asked += len(texts)
        return [Generation(text, 1, 1, "stop") for text in texts]


@pytest.fixture(scope="module")
def dev() -> DevEvaluation:
    return DevEvaluation.of(TASKS, limit=40, max_new_tokens=16, seed=1)


@pytest.fixture(scope="module")
def labels(dev: DevEvaluation) -> dict[str, str]:
    """The right answer to every question."""
    return {
        conversation[-1]["content"]: answer(task.spec, label)
        for task in dev.tasks
        for conversation, label in zip(task.conversations, task.labels, strict=True)
    }


def test_right_answers_measure_as_perfect_and_as_varied_as_the_labels(dev: DevEvaluation, labels: Any) -> None:
    result = dev(Told(labels.__getitem__))  # type: ignore[arg-type]
    assert list(result) == TASKS
    for name, measured in result.items():
        assert measured["metric"] == dataset(name).task.metric  # type: ignore[union-attr]
        assert measured["value"] == pytest.approx(1, abs=1e-3)
        assert measured["prediction_spread"] == pytest.approx(1, abs=1e-2)
        assert measured["parse_rate"] == 1
        assert measured["n"] == 40
        assert measured["dominant_answer_share"] < 1


def test_a_collapsed_model_is_seen(dev: DevEvaluation) -> None:
    result = dev(Told(lambda question: "The value is 43.1."))  # type: ignore[arg-type]
    numbers, classes = result["planted_thermostability"], result["planted_ncrna_family"]
    assert (numbers["dominant_answer_share"], numbers["prediction_spread"], numbers["value"]) == (1, 0, 0)
    assert numbers["parse_rate"] == 1
    assert (classes["parse_rate"], classes["dominant_answer_share"], classes["prediction_spread"]) == (0, 1, 0)


def test_spread_of_numbers_is_their_deviation_over_that_of_the_labels(dev: DevEvaluation) -> None:
    task = dev.tasks[1]
    labels = dict(zip((chat[-1]["content"] for chat in task.conversations), task.labels, strict=True))
    result = dev(Told(lambda question: f"The value is {labels.get(question, (0,))[0] / 4 + 50:.3f}."))  # type: ignore[arg-type]
    assert result[task.spec.name]["prediction_spread"] == pytest.approx(0.25, rel=1e-2)
    assert result[task.spec.name]["value"] == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("name", "labels", "texts", "value", "spread"),
    [
        ("rna_modification", [(), (0.0,), (7.0,), (0.0,)], ["none", "Am", "m6A", "Am"], 1, 1),
        ("rna_modification", [(), (0.0,), (7.0,), (0.0,)], ["none"] * 4, 0.5, 0),
        ("toehold_switches", [(0.1, 0.2, 0.3), (0.3, 0.1, 0.5)], ["0.2, 0.3, 0.4", "0.4, 0.2, 0.6"], 1, 1),
        ("toehold_switches", [(0.1, 0.2, 0.3), (0.3, 0.1, 0.5)], ["0.5", "0.6"], 0, 0),
        ("mol_instructions_general_function", ["It binds.", "It cuts."], ["It binds.", "It cuts."], 1, 1),
    ],
)
def test_every_kind_of_label_is_measured(name: str, labels: Any, texts: list[str], value: float, spread: float) -> None:
    conversations = tuple([{"role": "user", "content": str(row)}] for row in range(len(texts)))
    evaluation = DevEvaluation((DevTask(dataset(name), conversations, tuple(labels)),), 16)
    found = evaluation(Told(lambda content: texts[int(content)]))[name]  # type: ignore[arg-type]
    assert found["value"] == pytest.approx(value)
    assert found["prediction_spread"] == pytest.approx(spread)


def test_workers_share_the_questions_and_get_what_one_would(dev: DevEvaluation, labels: Any) -> None:
    alone = dev(Told(labels.__getitem__))  # type: ignore[arg-type]
    shipped = pickle.loads(pickle.dumps(dev))
    engines = [Told(labels.__getitem__) for _ in range(7)]
    parts = [shipped.ask(engine, rank, 7) for rank, engine in enumerate(engines)]
    assert shipped.measure(parts[::-1]) == alone
    asked = [engine.asked for engine in engines]
    assert sum(asked) == 120
    assert max(asked) - min(asked) <= 1
    with pytest.raises(ValueError, match="each needs exactly one"):
        dev.measure(parts[1:])
    assert dev.ask(engines[0], 500, 501) == []  # type: ignore[arg-type]


def test_a_refused_question_counts_as_unparsable(dev: DevEvaluation, labels: Any) -> None:
    refused = dev.tasks[0].conversations[3][-1]["content"]
    engine = Told(lambda question: None if question == refused else labels[question])
    assert dev(engine)["planted_promoter"]["parse_rate"] == 39 / 40  # type: ignore[arg-type]


def test_questions_are_drawn_from_the_whole_split_by_the_seed(dev: DevEvaluation) -> None:
    again, other = (DevEvaluation.of(["planted_promoter"], limit=40, seed=seed).tasks[0] for seed in (1, 2))
    assert again == dev.tasks[0]
    assert again.conversations != other.conversations
    numbers = read_examples(dataset("planted_promoter"), "dev")["label"].to_pylist()
    assert sorted(set(dev.tasks[0].labels)) == sorted(set(np.concatenate(numbers)))
    few = read_examples(dataset("planted_promoter"), "dev")["sequences"].slice(0, 40).to_pylist()
    heads = sum(sequence in chat[-1]["content"] for (sequence,) in few for chat in again.conversations)
    assert heads < 40


def test_what_cannot_be_asked_is_named() -> None:
    with pytest.raises(ConfigurationError, match="unlabelled corpus"):
        DevEvaluation.of(["planted_dna"])
    with pytest.raises(ConfigurationError, match="did you mean 'planted_promoter'"):
        DevEvaluation.of(["planted_promotr"])
