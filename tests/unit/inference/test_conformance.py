"""What every engine promises, whatever runs behind it."""

from collections.abc import Iterator

import numpy as np
import pytest
from model_server import serve
from tiny_models import build_model, conversations

from polysome.config import ConfigurationError, DataError
from polysome.inference.engine import Conversation, Engine, open_engine
from polysome.inference.fake import FakeEngine

CHATS = conversations(8, seed=3)


def told(conversation: Conversation) -> str:
    """An answer of some words that follows from the question alone."""
    bases = conversation[-1]["content"]
    return f"It has {len(bases)} bases, of which {bases.count('A')} are A and {bases.count('C')} are C, é."


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=["batch", "openai", "openai, generic", "fake"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(kind: str, model_folder: str) -> Iterator[Engine]:
    if kind == "fake":
        yield FakeEngine(told)
    elif kind == "batch":
        yield open_engine(model_folder, max_batch_tokens=400)
    else:
        with serve(open_engine(model_folder, max_batch_tokens=400)) as server:
            server.owner = "somebody" if "generic" in kind else "polysome"
            yield open_engine(server.url)


def test_answers_stand_in_the_order_of_the_questions(engine: Engine) -> None:
    answers = engine.generate(CHATS, max_new_tokens=12)
    assert [answer.text for answer in engine.generate(CHATS[::-1], max_new_tokens=12)][::-1] == [
        answer.text for answer in answers
    ]
    assert len({answer.text for answer in answers}) > 4
    assert answers == [engine.generate([chat], max_new_tokens=12)[0] for chat in CHATS]
    assert all(answer.prompt_tokens > 0 for answer in answers)


def test_nothing_asked_gives_nothing(engine: Engine) -> None:
    assert engine.generate([], max_new_tokens=4) == []


def test_the_bound_on_tokens_is_kept_and_told(engine: Engine) -> None:
    full = engine.generate(CHATS, max_new_tokens=12)
    short = engine.generate(CHATS, max_new_tokens=3)
    for whole, part in zip(full, short, strict=True):
        assert 1 <= part.completion_tokens <= 3
        assert whole.text.startswith(part.text.rstrip("\ufffd"))
        if part.text != whole.text:
            assert part.finish_reason == "length"
    assert any(part.text != whole.text for whole, part in zip(full, short, strict=True))


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"stop": ["a", ""]}],
)
def test_settings_out_of_range_are_refused(engine: Engine, options: dict) -> None:
    with pytest.raises(ConfigurationError):
        engine.generate(CHATS[:1], **{"max_new_tokens": 4, **options})
    with pytest.raises(ConfigurationError):
        engine.stream(CHATS[0], **{"max_new_tokens": 4, **options})


def test_an_answer_ends_before_the_first_stop_string(engine: Engine) -> None:
    ended = 0
    for chat in CHATS:
        (free,) = engine.generate([chat], max_new_tokens=12)
        middle = free.text[len(free.text) // 3 :].replace("\ufffd", "")
        for stop in ([middle[:1]], ["never said", middle[:3], middle[2:4]]):
            if not all(stop) or not any(one in free.text for one in stop):
                continue
            (cut,) = engine.generate([chat], max_new_tokens=12, stop=stop)
            assert cut.text == free.text[: min(free.text.index(one) for one in stop if one in free.text)]
            assert cut.finish_reason == "stop"
            assert cut.completion_tokens <= free.completion_tokens
            ended += 1
    assert ended > 4


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5, "top_p": 0.9}, {"stop": ["T", "are", "of"]}])
def test_joined_pieces_are_the_answer(engine: Engine, options: dict) -> None:
    pieces = []
    for chat in CHATS:
        streamed = list(engine.stream(chat, max_new_tokens=11, **options))
        assert "".join(streamed) == engine.generate([chat], max_new_tokens=11, **options)[0].text
        assert all(streamed)
        pieces.append(len(streamed))
    assert max(pieces) > 1


