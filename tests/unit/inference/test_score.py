"""Scores from one forward pass against a forward pass for each choice, written out; and adapters under both."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import build_model, conversations
from transformers import AutoModelForCausalLM

from polysome.config import ConfigurationError, DataError
from polysome.data.tokenizer_files import load_tokenizer
from polysome.inference import scoring, trie
from polysome.inference.adapters import Adapters
from polysome.inference.batch import BatchEngine
from polysome.inference.folder import adapter_fingerprint
from polysome.inference.forward import Forward
from polysome.inference.trie import Trie, score_trie, tries
from polysome.models.adapter import Base, digests
from polysome.storage import fingerprint

CHOICES = ["yes", "no", "no promoter here", "no promoter", "ACGT", "ACGA", "ACGTA", "A", "yes"]
CHATS = conversations(7, seed=5)


def by_hand(model: Any, tokenizer: Any, chat: list[dict[str, str]], choice: str) -> float:
    """Sum of the choice's log-probabilities from one forward pass over prompt and choice."""
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    tokens = tokenizer.encode(choice, add_special_tokens=False)
    with torch.no_grad():
        likelihoods = torch.log_softmax(model(torch.tensor([prompt + tokens])).logits[0].double(), dim=-1)
    return sum(likelihoods[len(prompt) + place - 1, token].item() for place, token in enumerate(tokens))


