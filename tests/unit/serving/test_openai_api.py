"""OpenAI's routes against a pool without a model: shapes, counts, log-likelihoods, streams, refusals."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from fake_pool import END, FakePool, decode, encode

from polysome.config import ResourceError
from polysome.inference.engine import Sampling
from polysome.serving import sse
from polysome.serving.adapters import Published
from polysome.serving.calls import Overloaded
from polysome.serving.config import Limits, ServeConfig
from polysome.serving.context import Context
from polysome.serving.gateway import create_api
from polysome.serving.protocol import ApiError

CHAT = {"model": "polysome", "messages": [{"role": "user", "content": "Is there a promoter?"}]}
TEXT = {"model": "polysome", "prompt": "ACGT"}
CONFIG = ServeConfig(
    model="unused", request_timeout_seconds=2, limits=Limits(prompts=4, n=3, max_tokens=64, default_max_tokens=64)
)
PROMOTER = Published("promoter", 2, "unused", "a" * 16, "0" * 16)


class OneAdapter:
    """A registry of one adapter."""

    def find(self, name: str) -> Published | None:
        return PROMOTER if name in ("promoter", "promoter@2") else None

    def list(self) -> list[Published]:
        return [PROMOTER]


def context(pool: FakePool, config: ServeConfig = CONFIG) -> Context:
    return Context(config, pool, "0" * 16, registry=OneAdapter(), max_model_len=4096)  # type: ignore[arg-type]


def ask(pool: FakePool, path: str, body: dict[str, Any] | bytes | None = None, **fields: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        # As Serve does: what the application raises has been answered with a 500 by its own handler.
        transport = httpx.ASGITransport(create_api(context(pool)), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            if body is None:
                return await client.get(path)
            content = body if isinstance(body, bytes) else json.dumps({**body, **fields})
            return await client.post(path, content=content, headers={"content-type": "application/json"})

    return asyncio.run(call())


LONG = "A" * CONFIG.limits.sequence_characters
"""As long as one prompt may be."""


def chat(pool: FakePool, **fields: Any) -> httpx.Response:
    return ask(pool, "/v1/chat/completions", CHAT, **fields)


def complete(pool: FakePool, **fields: Any) -> httpx.Response:
    return ask(pool, "/v1/completions", TEXT, **fields)


def events(answer: httpx.Response) -> list[Any]:
    """The parsed events of a stream; comments and `[DONE]` as text."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [block.removeprefix("data: ") for block in answer.text.split("\n\n") if block]
    return [json.loads(line) if line.startswith("{") else line for line in lines]


def error(answer: httpx.Response) -> tuple[int, str, str | None]:
    told = answer.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    return answer.status_code, told["code"], told["param"]


def test_a_chat_has_openais_shape_and_counts():
    pool = FakePool("Yes.")
    fields = {"max_completion_tokens": 9, "temperature": 0.0, "seed": 1, "stop": "X", "user": "me"}
    answer = chat(pool, **fields).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "polysome"
    assert answer["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop", "logprobs": None}
    ]
    asked = len(encode(CHAT["messages"]))
    assert answer["usage"] == {"prompt_tokens": asked, "completion_tokens": 5, "total_tokens": asked + 5}
    ((_, (prompt, sampling, _)),) = pool.calls
    assert prompt == CHAT["messages"]
    assert sampling == Sampling(9, seed=1, stop=("X",))


def test_several_answers_differ_by_seed_and_count_their_prompt_once():
    def texts(seed: int, n: int) -> list[str]:
        answer = chat(FakePool(), n=n, seed=seed, temperature=1).json()
        assert [choice["index"] for choice in answer["choices"]] == list(range(n))
        assert answer["usage"]["prompt_tokens"] == len(encode(CHAT["messages"]))
        return [choice["message"]["content"] for choice in answer["choices"]]

    three = texts(5, 3)
    assert len(set(three)) == 3
    assert texts(5, 1) == three[:1]
    assert texts(6, 1) == three[1:2]


