"""`VllmEngine` over an engine that answers as the one of `ray.serve.llm` does, and computes with `BatchEngine`."""

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_async_conformance import answer, asked
from test_score import adapter
from tiny_models import CONTEXT, build_model, conversations

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.inference.batch import BatchEngine
from polysome.inference.engine import Prompt, Sampling
from polysome.inference.text import Pieces
from polysome.inference.vllm import VllmEngine

CHATS: list[Prompt] = [*conversations(8, seed=7), "ACGT is", (5, 9, 13)]


class FakeVllm:
    """The part of `VLLMEngine` that is asked: server-sent events where a request streams, else one response."""

    def __init__(self, engine: BatchEngine) -> None:
        self.batch, self.running, self.dead, self.ends = engine, 0, False, True

    async def completions(self, request: SimpleNamespace) -> AsyncIterator[Any]:
        assert (request.top_k, request.min_p, request.repetition_penalty) == (0, 0.0, 1.0)
        own = None if request.model == "tiny" else request.model
        if own is not None and own not in self.batch.adapters.names:
            yield SimpleNamespace(error=SimpleNamespace(message=f"no model {own}", code=404))
            return
        self.running += 1
        try:
            with self.batch.using(own):
                events = self._streamed(request) if getattr(request, "stream", False) else [self._whole(request)]
            for event in events:
                await asyncio.sleep(0)
                yield event
        finally:
            self.running -= 1

    def _streamed(self, request: SimpleNamespace) -> list[str]:
        # It takes no request that would not fit at its longest.
        assert len(request.prompt) + request.max_tokens <= CONTEXT
        assert request.return_token_ids
        found = asked(
            self.batch,
            tuple(request.prompt),
            Sampling(request.max_tokens, request.temperature, request.top_p, request.seed, tuple(request.stop)),
        )
        told, events = Pieces(request.stop), []
        for size, token in enumerate(found.tokens, start=1):
            last = size == len(found.tokens)
            text = self.batch.decoder.text(list(found.tokens[:size]))
            piece = told.finish(text) if last else told.push(text)
            reason = found.finish_reason if last and self.ends else None
            events.append({"choices": [{"index": 0, "text": piece, "token_ids": [token], "finish_reason": reason}]})
        events.append({"choices": [], "usage": {}})
        return [*(f"data: {json.dumps(event)}\n\n" for event in events), "data: [DONE]\n\n"]

    def _whole(self, request: SimpleNamespace) -> SimpleNamespace:
        choices = []
        for index, prompt in enumerate(request.prompt):
            assert len(prompt) + request.max_tokens <= CONTEXT + 1
            forward = self.batch.decoder.forward
            logits, _ = forward.logits(*forward.padded([prompt]), keep=len(prompt), use_cache=False)
            places: list[Any] = [None]
            for token, likelihoods in zip(prompt[1:], torch.log_softmax(logits[0], dim=-1), strict=False):
                told = {token, *likelihoods.topk(request.prompt_logprobs).indices.tolist()}
                places.append({one: SimpleNamespace(logprob=likelihoods[one].item()) for one in told})
            choices.append(SimpleNamespace(index=index, prompt_logprobs=places))
        return SimpleNamespace(choices=choices[::-1])

    async def resolve_lora(self, lora: Any) -> None:
        try:
            self.batch.load_adapter(lora.local_path, name=lora.model_id)
        except ConfigurationError as error:
            raise ValueError(f"Failed to load lora model: {error.what}") from error

    async def check_health(self) -> None:
        if self.dead:
            raise RuntimeError("EngineDeadError")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def plain(folder: str) -> BatchEngine:
    return BatchEngine(folder)


@pytest.fixture
def fake(folder: str) -> FakeVllm:
    return FakeVllm(BatchEngine(folder))


@pytest.fixture
def engine(fake: FakeVllm, folder: str) -> VllmEngine:
    return VllmEngine(fake, lambda **fields: SimpleNamespace(**fields), folder=folder, name="tiny")


@pytest.mark.parametrize(
    "how", [Sampling(12), Sampling(500), Sampling(12, stop=("A", "T")), Sampling(8, temperature=1.0, top_p=0.9, seed=4)]
)
def test_answers_are_those_of_the_model(how: Sampling, engine: VllmEngine, plain: BatchEngine) -> None:
    async def work() -> None:
        found = await asyncio.gather(*(answer(engine, chat, how) for chat in CHATS))
        assert found == [asked(plain, chat, how) for chat in CHATS]
        assert engine.load().running == 0
        await engine.health()

    asyncio.run(work())


