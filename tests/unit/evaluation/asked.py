"""What the tests of asking share: engines that are right or picky, a recipe, and an evaluation in this process."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tiny_tasks import labelled

from polysome.config import DataError, ResourceError
from polysome.evaluation import actors, run
from polysome.evaluation.actors import ActorOptions, Answered, Answerer, Batch
from polysome.evaluation.baselines import Baselines, _read_and_fit
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.run import Evaluation, evaluate
from polysome.evaluation.samples import SAMPLES_FILE
from polysome.inference.engine import Conversation, Generation
from polysome.inference.fake import FakeEngine
from polysome.specs import dataset

TOLD = {
    "binary": lambda label: "Yes, it is." if label == "1" else "No, it is not.",
    "multiclass": "It is {}.".format,
    "multilabel": "The marks are {}.".format,
    "regression": "It is {}.".format,
    "multi_regression": lambda label: "up {}, down {}.".format(*label.split(";")),
    "generation": str,
}


def chat(text: str) -> Conversation:
    return [{"role": "user", "content": text}]


def right(kind: str) -> FakeEngine:
    """An engine that knows the answer to every question of a tiny task."""

    def answer(conversation: Conversation) -> str:
        sequence = conversation[-1]["content"].partition("<dna>")[2].partition("</dna>")[0]
        return TOLD[kind](labelled(kind, sequence)) if sequence else "It is."

    return FakeEngine(answer)


class Picky(FakeEngine):
    """Fails at questions that hold a text, with an error."""

    def __init__(self, text: str, error: Exception, *, healthy: bool = True) -> None:
        super().__init__("Yes.")
        self.text, self.error, self.healthy, self.calls = text, error, healthy, 0

    def generate(self, conversations: Sequence[Conversation], **settings: object) -> list[Generation]:
        self.calls += 1
        if any(self.text in conversation[-1]["content"] for conversation in conversations):
            raise self.error
        return super().generate(conversations, **settings)

    def health(self) -> None:
        if not self.healthy:
            raise ResourceError("the endpoint is gone")


def recipe(*tasks: str, **changes: object) -> EvaluationConfig:
    settings = {"batch_size": 8, "resamples": 100, "baselines": ["majority", "mean"]} | changes
    return EvaluationConfig(name="tiny", model="fake:Yes.", tasks=list(tasks), **settings)


def evaluated(config: EvaluationConfig, folder: Path) -> Evaluation:
    return evaluate(config, str(folder), command="polysome evaluate tiny.yaml", versions={"polysome": "1"})


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / SAMPLES_FILE).read_text().splitlines()]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeEngine], None]:
    """Actors and baselines run in this process, and the actors' engine is the given one."""

    def answered(batches: Sequence[Batch], options: ActorOptions) -> Iterator[tuple[int, Answered]]:
        actor = Answerer(options)
        actor.load()
        for index, batch in enumerate(batches):
            yield index, actor.answer(batch)

    def fitted(names: Sequence[str], **settings: object) -> dict[str, Baselines]:
        found = {}
        for name in names:
            own = [settings[key] for key in ("split", "subsets", "limit", "seed", "resamples", "chosen")]
            try:
                found[name] = _read_and_fit(dataset(name), *own, settings["groups"][name])
                found[name].write_predictions(settings["cache"])
            except DataError as error:
                found[name] = Baselines(name, {}, notes=(error.what,))
        return found

    monkeypatch.setattr(run, "answer_batches", answered)
    monkeypatch.setattr(run, "run_baselines", fitted)
    return lambda engine: monkeypatch.setattr(actors, "open_engine", lambda *_, **__: engine)
