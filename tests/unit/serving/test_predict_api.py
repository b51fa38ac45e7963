"""`/v1/predict` and `/v1/tasks` over the whole application, against a pool without a model."""

import asyncio

import httpx
import pytest
from evaluated import right, write_evaluation
from fake_pool import FakePool

from polysome.serving.adapters import Published
from polysome.serving.config import Limits, ServeConfig
from polysome.serving.context import Context
from polysome.serving.gateway import create_api

DNA = "ACGTACGTACGTACGTACGTACGT"
PUBLISHED = Published(name="better", version=2, folder="x", fingerprint="a" * 16, base_fingerprint="0" * 16)


class Registry:
    """One adapter."""

    def find(self, name):
        return PUBLISHED if name in ("better", "better@2") else None


def ask(pool=None, path="/v1/predict", fingerprint="0" * 16, config=None, **body):
    config = config or ServeConfig(model="unused", name="tiny", limits=Limits(records=16, sequence_characters=50))
    api = create_api(Context(config, pool or FakePool(), fingerprint, registry=Registry()))

    async def call():
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await (client.post(path, json=body) if body else client.get(path))

    return asyncio.run(call())


def test_an_answer_says_who_gave_it_and_what_to_think_of_it():
    pool = FakePool("Yes, a promoter is present.")
    told = ask(pool, task="planted_promoter", fasta=f">one x\n{DNA}\n>two\n{DNA.lower()}\n", model="better").json()
    assert (told["task"], told["model"], told["adapter"]) == ("planted_promoter", "tiny", "better@2")
    assert told["system_fingerprint"] == f"fp_{'0' * 16}-{'a' * 16}"
    assert "names no evaluation" in told["calibration"]
    assert [item["id"] for item in told["predictions"]] == ["one", "two"]
    first = told["predictions"][0]
    assert (first["label"], first["calibrated"], first["warnings"]) == ("yes", False, [])
    assert set(first["probabilities"]) == {"yes", "no"}
    assert {call[-1][-1].adapter for call in pool.calls} == {PUBLISHED}
    contradicted = FakePool(lambda conversation: "Perhaps yes, perhaps no.")
    (item,) = ask(contradicted, task="planted_promoter", sequences=[DNA]).json()["predictions"]
    assert [warning["code"] for warning in item["warnings"]] == ["unparsable"]


def test_a_calibrated_answer_has_the_evaluations_probability(tmp_path):
    evaluation = write_evaluation(tmp_path, right(0.9), model="m" * 64, modes=["text", "scores"], baselines=[])
    config = ServeConfig(model="unused", calibration=str(tmp_path))
    (item,) = ask(config=config, fingerprint="m" * 64, task="planted_promoter", sequences=[DNA]).json()["predictions"]
    assert item["calibrated"] is True
    assert [warning["code"] for warning in item["warnings"]].count("length") <= 1
    number = ask(
        FakePool("It melts at 50 degrees."),
        config=config,
        fingerprint="m" * 64,
        task="planted_thermostability",
        sequences=["MKV" * 8],
    ).json()
    (item,) = number["predictions"]
    half_width = evaluation.tasks[2].interval.half_width
    assert item["interval"] == [max(30.0, 50 - half_width), min(80.0, 50 + half_width)]
    tasks = {card["name"]: card for card in ask(path="/v1/tasks", config=config, fingerprint="m" * 64).json()["data"]}
    measured = tasks["planted_promoter"]["measured"]
    assert (measured["metric"], measured["rows"]) == ("mcc", 80)
    assert measured["value"] == pytest.approx(evaluation.tasks[0].scored.value.value)
    assert tasks["planted_promoter"]["examples_from"] == "evaluation"
    assert next(iter(tasks)).startswith("planted_")


def test_many_records_are_asked_a_few_at_a_time():
    pool = FakePool(seconds=0.001)
    config = ServeConfig(model="unused", limits=Limits(records=16), max_queued_requests=16)
    told = ask(pool, config=config, task="planted_promoter", sequences=[DNA] * 16).json()
    assert [item["index"] for item in told["predictions"]] == list(range(16))
    assert pool.most == 8


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"task": "planted_promoter", "sequences": [DNA] * 17}, "limit_exceeded", "sequences"),
        ({"task": "planted_promoter", "fasta": ">a\nACGT\n" * 17}, "limit_exceeded", "fasta"),
        ({"task": "planted_promoter", "sequences": [DNA, "ACGT!"]}, "invalid_value", "sequences[1]"),
        ({"task": "planted_promoter", "sequences": ["A" * 51]}, "invalid_value", "sequences[0]"),
        ({"task": "planted_promoter", "fasta": f">a\n{DNA}\n>b\nAC!T\n"}, "invalid_value", "fasta[1]"),
        ({"task": "planted_promoter", "fasta": DNA}, "invalid_value", "fasta"),
        ({"task": "planted_binding", "fasta": f">a\n{DNA}\n"}, "invalid_value", "fasta"),
        ({"task": "planted_promoter"}, "invalid_value", None),
        ({"task": "planted_promoter", "sequences": [DNA], "fasta": ">a\nAC\n"}, "invalid_value", None),
        ({"task": "planted_promoter", "sequences": [DNA], "extra": 1}, "unknown_parameter", "extra"),
        ({"task": "planted_description", "sequences": [DNA]}, "invalid_value", "task"),
        ({"task": "../planted_promoter", "sequences": [DNA]}, "invalid_value", "task"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is(body, code, param):
    pool = FakePool()
    answer = ask(pool, **body)
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)
    assert "/tmp" not in answer.text
    assert not pool.calls


def test_an_unknown_model_is_a_404_and_a_slow_one_a_408():
    body = {"task": "planted_promoter", "sequences": [DNA]}
    assert ask(model="worse", **body).status_code == 404
    slow = ask(FakePool(seconds=5), config=ServeConfig(model="unused", request_timeout_seconds=0.1), **body)
    assert (slow.status_code, slow.headers["x-should-retry"]) == (408, "false")


def test_tasks_are_told_with_what_they_take():
    cards = {card["name"]: card for card in ask(path="/v1/tasks").json()["data"]}
    promoter = cards["planted_promoter"]
    assert (promoter["labels"], promoter["kind"], promoter["measured"]) == (["yes", "no"], "binary", None)
    assert promoter["question"] == "Is there a promoter?"
    (molecule,) = promoter["molecules"]
    assert (molecule["role"], molecule["type"], molecule["maximum_length"]) == ("sequence", "dna", 64)
    assert set("ACGTN") <= set(molecule["alphabet"])
    assert (cards["planted_thermostability"]["labels"], cards["planted_thermostability"]["maximum"]) == (None, 80)
    assert [molecule["role"] for molecule in cards["planted_binding"]["molecules"]] == ["rna", "protein"]
    assert "planted_dna" not in cards
    assert "planted_description" not in cards


@pytest.mark.parametrize("name", ["planted_promoter", "planted_binding", "core_promoter", "sirna_efficacy"])
def test_every_example_can_be_asked(name):
    card = next(card for card in ask(path="/v1/tasks").json()["data"] if card["name"] == name)
    config = ServeConfig(model="unused")
    answer = ask(FakePool("Yes. 0.5"), config=config, task=name, sequences=card["examples"])
    assert answer.status_code == 200, answer.text
