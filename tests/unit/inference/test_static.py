"""The engine behind a served model: requests join and leave one batch, adapters mixed in it, none harming another."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from test_score import adapter
from tiny_models import build_model, conversations

from polysome.config import ConfigurationError, DataError, ResourceError
from polysome.inference.asynchronous import Delta
from polysome.inference.batch import BatchEngine
from polysome.inference.engine import Generation, Prompt, Sampling
from polysome.inference.static import StaticEngine

CHATS = conversations(12, seed=5)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapters(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: adapter(model_folder, folder / name, seed=seed) for seed, name in enumerate(("one", "two"))}


@pytest.fixture(scope="module")
def plain(model_folder: str) -> BatchEngine:
    return BatchEngine(model_folder)


@pytest.fixture
def run(model_folder: str) -> Callable[..., None]:
    """Runs a coroutine with an engine, and ends the engine."""

    def within(work: Callable[[StaticEngine], Awaitable[None]], *, size: int = 8, tokens: int = 4000) -> None:
        async def main() -> None:
            engine = StaticEngine(
                BatchEngine(model_folder, max_batch_tokens=tokens), max_batch_size=size, batch_wait_seconds=0.005
            )
            try:
                await asyncio.wait_for(work(engine), timeout=60)
            finally:
                await engine.close()

        asyncio.run(main())

    return within


async def answer(
    engine: StaticEngine, prompt: Prompt, sampling: Sampling, *, adapter: str | None = None, after: float = 0
) -> Generation:
    await asyncio.sleep(after)
    deltas: list[Delta] = [delta async for delta in engine.generate(prompt, sampling, adapter=adapter)]
    last = deltas[-1].generation
    assert last is not None
    assert all(delta.generation is None for delta in deltas[:-1])
    assert "".join(delta.text for delta in deltas) == last.text
    return last


def test_answers_that_come_and_go_equal_those_alone(plain, run):
    settings = [
        Sampling(3 + index, seed=index, temperature=0.9 * (index % 3), top_p=0.9) for index in range(len(CHATS))
    ]

    async def work(engine):
        found = await asyncio.gather(
            *(
                answer(engine, chat, how, after=0.004 * i)
                for i, (chat, how) in enumerate(zip(CHATS, settings, strict=True))
            )
        )
        for chat, how, got in zip(CHATS, settings, found, strict=True):
            (own,) = plain.generate(
                [chat], max_new_tokens=how.max_new_tokens, temperature=how.temperature, top_p=how.top_p, seed=how.seed
            )
            assert got == own
        assert engine.load().running == engine.load().waiting == 0

    run(work, size=4)


def test_adapters_mixed_in_one_batch_answer_as_alone(adapters, plain, run, model_folder):
    own = {None: plain, **{name: BatchEngine(model_folder, adapter=folder) for name, folder in adapters.items()}}

    async def work(engine):
        for name, folder in adapters.items():
            await engine.load_adapter(folder, name=name)
        names = [None, "one", "two"]
        chosen = [names[index % 3] for index in range(len(CHATS))]
        sampling = Sampling(8)
        found = await asyncio.gather(
            *(answer(engine, chat, sampling, adapter=name) for chat, name in zip(CHATS, chosen, strict=True))
        )
        assert engine._engine.adapters.mixes("one")
        assert engine._engine.adapters.mixes("two")
        for chat, name, got in zip(CHATS, chosen, found, strict=True):
            assert got == own[name].generate([chat], max_new_tokens=8)[0]
        scores = await asyncio.gather(*(engine.score(CHATS[0], ["Yes.", "No."], adapter=name) for name in names))
        for name, got in zip(names, scores, strict=True):
            assert got.sums == pytest.approx(own[name].score([CHATS[0]], ["Yes.", "No."])[0].sums, abs=1e-5)
        await engine.unload_adapter("one")
        with pytest.raises(ConfigurationError, match="no adapter 'one'"):
            await answer(engine, CHATS[0], sampling, adapter="one")
        assert (
            await answer(engine, CHATS[0], sampling, adapter="two")
            == own["two"].generate(CHATS[:1], max_new_tokens=8)[0]
        )
        await engine.unload_adapter("two")
        assert await answer(engine, CHATS[0], sampling) == plain.generate(CHATS[:1], max_new_tokens=8)[0]

    run(work)


def test_a_bad_request_is_refused_alone(plain, run):
    poison: list[Prompt] = [[{"role": "user", "content": "ACGT" * 500}], (10**6,), [], ()]

    async def work(engine):
        tasks = [asyncio.create_task(answer(engine, prompt, Sampling(6))) for prompt in [*poison, *CHATS[:4]]]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, DataError) for one in done[: len(poison)]), done
        assert done[len(poison) :] == plain.generate(CHATS[:4], max_new_tokens=6)
        with pytest.raises(DataError):
            await engine.score(CHATS[0], [""])
        together = await asyncio.gather(
            engine.score(CHATS[0], ["Yes."]), engine.score(poison[0], ["Yes."]), return_exceptions=True
        )
        assert together[0] == plain.score(CHATS[:1], ["Yes."])[0]
        assert isinstance(together[1], DataError)

    run(work)


def test_an_answer_that_is_given_up_frees_its_place(run):
    async def work(engine):
        long = engine.generate("ACGT", Sampling(50, temperature=1.0, seed=1))
        await anext(long)
        waiting = asyncio.create_task(answer(engine, CHATS[0], Sampling(3)))
        await asyncio.sleep(0.05)
        await long.aclose()
        assert (await waiting).completion_tokens >= 1
        assert engine.load().running == 0

    run(work, size=1)


def test_a_stop_string_ends_the_answer_before_it(plain, run):
    (whole,) = plain.generate(CHATS[:1], max_new_tokens=12)
    stop = whole.text[3:5]

    async def work(engine):
        got = await answer(engine, CHATS[0], Sampling(12, stop=(stop,)))
        assert got.text == whole.text[: whole.text.index(stop)]

    run(work)


def test_a_trace_tells_every_token(plain, run):
    async def work(engine):
        (own,) = plain.generate(CHATS[:1], max_new_tokens=5)
        traced = await engine.trace(CHATS[0], own.tokens, top=2)
        assert len(traced.tokens) == own.prompt_tokens + own.completion_tokens
        assert traced.logprobs[0] is None
        tail = slice(own.prompt_tokens, None)
        # Greedy: each token is the likeliest in its place.
        assert list(traced.logprobs[tail]) == pytest.approx([best[0][1] for best in traced.top[tail]])
        assert "".join(traced.texts[tail]).startswith(own.text)

    run(work)


def test_after_the_end_everything_is_refused(run):
    async def work(engine):
        await engine.health()
        running = asyncio.create_task(answer(engine, "ACGT", Sampling(200, temperature=1.0, seed=2)))
        await asyncio.sleep(0.02)
        await engine.close()
        with pytest.raises(ResourceError, match="ended"):
            await running
        with pytest.raises(ResourceError, match="ended"):
            await engine.score(CHATS[0], ["Yes."])

    run(work)


def test_where_caches_cannot_be_joined_requests_wait_for_the_batch(tmp_path: Path):
    folder = build_model(tmp_path, "mistral, window 24")
    plain = BatchEngine(folder)

    async def main():
        engine = StaticEngine(BatchEngine(folder), max_batch_size=4, batch_wait_seconds=0.005)
        found = await asyncio.gather(
            *(answer(engine, chat, Sampling(6), after=0.003 * i) for i, chat in enumerate(CHATS))
        )
        assert found == plain.generate(CHATS, max_new_tokens=6)
        await engine.close()

    asyncio.run(main())


def test_a_failure_of_one_request_stays_with_it(plain, run, monkeypatch):
    """What is no error of ours, as a tokenizer's or an allocator's, neither ends the engine nor hangs anybody."""

    async def work(engine):
        encode = engine._engine.encode

        def failing(prompt):
            if prompt == "poison":
                raise RuntimeError("the allocator gave up")
            return encode(prompt)

        monkeypatch.setattr(engine._engine, "encode", failing)
        done = await asyncio.gather(
            answer(engine, "poison", Sampling(4)),
            engine.score("poison", ["Yes."]),
            engine.score(CHATS[0], ["Yes."]),
            answer(engine, CHATS[0], Sampling(4)),
            return_exceptions=True,
        )
        assert [type(one) for one in done[:2]] == [RuntimeError, RuntimeError]
        assert done[2] == plain.score(CHATS[:1], ["Yes."])[0]
        assert done[3] == plain.generate(CHATS[:1], max_new_tokens=4)[0]

    run(work)


def test_an_unload_waits_for_what_was_asked_before_it(adapters, run, model_folder):
    async def work(engine):
        await engine.load_adapter(adapters["one"], name="one")
        asked = [asyncio.create_task(answer(engine, chat, Sampling(4), adapter="one")) for chat in CHATS[:3]]
        asked.append(asyncio.create_task(engine.score(CHATS[0], ["Yes."], adapter="one")))
        await asyncio.sleep(0)
        await engine.unload_adapter("one")
        done = await asyncio.gather(*asked)
        own = BatchEngine(model_folder, adapter=adapters["one"])
        assert done[:3] == own.generate(CHATS[:3], max_new_tokens=4)

    run(work)


def test_what_is_said_while_the_caller_is_busy_is_one_piece(run):
    async def slowly(engine: StaticEngine) -> None:
        pieces = []
        async for piece in engine.generate("ACGT", Sampling(16)):
            pieces.append(piece)
            await asyncio.sleep(0.3)
        last = pieces[-1].generation
        assert last is not None
        assert last.completion_tokens == 16
        assert "".join(piece.text for piece in pieces) == last.text
        assert len(pieces) < 5

    run(slowly)


def test_a_caller_who_leaves_during_a_step_leaves_no_row_behind(run):
    """Its row would hold a place to the end, and ask for an adapter that may be unloaded meanwhile."""

    async def work(engine: StaticEngine) -> None:
        step = engine._running.step

        def leaving() -> None:
            step()
            for one in engine._answers:
                one.cancelled = True

        engine._running.step = leaving  # type: ignore[method-assign]
        left = asyncio.ensure_future(answer(engine, "ACGT", Sampling(80)))
        until = asyncio.get_running_loop().time() + 30
        while not engine._running.rows and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.001)
        assert engine._running.rows
        while engine._running.open and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.001)
        assert len(engine._running.rows[0].answer) < 80
        left.cancel()

    run(work)


def test_callers_whose_loop_is_gone_harm_nobody(model_folder):
    engine = StaticEngine(BatchEngine(model_folder), max_batch_size=4, batch_wait_seconds=0.005)

    async def leave() -> None:
        await anext(engine.generate("ACGT", Sampling(60)))

    asyncio.run(leave())
    assert asyncio.run(answer(engine, "ACGT", Sampling(3))).completion_tokens == 3
    asyncio.run(engine.close())
