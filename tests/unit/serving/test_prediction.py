"""From a record to a prediction: what is accepted, and how log-likelihoods become probabilities."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.config import ConfigurationError, DataError
from polysome.inference.engine import Generation, Scores
from polysome.serving.prediction import (
    answer_wordings,
    label_probabilities,
    predict,
    read_number,
    read_record,
    task_spec,
)


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


def test_every_label_has_as_many_wordings_as_every_other():
    for name in ("planted_promoter", "planted_ncrna_family"):
        wordings = answer_wordings(task_spec(name), 3)
        assert len({len(pool) for pool in wordings.values()}) == 1
        assert len({text for pool in wordings.values() for text in pool}) == sum(map(len, wordings.values()))


def test_a_labels_probability_is_the_mass_of_its_wordings():
    wordings = {"yes": ["a", "b"], "no": ["c", "d"]}
    shares = label_probabilities(wordings, [math.log(0.2), math.log(0.1), math.log(0.05), math.log(0.05)])
    assert shares == pytest.approx({"yes": 0.75, "no": 0.25})


@given(st.lists(st.floats(-2000, 0), min_size=4, max_size=4))
def test_probabilities_sum_to_one_however_unlikely_the_wordings(scores):
    shares = label_probabilities({"yes": ["a", "b"], "no": ["c", "d"]}, scores)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares.values())


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
        asyncio.run(predict(spec, records, Backend(), prompt="concise", max_new_tokens=8, templates=3))
    assert cancelled == ["generate"] * 2


def test_the_label_is_the_most_probable_whatever_the_text_says():
    class Backend:
        async def generate(self, conversation, sampling):
            return Generation("No, there is none.", 1, 1, "stop")

        async def score(self, conversation, choices):
            sums = tuple(-1.0 if choice.startswith("Yes") else -2.0 for choice in choices)
            return Scores(sums, (1,) * len(choices))

    spec = task_spec("planted_binding")
    (found,) = asyncio.run(predict(spec, [["ACGU", "MKV"]], Backend(), prompt="concise", max_new_tokens=8, templates=3))
    assert found.label == "yes"
    assert found.probability == pytest.approx(1 / (1 + math.exp(-1)))
    assert found.text == "No, there is none."