def test_a_seed_repeats_what_was_drawn(engine: Engine) -> None:
    drawn = engine.generate(CHATS, max_new_tokens=8, temperature=1.0, seed=3)
    assert engine.generate(CHATS, max_new_tokens=8, temperature=1.0, seed=3) == drawn
    assert engine.generate(CHATS[:3], max_new_tokens=8, temperature=1.0, seed=3) == drawn[:3]


def test_seeds_go_with_their_conversations_whatever_is_asked_beside_them(engine: Engine) -> None:
    seeds = [11 * index + 5 for index in range(len(CHATS))]
    drawn = engine.generate(CHATS, max_new_tokens=8, temperature=1.0, seed=seeds)
    assert engine.generate(CHATS[::-1], max_new_tokens=8, temperature=1.0, seed=seeds[::-1]) == drawn[::-1]
    assert engine.generate(CHATS[3:4], max_new_tokens=8, temperature=1.0, seed=seeds[3:4]) == drawn[3:4]


def test_a_conversation_that_cannot_be_asked_is_named(engine: Engine, kind: str) -> None:
    with pytest.raises(DataError):
        engine.generate([CHATS[0], []], max_new_tokens=4)
    if kind != "fake":
        with pytest.raises(DataError, match="context is 96") as raised:
            engine.generate([CHATS[0], [{"role": "user", "content": "A" * 200}]], max_new_tokens=4)
        assert raised.value.where == "conversation 1"


def test_scores_are_log_likelihoods_of_each_choice_by_itself(engine: Engine, kind: str) -> None:
    choices = ["yes", "no", "no promoter", "yes, a promoter"]
    if kind == "openai, generic":
        with pytest.raises(ConfigurationError, match="no log-likelihoods"):
            engine.score(CHATS, choices)
        return
    scores = engine.score(CHATS, choices)
    assert engine.score([], choices) == []
    assert len(scores) == len(CHATS)
    for chat, found in zip(CHATS, scores, strict=True):
        assert len(found.sums) == len(found.tokens) == len(choices)
        assert all(total < 0 and count >= 1 for total, count in zip(found.sums, found.tokens, strict=True))
        # The same prompt, read for an answer.
        (said,) = engine.generate([chat], max_new_tokens=1)
        assert found.prompt_tokens == said.prompt_tokens > 0
        assert found.normalised == pytest.approx(np.array(found.sums) / np.array(found.tokens))
        (other,) = engine.score([chat], [choices[2], choices[0], choices[2]])
        assert other.sums == pytest.approx([found.sums[2], found.sums[0], found.sums[2]], abs=1e-4)
    for wrong in ([], ["yes", ""]):
        with pytest.raises(DataError, match="not empty"):
            engine.score(CHATS[:1], wrong)


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_vectors_follow_from_each_text_alone(engine: Engine, kind: str, pool: str) -> None:
    texts = [CHATS[0], "ACGT", CHATS[1], "ACG", "ACGT"]
    if kind.startswith("openai"):
        with pytest.raises(ConfigurationError, match="no hidden states"):
            engine.embed(texts, pool=pool)
        return
    embeddings = engine.embed(texts, pool=pool)
    vectors = embeddings.vectors
    assert vectors.shape[0] == len(embeddings.tokens) == 5
    assert embeddings.tokens[1] == embeddings.tokens[4] > 0
    assert vectors.dtype == np.float32
    assert np.allclose(vectors[1], vectors[4], atol=1e-5)
    assert np.allclose(vectors[3:4], engine.embed(["ACG"], pool=pool).vectors, atol=1e-5)
    assert not np.allclose(vectors[1], vectors[3], atol=1e-3)
    assert engine.embed([], pool=pool).vectors.shape == (0, vectors.shape[1])


def test_health_passes(engine: Engine) -> None:
    engine.health()


def test_a_source_names_its_engine(model_folder: str) -> None:
    assert open_engine("fake:No.").generate(CHATS[:1], max_new_tokens=4)[0].text == "No."
    with pytest.raises(ConfigurationError, match="adapter"):
        open_engine("fake:No.", adapter=model_folder)
    with pytest.raises(ConfigurationError, match="password"):
        open_engine("https://me:secret@example.org/v1")
