"""The gateway without Ray: deadlines, overload, failures and bodies, against a pool that does as it is told."""

import asyncio
from collections.abc import Sequence

import httpx
import pytest

from polysome.config import DataError, ResourceError
from polysome.inference.engine import Conversation, Generation, Scores
from polysome.serving.config import Limits, ServeConfig
from polysome.serving.gateway import Overloaded, create_api
from polysome.serving.prediction import Sampling

CHAT = {"model": "polysome", "messages": [{"role": "user", "content": "Is there a promoter?"}]}


class ToldPool:
    """Answers, sleeps or raises, as told."""

    def __init__(self, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.error, self.seconds = error, seconds
        self.samplings: list[Sampling] = []

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        self.samplings.append(sampling)
        await self.ready()
        return Generation("Yes.", 7, 2, "stop")

    async def score(self, conversation: Conversation, choices: Sequence[str]) -> Scores:
        return Scores((0.0,) * len(choices), (1,) * len(choices))

    async def ready(self) -> None:
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error


IMPATIENT = ServeConfig(model="unused", request_timeout_seconds=0.2, limits=Limits(body_bytes=2048))


def ask(
    pool: ToldPool, path: str = "/v1/chat/completions", *, config: ServeConfig = IMPATIENT, **request: object
) -> httpx.Response:
    api = create_api(config, pool, fingerprint="0" * 16)

    async def call() -> httpx.Response:
        # As Serve does: what the application raises has been answered with a 500 by its own handler.
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            if not request:
                return await client.get(path)
            return await client.post(path, **request)

    return asyncio.run(call())


def test_a_completion_has_openais_shape_and_counts():
    pool = ToldPool()
    answer = ask(pool, json={**CHAT, "max_completion_tokens": 9, "temperature": 0.5, "seed": 1, "user": "me"}).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop", "logprobs": None}
    ]
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert pool.samplings == [Sampling(9, temperature=0.5, seed=1)]


@pytest.mark.parametrize(
    ("pool", "status", "code", "header"),
    [
        (ToldPool(seconds=5), 408, "timeout", ("x-should-retry", "false")),
        (ToldPool(Overloaded("full")), 429, "overloaded", ("retry-after", "2")),
        (ToldPool(ResourceError("gone")), 503, "unavailable", ("retry-after", "5")),
        (ToldPool(DataError("too long")), 400, "invalid_value", None),
    ],
)
def test_what_goes_wrong_in_the_pool_is_told_in_openais_shape(pool, status, code, header):
    answer = ask(pool, json=CHAT)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    if header:
        assert answer.headers[header[0]] == header[1]


def test_many_records_are_asked_a_few_at_a_time():
    class Counting(ToldPool):
        asked = most = 0

        async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
            self.asked += 1
            self.most = max(self.most, self.asked)
            await asyncio.sleep(0.001)
            self.asked -= 1
            return Generation("Yes.", 7, 2, "stop")

        async def score(self, conversation: Conversation, choices: Sequence[str]) -> Scores:
            await self.generate(conversation, Sampling(1))
            return Scores((0.0,) * len(choices), (1,) * len(choices))

    pool = Counting()
    config = ServeConfig(model="unused", limits=Limits(records=16), max_queued_requests=16)
    body = {"task": "planted_promoter", "sequences": ["ACGTACGTACGTACGTACGTACGT"] * 16}
    answer = ask(pool, "/v1/predict", config=config, json=body)
    assert [item["index"] for item in answer.json()["predictions"]] == list(range(16))
    assert pool.most == 8


def test_an_unexpected_error_tells_an_id_and_nothing_else():
    answer = ask(ToldPool(RuntimeError("secret path /home/x")), json=CHAT, headers={"x-request-id": "abc-1"})
    assert answer.status_code == 500
    assert "abc-1" in answer.text
    assert "secret" not in answer.text


def test_a_strange_request_id_is_not_repeated():
    answer = ask(ToldPool(RuntimeError()), json=CHAT, headers={"x-request-id": "<script>"})
    assert "script" not in answer.text


def test_a_body_is_counted_as_it_comes_not_as_it_claims():
    async def pieces():
        for _ in range(10):
            yield b" " * 1000

    answer = ask(ToldPool(), content=pieces(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_not_ready_is_a_503_while_the_process_is_alive():
    broken = ToldPool(ResourceError("no token"))
    assert ask(broken, "/readyz").status_code == 503
    assert ask(broken, "/healthz").status_code == 200


def test_both_names_of_the_token_limit_are_refused():
    answer = ask(ToldPool(), json={**CHAT, "max_tokens": 1, "max_completion_tokens": 1})
    assert answer.status_code == 400
    assert "not both" in answer.json()["error"]["message"]
