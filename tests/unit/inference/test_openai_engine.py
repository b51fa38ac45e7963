"""The endpoint engine against a server that misbehaves: nothing is lost, paid twice, or taken for an answer."""

import logging
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from model_server import Misdeed, Served, serve

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.inference.endpoint import Budget, Endpoint
from polysome.inference.engine import Conversation
from polysome.inference.fake import FakeEngine
from polysome.inference.openai import OpenAIEngine
from polysome.inference.recording import Recording
from polysome.inference.transport import _retry_after

KEY = "sk-a-key-that-nobody-may-see"


def ask(*contents: str) -> list[Conversation]:
    return [[{"role": "user", "content": content}] for content in contents]


@pytest.fixture
def server() -> Iterator[Served]:
    with serve(FakeEngine(lambda chat: f"It is {chat[-1]['content']}.")) as served:
        yield served


def opened(server: Served, **settings: Any) -> OpenAIEngine:
    quick = {"model": "tiny", "backoff_seconds": 0.01, "timeout_seconds": 5, "attempts": 3}
    return OpenAIEngine(Endpoint.model_validate({"url": server.url, **quick, **settings}))


def texts(engine: OpenAIEngine, *contents: str, **options: Any) -> list[str]:
    return [found.text for found in engine.generate(ask(*contents), **{"max_new_tokens": 9, **options})]


@pytest.mark.parametrize(
    "misdeed",
    [
        Misdeed(429, '{"error": {"message": "slow down"}}'),
        Misdeed(500, "<html>"),
        Misdeed(503),
        Misdeed(body=None),
        Misdeed(body="<html>It works!</html>"),
        Misdeed(body='{"choices": []}'),
        Misdeed(body="[1]"),
    ],
)
def test_what_may_pass_is_asked_again(server: Served, misdeed: Misdeed) -> None:
    server.misdeeds.extend([misdeed, misdeed])
    assert texts(opened(server), "one") == ["It is one."]
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [429, 500, 502])
def test_what_does_not_pass_is_given_up(server: Served, status: int) -> None:
    server.misdeeds.extend([Misdeed(status, '{"error": {"message": "no room"}}')] * 9)
    with pytest.raises(ResourceError, match=f"answers {status}: no room"):
        texts(opened(server), "one")
    assert len(server.requests) == 3


def test_retry_after_is_honoured_by_all_requests(server: Served) -> None:
    server.misdeeds.append(Misdeed(429, headers={"Retry-After": "0.4"}))
    engine = opened(server, concurrency=1)
    started = time.monotonic()
    assert texts(engine, "one", "two") == ["It is one.", "It is two."]
    assert time.monotonic() - started >= 0.4
    server.misdeeds.append(Misdeed(429, headers={"Retry-After": "3600"}))
    with pytest.raises(ResourceError, match="asked again in 3600 s"):
        texts(engine, "three")
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < (_retry_after(soon) or 0) <= 100
    assert _retry_after("soon") is None
    assert _retry_after("-3") == 0


def test_a_refusal_that_will_not_pass_is_not_repeated(server: Served) -> None:
    refused = [
        (Misdeed(401, '{"error": {"message": "bad key"}}'), ConfigurationError, "bad key"),
        (Misdeed(404, '{"error": {"message": "no such model"}}'), ConfigurationError, "no such model"),
        (Misdeed(400, '{"error": {"message": "m", "code": "unsupported_parameter"}}'), ConfigurationError, "400: m"),
        (Misdeed(400, '{"error": {"message": "too long", "code": "context_length_exceeded"}}'), DataError, "too long"),
        (Misdeed(429, '{"error": {"message": "m", "code": "insufficient_quota"}}'), ResourceError, "429: m"),
        (Misdeed(408, "{}", {"x-should-retry": "false"}), ResourceError, "408"),
        (Misdeed(body='{"choices": [{"message": {"refusal": "never"}}]}'), DataError, "refuses to answer: never"),
    ]
    engine = opened(server)
    for number, (misdeed, kind, said) in enumerate(refused):
        server.misdeeds.append(misdeed)
        with pytest.raises(kind, match=said):
            texts(engine, f"question {number}")
        assert len(server.requests) == number + 1


def test_garbage_is_no_answer_and_spoils_no_other(server: Served) -> None:
    server.by_content["bad"] = Misdeed(body='{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}')
    engine = opened(server)
    with pytest.raises(DataError, match=r"answer is none: '{\"choices\"") as raised:
        texts(engine, "one", "bad", "two")
    assert raised.value.where == "conversation 1"
    assert len(server.requests) == 2 + 3
    # As an evaluation does it: halves, until the refused one stands alone. Nothing is asked twice.
    assert texts(engine, "one") + texts(engine, "two") == ["It is one.", "It is two."]
    with pytest.raises(DataError, match="answer is none"):
        texts(engine, "bad")
    assert len(server.requests) == 5


