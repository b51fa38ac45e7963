"""What does not fit into the device's memory at once is asked in halves, with the same answers."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build_model, conversations

from polysome.config import DataError
from polysome.inference import scoring
from polysome.inference.batch import BatchEngine
from polysome.inference.forward import Forward

CHATS = conversations(12, seed=4)
CHOICES = ["yes", "no", "no promoter", "ACGT"]
SAMPLED = {"max_new_tokens": 9, "temperature": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_model(tmp_path_factory.mktemp("model"))


def limit(monkeypatch: pytest.MonkeyPatch, positions: int) -> list[int]:
    """Let forward passes see so many positions, cached ones included; returns the rows of all that were tried."""
    tried = []
    logits, hidden = Forward.logits, Forward.hidden

    def check(input_ids: torch.Tensor, mask: torch.Tensor) -> None:
        tried.append(len(input_ids))
        if len(mask) * mask.shape[-1] > positions:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    def limited_logits(self: Forward, input_ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
        check(input_ids, mask)
        return logits(self, input_ids, mask, **options)

    def limited_hidden(self: Forward, input_ids: torch.Tensor, mask: torch.Tensor) -> Any:
        check(input_ids, mask)
        return hidden(self, input_ids, mask)

    monkeypatch.setattr(Forward, "logits", limited_logits)
    monkeypatch.setattr(Forward, "hidden", limited_hidden)
    return tried


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "halved" in record.getMessage()]


def test_a_batch_that_does_not_fit_is_halved_and_answered_alike(
    model_folder: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = BatchEngine(model_folder)
    engine._forward.overhead = 1000
    wanted = engine.generate(CHATS, **SAMPLED)
    scores, vectors = engine.score(CHATS, CHOICES), engine.embed(CHATS, pool="mean").vectors
    with monkeypatch.context() as patched:
        # Two or three rows fit; prompts alone fit more often than prompts with half of their answers.
        tried = limit(patched, 200)
        assert engine.generate(CHATS, **SAMPLED) == wanted
        assert max(tried) == len(CHATS)
        found = engine.score(CHATS, CHOICES)
        assert np.allclose([one.sums for one in found], [one.sums for one in scores], atol=1e-4)
        assert np.allclose(engine.embed(CHATS, pool="mean").vectors, vectors, atol=1e-5)
    assert len(told(caplog)) == 1
    assert caplog.records[0].levelno == logging.WARNING


def test_choices_that_continue_a_cache_are_halved_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = BatchEngine(build_model(tmp_path, "bloom"))
    wanted = [one.sums for one in engine.score(CHATS, CHOICES)]
    with monkeypatch.context() as patched:
        limit(patched, 150)
        assert np.allclose([one.sums for one in engine.score(CHATS, CHOICES)], wanted, atol=1e-4)
    assert len(told(caplog)) == 1


def test_what_is_left_is_halved_with_the_batch_that_failed(model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = BatchEngine(model_folder, max_batch_tokens=600)
    engine._forward.overhead = 1000
    tried = limit(monkeypatch, 300)
    engine.embed(["A" * 50] * 24, pool="mean")
    assert tried == [12, 6, 6, 6, 6]


def test_one_question_that_does_not_fit_is_told(model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = BatchEngine(model_folder)
    engine.score(CHATS[:1], CHOICES)
    engine.generate(CHATS[:1], max_new_tokens=1)
    limit(monkeypatch, 5)
    for ask in (
        lambda: engine.generate(CHATS, max_new_tokens=4),
        lambda: engine.score(CHATS, CHOICES),
        lambda: engine.embed(CHATS, pool="last"),
        lambda: list(engine.stream(CHATS[0], max_new_tokens=4)),
    ):
        with pytest.raises(DataError, match=r"one question by itself exceeds .* allocate 2\.00 GiB") as raised:
            ask()
        assert raised.value.where == "cpu"
        assert "more memory" in raised.value.fix


def test_a_full_device_is_not_mistaken_for_an_architecture_without_tries(
    model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = BatchEngine(model_folder)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patched:
        patched.setattr(scoring, "score_trie", full)
        with pytest.raises(DataError):
            engine.score(CHATS, CHOICES)
    assert engine._scorer._trie_reach > 0
