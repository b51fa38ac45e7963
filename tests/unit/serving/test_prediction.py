"""From a record to a prediction: what is accepted, and how log-likelihoods become probabilities."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysome.config import ConfigurationError, DataError
from polysome.evaluation.calibration import Calibration, Reliability
from polysome.evaluation.choices import choices
from polysome.evaluation.intervals import Interval
from polysome.inference.asynchronous import Delta
from polysome.inference.engine import Generation, Scores
from polysome.serving.calibrations import Evidence
from polysome.serving.calls import Target
from polysome.serving.prediction import Predictor, Record, read_number, read_record, task_spec

SOON = Target(deadline=float("inf"))


class Told:
    """A backend that answers as told."""

    def __init__(self, text="", sums=lambda texts: (0.0,) * len(texts)):
        self.text, self.sums, self.asked = text, sums, []

    async def generate(self, prompt, sampling, target, *, stream=True):
        assert not stream, "a prediction has no use for pieces, which cost"
        yield Delta(self.text, Generation(self.text, 1, 1, "stop"))

    async def score(self, prompt, texts, target):
        self.asked.append(tuple(texts))
        return Scores(tuple(self.sums(texts)), (1,) * len(texts))


def predict(spec, records, backend, **settings):
    predictor = Predictor(spec, backend, prompt="concise", max_new_tokens=8, **settings)
    asked = [
        Record(index, str(index + 1), dict(zip([m.role for m in spec.molecules], row, strict=True)), tuple(row))
        for index, row in enumerate(records)
    ]
    return asyncio.run(predictor.predict(asked, SOON))


def codes(prediction):
    return [caution.code for caution in prediction.warnings]


def test_sequences_are_cleaned_and_put_in_the_specs_order():
    spec = task_spec("planted_binding")
    assert read_record(spec, {"protein": "mkv*", "rna": "acgt"}, where="x") == ["ACGU", "MKV"]


def test_a_refused_sequence_is_named_by_record_and_role():
    spec = task_spec("planted_binding")
    with pytest.raises(DataError) as caught:
        read_record(spec, {"protein": "MKV1", "rna": "ACGU"}, where="sequences[3]")
    assert caught.value.where == "sequences[3].protein"


def test_the_servers_bound_and_the_tasks_hold():
    spec = task_spec("core_promoter")
    for sequence, longest in (("ACGT" * 10, 39), ("ACGT" * 51, None), ("ACGT", None)):
        with pytest.raises(DataError):
            read_record(spec, sequence, where="x", longest=longest)
    assert read_record(spec, "ACGT" * 10, where="x", longest=40) == ["ACGT" * 10]


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
    backend = Told(
        "Yes.",
        lambda texts: [math.log(0.6 / len(answers["positive"]) if owner else 0.4 / 2) for owner in closed.owners],
    )
    (found,) = predict(spec, [["ACGT"]], backend)
    assert backend.asked == [closed.texts]
    assert found.probabilities == pytest.approx({"yes": 0.6, "no": 0.4})
    assert (found.label, found.probability, found.calibrated) == ("yes", found.probabilities["yes"], False)


@given(st.lists(st.floats(-2000, 0), min_size=12, max_size=12))
def test_probabilities_sum_to_one_however_unlikely_the_wordings(scores):
    (found,) = predict(task_spec("planted_ncrna_family"), [["ACGU"]], Told("", lambda texts: scores))
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
    (found,) = predict(bounded, [["MKV"]], Told("The value is 43."), evidence=Evidence("", interval=BAND))
    assert (found.value, found.interval, codes(found)) == (None, None, ["out_of_range"])


BAND = Interval(level=0.9, half_width=6.0, dev_n=100, n=100, coverage=0.9)


def test_a_number_has_the_interval_of_the_evidence_within_what_the_label_may_be():
    spec = task_spec("planted_thermostability")
    (plain,) = predict(spec, [["MKV"]], Told("It melts at 55 degrees."))
    assert (plain.value, plain.interval, plain.calibrated) == (55.0, None, False)
    for text, interval in (("It melts at 55 degrees.", (49.0, 61.0)), ("It melts at 77 degrees.", (71.0, 80.0))):
        (found,) = predict(spec, [["MKV"]], Told(text), evidence=Evidence("", interval=BAND))
        assert (found.interval, found.calibrated) == (interval, True)


def test_probabilities_go_through_the_fit_which_may_turn_the_label():
    unmeasured = Reliability(0.0, 0.0, 0.0, ())
    fit = Calibration("platt", {"slope": 0.5, "offset": -1.0}, 10, 10, unmeasured, unmeasured)
    backend = Told("Yes.", lambda texts: [-1.0 if text.startswith("Yes") else -2.0 for text in texts])
    spec = task_spec("planted_binding")
    (plain,), (fitted,) = (
        predict(spec, [["ACGU", "MKV"]], backend, **more) for more in ({}, {"evidence": Evidence("", fit)})
    )
    assert plain.probabilities["yes"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert fitted.probabilities["yes"] == pytest.approx(1 / (1 + math.exp(0.5)))
    assert (plain.label, fitted.label, fitted.calibrated) == ("yes", "no", True)
    assert codes(plain) == []
    assert codes(fitted) == ["contradiction"]


def test_the_first_failure_ends_the_other_records_and_is_told_as_it_is():
    cancelled = []

    class Backend(Told):
        async def generate(self, prompt, sampling, target, *, stream=True):
            if "GGGG" in prompt[-1]["content"]:
                raise DataError("too long")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append("generate")
                raise
            yield Delta("")

    records = [["ACGU", "MKV"], ["GGGG", "MKV"], ["ACGU", "MKV"]]
    with pytest.raises(DataError, match="too long"):
        predict(task_spec("planted_binding"), records, Backend())
    assert cancelled == ["generate"] * 2


def test_the_label_is_the_most_probable_whatever_the_text_says():
    backend = Told("No, there is none.", lambda texts: [-1.0 if text.startswith("Yes") else -2.0 for text in texts])
    (found,) = predict(task_spec("planted_binding"), [["ACGU", "MKV"]], backend)
    assert found.label == "yes"
    assert found.probability == pytest.approx(1 / (1 + math.exp(-1)))
    assert found.text == "No, there is none."
    assert found.warnings[0].message == "the answer in words says no, the scores say yes"
