"""Records from a command line."""

import asyncio
import gzip
import io
import json

import httpx
import pytest

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.inference.fake import FakeEngine
from polysome.serving import client
from polysome.serving.calls import Target
from polysome.serving.client import ask_server, read_records
from polysome.serving.prediction import Predictor, Record, task_spec


def test_sequences_roles_and_fasta_may_be_mixed(tmp_path):
    path = tmp_path / "in.fa"
    path.write_text(">one first\nAC\nGT\n>two\nGGG\n")
    assert read_records(["ACGT", "rna=ACGU,protein=MKV", str(path)]) == [
        ("1", "ACGT"),
        ("2", {"rna": "ACGU", "protein": "MKV"}),
        ("one", "ACGT"),
        ("two", "GGG"),
    ]


def test_a_sequence_longer_than_a_file_name_may_be_is_a_sequence():
    assert read_records(["ACGT" * 2000]) == [("1", "ACGT" * 2000)]


def test_fasta_may_be_compressed_and_a_broken_file_is_told(tmp_path):
    path = tmp_path / "in.fa.gz"
    path.write_bytes(gzip.compress(b">one\nACGT\n"))
    assert read_records([str(path)]) == [("one", "ACGT")]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="cut short"):
        read_records([str(path)])
    plain = tmp_path / "in.fa"
    plain.write_bytes(gzip.compress(b">one\nACGT\n"))
    assert read_records([str(plain)]) == [("one", "ACGT")]
    with pytest.raises(DataError, match="no such file"):
        read_records(["reads.fa.gz"])


def test_fasta_comes_from_standard_input_too(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(">x\nACGT\n"))
    assert read_records(["-"]) == [("x", "ACGT")]


def test_what_looks_like_a_path_is_not_taken_for_a_sequence():
    with pytest.raises(DataError, match="no such file"):
        read_records(["reads.fasta"])


def test_text_that_is_not_fasta_and_nothing_at_all_are_refused(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("ACGT\n")
    with pytest.raises(DataError, match="FASTA"):
        read_records([str(path)])
    with pytest.raises(ConfigurationError, match="no sequence"):
        read_records([])


def test_a_server_that_is_not_there_is_one_clear_error():
    with pytest.raises(ResourceError, match="nothing answers"):
        ask_server("http://127.0.0.1:9", "planted_promoter", ["ACGT"])


def test_tables_are_read_by_the_tasks_roles_and_their_damage_is_told(tmp_path):
    path = tmp_path / "in.tsv"
    path.write_text("id\trna\tprotein\none\tACGU\tMKV\n")
    assert read_records([str(path)], "planted_binding") == [("one", {"rna": "ACGU", "protein": "MKV"})]
    path.write_text("id\trna\tprotein\none\tACGU\n")
    with pytest.raises(DataError, match="2 cells"):
        read_records([str(path)], "planted_binding")


REAL = httpx.Client


def served(monkeypatch, *answers):
    """Answers of a server, in turn; the requests that it got."""
    requests, left = [], list(answers)

    def handle(request):
        requests.append(request)
        status, headers, content = left.pop(0)
        return httpx.Response(status, headers=headers, json=content)

    transport = httpx.MockTransport(handle)
    monkeypatch.setattr(httpx, "Client", lambda **settings: REAL(**settings, transport=transport))
    monkeypatch.setattr(client.time, "sleep", lambda seconds: requests.append(seconds))
    return requests


ANSWER = {
    "object": "list",
    "task": "planted_promoter",
    "model": "tiny",
    "adapter": None,
    "system_fingerprint": "fp_0",
    "calibration": "none",
    "of_a_later_version": 1,
    "predictions": [{"index": 0, "id": "1", "label": "yes", "text": "Yes.", "of_a_later_version": 1}],
}


def test_a_busy_server_is_asked_again_as_late_as_it_says_with_the_key(monkeypatch):
    monkeypatch.setenv(client.KEY_VARIABLE, "omk_id_secret")
    busy = (429, {"retry-after": "2"}, {"error": {"message": "full", "param": None}})
    requests = served(monkeypatch, busy, (200, {}, ANSWER))
    found = ask_server("http://here", "planted_promoter", ["ACGT"], model="better")
    assert (found.told.model, found.predictions[0].label) == ("tiny", "yes")
    assert requests[1] == 2.0
    assert requests[2].headers["authorization"] == "Bearer omk_id_secret"
    assert b'"model":"better"' in requests[2].content


def test_a_refusal_is_told_and_not_repeated(monkeypatch):
    for status, told in ((401, "POLYSOME_API_KEY"), (400, "mend the request")):
        requests = served(monkeypatch, (status, {}, {"error": {"message": "no", "param": "x"}}))
        with pytest.raises(ConfigurationError, match=told):
            ask_server("http://here", "planted_promoter", ["ACGT"])
        assert len(requests) == 1


def test_an_engine_in_the_process_answers_all_records_in_two_calls():
    asked = []

    class Counting(FakeEngine):
        def generate(self, conversations, **settings):
            asked.append(len(conversations))
            return super().generate(conversations, **settings)

        def score(self, conversations, choices):
            asked.append(len(conversations))
            return super().score(conversations, choices)

    spec = task_spec("planted_promoter")
    pool = client._EnginePool(Counting("Yes, a promoter is present."))
    predictor = Predictor(spec, pool, prompt="concise", max_new_tokens=8)
    records = [Record(index, str(index), "ACGT", ("ACGT",)) for index in range(40)]
    found = asyncio.run(predictor.predict(records, Target(float("inf"))))
    assert [item.label for item in found] == ["yes"] * 40
    assert asked == [40, 40]


def many(count):
    told = [{"index": index, "id": str(index + 1), "label": "yes", "text": "Yes."} for index in range(count)]
    return (200, {}, {**ANSWER, "predictions": told})


@pytest.mark.parametrize(
    "refusal",
    [
        (400, {}, {"error": {"message": "too many", "code": "limit_exceeded", "param": "sequences"}}),
        (413, {}, {"error": {"message": "too large", "code": "body_too_large", "param": None}}),
    ],
)
def test_a_server_that_takes_fewer_records_at_once_is_asked_for_fewer(monkeypatch, refusal):
    requests = served(monkeypatch, refusal, refusal, many(5), many(5), many(5), many(5))
    found = ask_server("http://here", "planted_promoter", [f"ACGT{'A' * n}" for n in range(20)])
    assert [len(json.loads(request.content)["sequences"]) for request in requests] == [20, 10, 5, 5, 5, 5]
    assert [item.index for item in found.predictions] == list(range(20))


def test_a_record_that_is_refused_alone_is_not_asked_again(monkeypatch):
    requests = served(monkeypatch, (413, {}, {"error": {"message": "too large", "param": None}}))
    with pytest.raises(ConfigurationError, match="too large"):
        ask_server("http://here", "planted_promoter", ["ACGT"])
    assert len(requests) == 1