def test_giving_up_ends_the_request(engine: VllmEngine, fake: FakeVllm) -> None:
    async def work() -> None:
        held = engine.generate(CHATS[-1], Sampling(40))
        await anext(held)
        assert fake.running == engine.load().running == 1
        await held.aclose()
        assert fake.running == engine.load().running == 0

    asyncio.run(work())


def test_scores_and_traces_are_those_of_the_model(engine: VllmEngine, plain: BatchEngine) -> None:
    choices = [f"{word} {base}" for word in ("yes", "no", "a promoter") for base in "ACGT"] * 6

    async def work() -> None:
        found = await engine.score(CHATS[0], choices)
        (wanted,) = plain.score([CHATS[0]], choices)
        assert found.sums == pytest.approx(wanted.sums, abs=1e-4)
        assert found.tokens == wanted.tokens
        for top in (0, 2):
            traced, own = await engine.trace(CHATS[1], (5, 6), top=top), plain.trace(CHATS[1], (5, 6), top=top)
            assert (traced.tokens, traced.texts, traced.logprobs) == (own.tokens, own.texts, own.logprobs)
            assert [[value for _, value in best] for best in traced.top] == [
                pytest.approx([value for _, value in best]) for best in own.top
            ]

    asyncio.run(work())


def test_adapters_are_loaded_by_folder_and_asked_by_name(
    engine: VllmEngine, folder: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = adapter(folder, tmp_path_factory.mktemp("adapter"), seed=1)
    own = BatchEngine(folder, adapter=where)

    async def work() -> None:
        with pytest.raises(ConfigurationError, match="no adapter 'one@1'"):
            await answer(engine, CHATS[0], Sampling(4), adapter="one@1")
        await engine.load_adapter(where, name="one@1")
        assert await answer(engine, CHATS[0], Sampling(8), adapter="one@1") == asked(own, CHATS[0], Sampling(8))
        assert (await engine.score(CHATS[0], ["yes"], adapter="one@1")).sums == pytest.approx(
            own.score([CHATS[0]], ["yes"])[0].sums, abs=1e-4
        )
        with pytest.raises(ConfigurationError, match="already"):
            await engine.load_adapter(where, name="one@1")
        await engine.unload_adapter("one@1")
        with pytest.raises(ConfigurationError, match="no adapter 'one@1'"):
            await engine.trace(CHATS[0], (), top=0, adapter="one@1")
        # The engine still knows it, and says so.
        with pytest.raises(ConfigurationError, match="vLLM does not take the adapter"):
            await engine.load_adapter(where, name="one@1")

    asyncio.run(work())


def test_what_cannot_be_answered_is_refused(engine: VllmEngine, fake: FakeVllm) -> None:
    async def work() -> None:
        for prompt in ([{"role": "user", "content": "A" * 200}], (), (10**6,), []):
            with pytest.raises(DataError):
                await answer(engine, prompt, Sampling(4))
        for bad in (
            engine.score(CHATS[0], []),
            engine.score("A" * 200, ["A"]),
            engine.trace((), (), top=0),
            engine.trace("A", (10**6,), top=0),
        ):
            with pytest.raises(DataError):
                await bad
        with pytest.raises(ConfigurationError, match="no vectors"):
            await engine.embed(["A"], pool="mean")
        assert fake.running == 0

    asyncio.run(work())


@pytest.mark.parametrize(("code", "error"), [(400, DataError), (404, DataError), (500, ResourceError)])
def test_errors_are_told_in_their_kind(
    code: int, error: type[Exception], engine: VllmEngine, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = SimpleNamespace(message="of vLLM", code=code)

    async def object_at_once(request: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(error=told)

    async def event_later(request: Any) -> AsyncIterator[Any]:
        yield 'data: {"choices": [{"index": 0, "text": "A", "token_ids": [5], "finish_reason": null}]}\n\n'
        yield f"data: {json.dumps({'error': vars(told)})}\n\n"

    async def work() -> None:
        for completions in (object_at_once, event_later):
            monkeypatch.setattr(fake, "completions", completions)
            with pytest.raises(error, match="of vLLM"):
                await answer(engine, CHATS[0], Sampling(4))
        monkeypatch.setattr(fake, "completions", object_at_once)
        with pytest.raises(error, match="of vLLM"):
            await engine.score(CHATS[0], ["A"])

    asyncio.run(work())


def test_an_answer_without_an_end_and_a_dead_engine_are_told(engine: VllmEngine, fake: FakeVllm) -> None:
    async def work() -> None:
        fake.ends = False
        with pytest.raises(ResourceError, match="no end"):
            await answer(engine, CHATS[0], Sampling(4))
        fake.dead = True
        with pytest.raises(ResourceError, match="EngineDeadError"):
            await engine.health()

    asyncio.run(work())
