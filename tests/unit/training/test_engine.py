"""Plain data parallelism in one process: updates as a bare torch loop makes them, exact masters, skipped updates."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepared import write_prepared
from test_schedule import stage

from polysome.config import DataError, ResourceError
from polysome.data.feed import Feed, open_feed
from polysome.models import trainability
from polysome.models.backbone import ModelSource, build_model
from polysome.training import checkpoint, optimizer
from polysome.training.batch import MicroBatch, PackedLanguageModel, flatten
from polysome.training.checkpoint import Progress, Writer
from polysome.training.config import StageConfig
from polysome.training.engine import MASTER, Engine, Place, open_engine

FIELDS = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
          "num_attention_heads": 2}  # fmt: skip
RULES = [
    {"match": r"(q|k)_proj$", "mode": "full"},
    {"match": r"_proj$", "mode": "lora", "rank": 4, "alpha": 4},
    {"match": r"norm$", "mode": "full"},
]
TARGETS = 40


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    folder = write_prepared(tmp_path_factory.mktemp("engine") / "prepared", rows=16)
    return open_feed(str(folder), seed=1, cache=str(folder / "cache"))


def configured(**changes: Any) -> StageConfig:
    optimizer = {"learning_rate": 1e-2, "lora_plus_ratio": 4, "clip": 0.5, "weight_decay": 0.01, "kind": "adamw"}
    settings = {"zero": 0, "precision": "fp32", "workers": {"count": 1}, "gradient_accumulation_steps": 2}
    return stage(**{"trainability": RULES, "optimizer": optimizer, **settings, **changes})


def opened(config: StageConfig, tokenizer: str) -> Engine:
    causal = build_model(ModelSource(config=FIELDS), tokenizer, seed=3)
    trainability.apply(causal, config.trainability, seed=5)
    plan = optimizer.groups(causal, config.optimizer)
    place = Place(0, 1, torch.device("cpu"))
    return open_engine(PackedLanguageModel(causal), config, plan, "adamw", place)


def batches(feed: Feed, update: int) -> list[MicroBatch]:
    return [flatten(*feed.documents(np.arange(4 * update + 2 * half, 4 * update + 2 * half + 2))) for half in range(2)]


def state_of(engine: Engine) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {key: value.clone() for key, value in state.items()} for name, state in engine.states()}


def test_updates_are_those_of_a_bare_loop(feed: Feed, tiny_tokenizer: str) -> None:
    engine = opened(configured(), tiny_tokenizer)
    causal = build_model(ModelSource(config=FIELDS), tiny_tokenizer, seed=3)
    trainability.apply(causal, configured().trainability, seed=5)
    bare, plain = PackedLanguageModel(causal), optimizer.groups(causal, configured().optimizer)
    parameters = dict(causal.named_parameters())
    adamw = torch.optim.AdamW(
        [{"params": [parameters[name] for name in group.names], "lr": group.learning_rate,
          "weight_decay": group.weight_decay} for group in plain]
    )  # fmt: skip
    for update in range(3):
        engine.set_rates(1.0)
        norm, sums = engine.update(batches(feed, update), TARGETS)
        losses = [bare(batch) for batch in batches(feed, update)]
        sum(loss for loss, _ in losses).div(TARGETS).backward()
        expected = torch.nn.utils.clip_grad_norm_([value for value in parameters.values() if value.requires_grad], 0.5)
        adamw.step()
        adamw.zero_grad()
        assert norm == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(sums, sum(made_of for _, made_of in losses), rtol=1e-6, atol=1e-6)
    for name, value in engine.causal.named_parameters():
        torch.testing.assert_close(value, parameters[name], rtol=0, atol=1e-6)
    assert engine.steps == 3


def test_bf16_keeps_exact_masters_and_accumulates_in_fp32(feed: Feed, tiny_tokenizer: str) -> None:
    engine = opened(configured(precision="bf16", optimizer={"learning_rate": 1e-5}), tiny_tokenizer)
    before = state_of(engine)
    engine.set_rates(1.0)
    engine.update(batches(feed, 0), TARGETS)
    after = state_of(engine)
    q = "model.layers.0.self_attn.q_proj.weight"
    assert engine.parameters[q].dtype == torch.bfloat16
    assert engine.causal.model.rotary_emb.inv_freq.dtype == torch.float32
    moved = (after[q][MASTER] - before[q][MASTER]).abs()
    # A step of 1e-5 is lost in bf16 weights, and stands in the masters.
    assert 0.9e-5 < moved.max() < 1.1e-5
    assert torch.equal(engine.parameters[q], after[q][MASTER].bfloat16())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_update_whose_gradient_is_not_finite_changes_nothing(
    precision: str, feed: Feed, tiny_tokenizer: str
) -> None:
    """Defect 10 of the reference code: a NaN loss became the float 0.0, on which it called backward."""
    engine = opened(configured(precision=precision), tiny_tokenizer)
    engine.set_rates(1.0)
    engine.update(batches(feed, 0), TARGETS)
    before, weights = state_of(engine), {name: value.clone() for name, value in engine.parameters.items()}
    hook = engine.causal.lm_head.register_forward_hook(lambda module, inputs, logits: logits * float("nan"))
    norm, _ = engine.update(batches(feed, 1), TARGETS)
    hook.remove()
    assert norm == float("inf")
    assert engine.steps == 1
    for name, state in state_of(engine).items():
        assert all(torch.equal(value, before[name][key]) for key, value in state.items())
        assert torch.equal(engine.parameters[name], weights[name])
    norm, _ = engine.update(batches(feed, 2), TARGETS)
    assert np.isfinite(norm)


def test_a_checkpoint_brings_everything_back(feed: Feed, tiny_tokenizer: str, tmp_path: Path) -> None:
    engine = opened(configured(precision="bf16"), tiny_tokenizer)
    writer = Writer(str(tmp_path), fingerprint="f", keep=2)
    for update in range(2):
        engine.set_rates(1.0)
        engine.update(batches(feed, update), TARGETS)
    writer.save(engine, Progress(update=2, position=8))
    # The background writes what was there when it was asked to, though training goes on.
    expected = state_of(engine)
    engine.update(batches(feed, 2), TARGETS)
    after = state_of(engine)
    writer.wait()
    other = opened(configured(precision="bf16"), tiny_tokenizer)
    found = checkpoint.load(other, str(checkpoint.newest(str(tmp_path))), fingerprint="f")
    assert (found.update, found.position, other.steps) == (2, 8, 2)
    for name, state in state_of(other).items():
        assert all(torch.equal(value, expected[name][key]) for key, value in state.items())
    other.set_rates(1.0)
    other.update(batches(feed, 2), TARGETS)
    assert all(torch.equal(state[MASTER], after[name][MASTER]) for name, state in state_of(other).items())


def test_a_checkpoint_of_other_parameters_is_refused(feed: Feed, tiny_tokenizer: str, tmp_path: Path) -> None:
    writer = Writer(str(tmp_path), fingerprint="f", keep=1)
    writer.save(opened(configured(), tiny_tokenizer), Progress(update=1))
    writer.wait()
    fewer = opened(configured(trainability=RULES[:1]), tiny_tokenizer)
    with pytest.raises(DataError, match="other parameters"):
        checkpoint.load(fewer, str(checkpoint.newest(str(tmp_path))), fingerprint="f")


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_last_one_stays(
    tiny_tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(configured(), tiny_tokenizer)
    writer = Writer(str(tmp_path), fingerprint="f", keep=1)
    writer.save(engine, Progress(update=1))
    writer.wait()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", full)
        writer.save(engine, Progress(update=2))
        with pytest.raises(ResourceError, match=r"could not be written.*No space") as caught:
            writer.wait()
    assert "update-00000002" in str(caught.value.where)
    # The weights themselves meet a limit on the size of files, as they would a full disk.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ResourceError, match="could not be written"):
            writer.save(engine, Progress(update=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(checkpoint.newest(str(tmp_path))).endswith("update-00000001")
    writer.save(engine, Progress(update=3))
    writer.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["update-00000003"]


def test_the_best_are_kept_beside_the_newest(tiny_tokenizer: str, tmp_path: Path) -> None:
    engine = opened(configured(), tiny_tokenizer)
    writer = Writer(str(tmp_path), fingerprint="f", keep=1, keep_best=2, background=False)
    for update, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0]):
        writer.save(engine, Progress(update=update, dev_loss=loss, dev_update=update))
    # Between two measurements the loss is that of an older update, and says nothing of this one.
    writer.save(engine, Progress(update=5, dev_loss=0.5, dev_update=4))
    writer.save(engine, Progress(update=6))
    kept = sorted(int(path.name.removeprefix("update-")) for path in tmp_path.iterdir())
    assert kept == [1, 2, 6]