def test_stop_strings_end_an_answer_before_them():
    answer = complete(FakePool("one two three"), stop=["three", "two"]).json()
    assert answer["choices"][0]["text"] == "one "
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("ACGT", ["ACGT"]),
        (["ACGT", "A"], ["ACGT", "A"]),
        ([65, 67], [(65, 67)]),
        ([[65, 67], [71]], [(65, 67), (71,)]),
    ],
)
def test_prompts_are_texts_or_token_ids_one_or_several(prompt, asked):
    pool = FakePool("Yes.")
    answer = complete(pool, prompt=prompt, n=2, temperature=0.5).json()
    assert [call[1][0] for call in pool.calls] == [one for one in asked for _ in range(2)]
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(asked)))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, asked))


@pytest.mark.parametrize("prompt", ["ACGT", [65, 67, 71, 84]])
def test_an_echo_tells_the_prompt_and_what_every_token_of_it_was_worth(prompt):
    choice = complete(FakePool("Yes."), prompt=prompt, echo=True, logprobs=1, max_tokens=2).json()["choices"][0]
    assert choice["text"] == "ACGTYe"
    told = choice["logprobs"]
    assert told["tokens"] == list("ACGTYe")
    assert told["text_offset"] == list(range(6))
    assert told["token_logprobs"] == [None, *(-0.1 - ord(letter) % 2 for letter in "CGTYe")]
    assert told["top_logprobs"][0] is None
    # The likeliest, and the token itself where that is another.
    assert told["top_logprobs"][1] == {"B": -0.1, "C": -1.1}
    assert told["top_logprobs"][3] == {"T": -0.1}


def test_lm_evaluation_harness_finds_what_it_looks_for():
    """Its request for the log-likelihood of " b" after "ACGT" and after "AC", and the places where it reads."""
    fields = {"prompt": [[*b"ACGT b"], [*b"AC a"]], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234}
    answer = complete(FakePool("Yes."), echo=True, **fields).json()
    for choice, context_length, likeliest in zip(answer["choices"], [4, 2], [True, False], strict=True):
        told = choice["logprobs"]
        values, tops = (told[name][context_length:-1] for name in ("token_logprobs", "top_logprobs"))
        assert sum(values) == pytest.approx(-0.2 if likeliest else -1.2)
        assert all(value == max(top.values()) for value, top in zip(values, tops, strict=True)) == likeliest


def test_without_an_echo_only_the_answer_is_told_the_turn_end_with_it():
    choice = complete(FakePool("Yes."), logprobs=0).json()["choices"][0]
    assert choice["text"] == "Yes."
    assert choice["logprobs"]["tokens"] == [*"Yes.", decode([END])]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]


def test_nothing_is_generated_where_the_prompt_alone_is_to_be_told():
    pool = FakePool("Yes.")
    answer = complete(pool, echo=True, logprobs=1, max_tokens=0).json()
    assert answer["choices"][0]["text"] == "ACGT"
    assert answer["choices"][0]["logprobs"]["tokens"] == list("ACGT")
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 0, "total_tokens": 4}
    assert [call[0] for call in pool.calls] == ["trace"]


