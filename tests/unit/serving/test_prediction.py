"""From a record to a prediction: what is accepted, and how log-likelihoods become probabilities."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.config import ConfigurationError, DataError
from polysome.evaluation.choices import choices
from polysome.inference.engine import Generation, Scores
from polysome.serving.prediction import predict, read_number, read_record, task_spec


def test_sequences_are_cleaned_and_put_in_the_specs_order():
    spec = task_spec("planted_binding")
    assert read_record(spec, {"protein": "mkv*", "rna": "acgt"}, where="x") == ["ACGU", "MKV"]


def test_a_refused_sequence_is_named_by_record_and_role():
    spec = task_spec("planted_binding")
    with pytest.raises(DataError) as caught:
        read_record(spec, {"protein": "MKV1", "rna": "ACGU"}, where="sequences[3]")
    assert caught.value.where == "sequences[3].protein"


def test_a_corpus_is_no_task():
    with pytest.raises(ConfigurationError, match="unlabelled"):
        task_spec("planted_dna")


def test_a_labels_probability_is_the_one_of_evaluations():
    """A label's mass lies on all its wordings: neither how many it has nor how many are asked favours it."""
    spec = task_spec("core_promoter")
    assert spec.task is not None
    answers = spec.task.templates.answers
    fewer = {**answers, "negative": answers["negative"][:2]}
    templates = spec.task.templates.model_copy(update={"answers": fewer})
    spec = spec.model_copy(update={"task": spec.task.model_copy(update={"templates": templates})})
    closed = choices(spec, None, seed=0)
    asked = []

    class Backend:
        async def generate(self, conversation, sampling):
            return Generation("Yes.", 1, 1, "stop")

        async def score(self, conversation, texts):
            asked.append(tuple(texts))
            sums = [math.log(0.6 / len(answers["positive"]) if owner else 0.4 / 2) for owner in closed.owners]
            return Scores(tuple(sums), (1,) * len(texts))

    (found,) = asyncio.run(predict(spec, [["ACGT"]], Backend(), prompt="concise", max_new_tokens=8))
    assert asked == [closed.texts]
    assert found.probabilities == pytest.approx({"yes": 0.6, "no": 0.4})
    assert (found.label, found.probability) == ("yes", found.probabilities["yes"])


@given(st.lists(st.floats(-2000, 0), min_size=12, max_size=12))
def test_probabilities_sum_to_one_however_unlikely_the_wordings(scores):
    class Backend:
        async def generate(self, conversation, sampling):
            return Generation("", 1, 1, "stop")

        async def score(self, conversation, texts):
            return Scores(tuple(scores), (1,) * len(texts))

    spec = task_spec("planted_ncrna_family")
    (found,) = asyncio.run(predict(spec, [["ACGU"]], Backend(), prompt="concise", max_new_tokens=8))
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in found.probabilities.values())


def test_a_number_outside_the_declared_range_is_none():
    spec = task_spec("planted_thermostability")
    assert spec.task is not None
    label = spec.task.label.model_copy(update={"minimum": 0.0, "maximum": 1.0})
    bounded = spec.model_copy(update={"task": spec.task.model_copy(update={"label": label})})
    assert read_number(bounded, "The value is 0.43.") == 0.43
    assert read_number(bounded, "The value is 43.") is None
    assert read_number(bounded, "It is stable.") is None


def test_the_first_failure_ends_the_other_records_and_is_told_as_it_is():
    cancelled = []

    class Backend:
        async def generate(self, conversation, sampling):
            if "GGGG" in conversation[-1]["content"]:
                raise DataError("too long")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append("generate")
                raise

        async def score(self, conversation, choices):
            return Scores((0.0,) * len(choices), (1,) * len(choices))

    spec = task_spec("planted_binding")
    records = [["ACGU", "MKV"], ["GGGG", "MKV"], ["ACGU", "MKV"]]
    with pytest.raises(DataError, match="too long"):
        asyncio.run(predict(spec, records, Backend(), prompt="concise", max_new_tokens=8))
    assert cancelled == ["generate"] * 2


def test_the_label_is_the_most_probable_whatever_the_text_says():
    class Backend:
        async def generate(self, conversation, sampling):
            return Generation("No, there is none.", 1, 1, "stop")

        async def score(self, conversation, choices):
            sums = tuple(-1.0 if choice.startswith("Yes") else -2.0 for choice in choices)
            return Scores(sums, (1,) * len(choices))

    spec = task_spec("planted_binding")
    (found,) = asyncio.run(predict(spec, [["ACGU", "MKV"]], Backend(), prompt="concise", max_new_tokens=8))
    assert found.label == "yes"
    assert found.probability == pytest.approx(1 / (1 + math.exp(-1)))
    assert found.text == "No, there is none."
