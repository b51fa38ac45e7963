"""Asking one engine: a refused conversation stands alone; recipes are checked before anything starts."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from polysome.config import ConfigurationError, DataError, validate
from polysome.evaluation.actors import Refusal, ask
from polysome.evaluation.config import EvaluationConfig
from polysome.evaluation.run import evaluate, sample_key
from polysome.inference.engine import Conversation, Generation


class Echo:
    """An engine that says what it was asked and refuses what is longer than four characters."""

    def __init__(self) -> None:
        self.calls = 0

    def generate(self, conversations: Sequence[Conversation], *, max_new_tokens: int) -> list[Generation]:
        self.calls += 1
        texts = [conversation[-1]["content"] for conversation in conversations]
        if any(len(text) > 4 for text in texts):
            raise DataError(f"the prompt has {max(map(len, texts))} tokens, the model's context is 4")
        return [Generation(text, len(text), 1, "stop") for text in texts]


def test_refused_conversations_do_not_spoil_the_others() -> None:
    texts = ["AC", "ACGTA", "GT", "T", "GGGGGGG", "C", "A", "TT"]
    engine = Echo()
    answers = ask(engine, [[{"role": "user", "content": text}] for text in texts], 8)  # type: ignore[arg-type]
    assert [answer.text if isinstance(answer, Generation) else "refused" for answer in answers] == [
        text if len(text) <= 4 else "refused" for text in texts
    ]
    assert answers[1] == Refusal("the prompt has 5 tokens, the model's context is 4")
    assert engine.calls < 2 * len(texts)


def test_a_sample_key_follows_everything_that_an_answer_depends_on() -> None:
    chat = [{"role": "user", "content": "ACGT?"}]
    key = sample_key("task", "id", "model", chat, {"max_new_tokens": 8})
    assert key == sample_key("task", "id", "model", [dict(chat[0])], {"max_new_tokens": 8})
    others = {
        sample_key("task2", "id", "model", chat, {"max_new_tokens": 8}),
        sample_key("task", "id2", "model", chat, {"max_new_tokens": 8}),
        sample_key("task", "id", "model2", chat, {"max_new_tokens": 8}),
        sample_key("task", "id", "model", [{"role": "user", "content": "ACGA?"}], {"max_new_tokens": 8}),
        sample_key("task", "id", "model", chat, {"max_new_tokens": 9}),
    }
    assert key not in others
    assert len(others) == 5


def test_a_task_that_is_no_task_or_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="unlabelled corpus"):
        evaluate(EvaluationConfig(name="e", model=str(tmp_path), tasks=["planted_dna"]), str(tmp_path / "out"))
    with pytest.raises(ConfigurationError, match="did you mean 'planted_promoter'"):
        evaluate(EvaluationConfig(name="e", model=str(tmp_path), tasks=["planted_promotr"]), str(tmp_path / "out"))
    content = {"name": "e", "model": "m", "tasks": ["planted_promoter", "planted_promoter"]}
    with pytest.raises(ConfigurationError, match="may stand once"):
        validate(EvaluationConfig, content, where="recipe.yaml")


def test_a_folder_that_is_no_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model folder"):
        evaluate(
            EvaluationConfig(name="e", model=str(tmp_path / "absent"), tasks=["planted_promoter"]),
            str(tmp_path / "out"),
        )
    assert not (tmp_path / "out").exists()
