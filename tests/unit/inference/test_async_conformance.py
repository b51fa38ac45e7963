"""What every asynchronous engine promises, whatever runs behind it: `BatchEngine`'s answers, no call harmed."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_score import adapter
from tiny_models import CONTEXT, build_model, conversations
from transformers import AutoModelForCausalLM

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.inference import static
from polysome.inference.asynchronous import AsyncEngine
from polysome.inference.batch import BatchEngine
from polysome.inference.continuous import ContinuousEngine
from polysome.inference.engine import Generation, Prompt, Sampling
from polysome.inference.static import StaticEngine

ENGINES: dict[str, Callable[[BatchEngine, int], AsyncEngine]] = {
    "static": lambda engine, size: StaticEngine(engine, max_batch_size=size, batch_wait_seconds=0.002),
    "continuous": lambda engine, size: ContinuousEngine(engine, max_batch_size=size),
}

CHATS = conversations(16, seed=5)
PROMPTS: list[Prompt] = [*CHATS, "ACGTACGT is there", "A", (5, 9, 13, 7), tuple(range(3, 60))]
LONG = Sampling(90)
"""From a prompt that the model goes on after for as long as it may, see `endless`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a model whose answers have all lengths, that of the context too."""
    place = build_model(tmp_path_factory.mktemp("model"))
    settings = Path(place) / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": [*range(30, 36)]}))
    return place


@pytest.fixture(scope="module")
def adapters(folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Adapters of several kinds: copies of whole layers, of a norm too; other layers; weights with a magnitude."""
    place = tmp_path_factory.mktemp("adapters")
    settings: dict[str, dict[str, Any]] = {
        "copies": {},
        "norms": {"modules_to_save": ["norm", "embed_tokens"], "target_modules": ["o_proj"]},
        "magnitudes": {"use_dora": True, "modules_to_save": None},
    }
    return {
        name: adapter(folder, place / name, seed=seed, **changes)
        for seed, (name, changes) in enumerate(settings.items())
    }


@pytest.fixture(scope="module")
def plain(folder: str) -> BatchEngine:
    return BatchEngine(folder)


@pytest.fixture(scope="module")
def own(adapters: dict[str, str], folder: str, plain: BatchEngine) -> dict[str | None, BatchEngine]:
    """An engine for each adapter alone."""
    return {None: plain, **{name: BatchEngine(folder, adapter=where) for name, where in adapters.items()}}


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest, folder: str) -> Callable[..., None]:
    """Runs a coroutine with a fresh engine, and closes the engine."""

    def within(work: Callable[[AsyncEngine], Awaitable[None]], *, size: int = 8, tokens: int = 4000) -> None:
        engine = ENGINES[request.param](BatchEngine(folder, max_batch_tokens=tokens), size)

        async def main() -> None:
            try:
                await asyncio.wait_for(work(engine), timeout=120)
            finally:
                await engine.close()

        asyncio.run(main())

    return within


async def answer(
    engine: AsyncEngine, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None, after: float = 0
) -> Generation:
    await asyncio.sleep(after)
    deltas = [delta async for delta in engine.generate(prompt, sampling, adapter=adapter)]
    last = deltas[-1].generation
    assert last is not None
    assert all(delta.generation is None and delta.text for delta in deltas[:-1])
    assert "".join(delta.text for delta in deltas) == last.text
    return last


async def until(true: Callable[[], bool], *, within: float) -> None:
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def idle(engine: AsyncEngine) -> None:
    """Return when every place is free, which is to be within a second."""

    def free() -> bool:
        load = engine.load()
        return load.running == load.waiting == 0 and not load.cache_used

    await until(free, within=1)


def asked(engine: BatchEngine, prompt: Prompt, how: Sampling) -> Generation:
    fields = {name: getattr(how, name) for name in ("max_new_tokens", "temperature", "top_p", "seed", "stop")}
    return engine.generate([prompt], **fields)[0]