def test_a_chat_tells_log_likelihoods_of_its_answer():
    answer = chat(FakePool("Yo"), logprobs=True, top_logprobs=2, max_tokens=2).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert [told["token"] for told in content] == ["Y", "o"]
    assert content[0]["logprob"] == -1.1
    assert content[0]["bytes"] == [ord("Y")]
    assert [(told["token"], told["logprob"]) for told in content[0]["top_logprobs"]] == [("X", -0.1), ("Y", -1.1)]
    assert chat(FakePool("Yo"), logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_minus_infinity_is_told_as_a_number_that_json_has():
    class Certain(FakePool):
        async def trace(self, *arguments: Any) -> Any:
            from dataclasses import replace

            traced = await super().trace(*arguments)
            return replace(traced, logprobs=(None, *(float("-inf") for _ in traced.tokens[1:])))

    assert complete(Certain("Y"), logprobs=0).json()["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0] * 2


def test_a_streamed_chat_is_the_answer_in_pieces_with_usage_at_the_end():
    told = events(chat(FakePool("Yes."), stream=True, stream_options={"include_usage": True}))
    assert told[-1] == "[DONE]"
    chunks = told[:-1]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == "Yes."
    assert [delta["finish_reason"] for delta in deltas] == [None] * 5 + ["stop"]
    asked = len(encode(CHAT["messages"]))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": asked, "completion_tokens": 5, "total_tokens": asked + 5}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert all("usage" not in chunk for chunk in events(chat(FakePool("Yes."), stream=True))[:-1])


def test_streamed_completions_are_told_apart_by_index_and_equal_the_unstreamed_ones():
    fields = {"prompt": ["one", "two"], "n": 2, "temperature": 1, "seed": 3}
    whole = [choice["text"] for choice in complete(FakePool(), **fields).json()["choices"]]
    texts = [""] * 4
    for event in events(complete(FakePool(), stream=True, **fields))[:-1]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == whole
    assert len(set(texts[:2])) == 2


def test_what_fails_before_a_stream_begins_has_its_own_status():
    assert error(chat(FakePool(error=Overloaded("full")), stream=True)) == (429, "overloaded", None)


@pytest.mark.parametrize(
    ("failure", "code"),
    [(ResourceError("the replica is gone"), "unavailable"), (RuntimeError("secret /home/x"), "internal_error")],
)
def test_a_stream_that_breaks_ends_with_an_error_event_and_without_done(failure, code):
    pool = FakePool("Yes.", error=failure, pieces=2)
    answer = chat(pool, stream=True)
    told = events(answer)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in told[:-1]) == "Ye"
    assert told[-1]["error"]["code"] == code
    assert "secret" not in answer.text
    assert pool.running == 0


def test_a_stream_ends_at_the_deadline():
    pool = FakePool("x" * 60, pause=0.2)
    told = events(chat(pool, stream=True))
    assert told[-1]["error"]["code"] == "timeout"
    assert 2 < len(told) < 30
    assert pool.running == 0


def test_silence_is_told_by_comments(monkeypatch):
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.05)
    told = events(chat(FakePool("ok", seconds=0.3, pause=0.3), stream=True))
    assert told[0] == ": waiting"
    assert told.count(": waiting") >= 4
    assert told[-1] == "[DONE]"