def test_an_empty_answer_is_an_answer(server: Served) -> None:
    server.misdeeds.append(Misdeed(body='{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}'))
    server.misdeeds.append(Misdeed(body='{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}'))
    engine = opened(server)
    found = [engine.generate(ask(name), max_new_tokens=3)[0] for name in ("one", "two")]
    assert [(one.text, one.finish_reason, one.prompt_tokens) for one in found] == [("", "stop", 0), ("", "length", 0)]


def test_a_slow_endpoint_is_asked_again_and_then_given_up(server: Served) -> None:
    server.misdeeds.append(Misdeed(delay=1.0))
    engine = opened(server, timeout_seconds=0.3, attempts=2)
    assert texts(engine, "one") == ["It is one."]
    server.misdeeds.extend([Misdeed(delay=1.0)] * 2)
    with pytest.raises(ResourceError, match=r"no answer within 0\.3 s"):
        texts(engine, "two")


def test_nothing_that_listens_is_told(server: Served) -> None:
    engine = opened(server, url="http://127.0.0.1:9/v1", attempts=2)
    for act in (lambda: texts(engine, "one"), engine.health):
        with pytest.raises(ResourceError, match="connection fails"):
            act()


def test_requests_run_at_once_up_to_the_bound(server: Served) -> None:
    server.delay = 0.05
    names = [str(number) for number in range(12)]
    assert texts(opened(server, concurrency=4), *names) == [f"It is {name}." for name in names]
    assert 1 < server.at_once <= 4


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"max_requests": 3}, r"max_requests 3\): 3 requests"),
        # Of the question one token, of the answer four.
        ({"max_tokens": 15}, r"max_tokens 15\): 3 requests, 3 prompt and 12 completion tokens"),
        (
            {
                "max_cost": 2.7e-5,
                "price_per_million_prompt_tokens": 1,
                "price_per_million_completion_tokens": 2,
            },
            r"max_cost 2\.7e-05\): 3 requests, .* a cost of 2\.7e-05",
        ),
    ],
)
def test_a_spent_budget_ends_the_asking_and_loses_nothing(
    server: Served, budget: dict, said: str, tmp_path: Path
) -> None:
    record = str(tmp_path / "answers.sqlite")
    names = [str(number) for number in range(5)]
    engine = opened(server, budget=budget, record=record, concurrency=1)
    engine.health()
    for act in (lambda: texts(engine, *names), engine.health):
        with pytest.raises(ResourceError, match=said):
            act()
    assert len(server.requests) == 3
    engine = opened(server, budget=budget, record=record, concurrency=1)
    assert texts(engine, *names) == [f"It is {name}." for name in names]
    assert len(server.requests) == 5
    assert engine.spent.requests == 2


def test_attempts_count_against_the_budget(server: Served) -> None:
    server.misdeeds.extend([Misdeed(500)] * 9)
    with pytest.raises(ResourceError, match="2 requests"):
        texts(opened(server, budget={"max_requests": 2}, attempts=9), "one")
    assert len(server.requests) == 2


def test_a_budget_that_cannot_be_kept_is_told(server: Served) -> None:
    server.tells_usage = False
    with pytest.raises(ConfigurationError, match="does not tell how many tokens"):
        texts(opened(server, budget={"max_tokens": 100}), "one")
    assert texts(opened(server), "one") == ["It is one."]


def test_a_run_is_replayed_without_a_network(server: Served, tmp_path: Path) -> None:
    record = str(tmp_path / "answers.sqlite")
    sampled = {"temperature": 1.0, "seed": 4}
    asked = opened(server, model=None, record=record)
    first = texts(asked, "one", "two"), texts(asked, "one", **sampled), asked.score(ask("one"), ["It is one.", "No."])
    streamed = list(asked.stream(ask("three")[0], max_new_tokens=9))
    count = len(server.requests)
    away = opened(server, model=None, record=record, replay=True)
    again = texts(away, "one", "two"), texts(away, "one", **sampled), away.score(ask("one"), ["It is one.", "No."])
    assert again == first
    assert list(away.stream(ask("three")[0], max_new_tokens=9)) == ["".join(streamed)]
    assert texts(away, "three") == ["It is three."]
    for options in ({"max_new_tokens": 8}, {"temperature": 1.0}, {"temperature": 1.0, "seed": 5}):
        with pytest.raises(DataError, match="not in the recording") as raised:
            texts(away, "one", **options)
        assert raised.value.where == "conversation 0"
    away.health()
    assert len(server.requests) == count