@pytest.fixture(scope="module")
def endless(plain: BatchEngine) -> Prompt:
    """A prompt whose greedy answer fills the context."""
    tokens = ((first, second) for first in range(3, 60) for second in range(3, 20))
    return next(one for one in tokens if asked(plain, one, LONG).completion_tokens > 80)


def test_answers_that_come_and_go_equal_those_of_the_batch_engine(plain: BatchEngine, run: Callable[..., None]) -> None:
    async def work(engine: AsyncEngine) -> None:
        reasons = set()
        for tokens in (20, 1, 3):
            sampling = Sampling(tokens)
            found = await asyncio.gather(
                *(answer(engine, one, sampling, after=0.003 * place) for place, one in enumerate(PROMPTS))
            )
            assert found == [asked(plain, one, sampling) for one in PROMPTS]
            reasons |= {one.finish_reason for one in found}
        assert reasons == {"stop", "length"}

    run(work)


@pytest.mark.parametrize(("size", "tokens"), [(1, 4000), (3, 4000), (40, 256), (40, 100)])
def test_more_answers_than_places_wait_their_turn(
    plain: BatchEngine, run: Callable[..., None], size: int, tokens: int
) -> None:
    async def work(engine: AsyncEngine) -> None:
        sampling = Sampling(12)
        found = await asyncio.gather(*(answer(engine, one, sampling) for one in PROMPTS * 2))
        assert found == [asked(plain, one, sampling) for one in PROMPTS] * 2
        await idle(engine)

    run(work, size=size, tokens=tokens)


def test_draws_follow_from_the_seed_whatever_stands_beside(plain: BatchEngine, run: Callable[..., None]) -> None:
    how = [
        Sampling(9, temperature=0.7 * (place % 3), top_p=0.8 + 0.1 * (place % 2), seed=place % 5)
        for place in range(len(PROMPTS))
    ]

    async def work(engine: AsyncEngine) -> None:
        found = await asyncio.gather(*map(lambda one, own: answer(engine, one, own), PROMPTS, how))
        assert found == [asked(plain, one, own) for one, own in zip(PROMPTS, how, strict=True)]
        other = await asyncio.gather(*(answer(engine, CHATS[0], Sampling(9, 1.0, seed=seed)) for seed in range(6)))
        fresh = await asyncio.gather(*(answer(engine, CHATS[0], Sampling(9, 1.0)) for _ in range(6)))
        assert len(set(other)) > 2
        assert len(set(fresh)) > 2

    run(work)


def test_an_answer_ends_before_a_stop_string_and_others_go_on(plain: BatchEngine, run: Callable[..., None]) -> None:
    free = [asked(plain, one, Sampling(20)) for one in PROMPTS]
    said = [part for one in free for part in one.text.split("\ufffd") if len(part) > 2]
    how = [Sampling(20, stop=(said[0][:2], said[-1][1:3], "A")), Sampling(20)]

    async def work(engine: AsyncEngine) -> None:
        found = await asyncio.gather(*(answer(engine, one, how[place % 2]) for place, one in enumerate(PROMPTS)))
        assert found == [asked(plain, one, how[place % 2]) for place, one in enumerate(PROMPTS)]
        assert any(cut.completion_tokens < whole.completion_tokens for cut, whole in zip(found, free, strict=True))
        await idle(engine)

    run(work)


def test_an_answer_is_told_while_it_grows(
    endless: Prompt, run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "_PIECE_SECONDS", 0.0)
    monkeypatch.setattr(static, "_PIECES_PER_SECOND", 1e9)

    async def work(engine: AsyncEngine) -> None:
        pieces = [delta async for delta in engine.generate(endless, LONG)]
        assert len(pieces) > 5
        whole = pieces[-1].generation
        assert whole is not None
        assert len(pieces[0].text) < len(whole.text) / 4
        assert [delta.generation is None for delta in pieces] == [True] * (len(pieces) - 1) + [False]

    run(work)


