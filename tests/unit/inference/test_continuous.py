"""What transformers' continuous batching leaves to its caller, each trap once."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from test_async_conformance import LONG, answer, asked, idle, until
from test_score import adapter
from tiny_models import build_model, conversations

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.inference import continuous, packed
from polysome.inference.batch import BatchEngine
from polysome.inference.continuous import ContinuousEngine
from polysome.inference.engine import Prompt, Sampling
from polysome.inference.manager import PAGE
from polysome.inference.packed import Seats, twin

CHATS = conversations(12, seed=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_model(tmp_path_factory.mktemp("model"))


def within(
    folder: str,
    work: Callable[[ContinuousEngine], Awaitable[None]],
    *,
    size: int = 8,
    tokens: int = 4000,
) -> None:
    """Run a coroutine with a fresh engine, and close the engine."""
    engine = ContinuousEngine(BatchEngine(folder, max_batch_tokens=tokens), max_batch_size=size)

    async def main() -> None:
        try:
            await asyncio.wait_for(work(engine), timeout=120)
        finally:
            await engine.close()

    asyncio.run(main())


def endless(engine: BatchEngine) -> Prompt:
    """A prompt whose answer takes a while."""
    candidates = [(first, second) for first in range(3, 60) for second in range(3, 60)]
    return next(one for one in candidates if asked(engine, one, LONG).completion_tokens > 25)


@pytest.mark.parametrize("kind", ["mistral", "mistral, window 24", "qwen2", "gpt2"])
def test_other_architectures_answer_as_the_batch_engine(kind: str, tmp_path: Path) -> None:
    folder = build_model(tmp_path, kind)
    plain = BatchEngine(folder)

    async def work(engine: ContinuousEngine) -> None:
        found = await asyncio.gather(*(answer(engine, chat, Sampling(20)) for chat in CHATS))
        assert found == [asked(plain, chat, Sampling(20)) for chat in CHATS]

    within(folder, work)


def test_an_architecture_that_cannot_is_refused_by_a_trial(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    # It adds to attention what depends on the distance, which a packed pass knows nothing of.
    with pytest.raises(ConfigurationError, match=r"this bloom model cannot be batched continuously.*log-likelihood"):
        ContinuousEngine(BatchEngine(build_model(tmp_path, "bloom")), max_batch_size=4)
    assert not [thread for thread in set(threading.enumerate()) - before if "scores" not in thread.name]


def test_layers_that_keep_their_caches_in_several_ways_are_refused(tmp_path: Path) -> None:
    folder = build_model(
        tmp_path, "qwen2", use_sliding_window=True, sliding_window=24, max_window_layers=1, tie_word_embeddings=False
    )
    with pytest.raises(ConfigurationError, match="of several kinds"):
        ContinuousEngine(BatchEngine(folder), max_batch_size=4)


def test_a_cache_that_the_memory_does_not_do_for_is_refused_at_once(folder: str) -> None:
    with pytest.raises(ResourceError, match="no memory for the cache"):
        ContinuousEngine(BatchEngine(folder, max_batch_tokens=10**12), max_batch_size=4)


def test_the_cache_is_what_was_asked_for_and_the_weights_are_held_once(folder: str, tmp_path: Path) -> None:
    batch = BatchEngine(folder, max_batch_tokens=1000)
    where = adapter(folder, tmp_path / "one", seed=1, modules_to_save=["lm_head", "norm"])

    async def work(engine: ContinuousEngine) -> None:
        await engine.load_adapter(where, name="one")
        model, own = engine._manager.model, batch.decoder.forward.model
        assert model is not own
        named = dict(own.named_parameters(remove_duplicate=False))
        assert len([name for name in named if "one" in name]) > 4
        for name, parameter in model.named_parameters(remove_duplicate=False):
            assert parameter is named[name]
        assert engine._manager.batch_processor.cache.num_blocks == 1000 // PAGE

    engine = ContinuousEngine(batch, max_batch_size=4)
    asyncio.run(work(engine))
    asyncio.run(engine.close())


def test_no_thread_keeps_the_process_from_ending(folder: str) -> None:
    before = set(threading.enumerate())

    async def work(engine: ContinuousEngine) -> None:
        # Those of executors end with the interpreter.
        kept = [one for one in set(threading.enumerate()) - before if not one.daemon]
        assert {one.name.partition("_")[0] for one in kept} <= {"scores", "asyncio"}

    within(folder, work)


def test_a_prompt_that_the_cache_cannot_hold_is_refused_alone(folder: str) -> None:
    plain = BatchEngine(folder)

    async def work(engine: ContinuousEngine) -> None:
        with pytest.raises(DataError, match="the cache holds 32"):
            await answer(engine, tuple(range(3, 40)), Sampling(4))
        prompt = tuple(range(3, 32))
        found = await answer(engine, prompt, Sampling(20))
        assert found.completion_tokens <= 3
        assert asked(plain, prompt, Sampling(20)).text.startswith(found.text)
        assert await answer(engine, (5, 6, 7), Sampling(8)) == asked(plain, (5, 6, 7), Sampling(8))

    within(folder, work, tokens=PAGE)


def test_a_prompt_longer_than_a_pass_is_read_in_several(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "long", max_position_embeddings=2048)
    where = adapter(folder, tmp_path / "adapter", seed=2)
    plain, other = BatchEngine(folder), BatchEngine(folder, adapter=where)
    prompts = [tuple((7 * place + start) % 60 for place in range(600 + 300 * start)) for start in range(4)]

    async def work(engine: ContinuousEngine) -> None:
        await engine.load_adapter(where, name="one")
        names = [None, "one"]
        found = await asyncio.gather(
            *(answer(engine, one, Sampling(6), adapter=name) for one in prompts for name in names)
        )
        assert found == [asked(own, one, Sampling(6)) for one in prompts for own in (plain, other)]

    within(folder, work, tokens=16384)


@pytest.mark.parametrize("failure", [RuntimeError("a kernel failed"), SystemExit(1)])
def test_when_the_thread_dies_all_are_told(
    folder: str, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    prompt = endless(BatchEngine(folder))

    async def work(engine: ContinuousEngine) -> None:
        async with aclosing(engine.generate(prompt, LONG)) as held:
            await anext(held)
            waiting = [asyncio.create_task(answer(engine, chat, Sampling(4))) for chat in CHATS[:3]]
            await until(lambda: engine.load().waiting == 3, within=5)

            def fail(*_: Any, **__: Any) -> None:
                raise failure

            engine._manager.model.forward = fail
            with pytest.raises(ResourceError, match="has ended"):
                async for _ in held:
                    pass
        for task in waiting:
            with pytest.raises(ResourceError, match="has ended"):
                await task
        await idle(engine)
        for refused in (engine.health(), answer(engine, CHATS[0], Sampling(4)), engine.score(CHATS[0], ["A"])):
            with pytest.raises(ResourceError, match="has ended"):
                await refused

    within(folder, work, size=1)


def test_logits_that_are_no_numbers_fail_the_answer_alone(folder: str) -> None:
    plain = BatchEngine(folder)

    async def work(engine: ContinuousEngine) -> None:
        weight = engine._engine.decoder.forward.model.lm_head.weight
        kept = weight.detach().clone()
        for sampling in (Sampling(4), Sampling(4, temperature=1.0, seed=1)):
            with torch.no_grad():
                weight.fill_(float("nan"))
            with pytest.raises(ResourceError, match="not finite"):
                await answer(engine, CHATS[0], sampling)
            with torch.no_grad():
                weight.copy_(kept)
        assert await answer(engine, CHATS[0], Sampling(6)) == asked(plain, CHATS[0], Sampling(6))

    within(folder, work)


def test_a_step_that_never_ends_is_no_health(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "_STEP_SECONDS", 0.3)
    plain = BatchEngine(folder)

    async def work(engine: ContinuousEngine) -> None:
        model = engine._manager.model
        forward, go_on = model.forward, threading.Event()

        def slow(*args: Any, **options: Any) -> Any:
            go_on.wait()
            return forward(*args, **options)

        model.forward = slow
        task = asyncio.create_task(answer(engine, CHATS[0], Sampling(6)))
        await until(lambda: engine.load().running == 1, within=5)
        await asyncio.sleep(0.05)
        with pytest.raises(ResourceError, match="no token within"):
            await engine.health()
        go_on.set()
        assert await task == asked(plain, CHATS[0], Sampling(6))
        await engine.health()

    within(folder, work)


def test_one_that_left_before_the_thread_saw_it_is_taken_out_all_the_same(folder: str) -> None:
    prompt = endless(BatchEngine(folder))

    async def work(engine: ContinuousEngine) -> None:
        told: list[str] = []
        cancel, engine._manager.cancel_request = engine._manager.cancel_request, told.append
        async with aclosing(engine.generate(prompt, LONG)) as lost:
            await anext(lost)
        # The thread was told nothing: it goes on, and is told again at the next token.
        await until(lambda: len(told) > 1, within=5)
        engine._manager.cancel_request = cancel
        await until(lambda: not engine._manager.batch_processor.scheduler.active_requests, within=5)
        await engine.health()

    within(folder, work)


def test_an_answer_whose_loop_is_gone_harms_no_later_one(folder: str) -> None:
    plain = BatchEngine(folder)
    engine = ContinuousEngine(BatchEngine(folder), max_batch_size=2)
    prompt = endless(plain)

    async def begin() -> None:
        running = engine.generate(prompt, LONG)
        await anext(running)
        await running.aclose()

    async def whole() -> None:
        assert await answer(engine, CHATS[0], Sampling(6)) == asked(plain, CHATS[0], Sampling(6))

    for work in (begin, whole, whole):
        asyncio.run(work())
    asyncio.run(engine.close())


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["down_proj"], "modules_to_save": ["embed_tokens", "input_layernorm"]},
        {"trainable_token_indices": [3, 4, 5], "modules_to_save": None},
        {"use_rslora": True, "use_dora": True},
    ],
    ids=["copies", "tokens", "magnitudes"],
)
def test_adapters_of_all_kinds_answer_in_one_pass(settings: dict[str, Any], folder: str, tmp_path: Path) -> None:
    where = {name: adapter(folder, tmp_path / name, seed=seed, **settings) for seed, name in enumerate("ab")}
    own: dict[str | None, BatchEngine] = {name: BatchEngine(folder, adapter=place) for name, place in where.items()}
    own[None] = BatchEngine(folder)
    chosen = [(chat, name) for chat in CHATS[:4] for name in own]

    async def work(engine: ContinuousEngine) -> None:
        for name, place in where.items():
            await engine.load_adapter(place, name=name)
        found = await asyncio.gather(*(answer(engine, chat, Sampling(8), adapter=name) for chat, name in chosen))
        assert found == [asked(own[name], chat, Sampling(8)) for chat, name in chosen]
        assert len(set(found)) > 6

    within(folder, work)


def test_an_adapter_that_fails_in_a_mixed_pass_is_refused_and_forgotten(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = adapter(folder, tmp_path / "one", seed=1)
    plain, other = BatchEngine(folder), BatchEngine(folder, adapter=where)

    def broken(model: Any, seats: Seats) -> Any:
        copied = twin(model, seats)
        copied.model.layers[0].self_attn.q_proj.forward = lambda packed: packed[:, :3]
        return copied

    async def work(engine: ContinuousEngine) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(packed, "twin", broken)
            with pytest.raises(ConfigurationError, match="cannot share a pass"):
                await engine.load_adapter(where, name="one")
        with pytest.raises(ConfigurationError, match="no adapter 'one'"):
            await answer(engine, CHATS[0], Sampling(4), adapter="one")
        assert await answer(engine, CHATS[0], Sampling(6)) == asked(plain, CHATS[0], Sampling(6))
        await engine.load_adapter(where, name="one")
        assert await answer(engine, CHATS[0], Sampling(6), adapter="one") == asked(other, CHATS[0], Sampling(6))

    within(folder, work)
