"""What a server promises when it is updated, extended, hurt or fed nonsense, on a real Ray Serve under load."""

import asyncio
import dataclasses
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psutil
import pytest
from ports import free_port
from served_model import write_llama, write_lora

from polysome.inference.batch import BatchEngine
from polysome.serving.adapters import Registry
from polysome.serving.config import Autoscaling, Limits, ServeConfig

pytestmark = pytest.mark.ray

CONTEXT = 4096
NAME = "proved"


@pytest.fixture(scope="module")
def model_folder(tiny_tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama that hardly ever ends its turn, so that long answers are long."""
    folder = tmp_path_factory.mktemp("proved") / "export"
    return write_llama(folder, tiny_tokenizer, max_position_embeddings=CONTEXT, initializer_range=0.5)


@pytest.fixture(scope="module")
def adapters(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A registry with `one` and `two`, and the folders that they were published from."""
    root = tmp_path_factory.mktemp("registry")
    registry = Registry(str(root / "published"))
    folders = {}
    for seed, name in enumerate(("one", "two")):
        folders[name] = write_lora(model_folder, root / name, seed=seed)
        registry.publish(folders[name], name)
    return str(root / "published"), folders


@pytest.fixture(scope="module")
def served(ray_cluster, model_folder: str, adapters) -> Iterator[tuple[str, ServeConfig]]:
    from ray import serve

    from polysome.serving import app

    config = ServeConfig(
        model=model_folder,
        name=NAME,
        port=free_port(),
        adapters=adapters[0],
        gateway_replicas=2,
        max_batch_size=4,
        # Two replicas and one that starts beside them share two CPUs with whatever else the tests run.
        autoscaling=Autoscaling(min_replicas=1, max_replicas=1),
        limits=Limits(body_bytes=200_000, records=8, max_tokens=4000, default_max_tokens=8),
        request_timeout_seconds=60,
    )
    with app.serving(config) as url:
        yield url, config
    # Other tests of this Ray serve at a port of their own, and Serve has one proxy.
    serve.shutdown()


def body(model: str = NAME, content: str = "<dna>ACGT</dna> Is there a promoter?", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 6, **fields}


@dataclasses.dataclass
class Seen:
    """What a client of the load saw: status 0 is a broken connection."""

    status: int
    seconds: float
    at: float
    text: str = ""
    problem: str = ""


@asynccontextmanager
async def load(url: str, clients: int, **fields: Any) -> AsyncIterator[list[Seen]]:
    """So many clients that ask again and again while the block runs."""
    seen: list[Seen] = []
    ended = asyncio.Event()

    async def client(session: httpx.AsyncClient) -> None:
        while not ended.is_set():
            began = time.monotonic()
            try:
                answer = await session.post("/v1/chat/completions", json=body(**fields))
                text = answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else ""
                seen.append(Seen(answer.status_code, time.monotonic() - began, began, text, answer.text[:300]))
            except httpx.HTTPError as error:
                seen.append(Seen(0, time.monotonic() - began, began, problem=repr(error)))

    async with httpx.AsyncClient(base_url=url, timeout=60) as session:
        tasks = [asyncio.create_task(client(session)) for _ in range(clients)]
        try:
            yield seen
        finally:
            ended.set()
            await asyncio.gather(*tasks)


def within(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), timeout=240))


def greedy(folder: str, adapter: str | None = None, tokens: int = 6) -> str:
    engine = BatchEngine(folder, adapter=adapter)
    (answer,) = engine.generate([body()["messages"]], max_new_tokens=tokens)
    return answer.text


def failures(seen: list[Seen]) -> list[Seen]:
    return [one for one in seen if one.status != 200]


def test_a_rolling_update_under_load_fails_no_request(served, model_folder):
    """Another batch size makes new replicas of pool and gateway."""
    from ray import serve

    from polysome.serving import app

    url, config = served

    async def work() -> None:
        async with load(url, clients=4) as seen:
            await asyncio.sleep(1)
            before = len(seen)
            newer = config.model_copy(update={"max_batch_size": 8})
            await asyncio.to_thread(serve.run, app.build(newer), name=config.name, route_prefix="/", blocking=False)
            await asyncio.sleep(1)
        assert before > 0
        assert len(seen) > before
        assert not failures(seen), failures(seen)[:3]
        assert {one.text for one in seen} == {greedy(model_folder)}

    within(work)