def test_giving_up_frees_the_place(plain: BatchEngine, endless: Prompt, run: Callable[..., None]) -> None:
    async def work(engine: AsyncEngine) -> None:
        async with aclosing(engine.generate(endless, LONG)) as held:
            await anext(held)
            assert engine.load().running == 1
            waiting = [asyncio.create_task(answer(engine, one, Sampling(4))) for one in CHATS[:3]]
            await until(lambda: engine.load().waiting == 3, within=5)
            waiting[1].cancel()
            await until(lambda: engine.load().waiting == 2, within=1)
        assert await waiting[0] == asked(plain, CHATS[0], Sampling(4))
        assert await waiting[2] == asked(plain, CHATS[2], Sampling(4))
        await idle(engine)
        # A task that is cancelled gives up too.
        task = asyncio.create_task(answer(engine, endless, LONG))
        await until(lambda: engine.load().running == 1, within=5)
        task.cancel()
        await idle(engine)
        # Nothing has begun, and nothing is left behind.
        await engine.generate(endless, LONG).aclose()
        await idle(engine)

    run(work, size=1)


def test_poison_is_refused_alone(plain: BatchEngine, run: Callable[..., None]) -> None:
    refused: list[tuple[Prompt, type[Exception], str | None]] = [
        ([{"role": "user", "content": "ACGT" * 5000}], DataError, None),
        ((10**6,), DataError, None),
        ((-1,), DataError, None),
        ((), DataError, None),
        ([], DataError, None),
        ([{"role": "user"}], DataError, None),
        (CHATS[0], ConfigurationError, "../../etc/passwd"),
    ]
    odd = [
        Sampling(6, temperature=heat, top_p=share, seed=1)
        for heat in (5e-324, 1e-30, 1e-3, 1e30, 1.7e308)
        for share in (5e-324, 1e-9, 1.0)
    ]

    async def work(engine: AsyncEngine) -> None:
        tasks = [answer(engine, one, Sampling(6), adapter=name) for one, _, name in refused]
        tasks += [answer(engine, CHATS[0], how) for how in odd]
        tasks += [answer(engine, CHATS[1], Sampling(10**9))]
        good = [answer(engine, one, Sampling(6)) for one in CHATS]
        found = await asyncio.gather(*tasks, *good, return_exceptions=True)
        for got, (_, error, _) in zip(found, refused, strict=False):
            assert isinstance(got, error)
        # The coldest are greedy, the narrowest too.
        assert found[len(refused)] == found[len(refused) + 3] == asked(plain, CHATS[0], Sampling(6))
        assert all(isinstance(one, Generation) for one in found[len(refused) :])
        assert found[-len(good) :] == [asked(plain, one, Sampling(6)) for one in CHATS]
        for wrong in ({"temperature": float("nan")}, {"temperature": -1.0}, {"max_new_tokens": -5}, {"top_p": 0.0}):
            with pytest.raises(ConfigurationError):
                replace(Sampling(6), **wrong)
        for bad in (engine.score(CHATS[0], []), engine.score("A" * 500, ["A"]), engine.embed([()], pool="mean")):
            with pytest.raises(DataError):
                await bad
        for prompt, said in (("A" * 500, ()), ((), ()), ("A", (10**6,))):
            with pytest.raises(DataError):
                await engine.trace(prompt, said, top=0)
        await engine.health()

    run(work)


