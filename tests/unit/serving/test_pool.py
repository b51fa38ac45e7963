"""Batches of the pool: what is answered together, and that nobody pays for another's bad request."""

import time

from polysome.config import DataError
from polysome.inference.engine import Generation
from polysome.serving.pool import Expired, GenerateCall, answer_batch
from polysome.serving.prediction import Sampling

LATER = time.time() + 3600


class RecordingEngine:
    """Answers with the question, refuses the word poison, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def generate(self, conversations, *, max_new_tokens, temperature=0.0, top_p=1.0, seed=None):
        texts = [conversation[0]["content"] for conversation in conversations]
        self.batches.append(texts)
        if "poison" in texts:
            raise DataError("the prompt is too long")
        return [Generation(text, 1, 1, "stop") for text in texts]


def call(text: str, sampling: Sampling | None = None, deadline: float = LATER) -> GenerateCall:
    return GenerateCall([{"role": "user", "content": text}], sampling or Sampling(8), deadline)


def test_calls_that_sample_alike_share_a_batch_and_keep_their_places():
    engine = RecordingEngine()
    hot = Sampling(8, temperature=1.0)
    outcomes = answer_batch(engine, [call("a"), call("b", hot), call("c"), call("d", hot)])
    assert [outcome.generation.text for outcome in outcomes] == ["a", "b", "c", "d"]
    assert sorted(engine.batches) == [["a", "c"], ["b", "d"]]


def test_a_seeded_sample_stands_alone_so_that_it_repeats():
    engine = RecordingEngine()
    seeded = Sampling(8, temperature=1.0, seed=3)
    answer_batch(engine, [call("a", seeded), call("b", seeded)])
    assert engine.batches == [["a"], ["b"]]


def test_a_refused_call_gets_its_error_and_the_others_their_answers():
    outcomes = answer_batch(RecordingEngine(), [call("a"), call("poison"), call("b")])
    assert [outcome.generation.text if outcome.generation else None for outcome in outcomes] == ["a", None, "b"]
    assert isinstance(outcomes[1].error, DataError)


def test_a_call_past_its_deadline_costs_no_work():
    engine = RecordingEngine()
    (outcome,) = answer_batch(engine, [call("a", deadline=time.time() - 1)])
    assert isinstance(outcome.error, Expired)
    assert engine.batches == []
