"""The batch engine against plain `model.generate` (design: the correctness anchor)."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import CONTEXT, build_model, conversations
from transformers import AutoModelForCausalLM, AutoTokenizer

from polysome.config import ConfigurationError, DataError
from polysome.data.tokenizer_files import load_tokenizer
from polysome.inference.batch import BatchEngine, asking
from polysome.inference.decoding import sample
from polysome.inference.folder import model_fingerprint
from polysome.inference.forward import batches
from polysome.models import backbone
from polysome.models.attention import ATTENTION, pack
from polysome.models.backbone import ModelSource
from polysome.models.trainability import Rule, apply, merge


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(build_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> BatchEngine:
    return BatchEngine(str(model_folder), max_batch_tokens=400)


def test_batched_greedy_equals_one_by_one_equals_plain_generate(engine: BatchEngine, model_folder: Path) -> None:
    chats = conversations(24)
    batched = engine.generate(chats, max_new_tokens=20)
    assert batched == [engine.generate([chat], max_new_tokens=20)[0] for chat in chats]

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    for chat, generation in zip(chats, batched, strict=True):
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        new = model.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :]
        assert generation.text == tokenizer.decode(new, skip_special_tokens=True)
        assert generation.completion_tokens == len(new)
        assert generation.prompt_tokens == prompt.shape[1]
    assert {generation.finish_reason for generation in batched} == {"stop", "length"}


@pytest.mark.parametrize(
    ("kind", "joins"),
    [("qwen2", True), ("gpt2", True), ("bloom", True), ("mistral", True), ("mistral, window 24", False)],
)
def test_other_architectures_answer_as_plain_generate(kind: str, joins: bool, tmp_path: Path) -> None:
    engine = BatchEngine(build_model(tmp_path, kind), max_batch_tokens=1000)
    assert engine._forward.plain_cache == joins
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = load_tokenizer(tmp_path)
    chats = conversations(16, seed=2)
    for chat, generation in zip(chats, engine.generate(chats, max_new_tokens=20), strict=True):
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        prompt = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        new = model.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :]
        assert generation.text == tokenizer.decode(new, skip_special_tokens=True)


@given(sizes=st.lists(st.integers(1, 50), max_size=30), budget=st.integers(1, 300), padding=st.integers(0, 100))
def test_batches_hold_every_row_once_within_budget_and_padding(sizes: list[int], budget: int, padding: int) -> None:
    found = batches(sizes, budget=budget, padding=padding)
    assert sorted(index for batch in found for index in batch) == list(range(len(sizes)))
    for batch in found:
        longest = max(sizes[index] for index in batch)
        assert len(batch) * longest <= budget or len(batch) == 1
        assert sum(longest - sizes[index] for index in batch) <= padding


def test_sampling_is_seeded_per_conversation_whatever_shares_the_batch(engine: BatchEngine) -> None:
    chats = conversations(12)
    options = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9}
    first = engine.generate(chats, seed=3, **options)
    assert first == engine.generate(chats, seed=3, **options)
    assert first[:5] == engine.generate(chats[:5], seed=3, **options)
    assert first != engine.generate(chats, seed=4, **options)


def test_top_p_samples_from_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(5, -1)
    uniform = torch.tensor([0.0, 0.62, 0.63, 0.99, 1 - 1e-17], dtype=torch.float64)
    assert sample(logits, 0.8, uniform).tolist() == [0, 0, 1, 1, 1]
    assert sample(logits, 1.0, uniform).tolist() == [0, 1, 1, 3, 3]


def test_too_long_a_prompt_is_refused_and_a_long_answer_is_cut(engine: BatchEngine) -> None:
    with pytest.raises(DataError, match=rf"has 1\d\d tokens, the model's context is {CONTEXT}"):
        engine.generate([[{"role": "user", "content": "A" * 120}]], max_new_tokens=4)
    generation = engine.generate([[{"role": "user", "content": "A" * 88}]], max_new_tokens=50)[0]
    assert generation.prompt_tokens + generation.completion_tokens <= CONTEXT
    if generation.prompt_tokens + generation.completion_tokens == CONTEXT:
        assert generation.finish_reason == "length"


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"temperature": -1}, {"temperature": math.nan}, {"top_p": 0}, {"top_p": 1.5}]
)
def test_settings_out_of_range_are_refused(engine: BatchEngine, options: dict) -> None:
    with pytest.raises(ConfigurationError):
        engine.generate(conversations(1), **{"max_new_tokens": 4, **options})


def test_a_stop_string_ends_a_row_and_not_its_batch(engine: BatchEngine) -> None:
    chats = conversations(24)
    free = engine.generate(chats, max_new_tokens=20)
    # Bytes that are no text yet may become one: no stop string of those.
    said = [part for one in free for part in one.text.split("\ufffd") if len(part) > 2]
    stop = [said[0][:2], said[-1][1:3], "A"]
    ended = engine.generate(chats, max_new_tokens=20, stop=stop)
    assert ended == [engine.generate([chat], max_new_tokens=20, stop=stop)[0] for chat in chats]
    for whole, cut in zip(free, ended, strict=True):
        assert cut.text == whole.text[: min((whole.text.index(one) for one in stop if one in whole.text), default=None)]
    assert 0 < sum(cut.completion_tokens < whole.completion_tokens for whole, cut in zip(free, ended, strict=True)) < 24


def test_a_vector_is_pooled_over_the_unpadded_prompt(engine: BatchEngine, model_folder: Path) -> None:
    texts = [*conversations(9), "ACGT is there a promoter?", "A"]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    mean, last = engine.embed(texts, pool="mean").vectors, engine.embed(texts, pool="last").vectors
    for text, pooled, final in zip(texts, mean, last, strict=True):
        if not isinstance(text, str):
            text = tokenizer.apply_chat_template(text, add_generation_prompt=True, tokenize=False)
        with torch.no_grad():
            output = model(tokenizer(text, return_tensors="pt").input_ids, output_hidden_states=True)
        assert pooled == pytest.approx(output.hidden_states[-1][0].mean(dim=0).numpy(), abs=1e-4)
        assert final == pytest.approx(output.hidden_states[-1][0, -1].numpy(), abs=1e-4)
    for wrong in ("", "A" * 200):
        with pytest.raises(DataError, match="the text has") as raised:
            engine.embed(["A", wrong], pool="mean")
        assert raised.value.where == "text 1"


def test_health_passes_and_nothing_asked_gives_nothing(engine: BatchEngine) -> None:
    engine.health()
    assert engine.generate([], max_new_tokens=4) == []


def test_a_folder_without_safetensors_is_refused(model_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(DataError, match="pickle file"):
        BatchEngine(str(tmp_path))


def test_a_folder_whose_weights_are_not_whole_is_refused(model_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"model\.norm\.weight"):
        BatchEngine(str(copy))


def test_the_fingerprint_follows_content_and_not_place(model_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in model_folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert model_fingerprint(str(copy)) == model_fingerprint(str(model_folder))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings["chat_template"] += " "
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert model_fingerprint(str(copy)) != model_fingerprint(str(model_folder))


def test_a_model_that_trains_answers_as_its_export_will(model_folder: Path, tmp_path: Path) -> None:
    """LoRA layers with dropout, packed attention, no cache, train mode: as the trainer holds a model."""
    rules = [
        Rule(match="self_attn", mode="lora", rank=4, alpha=16, dropout=0.5),
        Rule(match="embed|norm", mode="full"),
    ]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = backbone.build_model(ModelSource(path=str(model_folder)), str(model_folder), seed=1)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(30, 60)]
    apply(model, rules, seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    model.model.norm.eval()

    with asking(model):
        ours = BatchEngine.of(model, tokenizer, max_batch_tokens=400).generate(conversations(24), max_new_tokens=20)
    assert model.config._attn_implementation == ATTENTION
    assert model.training
    assert not model.model.norm.training
    inputs = torch.tensor([[5, 6, 7]])
    loss = model(input_ids=inputs, position_ids=torch.arange(3)[None], use_cache=False, packing=pack([3])).logits.sum()
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)

    merge(model)
    model.save_pretrained(tmp_path)
    for file in model_folder.glob("token*"):
        shutil.copy(file, tmp_path)
    theirs = BatchEngine(str(tmp_path)).generate(conversations(24), max_new_tokens=20)
    assert ours == theirs
    assert theirs != BatchEngine(str(model_folder)).generate(conversations(24), max_new_tokens=20)
    assert {generation.finish_reason for generation in ours} == {"stop", "length"}


def test_what_was_set_for_asking_is_undone_after_an_error(model_folder: Path) -> None:
    model = backbone.build_model(ModelSource(path=str(model_folder)), str(model_folder), seed=1).train()
    with pytest.raises(ZeroDivisionError), asking(model):
        1 / 0  # noqa: B018
    assert model.training
    assert model.config._attn_implementation == ATTENTION