def test_adapters_answer_as_if_alone(
    adapters: dict[str, str], own: dict[str | None, BatchEngine], run: Callable[..., None]
) -> None:
    names = list(own)
    # The same prompts by every adapter, the long ones too: nothing of one may be taken for another's.
    chosen = [(one, name) for one in [*CHATS[:6], PROMPTS[-1]] for name in names]

    async def work(engine: AsyncEngine) -> None:
        for name, where in adapters.items():
            await engine.load_adapter(where, name=name)
        with pytest.raises(ConfigurationError, match="already"):
            await engine.load_adapter(adapters["copies"], name="copies")
        for how in (Sampling(10), Sampling(6, temperature=1.0, seed=3)):
            wanted = [asked(own[name], one, how) for one, name in chosen]
            assert len(set(wanted)) > len(chosen) // 2
            assert await asyncio.gather(*(answer(engine, one, how, adapter=name) for one, name in chosen)) == wanted
            for (one, name), alone in zip(chosen, wanted, strict=True):
                assert await answer(engine, one, how, adapter=name) == alone
        for name in names:
            (wanted_scores,) = own[name].score([CHATS[0]], ["yes", "no promoter"])
            scores = await engine.score(CHATS[0], ["yes", "no promoter"], adapter=name)
            assert scores.sums == pytest.approx(wanted_scores.sums, abs=1e-4)
            assert (scores.tokens, scores.prompt_tokens) == (wanted_scores.tokens, wanted_scores.prompt_tokens)
            embeddings = await engine.embed([CHATS[1], "ACGT"], pool="mean", adapter=name)
            assert np.allclose(embeddings.vectors, own[name].embed([CHATS[1], "ACGT"], pool="mean").vectors, atol=1e-4)
            traced = await engine.trace(CHATS[2], (5, 6), top=1, adapter=name)
            assert traced.logprobs[1:] == pytest.approx(own[name].trace(CHATS[2], (5, 6), top=1).logprobs[1:], abs=1e-4)

    run(work)


def test_adapters_come_and_go_while_others_are_answered(
    adapters: dict[str, str], endless: Prompt, own: dict[str | None, BatchEngine], run: Callable[..., None]
) -> None:
    async def work(engine: AsyncEngine) -> None:
        with pytest.raises(ConfigurationError, match="no adapter 'copies'"):
            await answer(engine, CHATS[0], Sampling(4), adapter="copies")
        running = asyncio.create_task(answer(engine, endless, LONG))
        await engine.load_adapter(adapters["copies"], name="copies")
        assert await answer(engine, CHATS[0], Sampling(8), adapter="copies") == asked(
            own["copies"], CHATS[0], Sampling(8)
        )
        assert await running == asked(own[None], endless, LONG)
        await engine.load_adapter(adapters["norms"], name="norms")
        long = asyncio.create_task(answer(engine, endless, LONG, adapter="norms"))
        await until(lambda: engine.load().running == 1, within=5)
        await engine.unload_adapter("norms")
        assert await long == asked(own["norms"], endless, LONG)
        for work in (
            answer(engine, CHATS[0], Sampling(4), adapter="norms"),
            engine.score(CHATS[0], ["yes"], adapter="norms"),
            engine.unload_adapter("norms"),
        ):
            with pytest.raises(ConfigurationError, match="no adapter 'norms'"):
                await work
        assert await answer(engine, CHATS[1], Sampling(8), adapter="copies") == asked(
            own["copies"], CHATS[1], Sampling(8)
        )
        await engine.load_adapter(adapters["magnitudes"], name="norms")
        assert await answer(engine, CHATS[1], Sampling(8), adapter="norms") == asked(
            own["magnitudes"], CHATS[1], Sampling(8)
        )
        await engine.unload_adapter("norms")
        await engine.unload_adapter("copies")
        assert await answer(engine, CHATS[1], Sampling(8)) == asked(own[None], CHATS[1], Sampling(8))
        await engine.load_adapter(adapters["norms"], name="copies")
        assert await answer(engine, CHATS[1], Sampling(8), adapter="copies") == asked(
            own["norms"], CHATS[1], Sampling(8)
        )

    run(work)


def test_a_folder_that_is_no_adapter_is_refused(run: Callable[..., None], folder: str, plain: BatchEngine) -> None:
    async def work(engine: AsyncEngine) -> None:
        with pytest.raises(DataError):
            await engine.load_adapter(folder, name="wrong")
        with pytest.raises(ConfigurationError, match="no adapter 'wrong'"):
            await answer(engine, CHATS[0], Sampling(4), adapter="wrong")
        assert await answer(engine, CHATS[0], Sampling(4)) == asked(plain, CHATS[0], Sampling(4))

    run(work)