def test_answers_drawn_without_a_seed_are_drawn_anew(server: Served) -> None:
    engine = opened(server)
    for _ in range(2):
        texts(engine, "one", temperature=1.0)
    assert len(server.requests) == 2
    texts(engine, "one", "one", "two", temperature=1.0, seed=3)
    seeds = [body.get("seed") for body in server.requests]
    assert seeds[:2] == [None, None]
    assert len(set(seeds[2:])) == 3


def test_draws_of_an_endpoint_that_takes_no_seed_are_not_taken_from_the_recording(server: Served) -> None:
    engine = opened(server, extra={"seed": None})
    for seed in (1, 2):
        texts(engine, "one", temperature=1.0, seed=seed)
    assert len(server.requests) == 2


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be taken for one " * 20)
    with pytest.raises(DataError, match="not a recording"):
        Recording(str(tmp_path / "text"))
    with pytest.raises(ResourceError, match="cannot use"):
        Recording(str(tmp_path / "text" / "below"))


def test_the_key_is_sent_and_never_told(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    record = tmp_path / "answers.sqlite"
    engine = opened(server, key_variable="A_KEY", record=str(record))
    texts(engine, "one")
    engine.health()
    assert set(server.keys) == {f"Bearer {KEY}"}
    server.misdeeds.append(Misdeed(401, f'{{"error": {{"message": "the key {KEY} is not valid"}}}}'))
    with pytest.raises(ConfigurationError, match=r"the key \*\*\* is not valid") as raised:
        texts(engine, "two")
    assert "A_KEY" in raised.value.fix
    assert KEY not in str(raised.value) + caplog.text
    assert KEY.encode() not in record.read_bytes()
    assert record.stat().st_mode & 0o077 == 0
    assert sqlite3.connect(record).execute("SELECT count(*) FROM answers").fetchone() == (1,)
    monkeypatch.setenv("A_KEY", f"{KEY}\nX: y")
    with pytest.raises(ConfigurationError, match="no header may hold") as raised:
        opened(server, key_variable="A_KEY")
    assert KEY not in str(raised.value)
    monkeypatch.delenv("A_KEY")
    server.keys.clear()
    texts(opened(server, key_variable="A_KEY"), "one")
    assert server.keys == [None]


def test_a_stream_that_breaks_off_is_no_answer(server: Served) -> None:
    begun = 'data: {"choices": [{"delta": {"content": "It "}}]}\n\n'
    engine = opened(server)
    for body, kind, said in [
        (begun, ResourceError, "broke off"),
        (begun + 'data: {"error": {"message": "out of memory"}}\n\n', ResourceError, "out of memory"),
        (begun + "data: {\n\n", DataError, "answer is none"),
    ]:
        server.misdeeds.append(Misdeed(body=body))
        pieces = engine.stream(ask("one")[0], max_new_tokens=9)
        assert next(pieces) == "It "
        with pytest.raises(kind, match=said):
            next(pieces)
    server.misdeeds.append(Misdeed(500))
    assert list(engine.stream(ask("one")[0], max_new_tokens=9)) == ["It", " is", " one."]


def test_the_body_is_what_the_endpoint_wants(server: Served) -> None:
    engine = opened(server, extra={"temperature": None, "reasoning_effort": "low"})
    texts(engine, "one", stop=["x"], top_p=0.5)
    assert server.requests == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "one"}],
            "max_tokens": 9,
            "top_p": 0.5,
            "stop": ["x"],
            "reasoning_effort": "low",
        }
    ]
    server.misdeeds.append(Misdeed(body='{"choices": [{"message": {"content": "A b x c"}}]}'))
    named = opened(server, max_tokens_field="max_completion_tokens")
    # Where an endpoint does not know `stop`, the promise holds all the same.
    assert texts(named, "two", stop=["x"]) == ["A b "]
    assert server.requests[-1]["max_completion_tokens"] == 9


def test_a_model_is_found_where_there_is_one(server: Served) -> None:
    assert opened(server, model=None).model == "tiny"
    server.owner = "somebody"
    with pytest.raises(ConfigurationError, match="no log-likelihoods"):
        opened(server).score(ask("one"), ["yes"])


def test_endpoints_are_checked() -> None:
    for settings, said in [
        ({"url": "ftp://example.org"}, "no http"),
        ({"url": "https://user@example.org/v1"}, "a user"),
        ({"url": "https://example.org/v1?key=1"}, "a query"),
        ({"url": "https://example.org/v1", "replay": True}, "record"),
        ({"url": "https://example.org/v1", "budget": {"max_cost": 1}}, "price_per_million"),
    ]:
        with pytest.raises(ValueError, match=said):
            Endpoint.model_validate(settings)
    assert Endpoint(url="https://example.org/v1/").url == "https://example.org/v1"
    assert Budget().prices is None