@pytest.mark.parametrize("moment", ["before the first piece", "between pieces", "while a piece is sent"])
def test_a_client_that_leaves_frees_its_places(moment):
    pool = FakePool("x" * 60, seconds=5 if moment == "before the first piece" else 0, pause=0.02)
    body = json.dumps({**CHAT, "stream": True, "n": 3}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
    }
    sent: list[Any] = []
    left = asyncio.Event()

    async def messages() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "http.request", "body": body, "more_body": False}
        await left.wait()
        yield {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if moment == "while a piece is sent" and len(sent) > 4:
            await asyncio.sleep(60)

    async def leave() -> None:
        receive = messages()
        request = asyncio.create_task(create_api(context(pool))(scope, receive.__anext__, send))
        await asyncio.sleep(0.2)
        assert pool.running == 3
        if moment == "before the first piece":  # Serve cancels the handler; a disconnect is seen once a stream runs.
            request.cancel()
        left.set()
        await asyncio.wait({request}, timeout=1)
        assert request.done()
        await asyncio.sleep(0.05)
        assert pool.running == 0

    asyncio.run(leave())


def test_a_request_of_many_questions_takes_half_of_the_queue_and_leaves_room_for_one():
    config = CONFIG.model_copy(update={"max_queued_requests": 4})
    pool = FakePool("x", pause=0.01, seconds=0.02)

    async def call() -> None:
        transport = httpx.ASGITransport(create_api(context(pool, config)))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            many = {**TEXT, "prompt": ["a", "b", "c", "d"], "n": 3, "temperature": 1}
            requests = [client.post("/v1/completions", json=many) for _ in range(2)]
            assert [answer.status_code for answer in await asyncio.gather(*requests)] == [200, 200]

    asyncio.run(call())
    assert pool.most == 2


@pytest.mark.parametrize("given", ["ACGT", ["ACGT", "A"], [65, 67], [[65], [67, 71]]])
def test_embeddings_are_numbers_or_base64_of_the_same(given):
    body = {"model": "polysome", "input": given}
    answers = [ask(FakePool(), "/v1/embeddings", body, encoding_format=kind).json() for kind in ("float", "base64")]
    numbers, packed = (answer["data"] for answer in answers)
    read = answers[0]["usage"]["prompt_tokens"]
    assert read > 0
    assert answers[0]["usage"] == answers[1]["usage"] == {"prompt_tokens": read, "total_tokens": read}
    assert [one["index"] for one in numbers] == list(range(len(numbers)))
    for one, other in zip(numbers, packed, strict=True):
        assert np.frombuffer(base64.b64decode(other["embedding"]), "<f4").tolist() == one["embedding"]


def test_models_are_the_base_and_the_adapters_and_an_adapter_can_be_asked():
    base, adapter = ask(FakePool(), "/v1/models").json()["data"]
    assert (base["id"], base["parent"], base["root"], base["max_model_len"]) == ("polysome", None, "polysome", 4096)
    assert (adapter["id"], adapter["parent"], adapter["root"]) == ("promoter@2", "polysome", "polysome")
    alone = ask(FakePool(), "/v1/models/promoter").json()
    # `created` is when the server began; each ask() begins one.
    assert alone == {**adapter, "created": alone["created"]}
    assert error(ask(FakePool(), "/v1/models/none")) == (404, "model_not_found", "model")
    pool = FakePool()
    answer = chat(pool, model="promoter").json()
    assert answer["model"] == "promoter@2"
    assert answer["system_fingerprint"] == adapter["fingerprint"] != base["fingerprint"]
    assert pool.calls[0][1][-1].adapter == PROMOTER


def test_scores_are_those_of_the_pool():
    body = {"messages": CHAT["messages"], "choices": ["Yes.", "No."]}
    answer = ask(FakePool("Yes."), "/v1/score", body).json()
    assert answer["sums"][0] > answer["sums"][1]
    assert answer["tokens"] == [1, 1]
    read = answer["usage"]["prompt_tokens"]
    assert read > 0
    assert answer["usage"]["total_tokens"] == read + 2


@pytest.mark.parametrize(
    ("path", "fields", "code", "param"),
    [
        ("chat", {"tools": []}, "unknown_parameter", "tools"),
        ("chat", {"logit_bias": {}}, "unknown_parameter", "logit_bias"),
        ("chat", {"n": 4}, "limit_exceeded", "n"),
        ("chat", {"n": 0}, "invalid_value", "n"),
        ("chat", {"max_tokens": 65}, "limit_exceeded", "max_tokens"),
        ("chat", {"max_completion_tokens": 65}, "limit_exceeded", "max_completion_tokens"),
        ("chat", {"max_tokens": -5}, "invalid_value", "max_tokens"),
        ("chat", {"max_tokens": 1, "max_completion_tokens": 1}, "invalid_value", None),
        ("chat", {"temperature": float("nan")}, "invalid_value", "temperature"),
        ("chat", {"temperature": 3}, "invalid_value", "temperature"),
        ("chat", {"stop": ["a"] * 5}, "invalid_value", "stop"),
        ("chat", {"stop": ""}, "invalid_value", "stop"),
        ("chat", {"top_logprobs": 1}, "invalid_value", None),
        ("chat", {"logprobs": True, "top_logprobs": 6}, "limit_exceeded", "top_logprobs"),
        ("chat", {"logprobs": True, "stream": True}, "unsupported", "logprobs"),
        ("chat", {"stream_options": {"include_usage": True}}, "invalid_value", None),
        ("chat", {"messages": []}, "invalid_value", "messages"),
        ("chat", {"messages": [{"role": "assistant", "content": "x"}]}, "invalid_value", None),
        ("chat", {"messages": [{"role": "user", "content": "\ud800"}]}, "invalid_value", "messages.0.content"),
        ("chat", {"\ud800": 1}, "invalid_value", None),
        ("chat", {"model": "../etc"}, "model_not_found", "model"),
        ("text", {"prompt": ""}, "invalid_value", "prompt"),
        ("text", {"prompt": []}, "invalid_value", "prompt"),
        ("text", {"prompt": [[]]}, "invalid_value", "prompt"),
        ("text", {"prompt": ["a", 1]}, "invalid_value", "prompt"),
        ("text", {"prompt": [-1]}, "invalid_value", "prompt"),
        ("text", {"prompt": [True]}, "invalid_value", "prompt"),
        ("text", {"prompt": ["a"] * 5}, "limit_exceeded", "prompt"),
        ("text", {"prompt": [2**31 - 1]}, "invalid_value", None),
        ("text", {"prompt": "A" * 5000}, "invalid_value", None),
        ("text", {"max_tokens": 0}, "invalid_value", None),
        ("text", {"logprobs": 6}, "limit_exceeded", "logprobs"),
        ("text", {"logprobs": 0, "stream": True}, "unsupported", "logprobs"),
        ("text", {"echo": True, "stream": True}, "unsupported", "echo"),
        ("text", {"suffix": "x"}, "unknown_parameter", "suffix"),
        ("text", {"prompt": ["A", LONG + "A"]}, "limit_exceeded", "prompt"),
        ("chat", {"messages": [{"role": "user", "content": LONG}] * 2}, "limit_exceeded", "messages"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_name(path, fields, code, param):
    answer = (chat if path == "chat" else complete)(FakePool(), **fields)
    assert error(answer) == (404 if code == "model_not_found" else 400, code, param)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"model": "polysome", "input": ["A", LONG + "A"]}, "input"),
        ("/v1/score", {**CHAT, "choices": ["Yes.", LONG + "A"]}, "choices"),
        ("/v1/score", {"messages": [{"role": "user", "content": LONG + "A"}], "choices": ["Yes."]}, "messages"),
    ],
)
def test_what_is_longer_than_any_context_is_refused_before_the_engine_tokenizes_it(path, body, param):
    pool = FakePool(context=2 * len(LONG))
    assert error(ask(pool, path, body)) == (400, "limit_exceeded", param)
    assert pool.calls == []
    assert ask(pool, "/v1/embeddings", {"model": "polysome", "input": LONG}).status_code == 200


def test_a_registry_is_read_outside_of_the_event_loop_and_within_the_deadline():
    class Slow(OneAdapter):
        def find(self, name: str) -> Published | None:
            seen.append(threading.current_thread())
            time.sleep(0.3 if name == "promoter" else 0)
            return super().find(name)

    async def call(model: str, seconds: float) -> str | None:
        config = CONFIG.model_copy(update={"request_timeout_seconds": seconds})
        of = Context(config, FakePool(), "0" * 16, registry=Slow())  # type: ignore[arg-type]
        found = await of.target(model)
        return found.adapter.id if found.adapter else None

    seen: list[threading.Thread] = []
    assert asyncio.run(call("promoter@2", 2)) == "promoter@2"
    assert threading.current_thread() not in seen
    with pytest.raises(ApiError, match=r"no answer within 0\.1 s"):
        asyncio.run(call("promoter", 0.1))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_value"),
        (b"", "missing_parameter"),
    ],
)
def test_a_body_that_is_no_request_is_a_400(body, code):
    status, told, _ = error(ask(FakePool(), "/v1/chat/completions", body))
    assert (status, told) == (400, code)