def test_a_trace_is_one_plain_forward_pass(plain: BatchEngine, folder: str, run: Callable[..., None]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    said = asked(plain, CHATS[3], Sampling(12)).tokens

    async def work(engine: AsyncEngine) -> None:
        traced = await engine.trace(CHATS[3], said, top=3)
        assert traced.tokens[-len(said) :] == said
        with torch.no_grad():
            logits = model(torch.tensor([traced.tokens])).logits[0].double()
        likelihoods = torch.log_softmax(logits, dim=-1)
        assert traced.logprobs[0] is None
        assert traced.top[0] == ()
        for place, (token, found, top) in enumerate(
            zip(traced.tokens[1:], traced.logprobs[1:], traced.top[1:], strict=True)
        ):
            assert found == pytest.approx(likelihoods[place, token].item(), abs=1e-3)
            assert [value for _, value in top] == pytest.approx(likelihoods[place].topk(3).values.tolist(), abs=1e-3)
        # Greedy: what was said is the likeliest.
        assert traced.logprobs[-len(said) :] == pytest.approx([top[0][1] for top in traced.top[-len(said) :]])
        bare = await engine.trace("ACGT", (), top=0)
        assert len(bare.tokens) == len(bare.texts) == len(bare.logprobs) == len(bare.top)
        assert not any(bare.top)

    run(work)


def test_scores_and_vectors_do_not_wait_for_answers_and_do_not_change_them(
    plain: BatchEngine, endless: Prompt, run: Callable[..., None]
) -> None:
    async def work(engine: AsyncEngine) -> None:
        tasks = [asyncio.create_task(answer(engine, endless, LONG)) for _ in range(3)]
        await until(lambda: engine.load().running == 3, within=5)
        scores = await asyncio.gather(*(engine.score(one, ["yes", "no"]) for one in CHATS))
        embeddings = await engine.embed(CHATS, pool="last")
        assert [one.sums for one in scores] == [
            pytest.approx(one.sums, abs=1e-4) for one in plain.score(CHATS, ["yes", "no"])
        ]
        assert embeddings.tokens == tuple(len(plain.encode(chat)) for chat in CHATS)
        assert np.allclose(embeddings.vectors, plain.embed(CHATS, pool="last").vectors, atol=1e-4)
        assert await asyncio.gather(*tasks) == [asked(plain, endless, LONG)] * 3

    run(work)


def test_load_counts_what_runs_and_waits_and_health_passes(endless: Prompt, run: Callable[..., None]) -> None:
    async def work(engine: AsyncEngine) -> None:
        await engine.health()
        tasks = [asyncio.create_task(answer(engine, endless, LONG)) for _ in range(5)]
        await until(lambda: (engine.load().running, engine.load().waiting) == (2, 3), within=5)
        await engine.health()
        assert engine.load().cache_used is None or 0 < engine.load().cache_used <= 1
        await asyncio.gather(*tasks)
        await idle(engine)

    run(work, size=2)


def test_the_end_is_told_to_all(endless: Prompt, run: Callable[..., None]) -> None:
    async def work(engine: AsyncEngine) -> None:
        tasks = [asyncio.create_task(answer(engine, endless, LONG)) for _ in range(3)]
        await until(lambda: engine.load().waiting == 2, within=5)
        await engine.close()
        for task in tasks:
            with pytest.raises(ResourceError, match="has ended"):
                await task
        for refused in (
            answer(engine, CHATS[0], Sampling(4)),
            engine.score(CHATS[0], ["yes"]),
            engine.embed(["A"], pool="mean"),
            engine.trace("A", (), top=0),
            engine.health(),
        ):
            with pytest.raises(ResourceError, match="has ended"):
                await refused

    run(work, size=1)


def test_a_prompt_that_fills_the_context_gets_what_is_left(plain: BatchEngine, run: Callable[..., None]) -> None:
    full = tuple(3 + place % 20 for place in range(CONTEXT - 2))

    async def work(engine: AsyncEngine) -> None:
        found = await answer(engine, full, Sampling(50))
        assert found == asked(plain, full, Sampling(50))
        assert found.completion_tokens <= 2
        with pytest.raises(DataError, match="context is 96"):
            await answer(engine, (*full, 5, 6), Sampling(1))

    run(work)