def test_an_adapter_is_published_and_rolled_back_under_load(served, model_folder, adapters, tmp_path):
    url, _ = served
    registry = Registry(adapters[0])
    first, second = (
        write_lora(model_folder, tmp_path / "first", seed=11),
        write_lora(model_folder, tmp_path / "second", seed=12),
    )
    registry.publish(first, "fresh")
    told = {"first": greedy(model_folder, first), "second": greedy(model_folder, second)}
    assert told["first"] != told["second"]

    async def until(url: str, text: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as session:
            while True:
                answer = await session.post("/v1/chat/completions", json=body("fresh"))
                if answer.json()["choices"][0]["message"]["content"] == text:
                    return
                await asyncio.sleep(0.1)

    async def work() -> None:
        async with load(url, clients=3, model="fresh") as seen:
            await until(url, told["first"])
            registry.publish(second, "fresh")
            await until(url, told["second"])
            registry.rollback("fresh")
            await until(url, told["first"])
        assert not failures(seen), failures(seen)[:3]
        assert {one.text for one in seen} == set(told.values())

    within(work)


def test_interleaved_adapters_answer_as_each_does_alone(served, model_folder, adapters):
    url, _ = served
    alone = {NAME: greedy(model_folder, tokens=24)}
    alone |= {name: greedy(model_folder, folder, tokens=24) for name, folder in adapters[1].items()}
    assert len(set(alone.values())) == 3

    async def work() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as session:
            names = [name for _ in range(6) for name in alone]
            answers = await asyncio.gather(
                *(session.post("/v1/chat/completions", json=body(name, max_tokens=24)) for name in names)
            )
        for name, answer in zip(names, answers, strict=True):
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == alone[name]
        assert len({answer.json()["system_fingerprint"] for answer in answers}) == 3

    within(work)


def pool_pids() -> list[int]:
    """Of the replicas, which Ray names by deployment and whose raylet this process started."""
    processes = psutil.Process().children(recursive=True)
    return [one.pid for one in processes if f"{NAME}:ModelPool" in " ".join(one.cmdline())]


def test_a_killed_replica_is_replaced_and_its_streams_end_with_an_error(served):
    """Calls that nothing was told of yet are asked again; a stream that had begun says what became of it."""
    url, _ = served
    assert httpx.post(f"{url}/v1/chat/completions", json=body(), timeout=60).status_code == 200

    async def stream(session: httpx.AsyncClient, began: asyncio.Event) -> list[str]:
        lines = []
        request = body(stream=True, max_tokens=3000, temperature=1.0, seed=1)
        async with session.stream("POST", "/v1/chat/completions", json=request) as answer:
            async for line in answer.aiter_lines():
                lines += [line] if line.startswith("data:") else []
                if len(lines) > 1:
                    began.set()
        return lines

    async def work() -> None:
        began = asyncio.Event()
        async with httpx.AsyncClient(base_url=url, timeout=60) as session:
            long = asyncio.create_task(stream(session, began))
            await asyncio.wait_for(began.wait(), timeout=60)
            async with load(url, clients=3) as seen:
                (pid,) = pool_pids()
                os.kill(pid, signal.SIGKILL)
                killed = time.monotonic()
                lines = await long
                while not any(one.status == 200 and one.at > killed for one in seen):
                    await asyncio.sleep(0.1)
                await asyncio.sleep(2)
        last = json.loads(lines[-1].removeprefix("data:"))
        assert set(last["error"]) == {"message", "type", "param", "code"}, lines[-1]
        # The only replica is gone, so calls wait for the next one, which loads within their time.
        assert not failures(seen), failures(seen)[:3]

    within(work)


def test_a_caller_that_goes_away_frees_its_place(served):
    """Four places: four long streams are left; then four more are answered at once, long before the first would end."""
    url, _ = served

    async def leave(session: httpx.AsyncClient, seed: int) -> None:
        request = body(stream=True, max_tokens=3500, temperature=1.0, seed=seed)
        async with session.stream("POST", "/v1/chat/completions", json=request) as answer:
            async for line in answer.aiter_lines():
                if '"content"' in line:
                    return

    async def seconds(session: httpx.AsyncClient) -> float:
        await asyncio.gather(*(leave(session, seed) for seed in range(8)))
        began = time.monotonic()
        asked = [session.post("/v1/chat/completions", json=body(max_tokens=2)) for _ in range(4)]
        answers = await asyncio.gather(*asked)
        assert [answer.status_code for answer in answers] == [200] * 4
        return time.monotonic() - began

    async def work() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as session:
            freed = []
            # What else the machine does may only add to it.
            while not freed or (min(freed) >= 1.0 and len(freed) < 4):
                freed.append(await seconds(session))
        assert min(freed) < 1.0, freed

    within(work)


CORPUS: list[tuple[str, dict[str, Any] | bytes, dict[str, str], set[int]]] = [
    ("temperature NaN", b'{"model":"proved","messages":[{"role":"user","content":"x"}],"temperature":NaN}', {}, {400}),
    ("temperature 1e-30", body(temperature=1e-30), {}, {200, 400}),
    ("temperature 0", body(temperature=0), {}, {200}),
    ("temperature -1", body(temperature=-1), {}, {400}),
    ("huge prompt", body(content="ACGT" * 20_000), {}, {400}),
    ("negative max_tokens", body(max_tokens=-5), {}, {400}),
    ("max_tokens 1e9", body(max_tokens=10**9), {}, {400}),
    ("n 1000", body(n=1000), {}, {400}),
    ("no messages", body() | {"messages": []}, {}, {400}),
    ("empty message", body(content=""), {}, {400}),
    ("control characters", body(content="\x00\x01\ufffe"), {}, {200, 400}),
    ("special tokens", body(content="<|im_end|><|im_start|>system"), {}, {200, 400}),
    ("invalid UTF-8", b'{"model":"proved","messages":[{"role":"user","content":"\xff\xfe"}]}', {}, {400}),
    ("not JSON", b"{", {}, {400}),
    ("deep JSON", b"[" * 50_000, {}, {400}),
    ("unknown field", body(frobnicate=1), {}, {400}),
    ("bad adapter", body("no-such-adapter"), {}, {404}),
    ("adapter as a path", body("../../etc/passwd"), {}, {404}),
    ("30 MB body", b"x" * 30_000_000, {}, {413}),
    ("many stops", body(stop=["a"] * 100), {}, {400}),
    ("empty stop", body(stop=[""]), {}, {400}),
    ("a deadline of the caller's own", body(), {"x-request-timeout-seconds": "0"}, {200}),
]


@pytest.mark.parametrize(("name", "request_body", "headers", "wanted"), CORPUS, ids=[case[0] for case in CORPUS])
def test_after_poison_a_good_request_succeeds(served, model_folder, name, request_body, headers, wanted):
    url, _ = served
    content = request_body if isinstance(request_body, bytes) else json.dumps(request_body).encode()
    try:
        answer = httpx.post(
            f"{url}/v1/chat/completions",
            content=content,
            headers={"content-type": "application/json", **headers},
            timeout=60,
        )
    except httpx.WriteError:
        # The server answered and hung up before all of it was sent.
        assert name == "30 MB body"
    else:
        assert answer.status_code in wanted, answer.text
        if answer.status_code != 200:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    require_good(url, model_folder)


def test_after_a_body_that_never_comes_a_good_request_succeeds(served, model_folder):
    """The head promises a gigabyte; ten bytes come, and the connection stays open meanwhile."""
    url, config = served
    with socket.create_connection(("127.0.0.1", config.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 999999999\r\n\r\n" + b"x" * 10
        )
        require_good(url, model_folder)


def test_a_full_house_says_so_and_answers_again_when_there_is_room(served, model_folder):
    """Two gateways with a queue of one each, before a replica that holds one question."""
    from ray import serve

    from polysome.serving import app

    url, config = served
    limits = config.limits.model_copy(update={"records": 1})
    tight = config.model_copy(update={"max_ongoing_requests": 1, "max_queued_requests": 1, "limits": limits})

    async def work() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as session:
            asked = body(max_tokens=400, temperature=1.0, seed=1)
            answers = await asyncio.gather(*(session.post("/v1/chat/completions", json=asked) for _ in range(10)))
        told = [answer.status_code for answer in answers]
        assert set(told) == {200, 429}, told
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) > 0
                assert answer.json()["error"]["code"] == "overloaded"

    try:
        serve.run(app.build(tight), name=NAME, route_prefix="/", blocking=False)
        within(work)
        require_good(url, model_folder)
    finally:
        serve.run(app.build(config), name=NAME, route_prefix="/", blocking=False)


def test_no_header_of_a_caller_lifts_the_time_limit(served):
    """Serve's proxy would go by the first, and by the second not look whether the caller is still there."""
    from ray import serve

    from polysome.serving import app

    url, config = served
    headers = {"x-request-timeout-seconds": "3600", "x-request-disconnect-disabled": "?1"}
    asked = body(max_tokens=4000, n=8)
    try:
        hasty = config.model_copy(update={"request_timeout_seconds": 0.2})
        serve.run(app.build(hasty), name=NAME, route_prefix="/", blocking=False)
        until = time.monotonic() + 60
        # Until then replicas of the old version answer.
        while (answer := httpx.post(f"{url}/v1/chat/completions", json=asked, headers=headers, timeout=60)).is_success:
            assert time.monotonic() < until
    finally:
        serve.run(app.build(config), name=NAME, route_prefix="/", blocking=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "timeout")


def require_good(url: str, model_folder: str) -> None:
    good = httpx.post(f"{url}/v1/chat/completions", json=body(), timeout=60)
    assert good.status_code == 200, good.text
    assert good.json()["choices"][0]["message"]["content"] == greedy(model_folder)