def assert_as_by_hand(engine: BatchEngine, model: Any, folder: str, *, tolerance: float = 1e-4) -> None:
    tokenizer = load_tokenizer(folder)
    found = engine.score(CHATS, CHOICES)
    wanted = [[by_hand(model, tokenizer, chat, choice) for choice in CHOICES] for chat in CHATS]
    assert np.array([scores.sums for scores in found]) == pytest.approx(np.array(wanted), abs=tolerance)
    lengths = tuple(len(tokenizer.encode(choice, add_special_tokens=False)) for choice in CHOICES)
    assert {scores.tokens for scores in found} == {lengths}
    assert len(set(lengths)) > 2


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_model(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("budget", [30, 400, 16384])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gpt2"])
def test_a_trie_gives_what_separate_forwards_give(
    kind: str, budget: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = build_model(tmp_path, kind)
    engine = BatchEngine(folder, max_batch_tokens=budget)
    assert_as_by_hand(engine, AutoModelForCausalLM.from_pretrained(folder).eval(), folder)
    assert not caplog.records


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_trie_in_parts_gives_what_separate_forwards_give(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scoring, "_PART", 4)
    used = []
    parts = scoring.score_parts
    monkeypatch.setattr(scoring, "score_parts", lambda *given: used.append(len(given[2])) or parts(*given))
    folder = build_model(tmp_path, kind)
    assert_as_by_hand(BatchEngine(folder), AutoModelForCausalLM.from_pretrained(folder).eval(), folder)
    assert used[-1] > 2
    assert not caplog.records


@pytest.mark.parametrize(("kind", "told"), [("bloom", True), ("mistral, window 24", False)])
@pytest.mark.parametrize("budget", [70, 16384])
def test_where_a_trie_cannot_be_the_prompt_is_shared(
    kind: str, told: bool, budget: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = build_model(tmp_path, kind)
    engine = BatchEngine(folder, max_batch_tokens=budget)
    assert_as_by_hand(engine, AutoModelForCausalLM.from_pretrained(folder).eval(), folder)
    assert_as_by_hand(engine, AutoModelForCausalLM.from_pretrained(folder).eval(), folder)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == int(told)
    assert all("bloom models cannot score all choices in one forward pass" in one for one in said)


def test_a_model_that_ignores_the_mask_is_found_out(
    llama: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = trie._mask

    def ignored(real: torch.Tensor, part: Trie, dtype: torch.dtype, *, last: int) -> torch.Tensor:
        return kept(real, replace(part, seen=np.tril(np.ones_like(part.seen))), dtype, last=last)

    monkeypatch.setattr(trie, "_mask", ignored)
    assert_as_by_hand(BatchEngine(llama), AutoModelForCausalLM.from_pretrained(llama).eval(), llama)
    assert "differ by" in caplog.text


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_half_precision_is_not_mistaken_for_an_obstacle(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = build_model(tmp_path, kind, dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    assert_as_by_hand(BatchEngine(folder), model, folder, tolerance=3.0)
    assert not caplog.records


def test_one_forward_pass_for_all_choices_of_all_conversations(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = BatchEngine(llama)
    engine._forward.overhead = 1000
    engine.score(CHATS, CHOICES)
    shapes = []
    logits = Forward.logits
    monkeypatch.setattr(
        Forward, "logits", lambda self, ids, *rest, **more: shapes.append(ids.shape) or logits(self, ids, *rest, **more)
    )
    engine.score(CHATS, CHOICES)
    assert len(shapes) == 1
    tokenizer = load_tokenizer(llama)
    encoded = [tuple(tokenizer.encode(choice, add_special_tokens=False)) for choice in CHOICES]
    beginnings = {choice[:size] for choice in encoded for size in range(1, len(choice))}
    longest = max(len(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]) for chat in CHATS)
    assert shapes[0] == (len(CHATS), longest + len(beginnings))
    # Where padding would cost more than another pass, rows of like lengths alone share one.
    engine._forward.overhead = 10
    engine.score(CHATS, CHOICES)
    assert sum(rows for rows, _ in shapes[1:]) == len(CHATS)
    assert 1 < len(shapes) - 1 < len(CHATS)


def test_what_exceeds_the_context_is_named(llama: str) -> None:
    engine = BatchEngine(llama)
    with pytest.raises(DataError, match="longest choice") as raised:
        engine.score([CHATS[0], [{"role": "user", "content": "A" * 80}]], ["ACGT" * 10])
    assert raised.value.where == "conversation 1"


tokens = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12)


@given(choices=tokens, room=st.integers(-3, 20))
def test_a_trie_holds_each_choice_once_and_sees_its_own_beginning_alone(choices: list[list[int]], room: int) -> None:
    parts = tries(choices, room)
    rebuilt = []
    for part in parts:
        beginnings = []
        for path in part.paths:
            choice = part.targets[path].tolist()
            rebuilt.append(choice)
            for place, edge in enumerate(path):
                node = part.sources[edge]
                assert part.depths[node] == place
                seen = np.flatnonzero(part.seen[node])
                assert part.tokens[seen[1:]].tolist() == choice[:place]
                beginnings.append((tuple(choice[:place]), int(node)))
        # One node for a beginning, one beginning for a node, and no node that nothing needs.
        assert len(set(beginnings)) == len(dict(beginnings)) == part.extra + 1
        assert part.extra <= max(room, 0) or len(part.paths) == 1
    assert rebuilt == choices


@settings(max_examples=25)
@given(
    choices=st.lists(st.lists(st.integers(6, 40), min_size=1, max_size=7), min_size=1, max_size=9),
    prompts=st.lists(st.lists(st.integers(6, 40), min_size=1, max_size=20), min_size=1, max_size=4),
)
def test_any_trie_gives_what_separate_forwards_give(
    choices: list[list[int]], prompts: list[list[int]], llama: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    found = score_trie(Forward(model, 0, Adapters(model)), prompts, Trie.of(choices))
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            for column, choice in enumerate(choices):
                likelihoods = torch.log_softmax(model(torch.tensor([prompt + choice])).logits[0], dim=-1)
                wanted = sum(likelihoods[len(prompt) + place - 1, token] for place, token in enumerate(choice))
                assert found[row, column] == pytest.approx(wanted.item(), abs=1e-4)


def adapter(base: str, folder: Path, *, seed: int, tokenizer: bool = False, **settings: Any) -> str:
    """A LoRA adapter whose matrices are not zero."""
    torch.manual_seed(seed)
    options = {"r": 4, "target_modules": ["q_proj", "up_proj"], "modules_to_save": ["lm_head"], **settings}
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**options))
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.2 * torch.randn_like(value))
    model.save_pretrained(folder)
    if tokenizer:
        for file in Path(base).glob("token*"):
            shutil.copy(file, folder)
    return str(folder)


def test_an_adapter_answers_as_peft_computes_it(llama: str, tmp_path: Path) -> None:
    folders = {name: adapter(llama, tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second"))}
    base = AutoModelForCausalLM.from_pretrained(llama).eval()
    models = {
        name: peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), folder).eval()
        for name, folder in folders.items()
    }
    engine = BatchEngine(llama, adapter=folders["first"])
    assert_as_by_hand(engine, models["first"], llama)
    engine.load_adapter(folders["second"], name="second")
    assert_as_by_hand(engine, models["first"], llama)
    with engine.using("second"):
        assert_as_by_hand(engine, models["second"], llama)
        with engine.using(None):
            assert_as_by_hand(engine, base, llama)
            assert engine.generate(CHATS, max_new_tokens=8) == BatchEngine(llama).generate(CHATS, max_new_tokens=8)
            assert np.allclose(
                engine.embed(CHATS, pool="mean").vectors, BatchEngine(llama).embed(CHATS, pool="mean").vectors
            )
    assert_as_by_hand(engine, models["first"], llama)
    merged = models["first"].merge_and_unload()
    merged.generation_config = base.generation_config
    expected = BatchEngine.of(merged, load_tokenizer(llama))
    assert engine.generate(CHATS, max_new_tokens=8) == expected.generate(CHATS, max_new_tokens=8)
    with pytest.raises(ConfigurationError, match="no adapter 'third'"), engine.using("third"):
        pass
    assert adapter_fingerprint(folders["first"]) != adapter_fingerprint(folders["second"])


def test_an_adapter_of_other_shapes_is_refused_and_changes_nothing(llama: str, tmp_path: Path) -> None:
    engine = BatchEngine(llama)
    before = engine.score(CHATS, CHOICES)
    wide = build_model(tmp_path / "wide", intermediate_size=48)
    deep = build_model(tmp_path / "deep", num_hidden_layers=3)
    other = build_model(tmp_path / "other", "gpt2")
    refused = {
        "shape": adapter(wide, tmp_path / "a", seed=0),
        "no place": adapter(deep, tmp_path / "b", seed=0),
        "target_modules": adapter(other, tmp_path / "c", seed=0, target_modules=["c_attn"], fan_in_fan_out=True),
    }
    for said, folder in refused.items():
        with pytest.raises(ConfigurationError, match=f"does not fit this model: .*{said}"):
            engine.load_adapter(folder, name="other")
    fitting = adapter(llama, tmp_path / "d", seed=0)
    weights = load_file(Path(fitting, "adapter_model.safetensors"))
    weights.pop(next(name for name in weights if "lora_B" in name))
    torn = shutil.copytree(fitting, tmp_path / "torn")
    save_file(weights, torn / "adapter_model.safetensors")
    with pytest.raises(ConfigurationError, match=r"lacks 1 weights .*lora_B"):
        engine.load_adapter(str(torn), name="other")
    Path(torn, "adapter_model.safetensors").rename(torn / "adapter_model.bin")
    with pytest.raises(DataError, match=r"adapter_model.safetensors is missing"):
        engine.load_adapter(str(torn), name="other")
    assert engine.score(CHATS, CHOICES) == before
    engine.load_adapter(fitting, name="other")
    with pytest.raises(ConfigurationError, match="already"):
        engine.load_adapter(fitting, name="other")
    assert engine.score(CHATS, CHOICES) == before


def bind(folder: str, base: str, *, brings: tuple[str, ...] = ()) -> None:
    """Write the base that an adapter belongs to beside it, as a stage does."""
    parameters = AutoModelForCausalLM.from_pretrained(base).named_parameters()
    weights = digests({name: value for name, value in parameters if not name.startswith(brings)})
    record = Base(model=base, fingerprint=fingerprint(weights), weights=weights)
    Path(folder, "base.json").write_text(record.model_dump_json())


def test_an_adapter_of_another_base_is_refused_before_anything_is_asked(llama: str, tmp_path: Path) -> None:
    first, second = (adapter(llama, tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second")))
    bare = adapter(llama, tmp_path / "bare", seed=2, modules_to_save=None)
    for folder in (first, second):
        bind(folder, llama, brings=("lm_head",))
    bind(bare, llama)
    other = build_model(tmp_path / "other", seed=8)
    with pytest.raises(ConfigurationError, match="belongs to another base") as raised:
        BatchEngine(other, adapter=first)
    assert (raised.value.where, llama in raised.value.fix) == (first, True)
    engine = BatchEngine(llama, adapter=first)
    # What adapters on the model have wrapped is still the base.
    engine.load_adapter(second, name="second")
    engine.load_adapter(bare, name="bare")
    before = engine.score(CHATS, CHOICES)
    foreign = adapter(other, tmp_path / "foreign", seed=0)
    bind(foreign, other, brings=("lm_head",))
    with pytest.raises(ConfigurationError, match="belongs to another base"):
        engine.load_adapter(foreign, name="foreign")
    assert engine.score(CHATS, CHOICES) == before


def test_a_base_without_a_chat_template_takes_that_of_the_adapter(llama: str, tmp_path: Path) -> None:
    folder = adapter(llama, tmp_path / "adapter", seed=0, tokenizer=True)
    bare = shutil.copytree(llama, tmp_path / "bare")
    for file in bare.glob("token*"):
        file.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        BatchEngine(str(bare))
    assert BatchEngine(str(bare), adapter=folder).score(CHATS, CHOICES) == BatchEngine(llama, adapter=folder).score(
        CHATS, CHOICES
    )


def test_the_window_is_read_as_the_architecture_uses_it(tmp_path: Path) -> None:
    def reach(kind: str, **changes: Any) -> float:
        folder = build_model(tmp_path / str(len(list(tmp_path.iterdir()))), kind, **changes)
        return scoring._window(AutoModelForCausalLM.from_pretrained(folder).config)

    assert reach("mistral") == reach("llama") == reach("gpt2") == float("inf")
    assert reach("mistral, window 24") == 24
    assert reach("qwen2", sliding_window=24, use_sliding_window=False) == float("inf")
